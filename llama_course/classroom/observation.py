"What the judge sees of one call: the value, the gradients, what it changed, and what it cost."

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from llama_course.classroom.compare import misfit
from llama_course.support.ledger import Counter, Ledger


@dataclass
class Observation(Ledger):
    "What one call did and cost; arguments and result are not counted as kept."

    value: Any = None  # what came back
    grads: list | None = None  # one for each argument asked for; None where there are none
    error: str = ""  # an exception, in one line
    modified: list = field(default_factory=list)  # places of the arguments that were changed


def plain_call(answer: Callable, *args: Any) -> Any:
    "What the answer returns: how most answers are used."
    return answer(*args)


def tidy(
    text: Any,  # its text is taken
    length: int = 300,  # characters, at most
) -> str:
    "One line of printable characters."
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:length]


def one_line(
    error: BaseException,
    answer: Any = None,  # the function that was called: lines of its file count as places, too
) -> str:
    "Type, text and place of an exception, in one line."
    code = getattr(inspect.unwrap(answer), "__code__", None) if callable(answer) else None
    home, place, trace = getattr(code, "co_filename", "<cell"), "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<cell") or file == home:
            where = "the cell" if "ipykernel" in file else Path(file).name.strip("<>")
            place = f" (line {trace.tb_lineno} of {where})"
        trace = trace.tb_next
    text = "the memory limit was reached" if "alloc_cpu" in str(error) else tidy(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _with_gradients(function: Callable) -> Callable:
    "The function, run with gradients on, whatever mode a notebook has left behind."

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return run


@_with_gradients
def observe(
    answer: Callable,  # the function to watch
    *args: Any,  # what it is called with; it gets copies
    wrt: tuple = (),  # places of the arguments whose gradients are wanted
    cotangent: Any = None,  # gradient that arrives at the result; None: no backward pass
    call: Callable = plain_call,  # how the answer is used: call(answer, *args)
) -> Observation:
    "One call of `answer`, and all that the judge wants to know of it."
    seen = Observation()
    leaves = [args[i].detach().clone().requires_grad_() for i in wrt]
    copies = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, list(args))
    for i, leaf in zip(wrt, leaves):
        copies[i] = leaf.clone()  # no leaf, so it can be changed; see `modified`
    try:
        with Counter(copies) as counter:
            seen.value = call(answer, *copies)
        seen.saved_bytes, seen.flops = counter.kept((seen.value, copies)), counter.flops
        pairs = enumerate(zip(args, copies))
        seen.modified = [i for i, (before, after) in pairs if misfit(after, before, factor=0)]
        if cotangent is not None:
            seen.grads = _gradients(seen.value, leaves, cotangent, counter)
        seen.largest_tensor, seen.backward_flops = counter.largest, counter.flops - seen.flops
        seen.collectives = counter.collectives
    except (Exception, SystemExit) as error:
        seen.error = one_line(error, answer)
    return seen


def _gradients(value: Any, leaves: list, cotangent: Any, counter: Counter) -> list | None:
    "The gradient for each leaf, or None where the result hangs on none of them."
    pairs = [
        (v, c)
        for v, c in zip(tree_leaves(value), tree_leaves(cotangent))
        if isinstance(v, Tensor) and v.requires_grad and v.shape == c.shape
    ]
    if not pairs:
        return None
    results, arriving = zip(*((v, c.to(v.dtype)) for v, c in pairs))
    with counter:
        return list(torch.autograd.grad(results, leaves, arriving, allow_unused=True))
