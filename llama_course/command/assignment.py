"The command assignment."

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llama_course.classroom.assignments import (
    solved_notebooks,
    write_gradescope,
    write_nbgrader,
    write_otter,
)
from llama_course.support.errors import UserError


class Tool(StrEnum):
    "Who is to take the assignment."

    nbgrader = "nbgrader"
    otter = "otter"
    gradescope = "gradescope"


WRITERS = {
    Tool.nbgrader: write_nbgrader,
    Tool.otter: write_otter,
    Tool.gradescope: write_gradescope,
}


def assignment_command(
    tool: Annotated[Tool, typer.Argument(help="Who is to take it.")],
    chapters: Annotated[list[str], typer.Argument(help="Chapters, such as 08_norm or 08.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the assignment.")],
    name: Annotated[
        str, typer.Option(help="Name of the assignment.  [default: that of its one chapter]")
    ] = "",
    solutions: Annotated[
        Path, typer.Option(help="Folder of the solved exercise notebooks.")
    ] = Path("solutions"),
) -> None:
    "Make an assignment that nbgrader, otter-grader or Gradescope takes as it is."
    notebooks = solved_notebooks(chapters, solutions)
    if not name:
        if len(notebooks) > 1:
            raise UserError("an assignment of several chapters needs a name: --name week1")
        name = notebooks[0].stem
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{name!r} is no name of an assignment: letters, digits, - and _")
    for step in WRITERS[tool](notebooks, out, name):
        print(step)
