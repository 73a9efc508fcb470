"Items of a task: from the package, from files, or from Hugging Face; and the shots before them."

import ast
import csv
import io
import json
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tasks.registry import Task, find_task

FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv")


class Row(dict):
    "A row of a data set, which names the column that it does not have."

    where = ""

    def __missing__(self, name: str) -> Any:
        has = ", ".join(map(repr, self))
        raise UserError(f"{self.where}: there is no column {name!r}, only {has}.")


def text_of(row: dict, name: str) -> str:
    "The text in a column. Raises `ValueError` for anything else."
    if not isinstance(value := row[name], str):
        raise ValueError(f"{name!r} is {value!r:.60}, and no text")
    return value


def texts_of(row: dict, name: str) -> tuple[str, ...]:
    "The texts in a column: a list, as JSON has it, or written out in a cell of a table."
    value = _written_out(row[name])
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name!r} is {value!r:.60}, and no list of texts")
    if wrong := [v for v in value if not isinstance(v, str)]:
        raise ValueError(f"{name!r} has {wrong[0]!r:.60} in its list, which is no text")
    return tuple(value)


def table_of(row: dict, name: str) -> "Row":
    "The object in a column: as JSON has it, or written out in a cell of a table."
    value = _written_out(row[name])
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is {value!r:.60}, and no object")
    inside = Row(value)
    inside.where = f"{getattr(row, 'where', 'a row')}, {name!r}"
    return inside


def label_of(
    row: dict,
    name: str,
    n: int,  # labels that there are
    first: int = 0,  # the smallest
) -> int:  # 0 to n - 1
    "The label in a column: a whole number, or a text that is one. Raises `ValueError`."
    value = _plain(row[name])
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value[:20])
    if type(value) is not int or not first <= value < first + n:
        raise ValueError(f"{name!r} is {value!r:.60}, and not from {first} to {first + n - 1}")
    return value - first


def truth_of(row: dict, name: str) -> bool:
    "Yes or no in a column: true and false, 1 and 0, in JSON or in a cell of a table."
    value = _plain(row[name])
    known = {"true": True, "false": False, "1": True, "0": False}
    if not isinstance(value, bool | int | str) or str(value).strip().lower() not in known:
        raise ValueError(f"{name!r} is {value!r:.60}, and neither true nor false")
    return known[str(value).strip().lower()]


def _plain(value: Any) -> Any:
    "The value as JSON has it: pandas and parquet bring numpy's."
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _written_out(value: Any) -> Any:
    "The value; if it is the text of a list or an object, what is written there."
    value = _plain(value)
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(value.strip())
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(value).readline)]
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        raise ValueError(f"{value[:60]!r} is no list and no object: write it as JSON") from None
    texts = (tokenize.STRING, tokenize.STRING)
    if texts in zip(kinds, kinds[1:]):  # numpy's form: Python would join the two
        raise ValueError(f"{value[:60]!r} has texts without a comma: write it as JSON")
    return found


def file_rows(path: Path) -> list[dict]:
    "The rows of a file: JSON objects, one per line or in a list; or columns of a .csv or .tsv."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}.") from None
    if path.suffix in (".csv", ".tsv"):
        return _table_rows(text, path)
    if path.suffix == ".json" and (rows := _listed_rows(text)) is not None:
        for n, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {n} is no JSON object.")
        return rows
    rows = []
    for n, line in enumerate(text.split("\n"), 1):  # JSON may hold other ends of lines
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {n} is not JSON ({error}).") from None
        if not isinstance(rows[-1], dict):
            raise UserError(f"{path}, line {n} is no JSON object.")
    return rows


def _listed_rows(text: str) -> list | None:
    "The rows of a file that is one JSON value: a list, or an object with it; None for others."
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):  # as TriviaQA's authors have it, and others
        value = next((value[key] for key in ("Data", "data", "rows") if key in value), None)
    return value if isinstance(value, list) else None


def _table_rows(text: str, path: Path) -> list[dict]:
    bar = "\t" if path.suffix == ".tsv" else ","
    rows = []
    try:
        for n, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=bar), 1):
            if None in row or None in row.values():
                wrong = "more" if None in row else "fewer"
                raise UserError(f"{path}, row {n} has {wrong} cells than the first line has names.")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path} is no table ({error}).") from None
    return rows


def hub_rows(
    path: str,
    config: str | tuple | None,  # a part of the data set; several; or it has none
    split: str,
) -> tuple[list[dict], str]:  # rows, and where they are from, in words
    "The rows of a data set of Hugging Face."
    parts = config if isinstance(config, tuple) else (config,)
    datasets = need("datasets", "data")
    named = " ".join(part or "default" for part in parts)
    where = f"{path} ({named}, {split}) of Hugging Face"
    try:
        found = [row for part in parts for row in datasets.load_dataset(path, part, split=split)]
    except Exception as error:  # of many kinds: no network, no such split, ...
        why = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"cannot load {where}: {type(error).__name__} {why[:200]}") from None
    return found, where


def task_rows(
    task: Task,
    source: str | Path = "own",  # "own", "hf", a file, or a folder with NAME.jsonl, .csv, ...
    split: str | None = None,  # of Hugging Face, if not the task's own
) -> tuple[list[dict], str]:  # rows, and where they are from, in words
    "The rows of a task, as they are. Raises `UserError` where there are none."
    if source == "own":
        if task.own is None:
            raise UserError(f"{task.name} has no items of our own: give a file, a folder or 'hf'.")
        return file_rows(task.own), f"our own items of {task.name}"
    if source == "hf":
        path, part, own_split = task.dataset
        return hub_rows(path, part, split or own_split)
    file = Path(source)
    if file.is_dir():
        found = [p for p in (file / (task.name + kind) for kind in FILE_KINDS) if p.is_file()]
        if not found:
            raise UserError(f"{file} has no {task.name}{', '.join(FILE_KINDS)}.")
        file = found[0]
    if not file.is_file():
        raise UserError(f"{file} does not exist: give a file, a folder, 'own' or 'hf'.")
    return file_rows(file), str(file)


def read_items(
    task: Task,
    rows: list[dict],
    where: str,  # they are from
) -> list:
    "The items of the rows. Raises `UserError` that names the row and what is wrong with it."
    items = []
    for n, plain in enumerate(rows, 1):
        row = Row(plain)
        row.where = f"{where}, row {n}"
        try:
            items.append(task.read(row))
        except UserError as error:
            told = str(error).startswith(row.where)
            raise error if told else UserError(f"{row.where}: {error}") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{row.where} is no item of {task.name}: {error}.") from None
    if not items:
        raise UserError(f"{where}: there is no item in it.")
    return items


def subject_of(item: Any) -> str:
    "The item's subject; an empty text where the task has none."
    return getattr(item, "group", "")


def first_of_each(items: Sequence, limit: int | None) -> list:
    "At most `limit` items; of each subject, where items have one."
    counts: dict[str, int] = {}
    kept = []
    for item in items:
        counts[subject_of(item)] = counts.get(subject_of(item), 0) + 1
        if limit is None or counts[subject_of(item)] <= limit:
            kept.append(item)
    return kept


def load_items(
    task: str | Task,
    source: str | Path = "own",  # "own", "hf", a file, or a folder with NAME.jsonl, .csv or .tsv
    limit: int | None = None,  # at most so many; of each subject, where the task has subjects
) -> list:
    "The items of a task."
    task = find_task(task)
    return first_of_each(read_items(task, *task_rows(task, source)), limit)


def load_shots(task: str | Task, source: str | Path = "own") -> list | None:
    "Items for shots, of the training split or of NAME.shots.jsonl; None where there are none."
    task = find_task(task)
    if source == "hf" and task.shots_from:
        return read_items(task, *task_rows(task, "hf", task.shots_from))
    named = [Path(source) / f"{task.name}.shots{kind}" for kind in FILE_KINDS]
    path = next((path for path in named if path.is_file()), None)
    return read_items(task, file_rows(path), str(path)) if path else None


def by_subject(items: Sequence) -> dict[str, list]:
    "The items of each subject."
    found: dict[str, list] = {}
    for item in items:
        found.setdefault(subject_of(item), []).append(item)
    return found


def shots_for(
    item: Any,
    pool: dict[str, list],  # subject -> items, as `by_subject` gives them
    n: int,
) -> list:
    "The first n items of the pool that are of the same subject and not the item itself."
    return [other for other in pool.get(subject_of(item), [])[: n + 1] if other != item][:n]
