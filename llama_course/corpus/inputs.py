"""The input files of a source: what they were when its reading began, and what may change since.

A task that is done is never done again, so another file in the place of one that was read would
mix two corpora: that is refused. A file that was damaged was left out; when it is replaced, the
task that could not read it is done again, and what follows from it. A file that was read may go.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from llama_course.support.disk import read_json
from llama_course.support.errors import UserError

END_BYTES = 2**16  # bytes at both ends of a file that must agree if it has got another date


def relative(path: str | Path, root: str | Path) -> str:
    "The path as the recipe would name it, the same wherever both are moved to."
    return Path(os.path.relpath(path, root)).as_posix()


def file_state(path: str | Path) -> list:  # size, date, hash of both ends
    "What a file is, without reading all of it."
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        ends = file.read(END_BYTES)
        file.seek(max(0, about.st_size - END_BYTES))
        ends += file.read(END_BYTES)
    return [about.st_size, about.st_mtime_ns, hashlib.sha256(ends).hexdigest()[:16]]


def file_states(paths: list[str], root: str, known: dict[str, list]) -> dict[str, list]:
    "The state of each file by its relative name; one with the same date and size is not opened."
    states = {}
    for path in paths:
        name, about = relative(path, root), os.stat(path)
        old = known.get(name)
        same = old and old[:2] == [about.st_size, about.st_mtime_ns]
        states[name] = old if old and same else file_state(path)
    return states


def noted_damage(folder: Path) -> dict[str, str]:  # file -> reason
    "The files that the tasks of a source could not read."
    found = [row for file in sorted(folder.glob("*.json")) for row in read_json(file)]
    return {row["file"]: row["reason"] for row in found}


def damaged_ranks(folder: Path, names: set[str]) -> list[int]:
    "The tasks that could not read one of these files."
    return [
        int(file.stem)
        for file in sorted(folder.glob("*.json"))
        if any(row["file"] in names for row in read_json(file))
    ]


def replaced_files(
    source: Any,  # a CorpusSource
    place: Path,
    old: dict[str, list],  # the states that were noted
    new: dict[str, list],
    damaged: dict[str, str],
) -> set[str]:  # names of damaged files, or parts of a data set, that may be whole by now
    "Raises `UserError` where another file is changed, or one is new."
    where = f"{place} was begun with other input files for {source.name}"
    then = "restore it, or choose another --out."
    if added := sorted(new.keys() - old.keys()):
        raise UserError(f"{where}: {added[0]} is new. Take it away, or choose another --out.")
    changed = [n for n in old if n in new and new[n][::2] != old[n][::2]]
    changed += [n for n in old if n in new and n in damaged and new[n] != old[n]]
    if source.kind == "dataset" and damaged and changed:
        return set(damaged)  # a part has no name of a file
    if wrong := [name for name in changed if name not in damaged]:
        raise UserError(f"{where}: {wrong[0]} has changed: {then}")
    return set(changed)
