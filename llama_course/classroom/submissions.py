"""Who has handed in what: the layouts of Canvas, Moodle, nbgrader, GitHub Classroom, otter, and
plain folders, all told from the names of files and folders.
"""

import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from llama_course.classroom.observation import tidy
from llama_course.classroom.own_work import chapters_from
from llama_course.classroom.places import (
    LARGEST_STUDENT,
    Entry,
    Place,
    Zip,
)
from llama_course.classroom.progress import PROGRESS
from llama_course.classroom.workspace import FIRST_PAGE, OLDER
from llama_course.support.errors import UserError
from llama_course.support.optional import need

# adamsanna_LATE_12345_678910_08_norm-1.ipynb: Canvas, with the number of a later try
CANVAS = re.compile(r"(.{1,150}?)(_LATE)?_(\d{1,20})_(\d{3,20})_(.{1,250})", re.DOTALL)
# Anna Adams_12345_assignsubmission_file_: Moodle; a folder, or the beginning of a file's name
MOODLE = re.compile(r"(.{1,200})_(\d{1,20})_assignsubmission_(?:file|onlinetext)_?(.{0,250})")
TRY = re.compile(r"-(\d{1,3})$")
COPY = re.compile(r"[-_ ]*(?:[Cc]opy[-_ ]?(\d{0,3})|\((\d{1,3})\))$")
STAMP = re.compile(r"[-_](\d{4}_\d\d_\d\dT\d\d_\d\d_\d\d(?:_\d{1,9})?)$")  # otter's export
# what Gradescope's "Export Submissions" says of the folders beside it, submission_12345
GRADESCOPE = "submission_metadata.yml"
CHAPTERS = "|".join(chapters_from("01_bigram"))
CHAPTER = re.compile(rf"(?<![a-z])(?:\d\d[-_ ])?(?:{CHAPTERS})(?![a-z])", re.IGNORECASE)
MOST_NOTEBOOKS = 60  # of one student: twice the chapters


@dataclass(frozen=True)
class Handed:
    "One file of a student."

    entry: Entry
    inner: str  # its path in the student's own folder
    late: bool = False
    newness: tuple = ()  # of two tries the newer has the larger one


@dataclass
class Student:
    "Who handed in, and what."

    name: str  # as the layout gives it
    ident: str = ""  # a number, where the layout has one
    files: list[Handed] = field(default_factory=list)
    folder: str = ""  # of the place, where all of it lies in one

    @property
    def late(self) -> bool:
        "Whether any of it came late."
        return any(file.late for file in self.files)


@dataclass
class Class:
    "What a place holds."

    students: list[Student]
    aside: list[str]  # files that are nobody's submission
    is_class: bool  # or one learner's own notebooks


def find_students(place: Place) -> Class:
    "Who handed in what, by the names of files and folders alone."
    places = [entry.parts for entry in place.entries]
    entries = [(entry, parts) for entry, parts in zip(place.entries, places) if parts]
    folders = set(place.folders)
    if any(parts == (PROGRESS,) for _, parts in entries):  # a learner's workspace
        beside = {PROGRESS, FIRST_PAGE, OLDER}
        entries = [(entry, parts) for entry, parts in entries if parts[0] not in beside]
        folders -= beside
    submitted = place.path.name == "submitted"
    if "submitted" in folders:  # nbgrader's own folder of a course
        entries = [(entry, parts[1:]) for entry, parts in entries if parts[0] == "submitted"]
        entries, folders, submitted = [e for e in entries if e[1]], set(), True
    elif not submitted and (top := _only_a_wrapper(entries, folders)):
        entries, folders = [(entry, parts[1:]) for entry, parts in entries], set()
        place.clones = {clone.removeprefix(f"{top}/") for clone in place.clones if clone != top}
    cut = _prefix_of_clones(place.clones, {parts[0] for _, parts in entries if len(parts) > 1})
    table = [entry for entry, parts in entries if parts == (GRADESCOPE,)]
    submitters = gradescope_submitters(place, table[0]) if table else {}
    entries = [(entry, parts) for entry, parts in entries if entry not in table]
    found: dict[tuple[str, str], Student] = {}
    aside, own = [], 0
    for entry, parts in entries:
        name, ident, file = _whose(entry, parts, cut)
        if len(parts) == 1 and not ident and _suffix(parts[0]) not in (".ipynb", ".zip"):
            aside.append(entry.name)
            continue
        own += len(parts) == 1 and not ident and not _stem_without_chapter(parts[0])
        for who, number in submitters.get(parts[0], [(name, ident)]):
            student = found.setdefault((who.lower(), number), Student(tidy(who, 100), number))
            student.files.append(file)
    for folder in (folders | submitters.keys()) - {parts[0] for _, parts in entries}:
        if not MOODLE.fullmatch(folder):
            for who, number in submitters.get(folder, [(folder, "")]):
                found.setdefault((who.lower(), number), Student(tidy(who, 100), number))
    notebooks = sum(len(parts) == 1 and _suffix(parts[0]) == ".ipynb" for _, parts in entries)
    alone = not submitted and 0 < own == notebooks
    students = sorted(found.values(), key=lambda s: (s.name.lower(), s.ident))
    _name_apart(students)
    for student in students:
        student.folder = _own_folder(student, submitted, place)
    return Class(students, aside, is_class=not alone)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _only_a_wrapper(entries: list[tuple[Entry, tuple[str, ...]]], folders: set[str]) -> str:
    "The one folder that all lies in, if it is no student's own; empty where there is none."
    if len(folders) != 1 or any(len(parts) == 1 for _, parts in entries):
        return ""
    (top,) = folders
    if MOODLE.fullmatch(top) or CANVAS.fullmatch(top):
        return ""
    direct = [parts[1] for _, parts in entries if len(parts) == 2]
    its_own = [name for name in direct if _suffix(name) == ".ipynb"]
    deeper = {parts[1] for _, parts in entries if len(parts) > 2}
    if its_own and not all(_stem_without_chapter(name) for name in its_own):
        return ""
    if GRADESCOPE in direct:
        return top
    return top if its_own or len(deeper) > 1 or _suffix("".join(direct[:1])) == ".zip" else ""


def gradescope_submitters(
    place: Place,
    table: Entry,  # `GRADESCOPE`
) -> dict[str, list[tuple[str, str]]]:  # folder -> name and number of each submitter
    "Who handed in what, as Gradescope's export says. Raises `UserError` if that cannot be read."
    yaml = need("yaml", "grading")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            place.copy(table, path := Path(scratch, GRADESCOPE))
            rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            str(folder): [
                (str(who.get(":name") or who.get(":email") or folder), str(who.get(":sid") or ""))
                for who in row[":submitters"]
            ]
            for folder, row in rows.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{table.name} is not as Gradescope exports it ({type(error).__name__}): export the "
            "submissions again"
        ) from None


def _prefix_of_clones(clones: set[str], folders: set[str]) -> str:
    "What the names of GitHub Classroom's clones begin with: the assignment."
    names = sorted(folders & clones)
    if len(names) < 2 or names != sorted(folders):
        return ""
    common = os.path.commonprefix(names)
    return common[: common.rfind("-") + 1]


def _whose(entry: Entry, parts: tuple[str, ...], cut: str) -> tuple[str, str, Handed]:
    "A file's student, the student's number, and the file as a part of what he handed in."
    first, rest = parts[0], "/".join(parts[1:])
    if match := MOODLE.fullmatch(first):
        who, ident, name = match.groups()
        inner = rest or name or "onlinetext"
        return who, ident, Handed(entry, inner, newness=newness(entry, inner))
    if match := CANVAS.fullmatch(first):
        who, late, ident, _, name = match.groups()
        stem, dot, suffix = name.rpartition(".")
        again = TRY.search(stem) if not rest and suffix == "ipynb" else None
        inner = f"{stem[: again.start()]}{dot}{suffix}" if again else name
        new = newness(entry, inner, int(again[1]) if again else 0)
        inner = f"{name}/{rest}" if rest else name
        return who, ident, Handed(entry, inner, bool(late), new)
    if rest:
        name = first.removeprefix(cut) or first
        return name, "", Handed(entry, rest, newness=newness(entry, rest))
    name = _stem_without_chapter(first) or PurePosixPath(first).stem
    return name, "", Handed(entry, first, newness=newness(entry, first))


def newness(
    entry: Entry,
    inner: str,  # path in the student's own folder
    again: int = 0,  # number of a later try
) -> tuple:
    "What the newer of two tries has more of: number of the try, stamp in the name, time, copy."
    stem = PurePosixPath(inner).stem
    stamp, copy = STAMP.search(stem), COPY.search(stem)
    number = int("".join(copy.groups("")) or 0) if copy else -1
    return again, stamp[1] if stamp else "", int(entry.time) // 2, number, entry.name


def _stem_without_chapter(name: str) -> str:
    "What a file's name says beside the chapter and the number of a copy: perhaps a student."
    stem = PurePosixPath(name).stem
    for pattern in (COPY, STAMP, COPY):
        stem = pattern.sub("", stem)
    return CHAPTER.sub("", stem).strip("-_ .")


def _name_apart(students: list[Student]) -> None:
    "Students of one name are told apart by their number."
    count = Counter(student.name.lower() for student in students)
    for student in students:
        if count[student.name.lower()] > 1 and student.ident:
            student.name = f"{student.name} ({student.ident})"


def _own_folder(student: Student, submitted: bool, place: Place) -> str:
    "The folder of the place that is this student's alone, and holds nothing to be unpacked."
    if isinstance(place, Zip) or any(_suffix(file.inner) == ".zip" for file in student.files):
        return ""
    folders = set()
    for file in student.files:
        if not file.entry.name.endswith(f"/{file.inner}"):
            return ""
        folders.add(file.entry.name.removesuffix(f"/{file.inner}"))
    return folders.pop() if len(folders) == 1 else ""


# ------------------------------------------------------------------- the files of one student


@dataclass(frozen=True)
class File:
    "A file of a student that can be read, or the reason why not."

    shown: str  # path in what was handed over
    path: Path
    newness: tuple
    refused: str = ""


def lay_out(
    place: Place,
    student: Student,
    scratch: Path,  # an empty folder; gets what cannot be read where it lies
) -> list[File]:
    "The student's files, each in a folder that holds nobody else's."
    if student.folder and (root := place.where(student.folder)):
        return [
            File(file.entry.name, root / file.inner, file.newness, file.entry.refused)
            for file in student.files
        ]
    left = LARGEST_STUDENT
    files: list[File] = []
    for number, handed in enumerate(student.files):
        left -= handed.entry.size
        path = _free(scratch, handed.inner, number)
        why = handed.entry.refused or ("" if left >= 0 else "too large, all files together")
        if not why:
            why = _copy(place, handed.entry, path)
        if _suffix(handed.inner) == ".zip" and not why:
            files += _unpack(path, handed, scratch / f"zip {number}", left)
        else:
            files.append(File(handed.entry.name, path, handed.newness, why))
    return files


def _free(scratch: Path, inner: str, number: int) -> Path:
    "A path below the folder that nothing has yet."
    path = scratch / inner
    return path if not os.path.lexists(path) else scratch / f"try {number}" / inner


def _copy(place: Place, entry: Entry, path: Path) -> str:
    "Copies a file; why it could not be, if so."
    try:
        place.copy(entry, path)
    except OSError as error:
        return f"cannot be read: {tidy(error.strerror or error, 100)}"
    return ""


def _unpack(path: Path, handed: Handed, scratch: Path, left: int) -> list[File]:
    "The files of a zip that a student has handed in."
    name = handed.entry.name
    try:
        inside = Zip(path)
    except UserError:
        return [File(name, path, handed.newness, "no zip file that can be read")]
    files = []
    for number, entry in enumerate(inside.entries):
        shown = f"{name}/{entry.name}"
        left -= entry.size
        target = _free(scratch, "/".join(entry.parts), number)
        why = entry.refused or ("" if left >= 0 else "too large, all files together")
        why = why or _copy(inside, entry, target)
        new = newness(entry, "/".join(entry.parts), handed.newness[0])
        files.append(File(shown, target, new, why))
    return files or [File(name, path, handed.newness, "an empty zip")]


def notebooks_of(files: list[File]) -> tuple[list[File], str]:  # the newest first; a remark
    "The notebooks among a student's files; in a clone of the course, those with answers alone."
    found = [file for file in files if _suffix(file.shown) == ".ipynb"]
    if any(file.shown.endswith("settings.ini") for file in files):  # lectures and solutions, too
        for own in ("my", "exercises"):
            if any(own in Path(file.shown).parts for file in found):
                found = [file for file in found if own in Path(file.shown).parts]
                break
    found.sort(key=lambda file: file.newness, reverse=True)
    more = f"only {MOST_NOTEBOOKS} of {len(found)} notebooks are read"
    return found[:MOST_NOTEBOOKS], more if len(found) > MOST_NOTEBOOKS else ""
