"What an exercise is: cases, the truth about them, laws, limits, right answers and known mistakes."

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llama_course.classroom.observation import plain_call
from llama_course.support.errors import UserError

LOOKS = ("values", "gradients", "invariant", "ledger")
EXERCISES: dict[str, "Exercise"] = {}  # by the name of the function that answers it


class Mistake(NamedTuple):
    "A wrong answer that people give."

    name: str  # a few words
    answer: Callable  # does what they do
    remark: str  # what is wrong about it, from the docstring of `answer`
    hint: int  # number of the hint that helps


class CostLimit(NamedTuple):
    "A bound on one count of an `Observation`."

    counted: str  # saved_bytes, largest_tensor, flops, backward_flops or collective_bytes
    sentence: str  # why the bound is what it is
    at_most: Callable  # at_most(*args) -> number


class Invariant(NamedTuple):
    "A law that every right answer obeys, in all its values."

    sentence: str
    holds: Callable  # holds(seen) -> bool, or what is wrong; seen(*args) observes the answer


@dataclass(eq=False)
class Exercise:
    "One task, and all that the judge needs to know of it. Its decorators add the parts."

    name: str  # of the function that answers it
    chapter: str  # the notebook it stands in, such as "08_norm"
    kind: str  # "rebuild", "extend" or "diagnose"
    points: dict[str, int]  # look -> points
    hints: tuple[str, ...]  # from a nudge to almost the answer
    wrt: tuple[str, ...] = ()  # names of the arguments whose gradients are compared
    factor: float = 8.0  # how many roundings may add up
    condition: Callable = lambda *args: 1.0  # of a case: how much it magnifies a rounding error
    call: Callable = plain_call  # how the answer is used: call(answer, *args)
    minutes: int = 20  # that a learner needs, about
    difficulty: int = 2  # 1 for easy, 2, 3 for hard
    cancelling: Callable | None = None  # see `cancels`
    make_cases: Callable = field(init=False, repr=False)  # make_cases(seed) -> lists of arguments
    truth: Callable = field(init=False, repr=False)  # the reference, called in float64
    rights: list[Callable] = field(default_factory=list, init=False, repr=False)
    mistakes: list[Mistake] = field(default_factory=list, init=False, repr=False)
    invariants: list[Invariant] = field(default_factory=list, init=False, repr=False)
    limits: list[CostLimit] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        EXERCISES[self.name] = self

    @property
    def names(self) -> list[str]:
        "The names of the arguments: those of the reference, without a last underscore."
        return [name.rstrip("_") for name in inspect.signature(self.truth).parameters]

    @property
    def where(self) -> tuple[int, ...]:
        "The places of the arguments whose gradients are compared."
        return tuple(self.names.index(name) for name in self.wrt)

    @property
    def max_points(self) -> int:
        "The points of a right answer."
        return sum(self.points.values())

    def cases(self, function: Callable) -> Callable:
        "Decorator: `function(seed)` yields lists of arguments."
        self.make_cases = function
        return function

    def reference(self, function: Callable) -> Callable:
        "Decorator: the function is the truth."
        self.truth = function
        return function

    def cancels(self, function: Callable) -> Callable:
        """Decorator: `function(cotangent, *args)` gives the sizes of terms that cancel in some
        right answer: (like the value, a list like the gradients); None where nothing cancels.

        What a rounding of the arguments moves is known without it.
        """
        self.cancelling = function
        return function

    def right(self, function: Callable) -> Callable:
        "Decorator: a right answer, which must pass."
        self.rights.append(function)
        return function

    def invariant(self, sentence: str) -> Callable[[Callable], Callable]:
        "Decorator: `function(seen)` says whether the law holds for the answer."

        def add(function: Callable) -> Callable:
            self.invariants.append(Invariant(sentence, function))
            return function

        return add

    def limit(
        self,
        count: str,  # which count of the ledger
        sentence: str,  # why the bound is what it is
    ) -> Callable[[Callable], Callable]:
        "Decorator: `function(*args)` is the most that the count may be."

        def add(function: Callable) -> Callable:
            self.limits.append(CostLimit(count, sentence, function))
            return function

        return add

    def mistake(
        self,
        name: str,  # a few words
        hint: int,  # number of the hint that helps
    ) -> Callable[[Callable], Callable]:
        "Decorator: a wrong answer, whose docstring says what is wrong about it."

        def add(function: Callable) -> Callable:
            remark = " ".join((function.__doc__ or "").split())
            self.mistakes.append(Mistake(name, function, remark, hint))
            return function

        return add


def load_exercises() -> dict[str, Exercise]:
    "All exercises of the course, by name."
    package = importlib.import_module("llama_course.classroom.judges")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return EXERCISES


def find_exercise(
    name: str,  # of the function that answers it
) -> Exercise:
    "The exercise of that name. Raises `UserError`, which lists names like it, where there is none."
    if name not in EXERCISES:
        load_exercises()
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=3, cutoff=0.5) or sorted(EXERCISES)
        raise UserError(
            f"no exercise is answered by a function called {name!r}; there is {', '.join(near)}"
        )
    return EXERCISES[name]
