"""How an answer is judged: by what it computes, differentiates, promises and costs."""

import contextlib
import difflib
import functools
import html
import importlib
import inspect
import json
import pkgutil
import re
import sys
import warnings

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from llama_course.support.ledger import Counter, Ledger
from llama_course.support.errors import UserError
from llama_course.classroom.worker import Limits, Run, Served, Worker, WorkerDied, one_line, tidy

def tolerance(
    want: Tensor,  # the reference, float64
    dtype: torch.dtype,  # of the answer
    factor: float = 8.0,  # how many roundings may add up
) -> Tensor:  # one number for each row of `want`
    "The largest error that rounding explains: factor * eps of the dtype * the largest number in the row."
    limits = torch.finfo(dtype)
    size = want.abs().nan_to_num(0, 0, 0)
    if want.dim() and want.numel():
        size = size.amax(-1, keepdim=True)
    return factor * limits.eps * size.clamp(min=limits.tiny)

def _kind(thing) -> str:
    "A few words for any object."
    if isinstance(thing, Tensor):
        return f"{tuple(thing.shape)} {str(thing.dtype).removeprefix('torch.')}"
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return repr(thing) if len(repr(thing)) < 60 else repr(thing)[:57] + "..."
    return f"a {type(thing).__name__}"

def _tensor_misfit(got, want, dtype, factor) -> str:
    "How a tensor differs from its reference; `misfit` for one tensor."
    if not isinstance(got, Tensor):
        return f"{_kind(got)} came back, a tensor is expected" + (" (no `return`?)" if got is None else "")
    exact = not want.dtype.is_floating_point
    like = torch.empty((), dtype=want.dtype if exact or dtype is None else dtype).expand(want.shape)
    if got.shape != want.shape or got.dtype != like.dtype:
        return f"{_kind(got)} came back, {_kind(like)} is expected"
    allowed = 0 * want.double() if exact else tolerance(want.double(), like.dtype, factor).expand(want.shape)
    got, want = got.detach().double(), want.detach().double()
    error = (got - want).abs().masked_fill((got == want) | (got.isnan() & want.isnan()), 0)
    if (error <= allowed).all():
        return ""
    worst = (error / allowed).nan_to_num(torch.inf, torch.inf).masked_fill(error <= allowed, -1).argmax()
    place = tuple(int(i) for i in torch.unravel_index(worst, want.shape))
    return (f"{got[place]:.6g} came back at {place}, {want[place]:.6g} is expected "
            f"(error {error[place]:.2g}, rounding explains {allowed[place]:.1g})")

def misfit(
    got,  # what the answer returned: tensors, numbers, texts, or tuples, lists and dicts of these
    want,  # the same of the reference; tensors in float64
    dtype: torch.dtype | None = None,  # that the answer's tensors should have; None: that of `want`
    factor: float = 8.0,  # how many roundings may add up
) -> str:  # a sentence; empty where they agree
    "How `got` differs from `want` by more than rounding explains."
    if isinstance(want, Tensor):
        return _tensor_misfit(got, want, dtype, factor)
    if isinstance(want, dict) and isinstance(got, dict) and got.keys() == want.keys():
        return misfit([got[k] for k in want], list(want.values()), dtype, factor)
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(want):
            return f"{_kind(got)} came back, {len(want)} results are expected"
        parts = [misfit(g, w, dtype, factor) for g, w in zip(got, want)]
        return next((f"result {i}: {part}" for i, part in enumerate(parts) if part), "")
    number = isinstance(got, (int, float)) and isinstance(want, float) and not isinstance(got, bool)
    if number and abs(got - want) <= factor * 2**-23 * abs(want):  # a plain number: as good as a float32
        return ""
    same = isinstance(got, bool) == isinstance(want, bool) and not isinstance(got, Tensor) and got == want
    return "" if same else f"{_kind(got)} came back, {_kind(want)} is expected"

@dataclass
class Observation(Ledger):
    "What the judge saw of one call, and what it cost; arguments and result are not counted as kept."
    value: object = None  # what came back
    grads: list | None = None  # one for each argument asked for; None where nothing can be differentiated
    error: str = ""  # an exception, in one line
    modified: list = field(default_factory=list)  # places of the arguments that were changed

def _with_gradients(function):
    "The function, run with gradients on, whatever mode a notebook has left behind."
    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)
    return run

def _plain_call(answer, *args):
    "How most answers are used."
    return answer(*args)

@_with_gradients
def observe(
    answer: Callable,  # the function to watch
    *args,  # what it is called with; it gets copies
    wrt: tuple = (),  # places of the arguments whose gradients are wanted
    cotangent=None,  # gradient that arrives at the result, in its shape; None: no backward pass
    call: Callable = _plain_call,  # how the answer is used: call(answer, *args)
) -> Observation:
    "One call of `answer`, and all that the judge wants to know of it."
    seen, args = Observation(), list(args)
    leaves = [args[i].detach().clone().requires_grad_() for i in wrt]
    copies = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, args)
    for i, leaf in zip(wrt, leaves): copies[i] = leaf.clone()  # no leaf, so it can be changed; see `modified`
    try:
        with Counter(copies) as counter:
            seen.value = call(answer, *copies)
        seen.saved_bytes, seen.flops = counter.kept((seen.value, copies)), counter.flops
        seen.modified = [i for i, (a, b) in enumerate(zip(args, copies)) if misfit(b, a, factor=0)]
        if cotangent is not None: seen.grads = _gradients(seen.value, leaves, cotangent, counter)
        seen.largest_tensor, seen.backward_flops = counter.largest, counter.flops - seen.flops
        seen.collectives = counter.collectives
    except (Exception, SystemExit) as error:
        seen.error = one_line(error, answer)
    return seen

def _gradients(value, leaves, cotangent, counter) -> list | None:
    "The gradient for each leaf, or None where the result hangs on none of them."
    pairs = [(v, c) for v, c in zip(tree_leaves(value), tree_leaves(cotangent))
             if isinstance(v, Tensor) and v.requires_grad and v.shape == c.shape]
    if not pairs:
        return None
    results, arriving = zip(*((v, c.to(v.dtype)) for v, c in pairs))
    with counter:
        return list(torch.autograd.grad(results, leaves, arriving, allow_unused=True))

LOOKS = ("values", "gradients", "invariant", "ledger")
EXERCISES = {}  # name of the function that answers it -> Exercise

class Mistake(NamedTuple):
    "A wrong answer that people give."
    name: str  # a few words
    answer: Callable  # does what they do
    remark: str  # what is wrong about it, from the docstring of `answer`
    hint: int  # number of the hint that helps

class Limit(NamedTuple):
    "A bound on one count of an `Observation`."
    count: str  # "saved_bytes", "largest_tensor", "flops", "backward_flops" or "collective_bytes"
    sentence: str  # why the bound is what it is
    at_most: Callable  # at_most(*args) -> number

@dataclass
class Exercise:
    "One task, and all that the judge needs to know of it. Its parts are added by the decorators below."
    name: str  # of the function that answers it
    chapter: str  # the notebook it stands in, such as "04_norm"
    kind: str  # "rebuild", "extend" or "diagnose"
    points: dict  # look -> points
    hints: tuple  # from a nudge to almost the answer
    wrt: tuple = ()  # names of the arguments whose gradients are compared
    factor: float = 8.0  # how many roundings may add up
    condition: Callable = lambda *args: 1.0  # of a case: how much the task itself magnifies a rounding error
    call: Callable = _plain_call  # how the answer is used: call(answer, *args)

    def __post_init__(self):
        self.make_cases = self.truth = None
        self.mistakes, self.rights, self.invariants, self.limits = [], [], [], []
        EXERCISES[self.name] = self

    @property
    def names(self) -> list: return list(inspect.signature(self.truth).parameters)

    @property
    def where(self) -> tuple: return tuple(self.names.index(name) for name in self.wrt)

    @property
    def max_points(self) -> int: return sum(self.points.values())

def _adder(name):
    "A method that is a decorator: it adds a function, and what is said of it, to the list `name`."
    def method(self, *facts):
        def add(function):
            getattr(self, name).append((*facts, function))
            return function
        return add
    return method

def _setter(name):
    "A method that is a decorator: it keeps a function as the attribute `name`."
    def method(self, function):
        setattr(self, name, function)
        return function
    return method

def _mistake(self, name: str, hint: int, remark: str = "", answer=None, **changes):
    "A decorator; with an answer, and what is changed of its arguments, the whole mistake."
    def add(function):
        self.mistakes.append(Mistake(name, function, remark or inspect.getdoc(function), hint))
        return function
    if answer is None: return add
    add(functools.partial(answer, **changes) if changes else answer)

def _limit(self, count: str, sentence: str, at_most=None):
    add = lambda f: self.limits.append(Limit(count, sentence, f)) or f
    if at_most is None: return add
    add(at_most)

Exercise.cases, Exercise.reference = _setter("make_cases"), _setter("truth")
Exercise.invariant, Exercise.mistake, Exercise.limit = _adder("invariants"), _mistake, _limit
Exercise.right = lambda self, function: self.rights.append(function) or function

class _Case(NamedTuple):
    "Arguments, and the truth about them."
    args: tuple
    truth: Observation  # of the reference, in float64
    cotangent: object  # gradient that arrives at the result; None: gradients are not asked for
    dtype: torch.dtype  # that the result should have
    factor: float  # roundings that may add up
    text: str  # the case in words

def _floating(t) -> bool: return isinstance(t, Tensor) and t.dtype.is_floating_point

def _widen(tree): return tree_map(lambda t: t.double() if _floating(t) else t, tree)

def _case(exercise, args, seed) -> _Case:
    "The truth about one list of arguments."
    wide = _widen(list(args))
    dtype = next((t.dtype for t in args if _floating(t)), torch.float32)
    random = torch.Generator().manual_seed(seed)
    cotangent = None
    if exercise.wrt:
        draw = lambda t: torch.randn(t.shape, generator=random).to(dtype)
        cotangent = tree_map(draw, observe(exercise.truth, *wide).value)
    truth = observe(exercise.truth, *wide, wrt=exercise.where, cotangent=_widen(cotangent))
    assert not truth.error, truth.error
    text = ", ".join(f"{name} {_kind(a)}" for name, a in zip(exercise.names, args))
    return _Case(tuple(args), truth, cotangent, dtype, exercise.factor * exercise.condition(*args), text)

class _Fault(NamedTuple):
    "Where an answer failed."
    look: str
    text: str
    mark: str = ""  # the law or limit that was broken
    amount: float = 0.0  # by how much, for a limit

_NO_ANSWER = "there is no answer yet"

def _value_fault(exercise, case, seen) -> str:
    "What is wrong with the value of one call."
    if seen.error:
        return _NO_ANSWER if seen.error.startswith("NotImplementedError") else seen.error
    if seen.modified:
        return f"the call changes its argument `{exercise.names[seen.modified[0]]}` in place"
    return misfit(seen.value, case.truth.value, case.dtype, case.factor)

def _gradient_fault(exercise, case, seen) -> str:
    "What is wrong with the gradients of one call."
    if seen.grads is None:
        return "the result is cut off from its arguments: a .detach(), .item(), .data or no_grad()?"
    for name, got, want in zip(exercise.wrt, seen.grads, case.truth.grads):
        if got is None: return f"no gradient reaches `{name}`"
        if text := misfit(got, want, case.dtype, 2 * case.factor):  # the way back is as long again
            return f"gradient of `{name}`: {text}"
    return ""

def _broken_law(exercise, watch) -> _Fault | None:
    "The first invariant that does not hold for the answer."
    def seen(*args, **how):
        result = watch(*args, **how)
        if result.error: raise RuntimeError(result.error)
        return result

    for sentence, holds in exercise.invariants:
        try:
            broken = "" if holds(seen) else "this does not hold"
        except WorkerDied: raise
        except Exception as error: broken = f"it ended in {one_line(error)}"
        if broken: return _Fault("invariant", f"{sentence}: {broken}", sentence)

def _broken_limit(exercise, trial, seen) -> _Fault | None:
    "The first limit of the ledger that one of the cases exceeds."
    for limit in exercise.limits:
        for case, s in zip(trial, seen):
            count, most = getattr(s, limit.count), limit.at_most(*case.args)
            if count > most:
                text = f"{limit.count} {count:,} with {case.text}; at most {most:,.0f}: {limit.sentence}"
                return _Fault("ledger", text, limit.sentence, count / max(most, 1))

_FAULTS = {"values": _value_fault, "gradients": _gradient_fault}

def _find_fault(exercise, watch, trial) -> tuple:
    "The first fault of an answer, or None; and what was seen of it, case by case."
    seen = [watch(*case.args, wrt=exercise.where, cotangent=case.cotangent) for case in trial]
    for look, fault in _FAULTS.items():
        if look in exercise.points:
            for case, s in zip(trial, seen):
                if text := fault(exercise, case, s):
                    return _Fault(look, text if text == _NO_ANSWER else f"{text}, with {case.text}"), seen
    broken = "invariant" in exercise.points and _broken_law(exercise, watch)
    return broken or ("ledger" in exercise.points and _broken_limit(exercise, trial, seen)) or None, seen

def _same_fault(look, ours: Observation, theirs: Observation, case) -> bool:
    "Whether two wrong answers went wrong in the same way."
    if ours.error or theirs.error or ours.modified or theirs.modified:
        kind = lambda s: (s.error.split(":")[0].split(" ")[0], s.modified)
        return kind(ours) == kind(theirs)
    part = "value" if look == "values" else "grads"
    return not misfit(getattr(ours, part), getattr(theirs, part), None, 2 * case.factor)

def _likeness(exercise, fault, trial, seen, failed, mistake) -> float:
    "From 0 to 1: how much of what went wrong the mistake explains."
    watch = functools.partial(observe, mistake.answer, call=exercise.call)
    if fault.mark:
        theirs = _find_fault(exercise, watch, trial)[0] or fault._replace(mark="")
        amounts = sorted((fault.amount, theirs.amount))
        return (amounts[0] / amounts[1] if amounts[1] else 1.0) if theirs.mark == fault.mark else 0.0
    alike = 0
    for i in failed:
        theirs = watch(*trial[i].args, wrt=exercise.where, cotangent=trial[i].cotangent)
        wrong = _FAULTS[fault.look](exercise, trial[i], theirs)
        alike += bool(wrong) and _same_fault(fault.look, seen[i], theirs, trial[i])
        if not alike: return 0.0  # not even the first
    return alike / len(failed)

def _suspect(exercise, fault, trial, seen) -> Mistake | None:
    "The named mistake that explains most of the fault, if it explains more than half."
    if fault.text == _NO_ANSWER: return None
    look = _FAULTS.get(fault.look, lambda *_: False)
    failed = [i for i, case in enumerate(trial) if look(exercise, case, seen[i])]
    likeness = [_likeness(exercise, fault, trial, seen, failed, m) for m in exercise.mistakes]
    best = max(range(len(likeness)), key=likeness.__getitem__, default=None)
    return exercise.mistakes[best] if best is not None and likeness[best] > 0.5 else None

@dataclass
class Report:
    "The judgement of one answer."
    name: str  # of the exercise
    looks: list  # rows (look, points, of how many, remark)
    messages: list  # what is wrong and where to look; empty where all is well

    @property
    def points(self) -> int: return sum(row[1] for row in self.looks)

    @property
    def where(self) -> tuple: return tuple(self.names.index(name) for name in self.wrt)

    @property
    def max_points(self) -> int: return sum(row[2] for row in self.looks)

    @property
    def passed(self) -> bool: return self.points == self.max_points

    def __repr__(self):
        rows = [f"  {look:10} {points}/{most}  {remark}" for look, points, most, remark in self.looks]
        return "\n".join([f"{self.name}: {self.points} of {self.max_points} points", *rows, *self.messages])

    def _repr_html_(self):
        cell = lambda tag, text: f'<{tag} style="text-align:left">{html.escape(str(text))}</{tag}>'
        rows = [("look", "points", "of", "")] + self.looks + [("all", self.points, self.max_points, "")]
        table = "".join("<tr>" + "".join(cell("td", c) for c in row) + "</tr>" for row in rows)
        lines = "".join(cell("p", m) for m in self.messages)
        return f"<b>{html.escape(self.name)}</b><table>{table}</table>{lines}"

def judge(
    exercise: Exercise,  # the task
    watch: Callable,  # observes the answer: watch(*args, wrt=, cotangent=) -> Observation
    seed: int = 0,  # of the cases
) -> Report:
    "The four looks at one answer, in order, up to the first that fails."
    trial = [_case(exercise, args, seed + i) for i, args in enumerate(exercise.make_cases(seed))]
    fault, seen = _find_fault(exercise, watch, trial)
    counts = ", ".join(dict.fromkeys(limit.count for limit in exercise.limits))
    remarks = {"values": f"right in {len(trial)} cases", "gradients": f"right for {', '.join(exercise.wrt)}",
               "invariant": "; ".join(law[0] for law in exercise.invariants),
               "ledger": f"within the limits: {counts}"}
    rows, failed = [], False
    for look in (look for look in LOOKS if look in exercise.points):
        failed_here = fault is not None and fault.look == look
        remark = "failed" if failed_here else "not reached" if failed else remarks[look]
        failed = failed or failed_here
        rows.append((look, 0 if failed else exercise.points[look], exercise.points[look], remark))
    messages = [f"{fault.look}: {fault.text}"] if fault else []
    if fault and (mistake := _suspect(exercise, fault, trial, seen)):
        advice = f'hint("{exercise.name}", {mistake.hint}) helps.'
        messages.append(f'This looks like "{mistake.name}": {mistake.remark} {advice}')
    return Report(exercise.name, rows, messages)

def load_exercises() -> dict:
    "All exercises of the course, by name."
    package = importlib.import_module("llama_course.classroom.judges")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"llama_course.classroom.judges.{module.name}")
    return EXERCISES

def find_exercise(
    name: str,  # of the function that answers it
) -> Exercise:
    "The exercise of that name; a `UserError` that lists names like it where there is none."
    if name not in EXERCISES: load_exercises()
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=3, cutoff=0.5) or sorted(EXERCISES)
        raise UserError(f"no exercise is answered by a function called {name!r}; there is {', '.join(near)}")
    return EXERCISES[name]

class Hint(str):
    "A text that a notebook shows as text."
    def __repr__(self): return str(self)

def hint(
    name: str,  # of the exercise
    number: int = 1,  # the first says little, the last almost all
) -> Hint:
    "One hint for an exercise."
    exercise = find_exercise(getattr(name, "__name__", name))
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
    "The judgement of your function, in this process."
    if not callable(answer):
        raise UserError(f"check takes a function, as in check(rms_norm), not {_kind(answer)}")
    exercise = find_exercise(name or getattr(answer, "__name__", type(answer).__name__))
    watch = functools.partial(observe, answer, call=exercise.call)
    with warnings.catch_warnings(), contextlib.redirect_stderr(sys.stdout):  # to nbgrader stderr is a failure
        warnings.simplefilter("ignore")
        return judge(exercise, watch, seed)

def refusals(
    exercise: Exercise,  # the task
) -> list:  # rows (mistake, look that refused it, whether it was named)
    "What the judge says to each named mistake of an exercise."
    rows = []
    for mistake in exercise.mistakes:
        report = judge(exercise, functools.partial(observe, mistake.answer, call=exercise.call))
        look = next((look for look, _, _, remark in report.looks if remark == "failed"), "nobody")
        rows.append((mistake.name, look, any(f'"{mistake.name}"' in message for message in report.messages)))
    return rows

def plot_refusals(
    tables: dict,  # name of the exercise -> its refusals
):
    "One row a mistake, one column a look: which look refuses it."
    import matplotlib.pyplot as plt

    rows = [(f"{task}: {name}", look) for task, table in tables.items() for name, look, _ in table]
    fig, ax = plt.subplots(figsize=(7.2, 0.8 + 0.2 * len(rows)))
    for y, (_, look) in enumerate(rows):
        at = LOOKS.index(look) if look in LOOKS else len(LOOKS)
        ax.scatter(range(at), [-y] * at, marker="s", s=60, color="C2")
        ax.scatter(at, -y, marker="X", s=60, color="C1")
    ax.set(title="square: passed, cross: refused", xlim=(-0.5, 3.5), ylim=(0.7 - len(rows), 0.7))
    ax.set_xticks(range(4), LOOKS, fontsize=8)
    ax.set_yticks([-y for y in range(len(rows))], [label for label, _ in rows], fontsize=7)
    ax.grid(False)

def served() -> Served:
    "What a worker is asked for: observations of answers to the exercises."
    calls = {name: exercise.call for name, exercise in load_exercises().items()}
    return Served(observe, calls, [sys.modules[__name__], Observation])

def _observation(seen: dict, values: dict, n_args: int, n_grads: int) -> Observation:
    "What a worker reported. Nothing is taken on trust: `ValueError` where it is no observation."
    kinds = {"saved_bytes": int, "largest_tensor": int, "flops": int, "backward_flops": int,
             "error": str, "modified": list, "collectives": dict}
    value, grads = values["value"], values["grads"]
    sound = (all(isinstance(seen.get(name, kind()), kind) for name, kind in kinds.items())
             and all(i in range(n_args) for i in seen.get("modified", []))
             and (grads is None or isinstance(grads, list) and len(grads) == n_grads))
    if not sound: raise ValueError("no observation")
    counts = {name: seen.get(name, kind()) for name, kind in kinds.items()}
    return Observation(value, grads, **counts | {"error": tidy(counts["error"], 400)})

def _proxy(worker: Worker, exercise: Exercise) -> Callable:
    "`observe`, for an answer that lives in the worker."
    def watch(*args, wrt=(), cotangent=None) -> Observation:
        message = {"do": "observe", "name": exercise.name, "wrt": list(wrt)}
        seen, values = worker.ask(worker.limits.call_seconds, message, (list(args), cotangent))
        try:
            if seen["replaced"]:
                seen["error"] = f"the call replaces {seen['replaced'][0]}, which the judge counts with"
            return _observation(seen, values, len(args), len(wrt))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WorkerDied("what came back is no observation: it wrote to the judge's own channel")
    return watch

class _Cells(NamedTuple):
    "What the judge needs of a notebook."
    path: Path
    sources: list  # (number, source) of the code cells, nbgrader's test cells left out: the judge is one
    claims: list  # names of the exercises that it has to do with

def _marks(cell: dict) -> dict:
    "What nbgrader has noted about a cell."
    meta = cell.get("metadata")
    marks = meta.get("nbgrader") if isinstance(meta, dict) else None
    return marks if isinstance(marks, dict) else {}

def _read_notebook(path: Path) -> _Cells:
    "The code cells of a notebook file."
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no notebook ({type(error).__name__} on reading it): give an .ipynb file")
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UserError(f"{path} is no notebook of format 4, it has no cells: open and save it in JupyterLab")
    sources, marked = [], set()
    for number, cell in enumerate(cells, 1):
        source, meta = cell.get("source", ""), _marks(cell)
        source = "".join(map(str, source)) if isinstance(source, list) else str(source)
        marked.add(str(meta.get("grade_id")))
        if cell.get("cell_type") == "code" and not (meta.get("grade") and not meta.get("solution")):
            sources.append((number, source))
    code = "\n".join(source for _, source in sources)
    def defined(name):
        return re.search(rf"^(?:def|class) +{name}\b|^{name} *=|\bimport\b.*\b{name}\b", code, re.MULTILINE)
    return _Cells(path, sources, [name for name in load_exercises() if name in marked or defined(name)])

def _grade_answers(run: Run, tasks: list, seed: int) -> dict:
    "Exercise -> report, or a message, each judged in a worker that no other answer has broken."
    results, path = {}, run.path
    try:
        found = run.start().ask(5, {"do": "names", "names": [task.name for task in tasks]})[0]["found"]
        for task in tasks:
            if task.name in found: results[task.name] = _judge_in(run, task, seed)
            else:
                others = ", ".join(found) or "none of its chapter"
                results[task.name] = f"no function {task.name} in {path} (found: {others})"
    except WorkerDied as died:
        return {task.name: f"{path}: {died}" for task in tasks} | results
    return results

def _judge_in(run: Run, task: Exercise, seed: int):
    "The report on one answer. If the worker dies, a second try goes without whatever the cells have started."
    for bare in (False, True):
        try: return judge(task, _proxy(run.worker, task), seed)
        except WorkerDied as died: message = f"the call of {task.name} was ended: {died}"
        run.start(bare=not bare)
    return message

def _grade_notebook(cells: _Cells, limits: Limits, seed: int) -> tuple:
    "Rows for the exercises of a notebook, and notes about it."
    chapters = {EXERCISES[name].chapter for name in cells.claims}
    tasks = [task for task in EXERCISES.values() if task.chapter in chapters]
    run = Run(cells.path, cells.sources, limits)
    try: results = _grade_answers(run, tasks, seed)
    finally: run.stop()
    rows = []
    for task in tasks:
        report = results[task.name]
        if isinstance(report, str):
            report = Report(task.name, [(look, 0, most, "") for look, most in task.points.items()], [report])
        rows.append({"name": task.name, "points": report.points, "max_points": report.max_points,
                     "passed": report.passed, "messages": report.messages})
    return rows, [f"{cells.path}: {note}" for note in run.notes.values()]

def grade(
    path,  # a notebook, or a folder of notebooks
    limits: Limits = Limits(),  # of time and memory, for each notebook
    seed: int = 0,  # of the cases
) -> dict:  # {"exercises": [{"name", "points", "max_points", "passed", "messages"}], "notes": [...]}
    "Scores of all exercises in a notebook or a folder of notebooks; their code runs in other processes."
    path = Path(path)
    if not path.exists(): raise UserError(f"there is no file or folder {path}")
    files = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    if not files: raise UserError(f"no notebook (.ipynb) in the folder {path}")
    notebooks = [_read_notebook(file) for file in files]
    if not any(cells.claims for cells in notebooks):
        some = ", ".join(sorted(EXERCISES)[:5])
        raise UserError(f"{path} answers no exercise: it defines none of {some} and the others")
    for name in EXERCISES:
        twice = [str(cells.path) for cells in notebooks if name in cells.claims]
        if len(twice) > 1:
            raise UserError(f"{' and '.join(twice[:2])} both answer {name}: grade one of them, by its path")
    result = {"exercises": [], "notes": []}
    for cells in notebooks:
        rows, notes = _grade_notebook(cells, limits, seed) if cells.claims else ([], [])
        result["exercises"] += rows
        result["notes"] += [f"{cells.path}: {'graded' if rows else 'no exercise in it'}"] + notes
    return result

def gradescope(
    result: dict,  # from `grade`
) -> dict:
    "The same scores as Gradescope's results.json wants them."
    tests = [{"name": row["name"], "score": row["points"], "max_score": row["max_points"],
              "status": "passed" if row["passed"] else "failed", "output": "\n".join(row["messages"])}
             for row in result["exercises"]]
    return {"tests": tests, "output": "\n".join(result["notes"]), "visibility": "visible"}

def generate_exercises(
    solutions: str | Path = "solutions",  # folder of the solved notebooks
    exercises: str | Path = "exercises",  # folder that gets the notebooks without solutions
) -> list:  # paths of the notebooks written
    "The notebooks that learners open, made from the solved ones by nbgrader's preprocessors."
    import nbformat
    from nbgrader import preprocessors as steps

    written = []
    for source in sorted(Path(solutions).glob("*.ipynb")):
        notebook, resources = nbformat.read(source, as_version=4), {}
        for step in (steps.LockCells, steps.ClearSolutions, steps.ClearOutput, steps.ClearHiddenTests,
                     steps.ClearMarkScheme, steps.ComputeChecksums, steps.CheckCellMetadata):
            notebook, resources = step().preprocess(notebook, resources)
        for key in notebook.metadata.keys() - {"kernelspec"}: del notebook.metadata[key]
        nbformat.validate(notebook)
        target = Path(exercises) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
        written.append(target)
    if not written: raise UserError(f"no solved notebook in {solutions}: start it in the project's folder")
    return written
