"What is true in an exercise's cases, and what is seen of an answer in them."

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from llama_course.classroom.compare import in_few_words, misfit
from llama_course.classroom.exercise import Exercise, Invariant, Mistake
from llama_course.classroom.observation import Observation, observe, one_line
from llama_course.classroom.report import Report
from llama_course.classroom.surroundings import neutral

NO_ANSWER = "there is no answer yet"
SHORT = (torch.float16, torch.bfloat16)
COUNTED_IN_TENSORS = ("saved_bytes", "largest_tensor", "flops", "backward_flops")


class AnswerLost(Exception):
    "The process in which somebody's code ran broke a limit or ended; the text says how."

    report: Report | None = None  # on what was seen before


class Case(NamedTuple):
    "Arguments, and the truth about them."

    args: tuple
    truth: Observation  # of the reference, in float64
    cotangent: Any  # gradient that arrives at the result; None: gradients are not asked for
    dtype: torch.dtype  # that the result should have
    factor: float  # roundings that may add up
    text: str  # the case in words
    noise: tuple[Any, Any] = (None, None)  # of value and gradients: see `_noise`


class Law(NamedTuple):
    "What came of one invariant: empty where it holds, and all that was seen on the way."

    broken: str
    seen: list[Observation]


class Findings:
    "What is seen of one answer in all the cases of a trial; each part is looked for once."

    def __init__(self, trial: "Trial", watch: Callable):
        self.trial, self.watch = trial, watch

    @functools.cached_property
    def seen(self) -> list[Observation]:
        "One observation for each case."
        where = self.trial.exercise.where
        return [
            self.watch(*case.args, wrt=where, cotangent=case.cotangent) for case in self.trial.cases
        ]

    @functools.cached_property
    def laws(self) -> list[Law]:
        "One for each invariant."
        return [
            _try_law(self.trial.exercise, law, self.watch) for law in self.trial.exercise.invariants
        ]

    def faults(self, look: str) -> list[str]:
        "What is wrong in each case, or with each law or limit; empty texts where nothing is."
        exercise, cases = self.trial.exercise, self.trial.cases
        if look == "values":
            return [value_fault(exercise, case, seen) for case, seen in zip(cases, self.seen)]
        if look == "gradients":
            return [gradient_fault(exercise, case, seen) for case, seen in zip(cases, self.seen)]
        if look == "laws":
            return [law.broken for law in self.laws]
        return self.excesses

    @functools.cached_property
    def excesses(self) -> list[str]:
        "For each limit of the ledger, the case that exceeds it most; first, what it did not see."
        limits, cases, texts = self.trial.exercise.limits, self.trial.cases, []
        counted = any(limit.counted in COUNTED_IN_TENSORS for limit in limits)
        texts += [next((text for seen in self.seen for text in seen.hidden), "") if counted else ""]
        for number, (name, sentence, _) in enumerate(limits):
            worst = max(range(len(cases)), key=lambda i: self.costs[number][i])
            if self.costs[number][worst] <= 1:
                texts.append("")
                continue
            count, most = (
                getattr(self.seen[worst], name),
                limits[number].at_most(*cases[worst].args),
            )
            limit = f"at most {most:,.0f}: {sentence}"
            texts.append(f"{name} {count:,} with {cases[worst].text}; {limit}")
        return texts

    @functools.cached_property
    def costs(self) -> list[list[float]]:
        "For each limit and case: the count as a share of what is allowed."

        def share(count: float, most: float) -> float:
            return count / most if most > 0 else 1 + count if count > most else 0.0

        return [
            [
                share(getattr(seen, limit.counted), limit.at_most(*case.args))
                for case, seen in zip(self.trial.cases, self.seen)
            ]
            for limit in self.trial.exercise.limits
        ]


class Trial:
    "An exercise's cases, and what its known mistakes do in them; all of it is computed once."

    def __init__(self, exercise: Exercise, seed: int):
        self.exercise = exercise
        cases = enumerate(exercise.make_cases(seed))
        self.cases = [make_case(exercise, args, seed + i) for i, args in cases]
        self.of_mistakes: dict[str, Findings] = {}

    def findings(self, mistake: Mistake) -> Findings:
        "What is seen of a known mistake."
        if mistake.name not in self.of_mistakes:
            watch = functools.partial(observe, mistake.answer, call=self.exercise.call)
            self.of_mistakes[mistake.name] = Findings(self, watch)
        return self.of_mistakes[mistake.name]


trial_of = functools.lru_cache(maxsize=8)(Trial)  # whoever checks an answer will check it again


# ------------------------------------------------------------------- the truth


def make_case(exercise: Exercise, args: Any, seed: int) -> Case:
    "The truth about one list of arguments."
    wide = _widen(list(args))
    dtype = next((t.dtype for t in args if _floating(t)), torch.float32)
    random = torch.Generator().manual_seed(seed)
    cotangent = None
    if exercise.wrt:
        cotangent = tree_map(
            lambda t: torch.randn(t.shape, generator=random).to(dtype),
            observe(exercise.truth, *wide).value,
        )
    truth = observe(exercise.truth, *wide, wrt=exercise.where, cotangent=_widen(cotangent))
    assert not truth.error, truth.error
    text = ", ".join(f"{name} {in_few_words(arg)}" for name, arg in zip(exercise.names, args))
    factor = exercise.factor * exercise.condition(*args)
    noise = _noise(exercise, wide, _widen(cotangent), truth, dtype, random)
    return Case(tuple(args), truth, cotangent, dtype, factor, text, noise)


def _floating(thing: Any) -> bool:
    return isinstance(thing, Tensor) and thing.dtype.is_floating_point


def _widen(tree: Any) -> Any:
    return tree_map(lambda t: t.double() if _floating(t) else t, tree)


STEP = 1e-9  # by how much the arguments are moved, relatively
JUMP = 1e5  # a result that moves so many times more has jumped: there rounding explains nothing


def _noise(
    exercise: Exercise,
    wide: list,
    cotangent: Any,
    truth: Observation,
    dtype: torch.dtype,
    random: torch.Generator,
) -> tuple[Any, Any]:
    """How far one rounding of the arguments moves the value and the gradients, element by element.

    It is large where large terms cancel. Answers in 16 bits are asked to compute in float32.
    """
    if not any(_floating(t) for t in tree_leaves([wide, truth.value])):
        return None, None
    eps = torch.finfo(torch.float32 if dtype in SHORT else dtype).eps

    def moved(t: Any) -> Any:
        if not _floating(t):
            return t
        return t * (1 + STEP * torch.randn(t.shape, generator=random, dtype=torch.float64))

    def difference(one: Any, other: Any) -> Any:
        if not _floating(one) or not isinstance(other, Tensor) or one.shape != other.shape:
            return None
        size = one.abs().nan_to_num(0, 0, 0)
        size = size.amax(-1, keepdim=True) if one.dim() and one.numel() else size
        change = (other - one).abs().nan_to_num(0, 0, 0) / STEP
        return torch.where(change < JUMP * size, eps * change, 0)

    noise: Any = None
    for _ in range(3):
        args = tree_map(moved, wide)
        other = observe(
            exercise.truth, *args, wrt=exercise.where, cotangent=tree_map(moved, cotangent)
        )
        ours, theirs = [truth.value, truth.grads], [other.value, other.grads]
        if other.error or tree_structure(ours) != tree_structure(theirs):
            return None, None
        now = tree_map(difference, ours, theirs)
        noise = now if noise is None else tree_map(_larger, noise, now)
    if exercise.cancelling:
        terms = list(exercise.cancelling(cotangent, *wide))
        noise = _added(noise, terms, eps)
    return noise[0], noise[1]


def _larger(one: Any, other: Any) -> Any:
    return torch.maximum(one, other) if isinstance(one, Tensor) else one


def _added(noise: Any, terms: Any, eps: float) -> Any:
    "The noise, and eps times the sizes of the terms that cancel."
    if isinstance(noise, (list, tuple)) and isinstance(terms, (list, tuple)):
        return [_added(one, other, eps) for one, other in zip(noise, terms)]
    return noise if terms is None or noise is None else noise + eps * terms


# ------------------------------------------------------------------- the looks


def value_fault(exercise: Exercise, case: Case, seen: Observation) -> str:
    "What is wrong with the value of one call."
    if seen.error:
        return NO_ANSWER if seen.error.startswith("NotImplementedError") else seen.error
    if seen.modified:
        return f"the call changes its argument `{exercise.names[seen.modified[0]]}` in place"
    return misfit(seen.value, case.truth.value, case.dtype, case.factor, case.noise[0])


def gradient_fault(exercise: Exercise, case: Case, seen: Observation) -> str:
    "What is wrong with the gradients of one call."
    if seen.grads is None:
        return "the result is cut off from its arguments: a .detach(), .item(), .data or no_grad()?"
    noises = case.noise[1] or [None] * len(exercise.wrt)
    for name, got, want, noise in zip(exercise.wrt, seen.grads, case.truth.grads or [], noises):
        if got is None:
            return f"no gradient reaches `{name}`"
        # backward is as long again
        if text := misfit(got, want, case.dtype, 2 * case.factor, noise):
            return f"gradient of `{name}`: {text}"
    return ""


class Refused(Exception):
    "The answer ended in an error while a law was tried."


def _try_law(exercise: Exercise, law: Invariant, watch: Callable) -> Law:
    "Whether an invariant holds for the answer."
    seen: list[Observation] = []
    last: list[str] = []

    def see(*args: Any, **how: Any) -> Observation:
        named = zip(exercise.names, args)
        last[:] = [", ".join(f"{name} {in_few_words(arg)}" for name, arg in named)]
        result = watch(*args, **how)
        seen.append(result)
        if result.error:
            raise Refused(result.error)
        return result

    with neutral():
        try:
            verdict = law.holds(see)
            text = verdict if isinstance(verdict, str) else "" if verdict else _last(last, seen)
        except AnswerLost:
            raise
        except Refused as error:
            text = f"with {last[0]} it ends in {error}"
        except Exception as error:  # what came back does not fit what the law does with it
            text = f"{_last(last, seen)} ({one_line(error)})"
    return Law(f"{law.sentence}: {text}" if text else "", seen)


def _last(last: list[str], seen: list[Observation]) -> str:
    "The last call of a law that does not hold."
    if not seen:
        return "this does not hold"
    return f"this does not hold; {in_few_words(seen[-1].value)} came back last, with {last[0]}"
