"""Where submissions lie: a folder or a zip as it was downloaded, listed and copied without trust.

Nothing here follows a link, leaves the place that it was given, or unpacks more than its limits.
"""

import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_course.support.errors import UserError

LARGEST_FILE = 256 << 20  # bytes of one file
LARGEST_STUDENT = 512 << 20  # bytes that are unpacked for one student
MOST_FILES = 200_000  # in a whole class
KEPT_FOLDER = ".graded"  # in a folder of scores: what is kept of each submission
PASSED_OVER = {
    ".ipynb_checkpoints", "__MACOSX", "__pycache__", "node_modules", "site-packages", "venv",
    "Thumbs.db", "desktop.ini",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    "One file of a place."

    name: str  # path in the place, with slashes
    size: int  # bytes
    time: float  # when it was last changed, seconds since 1970
    refused: str = ""  # why it is not read

    @property
    def parts(self) -> tuple[str, ...]:
        "The folders that it lies in, and its own name; none of them leads upwards."
        return _parts(self.name)[0]


def passed_over(name: str) -> bool:
    "Whether a file or folder of this name is nobody's submission."
    return name.startswith(".") or name in PASSED_OVER


class Folder:
    "A folder as a place where submissions lie."

    def __init__(self, path: Path):
        self.path = path
        self.clones: set[str] = set()  # folders that hold a git repository
        self.folders: set[str] = set()  # folders directly in it
        self.entries = list(self._walk())

    def _walk(self) -> Iterator[Entry]:
        todo, count = [self.path], 0
        while todo:
            here = todo.pop()
            with os.scandir(here) as found:
                items = sorted(found, key=lambda item: item.name)
            place = here.relative_to(self.path)
            for item in items:
                name = (place / item.name).as_posix()
                if item.name == ".git":
                    self.clones.add(place.as_posix())
                if passed_over(item.name):
                    continue
                count += 1
                if count > MOST_FILES:
                    raise UserError(f"{self.path} has more than {MOST_FILES:,} files: give less")
                state = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(state.st_mode):
                    if os.path.isdir(os.path.join(item.path, KEPT_FOLDER)):
                        continue  # scores of an earlier call
                    if here == self.path:
                        self.folders.add(item.name)
                    todo.append(Path(item.path))
                else:
                    yield Entry(name, state.st_size, state.st_mtime, _refusal(state))

    def copy(self, entry: Entry, target: Path) -> None:
        "Copies one file. Raises `OSError`, also for a link that has taken its place."
        source = os.open(self.path / entry.name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(source, "rb") as file:
            _pour(file, target, entry)

    def where(self, folder: str) -> Path | None:
        "A folder of the place, to be read where it lies."
        return self.path / folder


class Zip:
    "A zip file as a place where submissions lie."

    def __init__(self, path: Path):
        self.path, self.clones = path, set[str]()
        try:
            self.file = zipfile.ZipFile(path)
            infos = self.file.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} is no zip file that can be read ({error})") from None
        if len(infos) > MOST_FILES:
            raise UserError(f"{path} has more than {MOST_FILES:,} files: give less")
        self.infos = {
            info.filename: info
            for info in infos
            if not info.is_dir() and not any(map(passed_over, _parts(info.filename)[0]))
        }
        self.entries = [_zip_entry(info) for info in self.infos.values()]
        folders = (_parts(info.filename)[0] for info in infos)
        self.folders = {
            parts[0]
            for parts, info in zip(folders, infos)
            if len(parts) > 1 or (parts and info.is_dir())
        }

    def copy(self, entry: Entry, target: Path) -> None:
        "Unpacks one file. Raises `OSError` for what is damaged or larger than it says."
        try:
            with self.file.open(entry.name) as file:
                _pour(file, target, entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            raise OSError(0, f"damaged in the zip ({error})") from None

    def where(self, folder: str) -> Path | None:
        "None: what is in a zip has to be unpacked."
        return None


Place = Folder | Zip


def open_place(path: Path) -> Place:
    "The folder or zip. Raises `UserError` for anything else."
    if path.is_dir():
        return Folder(path)
    if path.suffix.lower() == ".zip":
        return Zip(path)
    raise UserError(f"{path} is neither a folder nor a zip: give one of them, or a notebook")


def _parts(name: str) -> tuple[tuple[str, ...], bool]:  # parts, whether the path stays inside
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    inside = not name.startswith(("/", "\\")) and ".." not in parts and ":" not in name[:2]
    return tuple(part for part in parts if part != ".."), inside


def _refusal(state: os.stat_result) -> str:
    "Why a file of a folder is not read; empty if it is."
    if stat.S_ISLNK(state.st_mode):
        return "a symbolic link, which is not followed"
    if not stat.S_ISREG(state.st_mode):
        return "no regular file"
    return "" if state.st_size <= LARGEST_FILE else _too_large(state.st_size)


def _too_large(size: int) -> str:
    return f"too large: {size >> 20:,} MB, at most {LARGEST_FILE >> 20} are read"


def _zip_entry(info: zipfile.ZipInfo) -> Entry:
    "One file of a zip, with the reason why it is refused."
    _, inside = _parts(info.filename)
    refused = ""
    if not inside:
        refused = "its path leads out of the zip"
    elif stat.S_ISLNK(info.external_attr >> 16):
        refused = "a symbolic link, which is not followed"
    elif info.flag_bits & 1:
        refused = "encrypted: unpack it with its password first"
    elif info.file_size > LARGEST_FILE:
        refused = _too_large(info.file_size)
    try:
        seconds = time.mktime((*info.date_time, 0, 0, -1))
    except (OverflowError, ValueError):
        seconds = 0.0
    return Entry(info.filename, info.file_size, seconds, refused)


def _pour(file, target: Path, entry: Entry) -> None:
    "Copies an open file, never more than its entry says that it has."
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.size
    with open(target, "xb") as copy:
        while piece := file.read(min(1 << 20, left + 1)):
            left -= len(piece)
            if left < 0:
                raise OSError(0, "larger than its own list of contents says")
            copy.write(piece)
    os.utime(target, (entry.time, entry.time))
