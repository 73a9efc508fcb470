"Commands that make something which later ones read: demo, train, data, finetune."

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from llama_course.command.output import Json, print_result
from llama_course.corpus.build import build_corpus, describe_corpus
from llama_course.corpus.recipe import EXAMPLE_RECIPE
from llama_course.launch.demo import closing, run_demo, run_own
from llama_course.launch.finetuning import Settings, finetune
from llama_course.launch.finetuning import in_words as finetuning_in_words
from llama_course.support.errors import UserError
from llama_course.support.options import option, options


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
    attention: str | None = option(
        None, "naive, rows, blockwise, sdpa or xformers; rows if left out."
    )
    checkpointing: str | None = option(None, "none, full or selective; none if left out.")


@options
class Finetuning:
    "A finetuning."

    weights: Path = option(
        help="A run folder, a GGUF file, or a folder of Meta's or Hugging Face's."
    )
    out: Path = option(help="The run's folder.")
    data: tuple[Path, ...] = option((), "JSON lines: instruction, input, answer; or messages.")
    tasks: Literal["own"] | None = option(None, "own: the generated tasks of chapter 29.")
    steps: int | None = option(None, "Training steps, in place of epochs.", ge=1)
    epochs: float = option(1.0, "Times that the examples are read.", gt=0)
    lr: float | None = option(None, "The peak; 2e-5, or 2e-4 with LoRA, if left out.", gt=0)
    lora: int = option(0, "The rank of LoRA; 0 trains all weights.", ge=0)
    batch_size: int = option(8, "Rows of examples per step.", ge=1)
    seq_len: int | None = option(None, "Tokens per row; 512 if left out.", ge=1)
    seed: int = option(0, "Order of the rows, LoRA's first weights.", ge=0, lt=2**63)
    cap: float = option(
        math.inf, "A task counts as no larger than so many examples.", gt=0, inf=True
    )
    too_long: Literal["drop", "cut"] = option(
        "drop", "What to do with examples that no row can hold."
    )
    tokenizer: Path | None = option(None, "If it is not with the weights.")
    save_every: int = option(20, "Steps between checkpoints.", ge=1)
    non_finite: Literal["stop", "skip"] = option("stop", "At a loss that is no number.")


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
    as_json: Json = False,
) -> None:
    "Clean text by a recipe, at any scale; `train` reads the folder."
    if example:
        print(EXAMPLE_RECIPE, end="")
        return
    if not recipe:
        raise UserError("give a recipe; `data --example > recipe.toml` makes one to edit.")
    made = build_corpus(recipe, out)
    print_result(made, as_json, describe_corpus(made))


def finetune_command(how: Finetuning, as_json: Json = False) -> None:
    "Finetune a model on instructions: all weights, or LoRA."
    result = finetune(Settings(**vars(how)))
    print_result(result, as_json, finetuning_in_words(how.out, result))
