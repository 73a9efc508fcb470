"Whether a value is the reference's, as far as rounding can tell; if not, how they differ."

from typing import Any

import torch
from torch import Tensor

from llama_course.classroom.values import Unknown

SHOWN = 60  # characters of an argument or a result in a message
SCALAR_KINDS = (bool, int, float, str, bytes)


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


def in_few_words(
    thing: Any,
    room: int = SHOWN,  # characters that a list, a dict or a text may take
) -> str:
    "A few words for any object: what it is, and its beginning."
    if isinstance(thing, Tensor):
        kind = f"{tuple(thing.shape)} {str(thing.dtype).removeprefix('torch.')}"
        few = thing.dim() < 2 and thing.numel() < 5 and thing.device.type == "cpu"
        return f"{kind} {thing.tolist()}" if few and not thing.dtype.is_floating_point else kind
    if isinstance(thing, Unknown):
        return f"a {type(thing).__name__}"
    if thing is None or type(thing) in SCALAR_KINDS:
        text = f"{thing:#.3g}" if _is_huge(thing) else repr(thing)
        return text if len(text) < room else text[: room - 3] + "..."
    if isinstance(thing, (list, tuple)):
        return _shortened(thing, [in_few_words(part, 20) for part in thing[:20]], "[]()", room)
    if isinstance(thing, dict):
        pairs = [
            f"{in_few_words(k, 20)}: {in_few_words(v, 20)}" for k, v in list(thing.items())[:20]
        ]
        return _shortened(thing, pairs, "{}{}", room)
    return f"a {type(thing).__name__}"


def _is_huge(thing: Any) -> bool:
    return type(thing) is int and 2**200 < abs(thing) < 2**1000


def _shortened(thing: Any, parts: list[str], brackets: str, room: int) -> str:
    "As many of the parts as there is room for, and how many there are."
    brackets = brackets[2:] if isinstance(thing, tuple) else brackets[:2]
    first, last = brackets[0], brackets[1]
    whole = first + ", ".join(parts) + last
    if len(parts) == len(thing) and len(whole) <= room:
        return whole
    shown = 0
    while shown < len(parts) and len(", ".join(parts[: shown + 1])) < room - 16:
        shown += 1
    return f"{first}{', '.join([*parts[:shown], '...'])}{last} ({len(thing)} of them)"


def misfit(
    got: Any,  # what the answer returned, as `taken` makes it
    want: Any,  # the same of the reference; tensors in float64
    dtype: torch.dtype | None = None,  # that the answer's tensors should have; None: that of `want`
    factor: float = 8.0,  # how many roundings may add up
    noise: Any = None,  # like `want`: the error of one rounding where terms cancel
) -> str:  # a sentence; empty where they agree
    "How `got` differs from `want` by more than rounding explains."
    if isinstance(want, Tensor):
        return _tensor_misfit(got, want, dtype, factor, noise)
    if isinstance(want, dict):
        return _dict_misfit(got, want, dtype, factor, noise)
    if isinstance(want, (tuple, list)):
        return _list_misfit(got, want, dtype, factor, noise)
    number = isinstance(got, (int, float)) and isinstance(want, float) and not isinstance(got, bool)
    if number and _close(got, want, factor * 2**-23):  # a plain number: as good as a float32
        return ""
    same_kind = isinstance(got, bool) == isinstance(want, bool) and not isinstance(got, Tensor)
    if same_kind and got == want:
        return ""
    return f"{in_few_words(got)} came back, {in_few_words(want)} is expected{_remark(got, want)}"


def _remark(got: Any, want: Any) -> str:
    "What is probably to be done where the kind of a result is wrong."
    name = type(got).__name__
    if got is None:
        return " (no `return`?)"
    if name.startswith("NumPy array"):
        return " (torch.from_numpy?)" if isinstance(want, Tensor) else " (.tolist() or .item()?)"
    if isinstance(got, Tensor) and isinstance(want, (bool, int, float)) and got.numel() == 1:
        return " (.item()?)"
    if isinstance(want, (list, tuple)) and name in ("generator", "map", "filter", "zip", "range"):
        return " (list(...)?)"
    return ""


def _dict_misfit(got: Any, want: dict, dtype: torch.dtype | None, factor: float, noise: Any) -> str:
    if not isinstance(got, dict):
        return (
            f"{in_few_words(got)} came back, {in_few_words(want)} is expected{_remark(got, want)}"
        )
    missing, more = [k for k in want if k not in got], [k for k in got if k not in want]
    if missing or more:
        what, key = ("lacks", missing[0]) if missing else ("has, against expectation,", more[0])
        return (
            f"the dict that came back {what} the key {in_few_words(key)}, "
            f"{in_few_words(want)} is expected"
        )
    for key, part in want.items():
        of_part = noise.get(key) if isinstance(noise, dict) else None
        if text := misfit(got[key], part, dtype, factor, of_part):
            return f"at key {in_few_words(key)}: {text}"
    return ""


def _list_misfit(
    got: Any, want: list | tuple, dtype: torch.dtype | None, factor: float, noise: Any
) -> str:
    if not isinstance(got, (tuple, list)):
        return (
            f"{in_few_words(got)} came back, {in_few_words(want)} is expected{_remark(got, want)}"
        )
    parts = zip(got, want, noise if isinstance(noise, (list, tuple)) else [None] * len(want))
    texts = ((i, misfit(g, w, dtype, factor, n)) for i, (g, w, n) in enumerate(parts))
    i, text = next(((i, text) for i, text in texts if text), (0, ""))
    if len(got) != len(want):
        both = f"{in_few_words(got)} came back, {in_few_words(want)}"
        return f"{both} is expected: {len(got)} results, {len(want)} are expected"
    return f"result {i}: {text}" if text else ""


def _close(got: float, want: float, relative: float) -> bool:
    try:
        same = got == want or (got != got and want != want)
        return same or abs(got - want) <= relative * abs(want) < float("inf")
    except OverflowError:  # an integer that no float can hold
        return False


def _tensor_misfit(
    got: Any, want: Tensor, dtype: torch.dtype | None, factor: float, noise: Any
) -> str:
    "How a tensor differs from its reference; `misfit` for one tensor."
    if not isinstance(got, Tensor):
        return f"{in_few_words(got)} came back, a tensor is expected{_remark(got, want)}"
    exact = not want.dtype.is_floating_point
    like = torch.empty((), dtype=want.dtype if exact or dtype is None else dtype)
    like = like.expand(want.shape)
    if got.shape != want.shape or got.dtype != like.dtype:
        return f"{_kind(got)} came back, {_kind(like)} is expected"
    allowed = torch.zeros_like(want, dtype=torch.float64)
    if not exact:
        allowed = tolerance(want.double(), like.dtype, factor).expand(want.shape)
        if isinstance(noise, Tensor):
            allowed = allowed + factor * noise.expand(want.shape)
    got, want = got.detach().double(), want.detach().double()
    error = (got - want).abs().masked_fill((got == want) | (got.isnan() & want.isnan()), 0)
    if (error <= allowed).all():
        return ""
    ratio = (error / allowed).nan_to_num(torch.inf, torch.inf).masked_fill(error <= allowed, -1)
    place = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), want.shape))
    few = f"{got[place]:.6g}" != f"{want[place]:.6g}"  # digits that tell the two apart
    digits = 6 if few else 17
    numbers = f"{got[place]:.{digits}g} came back at {place}, {want[place]:.{digits}g} is expected"
    if exact:
        return numbers
    return f"{numbers} (error {error[place]:.2g}, rounding explains {allowed[place]:.1g})"


def _kind(t: Tensor) -> str:
    return f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
