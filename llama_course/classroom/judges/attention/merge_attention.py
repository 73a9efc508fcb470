"What the judge knows of `merge_attention`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.attention.common import _merged

merge_attention = Exercise(
    "merge_attention",
    chapter="11_attention",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=16.0,
    wrt=("out1", "lse1", "out2", "lse2"),
    condition=lambda out1, lse1, out2, lse2: 1 + lse1[lse1.isfinite()].abs().max().item() / 16,
    points={"values": 4, "gradients": 2, "laws": 2, "cost": 2},
    hints=(
        "exp(lse1) is the sum of the exponentials of the first part. How large is the sum of "
        "both, and which share of it belongs to the first?",
        "The shares are exp(lse1 - lse) and exp(lse2 - lse), where lse is the logarithm of "
        "the sum of both. out1 and out2 are averages already; the result is their average "
        "with these shares.",
        "exp(1000) is infinite. Take out the larger one first: lse = m + log(exp(lse1 - m) + "
        "exp(lse2 - m)), which torch.logaddexp does. Then no exponent is above zero, and -inf"
        " gives a share of 0.",
        "(..., n) numbers weigh (..., n, Q) outputs: [..., None]. Stacking the outputs copies"
        " both.",
    ),
)


@merge_attention.cases
def cases_of_merge_attention(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    for dtype, shape, height, spread in (
        (torch.float64, (2, 3, 8), 0.0, 1.0),
        (torch.float32, (1, 2, 5, 16), 3.0, 2.0),
        (torch.float32, (2, 1, 4, 4), 1000.0, 2.0),
        (torch.float32, (3, 6, 8), -900.0, 1.0),
        (torch.float32, (2, 5, 8), 0.0, 25.0),
        (torch.float32, (2, 5, 8), 0.0, 1500.0),  # one of them is all
    ):
        lse1, lse2 = (height + spread * draw(*shape[:-1]).clamp(-1, 1) for _ in range(2))
        out1, out2 = draw(*shape), draw(*shape)
        if spread == 1.0:
            lse2[..., 0], out2[..., 0, :] = -torch.inf, 0.0  # nothing to see there
            lse1[..., 1], out1[..., 1, :] = -torch.inf, 0.0
        yield tuple(t.to(dtype) for t in (out1, lse1, out2, lse2))


@merge_attention.reference
def truth_of_merge_attention(out1, lse1, out2, lse2):
    shares = torch.stack((lse1, lse2)).softmax(0)[..., None]
    return shares[0] * out1 + shares[1] * out2, torch.stack((lse1, lse2)).logsumexp(0)


@merge_attention.cancels
def terms_of_merge_attention(cotangent, out1, lse1, out2, lse2):
    "Of 1 - share, and of differences of the outputs."
    g, g_lse = (t.abs() for t in cotangent)
    of_lse = (g * (out1.abs() + out2.abs())).sum(-1) + g_lse
    return [out1.abs() + out2.abs(), None], [g, of_lse, g, of_lse]


@merge_attention.right
def with_the_rest_for_the_other(out1, lse1, out2, lse2):
    share = (lse1 - lse2).sigmoid()
    out = share[..., None] * out1 + (1 - share[..., None]) * out2
    return out, torch.logaddexp(lse1, lse2)


@merge_attention.right
def with_logaddexp(out1, lse1, out2, lse2):
    lse = torch.logaddexp(lse1, lse2)
    share1, share2 = (lse1 - lse).exp()[..., None], (lse2 - lse).exp()[..., None]
    return share1 * out1 + share2 * out2, lse


@merge_attention.right
def with_sigmoid(out1, lse1, out2, lse2):
    ahead = lse1 - lse2
    out = ahead.sigmoid()[..., None] * out1 + (-ahead).sigmoid()[..., None] * out2
    return out, torch.maximum(lse1, lse2) + F.softplus(-ahead.abs())


@merge_attention.right
def with_the_maximum_taken_out(out1, lse1, out2, lse2):
    m = torch.maximum(lse1, lse2)
    sum1, sum2 = (lse1 - m).exp(), (lse2 - m).exp()
    total = sum1 + sum2
    out = (sum1[..., None] * out1 + sum2[..., None] * out2) / total[..., None]
    return out, m + total.log()


@merge_attention.right
def with_one_share_and_the_rest(out1, lse1, out2, lse2):
    share = (lse1 - lse2).sigmoid()[..., None]
    return share * out1 + (1 - share) * out2, torch.logaddexp(lse1, lse2)


@merge_attention.right
def with_a_step_towards_the_second(out1, lse1, out2, lse2):
    lse = torch.logaddexp(lse1, lse2)
    return out1 + (lse2 - lse).exp()[..., None] * (out2 - out1), lse


@merge_attention.cancels
def sizes_of_what_cancels(cotangent, out1, lse1, out2, lse2):
    "One minus a share is as good as the share, and a step from out1 to out2 as their average."
    of_out, of_lse = (t.abs() for t in cotangent)
    both = out1.abs() + out2.abs()
    of_shares = (of_out * both).sum(-1) + of_lse
    return (both, None), [of_out, of_shares, of_out, of_shares]


def _some_parts(seed: int, sizes=(3, 5, 4)):
    "The same queries over pieces of a text, and over all of it: pairs (out, lse)."
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, n, 8, generator=random) for n in (6, sum(sizes), sum(sizes)))

    def over(k, v):
        scores = q @ k.mT
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    return [over(*part) for part in zip(k.split(sizes, 2), v.split(sizes, 2))], over(k, v)


def _near(one, other) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other))


@merge_attention.invariant(
    "parts of a text, merged in any order and grouping, give attention over the whole"
)
def parts_of_a_text(seen):
    (a, b, c), whole = _some_parts(1)
    merge = lambda x, y: seen(*x, *y).value
    return _near(merge(merge(a, b), c), whole) and _near(merge(c, merge(b, a)), whole)


@merge_attention.invariant("a part without keys changes nothing")
def a_part_without_keys_changes_nothing(seen):
    (a, *_), _ = _some_parts(2)
    empty = torch.zeros_like(a[0]), torch.full_like(a[1], -torch.inf)
    return _near(seen(*a, *empty).value, a) and _near(seen(*empty, *a).value, a)


@merge_attention.limit(
    "largest_tensor", "the outputs are weighed where they are, without a copy of both"
)
def most_largest_tensor_of_merge_attention(out1, lse1, out2, lse2):
    return out1.numel()


@merge_attention.limit(
    "saved_bytes", "kept are numbers a query, and at most one tensor as large as out1"
)
def most_saved_bytes_of_merge_attention(out1, lse1, out2, lse2):
    return out1.nbytes + 16 * lse1.nbytes


@merge_attention.mistake("the plain average", hint=1)
def the_plain_average(out1, lse1, out2, lse2):
    "The parts do not weigh the same: one may hold nearly all of the sum."
    half = torch.full_like(lse1, 0.5)
    return _merged(out1, lse1, out2, lse2, (half, half))


@merge_attention.mistake("weighed by the logarithms", hint=1)
def weighed_by_the_logarithms(out1, lse1, out2, lse2):
    "The shares are those of the sums, exp(lse), not of their logarithms."
    return _merged(out1, lse1, out2, lse2, (lse1 / (lse1 + lse2), lse2 / (lse1 + lse2)))


@merge_attention.mistake("the shares exchanged", hint=2)
def the_shares_exchanged(out1, lse1, out2, lse2):
    "The first output goes with the share of the first sum."
    return _merged(out2, lse1, out1, lse2)


@merge_attention.mistake("outputs taken for sums", hint=2)
def outputs_taken_for_sums(out1, lse1, out2, lse2):
    """out1 and out2 are averages: after weighing them by their sums you must divide by the sum
    of both."""
    m = torch.maximum(lse1, lse2)
    return _merged(out1, lse1, out2, lse2, ((lse1 - m).exp(), (lse2 - m).exp()))


@merge_attention.mistake("exp without a maximum", hint=3)
def exp_without_a_maximum(out1, lse1, out2, lse2):
    "exp(1000) is infinite, and exp(-900) is zero: take out the larger log-sum-exp first."
    a, b = lse1.exp(), lse2.exp()
    return _merged(out1, lse1, out2, lse2, (a / (a + b), b / (a + b)), (a + b).log())


@merge_attention.mistake("the first taken out, not the larger", hint=3)
def the_first_taken_out_not_the_larger(out1, lse1, out2, lse2):
    "exp(lse2 - lse1) is infinite where the second is larger by hundreds: take out the larger."
    there = lse1.isfinite()
    ahead = (lse2 - lse1.where(there, 0)).exp()
    share = 1 / (1 + ahead)
    out = share[..., None] * out1 + (ahead * share)[..., None] * out2
    right = _merged(out1, lse1, out2, lse2)
    out, lse = out.where(there[..., None], right[0]), (lse1 + ahead.log1p()).where(there, right[1])
    return out, lse


@merge_attention.mistake("the larger log-sum-exp alone", hint=2)
def the_larger_log_sum_exp_alone(out1, lse1, out2, lse2):
    "The sum of both parts is larger than either: lse is not their maximum."
    return _merged(out1, lse1, out2, lse2, lse=torch.maximum(lse1, lse2))


@merge_attention.mistake("the logarithms added", hint=2)
def the_logarithms_added(out1, lse1, out2, lse2):
    "Adding logarithms multiplies the sums; here the sums are added."
    return _merged(out1, lse1, out2, lse2, lse=lse1 + lse2)


@merge_attention.mistake("the maximum is not put back", hint=3)
def the_maximum_is_not_put_back(out1, lse1, out2, lse2):
    "log(exp(lse1 - m) + exp(lse2 - m)) still lacks the m that was taken out."
    return _merged(
        out1, lse1, out2, lse2, lse=torch.logaddexp(lse1, lse2) - torch.maximum(lse1, lse2)
    )


@merge_attention.mistake("the shares are cut off", hint=2)
def the_shares_are_cut_off(out1, lse1, out2, lse2):
    "The shares depend on lse1 and lse2, and so do the gradients: no .detach()."
    lse = torch.logaddexp(lse1, lse2)
    return _merged(
        out1, lse1, out2, lse2, ((lse1 - lse).exp().detach(), (lse2 - lse).exp().detach())
    )


@merge_attention.mistake("the outputs are stacked", hint=4)
def the_outputs_are_stacked(out1, lse1, out2, lse2):
    "Right in value, but both outputs are copied into a tensor of twice the size, and it is kept."
    shares = torch.stack((lse1, lse2)).softmax(0)[..., None]
    return (shares * torch.stack((out1, out2))).sum(0), torch.logaddexp(lse1, lse2)
