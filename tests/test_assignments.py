"""Assignments for nbgrader, otter-grader and Gradescope: each is tried with the tool itself, and
gives the points of `grade`."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from forked import llama_course
from hostile import NORM, hostile

from llama_course.classroom import classes
from llama_course.classroom.assignments import otter_master, solved_notebooks
from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.generate import generate_exercises
from llama_course.classroom.grade import grade
from llama_course.support.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SOLVED = ROOT / "solutions" / "08_norm.ipynb"
LEAN = load_exercises()["lean_rms_norm"].points
TOO_COSTLY = sum(LEAN.values()) - LEAN["cost"]  # all but what a sparing answer gets
POINTS = {
    "solved": {"rms_norm": 10, "lean_rms_norm": 10, "pre_norm_block": 10},
    "half": {"rms_norm": 10, "lean_rms_norm": TOO_COSTLY, "pre_norm_block": 0},
}
BIN = Path(sys.executable).parent


def run(*line: object, cwd: Path, **more: str) -> str:
    "A command, as a teacher types it; its output."
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", **more
    }  # fmt: skip
    done = subprocess.run(
        [*map(str, line)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def assignment(tool: str, out: Path, *more: str) -> str:
    "What `llama-course assignment` says is to be done next."
    done = llama_course("assignment", tool, "08_norm", "--out", out, *more, folder=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def half_solved(handed_out: dict) -> dict:
    "A notebook whose first task is right, the second costs too much, the third is not there."
    notebook = json.loads(json.dumps(handed_out))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("def rms_norm("):
            cell["source"] = NORM
        if cell["cell_type"] == "code" and source.startswith("def lean_rms_norm("):
            cell["source"] = NORM.replace("rms_norm", "lean_rms_norm")
    return notebook


def by_grade(path: Path) -> dict[str, float]:
    return {row["name"]: row["points"] for row in grade(path)["exercises"]}


def test_nbgrader_from_the_assignment_to_the_csv(tmp_path, monkeypatch):
    "generate_assignment, autograde, generate_feedback, export: the commands that it names."
    said = assignment("nbgrader", tmp_path / "course", "--name", "week1")
    course = tmp_path / "course"
    assert "nbgrader autograde week1" in said
    run("nbgrader", "generate_assignment", "week1", cwd=course)
    released = json.loads((course / "release/week1/08_norm.ipynb").read_text())
    (ours,) = [
        json.loads(p.read_text())
        for p in generate_exercises(ROOT / "solutions", tmp_path / "exercises")
        if p.stem == "08_norm"
    ]
    sources = lambda nb: [(cell["source"], cell["metadata"]) for cell in nb["cells"]]
    assert sources(released) == sources(ours)  # nbgrader's release is our exercise notebook
    notebooks = {"solved": json.loads(SOLVED.read_text()), "half": half_solved(released)}
    for student, notebook in notebooks.items():
        folder = course / "submitted" / student / "week1"
        folder.mkdir(parents=True)
        (folder / "08_norm.ipynb").write_text(json.dumps(notebook))
    run("nbgrader", "autograde", "week1", cwd=course)
    run("nbgrader", "generate_feedback", "week1", cwd=course)
    run("nbgrader", "export", cwd=course)
    with open(course / "grades.csv") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {student: sum(points.values()) for student, points in POINTS.items()}
    page = (course / "feedback/half/week1/08_norm.html").read_text()
    assert "lean_rms_norm" in page and "saved_bytes" in page
    monkeypatch.setattr(classes, "how_many", lambda students: 1)  # a judge takes seconds to start
    for student in classes.grade_class(course)["students"]:  # the same folder, by the course
        points = {row["name"]: row["points"] for row in student["exercises"]}
        assert points == POINTS[student["student"]] and student["status"] == "graded"


def test_otter_from_the_assignment_to_the_points(tmp_path):
    "otter assign (its own run of the solutions is left out), then otter run without a container."
    pytest.importorskip("otter", reason="otter-grader is not installed")
    assert "otter assign 08_norm.ipynb dist" in assignment("otter", tmp_path / "course")
    home = tmp_path / "course" / "08_norm"
    run("otter", "assign", "08_norm.ipynb", "dist", "--no-run-tests", cwd=home)
    handed_out = json.loads((home / "dist/student/08_norm.ipynb").read_text())
    text = json.dumps(handed_out)
    assert "BEGIN SOLUTION" not in text and "rsqrt(wide" not in text and "YOUR CODE HERE" in text
    (zipped,) = (home / "dist/autograder").glob("*.zip")
    names = zipfile.ZipFile(zipped).namelist()
    assert any(name.endswith("llama_course/classroom/judges/norm/rms_norm.py") for name in names)
    (home / "half.ipynb").write_text(json.dumps(half_solved(handed_out)))
    (home / "out").mkdir()
    run("otter", "run", "-a", zipped, "-o", "out", "half.ipynb", cwd=home)
    tests = json.loads((home / "out" / "results.json").read_text())["tests"]
    scores = {test["name"]: test["score"] for test in tests if "score" in test}
    assert scores == POINTS["half"] == by_grade(home / "half.ipynb")


def test_otter_grades_in_its_container(tmp_path):
    docker = shutil.which("docker")
    alive = docker and subprocess.run([docker, "info"], capture_output=True).returncode == 0
    if not alive or not shutil.which("otter", path=str(BIN)):
        pytest.skip("no Docker daemon, or no otter-grader")
    assignment("otter", tmp_path / "course")
    home = tmp_path / "course" / "08_norm"
    run("otter", "assign", "08_norm.ipynb", "dist", "--no-run-tests", cwd=home)
    (zipped,) = (home / "dist/autograder").glob("*.zip")
    shutil.copy(home / "dist/autograder/08_norm.ipynb", home / "solved.ipynb")
    run("otter", "grade", "-n", "norm", "-a", zipped, "-o", home, home / "solved.ipynb", cwd=home)
    with open(home / "final_grades.csv") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(row[name]) for name in POINTS["solved"]} == POINTS["solved"]


def test_every_chapter_has_an_otter_assignment():
    "As many points as the exercises have, no mark of nbgrader left, the prompt where it belongs."
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        cells = otter_master(path, "all")["cells"]
        text = "\n".join(cell["source"] for cell in cells)
        assert text.count("# BEGIN QUESTION") == text.count("# END QUESTION") >= 1
        assert "### BEGIN" not in text and text.count("NO PROMPT") == text.count("# BEGIN PROMPT")
        assert text.count("require_points(") == 10 * text.count("# BEGIN QUESTION")
        for cell in cells:
            if "# BEGIN PROMPT" in cell["source"]:
                compile(cell["source"], path.name, "exec")


def test_gradescopes_autograder(tmp_path):
    "Its scripts, run as Gradescope runs them; the form is that of its documentation."
    assignment("gradescope", tmp_path / "out", "--name", "week1")
    assert (tmp_path / "out" / "08_norm.ipynb").exists()
    home = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "out" / "week1-autograder.zip") as file:
        file.extractall(home / "source")
        for script in ("setup.sh", "run_autograder"):
            assert file.getinfo(script).external_attr >> 16 & 0o111
            subprocess.run(["bash", "-n", str(home / "source" / script)], check=True)
    assert "torch" in (home / "source" / "requirements.txt").read_text()
    (home / "venv" / "bin").mkdir(parents=True)
    python = home / "venv" / "bin" / "python"  # setup.sh would install all of torch
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (home / "submission").mkdir()
    handed_in = home / "submission" / "08_norm.ipynb"
    results = home / "results" / "results.json"

    def graded() -> dict:
        run("bash", home / "source" / "run_autograder", cwd=tmp_path, AUTOGRADER=str(home))
        return json.loads(results.read_text())

    notebook = half_solved(json.loads(SOLVED.read_text()))
    notebook["cells"].append(json.loads(hostile("exits"))["cells"][1])
    handed_in.write_text(json.dumps(notebook))
    result = graded()
    scores = {test["name"]: test["score"] for test in result["tests"]}
    assert scores == POINTS["half"] | {"pre_norm_block": 10} == by_grade(handed_in)
    assert result["score"] == sum(scores.values()) and "ended its process" in result["output"]
    assert result["stdout_visibility"] == "hidden" and result["visibility"] == "visible"
    for test in result["tests"]:
        assert 0 <= test["score"] <= test["max_score"] == 10 and test["visibility"] == "visible"
        assert test["status"] == ("passed" if test["score"] == 10 else "failed")
        assert test["output_format"] == "text" and test["output"]
    handed_in.write_bytes(b"no notebook")
    result = graded()
    assert result["score"] == 0 and "not a notebook" in result["output"] and not result["tests"]


def test_chapters_are_found_by_number_and_name():
    names = lambda *chapters: [p.stem for p in solved_notebooks([*chapters], ROOT / "solutions")]
    assert names("08") == names("norm") == names("08_norm") == names("08_norm.ipynb") == ["08_norm"]
    assert names("08", "rope", "norm") == ["08_norm", "10_rope"]
    with pytest.raises(UserError, match="there are 01_bigram"):
        names("77")
    with pytest.raises(UserError, match="no solved notebook"):
        solved_notebooks(["08"], ROOT / "nowhere")
