"""Build the site: `python docs/build.py [FOLDER]`, by default into docs/_site.

Every notebook becomes a page at the same place as in the project: links between notebooks work in
both. nbdev's processors prepare them. Its own list for a site shows a signature in place of an
exported cell; here the code of the library is what the reader came for, so exported cells stay,
marked as such.
"""

import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import typer
from api import ROOT, library, short_names, write_api
from bibliography import link_citations, read_references, references_page
from bs4 import BeautifulSoup
from conf import branch, repository
from execnb.nbio import mk_cell, read_nb, write_nb
from glossary import glossary_page, link_terms, read_glossary
from nbdev.process import NBProcessor
from nbdev.processors import filter_stream_, hide_line, rm_header_dash, strip_ansi
from readme import links, rebase, show
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
    "Capstone": ["30"],
}
# Pages that are no chapters, in the order of the menu
ABOUT = [
    "claims.ipynb",
    "claims_pl.ipynb",
    "symbols.md",
    "models.md",
    "benchmarks.md",
    "full_scale.md",
    "serving.md",
    "teaching.md",
]
# What stands as it is: code, formulas, links, headings, HTML
KEPT = re.compile(
    r"(```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|^#[^\n]*$"
    r"|<(div|svg|table).*?</\2>|<[^>\n]+>)",
    re.DOTALL | re.MULTILINE,
)
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
NAME = re.compile(r"(?:llama_course\.)?((?:\w+\.)*\w+)(\(.*\))?")


@dataclass(frozen=True)
class Chapter:
    "A notebook of the course."

    path: Path

    @property
    def number(self) -> str:
        "Two digits."
        return self.path.name[:2]

    @property
    def page(self) -> str:
        "Its page, without the ending."
        return self.path.relative_to(ROOT).with_suffix("").as_posix()

    @cached_property
    def opening(self) -> str:
        "The cell with the title."
        return next(c.source for c in read_nb(self.path).cells if c.source.startswith("# "))

    @property
    def title(self) -> str:
        "The title, without a number."
        return re.sub("[`*<>]", "", re.match(r"# (.*)", self.opening)[1])

    @property
    def purpose(self) -> str:
        "What it is for: the quotation under the title."
        lines = re.findall(r"^> ?(.*)$", self.opening, re.MULTILINE)
        return " ".join(lines)


def chapters() -> list[Chapter]:
    "The course in reading order."
    return [Chapter(path) for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]


def mark(cell):
    "Say of a cell that the library keeps it, and fold the code that draws a picture."
    if cell.cell_type != "code":
        return
    exported = cell.directives_.keys() & {"export", "exporti", "exports"}
    defines = re.search(r"^(def|class|@)", cell.source, re.MULTILINE)  # imports are not worth it
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    draws = any("image/png" in one or "image/svg+xml" in one for one in data)
    tags = ["export"] if exported and defines else ["hide-input"] if draws and not exported else []
    cell.metadata = {"tags": tags}
    if draws:
        alt = cell.directives_.get("fig-alt:") or [picture_in_words(cell.source)]
        cell.metadata["mystnb"] = {"image": {"alt": " ".join(alt)}}


def picture_in_words(code: str) -> str:
    "What a plot shows, from the titles and axes that its code names."

    def named(*words: str) -> list[str]:
        pattern = rf"""(?:{"|".join(words)})(?:=|\()\s*f?(["'])(.*?)\1"""
        texts = [match[1] for match in re.findall(pattern, code, re.DOTALL)]
        return [re.sub(r"\{[^}]*\}", "…", text).replace("\\n", " ") for text in texts]

    titles = list(dict.fromkeys(named("suptitle", "set_title", "title")))
    x, y = named("xlabel", "set_xlabel"), named("ylabel", "set_ylabel")
    axes = [f"{b} against {a}" for a, b in zip(x, y)] or y or x
    return "Plot: " + "; ".join([*titles, *dict.fromkeys(axes)] if titles else [])


def page(path: Path):
    "A notebook as the site shows it."
    processors = [strip_ansi, hide_line, filter_stream_, rm_header_dash, show, mark]
    notebook = NBProcessor(path, procs=processors, process=True).nb
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)", cell.source, re.MULTILINE) or [heading])[-1]
        image = cell.metadata.get("mystnb", {}).get("image", {})
        if image.get("alt") == "Plot: ":  # it names neither itself nor its axes
            image["alt"] = f"Plot for the section: {heading}"
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return notebook


def slug(part: str) -> str:
    "A part's name in an address."
    return part.lower().replace(" ", "-")


def write_part(part: str, text: str, entries: list[str]) -> str:  # the page, as the menu names it
    "A page for one part of the menu, which folds its pages."
    name = f"parts/{slug(part)}"
    tree = ["```{toctree}", ":hidden:", "", *entries, "```"]
    target = PAGES / f"{name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([f"# {part}", "", text, "", *tree]) + "\n", encoding="utf-8")
    return name


def write_parts(course: list[Chapter]) -> list[str]:
    "The parts of the course, each with its chapters and what they are for."
    lost = [c for c in course if not any(c.number in numbers for numbers in PARTS.values())]
    if lost:
        raise SystemExit(f"docs/build.py: add to PARTS the number of {lost[0].path.name}.")
    names = []
    for part, numbers in PARTS.items():
        inside = [chapter for chapter in course if chapter.number in numbers]
        rows = [f"- [{int(c.number)}. {c.title}](../{c.page}.ipynb): {c.purpose}" for c in inside]
        if inside:
            names.append(write_part(part, "\n".join(rows), [f"/{c.page}" for c in inside]))
    return names


def write_pages():
    "Fill docs/_pages with everything that Sphinx reads."
    shutil.rmtree(PAGES, ignore_errors=True)
    exercises = sorted((ROOT / "exercises").glob("[!_.]*.ipynb"))
    about = [DOCS / name for name in ABOUT if (DOCS / name).exists()]
    about += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    modules, texts = library(), Texts()
    source = f"{repository}/blob/{branch}/{{path}}#L{{line}}" if repository else ""
    api = write_api(PAGES / "api", modules, source)
    place = lambda path: path.relative_to(ROOT).with_suffix("").as_posix()
    rows = [
        f"- [{int(path.stem[:2])}. {Chapter(path).title}](../{place(path)}.ipynb)"
        for path in exercises
    ]
    parts = write_parts(chapters())
    parts.append(write_part("Exercises", "\n".join(rows), [f"/{place(p)}" for p in exercises]))
    made = {
        "docs/glossary": glossary_page(texts.terms),
        "docs/references": references_page(texts.works),
    }
    pages = [*map(place, about[:2]), *made, *map(place, about[2:]), *api]
    parts.append(write_part("Reference", "", [f"/{name}" for name in pages]))
    (PAGES / "docs").mkdir()
    for name, text in made.items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
    contents = "\n".join(["```{toctree}", ":hidden:", "", *parts, "```"])
    home = ROOT / "nbs" / "index.ipynb"
    for path in [home, *(chapter.path for chapter in chapters()), *exercises, *about]:
        write_page(path, contents if path == home else "", texts)


class Texts:
    "What words in prose lead to: definitions, terms, works."

    def __init__(self):
        self.names, self.terms = short_names(library()), read_glossary()
        self.works = read_references()


def write_page(path: Path, contents: str, texts: Texts):
    "Write one page, and beside it the files that it links to and that are no pages."
    place = path.relative_to(ROOT)
    home = bool(contents)  # the first page stands at the site's root
    target = PAGES / ("index.ipynb" if home else place)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder, seen = place.parent.as_posix(), set()
    module = re.sub(r"^\d+_", "", place.stem)
    chapter = place.parent.name == "nbs" and not home

    def move(text: str) -> str:
        text = to_reference(text, folder)
        text = rebase(text, "nbs") if home else to_home(text, folder)
        text = outside(text, lambda part: link_citations(part, texts.works))
        return outside(text, lambda part: link_code(part, texts.names, module))

    def prose(text: str) -> str:
        if chapter:
            text = re.sub(r"\A# ", f"# {int(place.name[:2])}. ", text)
            text = outside(text, lambda part: link_terms(part, texts.terms, seen))
        return move(text)

    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
        copy_linked(text, path)
        target.write_text(move(text), encoding="utf-8")
        return
    notebook = page(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            copy_linked(cell.source, path)
            cell.source = SVG.sub(readable, prose(cell.source))
        for data in [output["data"] for output in cell.get("outputs", []) if "data" in output]:
            if "text/markdown" in data:
                data["text/markdown"] = move("".join(data["text/markdown"]))
            if "text/html" in data:
                data["text/html"] = SVG.sub(readable, "".join(data["text/html"]))
    if home:
        notebook.cells.append(mk_cell(contents, "markdown"))
    write_nb(notebook, target)


SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)


def readable(
    found: re.Match,  # of SVG
    least: float = 10.5,  # the least height of letters, in pixels
) -> str:
    "The drawing with a width below which it does not shrink: a phone scrolls it sideways."
    drawing = found[0]
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', drawing)]
    box = re.search(r'viewBox="\S+ \S+ ([\d.]+)', drawing)
    if not sizes or not box:
        return drawing
    width = f"min-width:{float(box[1]) * least / min(sizes):.0f}px;"
    return re.sub(r'(<svg role="img"[^>]*style=")', rf"\g<1>{width}", drawing, count=1)


def outside(text: str, change) -> str:
    "The Markdown with `change` made in what is plain prose."
    parts, end = [], 0
    for found in KEPT.finditer(text):
        parts += [change(text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, change(text[end:])])


def link_code(text: str, names: dict, module: str) -> str:
    "Prose in which names of the library lead to their definitions."

    def linked(match):
        found = NAME.fullmatch(match[2])
        entry = names.get(found[1]) if found else None
        if not entry or "<" in match[2]:
            return match[0]
        own = entry.module == module
        is_name = (
            re.search(r"[A-Z_.]", found[1]) or found[2] or match[2].startswith("llama_course.")
        )
        return f"{{py:obj}}`{match[2]} <{entry.full}>`" if own or is_name else match[0]

    return re.sub(r"(?<!\})(?<!`)(`)([^`\n]+)`(?!`)", linked, text)


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


def finish(output: Path):
    "What Sphinx does not write: texts for the search; the notebooks as the repository has them."
    texts = {}
    for path in sorted(output.rglob("*.html")):
        name = path.relative_to(output).with_suffix("").as_posix()
        if not name.startswith(("_", "genindex", "search", "404", "py-modindex")):
            texts[name] = sentences(path.read_text(encoding="utf-8"))
    homes = {}
    for term in read_glossary():
        homes |= {word.lower(): term.page for word in (term.name, *term.also) if term.page}
    text = f"window.COURSE_SENTENCES={json.dumps(texts, ensure_ascii=False)};\n"
    text += f"window.COURSE_TERMS={json.dumps(homes, ensure_ascii=False)};\n"
    titles = {path.page: f"{int(path.number)}. {path.title}" for path in chapters()}
    text += f"window.COURSE_TITLES={json.dumps(titles, ensure_ascii=False)};\n"
    (output / "_static" / "sentences.js").write_text(text, encoding="utf-8")
    for copy in (output / "_sources").rglob("*.ipynb"):
        place = copy.relative_to(output / "_sources")
        shutil.copyfile(ROOT / ("nbs/index.ipynb" if place.name == "index.ipynb" else place), copy)


def sentences(html: str) -> list[str]:
    "The sentences of a page, prose before code."
    article = BeautifulSoup(html, "html.parser").find("article")
    if not article:
        return []
    for part in article.select("script, style, mjx-container, .headerlink, .math, nav, .quiz"):
        part.decompose()
    code = [pre.extract().get_text() for pre in article.find_all("pre")]
    parts = article.select("p, li, td, th, dt") + article.select("h1, h2, h3")
    blocks = [re.sub(r" (?=[.,;:)])", "", " ".join(part.get_text(" ").split())) for part in parts]
    found = [s for block in blocks for s in re.split(r"(?<=[.!?]) +(?=[A-Z])", block)]
    found += [line.strip() for text in code for line in text.splitlines()]
    return list(dict.fromkeys(line for line in found if len(line) > 3))


def build(output: Path = DOCS / "_site") -> int:
    "Build the site and return 0, or 1 if Sphinx warned of anything."
    write_pages()
    shutil.rmtree(output, ignore_errors=True)
    made = DOCS / "_build"
    flags = ["-b", "html", "-W", "--keep-going", "-q", "-E", "-d", str(made), "-c", str(DOCS)]
    status = build_main([*flags, str(PAGES), str(output)])
    if (output / "_static").is_dir():
        finish(output)
    print(
        f"The site is in {output}: open {output / 'index.html'}"
        if status == 0
        else "The site has warnings, and a warning is an error here."
    )
    return status


def main(output: Path = typer.Argument(DOCS / "_site")) -> None:
    "Builds the site."
    raise typer.Exit(build(output))


if __name__ == "__main__":
    typer.run(main)
