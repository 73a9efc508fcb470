"""Print the course as one PDF: `python docs/pdf.py [SITE [PDF]]`, from the site that is built.

The pages are put into one, so that links between them stay links, and Chromium prints it twice: the
first print says on which page each chapter begins, which the table of contents of the second tells.
The site's first page gets a link to the PDF.
"""

import posixpath
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag

import typer
from bs4 import BeautifulSoup, Tag
from build import PARTS, chapters, slug
from conf import about, html_baseurl
from jinja2 import Environment, FileSystemLoader
from pikepdf import Array, ObjectStreamMode, Pdf
from pikepdf import Page as Leaf
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).resolve().parent
NAME = "llama_course.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
END = ["docs/claims", "docs/symbols", "docs/glossary", "docs/references"]
LEFT_OUT = "script, style, nav, .headerlink, .toctree-wrapper, .copybtn"
FOOTER = (
    '<div style="width:100%;font-size:8px;text-align:center"><span class="pageNumber"></span></div>'
)


@dataclass
class Page:
    "A page of the site within the PDF."

    name: str  # without the ending
    level: int  # 1 for a part and for what is in none, 2 for a chapter
    article: Tag

    @property
    def key(self) -> str:
        "Its anchor, and the beginning of all the others on it."
        return self.name.replace("/", "-")

    @property
    def heading(self) -> str:
        "Its title."
        found = self.article.find(f"h{self.level}")
        return found.get_text() if found else self.name


def contents() -> dict[str, int]:
    "The names of the pages that are printed, in order, and their levels."
    found, course = {"index": 1}, chapters()
    for part, numbers in PARTS.items():
        found[f"parts/{slug(part)}"] = 1
        found |= {chapter.page: 2 for chapter in course if chapter.number in numbers}
    return found | dict.fromkeys(END, 1)


def read_page(site: Path, name: str, level: int) -> Page:
    "What the site's page says, without what leads around the site."
    html = (site / f"{name}.html").read_text(encoding="utf-8")
    start, end = html.index("<article"), html.index("</article>")
    article = BeautifulSoup(html[start:end], "html.parser").article
    assert article is not None
    for part in article.select(LEFT_OUT):
        part.decompose()
    return Page(name, level, article)


def assemble(site: Path, names: Mapping[str, int]) -> list[Page]:
    "The pages, changed so that they can stand in one."
    pages = [read_page(site, name, level) for name, level in names.items()]
    anchors = {page.name: {tag["id"] for tag in page.article.select("[id]")} for page in pages}
    for page in pages:
        for link in page.article.select("a[href]"):
            link["href"] = moved(str(link["href"]), page.name, anchors)
        for picture in page.article.select("img[src]"):
            place = posixpath.join(posixpath.dirname(page.name), str(picture["src"]))
            picture["src"] = (site / place).resolve().as_uri()
        for tag in page.article.select("[id]"):
            if not tag.find_parent("svg"):  # the drawings' tips are all alike
                tag["id"] = f"{page.key}--{tag['id']}"
        unfold(page.article)
        lower(page.article, page.level - 1)
    return pages


def moved(
    link: str,
    page: str,  # that it stands on
    anchors: Mapping[str, Iterable[str]],  # of each page in the PDF
) -> str:
    "Where a link of the site leads in the PDF; to what is not in it, it leads on the site."
    if re.match(r"[a-z]+:", link):
        return link
    path, anchor = urldefrag(link)
    place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    name = place.removesuffix(".html")
    if name not in anchors:
        return html_baseurl + place + (f"#{anchor}" if anchor else "")
    key = name.replace("/", "-")
    return f"#{key}--{anchor}" if anchor in anchors[name] else f"#{key}"


def unfold(article: Tag):
    "Nothing can be opened on paper."
    for folded in article.find_all("details"):
        if "hide" in folded.get("class", []):  # its summary is a button: Show the code
            folded.summary.decompose()
            folded.name = "div"
        folded["open"] = ""


def lower(article: Tag, by: int):
    "A chapter's headings stand below its part's in the bookmarks."
    for heading in article.find_all(re.compile("^h[1-6]$")):
        heading.name = f"h{min(6, int(heading.name[1]) + by)}"


def head_of(site: Path) -> str:
    "The style sheets and MathJax, as a page with formulas has them."
    html = (site / "nbs" / "08_norm.html").read_text(encoding="utf-8")
    kept = re.findall(r'<link [^>]*rel="stylesheet"[^>]*>|<script[^>]*mathjax[^>]*></script>', html)
    return "\n".join(kept).replace("../", f"{site.resolve().as_uri()}/")


def print_pages(
    browser: Browser,
    site: Path,
    target: Path,  # the PDF
    names: Mapping[str, int],  # the pages, and their levels in the table of contents
) -> int:
    "Write the PDF and return the number of its pages."
    pages = assemble(site, names)
    template = Environment(loader=FileSystemLoader(DOCS), autoescape=True).get_template("pdf.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    whole, draft = target.with_suffix(".html"), target.with_suffix(".draft.pdf")
    numbers: dict[str, int] = {}
    for _ in range(2):
        text = template.render(head=head_of(site), about=about, pages=pages, numbers=numbers)
        whole.write_text(text, encoding="utf-8")
        print_page(browser, whole, draft)
        with Pdf.open(draft) as pdf:
            numbers = {page.key: number_of(page.key, pdf) for page in pages}
            # a tag per word of code is most of the file, and shrinks to a tenth
            pdf.save(target, object_stream_mode=ObjectStreamMode.generate)
            count = len(pdf.pages)
    whole.unlink()
    draft.unlink()
    return count


def print_page(browser: Browser, source: Path, target: Path):
    "Print a page of HTML, with bookmarks from its headings."
    tab = browser.new_page()
    tab.set_default_timeout(0)  # hundreds of pages
    tab.goto(source.resolve().as_uri(), wait_until="load")
    tab.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise; }")
    tab.evaluate("document.fonts.ready.then(() => null)")
    paper = {"top": "16mm", "bottom": "18mm", "left": "18mm", "right": "18mm"}
    look = {"display_header_footer": True, "header_template": "<span></span>"}
    tab.pdf(path=target, format="A4", margin=paper, footer_template=FOOTER, outline=True,
            tagged=True, print_background=True, **look)  # fmt: skip
    tab.close()


def number_of(key: str, pdf: Pdf) -> int:
    "The number of the page that an anchor came to stand on."
    goal = pdf.Root.Dests[f"/{key}"]
    return Leaf((goal if isinstance(goal, Array) else goal.D)[0]).index + 1


def offer(site: Path, pdf: Path, pages: int):
    "Put the PDF into the site, and a link to it below the title of the site's first page."
    shutil.copyfile(pdf, site / NAME)
    home = site / "index.html"
    html = home.read_text(encoding="utf-8")
    html = re.sub(r'\n<p class="pdf">.*?</p>', "", html)
    size = f"{pages} pages, {max(1, round(pdf.stat().st_size / 1e6))} MB"
    link = f'<p class="pdf"><a href="{NAME}">All chapters as one PDF</a> ({size}).</p>'
    start, mark = html.index("<article"), "</blockquote>"
    end = html.index(mark, start) + len(mark)
    home.write_text(f"{html[:end]}\n{link}{html[end:]}", encoding="utf-8")


def main(
    site: Path = typer.Argument(DOCS / "_site"),
    target: Path = typer.Argument(DOCS / "_pdf" / NAME),
) -> None:
    "Print the whole course."
    if not (site / "index.html").is_file():
        raise SystemExit(f"There is no site in {site}: build it first, python docs/build.py.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"A PDF is printed by a browser: install one of {', '.join(BROWSERS)}.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        count = print_pages(chromium, site, target, contents())
        chromium.close()
    offer(site, target, count)
    print(f"The course is in {target}, {count} pages, and the site's first page links to it.")


if __name__ == "__main__":
    typer.run(main)
