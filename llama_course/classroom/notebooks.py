"What learners hand in: notebooks, read without running any of it."

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_course.classroom.exercise import load_exercises
from llama_course.support.errors import UserError

LARGEST_NOTEBOOK = 64 << 20  # bytes


@dataclass(frozen=True)
class Submission:
    "What the judge needs of a notebook."

    path: Path
    sources: list[tuple[int, str]]  # (number, source) of the code cells, nbgrader's tests left out
    claims: list[str]  # names of the exercises that it has to do with


def read_notebook(path: Path) -> Submission:
    "The code cells of a notebook file. Raises `UserError` if it is none."
    try:
        if path.stat().st_size > LARGEST_NOTEBOOK:
            raise UserError(f"{path} is larger than {LARGEST_NOTEBOOK >> 20} MB: clear its outputs")
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise UserError(
            f"{path} is no notebook ({kind} on reading it): give an .ipynb file"
        ) from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UserError(
            f"{path} is no notebook of format 4, it has no cells: open and save it in JupyterLab"
        )
    sources, names = [], set()
    for number, cell in enumerate(cells, 1):
        source, marks = cell.get("source", ""), _marks(cell)
        source = "".join(map(str, source)) if isinstance(source, list) else str(source)
        names.add(str(marks.get("grade_id")))
        is_test = marks.get("grade") and not marks.get("solution")  # the judge is one
        if cell.get("cell_type") == "code" and not is_test:
            sources.append((number, source))
            names |= defined_names(source)
    return Submission(path, sources, [name for name in load_exercises() if name in names])


def _marks(cell: dict[str, Any]) -> dict[str, Any]:
    "What nbgrader has noted about a cell."
    meta = cell.get("metadata")
    marks = meta.get("nbgrader") if isinstance(meta, dict) else None
    return marks if isinstance(marks, dict) else {}


def defined_names(source: str) -> set[str]:
    "Names that a cell defines or imports, as far as its lines show; in time linear in its length."
    names = set()
    for line in source.splitlines():
        words = re.findall(r"\w+", line)
        if line.startswith(("def ", "class ")):
            names |= set(words[1:2])
        elif words and line.startswith(words[0]) and _assigns(line[len(words[0]) :]):
            names.add(words[0])
        if "import" in words:
            names |= set(words[words.index("import") + 1 :])
    return names


def _assigns(rest: str) -> bool:
    "Whether what follows a name assigns to it."
    rest = rest.lstrip(" ")
    return rest.startswith("=") and not rest.startswith("==")
