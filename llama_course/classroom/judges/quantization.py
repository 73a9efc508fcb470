"""What the judge knows of the four exercises in `exercises/24_quantization.ipynb`. Spoilers
from here on."""

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

quantize_groups = Exercise(
    "quantize_groups",
    chapter="24_quantization",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
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


int4_product = Exercise(
    "int4_product",
    chapter="24_quantization",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 6, "invariant": 2, "ledger": 2},
    hints=(
        "packed & 15 is the low half of a byte, packed >> 4 the high half.",
        "Low halves are the first 32 weights of a block, high halves the next 32; each of the"
        " two groups has its own scale and lowest value: torch.stack([low half, high half], "
        "-2) is (R, B, 2, 32).",
        "A weight is scale * code + low. It is enough to make all weights once, R·C numbers, "
        "and multiply.",
    ),
)


@int4_product.cases
def cases_of_int4_product(seed):
    random = torch.Generator().manual_seed(seed)
    for R, B in ((3, 2), (5, 1), (7, 3)):
        packed = torch.randint(256, (R, B, 32), generator=random).to(torch.uint8)
        scale = torch.rand(R, B, 2, generator=random) + 0.1
        low = torch.randn(R, B, 2, generator=random)
        yield packed, scale, low, torch.randn(64 * B, generator=random)


def _unpacked(packed):
    return torch.stack([packed & 15, packed >> 4], -2)


def _product(codes, scale, low, x):
    return (codes * scale[..., None] + low[..., None]).flatten(1) @ x


@int4_product.reference
def truth_of_int4_product(packed, scale, low, x):
    return _product(_unpacked(packed).to(x.dtype), scale, low, x)


@int4_product.invariant("it is linear in x")
def it_is_linear_in_x(seen):
    packed, scale, low, x = next(int4_product.make_cases(5))
    y = x.flip(0)
    one, two, both = (seen(packed, scale, low, v).value for v in (x, y, x + 2 * y))
    return torch.allclose(one + 2 * two, both, atol=1e-2)


@int4_product.limit("largest_tensor", "no tensor has more numbers than the matrix")
def most_largest_tensor_of_int4_product(packed, scale, low, x):
    return 2 * packed.numel()


@int4_product.right
def unpacked_first(packed, scale, low, x):
    return _product(_unpacked(packed), scale, low, x)


@int4_product.right
def half_by_half(packed, scale, low, x):
    parts, total = x.view(-1, 2, 32), 0
    for half, codes in enumerate((packed % 16, packed // 16)):
        products = torch.einsum("rbj,bj->rb", codes.float(), parts[:, half])
        total = total + (products * scale[..., half] + low[..., half] * parts[:, half].sum(-1)).sum(
            -1
        )
    return total


@int4_product.mistake("the halves exchanged", hint=1)
def the_halves_exchanged(packed, scale, low, x):
    "The low half of each byte comes first."
    return _product(torch.stack([packed >> 4, packed & 15], -2), scale, low, x)


@int4_product.mistake("neighbours share a byte", hint=2)
def neighbours_share_a_byte(packed, scale, low, x):
    "The two codes of a byte belong to two groups, 32 weights apart; they are not neighbours."
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).unflatten(-1, (2, 32))
    return _product(codes, scale, low, x)


@int4_product.mistake("the high half is not moved", hint=1)
def the_high_half_is_not_moved(packed, scale, low, x):
    "packed & 240 is the high half times 16: shift it down by four bits."
    return _product(torch.stack([packed & 15, packed & 240], -2), scale, low, x)


@int4_product.mistake("the low half is not cut off", hint=1)
def the_low_half_is_not_cut_off(packed, scale, low, x):
    "The byte holds both codes: & 15 keeps the low one."
    return _product(torch.stack([packed, packed >> 4], -2), scale, low, x)


@int4_product.mistake("the lowest value is forgotten", hint=3)
def the_lowest_value_is_forgotten(packed, scale, low, x):
    "Code 0 is the lowest weight of the group, not zero: scale * code + low."
    return _product(_unpacked(packed), scale, 0 * low, x)


@int4_product.mistake("codes from -8 to 7", hint=3)
def codes_from_8_to_7(packed, scale, low, x):
    "That is Q4_0's way, without a lowest value; here codes go from 0 to 15."
    return _product(_unpacked(packed).to(torch.int8) - 8, scale, low, x)


@int4_product.mistake("one scale for both groups", hint=2)
def one_scale_for_both_groups(packed, scale, low, x):
    "Each group of 32 has its own scale: the second is scale[..., 1]."
    return _product(_unpacked(packed), scale[..., :1], low, x)


@int4_product.mistake("low is scaled, too", hint=3)
def low_is_scaled_too(packed, scale, low, x):
    "scale * (code + low) is another number than scale * code + low."
    return ((_unpacked(packed) + low[..., None]) * scale[..., None]).flatten(1) @ x


@int4_product.mistake("low is added once", hint=3)
def low_is_added_once(packed, scale, low, x):
    "low belongs to each weight, so it is multiplied by the sum of its group's x."
    return _product(_unpacked(packed), scale, 0 * low, x) + low.sum((1, 2))


@int4_product.mistake("a matrix of products", hint=3)
def a_matrix_of_products(packed, scale, low, x):
    "All weights and all products for sixteen codes at once are many times the matrix."
    table = torch.arange(16.0)[:, None, None, None, None] * scale[..., None] + low[..., None]
    table.expand(16, *packed.shape[:2], 2, 32).contiguous()
    return _product(_unpacked(packed), scale, low, x)


clipped_groups = Exercise(
    "clipped_groups",
    chapter="24_quantization",
    kind="extend",
    minutes=30,
    difficulty=3,
    points={"values": 7, "invariant": 3},
    hints=(
        "For one share: what are scale, codes and error? Then for all shares, and for each group "
        "the one with the smallest error.",
        "scale = share * (largest without sign) / most, codes = round(weight / scale), held "
        "between -most and most. most is 7 or 127.",
        "The error is that of the weights, not of the codes: importance * (weight - scale * "
        "code)^2, summed over the group.",
        "torch.stack the errors of all shares, (shares, R, C/group); argmin(0) says which. Where "
        "errors are equal the largest share wins: try the shares from the largest down.",
    ),
)


@clipped_groups.cases
def cases_of_clipped_groups(seed):
    random = torch.Generator().manual_seed(seed)
    some = [1.0, 0.9, 0.75, 0.6, 0.4]
    for rows, n, group, bits, shares in (
        (4, 3, 16, 4, some),
        (3, 1, 32, 4, some[::-1]),
        (2, 3, 8, 8, [0.5, 1.0]),
        (2, 2, 4, 4, [1.0]),
    ):
        weight = torch.randn(rows, n, group, generator=random)
        weight[0, :, 3] = 6.0  # outliers
        weight[1, 0] = 0
        importance = torch.rand(n * group, generator=random) ** 3
        importance[3] = 0.001
        importance[-group:] *= bits == 4 and n < 3  # nothing matters: all losses are zero
        if bits == 4 and rows == 3:
            importance[3] = 90.0  # an outlier that matters
        yield weight.flatten(1), importance, bits, group, shares


@clipped_groups.reference
def truth_of_clipped_groups(weight, importance, bits, group, shares):
    "Group by group, share by share."
    most, (R, C) = 2 ** (bits - 1) - 1, weight.shape
    codes, scales = (
        torch.zeros(R, C // group, group, dtype=torch.int8),
        weight.new_zeros(R, C // group),
    )
    for row in range(R):
        for n in range(C // group):
            w, h = (t[n * group : (n + 1) * group] for t in (weight[row], importance))
            best = torch.inf
            for share in sorted(shares, reverse=True):
                scale = share * w.abs().max() / most
                code = (w / scale).round().clamp(-most, most) if scale else torch.zeros_like(w)
                error = (h * (w - scale * code) ** 2).sum()
                if error < best:
                    best, scales[row, n], codes[row, n] = error, scale, code.to(torch.int8)
    return codes, scales


def _clipped(
    weight, importance, bits, group, shares, *, weigh=lambda h: h, low=-1, clamp=True, alone=True,
    measure=None, order=None, choose=True,
):  # fmt: skip
    "All shares at once, with a place for each mistake."
    most = 2 ** (bits - 1) - 1
    groups, h = weight.unflatten(1, (-1, group)), weigh(importance).view(-1, group)
    largest = groups.abs().amax(-1, keepdim=True) / most
    tried = sorted(shares, reverse=True) if order is None else order(shares)
    found = []
    for share in tried if choose else [1.0]:
        scale = share * largest
        code = (groups / scale.where(scale > 0, 1)).round()
        if clamp:
            code = code.clamp(-most - (1 if low == -2 else 0), most)
        error = groups - scale * code if measure is None else measure(groups, scale, code)
        found.append(((h * error**2).sum(-1), scale[..., 0], code))
    errors, scales, codes = (torch.stack(part) for part in zip(*found))
    if not alone:
        errors = errors.sum((1, 2), keepdim=True).expand_as(errors)
    best = errors.argmin(0)[None]
    picked = codes.gather(0, best[..., None].expand(1, *codes.shape[1:]))[0]
    return picked.to(torch.int8), scales.gather(0, best)[0]


clipped_groups.right(_clipped)


@clipped_groups.right
def replaced_where_it_is_better(weight, importance, bits, group, shares):
    most = {4: 7, 8: 127}[bits]
    w, h = weight.view(len(weight), -1, group), importance.view(-1, group)
    best = codes = scales = None
    for share in reversed(sorted(shares)):
        s = w.abs().max(-1).values * share / most
        c = torch.nan_to_num(w / s[..., None]).round().clip(-most, most)
        loss = torch.einsum("ng,rng->rn", h, (c * s[..., None] - w).square())
        if best is None:
            best, codes, scales = loss, c, s
            continue
        better = loss < best
        best, scales = torch.where(better, loss, best), torch.where(better, s, scales)
        codes = torch.where(better[..., None], c, codes)
    return codes.to(torch.int8), scales


@clipped_groups.invariant("where only the outlier matters, it is not clipped")
def where_only_the_outlier_matters(seen):
    weight, importance, *rest = next(clipped_groups.make_cases(3))
    only = torch.zeros_like(importance)
    only[3] = 1.0
    codes, scales = seen(weight, only, *rest).value
    return abs(scales[0, 0].item() * codes[0, 0, 3].item() - 6.0) < 1e-4


@clipped_groups.invariant("with more shares to choose from no group becomes worse")
def with_more_shares_no_group_becomes_worse(seen):
    weight, importance, bits, group, _ = next(clipped_groups.make_cases(4))
    losses = []
    for shares in ([1.0], [0.8, 1.0], [0.8, 0.5, 1.0], [0.3, 0.8, 0.5, 1.0]):
        codes, scales = seen(weight, importance, bits, group, shares).value
        error = weight.view(codes.shape) - codes * scales[..., None]
        losses.append((importance.view(-1, group) * error**2).sum(-1))
    return all((b <= a * (1 + 1e-5)).all() for a, b in zip(losses, losses[1:]))


@clipped_groups.mistake("nothing is clipped", hint=1)
def nothing_is_clipped(*args):
    "The share is always 1: one outlier takes the codes from all other weights of its group."
    return _clipped(*args, choose=False)


@clipped_groups.mistake("every weight matters the same", hint=3)
def every_weight_matters_the_same(*args):
    "`importance` is left out: what counts is the error of the products, not of the weights."
    return _clipped(*args, weigh=torch.ones_like)


@clipped_groups.mistake("codes are not held in their range", hint=2)
def codes_are_not_held_in_their_range(*args):
    "With a smaller scale the outlier's code is beyond 7: it must become 7."
    return _clipped(*args, clamp=False)


@clipped_groups.mistake("codes down to -8", hint=2)
def codes_down_to_minus_8(*args):
    "Codes reach from -7 to 7 here: -8 has no counterpart."
    return _clipped(*args, low=-2)


@clipped_groups.mistake("one share for all groups", hint=1)
def one_share_for_all_groups(*args):
    "Each group has its own outliers, and chooses its own share."
    return _clipped(*args, alone=False)


@clipped_groups.mistake("the error of the codes", hint=3)
def the_error_of_the_codes(*args):
    "Measured in steps, a larger scale looks better than it is: measure in weights."
    return _clipped(*args, measure=lambda g, s, c: g / s.where(s > 0, 1) - c)


@clipped_groups.mistake("the square is missing", hint=3)
def the_square_is_missing(*args):
    "Errors are squared before they are weighed: two of 1 are better than one of 2."
    return _clipped(*args, measure=lambda g, s, c: (g - s * c).abs().sqrt())


tokens_per_second = Exercise(
    "tokens_per_second",
    chapter="24_quantization",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 7, "invariant": 3},
    hints=(
        "Which matrices does one token read whole? Of the embedding it needs one row.",
        "In a layer: wq and wo (D, D), wk and wv (K·Q, D), and three matrices of the "
        "feed-forward part. Then the output. Each weight has its bits and a share of a 16-bit"
        " scale: 16 / group.",
        "The cache holds keys *and* values, of K heads and not of H, for every position, two "
        "bytes a number.",
    ),
)


@tokens_per_second.cases
def cases_of_tokens_per_second(seed):
    random = torch.Generator().manual_seed(seed)
    for D, L, H, K, F_, V in (
        (64, 2, 4, 2, 192, 1000),
        (128, 3, 8, 1, 320, 50),
        (96, 1, 6, 6, 256, 300),
    ):
        bits, group = ((8, 32), (4, 64), (16, 128))[int(torch.randint(3, (), generator=random))]
        position = int(torch.randint(500, 3000, (), generator=random))
        yield D, L, H, K, F_, V, bits, group, position, 15e9


def _bytes(
    D,
    L,
    H,
    K,
    F_,
    V,
    bits,
    group,
    position,
    *,
    embedding=0,
    output=1,
    ffn=3,
    heads=None,
    kinds=2,
    scale=16,
    itemsize=2,
):
    "Bytes a token moves; each keyword is something that is easily wrong."
    Q = D // H
    weights = (
        L * (2 * D * D + 2 * (heads or K) * Q * D + ffn * D * F_) + (output + embedding) * V * D
    )
    return weights * (bits + scale / group) / 8 + kinds * L * (heads or K) * Q * position * itemsize


@tokens_per_second.reference
def truth_of_tokens_per_second(D, L, H, K, F_, V, bits, group, position, bandwidth):
    return bandwidth / _bytes(D, L, H, K, F_, V, bits, group, position)


@tokens_per_second.invariant("twice the bandwidth is twice the speed, and a longer text is slower")
def twice_the_bandwidth_is_twice_the_speed(seen):
    case = 64, 2, 4, 2, 192, 1000, 8, 32, 100
    slow, fast = seen(*case, 1e9).value, seen(*case, 2e9).value
    later = seen(*case[:-1], 1000, 1e9).value
    return abs(fast / slow - 2) < 1e-6 and later < slow


@tokens_per_second.right
def from_the_bytes(D, L, H, K, F_, V, bits, group, position, bandwidth):
    return bandwidth / _bytes(D, L, H, K, F_, V, bits, group, position)


@tokens_per_second.right
def with_bytes_per_weight(D, L, H, K, F_, V, bits, group, position, bandwidth):
    per_weight, width = bits / 8 + 2 / group, K * (D // H)
    layer = sum(
        rows * columns
        for rows, columns in ((D, D), (width, D), (width, D), (D, D), (F_, D), (F_, D), (D, F_))
    )
    moved = (L * layer + V * D) * per_weight + L * position * 4 * width
    return bandwidth / moved


def _wrong(*case, **how):
    return case[-1] / _bytes(*case[:-1], **how)


@tokens_per_second.mistake("the prediction as it was given", hint=1)
def the_prediction_as_it_was_given(D, L, H, K, F_, V, bits, group, position, bandwidth):
    "It reads the whole embedding for one token, and a cache of all heads."
    moved = _bytes(D, L, H, K, F_, V, bits, group, 0, embedding=1) + 2 * L * D * position * 2
    return bandwidth / moved


@tokens_per_second.mistake("the whole embedding", hint=1)
def the_whole_embedding(*case):
    "One token needs one row of the embedding, not all of them."
    return _wrong(*case, embedding=1)


@tokens_per_second.mistake("without the output", hint=2)
def without_the_output(*case):
    "The scores of all tokens need the whole output matrix."
    return _wrong(*case, output=0)


@tokens_per_second.mistake("as many keys as queries", hint=3)
def as_many_keys_as_queries(*case):
    "With grouped queries wk, wv and the cache have K heads, not H."
    return _wrong(*case, heads=case[2])


@tokens_per_second.mistake("keys without values", hint=3)
def keys_without_values(*case):
    "The cache holds keys and values."
    return _wrong(*case, kinds=1)


@tokens_per_second.mistake("without the cache", hint=3)
def without_the_cache(*case):
    "Every token reads the keys and values of all positions before it."
    return _wrong(*case, kinds=0)


@tokens_per_second.mistake("without the scales", hint=2)
def without_the_scales(*case):
    "A group brings a scale of 16 bits: 16 / group more bits a weight."
    return _wrong(*case, scale=0)


@tokens_per_second.mistake("two matrices in the feed-forward part", hint=2)
def two_matrices_in_the_feed_forward_part(*case):
    "SwiGLU has three matrices: the gate is one of them."
    return _wrong(*case, ffn=2)


@tokens_per_second.mistake("bits taken for bytes", hint=2)
def bits_taken_for_bytes(*case):
    "Eight bits are one byte."
    return case[-1] / (8 * _bytes(*case[:-2], 0) + _bytes(*case[:-1]) - _bytes(*case[:-2], 0))


@tokens_per_second.mistake("a cache in 32 bits", hint=3)
def a_cache_in_32_bits(*case):
    "The cache is said to hold two bytes a number."
    return _wrong(*case, itemsize=4)
