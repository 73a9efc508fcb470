"""A class, graded: everybody's scores in one folder, and the work goes on where it was stopped.

What became of a submission is kept under a name that is made from its files, the limits and the
judge itself: none of them may differ, or it is graded anew.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_course
from llama_course.classroom.exercise import Exercise, load_exercises
from llama_course.classroom.grade import (
    DUPLICATE,
    GRADED,
    HANDED_IN_EMPTY,
    IN_PART,
    Verdict,
)
from llama_course.classroom.pages import as_csv, write_pages
from llama_course.classroom.places import KEPT_FOLDER, Place, open_place
from llama_course.classroom.pool import JudgeProcess, how_many, side_by_side
from llama_course.classroom.similarity import similar_pairs
from llama_course.classroom.submissions import Class, File, Student, find_students, lay_out
from llama_course.classroom.supervisor import Limits
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json, write_json
from llama_course.support.errors import UserError

SETTLED = (GRADED, IN_PART, DUPLICATE)  # files that nobody has to look at
TAKEN_ON_TRUST = 4 << 20  # bytes of a file beyond which its size and date stand for its content


@dataclass
class Graded:
    "A student, and what became of the files."

    student: Student
    outcome: Verdict
    kept: bool  # from an earlier call


def scores_folder(path: Path) -> Path:
    "Where the scores of a class go, if nobody says."
    path = path.resolve()
    return path.with_name(f"{path.stem if path.suffix == '.zip' else path.name}-scores")


def grade_class(
    path: str | Path,  # a folder, or a zip as it was downloaded
    out: str | Path | None = None,  # folder of the scores; beside the class if it is not given
    feedback: str | Path | None = None,  # folder of a page for each student; in `out` if not given
    limits: Limits = Limits(),  # for each notebook
    seed: int = 0,  # of the cases
    similar: bool = False,  # look for equal answers
    progress: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> dict:  # also in scores.json
    """The scores of everybody in the class, with a status for each file; the pages are written.

    Raises `UserError` for what is no class.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    load_exercises()
    place = open_place(path)
    people = find_students(place)
    if not people.students:
        raise UserError(f"{path} holds no submission: no notebook, and no folder of a student")
    out = Path(out) if out else scores_folder(path)
    with only_one(out):
        graded = _grade_all(place, people, out, limits, seed, progress)
        result = in_all(path.name, people, graded, similar)
        write_json(out / "scores.json", result)
        with atomic_write(out / "scores.csv") as file:
            file.write(as_csv(result).encode("utf-8-sig"))
        write_pages(result, out, Path(feedback) if feedback else out / "feedback")
    return result


def _grade_all(
    place: Place,
    people: Class,
    out: Path,
    limits: Limits,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> list[Graded]:
    "Everybody, as many at once as there are cores; what is known already is not graded again."
    students, kept = people.students, out / KEPT_FOLDER
    kept.mkdir(exist_ok=True)

    def work(judge: JudgeProcess, student: Student) -> Graded:
        with tempfile.TemporaryDirectory(prefix="llama_course_class_") as scratch:
            files = lay_out(place, student, Path(scratch).resolve())
            file = kept / f"{_key(files, limits, seed)}.json"
            if file.exists():
                return Graded(student, Verdict(**read_json(file)), True)
            outcome = judge.grade(files, limits, seed)
            write_json(file, asdict(outcome))
            return Graded(student, outcome, False)

    graded = []
    for one in side_by_side(students, work, how_many(len(students))):
        graded.append(one)
        progress(len(graded), len(students), one.student.name)
    order = {id(student): place for place, student in enumerate(students)}
    return sorted(graded, key=lambda one: order[id(one.student)])


def _key(files: list[File], limits: Limits, seed: int) -> str:
    "A name for these files, judged by this judge within these limits."
    facts: list[Any] = [_judge_print(), sorted(asdict(limits).items()), seed]
    for file in files:
        content: Any = file.refused
        if not content:
            state = file.path.stat()
            content = [state.st_size, int(state.st_mtime)]
            if file.path.suffix == ".ipynb" or state.st_size <= TAKEN_ON_TRUST:
                content = fingerprint(file.path)
        facts.append([file.shown, content, list(file.newness)])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@cache
def _judge_print() -> str:
    "Changes with any file of the library: it is what answers are compared with."
    library = Path(llama_course.__path__[0])
    return "".join(fingerprint(path) for path in sorted(library.rglob("*.py")))


# ------------------------------------------------------------------- the class as a whole


def in_all(name: str, people: Class, graded: list[Graded], similar: bool) -> dict:
    "Everything that the table and the pages say, as JSON can hold it."
    exercises = load_exercises()
    handed_in = {row["name"] for one in graded for row in one.outcome.exercises}
    columns = [task for task in exercises.values() if task.name in handed_in]
    most = sum(task.max_points for task in columns)
    names = _file_names([one.student for one in graded])
    students = [
        {
            "student": one.student.name,
            "id": one.student.ident,
            "late": one.student.late,
            "status": _status(one.outcome),
            "reason": _reason(one.outcome),
            "points": sum(row["points"] for row in one.outcome.exercises),
            "max_points": most,
            "files": one.outcome.files,
            "exercises": one.outcome.exercises,
            "notes": one.outcome.notes,
            "feedback": page,
        }
        for one, page in zip(graded, names)
    ]
    prints = {one.student.name: one.outcome.prints for one in graded}
    return {
        "class": name,
        "max_points": most,
        "exercises": [_summary(task, graded) for task in columns],
        "students": students,
        "aside": people.aside,
        "similar": [pair._asdict() for pair in similar_pairs(prints)] if similar else None,
    }


def _status(outcome: Verdict) -> str:
    "One word for all files of a student: that of the file which most needs to be looked at."
    states = [file["status"] for file in outcome.files]
    if not outcome.exercises:
        return states[0] if states else HANDED_IN_EMPTY
    odd = [state for state in states if state not in SETTLED]
    return IN_PART if IN_PART in states or (odd and GRADED in states) else (odd or [GRADED])[0]


def _reason(outcome: Verdict) -> str:
    "Why the status is not just graded: what is to be said of the files."
    alone = len(outcome.files) == 1
    said = [
        file["reason"] if alone else f"{Path(file['file']).name}: {file['reason']}"
        for file in outcome.files
        if file["status"] not in (GRADED, DUPLICATE) and file["reason"]
    ]
    return "; ".join(said)


def _summary(task: Exercise, graded: list[Graded]) -> dict:
    "How the class has done in one exercise."
    rows = [row for one in graded for row in one.outcome.exercises if row["name"] == task.name]
    mistakes = Counter(row["mistake"]["name"] for row in rows if row["mistake"])
    texts = {row["mistake"]["name"]: row["mistake"] for row in rows if row["mistake"]}
    wrong = [row for row in rows if not row["passed"]]
    unnamed = Counter(row["messages"][0] for row in wrong if row["messages"] and not row["mistake"])
    return {
        "name": task.name,
        "chapter": task.chapter,
        "max_points": task.max_points,
        "answers": len(rows),
        "passed": sum(row["passed"] for row in rows),
        "partly": sum(0 < row["points"] < row["max_points"] for row in rows),
        "none": sum(row["points"] == 0 for row in rows),
        "mean": sum(row["points"] for row in rows) / len(rows),
        "mistakes": [texts[name] | {"students": n} for name, n in mistakes.most_common()],
        "unnamed": [{"students": n, "message": text} for text, n in unnamed.most_common(3)],
    }


def _file_names(students: list[Student]) -> list[str]:
    "A page's name for each, all different on every file system."
    names, taken = [], set[str]()
    for student in students:
        letters = (c if c.isalnum() or c in "-_" else "_" for c in student.name)
        plain = "".join(letters).strip("_")[:80] or "student"
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name.lower())
        names.append(f"{name}.html")
    return names


def exit_status(result: dict) -> int:
    "0: all was graded; 1: some was not; 2: nothing was."
    if not any(student["exercises"] for student in result["students"]):
        return 2
    states = [file["status"] for student in result["students"] for file in student["files"]]
    return 0 if all(state in SETTLED for state in states) else 1
