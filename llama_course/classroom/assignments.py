"""Assignments for nbgrader, otter-grader and Gradescope, made from the solved exercise notebooks.

All of them ask the judge that `llama-course grade` asks: the points are the same.
"""

import functools
import importlib.metadata
import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_course
from llama_course.classroom.exercise import find_exercise
from llama_course.classroom.generate import generate_exercises
from llama_course.classroom.learner import check
from llama_course.classroom.report import Report
from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError

NBGRADER_CONFIG = """c = get_config()
c.CourseDirectory.course_id = "llama_course"
c.Execute.timeout = 300  # seconds for a cell: the judge's cells take a few
"""


def solved_notebooks(
    chapters: list[str],  # such as "08_norm", "08" or "norm"
    solutions: str | Path = "solutions",
) -> list[Path]:
    "The solved notebooks of the chapters. Raises `UserError`, which lists what there is."
    found = sorted(Path(solutions).glob("*.ipynb"))
    if not found:
        raise UserError(
            f"no solved notebook in {solutions}: start it in the folder of the course's repository"
        )
    chosen = []
    for chapter in chapters:
        stem = Path(chapter).stem
        fits = [path for path in found if stem in (path.stem, *path.stem.split("_", 1))]
        if not fits:
            names = ", ".join(path.stem for path in found)
            raise UserError(f"no exercises of a chapter {chapter!r}; there are {names}")
        chosen += fits
    return list(dict.fromkeys(chosen))


# ------------------------------------------------------------------- nbgrader


def write_nbgrader(notebooks: list[Path], out: Path, name: str) -> list[str]:  # what to do next
    "A course folder of nbgrader with the assignment's source in it."
    for path in notebooks:
        with atomic_write(out / "source" / name / path.name) as file:
            file.write(path.read_bytes())
    if not (out / "nbgrader_config.py").exists():
        with atomic_write(out / "nbgrader_config.py") as file:
            file.write(NBGRADER_CONFIG.encode())
    return [
        f"cd {out}",
        f"nbgrader generate_assignment {name}    # what is handed out is in release/{name}",
        f"nbgrader autograde {name}              # of submitted/STUDENT/{name}/",
        f"nbgrader generate_feedback {name}",
        "nbgrader export                        # grades.csv",
    ]


# ------------------------------------------------------------------- otter-grader


def write_otter(notebooks: list[Path], out: Path, name: str) -> list[str]:  # what to do next
    "A master notebook for `otter assign` for each chapter, with the judge beside it."
    steps = []
    for path in notebooks:
        folder = out / path.stem
        with atomic_write(folder / path.name) as file:
            text = json.dumps(otter_master(path, name), indent=1, ensure_ascii=False)
            file.write(text.encode() + b"\n")
        shutil.rmtree(folder / "llama_course", ignore_errors=True)
        for source, inside in library_files():
            with atomic_write(folder / inside) as file:
                file.write(source.read_bytes())
        zipped = f"{folder}/dist/autograder/{path.stem}-autograder_*.zip"
        steps += [
            f"(cd {folder} && otter assign {path.name} dist)    # hand out {folder}/dist/student",
            f"otter run -a {zipped} SUBMISSION.ipynb",
            f"otter grade -a {zipped} FOLDER    # a container for each submission",
        ]
    return steps


def otter_master(path: Path, name: str) -> dict[str, Any]:
    "A solved notebook in the form that `otter assign` takes."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    config = [
        "# ASSIGNMENT CONFIG",
        f"name: {name}-{path.stem}",
        "generate: true",
        "export_cell: false",
        "solutions_pdf: false",
        "autograder_files:\n  - llama_course",
        "requirements:",
        *(f"  - {package}" for package in requirements()),
    ]
    cells = [_cell("raw", "\n".join(config))]
    waiting: list[dict[str, Any]] = []  # of the question that is being read
    for cell in notebook["cells"]:
        marks = cell["metadata"].get("nbgrader", {})
        plain = _cell(cell["cell_type"], "".join(cell["source"]))
        if marks.get("solution"):
            plain["source"] = _otter_solution(plain["source"])
            waiting += [_cell("raw", "# BEGIN SOLUTION"), plain, _cell("raw", "# END SOLUTION")]
        elif marks.get("grade"):
            exercise = find_exercise(marks["grade_id"])
            tests = [_otter_test(exercise.name, n + 1) for n in range(exercise.max_points)]
            begin = f"# BEGIN QUESTION\nname: {exercise.name}\npoints: {exercise.max_points}"
            cells += [_cell("raw", begin), *waiting, _cell("raw", "# BEGIN TESTS"), *tests]
            cells += [_cell("raw", "# END TESTS"), _cell("raw", "# END QUESTION"), plain]
            waiting = []
        else:
            (waiting if waiting else cells).append(plain)
    for number, cell in enumerate(cells + waiting):
        cell["id"] = f"cell-{number}"
    metadata = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return {
        "cells": cells + waiting, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5
    }  # fmt: skip


def _cell(kind: str, source: str) -> dict[str, Any]:
    code: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source, **code}


def _otter_solution(source: str) -> str:
    "nbgrader's marks as otter's, with nbgrader's words where the answer is to be written."

    def begin(match: re.Match[str]) -> str:
        indent = match[1]
        return "\n".join(
            indent + line
            for line in (
                '""" # BEGIN PROMPT', "# YOUR CODE HERE", "raise NotImplementedError()",
                '""" # END PROMPT', "# BEGIN SOLUTION NO PROMPT",
            )
        )  # fmt: skip

    source = re.sub(r"^([ \t]*)### BEGIN SOLUTION.*$", begin, source, flags=re.MULTILINE)
    return re.sub(r"^([ \t]*)### END SOLUTION.*$", r"\1# END SOLUTION", source, flags=re.MULTILINE)


def _otter_test(name: str, points: int) -> dict[str, Any]:
    "A test of one point: a judge that gives seven of ten points passes the first seven."
    lines = [
        '""" # BEGIN TEST CONFIG',
        "points: 1",
        '""" # END TEST CONFIG',
        "from llama_course.classroom.assignments import require_points",
        f"require_points({name}, {points})",
    ]
    return _cell("code", "\n".join(lines))


@functools.lru_cache(maxsize=32)
def _report(answer: Callable) -> Report:
    return check(answer)


def require_points(
    answer: Callable,  # a learner's function
    points: int,
) -> None:
    "Raises `AssertionError` if the judge gives the answer fewer points, once with the reasons."
    report = _report(answer)
    if report.points < points:
        first = points - 1 <= report.points
        raise AssertionError(str(report) if first else f"{report.points:g} points")


# ------------------------------------------------------------------- Gradescope

SETUP = """#!/usr/bin/env bash
# Runs once, when Gradescope builds the autograder: a Python of its own with what the judge needs.
set -e
cd "${AUTOGRADER:-/autograder}/source"
for python in python3.13 python3.12 python3.11 none; do
  command -v $python > /dev/null && break
done
if [ $python = none ]; then
  apt-get update && apt-get install -y python3.11 python3.11-venv
  python=python3.11
fi
$python -m venv ../venv || { apt-get install -y $python-venv && $python -m venv ../venv; }
../venv/bin/pip install --no-cache-dir -r requirements.txt
"""
RUN = """#!/usr/bin/env bash
# Runs for each submission: the judge's verdict, in the form that Gradescope reads.
here="${AUTOGRADER:-/autograder}"
cd "$here/source"
python="$here/venv/bin/python"
[ -x "$python" ] || python=python3
mkdir -p "$here/results"
PYTHONPATH="$here/source" "$python" -m llama_course grade --gradescope "$here/submission" \\
  > "$here/results/results.part"
[ -s "$here/results/results.part" ] || echo '{"score": 0, "output":
  "The autograder itself failed. Please tell whoever teaches."}' > "$here/results/results.part"
mv "$here/results/results.part" "$here/results/results.json"
"""


def write_gradescope(notebooks: list[Path], out: Path, name: str) -> list[str]:  # what to do next
    "The autograder's zip, with the judge in it, and the notebooks to hand out."
    with tempfile.TemporaryDirectory() as scratch:
        for path in notebooks:
            shutil.copy(path, scratch)
        generate_exercises(scratch, out)
    target = out / f"{name}-autograder.zip"
    with atomic_write(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for script, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
            info = zipfile.ZipInfo(script, (2000, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o755) << 16
            archive.writestr(info, text)
        archive.writestr("requirements.txt", "\n".join(requirements()) + "\n")
        for source, inside in library_files():
            archive.write(source, inside)
    return [
        f"Hand out: {', '.join(str(out / path.name) for path in notebooks)}",
        "In Gradescope: a programming assignment, Configure Autograder, upload",
        f"  {target}",
    ]


def requirements() -> list[str]:
    "The packages that the judge needs, as pip takes them."
    try:
        needed = importlib.metadata.requires("llama_course") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("llama_course is not installed: pip install -e . in its folder") from None
    return [line for line in needed if ";" not in line]


def library_files() -> list[tuple[Path, str]]:  # file, its place beside the judge's caller
    "The files of this library."
    home = Path(llama_course.__path__[0])
    paths = (path for path in home.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return [(path, path.relative_to(home.parent).as_posix()) for path in sorted(paths)]
