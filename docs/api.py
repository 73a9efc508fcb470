"The reference: one page a module, from its signatures, their comments and its docstrings. Used by build.py."
import ast
import re
import textwrap
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "llama_course"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def write_api(
    folder: Path,  # docs/_pages/api
) -> list[str]:  # the pages, as the menu names them
    "Write the reference of every module that a notebook exports."
    folder.mkdir(parents=True, exist_ok=True)
    modules = [Module(path) for path in sorted(LIBRARY.glob("[!_]*.py"))]
    for module in modules:
        (folder / f"{module.name}.md").write_text(module.page(), encoding="utf-8")
    rows = [f"| [{m.name}]({m.name}.md) | {m.chapter} | {', '.join(m.names)} |" for m in modules]
    parts = ["# The library",
             "What `llama_course` offers, module by module. Each is written in one notebook.",
             "\n".join(["| module | written in | names |", "|---|---|---|", *rows]),
             "\n".join(["```{toctree}", ":hidden:", "", *(m.name for m in modules), "```"])]
    (folder / "index.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return ["api/index"]


class Module:
    "One file of the library, read and not imported: defaults are shown as they are written."

    def __init__(self, path: Path):
        self.name = path.stem
        self.source = path.read_text(encoding="utf-8")
        self.lines = self.source.splitlines()
        body = ast.parse(self.source).body
        assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
        public = ast.literal_eval(assigned["__all__"]) if "__all__" in assigned else []
        defined = [node for node in body if isinstance(node, Function | ast.ClassDef)]
        self.nodes = [node for node in defined if node.name in public]
        self.names = [f"`{node.name}`" for node in self.nodes]

    @property
    def chapter(self) -> str:
        "A link to the notebook that the module is exported from."
        notebook = re.search(r"^# %% \.\./(nbs/\S+\.ipynb)", self.source, re.MULTILINE)
        return f"[{Path(notebook[1]).stem}](../{notebook[1]})" if notebook else ""

    def page(self) -> str:
        "Where the module comes from, then every public name."
        parts = [f"# {self.name}", f"`llama_course.{self.name}`, written in {self.chapter}."]
        for node in self.nodes:
            parts.append(self.entry(node, "##", node.name))
            if isinstance(node, ast.ClassDef):
                methods = [item for item in node.body if isinstance(item, Function) and item.name[0] != "_"]
                parts += [self.entry(item, "###", f"{node.name}.{item.name}") for item in methods]
        return "\n\n".join(parts) + "\n"

    def entry(self, node, level: str, title: str) -> str:
        "Heading, signature, docstring."
        text = escape(ast.get_docstring(node) or "")
        return f"{level} {title}\n\n```python\n{self.signature(node)}\n```\n\n{text}"

    def signature(self, node) -> str:
        "A function's head; a class's head with its fields or its __init__."
        if isinstance(node, Function):
            return textwrap.dedent(self.head(node))
        inits = [item for item in node.body if isinstance(item, Function) and item.name == "__init__"]
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
            return self.lines[node.lineno - 1][:body.col_offset].rstrip()
        return self.cut(first, last)

    def cut(self, first: int, last: int) -> str:
        "These lines, counted from 1."
        return "\n".join(self.lines[first - 1:last])


def escape(text: str) -> str:
    "A docstring as Markdown: what stands between backticks is code, everything else is plain text."
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>$\[\]\\#|{}])", r"\\\1", p) for p in pieces)
