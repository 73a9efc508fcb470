"""The library's shape: imports run one way, a public name is defined once, and what is not Python
is in the wheel."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "llama_course"
FILES = sorted(path for path in LIBRARY.rglob("*.py") if path.name != "_modidx.py")

# The chapters in reading order, by the numbers of their notebooks.
CHAPTERS = [path.stem[3:] for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))]
FOLDERS = "files corpus launch tasks server report classroom".split()


def module(path: Path) -> str:
    "A file's name as a module, without the package's: `classroom.grading`."
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imported(path: Path):
    "Pairs (own module that is imported, whether that happens within a function)."
    package = ["llama_course", *path.relative_to(LIBRARY).parent.parts]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, outside(tree)))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "llama_course":
                yield own(name.removeprefix("llama_course").removeprefix(".")), id(node) not in top


def outside(tree) -> list:
    "The statements that run when a module is imported, those in `if` and `try` too."
    found = []
    for node in tree.body:
        found.append(node)
        if isinstance(node, ast.If | ast.Try | ast.With):
            found += outside(node)
    return found


def own(name: str) -> str:
    "The module that a dotted name belongs to; the package itself is the empty name."
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def height(name: str) -> float:
    "Where a module stands: it may import what stands lower."
    first = name.split(".")[0]
    if first in ("", "support"):  # the package itself: its version
        return 0
    if first in CHAPTERS and "." not in name:
        return 1 + CHAPTERS.index(first)
    if first in FOLDERS:
        return 100
    return 200  # command and __main__


EDGES = {(module(path), name, inside) for path in FILES for name, inside in imported(path)}


def test_every_file_has_its_place():
    assert [
        name
        for name in MODULES
        if height(name) == 200 and name.split(".")[0] != "command" and name not in ("", "__main__")
    ] == []


def test_imports_run_one_way():
    wrong = {f"{a} -> {b}" for a, b, _ in EDGES if a and height(b) > height(a)}
    assert wrong == set()


def test_no_circle_of_imports():
    below = defaultdict(set)
    for a, b, _ in EDGES:
        if a != b and a:
            below[a].add(b)
    done, path, circles = set(), [], set()

    def visit(name):
        if name in path:
            circle = path[path.index(name) :]
            first = circle.index(min(circle))
            circles.add(" -> ".join([*circle[first:], *circle[:first], circle[first]]))
        if name in path or name in done:
            return
        path.append(name)
        for other in sorted(below[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(below):
        visit(name)
    assert circles == set()


def test_own_modules_are_imported_at_the_top():
    # `command` imports what a command needs when it runs: `--help` does not wait for torch.
    inside = {f"{a} -> {b}" for a, b, deep in EDGES if deep and a and a.split(".")[0] != "command"}
    assert inside == set()


def defined(path: Path) -> set[str]:
    "The public names that a module gives a meaning: functions, classes, constants."
    names = set()
    for node in outside(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
            names |= set() if patched else {node.name}
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {
                n.id
                for target in node.targets
                for n in ast.walk(target)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_is_defined_once():
    places = defaultdict(list)
    for path in FILES:
        if "judges" not in path.parts:  # a judge's file names its exercise and its mistakes
            for name in defined(path):
                places[name].append(module(path))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert twice == {}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(LIBRARY, tmp_path / "llama_course", ignore=ignore)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (
        path for path in LIBRARY.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
