"The command grade."

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_course.classroom.grade import grade, gradescope
from llama_course.command.output import Json, print_result


def grade_command(
    path: Annotated[
        Path, typer.Argument(help="A notebook with your answers, or a folder of them.")
    ],
    as_json: Json = False,
    for_gradescope: Annotated[
        bool, typer.Option("--gradescope", help="The results.json that Gradescope reads.")
    ] = False,
) -> None:
    "Judge the answers in a notebook, in a fresh process."
    result = grade(path)
    for note in result["notes"]:
        print(note, file=sys.stderr)
    if for_gradescope:
        print(json.dumps(gradescope(result)))
    else:
        print_result(result, as_json, in_lines(result))


def in_lines(result: dict) -> str:
    "The exercises, one a line, with what is wrong below."
    lines, points, most = [], 0.0, 0.0
    for e in result["exercises"]:
        state = "passed" if e["passed"] else "not yet"
        lines.append(f"{state:8} {e['points']:g}/{e['max_points']:g}  {e['name']}")
        lines += [f"{'':9}{message}" for message in e["messages"]]
        points, most = points + e["points"], most + e["max_points"]
    return "\n".join([*lines, f"{points:g} of {most:g} points"])
