"What is generated equals its sources, and the project keeps its own rules."
import ast
import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nbs", "solutions", "exercises")
NOTEBOOKS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
REMEDY = "run `make generate`"


def name(path: Path) -> str:
    "A file as seen from the project's root."
    return path.relative_to(ROOT).as_posix()


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def differences(left: Path, right: Path, suffix: str) -> list[str]:
    "Files that are only in one of two folders, or differ."
    names = {path.relative_to(folder) for folder in (left, right) for path in folder.rglob(f"*{suffix}")}
    names = {path for path in names if not set(path.parts) & {"__pycache__", ".ipynb_checkpoints"}}
    same = [path for path in names if (left / path).exists() and (right / path).exists()
            and filecmp.cmp(left / path, right / path, shallow=False)]
    return sorted(map(str, names.difference(same)))


def nbdev(command: str, folder: Path, *arguments):
    "Run one of nbdev's commands in a folder."
    program = shutil.which(command, path=Path(sys.executable).parent)
    ran = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of everything that a person edits."
    folder = tmp_path_factory.mktemp("copy")
    for path in ("nbs", "solutions"):
        if (ROOT / path).exists():
            shutil.copytree(ROOT / path, folder / path, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "llama_course").mkdir()  # of its __init__ nbdev writes the version's line alone
    shutil.copy(ROOT / "llama_course" / "__init__.py", folder / "llama_course")
    return folder


def test_the_library_is_what_the_notebooks_export(copy):
    nbdev("nbdev_export", copy)
    made = {path.name for path in (copy / "llama_course").glob("*.py")} - {"_modidx.py"}  # it lists the folders, too
    assert [n for n in differences(ROOT / "llama_course", copy / "llama_course", ".py") if n in made] == [], REMEDY


def test_the_exercises_are_what_the_solutions_generate(copy):
    from llama_course.classroom.generate import generate_exercises
    generate_exercises(copy / "solutions", copy / "exercises")
    assert differences(ROOT / "exercises", copy / "exercises", ".ipynb") == [], REMEDY


def test_every_solution_has_its_grader_and_its_lecture():
    for path in (ROOT / "solutions").glob("*.ipynb"):
        assert (ROOT / "nbs" / path.name).exists(), f"nbs/{path.name}"
        assert (ROOT / "llama_course/classroom/judges" / f"{path.stem[3:]}.py").exists(), path.name


def test_the_notebooks_are_clean(copy):
    for folder in ("nbs", "solutions"):
        if (copy / folder).exists():
            nbdev("nbdev_clean", copy, "--fname", folder)
            assert differences(ROOT / folder, copy / folder, ".ipynb") == [], REMEDY


def test_the_readme_is_the_first_notebook():
    sys.path.insert(0, str(ROOT / "docs"))
    from readme import readme
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), REMEDY


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_begins_with_its_title_and_stays_small(path):
    first = next(cell for cell in cells(path) if cell.cell_type == "markdown")
    assert re.match(r"# \S", first.source), "its first text is not the title"
    size = sum(len(json.dumps(output)) for cell in cells(path) for output in cell.get("outputs", []))
    assert size < 1_000_000, f"{size} bytes of output"


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=name)
def test_links_between_files_lead_somewhere(path):
    sys.path.insert(0, str(ROOT / "docs"))
    from readme import links
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in cells(path) if cell.cell_type == "markdown"]
    else:
        texts = [path.read_text(encoding="utf-8")]
    assert [link for text in texts for link in links(text) if not (path.parent / link).exists()] == []


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def lock() -> dict[str, str]:
    "The packages of requirements.lock and their versions."
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    wanted = [Requirement(line) for line in filter(None, lines)]
    for item in wanted:
        assert re.fullmatch(r"==[\w.]+", str(item.specifier)) and not item.url, f"{item}: no exact version"
    return {canonicalize_name(item.name): str(item.specifier)[2:] for item in wanted}


def test_the_lock_holds_what_the_settings_ask_for():
    extras = "demo data eval toxicity smollm fast serve log grading dev docs bench".split()
    keys = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    for item in map(Requirement, " ".join(settings()[key] for key in keys).split()):
        assert item.specifier.contains(lock().get(canonicalize_name(item.name), "0")), item


def test_the_library_imports_at_its_top_only_what_it_requires():
    own = {re.match(r"[\w-]+", item)[0].replace("-", "_") for item in settings()["requirements"].split()}
    for path in (ROOT / "llama_course").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
        tops = {item.split(".")[0] for item in names}
        foreign = tops - sys.stdlib_module_names - own - {"llama_course"}
        assert not foreign, f"{name(path)} imports {foreign} at its top"
