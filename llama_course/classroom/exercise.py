"What an exercise is: cases, the truth about them, laws, limits, right answers and known mistakes."

import difflib
import gc
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llama_course.classroom.observation import plain_call
from llama_course.classroom.own_work import on_its_own
from llama_course.support.errors import UserError

LOOKS = ("values", "gradients", "laws", "cost")
JUDGES = "llama_course.classroom.judges"
FORGOTTEN: list[bool] = []  # not empty in a process that has forgotten the truths
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
    allowed: tuple[str, ...] = ()  # what the answer may use of its own chapter in the library
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
        use, own = self.call, (self.name, self.chapter, self.allowed)
        self.call = lambda answer, *args: use(on_its_own(answer, *own), *args)

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
    if FORGOTTEN:
        return EXERCISES
    package = importlib.import_module(JUDGES)
    for module in pkgutil.iter_modules(package.__path__):
        chapter = importlib.import_module(f"{JUDGES}.{module.name}")
        for name in chapter.TASKS:
            importlib.import_module(f"{JUDGES}.{module.name}.{name}")
    return EXERCISES


def forget_truths() -> None:
    """For a process that runs learners' code: of the exercises their names and how an answer is
    called remain; references, right answers, cases and the judges' modules are gone."""
    todo: list = [exercise.call for exercise in load_exercises().values()]
    FORGOTTEN.append(True)
    needed: set[tuple[str, str]] = set()  # module and name
    seen: set[int] = set()
    while todo:
        thing = inspect.unwrap(todo.pop())
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            todo += [part for part in vars(thing).values() if callable(part)]
        if not isinstance(thing, types.FunctionType):
            continue
        todo += [cell.cell_contents for cell in thing.__closure__ or ()]
        todo += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        codes = [thing.__code__]
        for code in codes:
            codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        space = thing.__globals__
        if space["__name__"].startswith(JUDGES):
            names = {name for code in codes for name in code.co_names if name in space}
            needed |= {(space["__name__"], name) for name in names}
            todo += [space[name] for name in names]
    for exercise in EXERCISES.values():
        for part in (exercise.rights, exercise.mistakes, exercise.invariants, exercise.limits):
            part.clear()  # type: ignore[attr-defined]
        exercise.condition = exercise.make_cases = exercise.truth = _forgotten
        exercise.cancelling = None
    package = sys.modules[JUDGES]
    for name in [name for name in sys.modules if name.startswith(JUDGES + ".")]:
        space = vars(sys.modules.pop(name))
        for key in [key for key in space if not key.startswith("__") and (name, key) not in needed]:
            del space[key]
        if name.count(".") == JUDGES.count(".") + 1:
            delattr(package, name.rpartition(".")[2])
    gc.collect()


def _forgotten(*args: object) -> None:
    raise UserError("where learners' code runs, nobody knows the right answers")


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
