"What commands have in common: the option --json."

import json
from typing import Annotated, Any

import typer

Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, the rest on standard error."),
]


def print_result(
    result: Any,
    as_json: bool,
    text: str,  # the same in words
) -> None:
    "Prints a command's result."
    print(json.dumps(result) if as_json else text)
