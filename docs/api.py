"The reference, from signatures, their comments and docstrings. Used by build.py."

import ast
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "llama_course"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Entry:
    "A public name of the library: where the reference has it, and what it says there."

    module: str  # norm, or support.disk
    name: str  # RMSNorm, or Llama.save
    kind: str  # function, class, method, data
    head: str  # name and arguments, as Sphinx takes them
    code: str  # as it is written, with its comments
    about: str  # Markdown
    line: int  # in the file
    cell: str = ""  # the notebook's cell that it is exported from

    @property
    def full(self) -> str:
        "The name as it is imported."
        return f"llama_course.{self.module}.{self.name}"


def library() -> list["Module"]:
    "Every file of the library, chapters first and in reading order; the judges are left out."
    chapters = sorted((Module(path) for path in LIBRARY.glob("[!_]*.py")), key=lambda m: m.notebook)
    paths = [
        path
        for folder in sorted(LIBRARY.glob("[!_]*/__init__.py"))
        for path in sorted(folder.parent.rglob("*.py"))
        if "judges" not in path.parts and "benchmarks" not in path.parts
    ]
    return chapters + [Module(path) for path in paths]


def short_names(modules: list["Module"]) -> dict[str, Entry]:
    "What a name in prose stands for: each public name, and `Class.method`."
    return {entry.name: entry for module in modules for entry in module.entries}


def write_api(
    folder: Path,  # docs/_pages/api
    modules: list["Module"],
    source: str,  # where a file is shown, with {path} and {line}; empty if nowhere
) -> list[str]:  # the pages, as the menu names them
    "Write the reference: a page for each chapter's module, and for each folder of machinery."
    folder.mkdir(parents=True, exist_ok=True)
    chapters = [module for module in modules if module.notebook]
    for module in chapters:
        (folder / f"{module.name}.md").write_text(chapter_page(module, source), encoding="utf-8")
    machinery = [path.parent for path in sorted(LIBRARY.glob("[!_]*/__init__.py"))]
    for path in machinery:
        inside = [module for module in modules if module.path.is_relative_to(path)]
        (folder / f"{path.name}.md").write_text(folder_page(path, inside, source), encoding="utf-8")
    rows = [
        f"| [{m.name}]({m.name}.md) | {m.chapter} | "
        f"{', '.join(f'`{entry.name}`' for entry in m.entries if entry.kind != 'method')} |"
        for m in chapters
    ]
    about = [f"| [{path.name}]({path.name}.md) | {purpose(path)} |" for path in machinery]
    names = [*(m.name for m in chapters), *(path.name for path in machinery)]
    parts = [
        "# The library",
        "What `llama_course` offers. A file of the package is a chapter, written in its notebook;"
        " a folder is machinery, written by hand. Every name is in the [index](genindex).",
        "## Chapters",
        "\n".join(["| module | written in | names |", "|---|---|---|", *rows]),
        "## Machinery",
        "\n".join(["| folder | what for |", "|---|---|", *about]),
        "\n".join(["```{toctree}", ":hidden:", "", *names, "```"]),
    ]
    (folder / "index.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return ["api/index"]


def purpose(folder: Path) -> str:
    "The first paragraph of what a folder says of itself."
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return escape(" ".join(text.split("\n\n")[0].split()))


def chapter_page(module: "Module", source: str) -> str:
    "Where the module comes from, then every public name."
    head = [f"# {module.name}", f"`llama_course.{module.name}`, written in {module.chapter}."]
    return "\n\n".join([*head, *described(module, source, "##")]) + "\n"


def folder_page(folder: Path, modules: list["Module"], source: str) -> str:
    "One page for the files of a folder."
    parts = [f"# {folder.name}", purpose(folder)]
    for module in modules:
        if module.entries:
            parts += [f"## {module.dotted}", module.about, *described(module, source, "###")]
    return "\n\n".join(filter(None, parts)) + "\n"


def described(module: "Module", source: str, level: str) -> list[str]:
    "Every public name with its signature, what it says of itself, and where it is written."
    parts = []
    for entry in module.entries:
        links = (
            [f"[the section that builds it]({module.section(entry.cell)})"] if entry.cell else []
        )
        if source:
            place = module.path.relative_to(ROOT).as_posix()
            links.append(f"[source]({source.format(path=place, line=entry.line)})")
        rows = [
            f"{level}{'#' if entry.kind == 'method' else ''} {entry.name}",
            f"`````{{py:{entry.kind}}} {entry.head}",
            f":module: llama_course.{entry.module}",
            "",
            entry.about,
            "",
            f"````python\n{entry.code}\n````",
            "",
            " · ".join(links),
            "`````",
        ]
        parts.append("\n".join(rows))
    return parts


class Module:
    "One file of the library, read and not imported: defaults are shown as they are written."

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        self.dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text(encoding="utf-8")
        self.lines = source.splitlines()
        found = re.search(r"^# %% \.\./(nbs/\S+\.ipynb)", source, re.MULTILINE)
        self.notebook = found[1] if found else ""  # seen from the project's root
        tree = ast.parse(source)
        self.about = escape(ast.get_docstring(tree) or "")
        entries = [entry for node in tree.body for entry in self.read(node)]
        self.entries = list({entry.name: entry for entry in reversed(entries)}.values())[::-1]

    @property
    def chapter(self) -> str:
        "A link to the notebook that the module is exported from."
        return f"[{Path(self.notebook).stem}](../{self.notebook})" if self.notebook else ""

    def read(self, node: ast.stmt, owner: str = "") -> list[Entry]:
        "The entries that one statement makes: a class also those of its methods."
        name = getattr(node, "name", "") or constant(node)
        if not name or name.startswith("_"):
            return []
        if isinstance(node, Function):
            owner = owner or patched(node)
            if owner.startswith("_"):
                return []
            head = f"{name}({arguments(node, bool(owner))})"
            is_property = any(getattr(d, "id", "") == "property" for d in node.decorator_list)
            head = name if is_property else head
            if owner:
                return [self.entry(node, "method", f"{owner}.{head}", f"{owner}.{name}")]
            return [self.entry(node, "function", head, name)]
        if isinstance(node, ast.ClassDef):
            inside = [item for part in node.body if isinstance(part, Function)
                      for item in self.read(part, name)]  # fmt: skip
            return [self.entry(node, "class", name, name), *inside]
        return [] if owner else [self.entry(node, "data", name, name)]

    def entry(self, node, kind: str, head: str, name: str) -> Entry:
        "One name, described."
        about = escape(ast.get_docstring(node) or "") if kind != "data" else self.remark(node)
        cells = [line for line in self.lines[: node.lineno] if line.startswith("# %% ../")]
        cell = cells[-1].rpartition("#")[2] if cells else ""
        dotted = self.dotted or "llama_course"
        return Entry(dotted, name, kind, head, self.code(node), about, node.lineno, cell)

    def remark(self, node) -> str:
        "What stands behind a constant, or above it, as its comment."
        behind = re.search(r"\s{2}# (.*)", self.lines[node.lineno - 1])
        above = re.match(r"# (?!%%)(.*)", self.lines[node.lineno - 2]) if node.lineno > 1 else None
        return escape((behind or above)[1]) if behind or above else ""

    def code(self, node) -> str:
        "A function's head; a class's head with its fields or its __init__; a constant's value."
        if isinstance(node, Function):
            return textwrap.dedent(self.head(node))
        if isinstance(node, ast.ClassDef):
            inits = [i for i in node.body if isinstance(i, Function) and i.name == "__init__"]
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            inside = [self.cut(item.lineno, item.end_lineno) for item in fields]
            return "\n".join([self.head(node), *inside, *map(self.head, inits)])
        lines = self.cut(node.lineno, node.end_lineno).splitlines()
        return "\n".join(lines if len(lines) <= 12 else [*lines[:10], "    ..."])

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

    def section(self, cell: str) -> str:
        "The place in the notebook under whose heading the cell stands, seen from the reference."
        heading = ""
        for one in json.loads((ROOT / self.notebook).read_text(encoding="utf-8"))["cells"]:
            text = "".join(one["source"])
            if one["cell_type"] == "markdown":
                found = re.findall(r"^##+ (.*)", text, re.MULTILINE)
                heading = found[-1] if found else heading
            if one.get("id") == cell:
                break
        return f"../{self.notebook}" + (f"#{anchor(heading)}" if heading else "")


def anchor(heading: str) -> str:
    "What GitHub and MyST call a heading in a link."
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)|\$", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def constant(node: ast.stmt) -> str:
    "The name that is given a value; empty if it is not written in capitals."
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return ""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    name = getattr(targets[0], "id", "") if len(targets) == 1 else ""
    return name if re.fullmatch(r"[A-Z][A-Z0-9_]+", name) else ""


def patched(node: Function) -> str:
    "The class that a function written outside is a method of; empty if of none."
    if not any(getattr(d, "id", "") == "patch" for d in node.decorator_list):
        return ""
    first = [*node.args.posonlyargs, *node.args.args][0]
    return ast.unparse(first.annotation)


def arguments(node: Function, is_method: bool) -> str:
    "The names and defaults of the arguments, without self."
    args = ast.parse(f"def f({ast.unparse(node.args)}): 0").body[0].args
    if is_method and not any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list):
        (args.posonlyargs or args.args)[:1] = []
    for one in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if one:
            one.annotation = None
    return ast.unparse(args)


def escape(text: str) -> str:
    "A docstring as Markdown: what stands between backticks is code, everything else is plain text."
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"([*_<>$\[\]\\#|{}])", r"\\\1", p) for p in pieces
    )
