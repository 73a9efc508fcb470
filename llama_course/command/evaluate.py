"The command eval."

from pathlib import Path
from typing import Annotated

import typer

from llama_course.command.output import Json, print_result
from llama_course.files.load import load
from llama_course.support.errors import UserError
from llama_course.tasks.registry import TASKS, check_programs
from llama_course.tasks.runner import Evaluation, evaluate
from llama_course.tasks.summary import score_table


def eval_command(
    how: Evaluation,
    tasks: Annotated[
        str, typer.Option(help="Names, parted by commas: arc_easy,boolq; `list` prints them all.")
    ],
    model: Annotated[
        Path, typer.Option(help="The folder of a run or of other weights, or a GGUF file.")
    ] = Path("runs/demo"),
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    "Score a model on the paper's tasks."
    if tasks.strip() == "list":
        print_result(sorted(TASKS), as_json, "\n".join(sorted(TASKS)))
        return
    names = tasks_named(tasks)
    try:
        llama, tokenizer = load(model, device=device)
        result = evaluate(llama, tokenizer, names, how)
    except KeyboardInterrupt as stop:
        if how.out:
            stop.args = (f"{stop or 'stopped'}; the same command goes on from here",)
        raise
    print_result(result, as_json, score_table(result))


def tasks_named(text: str) -> list[str]:
    "The names in the text, parted by commas. Raises `UserError` for what cannot be done here."
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task: `--tasks list` prints them all.")
    check_programs(names)
    return names
