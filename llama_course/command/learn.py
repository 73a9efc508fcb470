"The commands of a learner's own folder: start, progress, assemble."

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llama_course.classroom.assemble import assemble, read_back
from llama_course.classroom.progress import progress
from llama_course.classroom.workspace import FIRST_PAGE, NEW, SAME, start
from llama_course.command.output import Json, print_result
from llama_course.command.train import Length
from llama_course.support.errors import UserError

OwnFolder = Annotated[Path, typer.Option(help="Your folder.")]


def start_command(
    chapters: Annotated[
        list[str] | None, typer.Argument(help="Chapters by number, such as 08; all if left out.")
    ] = None,
    folder: OwnFolder = Path("my"),
    lab: Annotated[bool, typer.Option("--lab", help="Open it in JupyterLab.")] = False,
    as_json: Json = False,
) -> None:
    "Copy exercises to your own folder; answers that are there are kept."
    done = start(chapters or [], folder)
    lines = []
    for one in done:
        if one.state != SAME and (one.state != NEW or chapters):
            kept = f" (before: {one.kept})" if one.kept else ""
            lines.append(f"{one.path}: {one.state}{kept}")
    new, same = (sum(one.state == state for one in done) for state in (NEW, SAME))
    notebooks = f"{len(done)} notebook{'' if len(done) == 1 else 's'}"
    lines.append(f"{notebooks} in {folder}: {new} new, {same} unchanged")
    page = done[0].path if chapters else folder / FIRST_PAGE
    if not lab:
        lines.append(
            f"Open {page} in JupyterLab: llama-course start {' '.join(chapters or [])} --lab"
        )
    rows = [
        {"path": str(o.path), "state": o.state, "kept": str(o.kept) if o.kept else None}
        for o in done
    ]
    print_result({"notebooks": rows, "open": str(page)}, as_json, "\n".join(lines))
    if lab:
        open_lab(page)


def open_lab(
    page: Path,  # a notebook
) -> None:
    "Runs JupyterLab with the course's settings, until it is ended. Raises `UserError`."
    program = shutil.which("jupyter-lab", path=Path(sys.executable).parent) or shutil.which(
        "jupyter-lab"
    )
    if not program:
        raise UserError("JupyterLab is not installed: pip install jupyterlab")
    root = Path(os.path.commonpath([Path.cwd().resolve(), page.resolve()]))
    settings = Path(__file__).resolve().parents[2] / "docs" / "lab"
    environment = os.environ | ({"JUPYTER_CONFIG_PATH": str(settings)} if settings.is_dir() else {})
    place = page.resolve().relative_to(root).as_posix()
    subprocess.run(
        [program, f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{place}"],
        env=environment,
        check=False,
    )


def progress_command(
    folder: OwnFolder = Path("my"),
    as_json: Json = False,
) -> None:
    "Show how far you are: points, attempts, and what is next."
    reached = progress(folder)
    print_result(reached.as_dict(), as_json, reached.as_text())


def assemble_command(
    length: Length,
    folder: OwnFolder = Path("my"),
    run: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/mine"),
    as_json: Json = False,
) -> None:
    "Put your parts together: a LLaMA of your own, compared, trained, heard, exported."
    say = partial(print, file=sys.stderr)
    result = assemble(folder, run, length.minutes, length.steps, length.seed, say=say)
    result["gguf"] = read_back(run)
    own = sum(part["own"] for part in result["parts"])
    lines = [
        f"{own} of {len(result['parts'])} parts are yours; {result['steps']} steps in {run}",
        f"{result['bits_per_byte']:.3f} bits per byte of held-out plays; the bigram of chapter 1"
        f" needs {result['bigram']:.3f}",
        result["said"],
        f"{result['gguf']['file']}: {_read_back_in_words(result['gguf'])}",
        f"Go on: llama-course chat --run {run}, llama-course serve --run {run}",
    ]
    print_result(result, as_json, "\n".join(lines))


def _read_back_in_words(gguf: dict) -> str:
    if gguf["same"] is None:
        return "not read back, llama.cpp is not installed (pip install xllamacpp)"
    same = "the same words" if gguf["same"] else "other words"
    return f"llama.cpp reads it and goes on with {same}"
