"One instrument for the whole course: counts what a computation keeps, makes, computes and sends."

import gc
import linecache
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def storages(
    tree,  # tensors, or lists, tuples and dicts of them
) -> dict:  # weak reference -> a tensor in that storage
    "The memory that tensors lie in, each piece once; of a sharded tensor, its local part."
    found = {}
    for t in tree_leaves(tree):
        if isinstance(t, Tensor) and is_traceable_wrapper_subclass(t):
            found |= storages([getattr(t, name) for name in t.__tensor_flatten__()[0]])
        elif isinstance(t, Tensor) and t.layout == torch.strided:
            found[StorageWeakRef(t.untyped_storage())] = t
    return found


FORMULAS = dict(flop_registry)  # operation -> FLOPs from its arguments
_CPU = "_scaled_dot_product_flash_attention_for_cpu"


def _attention_flops(q, k, v, *_, **__):
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward_flops(grad, q, k, v, *_, **__):
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


for _name, _formula in ((_CPU, _attention_flops), (_CPU + "_backward", _attention_backward_flops)):
    if hasattr(torch.ops.aten, _name):
        FORMULAS.setdefault(getattr(torch.ops.aten, _name), _formula)

KINDS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "barrier": "barrier",
    "gather": "gather",
    "scatter": "scatter",
    "reduce": "reduce",
    "send": "send",
    "recv": "recv",
}


def collective_kind(func) -> str | None:
    "The kind of a collective operation; None for any other."
    if func.namespace not in ("c10d", "_c10d_functional", "_dtensor"):
        return None
    name = func._opname.replace("_", "")
    return next((kind for key, kind in KINDS.items() if key in name), None)


def message_bytes(args, out) -> int:
    "The larger of what goes in and what comes out."
    size = lambda tree: sum(t.nbytes for t in tree_leaves(tree) if isinstance(t, Tensor))
    return max(map(size, (*args, out)))


class Counter(TorchDispatchMode):
    "Within it every operation is counted, both ways; what was `given` never counts as made."

    def __init__(self, *given):
        super().__init__()
        self.given, self.made, self.largest, self.flops = set(storages(given)), {}, 0, 0
        self.collectives = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a sharded tensor goes first: its local operations come by here
        if torch.is_inference_mode_enabled() and func._overloadpacket not in FORMULAS:
            with self:  # nothing has taken it apart for autograd
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        if func is not torch.ops.aten.lift_fresh.default:  # torch.tensor has just made it
            self.given |= {ref for ref in storages((args, kwargs)) if ref not in self.made}
        out = func(*args, **kwargs)
        self.note(func, args, kwargs, out)
        return out

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else the first use imports the compiler: two seconds

    def note(self, func, args, kwargs, out):
        "Adds one operation to the counts."
        if formula := FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        if kind := collective_kind(func):
            calls, size = self.collectives.get(kind, (0, 0))
            sent = 0 if kind == "barrier" else message_bytes(args, out)
            self.collectives[kind] = calls + 1, size + sent
        for ref, t in storages(out).items():
            if ref not in self.given:
                self.made[ref] = t.untyped_storage().nbytes()
                self.largest = max(self.largest, self.made[ref] // t.element_size())

    def kept(self, result) -> int:
        "Bytes that were made here and still live, other than the result's."
        gc.collect(1)  # young cycles; a full collection takes a fifth of a second
        known = storages(result)
        return sum(
            size for ref, size in self.made.items() if not ref.expired() and ref not in known
        )


@dataclass(kw_only=True)
class Ledger:
    "What a computation costs, the same on every machine."

    saved_bytes: int = 0  # alive after the forward pass, beside what existed before and the result
    largest_tensor: int = 0  # elements, forward and backward
    flops: int = 0  # of the forward pass, in matrix products, attention and convolutions
    backward_flops: int = 0
    collectives: dict = field(default_factory=dict)  # kind -> (calls, bytes), forward and backward

    @property
    def collective_calls(self) -> int:
        return sum(calls for calls, _ in self.collectives.values())

    @property
    def collective_bytes(self) -> int:
        return sum(size for _, size in self.collectives.values())


@torch.inference_mode(False)
@torch.enable_grad()
def ledger(
    function: Callable,  # a function or a module
    *args,  # what it is called with
    backward: bool = True,  # whether the backward pass is run, too; gradients end in `.grad`
    **kwargs,
) -> Ledger:
    "What function(*args, **kwargs) costs: memory kept, largest tensor, arithmetic, messages."
    with Counter(args, kwargs) as count:
        result = function(*args, **kwargs)
    book = Ledger(saved_bytes=count.kept((result, args, kwargs)), flops=count.flops)
    ends = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    if backward and ends:
        arriving = [torch.ones_like(t) for t in ends]
        with count:
            torch.autograd.backward(ends, arriving)
    book.largest_tensor, book.collectives = count.largest, count.collectives
    book.backward_flops = count.flops - book.flops
    return book


class Saved(NamedTuple):
    "A piece of memory that autograd keeps for the backward pass."

    where: str  # function and line that were running, outside of PyTorch
    shape: tuple  # of the tensor that was saved first
    dtype: torch.dtype
    bytes: int  # of its whole storage
    whose: str  # "made" by the call, "given" before it, or the "result"


def _line() -> str:
    "The innermost line of Python that is neither PyTorch's nor ours."
    frame, torch_home = sys._getframe(1), str(Path(torch.__file__).parent)
    while frame.f_back and (
        frame.f_code.co_filename.startswith(torch_home)
        or frame.f_globals is globals()
        and frame.f_code.co_name in _OWN
    ):
        frame = frame.f_back
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name).replace("<locals>.", "")
    return f"{name}: {re.sub(r' # .*', '', ' '.join(text.split()))}"


_OWN = ("_line", "pack", "saved_tensors")


@torch.inference_mode(False)
@torch.enable_grad()
def saved_tensors(
    function: Callable,  # a function or a module
    *args,  # what it is called with
    **kwargs,
) -> list[Saved]:
    "Every storage that autograd saves in function(*args, **kwargs), in order, each once."
    rows: dict[StorageWeakRef, Saved] = {}

    def pack(t):
        for ref, plain in storages(t).items():
            whose = "made" if ref in count.made else "given"
            size = plain.untyped_storage().nbytes()
            rows.setdefault(ref, Saved(_line(), tuple(t.shape), t.dtype, size, whose))
        return t

    with (
        Counter(args, kwargs) as count,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        result = function(*args, **kwargs)
    final = {
        ref: row._replace(whose="result") for ref, row in rows.items() if ref in storages(result)
    }
    return list((rows | final).values())
