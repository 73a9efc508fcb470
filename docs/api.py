"The reference, from signatures, their comments and docstrings. Used by build.py."

import ast
import re
import textwrap
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "llama_course"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def write_api(
    folder: Path,  # docs/_pages/api
) -> list[str]:  # the pages, as the menu names them
    "Write the reference: a page for each chapter's module, and for each folder of machinery."
    folder.mkdir(parents=True, exist_ok=True)
    chapters = [Module(path) for path in sorted(LIBRARY.glob("[!_]*.py"), key=place)]
    for module in chapters:
        (folder / f"{module.name}.md").write_text(module.page(), encoding="utf-8")
    machinery = [path.parent for path in sorted(LIBRARY.glob("[!_]*/__init__.py"))]
    for path in machinery:
        (folder / f"{path.name}.md").write_text(folder_page(path), encoding="utf-8")
    rows = [f"| [{m.name}]({m.name}.md) | {m.chapter} | {', '.join(m.names)} |" for m in chapters]
    about = [f"| [{path.name}]({path.name}.md) | {purpose(path)} |" for path in machinery]
    names = [*(m.name for m in chapters), *(path.name for path in machinery)]
    parts = [
        "# The library",
        "What `llama_course` offers. A file of the package is a chapter, written in its notebook;"
        " a folder is machinery, written by hand.",
        "## Chapters",
        "\n".join(["| module | written in | names |", "|---|---|---|", *rows]),
        "## Machinery",
        "\n".join(["| folder | what for |", "|---|---|", *about]),
        "\n".join(["```{toctree}", ":hidden:", "", *names, "```"]),
    ]
    (folder / "index.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return ["api/index"]


def place(path: Path) -> str:
    "The notebook that a file is exported from: chapters stand in reading order."
    return Module(path).notebook


def purpose(folder: Path) -> str:
    "The first paragraph of what a folder says of itself."
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return escape(" ".join(text.split("\n\n")[0].split()))


def folder_page(folder: Path) -> str:
    "One page for the files of a folder; the judges, which tell the answers, are left out."
    paths = [path for path in sorted(folder.rglob("*.py")) if "judges" not in path.parts]
    modules = [Module(path) for path in paths]
    parts = [f"# {folder.name}", purpose(folder)]
    for module in modules:
        if module.nodes:
            parts += [f"## {module.dotted}", module.about, *module.entries("###", "####")]
    return "\n\n".join(filter(None, parts)) + "\n"


class Module:
    "One file of the library, read and not imported: defaults are shown as they are written."

    def __init__(self, path: Path):
        self.name = path.stem
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        self.dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.source = path.read_text(encoding="utf-8")
        self.lines = self.source.splitlines()
        tree = ast.parse(self.source)
        self.about = escape(ast.get_docstring(tree) or "")
        defined = [node for node in tree.body if isinstance(node, Function | ast.ClassDef)]
        self.nodes = [node for node in defined if not node.name.startswith("_")]
        self.names = [f"`{node.name}`" for node in self.nodes]

    @property
    def notebook(self) -> str:
        "The notebook that the module is exported from, seen from the project's root."
        found = re.search(r"^# %% \.\./(nbs/\S+\.ipynb)", self.source, re.MULTILINE)
        return found[1] if found else ""

    @property
    def chapter(self) -> str:
        "A link to that notebook."
        return f"[{Path(self.notebook).stem}](../{self.notebook})" if self.notebook else ""

    def page(self) -> str:
        "Where the module comes from, then every public name."
        head = [f"# {self.name}", f"`llama_course.{self.name}`, written in {self.chapter}."]
        return "\n\n".join([*head, *self.entries("##", "###")]) + "\n"

    def entries(self, level: str, below: str) -> list[str]:
        "Every public name, and the public methods of a class below it."
        parts = []
        for node in self.nodes:
            parts.append(self.entry(node, level, node.name))
            if isinstance(node, ast.ClassDef):
                methods = [m for m in node.body if isinstance(m, Function) and m.name[0] != "_"]
                parts += [self.entry(m, below, f"{node.name}.{m.name}") for m in methods]
        return parts

    def entry(self, node, level: str, title: str) -> str:
        "Heading, signature, docstring."
        text = escape(ast.get_docstring(node) or "")
        return f"{level} {title}\n\n```python\n{self.signature(node)}\n```\n\n{text}"

    def signature(self, node) -> str:
        "A function's head; a class's head with its fields or its __init__."
        if isinstance(node, Function):
            return textwrap.dedent(self.head(node))
        inits = [
            item for item in node.body if isinstance(item, Function) and item.name == "__init__"
        ]
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        inside = [self.cut(item.lineno, item.end_lineno) for item in fields]
        inside += [self.head(item) for item in inits]
        return "\n".join([self.head(node), *inside])

    def head(self, node) -> str:
        "The lines before the body, decorators included."
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        body = node.body[0]
        last = max(body.lineno - 1, node.lineno)
        if body.lineno == node.lineno:  # all on one line: what stands before the body
            return self.lines[node.lineno - 1][: body.col_offset].rstrip()
        return self.cut(first, last)

    def cut(self, first: int, last: int) -> str:
        "These lines, counted from 1."
        return "\n".join(self.lines[first - 1 : last])


def escape(text: str) -> str:
    "A docstring as Markdown: what stands between backticks is code, everything else is plain text."
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"([*_<>$\[\]\\#|{}])", r"\\\1", p) for p in pieces
    )
