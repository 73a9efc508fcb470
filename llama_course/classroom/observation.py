"What the judge sees of one call: the value, the gradients, what it changed, and what it cost."

import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from llama_course.classroom.compare import misfit
from llama_course.classroom.hidden import borrowed, watched
from llama_course.classroom.surroundings import neutral, time_limit
from llama_course.classroom.values import taken
from llama_course.support.ledger import Counter, Ledger


@dataclass
class Observation(Ledger):
    "What one call did and cost; arguments and result are not counted as kept."

    value: Any = None  # what came back, as `taken` makes it
    grads: list | None = None  # one for each argument asked for; None where there are none
    error: str = ""  # an exception, in one line
    modified: list = field(default_factory=list)  # places of the arguments that were changed
    hidden: list = field(default_factory=list)  # work that the ledger has not seen, in words
    borrowed: list = field(default_factory=list)  # what it took from the judge's truth, in words


def plain_call(answer: Callable, *args: Any) -> Any:
    "What the answer returns: how most answers are used."
    return answer(*args)


def tidy(
    text: Any,  # its text is taken
    length: int = 300,  # characters, at most
) -> str:
    "One line of printable characters."
    try:
        words = " ".join(str(text)[: 20 * length].split())
    except Exception:  # the text of somebody else's class
        words = f"(a {type(text).__name__} without a text)"
    return "".join(c for c in words if c.isprintable())[:length]


def one_line(
    error: BaseException,
    answer: Any = None,  # the function that was called: lines of its file count as places, too
) -> str:
    "Type, text and place of an exception, and the line of the answer where it happened."
    home, place, trace = _file_of(answer), "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<cell") or file == home:
            where = "the cell" if "ipykernel" in file else Path(file).name.strip("<>")
            line = " ".join(linecache.getline(file, trace.tb_lineno).split())
            place = f" (line {trace.tb_lineno} of {where})" + (f": `{line[:80]}`" if line else "")
        trace = trace.tb_next
    text = "the memory limit was reached" if "alloc_cpu" in tidy(error, 2000) else tidy(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _file_of(answer: Any) -> str:
    "The file in which a function was written."
    try:
        return inspect.unwrap(answer).__code__.co_filename
    except Exception:  # no function, or one whose attributes are somebody else's
        return "<cell"


def observe(
    answer: Callable,  # the function to watch
    *args: Any,  # what it is called with; it gets copies
    wrt: tuple = (),  # places of the arguments whose gradients are wanted
    cotangent: Any = None,  # gradient that arrives at the result; None: no backward pass
    call: Callable = plain_call,  # how the answer is used: call(answer, *args)
    seconds: float | None = None,  # that it may take; None: as long as it likes
) -> Observation:
    """One call of `answer`, and all that the judge wants to know of it.

    It runs under PyTorch's own settings, whatever the notebook has set, and what it leaves set is
    put back.
    """
    seen = Observation()
    with neutral():
        leaves = [args[i].detach().clone().requires_grad_() for i in wrt]
        copies = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, list(args))
        for i, leaf in zip(wrt, leaves):
            copies[i] = leaf.clone()  # no leaf, so it can be changed; see `modified`
        with watched() as notes:
            try:
                with time_limit(seconds):
                    _watch(seen, call, answer, copies, leaves, cotangent)
            except BaseException as error:  # SystemExit, KeyboardInterrupt, OutOfTime as well
                seen.error = one_line(error, answer)
        if not seen.error:
            pairs = enumerate(zip(args, taken(copies)))
            seen.modified = [i for i, (before, after) in pairs if misfit(after, before, factor=0)]
    seen.hidden, seen.borrowed = notes.hidden, notes.borrowed
    seen.borrowed += [text for text in borrowed(answer) if text not in seen.borrowed]
    return seen


def _watch(
    seen: Observation, call: Callable, answer: Callable, copies: list, leaves: list, cotangent: Any
) -> None:
    "Runs the answer both ways, and fills in what is counted of it."
    with Counter(copies) as counter:
        result = call(answer, *copies)
        seen.value = taken(result)
        del result
    seen.saved_bytes, seen.flops = counter.kept((seen.value, copies)), counter.flops
    if cotangent is not None:
        seen.grads = _gradients(seen.value, leaves, cotangent, counter)
    seen.largest_tensor, seen.backward_flops = counter.largest, counter.flops - seen.flops
    seen.collectives = counter.collectives


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
        return taken(list(torch.autograd.grad(results, leaves, arriving, allow_unused=True)))
