"""Build the site: `python docs/build.py [FOLDER]`, by default into docs/_site.

Every notebook becomes a page at the same place as in the project: links between notebooks work in
both. nbdev's processors prepare them. Its own list for a site shows a signature in place of an
exported cell; here the code of the library is what the reader came for, so exported cells stay,
marked as such.
"""

import re
import shutil
import sys
from pathlib import Path

from api import write_api
from execnb.nbio import mk_cell, read_nb, write_nb
from nbdev.process import NBProcessor
from nbdev.processors import filter_stream_, hide_line, rm_header_dash, strip_ansi
from readme import ROOT, links, rebase, show
from sphinx.cmd.build import build_main

DOCS = ROOT / "docs"
PAGES = DOCS / "_pages"
PARTS = {  # part of the course: the numbers of its chapters
    "Start": ["01"],
    "The thesis": ["02"],
    "Data": ["03", "04", "05", "06", "07"],
    "Architecture": ["08", "09", "10", "11", "12"],
    "Training": ["13", "14", "15", "16", "17", "18", "19", "20"],
    "Inference": ["21", "22", "23", "24"],
    "Judgement": ["25", "26", "27", "28"],
    "Alignment": ["29"],
}


def mark(cell):
    "Say of a cell that the library keeps it."
    exported = cell.directives_.keys() & {"export", "exporti", "exports"}
    defines = re.search(
        r"^(def|class|@)", cell.source, re.MULTILINE
    )  # imports alone are not worth a mark
    if cell.cell_type == "code":
        cell.metadata = {"tags": ["export"] if exported and defines else []}


def page(path: Path):
    "A notebook as the site shows it."
    processors = [strip_ansi, hide_line, filter_stream_, rm_header_dash, show, mark]
    notebook = NBProcessor(path, procs=processors, process=True).nb
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return notebook


def toctree(caption: str, paths: list[str]) -> str:
    "One part of the menu."
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *map(entry, paths), "```"]
    return "\n".join(lines) if paths else ""


def entry(path: str) -> str:
    "A line of the menu; a chapter's number stands before its title."
    number = re.match(r"(\d+\w?)_", Path(path).name)
    if not number:
        return path
    cells = read_nb(ROOT / f"{path}.ipynb").cells
    title = next(
        re.match(r"# (.*)", cell.source)[1] for cell in cells if cell.source.startswith("# ")
    )
    return f"{number[1]} {re.sub('[`*<>]', '', title)} <{path}>"


def menu(chapters: list[str], exercises: list[str], reference: list[str]) -> str:
    "The menu: the parts of the course in order, then what surrounds it."
    number = {path: re.match(r"\d*", Path(path).name)[0][:2] for path in chapters}
    lost = [
        path for path in chapters if not any(number[path] in numbers for numbers in PARTS.values())
    ]
    if lost:
        raise SystemExit(f"docs/build.py: add to PARTS the number of {', '.join(lost)}.")
    parts = {
        part: [path for path in chapters if number[path] in numbers]
        for part, numbers in PARTS.items()
    }
    parts |= {"Exercises": exercises, "Reference": reference}
    return "\n\n".join(filter(None, (toctree(part, paths) for part, paths in parts.items())))


def write_pages():
    "Fill docs/_pages with everything that Sphinx reads."
    shutil.rmtree(PAGES, ignore_errors=True)
    folders = ["nbs", "exercises"]
    sources = [path for folder in folders for path in sorted((ROOT / folder).glob("[!_.]*.ipynb"))]
    sources += [
        DOCS / "models.md",
        DOCS / "teaching.md",
        DOCS / "benchmarks.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    ]
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in sources]
    api = write_api(PAGES / "api")
    contents = menu(
        [name for name in names if re.match(r"nbs/\d", name)],
        [name for name in names if name.startswith("exercises/")],
        [name for name in names if not name.startswith(("nbs/", "exercises/"))] + api,
    )
    for path in sources:
        write_page(path, contents)


def write_page(path: Path, contents: str):
    "Write one page, and beside it the files that it links to and that are no pages."
    place = path.relative_to(ROOT)
    home = place.as_posix() == "nbs/index.ipynb"  # the first page stands at the site's root
    target = PAGES / ("index.ipynb" if home else place)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = place.parent.as_posix()

    def move(text: str) -> str:
        text = to_reference(text, folder)
        return rebase(text, "nbs") if home else to_home(text, folder)

    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
        copy_linked(text, path)
        target.write_text(move(text), encoding="utf-8")
        return
    notebook = page(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            copy_linked(cell.source, path)
            cell.source = move(cell.source)
        for data in [output["data"] for output in cell.get("outputs", []) if "data" in output]:
            if "text/markdown" in data:
                data["text/markdown"] = move("".join(data["text/markdown"]))
    if home:
        notebook.cells.append(mk_cell(contents, "markdown"))
    write_nb(notebook, target)


def to_reference(text: str, folder: str) -> str:
    "Links to the library's files and folders lead to their pages in the reference."
    up = "../" * (folder.count("/") + 1)
    return re.sub(
        r"\]\((?:\.\./)+llama_course/(\w+)(?:/[\w/]*)?(?:\.py)?\)", rf"]({up}api/\1.md)", text
    )


def to_home(text: str, folder: str) -> str:
    "Links to the first notebook or to README.md, which is made from it, lead to the site's root."
    up = "../" * (folder.count("/") + 1)
    return re.sub(
        r"\]\((\.\./)*(nbs/)?(index\.ipynb|README\.md)(?=[)#])", f"]({up}index.ipynb", text
    )


def copy_linked(text: str, path: Path):
    "Pictures, scripts and other files that a page links to lie at the same place in docs/_pages."
    for link in links(text):
        source = (path.parent / link).resolve()
        if source.is_file() and source.suffix not in (".ipynb", ".md"):
            copy = PAGES / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def build(output: Path = DOCS / "_site") -> int:
    "Build the site and return 0, or 1 if Sphinx warned of anything."
    write_pages()
    shutil.rmtree(output, ignore_errors=True)
    status = build_main(
        [
            "-b",
            "html",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            str(DOCS / "_build"),
            "-E",
            "-c",
            str(DOCS),
            str(PAGES),
            str(output),
        ]
    )
    print(
        f"The site is in {output}: open {output / 'index.html'}"
        if status == 0
        else "The site has warnings, and a warning is an error here."
    )
    return status


if __name__ == "__main__":
    sys.exit(build(*map(Path, sys.argv[1:2])))
