'What a learner calls in a notebook: `check(my_function)` and `hint("my_function")`.'

from collections.abc import Callable
from typing import Any

from llama_course.classroom.compare import in_few_words
from llama_course.classroom.exercise import FORGOTTEN, find_exercise
from llama_course.classroom.judge import AnswerLost, judge
from llama_course.classroom.observation import Observation, observe
from llama_course.classroom.pictures import picture
from llama_course.classroom.progress import after, find_workspace, next_step, note_attempt
from llama_course.classroom.report import Report
from llama_course.classroom.surroundings import OutOfTime, curbed_output
from llama_course.classroom.trial import NO_ANSWER
from llama_course.support.errors import UserError

CALL_SECONDS = 10.0  # for one call of an answer, as in `grade`


class Hint(str):
    "A text that a notebook shows as text."

    def __repr__(self) -> str:
        return str(self)


def hint(
    name: str | Callable,  # of the exercise; or the function that answers it
    number: int = 1,  # the first says little, the last almost all
) -> Hint:
    "One hint for an exercise. Raises `UserError` where there is no such exercise or hint."
    exercise = find_exercise(name if isinstance(name, str) else name.__name__)
    last = len(exercise.hints)
    if number not in range(1, last + 1):
        raise UserError(f"{exercise.name} has {last} hints: give a number from 1 to {last}")
    more = f' (there is more in hint("{exercise.name}", {number + 1}))' if number < last else ""
    return Hint(exercise.hints[number - 1] + more)


def check(
    answer: Callable,  # your function; its name says which exercise it answers
    name: str | None = None,  # the exercise, where the function is called otherwise
    seed: int = 0,  # of the cases
) -> Report:
    "The judgement of your function, in this process. Raises `UserError` for what is no answer."
    if not callable(answer):
        raise UserError(
            f"check takes a function, as in check(rms_norm), not {in_few_words(answer)}"
        )
    own_name: str = getattr(answer, "__name__", type(answer).__name__)
    exercise = find_exercise(name or own_name)
    if FORGOTTEN:  # while a notebook is graded: the judge stands outside, and asks later
        return Report(exercise.name, [], [])

    def watch(*args: Any, **how: Any) -> Observation:
        seen = observe(answer, *args, **how, call=exercise.call, seconds=CALL_SECONDS)
        if seen.error.startswith((OutOfTime.__name__, KeyboardInterrupt.__name__)):
            raise AnswerLost(seen.error)
        return seen

    with curbed_output():
        try:
            report = judge(exercise, watch, seed)
        except AnswerLost as lost:
            assert lost.report
            report = lost.report
    folder = find_workspace()
    if folder and not report.messages[:1] == [f"values: {NO_ANSWER}"]:
        note_attempt(folder, exercise.name, report.points)
    if report.passed:
        report.next = next_step(after(exercise, folder), folder)
        report.picture = picture(exercise, answer)
    return report
