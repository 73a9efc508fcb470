"Write README.md: the first notebook of the course, as Markdown. `python docs/readme.py`"

import posixpath
import re
from pathlib import Path

import nbformat
import typer
from execnb.nbio import nb2str
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")(?![a-z]+:|[#/])([^)\"#\s]+)")


def show(cell):
    "Carry out nbdev's directives: what is hidden goes, a cell without its code becomes its text."
    if cell.cell_type != "code":
        return
    if "hide" in cell.directives_ or not DIRECTIVE.sub("", cell.source).strip():
        del cell["source"]
        return
    cell.source = DIRECTIVE.sub("", cell.source)
    data = [output.get("data", {}) for output in cell.outputs]
    texts = [item["text/markdown"] for item in data if "text/markdown" in item]
    pages = ["".join(item["text/html"]) for item in data if "text/html" in item]
    if cell.directives_.get("echo:") == ["false"]:
        texts += [f'<div class="drawing">\n{svg}\n</div>' for svg in pages if "<svg" in svg]
        texts += [as_section(html) for html in pages if html.startswith('<div class="quiz">')]
        if not texts:  # it prepares what a later cell shows
            del cell["source"]
            return
        cell.cell_type, cell.source = "markdown", "\n\n".join("".join(text) for text in texts)
        del cell["outputs"], cell["execution_count"]


def as_section(html: str) -> str:
    "A quiz with its heading as Markdown: it is then in the page's contents, and has an address."
    return "## Quiz\n\n" + html.replace("<h2>Quiz</h2>", "")


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
    notebook = NBProcessor(root / "nbs" / "index.ipynb", procs=show, process=True).nb
    text, resources = MarkdownExporter().from_notebook_node(
        nbformat.reads(nb2str(notebook), as_version=4)
    )
    if resources["outputs"]:
        raise SystemExit("nbs/index.ipynb: a cell draws a picture; README.md can show only files.")
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return "<!-- Made from nbs/index.ipynb by `make generate`; edit that. -->\n\n" + rebase(
        text, "nbs"
    )


def main() -> None:
    "Writes README.md: what nbs/index.ipynb says."
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
