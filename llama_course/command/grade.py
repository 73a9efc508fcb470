"The command grade."

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from llama_course.classroom.classes import SETTLED, exit_status, grade_class, scores_folder
from llama_course.classroom.grade import grade
from llama_course.classroom.gradescope import gradescope
from llama_course.classroom.pages import as_csv, as_table
from llama_course.classroom.places import open_place
from llama_course.classroom.submissions import find_students
from llama_course.classroom.supervisor import Limits
from llama_course.command.output import Json, print_result
from llama_course.support.errors import UserError


def grade_command(
    path: Annotated[
        Path,
        typer.Argument(
            help="Your notebook, the folder of your notebooks; or a class: a folder or a zip as"
            " Canvas, Moodle, nbgrader, GitHub Classroom or otter hand it over."
        ),
    ],
    as_json: Json = False,
    csv: Annotated[
        bool,
        typer.Option("--csv", help="A row for each student, a column for each exercise."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a class's scores: class.html, scores.csv, scores.json, and what is"
            " needed to go on after a stop.  [default: CLASS-scores, beside the class]"
        ),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(help="Folder that gets a page for each student.  [default: OUT/feedback]"),
    ] = None,
    similar: Annotated[
        bool, typer.Option("--similar", help="List answers that are the same but for names.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=10, help="That a notebook may take, at most.")
    ] = Limits.total_seconds,
    for_gradescope: Annotated[
        bool, typer.Option("--gradescope", help="The results.json that Gradescope reads.")
    ] = False,
) -> None:
    """Judge the answers of a notebook, or of a whole class.

    A class that was stopped goes on where it was. The exit status is 0 if all was graded, 1 if
    some was not, 2 if nothing was.
    """
    limits = Limits(total_seconds=seconds)
    if for_gradescope or not is_class(path):
        if csv or similar or out or feedback:
            raise UserError(f"{path} is one learner's work: --csv, --similar, --out and --feedback"
                            " are for a class")  # fmt: skip
        _grade_one(path, limits, as_json, for_gradescope)
        return
    out = out or scores_folder(path)
    with tqdm(unit=" students", file=sys.stderr, leave=False) as bar:

        def progress(done: int, of: int, name: str) -> None:
            bar.total = of
            bar.set_postfix_str(name[:30], refresh=False)
            bar.update(done - bar.n)

        result = grade_class(path, out, feedback, limits, similar=similar, progress=progress)
    if csv and not as_json:
        print(as_csv(result), end="")
    else:
        print_result(result, as_json, as_table(result))
    pages = feedback or out / "feedback"
    print(f"See {out / 'class.html'}; a page for each student is in {pages}.", file=sys.stderr)
    if status := exit_status(result):
        raise typer.Exit(status)


def is_class(path: Path) -> bool:
    "Whether there is more than one learner's work, as far as names tell."
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.suffix.lower() == ".ipynb" and not path.is_dir():
        return False
    return path.suffix.lower() == ".zip" or find_students(open_place(path)).is_class


def _grade_one(path: Path, limits: Limits, as_json: bool, for_gradescope: bool) -> None:
    "One learner's work."
    try:
        result = grade(path, limits)
    except UserError as error:
        if not for_gradescope:
            raise
        result = {"exercises": [], "files": [], "notes": [str(error)]}  # the learner is told
    for note in result["notes"]:
        print(note, file=sys.stderr)
    if for_gradescope:
        print(json.dumps(gradescope(result)))
        return
    print_result(result, as_json, in_lines(result))
    if not all(file["status"] in SETTLED for file in result["files"]):
        raise typer.Exit(1)


def in_lines(result: dict) -> str:
    "The exercises, one a line, with what is wrong below."
    lines, points, most = [], 0.0, 0.0
    for e in result["exercises"]:
        state = "passed" if e["passed"] else "not yet"
        lines.append(f"{state:8} {e['points']:g}/{e['max_points']:g}  {e['name']}")
        lines += [f"{'':9}{message}" for message in e["messages"]]
        points, most = points + e["points"], most + e["max_points"]
    return "\n".join([*lines, f"{points:g} of {most:g} points"])
