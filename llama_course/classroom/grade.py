"Scores for what one learner has handed in: the code runs in workers, the judgement is made here."

import functools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_course.classroom.exercise import EXERCISES, Exercise, load_exercises
from llama_course.classroom.judge import AnswerLost, judge
from llama_course.classroom.notebooks import Notebook, Unreadable
from llama_course.classroom.places import Entry, Folder
from llama_course.classroom.report import Report
from llama_course.classroom.submissions import File, newness, notebooks_of
from llama_course.classroom.supervisor import Limits, NotebookRun, read_behind_fence
from llama_course.support.errors import UserError

GRADED, IN_PART, DUPLICATE = "graded", "graded in part", "duplicate"
HANDED_IN_EMPTY, NOT_A_NOTEBOOK, TOO_LARGE = "empty", "not a notebook", "too large"
FENCED_OFF = "fenced off"
NO_TIME = "the time for all files of one student is up"
STATUSES = (GRADED, IN_PART, DUPLICATE, HANDED_IN_EMPTY, NOT_A_NOTEBOOK, TOO_LARGE, FENCED_OFF)


@dataclass
class Verdict:
    "What became of one learner's files."

    files: list[dict] = field(default_factory=list)  # {"file", "status", "reason"}
    exercises: list[dict] = field(default_factory=list)  # see `_row`
    notes: list[str] = field(default_factory=list)
    prints: dict[str, str] = field(default_factory=dict)  # fingerprints of the answers

    def add(self, file: File, status: str, reason: str = "") -> None:
        "Notes what became of a file."
        self.files.append({"file": file.shown, "status": status, "reason": reason})


def grade(
    path: str | Path,  # a notebook, or the folder of one learner's notebooks
    limits: Limits = Limits(),  # of time and memory, for each notebook
    seed: int = 0,  # of the cases
) -> dict:
    """Scores of all exercises that a learner has handed in: "exercises", "files", "notes".

    Raises `UserError` where there is no notebook, or none that can be graded.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    paths = [path]
    if path.is_dir():
        inside = [path / entry.name for entry in Folder(path).entries if not entry.refused]
        inside = [file for file in inside if file.suffix == ".ipynb"]
        paths = [file for file in inside if file.parent == path] or inside
    if not paths:
        raise UserError(f"no notebook (.ipynb) in the folder {path}")
    outcome = grade_files([_file(path) for path in paths], limits, seed)
    if not outcome.exercises:
        reasons = "; ".join(f"{f['file']} is {f['status']}: {f['reason']}" for f in outcome.files)
        raise UserError(reasons[:450])
    states = [
        f"{file['file']}: {file['status']}" + (f" ({file['reason']})" if file["reason"] else "")
        for file in outcome.files
    ]
    return {
        "exercises": outcome.exercises,
        "files": outcome.files,
        "notes": states + outcome.notes,
    }


def seconds_in_all(files: list[File], limits: Limits) -> float:
    "How long the code in all files of one learner may take together."
    return limits.total_seconds * max(1, min(len(files), 3))


def grade_files(
    files: list[File],  # of one learner
    limits: Limits = Limits(),
    seed: int = 0,
) -> Verdict:
    "What became of the files; of several tries at an exercise the newest with an answer counts."
    load_exercises()
    notebooks, remark = notebooks_of(files)
    outcome = Verdict(notes=[remark] if remark else [])
    if not notebooks:
        _nothing_to_read(files, outcome)
    left = seconds_in_all(notebooks, limits)
    read: list[tuple[File, Notebook]] = []
    for file in notebooks:
        if left < 0:
            outcome.add(file, FENCED_OFF, NO_TIME)
            continue
        if file.refused:
            status = TOO_LARGE if "too large" in file.refused else NOT_A_NOTEBOOK
            outcome.add(file, status, file.refused)
            continue
        since = time.monotonic()
        try:
            notebook = read_behind_fence(file.path, limits)
        except Unreadable as error:
            outcome.add(file, error.status, error.reason)
            continue
        finally:
            left -= time.monotonic() - since
        if notebook.claims:
            read.append((file, notebook))
        else:
            some = ", ".join(sorted(EXERCISES)[:3])
            reason = f"it answers no exercise: it defines none of {some} and the others"
            outcome.add(file, HANDED_IN_EMPTY, reason)
    for file, notebook, tasks in _share_out(read, outcome):
        within = replace(limits, total_seconds=min(limits.total_seconds, max(left, 1.0)))
        left -= _grade_notebook(file, notebook, tasks, within, seed, outcome)
    return outcome


def _file(path: Path) -> File:
    "A file that lies where it may be read."
    state = path.stat()
    return File(
        str(path), path, newness(Entry(str(path), state.st_size, state.st_mtime), path.name)
    )


def _nothing_to_read(files: list[File], outcome: Verdict) -> None:
    "Notes what there is where no notebook is."
    for file in files[:20]:
        large = "too large" in file.refused
        reason = file.refused or "give an .ipynb file"
        outcome.add(file, TOO_LARGE if large else NOT_A_NOTEBOOK, reason)
    if not files:
        outcome.files.append(
            {"file": "", "status": HANDED_IN_EMPTY, "reason": "no file was handed in"}
        )


def _share_out(
    read: list[tuple[File, Notebook]],  # the newest first
    outcome: Verdict,
) -> list[tuple[File, Notebook, list[Exercise]]]:
    "Which notebook each exercise is judged in."
    owner: dict[str, int] = {}
    for answered in (True, False):
        for place, (_, notebook) in enumerate(read):
            for name in notebook.claims:
                if (name not in notebook.blank) == answered:
                    owner.setdefault(name, place)
    for task in EXERCISES.values():  # what is missing is said of the notebook of its chapter
        chapter = [owner[name] for name in owner if EXERCISES[name].chapter == task.chapter]
        if chapter:
            owner.setdefault(task.name, min(chapter))
    shared = []
    for place, (file, notebook) in enumerate(read):
        tasks = [task for task in EXERCISES.values() if owner.get(task.name) == place]
        if tasks:
            shared.append((file, notebook, tasks))
        else:
            newer = read[min(owner[name] for name in notebook.claims)][0]
            outcome.add(file, DUPLICATE, f"{newer.shown} is the one that counts")
    return shared


def _grade_notebook(
    file: File,
    notebook: Notebook,
    tasks: list[Exercise],
    limits: Limits,
    seed: int,
    outcome: Verdict,
) -> float:  # seconds that its code took
    "Judges the exercises of one notebook."
    run = NotebookRun(notebook, limits)
    lost = ""
    results: dict[str, Report | str] = {}
    try:
        run.start()
        found = run.found([task.name for task in tasks])
        for number, task in enumerate(tasks):
            if task.name in found:
                run.budget.share = max(run.budget.left, 0.0) / (len(tasks) - number)
                results[task.name] = _judge_in(run, task, seed)
            else:
                others = ", ".join(found) or "none of its chapter"
                results[task.name] = f"no function {task.name} in {file.shown} (found: {others})"
    except AnswerLost as error:
        lost = str(error)
    finally:
        run.stop()
    for task in tasks:
        result = results.get(task.name, f"{file.shown}: {lost}")
        outcome.exercises.append(_row(task, result))
    mine = {task.name for task in tasks}
    outcome.prints |= {n: p for n, p in notebook.prints.items() if n in mine}
    outcome.notes += [f"{file.shown}: {note}" for note in run.notes.values()]
    met = list(dict.fromkeys(run.limits_met + ([lost] if lost else [])))
    if not results:
        outcome.add(file, FENCED_OFF, lost)
    elif met:
        outcome.add(file, IN_PART, "; ".join(met[:3]) + ("; and more" if len(met) > 3 else ""))
    elif all(task.name in notebook.blank or task.name not in notebook.claims for task in tasks):
        outcome.add(file, HANDED_IN_EMPTY, "none of its exercises is answered")
    else:
        outcome.add(file, GRADED)
    return limits.total_seconds - run.budget.left


def _judge_in(run: NotebookRun, task: Exercise, seed: int) -> Report | str:
    """The report on one answer. If the worker dies, a second try goes without what the cells
    started."""
    message, report = "", None
    for bare in (False, True):
        try:
            worker = run.worker if run.worker and not bare else run.start(bare)
        except AnswerLost:
            if bare:
                break
            raise
        try:
            return judge(task, functools.partial(worker.observe, task), seed)
        except AnswerLost as lost:
            message = f"the call of {task.name} was ended: {lost}"
            if report := lost.report:
                report.messages[0] = message
        except Exception as error:  # what came back was too odd for the judge
            message = f"{task.name} could not be judged: {type(error).__name__} in the judge itself"
        run.stop()
        if run.budget.share < 0:
            break
    run.limits_met.append(message)
    return report or message


def _row(task: Exercise, result: Report | str) -> dict[str, Any]:
    "One exercise, as JSON can hold it."
    if isinstance(result, str):
        looks = [(look, 0, most, "") for look, most in task.points.items()]
        result = Report(task.name, looks, [result])
    mistake = None
    if suspect := getattr(result, "mistake", None):
        mistake = {"name": suspect.name, "hint": suspect.hint}
        mistake["text"] = task.hints[suspect.hint - 1]
    return {
        "name": task.name,
        "chapter": task.chapter,
        "points": result.points,
        "max_points": result.max_points,
        "passed": result.passed,
        "messages": result.messages,
        "looks": [list(row) for row in result.looks],
        "mistake": mistake,
        "notes": result.notes,
    }
