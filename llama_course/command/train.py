"Commands that make something which later ones read: demo, train, data, finetune."

from pathlib import Path
from typing import Annotated

import typer

from llama_course.command.output import Json, print_result
from llama_course.corpus.build import build_corpus, describe_corpus, verify_corpus
from llama_course.corpus.recipe import EXAMPLE_RECIPE
from llama_course.launch.demo import closing, run_demo, run_own
from llama_course.launch.finetuning import Finetuning, report_of, run_finetuning
from llama_course.report.page import report_of_run
from llama_course.support.errors import UserError
from llama_course.support.options import option, options, with_default
from llama_course.training import Recipe


@options
class Length:
    "How long to train, and from where."

    minutes: float | None = option(
        None, "Minutes of training; 3 if neither this nor --steps is given.", gt=0
    )
    steps: int | None = option(None, "Training steps, in place of minutes.", ge=1)
    seed: int | None = option(
        None, "Another order of the text and other first weights.", ge=0, lt=2**63
    )


@options
class Own:
    "A run on text of one's own."

    texts: tuple[Path, ...] = option(help="Text files, or folders of them.", argument=True)
    run: Path = option(help="The run's folder.")
    model: str | None = option(None, "A model by name: demo, pocket, 7B, ...; demo if left out.")
    vocab_size: int | None = option(
        None, "Pieces of the tokenizer; as the demo's if left out.", ge=1
    )
    attention: str | None = with_default(Recipe, "attention", None)
    checkpointing: str | None = with_default(Recipe, "checkpointing", None)


def demo_command(
    length: Length,
    run: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    "Train a small LLaMA on plays and programs; let it speak."
    results = run_demo(run, length.minutes, length.steps, length.seed)
    print_result(results, as_json, closing(run, results))


def train_command(own: Own, length: Length, as_json: Json = False) -> None:
    "Train a LLaMA on your own text, in the same way."
    results = run_own(
        own.texts,
        own.run,
        length.minutes,
        length.steps,
        length.seed,
        own.model,
        own.vocab_size,
        own.attention,
        own.checkpointing,
    )
    print_result(results, as_json, closing(own.run, results))


def data_command(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML file: what to read and how.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for all that is made.")] = Path("data"),
    example: Annotated[
        bool, typer.Option("--example", help="Print a recipe to begin with: the paper's sources.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all shards in the folder --out once; no recipe.")
    ] = False,
    as_json: Json = False,
) -> None:
    "Clean text by a recipe, at any scale; `train` reads the folder."
    if example:
        print(EXAMPLE_RECIPE, end="")
        return
    if verify:
        size = verify_corpus(out)
        print_result({"bytes": size}, as_json, f"{out}: {size:,} bytes of shards, all as written.")
        return
    if not recipe:
        raise UserError("give a recipe; `data --example > recipe.toml` makes one to edit.")
    made = build_corpus(recipe, out)
    print_result(made, as_json, describe_corpus(made))


def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder, also of a run that is under way.")],
    as_json: Json = False,
) -> None:
    "Write the page of a run: its loss, held-out text, speed, recipe."
    page = report_of_run(run)
    print_result({"report": str(page)}, as_json, f"Open {page}.")


def finetune_command(how: Finetuning, as_json: Json = False) -> None:
    "Finetune a model on instructions: all weights, or LoRA."
    result = run_finetuning(how)
    print_result(result, as_json, report_of(how.out, result))
