"""A learner's own folder: exercises to work in, answers that no update of the course loses.

my/08_norm.ipynb      the learner's
my/start.ipynb        the first page: progress, and a link to what is next; made anew each time
my/progress.jsonl     a line for each `check`
my/.given/            the notebooks as they were given, to see what the learner has changed
my/older/             a learner's notebook as it was before an update, never removed
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_course.classroom.progress import PROGRESS, progress
from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError, disk_errors

GIVEN, OLDER, FIRST_PAGE = ".given", "older", "start.ipynb"
NEW, SAME, UPDATED, RESTORED = "new", "as it was", "updated, answers kept", "could not be read: new"


@dataclass(frozen=True)
class Started:
    "What became of one notebook."

    path: Path
    state: str  # NEW, SAME, UPDATED or RESTORED
    kept: Path | None = None  # the learner's notebook as it was before


def exercise_folder() -> Path:
    "The folder of the course's exercises. Raises `UserError` where the course is not at hand."
    home = Path(__file__).resolve().parents[2]
    for folder in (home / "exercises", Path.cwd() / "exercises"):
        if any(folder.glob("[0-9]*.ipynb")):
            return folder
    raise UserError("the exercises are not here: they come with the course's repository; clone it,"
                    " and start in its folder")  # fmt: skip


def start(
    chapters: list[str] | tuple[str, ...] = (),  # "08", "8" or "08_norm"; none: all
    folder: str | os.PathLike = "my",  # the workspace
    exercises: Path | None = None,  # folder of the exercises as they are given
) -> list[Started]:
    """Exercises to work in; those that are there keep their answers.

    Raises `UserError` for a chapter without exercises, and where nothing can be written.
    """
    given, place = exercises or exercise_folder(), Path(folder)
    if place.resolve() == given.resolve() or given.resolve() in place.resolve().parents:
        raise UserError(f"{place} is the course's own folder: choose another --folder")
    with disk_errors(place):
        for name in (place, place / GIVEN):
            name.mkdir(parents=True, exist_ok=True)
        (place / PROGRESS).touch()
    done = [_start_one(path, place) for path in _chosen(chapters, given)]
    write_first_page(place)
    return done


def _chosen(chapters: list[str] | tuple[str, ...], given: Path) -> list[Path]:
    all_of_them = {path.stem: path for path in sorted(given.glob("[0-9]*.ipynb"))}
    chosen = []
    for asked in chapters:
        number = re.fullmatch(r"0*(\d+)(_.*)?", asked.removesuffix(".ipynb"))
        names = [n for n in all_of_them if number and n.startswith(f"{int(number[1]):02}_")]
        if not names:
            some = ", ".join(name.split("_")[0] for name in all_of_them)
            raise UserError(f"no exercises for chapter {asked}: there are some for {some}")
        chosen += [all_of_them[name] for name in names]
    return chosen or list(all_of_them.values())


def _start_one(given: Path, folder: Path) -> Started:
    "Copies one notebook, or brings the learner's up to date."
    mine, last, new = folder / given.name, folder / GIVEN / given.name, given.read_bytes()
    before = last.read_bytes() if last.is_file() else None
    mine_was = mine if mine.exists() else _under_another_number(given, folder)
    if mine.exists() and before == new:
        return Started(mine, SAME)
    kept, state, text = None, NEW, new
    if mine_was is not None:
        old_given = folder / GIVEN / mine_was.name
        kept = _keep(mine_was, folder / OLDER)
        try:
            old = json.loads(mine_was.read_text(encoding="utf-8-sig"))
            was_given = json.loads(old_given.read_bytes()) if old_given.is_file() else None
            merged, state = carry(old, was_given, json.loads(new)), UPDATED
            text = (json.dumps(merged, indent=1, ensure_ascii=False) + "\n").encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            state = RESTORED  # it is no notebook any more; the file itself was kept
    for path, content in ((mine, text), (last, new)):
        with atomic_write(path) as file:
            file.write(content)
    if mine_was is not None and mine_was != mine:
        mine_was.unlink()
        (folder / GIVEN / mine_was.name).unlink(missing_ok=True)
    return Started(mine, state, kept)


def _under_another_number(given: Path, folder: Path) -> Path | None:
    "The learner's notebook of this chapter, if the chapter has moved since."
    name = given.stem.split("_", 1)[1]
    now = {path.name for path in given.parent.glob("*.ipynb")}
    moved = [path for path in sorted(folder.glob(f"*_{name}.ipynb")) if path.name not in now]
    return moved[0] if moved else None


def _keep(path: Path, folder: Path) -> Path:
    "A copy under a name that is free."
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        number = 1
        while (copy := folder / f"{path.stem}-{number}{path.suffix}").exists():
            number += 1
        shutil.copy2(path, copy)
    return copy


# ------------------------------------------------------------------- carrying answers


def _source(cell: dict) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _name(cell: dict) -> str:
    "What a cell is called across versions: nbgrader's name of it, else its id."
    marks = cell.get("metadata", {}).get("nbgrader") or {}
    return marks.get("grade_id") or f"id {cell.get('id')}"


def _is_answer(cell: dict) -> bool:
    return bool((cell.get("metadata", {}).get("nbgrader") or {}).get("solution"))


def carry(
    mine: dict[str, Any],  # a learner's notebook
    given: dict[str, Any] | None,  # as it was given then; None: not known
    new: dict[str, Any],  # as it is given now
) -> dict[str, Any]:
    """The new notebook with the learner's answers, outputs and own cells.

    Answers go by their names. Where both the learner and the course have changed a cell that is no
    answer, the course's stands, with the learner's below it.
    """
    was = {_name(cell): _source(cell) for cell in (given or {}).get("cells", [])}
    theirs = {_name(cell): cell for cell in mine["cells"]}
    now = {_name(cell) for cell in new["cells"]}
    followers, last = dict[str, list[dict]](), ""  # the learner's own cells, after which they stand
    for cell in mine["cells"]:
        name = _name(cell)
        gone = name not in now
        own = gone and name not in was and given is not None
        lost = gone and _source(cell) != was.get(name) and (_is_answer(cell) or given is None)
        if own or lost:
            followers.setdefault(last, []).append(_unlocked(cell))
        elif not gone:
            last = name
    cells = followers.pop("", [])
    for cell in new["cells"]:
        name, old = _name(cell), theirs.get(_name(cell))
        changed = old is not None and _source(old) != was.get(name, _source(cell))
        if old is not None and changed and (_is_answer(cell) or was.get(name) == _source(cell)):
            cell = cell | {"source": old["source"]}
        elif old is not None and changed and not cell.get("metadata", {}).get("nbgrader"):
            followers.setdefault(name, []).insert(0, _unlocked(old))
        if old is not None and _source(old) == _source(cell) and cell["cell_type"] == "code":
            cell = cell | {k: old[k] for k in ("outputs", "execution_count") if k in old}
        cells += [cell, *followers.get(name, [])]
    return new | {"cells": _with_own_ids(cells)}


def _unlocked(cell: dict) -> dict:
    "A cell of the learner's own."
    meta = {k: v for k, v in cell.get("metadata", {}).items() if k != "nbgrader"}
    return cell | {"metadata": meta}


def _with_own_ids(cells: list[dict]) -> list[dict]:
    "The cells, each with an id that no other has."
    seen, result = set[str](), []
    for cell in cells:
        name, number = str(cell.get("id", "own")), 1
        while name in seen:
            name, number = f"{cell.get('id', 'own')}-{number}"[:64], number + 1
        seen.add(name)
        result.append(cell | {"id": name})
    return result


# ------------------------------------------------------------------- the first page


def write_first_page(
    folder: Path,  # a workspace
) -> Path:
    "The page that `make lab` opens: how far the learner is, and a link to what is next."
    reached = progress(folder)
    texts = (
        "# Your LLaMA course\n\n" + reached.as_markdown(),
        "`make lab` and `llama-course start` make this page anew. To see where you are now, run the"
        " cell below. [The course](../nbs/index.ipynb) ·"
        " [the first chapter](../nbs/01_bigram.ipynb) ·"
        " [your own LLaMA](../nbs/30_capstone.ipynb)",
    )
    if folder.resolve().parent != Path(__file__).resolve().parents[2]:
        texts = (texts[0], texts[1].split(" [The course]")[0])
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": f"text{i}", "metadata": {}, "source": text}
        for i, text in enumerate(texts)
    ]
    code = "from llama_course.classroom import progress\n\nprogress()"
    cells.append({"cell_type": "code", "id": "progress", "metadata": {}, "source": code,
                  "outputs": [], "execution_count": None})  # fmt: skip
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    page = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    with atomic_write(folder / FIRST_PAGE) as file:
        file.write((json.dumps(page, indent=1, ensure_ascii=False) + "\n").encode())
    return folder / FIRST_PAGE
