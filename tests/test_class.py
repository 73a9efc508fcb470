"A class of thirty as it hands in: every file has its status, and none costs another anything."

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from forked import COMMAND, Forked, llama_course
from hostile import (
    BLANK,
    BLOCK,
    CENTRED,
    HOSTILE,
    NO_GAIN,
    NO_ROOT,
    NORM,
    OTHER,
    POST,
    RENAMED,
    hostile,
    notebook,
    write_all,
)

from llama_course.classroom import classes, places
from llama_course.classroom.classes import exit_status, grade_class
from llama_course.classroom.grade import grade
from llama_course.classroom.places import Folder, Zip, open_place
from llama_course.classroom.similarity import fingerprints, similar_pairs
from llama_course.classroom.submissions import find_students, lay_out, notebooks_of
from llama_course.classroom.supervisor import Limits
from llama_course.support.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
QUICK = Limits(memory=1 << 30, cell_seconds=4, call_seconds=4, total_seconds=20)
BOTH, RIGHT = notebook(NORM, BLOCK), [10, 0, 10]  # rms_norm, lean_rms_norm, pre_norm_block

# ---------------------------------------------------------------- C1: the thirty files

WRITTEN = {  # student: (file, points, status)
    "adams": (BOTH, RIGHT, "graded"),
    "adler": (notebook(OTHER, BLOCK), RIGHT, "graded"),
    "baker": (notebook(NO_ROOT, BLOCK), [0, 0, 10], "graded"),
    "becker": (notebook(NO_ROOT, POST), [0, 0, 0], "graded"),
    "clark": (b"\x89PNG\r\n\x1a\n" + bytes(5000), None, "not a notebook"),
    "costa": (notebook(CENTRED, BLOCK), [0, 0, 10], "graded"),
    "diaz": (notebook(CENTRED), [0, 0, 0], "graded"),
    "dunn": (b"", None, "empty"),
    "evans": (notebook(NO_GAIN, POST), [0, 0, 0], "graded"),
    "fischer": (notebook(RENAMED, BLOCK), RIGHT, "graded"),
    "garcia": (notebook(), None, "empty"),
    "hansen": (notebook(BLANK), [0, 0, 0], "empty"),
    "ito": (b"{" * 100_000, None, "not a notebook"),
    "jones": (notebook("x = 1"), None, "empty"),
    "khan": (b"\xef\xbb\xbf" + BOTH, RIGHT, "graded"),
    "lopez": (notebook("%matplotlib inline\n!ls", NORM, "1 / 0", BLOCK), RIGHT, "graded"),
}
ATTACKS = [
    "loops", "exits", "forges half a message", "forges a whole message",
    "connects to a Unix socket", "writes to a device",
    "starts 100 processes that leave the session", "memfd of 2 GB", "a comment of 1 MB",
    "reads the others", "eats memory",
]  # fmt: skip
CUT = ("loops", "exits", "forges half a message", "forges a whole message", ATTACKS[6])


def thirty() -> tuple[dict[str, bytes], dict[str, tuple]]:
    "Files as Canvas names them, and what is to come of each student."
    files, expected = {}, {}
    for number, (student, (data, points, status)) in enumerate(WRITTEN.items(), 10_000):
        files[f"{student}_{number}_{number + 50_000}_08_norm.ipynb"] = data
        expected[student] = points, status
    for number, attack in enumerate(ATTACKS, 20_000):
        files[f"mallory{number}_{number}_{number + 50_000}_08_norm.ipynb"] = hostile(attack)
        status = "graded in part" if attack in CUT else "graded"
        expected[f"mallory{number}"] = RIGHT, status
    # two tries, the later one late; a copy beside it; two students of one name
    files["moore_30000_80000_08_norm.ipynb"] = notebook(NO_ROOT)
    files["moore_LATE_30000_80001_08_norm-1.ipynb"] = BOTH
    expected["moore"] = RIGHT, "graded"
    files["nguyen_30001_80002_08_norm-Copy1.ipynb"] = notebook(BLANK)
    files["nguyen_30001_80003_08_norm.ipynb"] = BOTH
    expected["nguyen"] = RIGHT, "graded"
    files["smith_30002_80004_08_norm.ipynb"] = BOTH
    files["smith_30003_80005_08_norm.ipynb"] = notebook(NO_GAIN, BLOCK)
    expected["smith (30002)"], expected["smith (30003)"] = (RIGHT, "graded"), ([0, 0, 10], "graded")
    return files, expected


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    "The thirty, graded by one command."
    home = tmp_path_factory.mktemp("class")
    files, expected = thirty()
    write_all(files, home / "week1")
    done = llama_course("grade", home / "week1", "--json", "--similar", "--seconds", 16)
    assert done.stdout, done.stderr
    return home, expected, json.loads(done.stdout), done


def scores(student: dict) -> list | None:
    return [row["points"] for row in student["exercises"]] or None


def test_thirty_files_give_thirty_rows_and_the_right_scores(graded):
    home, expected, result, done = graded
    assert len(expected) >= 30 and done.returncode == 1  # some were not graded
    found = {s["student"]: (scores(s), s["status"]) for s in result["students"]}
    reasons = {s["student"]: s["reason"] for s in result["students"]}
    eater = f"mallory{20_000 + ATTACKS.index('eats memory')}"
    if found[eater][1] == "graded in part":  # the watcher was there before the limit in the process
        assert "memory" in reasons[eater], reasons[eater]
        found[eater] = found[eater][0], "graded"
    assert found == expected
    late = [s["student"] for s in result["students"] if s["late"]]
    assert late == ["moore"]
    assert "PNG" in reasons["clark"] and "cell 2: it took longer" in reasons["mallory20000"]
    assert "more than 64 processes" in reasons["mallory20006"]
    assert "Traceback" not in done.stderr and "week1-scores" in done.stderr


def test_nobody_sees_another_students_file(graded):
    _, _, result, _ = graded
    (notes,) = [s["notes"] for s in result["students"] if s["student"] == "mallory20009"]
    assert "SEES" in str(notes) and "_08_norm" not in str(notes).split("SEES")[1]
    assert "READ A TOKEN" not in json.dumps(result)


def test_the_table_has_a_row_for_each_student_and_a_column_for_each_exercise(graded):
    home, expected, result, _ = graded
    text = (home / "week1-scores" / "scores.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["student"] for row in rows] == [s["student"] for s in result["students"]]
    for row in rows:
        points = expected[row["student"]][0]
        cells = [row[name] for name in ("rms_norm", "lean_rms_norm", "pre_norm_block")]
        assert cells == ([str(p) for p in points] if points else [""] * 3)
        assert row["points"] == (str(sum(points)) if points else "")


def test_pages_for_the_class_and_for_each_student(graded):
    home, expected, result, _ = graded
    folder = home / "week1-scores"
    pages = {path.name: path.read_text() for path in (folder / "feedback").glob("*.html")}
    assert len(pages) == len(expected)
    for student in result["students"]:
        page = pages[student["feedback"]]
        others = set(expected) - {student["student"]}
        assert student["student"] in page and not any(f">{name}<" in page for name in others)
        assert "http://" not in page and "https://" not in page and "<script" not in page
    whole = (folder / "class.html").read_text()
    assert all(f"feedback/{s['feedback']}" in whole.replace("%20", " ") for s in result["students"])
    block = next(e for e in result["exercises"] if e["name"] == "pre_norm_block")
    most = block["mistakes"][0]
    assert most["students"] >= 2 and most["name"] in whole and most["text"][:20] in whole


def test_equal_answers_are_a_hint(graded):
    _, _, result, _ = graded
    pairs = {(pair["first"], pair["second"]) for pair in result["similar"]}
    assert all("becker" not in pair or "baker" in pair for pair in pairs)  # rms_norm without root


def test_a_second_call_grades_only_what_is_new(graded):
    home, expected, result, _ = graded
    folder = home / "week1"
    kept = home / "week1-scores" / places.KEPT_FOLDER
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    (folder / "adler_10001_99999_08_norm-2.ipynb").write_bytes(notebook(NO_ROOT, BLOCK))
    done = llama_course("grade", folder, "--csv", "--seconds", 16)
    after = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert len(after.keys() - before.keys()) == 1 and before.items() <= after.items()
    rows = {row["student"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert rows["adler"]["rms_norm"] == "0" and rows["adams"]["rms_norm"] == "10"


# ---------------------------------------------------------------- layouts

LAYOUTS = {
    "canvas": {
        "adamsanna_12345_678910_08_norm.ipynb": BOTH,
        "bakerjo_LATE_12346_678911_08_norm-1.ipynb": BOTH,
    },
    "moodle": {
        "Anna Adams_12345_assignsubmission_file_/08_norm.ipynb": BOTH,
        "Jo Baker_12346_assignsubmission_file_/08_norm.ipynb": BOTH,
        "Jo Baker_12346_assignsubmission_onlinetext_/onlinetext.html": b"<p>Hello</p>",
    },
    "moodle without folders": {
        "Anna Adams_12345_assignsubmission_file_08_norm.ipynb": BOTH,
        "Jo Baker_12346_assignsubmission_file_08_norm.ipynb": BOTH,
    },
    "nbgrader": {
        "submitted/anna/week1/08_norm.ipynb": BOTH,
        "submitted/anna/week1/timestamp.txt": b"2026-11-30 12:00:00 UTC",
        "submitted/jo/week1/08_norm.ipynb": BOTH,
        "source/week1/08_norm.ipynb": BOTH,
        "release/week1/08_norm.ipynb": notebook(BLANK),
        "autograded/anna/week1/08_norm.ipynb": BOTH,
    },
    "github": {
        "norm-anna/.git/HEAD": b"ref",
        "norm-anna/08_norm.ipynb": BOTH,
        "norm-jo/.git/HEAD": b"ref",
        "norm-jo/work/08_norm.ipynb": BOTH,
        "norm-jo/.ipynb_checkpoints/08_norm-checkpoint.ipynb": notebook(NO_ROOT),
    },
    "clones of the course": {
        f"course-{name}/{path}": data
        for name in ("anna", "jo")
        for path, data in {
            ".git/HEAD": b"ref",
            "settings.ini": b"",
            "nbs/08_norm.ipynb": notebook(NO_ROOT),
            "solutions/08_norm.ipynb": notebook(NORM),
            "exercises/08_norm.ipynb": notebook(BLANK),
            "my/08_norm.ipynb": BOTH,
        }.items()
    },
    "otter": {
        "anna_08_norm_2026_11_29T10_00_00_000001.ipynb": notebook(NO_ROOT),
        "anna_08_norm_2026_11_30T10_00_00_000001.ipynb": BOTH,
        "jo_08_norm_2026_11_30T10_00_00_000001.ipynb": BOTH,
    },
    "gradescope": {
        "assignment_77_export/submission_metadata.yml": b"""---
submission_1001:
  :submitters:
  - :name: Anna Adams
    :sid: '12345'
    :email: anna@example.edu
  :created_at: 2026-11-30 10:00:00.000000000 -08:00
  :score: 8.0
submission_1002:
  :submitters:
  - :name: Jo Baker
    :sid:
    :email: jo@example.edu
  :created_at: 2026-11-30 10:00:00.000000000 -08:00
  :score:
""",
        "assignment_77_export/submission_1001/08_norm.ipynb": BOTH,
        "assignment_77_export/submission_1002/work.ipynb": BOTH,
    },
    "plain files": {"anna.ipynb": BOTH, "jo.ipynb": BOTH, "roster.csv": b"anna,jo"},
    "plain folders": {"anna/answers.ipynb": BOTH, "jo/08_norm.ipynb": BOTH},
    "a folder around it": {"week 1/anna/08_norm.ipynb": BOTH, "week 1/jo/08_norm.ipynb": BOTH},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_told_by_its_names(layout, packed, tmp_path):
    home = tmp_path / "class"
    write_all(LAYOUTS[layout], home)
    if packed:
        with zipfile.ZipFile(tmp_path / "class.zip", "w") as file:
            for name, data in LAYOUTS[layout].items():
                file.writestr(name, data)
        home = tmp_path / "class.zip"
    source = open_place(home)
    people = find_students(source)
    names = [student.name.lower().replace(" ", "") for student in people.students]
    assert people.is_class and len(names) == 2, names
    assert "anna" in names[0] and "jo" in names[1]
    if layout.startswith(("nbgrader", "github", "plain", "otter")) and not packed:
        assert names == ["anna", "jo"]
    assert people.aside == (["roster.csv"] if layout == "plain files" else [])
    for number, student in enumerate(people.students):
        scratch = tmp_path / f"scratch {number}"
        scratch.mkdir()
        found, _ = notebooks_of(lay_out(source, student, scratch))
        assert found and found[0].path.read_bytes() == BOTH and not found[0].refused


def test_a_group_on_gradescope_is_several_students(tmp_path):
    table = """submission_1:
  :submitters:
  - {":name": Anna, ":sid": 7}
  - {":name": Jo, ":sid": 8}
submission_2:
  :submitters:
  - {":name": Kim, ":sid": 9}
"""
    files = {"submission_1/a.ipynb": BOTH, "submission_metadata.yml": table.encode()}
    write_all(files, tmp_path)
    students = find_students(Folder(tmp_path)).students
    assert [(s.name, s.ident, len(s.files)) for s in students] == [
        ("Anna", "7", 1), ("Jo", "8", 1), ("Kim", "9", 0),
    ]  # fmt: skip
    (tmp_path / "submission_metadata.yml").write_text("submission_1: [")
    with pytest.raises(UserError, match="export the submissions again"):
        find_students(Folder(tmp_path))


def test_a_learners_own_folder_is_no_class(tmp_path):
    for name in ("08_norm.ipynb", "10_rope.ipynb", "10_rope-Copy1.ipynb", "norm (1).ipynb"):
        (tmp_path / name).write_bytes(BOTH)
    assert not find_students(Folder(tmp_path)).is_class
    (tmp_path / "anna.ipynb").write_bytes(BOTH)
    assert find_students(Folder(tmp_path)).is_class


def test_a_copy_does_not_stop_a_learners_folder(tmp_path):
    "C1, otter-grader#813: the newest with an answer counts, the other is named."
    (tmp_path / "08_norm.ipynb").write_bytes(BOTH)
    (tmp_path / "08_norm-Copy1.ipynb").write_bytes(notebook(BLANK))
    os.utime(tmp_path / "08_norm.ipynb", (1e9, 1e9))  # the older one
    done = llama_course("grade", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["points"] for row in result["exercises"]] == RIGHT
    assert "duplicate" in done.stderr


# ---------------------------------------------------------------- zips that nobody trusts


def test_a_zip_leads_nowhere_and_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "LARGEST_FILE", 4 << 20)
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("anna/08_norm.ipynb", BOTH)
        file.writestr("../../evil/08_norm.ipynb", BOTH)
        file.writestr("/abs/08_norm.ipynb", BOTH)
        file.writestr("big/08_norm.ipynb", bytes(5 << 20))
        link = zipfile.ZipInfo("link/08_norm.ipynb")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as nested:
            nested.writestr("../08_norm.ipynb", BOTH)
            nested.writestr("08_norm.ipynb", BOTH)
        file.writestr("zipped/work.zip", inner.getvalue())
    data = bytearray(path.read_bytes())  # an entry that says it is small, and is not
    with zipfile.ZipFile(tmp_path / "liar.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("liar/08_norm.ipynb", bytes(3 << 20))
    data = bytearray((tmp_path / "liar.zip").read_bytes())
    data[data.rfind(b"PK\x01\x02") + 24 :][:4]
    at = data.rfind(b"PK\x01\x02") + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(data)
    reasons = {}
    for name in ("class.zip", "liar.zip"):
        source = Zip(tmp_path / name)
        for student in find_students(source).students:
            scratch = tmp_path / "scratch" / student.name
            scratch.mkdir(parents=True)
            for file in lay_out(source, student, scratch):
                assert file.path.resolve().is_relative_to(scratch)
                reasons[student.name, file.shown.split("/")[-2]] = file.refused
    assert reasons == {
        ("anna", "anna"): "",
        ("evil", "evil"): "its path leads out of the zip",
        ("abs", "abs"): "its path leads out of the zip",
        ("big", "big"): "too large: 5 MB, at most 4 are read",
        ("link", "link"): "a symbolic link, which is not followed",
        ("zipped", ".."): "its path leads out of the zip",
        ("zipped", "work.zip"): "",
        ("liar", "liar"): reasons["liar", "liar"],
    }
    assert "cannot be read" in reasons["liar", "liar"]
    outside = {p.name for p in tmp_path.rglob("*.ipynb") if "scratch" not in p.parts}
    assert not outside
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="no zip file"):
        open_place(tmp_path / "no.zip")


def test_links_and_pipes_are_not_read(tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "08_norm.ipynb").symlink_to(ROOT / "solutions" / "08_norm.ipynb")
    (tmp_path / "jo").symlink_to(ROOT / "solutions")
    (tmp_path / "mia").mkdir()
    os.mkfifo(tmp_path / "mia" / "08_norm.ipynb")
    source = Folder(tmp_path)
    refused = {e.name: e.refused for e in source.entries}
    assert refused == {
        "anna/08_norm.ipynb": "a symbolic link, which is not followed",
        "jo": "a symbolic link, which is not followed",
        "mia/08_norm.ipynb": "no regular file",
    }


def test_exit_status():
    def result(*states, scored=True):
        files = [{"status": state} for state in states]
        return {"students": [{"exercises": [1] if scored else [], "files": files}]}

    assert exit_status(result("graded", "duplicate", "graded in part")) == 0
    assert exit_status(result("graded", "not a notebook")) == 1
    assert exit_status(result("not a notebook", scored=False)) == 2


# ---------------------------------------------------------------- stopped, and gone on


def test_a_class_that_is_killed_goes_on(tmp_path):
    "By SIGKILL, while somebody's cell still sleeps: what was graded is not graded again."
    slow = notebook(NORM, "import time\ntime.sleep(600)", BLOCK)
    write_all({"anna.ipynb": BOTH, "ben.ipynb": BOTH, "zoe.ipynb": slow}, tmp_path / "class")
    process = Forked(*COMMAND, "grade", tmp_path / "class")
    kept = tmp_path / "class-scores" / places.KEPT_FOLDER
    end = time.monotonic() + 120
    while len(list(kept.glob("[!.]*.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("[!.]*.json")}
    assert len(before) == 2
    (tmp_path / "class" / "zoe.ipynb").write_bytes(BOTH)
    done = []
    result = grade_class(
        tmp_path / "class",
        limits=Limits(),
        progress=lambda n, of, name: done.append((n, of)),
    )
    after = {path.name: path.stat().st_mtime_ns for path in kept.glob("[!.]*.json")}
    assert before.items() <= after.items() and len(after) == 3
    assert [scores(s) for s in result["students"]] == [RIGHT] * 3 and done[-1] == (3, 3)


@pytest.fixture
def one_judge(monkeypatch):
    "A judge takes seconds to start, and the class above had as many as there are cores."
    monkeypatch.setattr(classes, "how_many", lambda students: 1)


def test_a_judge_that_is_lost_costs_one_submission(tmp_path, monkeypatch, one_judge):
    from llama_course.classroom import pool

    real = pool.JudgeProcess.grade

    def grade(self, files, limits, seed):
        if "ben" in files[0].shown:
            self.process or self.start()
            self.process.kill()
        return real(self, files, limits, seed)

    monkeypatch.setattr(pool.JudgeProcess, "grade", grade)
    names = ("anna", "ben", "carl", "dora")
    write_all({f"{name}.ipynb": BOTH for name in names}, tmp_path / "class")
    result = grade_class(tmp_path / "class", limits=QUICK)
    states = {s["student"]: (scores(s), s["status"]) for s in result["students"]}
    lost = {"ben": (None, "fenced off")}
    assert states == {name: (RIGHT, "graded") for name in names} | lost


# ---------------------------------------------------------------- names that bite


def test_names_are_texts(tmp_path, one_judge):
    names = ["=cmd()", "<script>alert(1)", "a" * 200, "..evil", "\x1b[2J", "Ærø Ñandú", "ÆRØ ñandú"]
    write_all({f"{name}/x.ipynb": b"" for name in names}, tmp_path / "class")
    result = grade_class(tmp_path / "class", limits=QUICK)
    folder = tmp_path / "class-scores"
    page = (folder / "class.html").read_text()
    assert "<script" not in page and "\x1b" not in page
    for row in csv.reader((folder / "scores.csv").read_text(encoding="utf-8-sig").splitlines()[1:]):
        assert row[0][:1] != "=" and "\x1b" not in row[0]
    pages = list((folder / "feedback").glob("*"))
    assert len(pages) == len(result["students"]) and exit_status(result) == 2
    assert all(re.fullmatch(r"[\w-]+\.html", path.name) for path in pages)


# ---------------------------------------------------------------- similarity


def test_an_answer_without_its_names():
    one, other, third = (fingerprints([source], ["rms_norm"]) for source in (NORM, RENAMED, OTHER))
    assert one == other != third and one and third
    helper = NORM.replace("def rms_norm", "def inner") + "rms_norm = lambda *a: inner(*a)"
    assert fingerprints([helper], ["rms_norm"]) not in ({}, one)
    for hard in ("(" * 5000, "x = " * 5000 + "1", "def f(" + "a" * 10**6 + "): pass", "\0"):
        fingerprints([hard, NORM], ["rms_norm"])


def test_pairs_leave_out_what_many_have():
    prints = {name: {"a": "same", "b": name} for name in "abcdefghij"}
    assert similar_pairs(prints) == []
    prints["a"]["b"] = prints["b"]["b"] = "copied"
    (pair,) = similar_pairs(prints)
    assert pair == ("a", "b", ["b"])


assert set(ATTACKS) <= set(HOSTILE)


def test_the_token_of_a_running_jupyter_server_is_not_read(tmp_path):
    "C5, with a real server: outside of the fence the same cell reads its token and its files."
    line = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", "--port=0"]
    line += [f"--ServerApp.root_dir={tmp_path}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            for said in run.stdout:
                if "http://" in said:
                    break
            cell = HOSTILE["reads the token of a Jupyter server"]
            outside = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True)
            assert "READ A TOKEN" in outside.stderr, outside.stderr
            (tmp_path / "08_norm.ipynb").write_bytes(notebook(NORM, cell, BLOCK))
            result = grade(tmp_path / "08_norm.ipynb", QUICK)
        finally:
            run.terminate()
    assert [row["points"] for row in result["exercises"]] == RIGHT
    assert "READ A TOKEN" not in str(result) and "Operation not permitted" in str(result["notes"])
