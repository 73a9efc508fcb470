"Scores for notebooks: their code runs in workers, and the judgement is made here."

import functools
from pathlib import Path

from llama_course.classroom.exercise import EXERCISES, Exercise
from llama_course.classroom.judge import AnswerLost, judge
from llama_course.classroom.notebooks import Submission, read_notebook
from llama_course.classroom.report import Report
from llama_course.classroom.supervisor import Limits, NotebookRun
from llama_course.support.errors import UserError


def grade(
    path: str | Path,  # a notebook, or a folder of notebooks
    limits: Limits = Limits(),  # of time and memory, for each notebook
    seed: int = 0,  # of the cases
) -> (
    dict
):  # {"exercises": [{"name", "points", "max_points", "passed", "messages"}], "notes": [...]}
    """Scores of all exercises in a notebook or a folder of notebooks.

    Raises `UserError` for a path that holds no notebook, and for notebooks that answer nothing, or
    the same twice.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    files = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no notebook (.ipynb) in the folder {path}")
    submissions = [read_notebook(file) for file in files]
    if not any(submission.claims for submission in submissions):
        some = ", ".join(sorted(EXERCISES)[:5])
        raise UserError(f"{path} answers no exercise: it defines none of {some} and the others")
    for name in EXERCISES:
        twice = [str(submission.path) for submission in submissions if name in submission.claims]
        if len(twice) > 1:
            both = " and ".join(twice[:2])
            raise UserError(f"{both} both answer {name}: grade one of them, by its path")
    result: dict = {"exercises": [], "notes": []}
    for submission in submissions:
        rows, notes = _grade_notebook(submission, limits, seed) if submission.claims else ([], [])
        state = "graded" if rows else "no exercise in it"
        result["exercises"] += rows
        result["notes"] += [f"{submission.path}: {state}", *notes]
    return result


def _grade_notebook(
    submission: Submission, limits: Limits, seed: int
) -> tuple[list[dict], list[str]]:
    "Rows for the exercises of a notebook's chapters, and notes about it."
    chapters = {EXERCISES[name].chapter for name in submission.claims}
    tasks = [task for task in EXERCISES.values() if task.chapter in chapters]
    run = NotebookRun(submission.path, submission.sources, limits)
    try:
        results = _grade_answers(run, tasks, seed)
    finally:
        run.stop()
    rows = []
    for task in tasks:
        report = results[task.name]
        if isinstance(report, str):
            looks = [(look, 0, most, "") for look, most in task.points.items()]
            report = Report(task.name, looks, [report])
        row = {"name": task.name, "points": report.points, "max_points": report.max_points}
        rows.append(row | {"passed": report.passed, "messages": report.messages})
    return rows, [f"{submission.path}: {note}" for note in run.notes.values()]


def _grade_answers(run: NotebookRun, tasks: list[Exercise], seed: int) -> dict[str, Report | str]:
    "Exercise -> report, or a message, each judged in a worker that no other answer has broken."
    results: dict[str, Report | str] = {}
    try:
        run.start()
        found = run.found([task.name for task in tasks])
        for task in tasks:
            if task.name in found:
                results[task.name] = _judge_in(run, task, seed)
            else:
                others = ", ".join(found) or "none of its chapter"
                results[task.name] = f"no function {task.name} in {run.path} (found: {others})"
    except AnswerLost as lost:
        return {task.name: f"{run.path}: {lost}" for task in tasks} | results
    return results


def _judge_in(run: NotebookRun, task: Exercise, seed: int) -> Report | str:
    """The report on one answer. If the worker dies, a second try goes without what the cells
    started."""
    for bare in (False, True):
        assert run.worker
        try:
            return judge(task, functools.partial(run.worker.observe, task), seed)
        except AnswerLost as lost:
            message = f"the call of {task.name} was ended: {lost}"
        run.start(bare=not bare)
    return message


def gradescope(
    result: dict,  # from `grade`
) -> dict:
    "The same scores as Gradescope's results.json wants them."
    tests = [
        {
            "name": row["name"],
            "score": row["points"],
            "max_score": row["max_points"],
            "status": "passed" if row["passed"] else "failed",
            "output": "\n".join(row["messages"]),
        }
        for row in result["exercises"]
    ]
    return {"tests": tests, "output": "\n".join(result["notes"]), "visibility": "visible"}
