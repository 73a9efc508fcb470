"""Slides for the first lecture: `python docs/slides.py [FILE]`, by default docs/_slides/index.html.

Each figure of the first two chapters is a slide, with its heading and the sentences that stand
before and after it; a section without a figure has its first output. nbconvert's own slides fetch
reveal.js from the network each time they are shown, so the pages are turned by a few lines of our
own, and formulas are set by the MathJax that the site uses: the file needs nothing else.
"""

import base64
import json
import re
import sys
from pathlib import Path

import jinja2
import typer
from nbconvert.filters import markdown2html

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ["01_bigram", "02_economics"]
LONGEST = 14  # lines of an output that still can be read from the last row
MATHJAX = "sphinx-mathjax-offline"


def html(text: str) -> str:
    "Markdown as HTML; links to chapters lead nowhere from a slide, and stay as text."
    return markdown2html(re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text))


def sentences(text: str, count: int) -> str:
    "The first sentences of a paragraph of prose; empty for a list, a table, a formula."
    paragraph = next((p for p in text.split("\n\n") if re.match(r"[\w*`\"$]", p.strip())), "")
    if "$$" in paragraph or paragraph.lstrip().startswith(("| ", "- ")):
        return ""
    found = re.split(r"(?<=[.?!:])\s+(?=[A-Z`*$])", " ".join(paragraph.split()))
    short = " ".join(found[:count])
    return "" if short.endswith(":") and count == 1 else short


def figure(output: dict) -> str:
    "The picture of an output, inside the page; empty if it has none."
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    if "image/svg+xml" in data:
        return data["image/svg+xml"]
    if "<svg" in data.get("text/html", ""):
        return data["text/html"]
    if "image/png" in data:
        png = base64.b64encode(base64.b64decode(data["image/png"])).decode()
        return f'<img alt="" src="data:image/png;base64,{png}">'
    return ""


def printed(output: dict) -> str:
    "What a cell printed, if it fits a slide."
    text = "".join(output.get("text", [])) if output.get("name") == "stdout" else ""
    lines = text.rstrip().splitlines()
    return text.rstrip() if 2 <= len(lines) <= LONGEST else ""


def slides_of(chapter: str) -> list[dict]:
    "The slides of one chapter."
    notebook = json.loads((ROOT / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    part, slides = f"Chapter {int(chapter[:2])}", []
    title, before, used = "", "", True
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if head := re.match(r"# (.+)", source):
                title, rest = head[1], source.split("\n", 1)[-1].strip()
                lead = re.match(r"(> .+)", rest)
                text = f"{lead[1]}\n\n" if lead else ""
                text += sentences(re.sub(r"> .+", "", rest), 2)
                slides.append(slide("title", part, title, text))
                continue
            pieces = re.split(r"^#{2,3} (.+)$", source, flags=re.MULTILINE)
            said = ""
            if slides and slides[-1]["figure"] and not slides[-1]["below"]:
                said = sentences(pieces[0], 2)
                slides[-1]["below"] = html("" if "Before you read on" in said else said)
            for heading, text in zip(pieces[1::2], pieces[2::2]):
                if heading == "Exercises":
                    return slides
                title, before, used = heading, sentences(text, 3), False
            if not pieces[1::2]:
                before = "" if said else sentences(source, 2) or before
            continue
        for output in cell.get("outputs", []):
            if picture := figure(output):
                if slides[-1]["kind"] == "title" and not slides[-1]["figure"]:
                    slides[-1]["figure"] = picture
                else:
                    slides.append(slide("plain", part, title, before, figure=picture))
                used, before = True, ""
            elif (text := printed(output)) and not used:
                slides.append(slide("plain", part, title, before, output=text))
                used = True
    return slides


def slide(kind: str, part: str, title: str, text: str, figure: str = "", output: str = "") -> dict:
    "One slide."
    title = html(title).strip().removeprefix("<p>").removesuffix("</p>")
    return {
        "kind": kind, "part": part, "title": title, "text": html(text), "figure": figure,
        "output": output, "below": "",
    }  # fmt: skip


def mathjax() -> str:
    "The script that sets formulas."
    for folder in map(Path, sys.path):
        script = folder / MATHJAX / "static" / "mathjax" / "tex-svg-full.js"
        if script.exists():
            return script.read_text(encoding="utf-8").replace("</script", "<\\/script")
    raise SystemExit(f"docs/slides.py: {MATHJAX} is missing: pip install {MATHJAX}")


def build(target: Path = ROOT / "docs" / "_slides" / "index.html") -> int:
    "Writes the slides, says where they are, and returns how many there are."
    slides = [one for chapter in CHAPTERS for one in slides_of(chapter)]
    source = (ROOT / "docs" / "slides.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    page = template.render(title="LLaMA: a first lecture", slides=slides, mathjax=mathjax())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(f"{len(slides)} slides are in {target}: open it, and turn the pages with the arrow keys")
    return len(slides)


def main(target: Path = typer.Argument(ROOT / "docs" / "_slides" / "index.html")) -> None:
    "Makes the slides of a first lecture, one page of HTML."
    build(target)


if __name__ == "__main__":
    typer.run(main)
