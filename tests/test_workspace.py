"A learner's own folder: nothing in it is ever lost, and the course's tests do not know of it."

import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from forked import llama_course

from llama_course.classroom import check, progress
from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.places import open_place
from llama_course.classroom.progress import PROGRESS, next_step
from llama_course.classroom.submissions import find_students
from llama_course.classroom.workspace import (
    NEW,
    RESTORED,
    SAME,
    UPDATED,
    carry,
    exercise_folder,
    start,
)
from llama_course.support.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ANSWER = """def rms_norm(x, weight, eps):
    "Mine, ünlike others'."
    return F.rms_norm(x, weight.shape, weight, eps)"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    "Exercises as they are given, in a folder that a test may change; the workspace is `my`."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    for chapter in ("08_norm", "10_rope"):
        shutil.copy(exercise_folder() / f"{chapter}.ipynb", tmp_path / "given")
    return tmp_path


def begin(course, *chapters):
    return start(chapters, course / "my", course / "given")


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write(path, notebook):
    Path(path).write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def cell(notebook, name):
    marks = [c["metadata"].get("nbgrader", {}).get("grade_id") for c in notebook["cells"]]
    return notebook["cells"][marks.index(name)]


def solve(path):
    "A learner's evening: an answer, a cell of their own, an import, outputs."
    mine = read(path)
    cell(mine, "rms_norm_answer")["source"] = ANSWER.splitlines(True)
    cell(mine, "rms_norm")["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "10"}]
    at = mine["cells"].index(cell(mine, "rms_norm_answer")) + 1
    own = {"cell_type": "code", "id": "mine", "metadata": {}, "source": "my_note = 1",
           "outputs": [], "execution_count": 3}  # fmt: skip
    mine["cells"].insert(at, own)
    mine["cells"][1]["source"] = "import torch, math\n"
    write(path, mine)


def new_edition(path):
    "The course changes a text, a stub, and adds a task in front."
    given = read(path)
    cell(given, "rms_norm_task")["source"] += ["\nA clearer sentence."]
    cell(given, "rms_norm_answer")["source"] = "def rms_norm(x, weight, eps):\n    ..."
    more = {"cell_type": "markdown", "id": "more", "metadata": {}, "source": "## 0. A new task"}
    given["cells"].insert(2, more)
    write(path, given)


def test_a_chapter_is_begun_by_its_number(course):
    assert [s.path.name for s in begin(course, "8")] == ["08_norm.ipynb"]
    assert [s.state for s in begin(course)] == [SAME, NEW]
    assert (course / "my" / "08_norm.ipynb").read_bytes() == (
        course / "given" / "08_norm.ipynb"
    ).read_bytes()
    for wrong in ("7", "norm", "8x", "99"):
        with pytest.raises(UserError, match="there are some for 08, 10"):
            begin(course, wrong)
    with pytest.raises(UserError, match="the course's own folder"):
        start((), course / "given", course / "given")


def test_an_answer_is_never_written_over(course):
    begin(course)
    mine = course / "my" / "08_norm.ipynb"
    solve(mine)
    before = mine.read_bytes()
    assert begin(course, "08")[0].state == SAME and mine.read_bytes() == before


def test_an_answer_is_carried_into_a_changed_exercise(course):
    begin(course)
    mine = course / "my" / "08_norm.ipynb"
    solve(mine)
    before = mine.read_bytes()
    new_edition(course / "given" / "08_norm.ipynb")
    done = begin(course, "08")[0]
    assert done.state == UPDATED and done.kept.read_bytes() == before
    now = read(mine)
    nbformat.validate(nbformat.from_dict(now))
    assert "".join(cell(now, "rms_norm_answer")["source"]) == ANSWER
    assert "A clearer sentence." in "".join(cell(now, "rms_norm_task")["source"])
    sources = ["".join(c["source"]) for c in now["cells"]]
    assert sources[2] == "## 0. A new task" and sources[1] == "import torch, math\n"
    assert sources.index("my_note = 1") == sources.index(ANSWER) + 1
    assert cell(now, "rms_norm")["outputs"][0]["text"] == "10"
    assert cell(now, "pre_norm_block_answer") == cell(
        read(course / "given" / "08_norm.ipynb"), "pre_norm_block_answer"
    )
    assert begin(course, "08")[0].state == SAME  # and an update happens once
    new_edition(course / "given" / "08_norm.ipynb")
    assert begin(course)[0].kept != done.kept and done.kept.read_bytes() == before


def test_no_word_of_a_learner_is_lost_whatever_the_course_changes(course):
    "Every cell of the old notebook that the learner has written stands in the new one, or is kept."
    begin(course)
    mine = course / "my" / "08_norm.ipynb"
    solve(mine)
    old, given = read(mine), read(course / "my" / ".given" / "08_norm.ipynb")
    for gone in range(len(given["cells"])):
        new = {**given, "cells": given["cells"][:gone] + given["cells"][gone + 1 :]}
        now = "\n".join("".join(c["source"]) for c in carry(old, given, new)["cells"])
        assert ANSWER in now and "my_note = 1" in now
        ids = [c["id"] for c in carry(old, given, new)["cells"]]
        assert len(set(ids)) == len(ids)


def test_a_chapter_that_moved_takes_its_answers_along(course):
    begin(course)
    solve(course / "my" / "08_norm.ipynb")
    (course / "given" / "08_norm.ipynb").rename(course / "given" / "12_norm.ipynb")
    done = {s.path.name: s for s in begin(course)}
    assert done["12_norm.ipynb"].state == UPDATED
    assert ANSWER in "".join(
        cell(read(course / "my" / "12_norm.ipynb"), "rms_norm_answer")["source"]
    )
    assert not (course / "my" / "08_norm.ipynb").exists() and done["12_norm.ipynb"].kept.exists()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"cells": 3}', b"\xff\xfe", b'{"cells": [1]}']
)
def test_a_damaged_notebook_is_kept_and_replaced(course, damage):
    begin(course)
    mine = course / "my" / "08_norm.ipynb"
    mine.write_bytes(damage)
    new_edition(course / "given" / "08_norm.ipynb")
    done = begin(course, "8")[0]
    assert done.state == RESTORED and done.kept.read_bytes() == damage
    assert mine.read_bytes() == (course / "given" / "08_norm.ipynb").read_bytes()


# ---------------------------------------------------------------- progress


def test_progress_is_one_local_file(course, monkeypatch):
    begin(course)
    monkeypatch.chdir(course / "my")
    exercises = load_exercises()
    task = exercises["rms_norm"]
    assert check(task.mistakes[0].answer, "rms_norm").next == ""
    report = check(task.rights[0], "rms_norm")
    assert "Right. Next: lean_rms_norm in 08_norm.ipynb, extend" in repr(report)
    assert '<a href="08_norm.ipynb">lean_rms_norm</a>' in report._repr_html_()
    with open(PROGRESS, "a", encoding="utf-8") as file:
        file.write('{"exercise": "gone", "points": 1, "at": "x"}\nno JSON\n{"exercise": "rope"}\n')
    reached = progress()
    row = next(r for r in reached.as_dict()["exercises"] if r["name"] == "rms_norm")
    assert row["points"] == 10 and row["attempts"] == 2 and row["passed"]
    assert reached.as_dict()["points"] == 10 and reached.as_dict()["passed"] == 1
    assert reached.following.exercise.chapter.startswith("01_")
    assert "| [08_norm](08_norm.ipynb) | ✓ rms_norm, lean_rms_norm" in reached.as_markdown()
    assert reached.as_dict()["max_points"] == 10 * len(exercises)


def test_nothing_is_noted_outside_of_a_workspace(course):
    check(load_exercises()["rms_norm"].rights[0], "rms_norm")
    assert not list(course.rglob(PROGRESS))
    with pytest.raises(UserError, match="llama-course start"):
        progress()


def test_a_right_answer_is_drawn_beside_the_target(course):
    report = check(load_exercises()["rope"].rights[0], "rope")
    assert "<svg" in report.picture and 'role="img" aria-label="RoPE turns' in report.picture
    wrong = load_exercises()["rope"].mistakes[0].answer
    assert check(wrong, "rope").picture == ""


# ---------------------------------------------------------------- the command


def test_the_commands(tmp_path):
    ran = llama_course("start", "01", "8", "--folder", "mine", "--json", folder=tmp_path)
    result = json.loads(ran.stdout)
    assert [Path(n["path"]).name for n in result["notebooks"]] == [
        "01_bigram.ipynb",
        "08_norm.ipynb",
    ]
    page = read(tmp_path / "mine" / "start.ipynb")
    nbformat.validate(nbformat.from_dict(page))
    assert "01_bigram.ipynb), rebuild" in page["cells"][0]["source"]
    ran = llama_course("progress", "--folder", "mine", folder=tmp_path)
    assert ran.returncode == 0 and "Next: " in ran.stdout, ran.stderr
    ran = llama_course("progress", folder=tmp_path)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "start" in ran.stderr


def test_a_workspace_is_one_learners_work(course):
    "Neither what was kept of older notebooks nor the first page is handed in."
    begin(course)
    solve(course / "my" / "08_norm.ipynb")
    new_edition(course / "given" / "08_norm.ipynb")
    begin(course)
    found = find_students(open_place(course / "my"))
    assert not found.is_class and sorted(
        file.inner for student in found.students for file in student.files
    ) == ["08_norm.ipynb", "10_rope.ipynb"]


def test_the_next_step_says_how_long_it_takes(course):
    given = course / "given" / "08_norm.ipynb"
    text = read(given)
    cell(text, "rms_norm_task")["source"] = "## 1.\n\n*About 7 minutes; hard.* Do it."
    write(given, text)
    begin(course)
    standing = next(s for s in progress("my").standings if s.exercise.name == "rms_norm")
    assert next_step(standing, course / "my").endswith("rebuild, hard, about 7 minutes.")


def test_git_does_not_see_the_workspace():
    ran = subprocess.run(["git", "check-ignore", "my/08_norm.ipynb"], cwd=ROOT, capture_output=True)
    if ran.returncode == 128:
        pytest.skip("no git repository here")
    assert ran.returncode == 0
