"Write README.md: the first notebook of the course, as Markdown. `python docs/readme.py`"
import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import extract_directives

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")(?![a-z]+:|[#/])([^)\"#\s]+)")


def links(text: str) -> list[str]:
    "The files that a Markdown text links to, as they are written in it."
    return [match[2] for match in LINK.finditer(text)]


def rebase(
    text: str,  # Markdown that stands in the folder `old`
    old: str,  # a folder, seen from the project's root
    new: str = ".",  # the folder that the text moves to
) -> str:
    "The same text with its relative links pointing to the same files, seen from another folder."
    def moved(match):
        return match[1] + posixpath.relpath(posixpath.join(old, match[2]), new)
    return LINK.sub(moved, text)


def readme(root: Path = ROOT) -> str:
    "What README.md says, if it says what nbs/index.ipynb does."
    notebook = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "hide" not in extract_directives(cell)]
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources["outputs"]:
        raise SystemExit("nbs/index.ipynb: a picture is drawn by a cell. README.md shows only pictures that are files.")
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return "<!-- Made from nbs/index.ipynb by `make generate`; edit that. -->\n\n" + rebase(text, "nbs")


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
