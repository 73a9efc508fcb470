"How an answer is judged: by what it computes, differentiates, promises and costs."

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from llama_course.classroom.compare import in_few_words, misfit
from llama_course.classroom.exercise import LOOKS, Exercise, Mistake
from llama_course.classroom.observation import Observation, observe, one_line
from llama_course.classroom.report import Report

NO_ANSWER = "there is no answer yet"


class AnswerLost(Exception):
    "The process in which somebody's code ran broke a limit or ended; the text says how."


class Case(NamedTuple):
    "Arguments, and the truth about them."

    args: tuple
    truth: Observation  # of the reference, in float64
    cotangent: Any  # gradient that arrives at the result; None: gradients are not asked for
    dtype: torch.dtype  # that the result should have
    factor: float  # roundings that may add up
    text: str  # the case in words


class Fault(NamedTuple):
    "Where an answer failed."

    look: str
    text: str
    mark: str = ""  # the law or limit that was broken
    amount: float = 0.0  # by how much, for a limit


class Trial:
    "An exercise's cases, and what its known mistakes do in them; all of it is computed once."

    def __init__(self, exercise: Exercise, seed: int):
        self.exercise = exercise
        cases = enumerate(exercise.make_cases(seed))
        self.cases = [make_case(exercise, args, seed + i) for i, args in cases]
        self.of_mistakes: dict[str, Fault | None] = {}
        self.seen_of_mistakes: dict[tuple[str, int], Observation] = {}

    def watch(self, watch: Callable, number: int) -> Observation:
        "What is seen of an answer in one case."
        case = self.cases[number]
        return watch(*case.args, wrt=self.exercise.where, cotangent=case.cotangent)

    def fault_of(self, mistake: Mistake) -> Fault | None:
        "The first fault of a known mistake."
        if mistake.name not in self.of_mistakes:
            watch = functools.partial(observe, mistake.answer, call=self.exercise.call)
            self.of_mistakes[mistake.name] = find_fault(self, watch)[0]
        return self.of_mistakes[mistake.name]

    def seen_of(self, mistake: Mistake, number: int) -> Observation:
        "What is seen of a known mistake in one case."
        key = mistake.name, number
        if key not in self.seen_of_mistakes:
            watch = functools.partial(observe, mistake.answer, call=self.exercise.call)
            self.seen_of_mistakes[key] = self.watch(watch, number)
        return self.seen_of_mistakes[key]


trial_of = functools.lru_cache(maxsize=8)(Trial)  # whoever checks an answer will check it again


def judge(
    exercise: Exercise,
    watch: Callable,  # observes the answer: watch(*args, wrt=, cotangent=) -> Observation
    seed: int = 0,  # of the cases
) -> Report:
    "The four looks at one answer, in order, up to the first that fails."
    trial = trial_of(exercise, seed)
    fault, seen = find_fault(trial, watch)
    counts = ", ".join(dict.fromkeys(limit.counted for limit in exercise.limits))
    remarks = {
        "values": f"right in {len(trial.cases)} cases",
        "gradients": f"right for {', '.join(exercise.wrt)}",
        "invariant": "; ".join(law.sentence for law in exercise.invariants),
        "ledger": f"within the limits: {counts}",
    }
    rows, failed = [], False
    for look in (look for look in LOOKS if look in exercise.points):
        failed_here = fault is not None and fault.look == look
        remark = "failed" if failed_here else "not reached" if failed else remarks[look]
        failed = failed or failed_here
        most = exercise.points[look]
        rows.append((look, 0 if failed else most, most, remark))
    messages = [f"{fault.look}: {fault.text}"] if fault else []
    mistake = suspect(trial, fault, seen) if fault else None
    if mistake:
        advice = f'hint("{exercise.name}", {mistake.hint}) helps.'
        messages.append(f'This looks like "{mistake.name}": {mistake.remark} {advice}')
    return Report(exercise.name, rows, messages, mistake)


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
    return Case(tuple(args), truth, cotangent, dtype, factor, text)


def _floating(thing: Any) -> bool:
    return isinstance(thing, Tensor) and thing.dtype.is_floating_point


def _widen(tree: Any) -> Any:
    return tree_map(lambda t: t.double() if _floating(t) else t, tree)


# ------------------------------------------------------------------- the four looks


def find_fault(trial: Trial, watch: Callable) -> tuple[Fault | None, list[Observation]]:
    "The first fault of an answer, or None; and what was seen of it, case by case."
    seen = [trial.watch(watch, i) for i in range(len(trial.cases))]
    return next(_faults(trial, watch, seen), None), seen


def _faults(trial: Trial, watch: Callable, seen: list[Observation]) -> Iterator[Fault]:
    "The faults, look by look; a look is taken only if the last one found nothing."
    exercise = trial.exercise
    for look, fault_of in CASE_FAULTS.items():
        if look in exercise.points:
            for case, observed in zip(trial.cases, seen):
                if text := fault_of(exercise, case, observed):
                    yield Fault(look, text if text == NO_ANSWER else f"{text}, with {case.text}")
    if "invariant" in exercise.points and (fault := broken_law(exercise, watch)):
        yield fault
    if "ledger" in exercise.points and (fault := _broken_limit(trial, seen)):
        yield fault


def value_fault(exercise: Exercise, case: Case, seen: Observation) -> str:
    "What is wrong with the value of one call."
    if seen.error:
        return NO_ANSWER if seen.error.startswith("NotImplementedError") else seen.error
    if seen.modified:
        return f"the call changes its argument `{exercise.names[seen.modified[0]]}` in place"
    return misfit(seen.value, case.truth.value, case.dtype, case.factor)


def gradient_fault(exercise: Exercise, case: Case, seen: Observation) -> str:
    "What is wrong with the gradients of one call."
    if seen.grads is None:
        return "the result is cut off from its arguments: a .detach(), .item(), .data or no_grad()?"
    for name, got, want in zip(exercise.wrt, seen.grads, case.truth.grads or []):
        if got is None:
            return f"no gradient reaches `{name}`"
        if text := misfit(got, want, case.dtype, 2 * case.factor):  # backward is as long again
            return f"gradient of `{name}`: {text}"
    return ""


CASE_FAULTS = {"values": value_fault, "gradients": gradient_fault}


def broken_law(exercise: Exercise, watch: Callable) -> Fault | None:
    "The first invariant that does not hold for the answer."

    def seen(*args: Any, **how: Any) -> Observation:
        result = watch(*args, **how)
        if result.error:
            raise RuntimeError(result.error)
        return result

    for sentence, holds in exercise.invariants:
        try:
            broken = "" if holds(seen) else "this does not hold"
        except AnswerLost:
            raise
        except Exception as error:
            broken = f"it ended in {one_line(error)}"
        if broken:
            return Fault("invariant", f"{sentence}: {broken}", sentence)
    return None


def _broken_limit(trial: Trial, seen: list[Observation]) -> Fault | None:
    "The first limit of the ledger that one of the cases exceeds."
    for name, sentence, at_most in trial.exercise.limits:
        for case, observed in zip(trial.cases, seen):
            count, most = getattr(observed, name), at_most(*case.args)
            if count > most:
                text = f"{name} {count:,} with {case.text}; at most {most:,.0f}: {sentence}"
                return Fault("ledger", text, sentence, count / max(most, 1))
    return None


# ------------------------------------------------------------------- which mistake it looks like


def suspect(trial: Trial, fault: Fault, seen: list[Observation]) -> Mistake | None:
    "The named mistake that explains most of the fault, if it explains more than half."
    mistakes = trial.exercise.mistakes
    if fault.text == NO_ANSWER or not mistakes:
        return None
    failed = []  # numbers of the cases in which the look failed
    if fault_of := CASE_FAULTS.get(fault.look):
        cases = enumerate(trial.cases)
        failed = [i for i, case in cases if fault_of(trial.exercise, case, seen[i])]
    likeness = [_likeness(trial, fault, seen, failed, mistake) for mistake in mistakes]
    best = max(range(len(likeness)), key=likeness.__getitem__)
    return mistakes[best] if likeness[best] > 0.5 else None


def _likeness(
    trial: Trial, fault: Fault, seen: list[Observation], failed: list[int], mistake: Mistake
) -> float:
    "From 0 to 1: how much of what went wrong the mistake explains."
    if fault.mark:
        theirs = trial.fault_of(mistake)
        if theirs is None or theirs.mark != fault.mark:
            return 0.0
        low, high = sorted((fault.amount, theirs.amount))
        return low / high if high else 1.0
    alike = 0
    for i in failed:
        case, observed = trial.cases[i], trial.seen_of(mistake, i)
        wrong = CASE_FAULTS[fault.look](trial.exercise, case, observed)
        alike += bool(wrong) and _same_fault(fault.look, seen[i], observed, case)
        if not alike:
            return 0.0  # not even the first
    return alike / len(failed)


def _same_fault(look: str, ours: Observation, theirs: Observation, case: Case) -> bool:
    "Whether two wrong answers went wrong in the same way."
    if ours.error or theirs.error or ours.modified or theirs.modified:
        return _kind_of_failure(ours) == _kind_of_failure(theirs)
    part = "value" if look == "values" else "grads"
    return not misfit(getattr(ours, part), getattr(theirs, part), None, 2 * case.factor)


def _kind_of_failure(seen: Observation) -> tuple:
    return seen.error.split(":")[0].split(" ")[0], seen.modified
