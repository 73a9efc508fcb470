"""Checks one chapter in under a minute: `python tools/chapter.py 11`, or `make chapter N=11`.

The notebook is exported and run; beside it run its tests and its exercise, solved. A chapter's
tests are tests/test_NAME.py or, where there is no such file, those that import its module.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import typer
from generate import BIN, ROOT, generate


def find_notebook(number: int) -> Path:
    "The chapter's notebook."
    found = sorted((ROOT / "nbs").glob(f"{number:02}_*.ipynb"))
    if not found:
        raise typer.BadParameter(f"there is no chapter {number}: `ls nbs`.")
    return found[0]


def tests_of(module: str) -> list[str]:
    "The files of tests that belong to a chapter."
    own = ROOT / "tests" / f"test_{module}.py"
    if own.exists():
        return [str(own.relative_to(ROOT))]
    wanted = re.compile(rf"^(from|import) llama_course\.{module}\b", re.MULTILINE)
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if wanted.search(f.read_text("utf-8"))]


def commands(notebook: Path) -> dict[str, list[str]]:
    "What to run, side by side: {what it is: command}."
    run = [str(BIN / "nbdev_test"), "--n_workers", "1", "--do_print", "--path"]
    found = {"notebook": [*run, str(notebook)]}
    if tests := tests_of(notebook.stem[3:]):
        found[" ".join(tests)] = [str(BIN / "pytest"), "-q", "-x", *tests]
    solution = ROOT / "solutions" / notebook.name
    if solution.exists():
        found["exercise, solved"] = [*run, str(solution)]
    return found


def main(number: int = typer.Argument(help="of the chapter, as 11")) -> None:
    "Exports one chapter and runs it, its tests and its exercise, solved."
    notebook = find_notebook(number)
    if lost := generate():
        sys.exit("\n".join(lost))
    began, failed = time.monotonic(), False
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    running = {
        name: subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name, command in commands(notebook).items()
    }
    for name, process in running.items():
        said, _ = process.communicate()
        print(f"{'ok' if process.returncode == 0 else 'FAILED':7}{name}")
        if process.returncode:
            failed = True
            print(said)
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    typer.run(main)
