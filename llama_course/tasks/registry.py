"What a task is, and the one list of all tasks."

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_course.likelihood import Choose
from llama_course.support.errors import UserError
from llama_course.support.programs import Sandbox
from llama_course.tasks.writing import Write


@dataclass(frozen=True)
class Task:
    "What is asked, where the items come from, and how an answer is scored."

    name: str  # as lm-eval calls it, where it has the task
    metric: str  # "accuracy", "exact match", ...
    dataset: tuple  # on Hugging Face: path; part, parts or None; split
    read: Callable[[Any], Any]  # one row with the public columns -> item
    ask: Callable[[Any, list], Choose | Write]  # (item, shots) -> request
    score: Callable[[Any, Any], float]  # (item, answer) -> 0 to 1; list[Likelihood] or list[str]
    own: Path | None = None  # JSON lines: a handful of items of ours, in the public columns
    shots: int = 0  # the paper's number
    shots_from: str | None = None  # the split of the dataset that shots are taken from
    rule: Callable | None = None  # of a multiple-choice task: by what options are compared
    runs_programs: bool = False  # the score needs a fence around programs


TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    "The task, which `evaluate` and the command find by its name from now on."
    TASKS[task.name] = task
    return task


def find_task(name: str | Task) -> Task:
    "The task of that name. Raises `UserError` with the nearest names if there is none."
    if isinstance(name, Task):
        return name
    if name in TASKS:
        return TASKS[name]
    near = ", ".join(difflib.get_close_matches(str(name), TASKS, 3, 0.4) or sorted(TASKS))
    raise UserError(f"no task is called {name!r}{near and ': choose ' + near}.")


def check_programs(tasks: Iterable[str | Task]) -> None:
    "Raises `UserError`, before a model writes a word, if a task runs programs and none can be run."
    if any(find_task(task).runs_programs for task in tasks):
        with Sandbox():
            pass
