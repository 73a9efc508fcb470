"The command eval."

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from llama_course.answers import check_programs
from llama_course.command.output import Json, print_result
from llama_course.files.load import load
from llama_course.likelihood import TASKS, evaluate, find_task, in_words
from llama_course.support.errors import UserError
from llama_course.support.options import option, options

for name in ("answers", "bias"):
    import_module(f"llama_course.{name}")  # their tasks enter the list


@options
class Evaluation:
    "How a model is evaluated."

    items: str = option(
        "own", "own: a handful of ours; hf: the public sets; or a folder with NAME.jsonl."
    )
    shots: int | None = option(
        None, "Solved examples before each item; the paper's number if left out.", ge=0
    )
    limit: int | None = option(
        None, "At most so many items of a task, or of each subject of it.", ge=1
    )
    out: Path | None = option(
        None, "A folder for the results, from which a stopped evaluation goes on."
    )
    device: str = option("cpu", "cpu, or cuda.")
    seed: int = option(0, "Of answers that are drawn.", ge=0, lt=2**63)


def eval_command(
    how: Evaluation,
    tasks: Annotated[
        str, typer.Option(help="Names, parted by commas: arc_easy,boolq; `list` prints them all.")
    ],
    model: Annotated[
        Path, typer.Option(help="The folder of a run or of other weights, or a GGUF file.")
    ] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    "Score a model on the paper's tasks."
    if tasks.strip() == "list":
        print_result(sorted(TASKS), as_json, "\n".join(sorted(TASKS)))
        return
    names = tasks_named(tasks)
    try:
        pair = load(model, device=how.device)
        result = evaluate(*pair, names, how.items, how.shots, how.limit, how.out, how.seed)
    except KeyboardInterrupt as stop:
        if how.out:
            stop.args = (f"{stop or 'stopped'}; the same command goes on from here",)
        raise
    print_result(result, as_json, in_words(result))


def tasks_named(text: str) -> list[str]:
    "The names in the text, parted by commas. Raises `UserError` for what cannot be done here."
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task: `--tasks list` prints them all.")
    for name in names:
        find_task(name)
    check_programs(names)
    return names
