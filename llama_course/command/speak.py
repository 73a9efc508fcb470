"Commands that let a model speak: generate, chat, serve."

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_course.command.output import Json, print_result
from llama_course.files.load import load
from llama_course.launch.demo import speak
from llama_course.server.conversation import chat
from llama_course.server.process import Serving, serve
from llama_course.server.requests import Sampling
from llama_course.support.errors import UserError
from llama_course.support.options import option, options, with_default


@options
class Model:
    "Which model."

    run: Path | None = option(None, "The folder of a finished run; runs/demo if left out.")
    weights: Path | None = option(None, "A GGUF file, or a folder of Meta's or Hugging Face's.")

    @property
    def path(self) -> Path:
        "Where it is. Raises `UserError` where that is no run, or where two are named."
        if self.run and self.weights:
            raise UserError("--run and --weights each name a model: leave one out.")
        path = self.weights or self.run or Path("runs/demo")
        if not self.weights and not (path / "run.json").is_file():
            raise UserError(
                f"{path} is not a run folder, it has no run.json: `llama-course demo` makes one."
            )
        return path

    def load(self, bits: int | None = None) -> tuple[Any, Any]:
        "Model and tokenizer; with `bits`, in packed layers."
        return load(self.path, bits=bits)


@options
class Speech(Sampling):
    "How a text is written."

    temperature: float = with_default(Sampling, "temperature", 0.8)
    top_p: float | None = with_default(Sampling, "top_p", 0.95)
    tokens: int = option(200, "At most so many tokens.", ge=1)
    bits: int | None = option(
        None, "8 or 4: quantize; 16 or 32: bfloat16 or float32, by the fast kernels."
    )


def generate_command(
    model: Model,
    speech: Speech,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; without it, a new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    "Continue a text with a trained model."
    if prompt == "":
        raise UserError("the prompt is empty: give some text, or leave it out for a new one.")
    write = print_nothing if as_json else print_piece
    choices = speech.settings() | {"seed": speech.seed}
    said = speak(*model.load(speech.bits), prompt or "", speech.tokens, write, **choices)
    print_result(said | choices, as_json, "")


def print_piece(piece: str) -> None:
    "Part of a text, as soon as it is there."
    print(piece, end="", flush=True)


def print_nothing(piece: str) -> None:
    "For a caller that wants the text as a whole."


def chat_command(model: Model, speech: Speech) -> None:
    "Talk with a model; Ctrl-D ends it."

    def ask() -> str:
        return input("> " if sys.stdin.isatty() else "")

    chat(*model.load(speech.bits), ask, tokens=speech.tokens, seed=speech.seed, **speech.settings())


def serve_command(model: Model, how: Serving) -> None:
    "Serve a model: OpenAI's protocol, and a page to talk to it."
    name = model.path.resolve().stem
    serve(*model.load(how.bits), name, how)
