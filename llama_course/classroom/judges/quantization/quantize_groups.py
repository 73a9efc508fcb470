"What the judge knows of `quantize_groups`. Spoilers ahead."

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

quantize_groups = Exercise(
    "quantize_groups",
    chapter="24_quantization",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "The largest weight of a group, without its sign, gets the largest code: 127 or, for "
        "four bits, 7.",
        "weight.unflatten(1, (-1, group)) is (R, C/group, group). The scale is one number for"
        " each of these groups: keep the last dimension while you divide.",
        "round() before .to(torch.int8), which only cuts. A group of zeros has scale 0; 0/0 "
        "is no number: let its codes be 0.",
    ),
)


@quantize_groups.cases
def cases_of_quantize_groups(seed):
    random = torch.Generator().manual_seed(seed)
    for rows, n, group, bits, size in (
        (3, 4, 8, 8, 1.0),
        (5, 2, 16, 4, 0.01),
        (2, 6, 4, 8, 1e-7),
        (4, 3, 32, 4, 1e5),
    ):
        most = 2 ** (bits - 1) - 1
        codes = torch.randint(-most, most, (rows, n, group), generator=random).float()
        codes += 0.6 * torch.rand(codes.shape, generator=random) - 0.3
        codes[..., 1] = most * torch.randn(rows, n, generator=random).sign()
        codes[0, 0], codes[1, 1] = 0, -codes[1, 1].abs()
        scale = torch.rand(rows, n, 1, generator=random) + torch.arange(1, n + 1).view(1, n, 1)
        yield (size * codes * scale).flatten(1), bits, group


def _scales(groups: Tensor, bits: int) -> Tensor:
    return groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)


def _codes(groups, scale):
    return (groups / scale.where(scale > 0, 1)).round().to(torch.int8)


@quantize_groups.reference
def truth_of_quantize_groups(weight, bits, group):
    groups = weight.unflatten(1, (-1, group))
    scale = _scales(groups, bits)
    return _codes(groups, scale), scale[..., 0]


@quantize_groups.invariant("a weight that grows changes its own group and no other")
def a_weight_that_grows_changes_its_own_group_and_no_other(seen):
    w = torch.linspace(-1, 1, 64).view(2, 32)
    (codes, scale), larger = seen(w, 8, 8).value, w.clone()
    larger[1, 20] = 50.0
    others, steps = seen(larger, 8, 8).value
    same = torch.ones(2, 4, dtype=torch.bool)
    same[1, 2] = False
    unchanged = torch.equal(codes[same], others[same]) and torch.equal(scale[same], steps[same])
    return unchanged and steps[1, 2] > 0.3


@quantize_groups.right
def group_by_group(weight, bits, group):
    groups = weight.unflatten(1, (-1, group))
    scale = _scales(groups, bits)
    return _codes(groups, scale), scale.squeeze(-1)


@quantize_groups.right
def row_by_row_of_groups(weight, bits, group):
    R, C = weight.shape
    flat = weight.reshape(-1, group)
    most = {8: 127, 4: 7}[bits]
    scale = torch.maximum(flat.max(1).values, -flat.min(1).values) / most
    codes = torch.nan_to_num(torch.round(flat / scale[:, None])).to(torch.int8)
    return codes.view(R, -1, group), scale.view(R, -1)


def _with(scale_of, codes_of=_codes):
    "An answer with another scale, or other codes."

    def answer(weight, bits, group):
        groups = weight.unflatten(1, (-1, group))
        scale = scale_of(groups, bits)
        return codes_of(groups, scale), scale[..., 0]

    return answer


@quantize_groups.mistake("one scale for a row", hint=2)
def one_scale_for_a_row(weight, bits, group):
    "Every group has its own scale, not every row."
    scale = lambda g, b: _scales(g, b).amax(1, keepdim=True).expand(*g.shape[:2], 1)
    return _with(scale)(weight, bits, group)


@quantize_groups.mistake("one scale for the matrix", hint=2)
def one_scale_for_the_matrix(weight, bits, group):
    "Every group has its own scale: one outlier must not spoil the whole matrix."
    return _with(lambda g, b: _scales(g, b).max().expand(*g.shape[:2], 1))(weight, bits, group)


@quantize_groups.mistake("divided by 128", hint=1)
def divided_by_128(weight, bits, group):
    """The largest code of eight bits is 127, of four bits 7: 128 and 8 do not exist on the
    positive side."""
    return _with(lambda g, b: g.abs().amax(-1, keepdim=True) / 2 ** (b - 1))(weight, bits, group)


@quantize_groups.mistake("the largest, not the largest without sign", hint=1)
def the_largest_not_the_largest_without_sign(weight, bits, group):
    "A group whose largest weight is negative gets too small a scale: take abs() first."
    scale = lambda g, b: g.amax(-1, keepdim=True).clamp_min(0) / (2 ** (b - 1) - 1)
    return _with(scale)(weight, bits, group)


@quantize_groups.mistake("cut instead of rounded", hint=3)
def cut_instead_of_rounded(weight, bits, group):
    ".to(torch.int8) cuts towards zero: round first."
    cut = lambda g, s: (g / s.where(s > 0, 1)).to(torch.int8)
    return _with(_scales, cut)(weight, bits, group)


@quantize_groups.mistake("rounded down", hint=3)
def rounded_down(weight, bits, group):
    "floor() goes down always: the error is up to a whole step. round() takes the nearest."
    down = lambda g, s: (g / s.where(s > 0, 1)).floor().to(torch.int8)
    return _with(_scales, down)(weight, bits, group)


@quantize_groups.mistake("zeros divided by zero", hint=3)
def zeros_divided_by_zero(weight, bits, group):
    "A group of zeros has scale 0; 0/0 is no number, and as int8 it is anything."
    codes = lambda g, s: (g / s).round().nan_to_num(nan=1.0).to(torch.int8)
    return _with(_scales, codes)(weight, bits, group)


@quantize_groups.mistake("something is added to the scale", hint=3)
def something_is_added_to_the_scale(weight, bits, group):
    "Added against a division by zero, 1e-5 is more than the whole scale of small weights."
    codes = lambda g, s: (g / (s + 1e-5)).round().to(torch.int8)
    return _with(_scales, codes)(weight, bits, group)


@quantize_groups.mistake("no scale below a bound", hint=3)
def no_scale_below_a_bound(weight, bits, group):
    "Small weights have small scales: only a scale of exactly zero needs care."
    return _with(_scales, lambda g, s: _codes(g, s.clamp(min=0.01)))(weight, bits, group)


@quantize_groups.mistake("eight bits always", hint=1)
def eight_bits_always(weight, bits, group):
    "Four bits end at 7: codes up to 127 do not fit."
    return _with(lambda g, b: _scales(g, 8))(weight, bits, group)


@quantize_groups.mistake("from 0 to 255", hint=1)
def from_0_to_255(weight, bits, group):
    """Codes are signed here: a scale from the lowest to the highest weight needs a lowest value
    beside it."""
    span = lambda g, b: (g.amax(-1, keepdim=True) - g.amin(-1, keepdim=True)) / (2**b - 1)
    return _with(span)(weight, bits, group)
