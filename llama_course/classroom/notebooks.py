"What learners hand in: notebooks, read without running any of it."

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.similarity import fingerprints
from llama_course.support.errors import UserError

LARGEST_NOTEBOOK = 256 << 20  # bytes, with its outputs
LARGEST_CODE = 4 << 20  # bytes, without them
FIRST_BYTES = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
    b"%PDF": "a PDF", b"PK\x03\x04": "a zip", b"\x1f\x8b": "a gzip", b"<": "a web page",
    b"\xd0\xcf\x11\xe0": "an Office document", b"\x7fELF": "a program",
}  # fmt: skip
STATES = ("not a notebook", "empty", "too large")


class Unreadable(UserError):
    "A file that is no notebook to be graded; its status is one of `STATES`."

    def __init__(self, path: Path, status: str, reason: str):
        super().__init__(f"{path} is {status}: {reason}")
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Notebook:
    "What the judge needs of a notebook."

    path: Path
    sources: list[tuple[int, str]]  # (number, source) of the code cells, nbgrader's tests left out
    claims: list[str]  # names of the exercises that it has to do with
    blank: list[str] = field(default_factory=list)  # those that are as they were given out
    prints: dict[str, str] = field(default_factory=dict)  # see `similarity.fingerprints`


def read_notebook(path: Path) -> Notebook:
    "The code cells of a notebook file. Raises `Unreadable` if there are none to be read."
    cells = _cells(path)
    sources: list[tuple[int, str]] = []
    names, blank = set[str](), set[str]()
    for number, cell in enumerate(cells, 1):
        source, marks = cell.get("source", ""), _marks(cell)
        source = "".join(map(str, source)) if isinstance(source, list) else str(source)
        source = source.encode("utf-8", "replace").decode()  # no half of a character
        names.add(str(marks.get("grade_id")))
        is_test = marks.get("grade") and not marks.get("solution")  # the judge is one
        if cell.get("cell_type") == "code" and not is_test:
            sources.append((number, source))
            found = defined_names(source)
            names |= found
            given = "YOUR CODE HERE" in source and "raise NotImplementedError" in source
            blank = blank | found if given else blank - found
    if sum(len(source) for _, source in sources) > LARGEST_CODE:
        most = f"at most {LARGEST_CODE >> 20} MB are read"
        raise Unreadable(path, "too large", f"the code of its cells alone, {most}")
    claims = [name for name in load_exercises() if name in names]
    code = [python_only(source)[0] for _, source in sources]
    prints = fingerprints(code, [name for name in claims if name not in blank])
    return Notebook(path, sources, claims, [name for name in claims if name in blank], prints)


def _cells(path: Path) -> list[dict[str, Any]]:
    "The cells of a notebook file, of whatever content. Raises `Unreadable`."
    data = b""
    try:
        size = path.stat().st_size
        if size > LARGEST_NOTEBOOK:
            most = (
                f"{size >> 20:,} MB, at most {LARGEST_NOTEBOOK >> 20} are read; clear its outputs"
            )
            raise Unreadable(path, "too large", most)
        data = path.read_bytes()
        if not data.strip():
            raise Unreadable(path, "empty", "a file without content")
        notebook = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        kind = next((kind for start, kind in FIRST_BYTES.items() if data.startswith(start)), "")
        reason = f"its content is {kind}" if kind else f"it cannot be read ({type(error).__name__})"
        raise Unreadable(
            path, "not a notebook", f"{reason}; give the notebook as Jupyter saves it"
        ) from None
    except MemoryError:
        raise Unreadable(path, "too large", "to be read in the memory that it may use") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        reason = "of format 4, it has no cells; open and save it in JupyterLab"
        raise Unreadable(path, "not a notebook", reason)
    if not cells:
        raise Unreadable(path, "empty", "a notebook without cells")
    return cells


def _marks(cell: dict[str, Any]) -> dict[str, Any]:
    "What nbgrader has noted about a cell."
    meta = cell.get("metadata")
    marks = meta.get("nbgrader") if isinstance(meta, dict) else None
    return marks if isinstance(marks, dict) else {}


def python_only(source: str) -> tuple[str, str]:
    "A cell without IPython's magics and shell lines, and a note if there were any."
    try:
        ast.parse(source)
        return source, ""
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        if re.match(r"\s*%%(?!time\b|timeit\b|capture\b)", source):
            return "", "a cell magic was left out"
        special = r"^([ \t]*)([%!?]|[\w.]+\?+[ \t]*$).*$"
        kept = re.sub(special, r"\1pass", source, flags=re.MULTILINE)
        return kept, "" if kept == source else "lines for IPython or the shell were left out"


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
