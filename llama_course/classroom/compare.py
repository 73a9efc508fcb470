"Whether a value is the reference's, as far as rounding can tell; if not, how they differ."

from typing import Any

import torch
from torch import Tensor


def tolerance(
    want: Tensor,  # the reference, float64
    dtype: torch.dtype,  # of the answer
    factor: float = 8.0,  # how many roundings may add up
) -> Tensor:  # one number for each row of `want`
    "The largest error that rounding explains: factor * eps of the dtype * the row's largest."
    limits = torch.finfo(dtype)
    size = want.abs().nan_to_num(0, 0, 0)
    if want.dim() and want.numel():
        size = size.amax(-1, keepdim=True)
    return factor * limits.eps * size.clamp(min=limits.tiny)


def in_few_words(thing: Any) -> str:
    "A few words for any object."
    if isinstance(thing, Tensor):
        return f"{tuple(thing.shape)} {str(thing.dtype).removeprefix('torch.')}"
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return repr(thing) if len(repr(thing)) < 60 else repr(thing)[:57] + "..."
    return f"a {type(thing).__name__}"


def misfit(
    got: Any,  # what the answer returned: tensors, numbers, texts; tuples, lists, dicts of these
    want: Any,  # the same of the reference; tensors in float64
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
            return f"{in_few_words(got)} came back, {len(want)} results are expected"
        parts = [misfit(g, w, dtype, factor) for g, w in zip(got, want)]
        return next((f"result {i}: {part}" for i, part in enumerate(parts) if part), "")
    number = isinstance(got, (int, float)) and isinstance(want, float) and not isinstance(got, bool)
    if number and _close(got, want, factor * 2**-23):  # a plain number: as good as a float32
        return ""
    same_kind = isinstance(got, bool) == isinstance(want, bool) and not isinstance(got, Tensor)
    if same_kind and got == want:
        return ""
    return f"{in_few_words(got)} came back, {in_few_words(want)} is expected"


def _close(got: float, want: float, relative: float) -> bool:
    try:
        return abs(got - want) <= relative * abs(want)
    except OverflowError:  # an integer that no float can hold
        return False


def _tensor_misfit(got: Any, want: Tensor, dtype: torch.dtype | None, factor: float) -> str:
    "How a tensor differs from its reference; `misfit` for one tensor."
    if not isinstance(got, Tensor):
        remark = " (no `return`?)" if got is None else ""
        return f"{in_few_words(got)} came back, a tensor is expected{remark}"
    exact = not want.dtype.is_floating_point
    like = torch.empty((), dtype=want.dtype if exact or dtype is None else dtype)
    like = like.expand(want.shape)
    if got.shape != want.shape or got.dtype != like.dtype:
        return f"{in_few_words(got)} came back, {in_few_words(like)} is expected"
    allowed = torch.zeros_like(want, dtype=torch.float64)
    if not exact:
        allowed = tolerance(want.double(), like.dtype, factor).expand(want.shape)
    got, want = got.detach().double(), want.detach().double()
    error = (got - want).abs().masked_fill((got == want) | (got.isnan() & want.isnan()), 0)
    if (error <= allowed).all():
        return ""
    ratio = (error / allowed).nan_to_num(torch.inf, torch.inf).masked_fill(error <= allowed, -1)
    place = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), want.shape))
    return (
        f"{got[place]:.6g} came back at {place}, {want[place]:.6g} is expected "
        f"(error {error[place]:.2g}, rounding explains {allowed[place]:.1g})"
    )
