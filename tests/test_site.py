"The site and JupyterLab as a reader sees them: built without a warning, in Chromium, offline."

import contextlib
import functools
import http.server
import importlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
LECTURES = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
FOLDERS = ("nbs", "exercises", "docs")
NOTEBOOKS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
AXE = next(Path(find_spec("axe_playwright_python").origin).parent.rglob("axe.min.js"))
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    "How the build of the site went; a site with warnings is there all the same."
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "docs" / "build.py", folder]
    process = subprocess.run(command, capture_output=True, text=True)
    return process.returncode, process.stdout + process.stderr, folder


@pytest.fixture(scope="session")
def site(built):
    "The site's folder."
    return built[2]


class Quiet(http.server.SimpleHTTPRequestHandler):
    "A file server that keeps no log."

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    "The site, served on this machine."
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def watched(browser, size):
    "A tab, and the list of what goes wrong in it: script errors, missing files, other hosts."
    context = browser.new_context(viewport=size)
    tab, wrong = context.new_page(), []

    def note(what: str, bad: bool = True):
        if bad:
            wrong.append(what)

    tab.on("console", lambda message: note(f"console: {message.text}", message.type == "error"))
    tab.on("pageerror", lambda error: note(f"script: {error}"))
    # a picture still on its way when the tab went on to the next page is aborted: nothing is wrong
    tab.on(
        "requestfailed",
        lambda request: note(
            f"failed: {request.url} {request.failure}", "ERR_ABORTED" not in str(request.failure)
        ),
    )
    tab.on(
        "response",
        lambda response: note(f"{response.status}: {response.url}", response.status >= 400),
    )
    tab.on("request", lambda request: note(f"another host: {request.url}", leaves(request.url)))
    yield tab, wrong
    context.close()


def leaves(url: str) -> bool:
    "Whether a request goes to another machine."
    here = ("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "data:", "blob:", "about:")
    return not url.startswith(here)


def place(path: Path) -> str:
    "Where on the site a notebook's page is."
    name = path.relative_to(ROOT).with_suffix(".html").as_posix()
    return "index.html" if name == "nbs/index.html" else name


def shown(path: Path) -> list:
    "The cells of a notebook that the site shows."
    return [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if not re.search(r"^#\|\s*hide\b", cell.source, re.MULTILINE)
    ]


def pictures(path: Path) -> int:
    "How many pictures a notebook draws."
    outputs = [output.get("data", {}) for cell in shown(path) for output in cell.get("outputs", [])]
    return sum("image/png" in data or "image/svg+xml" in data for data in outputs)


def formulas(path: Path) -> bool:
    "Whether a notebook has formulas."
    text = "\n".join(cell.source for cell in shown(path) if cell.cell_type == "markdown")
    return bool(re.search(r"\$[^$\n`]+\$|\$\$", re.sub(r"`[^`]*`", "", text)))


def load(tab, url: str):
    "Open a page and wait until its formulas are set."
    tab.goto(url, wait_until="load")
    tab.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise; }")


def test_the_site_builds_without_a_warning(built):
    status, said, _ = built
    assert status == 0, said


def test_the_site_has_a_page_for_every_notebook(site):
    assert [path.name for path in NOTEBOOKS if not (site / place(path)).exists()] == []


def test_every_drawing_is_on_its_page(site):
    for path in NOTEBOOKS:
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
        made = sum("<svg" in out.get("data", {}).get("text/html", "") for out in outputs)
        page = (site / place(path)).read_text(encoding="utf-8")
        assert page.count('<svg role="img"') == made, path.name
    assert "A loop of four boxes" in (site / "nbs/01_bigram.html").read_text(encoding="utf-8")


PROSE = """page => { const copy = page.cloneNode(true);
  copy.querySelectorAll("pre, code").forEach(part => part.remove()); return copy.textContent; }"""


ALTS = "images => images.map(image => image.alt)"
LETTERS = """drawings => drawings.flatMap(drawing => {
  const scale = drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;
  return [...drawing.querySelectorAll("text")].map(text =>
    scale * parseFloat(text.getAttribute("font-size") || getComputedStyle(text).fontSize)); })"""
TOO_WIDE = """blocks => blocks.filter(block => block.scrollWidth > block.clientWidth + 60)
  .map(block => block.innerText)"""


# The colours of code are the same on every page, and are most of the work: see the whole pages.
ARTICLE = {"include": ["article.bd-article"], "exclude": ["div.highlight"]}


def in_words(alt: str) -> bool:
    "Whether a picture's alternative says something, and is no file's name."
    return len(alt.split()) > 2 and not re.search(r"\.(png|svg)$", alt)


def broken_rules(tab, part: dict) -> list:
    "What axe finds wrong in a part of the page."
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    options = "{preload: false, resultTypes: ['violations']}"
    found = tab.evaluate(f"async part => (await axe.run(part, {options})).violations", part)
    return [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=place)
def test_a_page_shows_what_is_on_it_breaks_no_rule_and_fits_a_phone(path, address, browser):
    with watched(browser, DESKTOP) as (tab, wrong):
        load(tab, f"{address}/{place(path)}")
        article = tab.locator("article.bd-article")
        assert article.locator("h1").count() == 1
        prose = article.evaluate(PROSE)
        assert "$$" not in prose and "\\frac" not in prose
        assert article.locator("mjx-container mjx-math").count() > 0 or not formulas(path)
        assert tab.locator("mjx-merror, [data-mjx-error]").count() == 0
        drawn = article.locator("img").evaluate_all(
            "images => images.map(image => image.naturalWidth)"
        )
        assert len(drawn) >= pictures(path) and all(drawn)
        assert [alt for alt in article.locator("img").evaluate_all(ALTS) if not in_words(alt)] == []
        assert article.locator("div.cell_input pre").evaluate_all(TOO_WIDE) == []
        assert broken_rules(tab, ARTICLE) == []
        cells = sum(cell.cell_type == "code" for cell in shown(path))
        assert (
            article.locator("div.highlight span[class]").count() > 0 or cells <= 1
        )  # one: #| default_exp
        tab.set_viewport_size(PHONE)
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        sizes = article.locator('svg[role="img"]').evaluate_all(LETTERS)
        assert [size for size in sizes if size < 10] == []  # pixels: the letters of drawings
    assert wrong == []


def test_the_other_pages_open_and_fit_a_phone(site, address, browser):
    others = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    others -= {*map(place, NOTEBOOKS), "404.html"}  # whose links begin at the site's own address
    wide = []
    with watched(browser, PHONE) as (tab, wrong):
        for name in sorted(name for name in others if not name.startswith("_static")):
            load(tab, f"{address}/{name}")
            if tab.evaluate("document.documentElement.scrollWidth") > PHONE["width"]:
                wide.append(name)
    assert wrong == [] and wide == []


def test_links_within_the_site_lead_somewhere(site):
    broken = []
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages.remove(site / "404.html")
    for page in pages:
        for link in re.findall(r'href="([^"#?:]+)[#?]?[^":]*"', page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            broken += [f"{page.relative_to(site)} -> {link}"] if not target.exists() else []
    assert broken == []


SEARCHED = {  # a word, and the chapter that must come first
    "bigram": "01", "perplexity": "01", "softmax": "01", "cross-entropy": "01",
    "bits per byte": "01", "scaling law": "02", "mixture": "03", "deduplication": "04",
    "MinHash": "05", "tokenizer": "06", "SentencePiece": "06", "BPE": "07", "RMSNorm": "08",
    "pre-normalization": "08", "SwiGLU": "09", "RoPE": "10", "rotary": "10",
    "FlashAttention": "11", "activation checkpointing": "13", "AdamW": "14", "warmup": "14",
    "pretraining": "15", "gradient accumulation": "15", "all-reduce": "16", "FSDP": "17",
    "tensor parallelism": "17", "checkpoint": "18", "MFU": "19", "KV cache": "21",
    "temperature": "21", "continuous batching": "22", "GGUF": "23", "quantization": "24",
    "pass@k": "26", "LoRA": "29",
}  # fmt: skip


def test_the_search_finds_the_chapter_first_and_shows_a_sentence(site, browser):
    tab, missed = browser.new_context(viewport=DESKTOP).new_page(), []
    for word, number in SEARCHED.items():  # from the disk: no server is needed
        tab.goto(f"{site.as_uri()}/search.html?q={quote(word)}")
        first = tab.locator("#search-results li").first
        first.locator("p.context").wait_for(timeout=60_000)
        found, said = first.locator("a").get_attribute("href"), first.locator("p.context")
        if not found.startswith(f"nbs/{number}_") or not said.locator("mark").count():
            missed.append((word, found, said.inner_text()))
    tab.context.close()
    assert missed == []


def test_every_name_is_in_the_inventory_that_others_link_to(site):
    content = (site / "objects.inv").read_bytes()
    from sphinx.util.inventory import InventoryFile

    entries = InventoryFile.loads(content, uri="").data
    assert "llama_course.norm.RMSNorm" in entries["py:class"]
    assert "llama_course.rope.apply_rotary" in entries["py:function"]
    assert "llama_course.data.TABLE_1" in entries["py:data"]
    assert "llama_course.model.Llama.save" in entries["py:method"]  # written in a later cell
    index = (site / "genindex.html").read_text(encoding="utf-8")
    assert len(re.findall(r'href="api/', index)) > 500
    page = (site / "api/norm.html").read_text(encoding="utf-8")
    assert "../nbs/08_norm.html#" in page and "/blob/main/llama_course/norm.py#L" in page


def test_a_name_in_prose_leads_to_its_definition_and_a_term_to_the_glossary(site):
    page = (site / "nbs/12_model.html").read_text(encoding="utf-8")
    assert re.search(r'href="\.\./api/model\.html#llama_course\.model\.Parts', page)
    assert re.search(r'href="\.\./docs/glossary\.html#term-', page)
    assert "<h1>12. The model<a" in page
    works = (site / "docs/references.html").read_text(encoding="utf-8")
    assert (
        re.search(r"Guo.*Hägele.*Hu et al", works, re.DOTALL) and "Hanu and Unitary team" in works
    )
    norm = (site / "nbs/08_norm.html").read_text(encoding="utf-8")
    assert 'href="../docs/references.html#zhang2019"' in norm


def test_the_site_says_what_it_is_to_machines(site):
    assert (site / ".nojekyll").exists() and (site / "404.html").exists()
    places = (site / "sitemap.xml").read_text(encoding="utf-8")
    assert "/llama_course/nbs/08_norm.html" in places
    page = (site / "nbs/08_norm.html").read_text(encoding="utf-8")
    for mark in ('name="description"', 'property="og:image"', 'property="og:description"'):
        assert mark in page
    for link in (
        "colab.research.google.com/github/",
        "mybinder.org/v2/",
        "/edit/main/nbs/08_norm",
        "/llama_course/discussions",
    ):
        assert link in page
    assert "MathJax" not in (site / "parts/data.html").read_text(encoding="utf-8")
    copy = json.loads((site / "_sources/nbs/08_norm.ipynb").read_text(encoding="utf-8"))
    assert copy == json.loads((ROOT / "nbs/08_norm.ipynb").read_text(encoding="utf-8"))


def bookmarks(outline: list) -> list[str]:
    "The bookmarks of a PDF, those below others too."
    return [
        title
        for entry in outline
        for title in (bookmarks(entry) if isinstance(entry, list) else [entry.title])
    ]


def test_the_pdf_has_the_pages_in_order_unfolded_with_bookmarks_and_links(
    site, browser, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pdf = importlib.import_module("pdf")
    names = {"parts/architecture": 1, "nbs/08_norm": 2, "docs/symbols": 1}
    count = pdf.print_pages(browser, site, tmp_path / "two.pdf", names)
    reader = PdfReader(tmp_path / "two.pdf")
    assert len(reader.pages) == count and [p.name for p in tmp_path.iterdir()] == ["two.pdf"]
    pages = [" ".join(page.extract_text().split()) for page in reader.pages]
    whole = " ".join(pages)
    parts = [
        "Rebuild the LLaMA paper",
        "Contents Architecture",
        "The smallest part of the model",
        "def naive_rms_norm(",
        'ax.set(title="The naive norm leaves its dtype',  # folded on the site
        "The size of the input cancels",  # the answer to a question
        "Three, in exercises/08_norm.ipynb",
        "width of the model, the length of a token",
    ]
    places = [whole.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)
    titles = bookmarks(reader.outline)
    wanted = ["Architecture", "8. RMSNorm and pre-normalization", "Quiz", "Symbols"]
    assert [title for title in titles if title in wanted] == wanted
    # the number in the table of contents is that of the page with the title, and leads there
    number = int(re.search(r"8\. RMSNorm and pre-normalization (\d+)", whole)[1])
    assert "The smallest part of the model" in pages[number - 1]
    goals = [
        reader.get_destination_page_number(reader.named_destinations[note.get_object()["/Dest"]])
        for note in reader.pages[1]["/Annots"]
        if "/Dest" in note.get_object()
    ]
    assert goals[1] == number - 1


def test_the_first_page_leads_to_the_pdf_once_it_is_there(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pdf = importlib.import_module("pdf")
    home = Path(shutil.copy(site / "index.html", tmp_path))
    (tmp_path / "made.pdf").write_bytes(b"%PDF")
    for count in (9, 612):  # the second is printed later
        pdf.offer(tmp_path, tmp_path / "made.pdf", count)
    page = home.read_text(encoding="utf-8")
    assert page.count(f'href="{pdf.NAME}"') == 1 and "612 pages" in page
    assert pdf.NAME not in (site / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / pdf.NAME).read_bytes() == b"%PDF"


def test_without_their_lines_in_settings_no_link_leads_to_the_repository(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    for there in (True, False):
        (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
        conf = runpy.run_path(str(tmp_path / "docs" / "conf.py"))
        context = {"header_buttons": []}
        conf["fit_buttons"](None, "nbs/08_norm", "", context, None)
        assert len(context["header_buttons"]) == there == conf["buttons"]["issues"]
        text = re.sub(r"^(git|discuss)_url.*\n", "", text, flags=re.MULTILINE)


def test_solutions_and_judges_are_not_on_the_site(site):
    names = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    assert not [name for name in names if "solution" in name or "judges" in name]


@pytest.mark.parametrize("name", ["index", "nbs/08_norm", "api/norm", "search", "docs/glossary"])
def test_a_whole_page_breaks_no_rule_of_access(name, address, browser):
    with watched(browser, DESKTOP) as (tab, wrong):
        load(tab, f"{address}/{name}.html")
        assert broken_rules(tab, {"include": ["body"]}) == []
    assert wrong == []


def test_the_claims_are_the_same_in_both_languages_and_computed():
    pages = [nbformat.read(ROOT / f"docs/{name}.ipynb", 4) for name in ("claims", "claims_pl")]
    english, polish = ([c for c in page.cells if c.cell_type == "code"] for page in pages)
    assert [(c.source, c.outputs) for c in english] == [(c.source, c.outputs) for c in polish]
    headings = [re.findall(r"^## \d+", "\n".join(c.source for c in p.cells), re.M) for p in pages]
    assert headings[0] == headings[1] and len(headings[0]) == 20
    names: dict = {}
    for cell in english:
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.chdir(ROOT / "docs"):
            exec(cell.source, names)
        assert said.getvalue() == "".join(out.get("text", "") for out in cell.outputs)


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    "`make lab` over a copy of the notebooks: its address, and the page that it would open."
    if shutil.which("make") is None:
        pytest.skip("no make: `make lab` cannot be run")
    shutil.copytree(ROOT / "nbs", tmp_path / "root" / "nbs")
    port = free_port()
    flags = [
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=secret",
        f"--ServerApp.root_dir={tmp_path / 'root'}",
    ]
    kinds = ("CONFIG", "DATA", "RUNTIME")  # nothing of this user's is read or written
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in kinds}
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        ["make", "lab", f"MY={tmp_path / 'root' / 'my'}", f"ARGS={' '.join(flags)}"],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        env=os.environ | places,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token=secret", process, log)
        yield f"http://127.0.0.1:{port}", tmp_path
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(url: str, process, log, seconds: float = 60):
    "Until the server answers."
    for _ in range(int(seconds * 4)):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        if process.poll() is not None:
            break
        time.sleep(0.25)
    log.seek(0)
    raise AssertionError(f"JupyterLab did not start:\n{log.read()}")


def first_output(path: Path) -> int:
    "The place of a notebook's first code cell that prints something, among its code cells, from 1."
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return next(i for i, cell in enumerate(cells, 1) if cell.outputs)


def test_jupyterlab_opens_the_first_page_and_runs_a_chapter(lab, browser):
    address, folder = lab
    chapter = next(path for path in LECTURES if any(cell.get("outputs") for cell in shown(path)))
    opened = "\n".join(
        path.read_text() for path in (folder / "runtime").glob("jpserver-*-open.html")
    )
    assert "/lab/tree/my/start.ipynb?token=secret" in opened  # the page that a browser is sent to
    assert (folder / "root" / "my" / "start.ipynb").is_file()
    with watched(browser, DESKTOP) as (tab, wrong):
        tab.goto(f"{address}/lab/tree/nbs/{chapter.name}?token=secret")
        tab.locator(".jp-Notebook .jp-MarkdownCell h1").wait_for(timeout=60_000)
        tab.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=300_000)
        # By the menu, which waits for itself: on a busy machine a key that is pressed may be lost.
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        prompt = tab.locator(".jp-InputPrompt", has_text=f"[{first_output(chapter)}]:")
        prompt.wait_for(timeout=300_000)
        cell = tab.locator(".jp-CodeCell", has=prompt)
        cell.locator(".jp-OutputArea-output").first.wait_for(timeout=60_000)
        assert cell.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert "Traceback" not in cell.inner_text()
    assert wrong == []
