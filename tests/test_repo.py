"What is generated equals its sources, and the project keeps its own rules."

import ast
import configparser
import filecmp
import importlib
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
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "docs")]
import generate as generator  # noqa: E402
from readme import links, readme  # noqa: E402

FOLDERS = ("nbs", "solutions", "exercises")
NOTEBOOKS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
REMEDY = "run `make generate`: it loses nothing, an edit of an exported file goes into its notebook"


def name(path: Path) -> str:
    "A file as seen from the project's root."
    return path.relative_to(ROOT).as_posix()


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def differences(left: Path, right: Path, suffix: str) -> list[str]:
    "Files that are only in one of two folders, or differ."
    names = {
        path.relative_to(folder) for folder in (left, right) for path in folder.rglob(f"*{suffix}")
    }
    names = {path for path in names if not set(path.parts) & {"__pycache__", ".ipynb_checkpoints"}}
    same = [
        path
        for path in names
        if (left / path).exists()
        and (right / path).exists()
        and filecmp.cmp(left / path, right / path, shallow=False)
    ]
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
            shutil.copytree(
                ROOT / path, folder / path, ignore=shutil.ignore_patterns(".ipynb_checkpoints")
            )
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "llama_course").mkdir()  # of its __init__ nbdev writes the version's line alone
    shutil.copy(ROOT / "llama_course" / "__init__.py", folder / "llama_course")
    return folder


def test_the_library_is_what_the_notebooks_export(copy):
    nbdev("nbdev_export", copy)
    made = {path.name for path in (copy / "llama_course").glob("*.py")} - {
        "_modidx.py"
    }  # it lists the folders, too
    assert [
        n for n in differences(ROOT / "llama_course", copy / "llama_course", ".py") if n in made
    ] == [], REMEDY


@pytest.fixture
def small(tmp_path):
    "A project of two chapters, in git, its library exported."
    (tmp_path / "nbs").mkdir()
    for chapter in ("08_norm", "09_feedforward"):
        shutil.copy(ROOT / "nbs" / f"{chapter}.ipynb", tmp_path / "nbs")
    shutil.copy(ROOT / "settings.ini", tmp_path)
    assert generator.generate(tmp_path) == []
    (tmp_path / ".gitignore").write_text(".exported.json\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    return tmp_path


def replace_text(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


FILE, NOTEBOOK = "llama_course/norm.py", "nbs/08_norm.ipynb"


@pytest.mark.parametrize("record", [True, False])
def test_an_edit_of_an_exported_file_is_carried_back(small, record, capsys):
    if not record:  # a fresh clone
        (small / generator.RECORD).unlink()
    replace_text(small / FILE, "self.eps", "self.edited")
    assert generator.generate(small) == []
    assert "self.edited" in (small / NOTEBOOK).read_text(encoding="utf-8")
    assert "self.edited" in (small / FILE).read_text(encoding="utf-8")
    assert f"{FILE} was edited by hand: the edit is now in {NOTEBOOK}." in capsys.readouterr().out
    lines = subprocess.run(
        ["git", "diff", "-U0", NOTEBOOK], cwd=small, capture_output=True, text=True
    ).stdout.splitlines()
    changed = [line for line in lines if line.startswith("+ ")]
    assert changed and all("self.edited" in line for line in changed)  # and nothing else


def test_an_edit_of_a_notebook_is_exported_again_and_again(small):
    for old, new in (("self.eps", "self.a"), ("self.a", "self.b")):
        replace_text(small / NOTEBOOK, old, new)
        assert generator.generate(small) == []
        assert new in (small / FILE).read_text(encoding="utf-8")


def test_where_both_were_edited_nothing_is_written(small):
    replace_text(small / FILE, "self.eps", "self.edited")
    replace_text(small / NOTEBOOK, "self.eps", "self.other")
    before = {path: (small / path).read_bytes() for path in (FILE, NOTEBOOK)}
    (line,) = generator.generate(small)
    assert FILE in line and NOTEBOOK in line and "nbdev_update" in line
    assert before == {path: (small / path).read_bytes() for path in before}
    nbdev("nbdev_update", small, "--fname", FILE)  # as the line says
    assert generator.generate(small) == []
    assert "self.edited" in (small / NOTEBOOK).read_text(encoding="utf-8")


def test_an_edit_outside_of_the_cells_is_named(small):
    replace_text(small / FILE, "# AUTOGENERATED", "EXTRA = 1\n\n# AUTOGENERATED")
    (line,) = generator.generate(small)
    assert FILE in line and "EXTRA = 1" in (small / FILE).read_text(encoding="utf-8")


def test_a_notebook_that_was_opened_is_cleaned_and_nothing_is_lost(small):
    path = small / NOTEBOOK
    before = path.read_bytes()
    notebook = json.loads(before)
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.12"}  # JupyterLab
    notebook["cells"][3]["metadata"]["collapsed"] = True
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert path.read_bytes() != before and generator.generate(small) == []
    assert path.read_bytes() == before


def test_the_exercises_are_what_the_solutions_generate(copy):
    from llama_course.classroom.generate import generate_exercises

    generate_exercises(copy / "solutions", copy / "exercises")
    assert differences(ROOT / "exercises", copy / "exercises", ".ipynb") == [], REMEDY


def test_every_solution_has_its_grader_and_its_lecture():
    for path in (ROOT / "solutions").glob("*.ipynb"):
        assert (ROOT / "nbs" / path.name).exists(), f"nbs/{path.name}"
        assert (ROOT / "llama_course/classroom/judges" / path.stem[3:] / "__init__.py").exists(), (
            path.name
        )


def test_the_notebooks_are_clean(copy):
    for folder in ("nbs", "solutions"):
        if (copy / folder).exists():
            nbdev("nbdev_clean", copy, "--fname", folder)
            assert differences(ROOT / folder, copy / folder, ".ipynb") == [], REMEDY


def test_the_readme_is_the_first_notebook():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), REMEDY


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_begins_with_its_title_and_stays_small(path):
    first = next(cell for cell in cells(path) if cell.cell_type == "markdown")
    assert re.match(r"# \S", first.source), "its first text is not the title"
    size = sum(
        len(json.dumps(output)) for cell in cells(path) for output in cell.get("outputs", [])
    )
    assert size < 1_000_000, f"{size} bytes of output"


def test_plots_say_nothing_that_differs_between_runs():
    wrong = []
    for path in NOTEBOOKS:
        for cell in cells(path):
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                if re.search(r"<dc:date>|Matplotlib v", "".join(data.get("image/svg+xml", ""))):
                    wrong.append(f"{name(path)}: {cell.id}")
    assert wrong == []


@pytest.mark.parametrize(
    "path",
    [*NOTEBOOKS, ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"],
    ids=name,
)
def test_links_between_files_lead_somewhere(path):
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in cells(path) if cell.cell_type == "markdown"]
    else:
        texts = [path.read_text(encoding="utf-8")]
    assert [
        link for text in texts for link in links(text) if not (path.parent / link).exists()
    ] == []


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def lock() -> dict[str, str]:
    "The packages of requirements.lock and their versions."
    lines = [
        line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()
    ]
    wanted = [Requirement(line) for line in filter(None, lines)]
    for item in wanted:
        assert re.fullmatch(r"==[\w.]+", str(item.specifier)) and not item.url, (
            f"{item}: no exact version"
        )
    return {canonicalize_name(item.name): str(item.specifier)[2:] for item in wanted}


def test_the_lock_holds_what_the_settings_ask_for():
    extras = "demo data eval toxicity smollm fast serve log grading dev docs bench".split()
    keys = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    for item in map(Requirement, " ".join(settings()[key] for key in keys).split()):
        assert item.specifier.contains(lock().get(canonicalize_name(item.name), "0")), item


def test_the_library_imports_at_its_top_only_what_it_requires():
    own = {
        re.match(r"[\w-]+", item)[0].replace("-", "_")
        for item in settings()["requirements"].split()
    }
    for path in (ROOT / "llama_course").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [
            alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [
            node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level
        ]
        tops = {item.split(".")[0] for item in names}
        foreign = tops - sys.stdlib_module_names - own - {"llama_course"}
        assert not foreign, f"{name(path)} imports {foreign} at its top"


SCRIPTS = [
    path for folder in ("benchmarks", "tools", "docs") for path in ROOT.glob(f"{folder}/*.py")
]


@pytest.mark.parametrize(
    "path", sorted(SCRIPTS), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_script_reads_its_command_line_by_a_library(path):
    text = path.read_text(encoding="utf-8")
    if '__name__ == "__main__"' in text:  # then --help helps, and a wrong word is refused by name
        assert "typer.run(" in text or "ArgumentParser(" in text


@pytest.mark.parametrize(
    "path", sorted(SCRIPTS), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_script_takes_from_the_library_what_is_there(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llama_course."):
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == [], node.module
