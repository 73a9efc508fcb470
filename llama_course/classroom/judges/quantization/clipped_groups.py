"What the judge knows of `clipped_groups`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

clipped_groups = Exercise(
    "clipped_groups",
    chapter="24_quantization",
    kind="extend",
    minutes=30,
    difficulty=3,
    points={"values": 7, "laws": 3},
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
