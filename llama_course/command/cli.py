"""Finds the command that is asked for, runs it, and ends it with one line and the right status.

A command is a function NAME_command in the file that `COMMANDS` says, its docstring
is its help. The file is imported when its command is asked for, so that `--help` does not wait
for torch.
"""

import ast
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from llama_course.support.errors import UserError
from llama_course.support.options import as_command

COMMANDS = {
    "start": "learn",
    "progress": "learn",
    "assemble": "learn",
    "demo": "train",
    "train": "train",
    "data": "train",
    "generate": "speak",
    "chat": "speak",
    "serve": "speak",
    "eval": "evaluate",
    "finetune": "train",
    "report": "train",
    "export": "export",
    "plan": "plan",
    "grade": "grade",
    "assignment": "assignment",
    "doctor": "doctor",
}
RESUMED = (
    "demo",
    "train",
    "data",
    "finetune",
    "assemble",
)  # the same command goes on where it was stopped


class Terminated(KeyboardInterrupt):
    "SIGTERM, which is `kill` without a number."

    number = signal.SIGTERM


def main() -> NoReturn:
    "The command `llama-course`."
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(prog_name="llama-course", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # no mistake in the arguments, but one of ours
            raise
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            where = getattr(context, "command_path", "llama-course")
            _say(f"{message} (see {where} --help)")
        status = 2
    sys.exit(status if isinstance(status, int) else 0)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


def _say(message: object) -> None:
    "One line on standard error."
    print(f"llama-course: {' '.join(str(message).split())}", file=sys.stderr)


class Group(TyperGroup):
    "The commands, each read when it is asked for."

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return make_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line(name)) for name in COMMANDS])


def help_line(name: str) -> str:
    "What --help says of a command: the docstring of its function, whose file is not run."
    path = Path(__file__).with_name(f"{COMMANDS[name]}.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == f"{name}_command":
            return ast.get_docstring(node) or ""
    raise LookupError(f"{path} has no {name}_command")


STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def make_command(name: str) -> Any:
    "One command as typer runs it."
    function = getattr(import_module(f"llama_course.command.{COMMANDS[name]}"), f"{name}_command")
    one = typer.Typer(**STYLE)
    one.command(name)(guarded(name, as_command(function)))
    return typer.main.get_command(one)


def guarded(name: str, function: Callable) -> Callable:
    "The function; whatever ends it early becomes one line and a status."

    @wraps(function)
    def run(*args: Any, **given: Any) -> None:
        try:
            function(*args, **given)
        except UserError as error:
            _say(error)
            raise typer.Exit(2) from None
        except (MemoryError, RuntimeError) as error:  # torch's is a RuntimeError, a page of text
            reason = "out of memory" if isinstance(error, MemoryError) else str(error)
            if "allocate memory" not in reason and "out of memory" not in reason:
                raise
            _say("the memory does not suffice: take a smaller model, batch or length.")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            then = "; the same command goes on from here." if name in RESUMED else "."
            _say((str(stop) or "stopped") + then)
            raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from None
        except BrokenPipeError:  # the reader has gone, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None

    return run


app = typer.Typer(cls=Group, invoke_without_command=True, **STYLE)


@app.callback()
def begin(context: typer.Context) -> None:
    "Rebuild the LLaMA paper: train a small LLaMA, let it speak, have your exercises judged."
    if context.invoked_subcommand is None:
        print(context.get_help())


if __name__ == "__main__":
    main()
