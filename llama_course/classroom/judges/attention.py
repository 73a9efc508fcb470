"""What the judge knows of the four exercises in `exercises/11_attention.ipynb`. Spoilers from
here on."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama_course.attention import causal_attention
from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing


def _peakedness(p, grad) -> float:
    """Where one weight is nearly 1, grad minus the sum is small: so much larger becomes each
    rounding of it."""
    return 1.0 if p.itemsize < 4 else 1 / (1 - p.double().amax(-1)).min().item()


softmax_backward = Exercise(
    "softmax_backward",
    chapter="11_attention",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    factor=16.0,
    condition=_peakedness,
    call=refusing("softmax_backward_data"),
    points={"values": 5, "invariant": 3, "ledger": 2},
    hints=(
        "Every score moves every weight of its row: raising one lowers all others. Which "
        "derivative has weight i by score j, for i = j and for i different from j?",
        "dp_i/ds_j = p_i (1 if i = j else 0) - p_i p_j. Multiply by grad_i, sum over i, and "
        "take p_j out of the bracket.",
        "p * (grad - sum), where sum is one number a row: the sum over the row of p * grad. "
        "keepdim=True lets it broadcast.",
        "In 16 bits compute in float32 and come back at the end. No matrix of S x S "
        "derivatives is needed.",
    ),
)


@softmax_backward.cases
def cases_of_softmax_backward(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, sharp, offset in (
        (torch.float64, (3, 8), 1.0, 0.0),
        (torch.float32, (2, 3, 16), 1.0, 0.0),
        (torch.float32, (5, 33), 4.0, 0.0),
        (torch.bfloat16, (2, 4, 24), 1.0, 100.0),
        (torch.float16, (6, 40), 2.0, 300.0),
    ):
        scores = sharp * torch.randn(shape, generator=random, dtype=torch.float64)
        scores[..., -2:] = -torch.inf  # masked
        yield (
            scores.softmax(-1).to(dtype),
            (offset + torch.randn(shape, generator=random)).to(dtype),
        )


@softmax_backward.reference
def truth_of_softmax_backward(p, grad):
    jacobian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return (jacobian * grad[..., :, None]).sum(-2)


@softmax_backward.right
def in_float32(p, grad):
    wide = torch.promote_types(p.dtype, torch.float32)
    q, g = p.to(wide), grad.to(wide)
    return (q * (g - (q * g).sum(-1, keepdim=True))).to(p.dtype)


@softmax_backward.right
def with_einsum(p, grad):
    q, g = (t if t.dtype == torch.float64 else t.float() for t in (p, grad))
    mean = torch.einsum("...s,...s->...", q, g)
    return (q * g - q * mean[..., None]).type_as(p)


@softmax_backward.invariant(
    "adding a number to all scores changes no weight, so each row sums to zero"
)
def adding_a_number_to_all_scores_changes_no_weight(seen):
    random = torch.Generator().manual_seed(3)
    p, grad = torch.randn(5, 12, generator=random).softmax(-1), torch.randn(5, 12, generator=random)
    return seen(p, grad).value.sum(-1).abs().max() < 1e-6


@softmax_backward.invariant("a gradient that is the same for all weights of a row moves nothing")
def a_gradient_that_is_the_same_for_all_weights_of_a(seen):
    p = torch.randn(5, 12, generator=torch.Generator().manual_seed(4)).softmax(-1)
    return seen(p, torch.full((5, 12), 3.0)).value.abs().max() < 1e-5


@softmax_backward.limit(
    "largest_tensor", "one number a row is needed, not a matrix of S x S derivatives"
)
def most_largest_tensor_of_softmax_backward(p, grad):
    return p.numel()


@softmax_backward.limit("flops", "no product of matrices is needed")
def most_flops_of_softmax_backward(p, grad):
    return 2 * p.numel()  # the sum, where it is written as a product


def _wide(p, grad, rule):
    "The rule, applied in float32."
    wide = torch.promote_types(p.dtype, torch.float32)
    return rule(p.to(wide), grad.to(wide)).to(p.dtype)


def _total(t: Tensor, axis: int = -1) -> Tensor:
    return t.sum(axis, keepdim=True)


@softmax_backward.mistake("only the diagonal", hint=1)
def only_the_diagonal(p, grad):
    "p (1 - p) grad is what a score does to its own weight; it moves all the others too."
    return _wide(p, grad, rule=lambda p, g: p * (1 - p) * g)


@softmax_backward.mistake("the sum is missing", hint=3)
def the_sum_is_missing(p, grad):
    "p * grad is the first half: subtract p times the sum of p * grad."
    return _wide(p, grad, rule=lambda p, g: p * g)


@softmax_backward.mistake("a mean in place of the sum", hint=3)
def a_mean_in_place_of_the_sum(p, grad):
    """The weights already sum to one: the sum of p * grad is an average, dividing by S again is
    too much."""
    return _wide(p, grad, rule=lambda p, g: p * (g - (p * g).mean(-1, keepdim=True)))


@softmax_backward.mistake("the sum without weights", hint=3)
def the_sum_without_weights(p, grad):
    "The sum is over p * grad, not over grad."
    return _wide(p, grad, rule=lambda p, g: p * (g - _total(g)))


@softmax_backward.mistake("the weight outside is missing", hint=2)
def the_weight_outside_is_missing(p, grad):
    "The bracket is right, but it is multiplied by p_j."
    return _wide(p, grad, rule=lambda p, g: g - _total(p * g))


@softmax_backward.mistake("the sign is flipped", hint=3)
def the_sign_is_flipped(p, grad):
    "It is grad minus the sum, not the sum minus grad."
    return _wide(p, grad, rule=lambda p, g: p * (_total(p * g) - g))


@softmax_backward.mistake("softmax once more", hint=2)
def softmax_once_more(p, grad):
    "p is softmax's result already: no softmax is taken of it again."
    return _wide(p, grad, rule=lambda p, g: (lambda p: p * (g - _total(p * g)))(p.softmax(-1)))


@softmax_backward.mistake("over the wrong axis", hint=3)
def over_the_wrong_axis(p, grad):
    "The weights sum to one along the last axis; the sum runs along the same."
    return _wide(p, grad, rule=lambda p, g: p * (g - _total(p * g, 0)))


@softmax_backward.mistake("the sum in 16 bits", hint=4)
def the_sum_in_16_bits(p, grad):
    "grad minus the sum is a small difference of large numbers: in 16 bits little of it is left."
    return p * (grad - (p * grad).sum(-1, keepdim=True))


@softmax_backward.mistake("the Jacobian as a matrix", hint=4)
def the_jacobian_as_a_matrix(p, grad):
    "Right in value, but it makes S x S derivatives for each row where one number a row would do."

    def rule(p, g):
        jacobian = torch.diag_embed(p) - p[..., None] * p[..., None, :]
        return (jacobian * g[..., None]).sum(-2)

    return _wide(p, grad, rule)


merge_attention = Exercise(
    "merge_attention",
    chapter="11_attention",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=16.0,
    wrt=("out1", "lse1", "out2", "lse2"),
    condition=lambda out1, lse1, out2, lse2: 1 + lse1[lse1.isfinite()].abs().max().item() / 16,
    points={"values": 4, "gradients": 2, "invariant": 2, "ledger": 2},
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
    ):
        lse1, lse2 = (height + spread * draw(*shape[:-1]).clamp(-1, 1) for _ in range(2))
        out1, out2 = draw(*shape), draw(*shape)
        if spread == 1.0:
            lse2[..., 0], out2[..., 0, :] = -torch.inf, 0.0  # nothing to see there
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


def _merged(out1, lse1, out2, lse2, shares=None, lse=None):
    "The right answer, with a place for each mistake."
    both = torch.logaddexp(lse1, lse2)
    a, b = shares or ((lse1 - both).exp(), (lse2 - both).exp())
    return a[..., None] * out1 + b[..., None] * out2, both if lse is None else lse


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


def visible_tiles(T: int, S: int, block: int) -> list:
    "Pairs (first query, first key) of the tiles that the causal mask leaves something of."
    corners = [(i, j) for i in range(0, T, block) for j in range(0, S, block)]
    return [(i, j) for i, j in corners if j < S - T + min(i + block, T)]


def tile_flops(q: Tensor, k: Tensor, block: int, products: int = 2) -> int:
    """FLOPs of so many products of matrices in every visible tile; tiles may be cut at the last
    seen key."""
    (T, Q), S = q.shape[2:], k.shape[2]
    sizes = [(min(block, T - i), min(block, S - j)) for i, j in visible_tiles(T, S, block)]
    return 2 * products * Q * q[:, :, 0, 0].numel() * sum(n * m for n, m in sizes)


def _height(q, k, v, block) -> float:
    "The higher the scores, the more their rounding moves the weights."
    return max(1.0, (q.double() @ k.double().mT).abs().max().item() / 16)


tiled_attention = Exercise(
    "tiled_attention",
    chapter="11_attention",
    kind="extend",
    minutes=40,
    difficulty=3,
    factor=32.0,
    condition=_height,
    points={"values": 2, "invariant": 1, "ledger": 7},
    hints=(
        "Two loops: over blocks of queries, and for each over blocks of keys. What does a "
        "block of queries start with? An output of zeros with a log-sum-exp of -inf is a part"
        " without keys.",
        "The queries are the last T of S positions: query i stands at S - T + i. The last "
        "query of a block sees the most; keys after its position concern nobody in the block.",
        "for j in range(0, S - T + stop, block), where stop is the end of the block of "
        "queries, visits what is needed and nothing else. The tile on the diagonal is needed,"
        " although half of it is masked.",
        "No tensor may be larger than a tile, the queries or the keys: not all keys at once, "
        "no matrix. Slices beyond the end are cut by themselves, so a last short block needs "
        "no special case.",
    ),
)


@tiled_attention.cases
def cases_of_tiled_attention(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, (B, H, T, S), Q, block in (
        (torch.float32, (2, 1, 12, 12), 2, 4),
        (torch.float64, (1, 2, 8, 8), 4, 3),
        (torch.float32, (1, 1, 3, 9), 4, 2),
        (torch.float32, (1, 1, 3, 8), 4, 2),  # the last keys of a tile belong to its last query
        (torch.float32, (1, 1, 5, 5), 4, 3),
    ):
        q, k, v = (
            torch.randn(B, H, n, Q, generator=random, dtype=torch.float64) for n in (T, S, S)
        )
        if T == 5:
            q[..., 0], k[..., 0] = 10, 30  # all scores about 300: exp alone is infinite
        yield *((2 * q).to(dtype), k.to(dtype), v.to(dtype)), block


tiled_attention.reference(lambda q, k, v, block: causal_attention(q, k, v))


@tiled_attention.invariant("a key that comes later than a query does not move its result")
def a_key_that_comes_later_than_a_query_does_not_move(seen):
    random = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, 1, 6, 4, generator=random) for _ in range(3))
    before = seen(q, k, v, 3).value[:, :, :4]
    k[:, :, 4:], v[:, :, 4:] = 100.0, -100.0
    return torch.allclose(seen(q, k, v, 3).value[:, :, :4], before, atol=1e-5)


@tiled_attention.invariant("the size of the tiles changes nothing but the cost")
def the_size_of_the_tiles_changes_nothing_but_the_cost(seen):
    random = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, 2, n, 4, generator=random) for n in (5, 7, 7))
    first, *others = (seen(q, k, v, block).value for block in (2, 100))
    return all(torch.allclose(first, other, atol=1e-5) for other in others)


@tiled_attention.limit(
    "largest_tensor", "nothing larger than a tile, queries or keys; no T x S matrix"
)
def most_largest_tensor_of_tiled_attention(q, k, v, block):
    return max(q.numel(), k.numel(), q[:, :, 0, 0].numel() * block * block)


@tiled_attention.limit("flops", "tiles that are wholly masked are not computed")
def most_flops_of_tiled_attention(q, k, v, block):
    return tile_flops(q, k, block)


def _tile(q, k, v, first: int, start: int, masked: bool = True):
    "Attention of queries at `first`... over keys at `start`..., alone: output and log-sum-exp."
    scores = q @ k.mT * q.shape[-1] ** -0.5
    later = torch.arange(k.shape[2]) + start > torch.arange(q.shape[2])[:, None] + first
    if masked:
        scores = scores.masked_fill(later, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (
        scores - lse[..., None].nan_to_num(neginf=0.0)
    ).exp()  # a query that sees nothing: zeros
    return weights @ v, lse


def _walk(q, k, v, block, past=None, stop=None, masked=True, diagonal=True, wide=1, merge=None):
    "The walk over the tiles, with a place for each mistake."
    (T, S), outs = (q.shape[2], k.shape[2]), []
    past = S - T if past is None else past
    for i in range(0, T, block):
        rows = q[:, :, i : i + block]
        out, lse = torch.zeros_like(rows), torch.full_like(rows[..., 0], -torch.inf)
        end = past + i + rows.shape[2] if stop is None else stop(i, T, S)
        for j in range(0, min(end, S), block * wide):
            if not diagonal and j + block > past + i + 1 and j:
                continue
            tile = _tile(
                rows, *(t[:, :, j : j + block * wide] for t in (k, v)), past + i, j, masked
            )
            out, lse = (merge or _merged)(out, lse, *tile)
        outs.append(out)
    return torch.cat(outs, 2)


tiled_attention.right(_walk)


@tiled_attention.right
def with_a_running_softmax(q, k, v, block):
    (T, Q), S, out = q.shape[2:], k.shape[2], torch.empty_like(q)
    for i in range(0, T, block):
        rows = q[:, :, i : i + block] / Q**0.5
        position = S - T + i + torch.arange(rows.shape[2])[:, None]
        top, total, mean = rows.new_full((*rows.shape[:3], 1), -torch.inf), 0, 0
        for j in range(0, int(position[-1]) + 1, block):
            keys, values = k[:, :, j : j + block], v[:, :, j : j + block]
            scores = torch.einsum("bhtq,bhsq->bhts", rows, keys)
            scores = scores.masked_fill(torch.arange(j, j + keys.shape[2]) > position, -torch.inf)
            new = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - new).exp(), (top - new).exp()
            total, mean, top = (
                total * shrink + weights.sum(-1, True),
                mean * shrink + weights @ values,
                new,
            )
        out[:, :, i : i + block] = mean / total
    return out


def _whole(q, k, v):
    "Attention with all scores at once."
    T, S = q.shape[-2], k.shape[-2]
    hidden = torch.full((T, S), -torch.inf, dtype=q.dtype).triu(S - T + 1)
    return (q * q.shape[-1] ** -0.5 @ k.mT + hidden).softmax(-1) @ v


@tiled_attention.mistake("the whole matrix", hint=4)
def the_whole_matrix(q, k, v, block):
    """Right in value, but the T x S scores are made and stored at once: that is what the tiles
    are to avoid."""
    return _whole(q, k, v)


@tiled_attention.mistake("masked tiles are computed", hint=3)
def masked_tiles_are_computed(q, k, v, block):
    """Right in value, but the tiles above the diagonal are computed as well, to be multiplied by
    zero."""
    return _walk(q, k, v, block, stop=lambda i, T, S: S)


@tiled_attention.mistake("one tile too many in each row", hint=3)
def one_tile_too_many_in_each_row(q, k, v, block):
    """The tile after the diagonal is computed, too: its first key comes after the last query of
    the block."""
    return _walk(q, k, v, block, stop=lambda i, T, S: S - T + i + 2 * block)


@tiled_attention.mistake("all keys at once", hint=4)
def all_keys_at_once(q, k, v, block):
    """Only the queries go in blocks: a strip of block x S scores grows with the text, a tile
    does not."""
    return _walk(q, k, v, block, wide=1000)


@tiled_attention.mistake("positions counted from the first query", hint=2)
def positions_counted_from_the_first_query(q, k, v, block):
    "The queries are the last T of S positions: query i stands at S - T + i, not at i."
    return _walk(q, k, v, block, past=0)


@tiled_attention.mistake("the diagonal is left out", hint=3)
def the_diagonal_is_left_out(q, k, v, block):
    """The tile on the diagonal is masked in part only: leaving it out takes each query its
    nearest keys."""
    return _walk(q, k, v, block, diagonal=False)


@tiled_attention.mistake("no mask on the diagonal", hint=3)
def no_mask_on_the_diagonal(q, k, v, block):
    """Leaving tiles out is not enough: in the tile on the diagonal, half of the scores must be
    masked."""
    return _walk(q, k, v, block, masked=False)


def _by_sums(q, k, v, block):
    "Sums of exponentials without a maximum, tile by tile."
    (T, Q), S, outs = q.shape[2:], k.shape[2], []
    for i in range(0, T, block):
        rows, total, mean = q[:, :, i : i + block], 0, 0
        for j in range(0, S - T + i + rows.shape[2], block):
            scores = rows @ k[:, :, j : j + block].mT / Q**0.5
            n, m = scores.shape[-2:]
            later = torch.arange(j, j + m) > torch.arange(n)[:, None] + S - T + i
            weights = scores.exp().masked_fill(later, 0)
            total, mean = total + weights.sum(-1, True), mean + weights @ v[:, :, j : j + block]
        outs.append(mean / total)
    return torch.cat(outs, 2)


@tiled_attention.mistake("exp without a maximum", hint=1)
def exp_without_a_maximum_in_tiled_attention(q, k, v, block):
    "exp of a score above 88 is infinite: subtract the largest so far, or merge by log-sum-exps."
    return _by_sums(q, k, v, block)


@tiled_attention.mistake("the last queries of a tile lose a key", hint=2)
def the_last_queries_of_a_tile_lose_a_key(q, k, v, block):
    "The walk ends with the last query of the block, not with its first."
    return _walk(q, k, v, block, stop=lambda i, T, S: S - T + i + 1)


@tiled_attention.mistake("tiles are added, not merged", hint=1)
def tiles_are_added_not_merged(q, k, v, block):
    "Each tile's output is an average of its own: merge it by the log-sum-exps, do not add."
    return _walk(q, k, v, block, merge=lambda out, lse, o, l: (out + o, lse))


@tiled_attention.mistake("only the last tile remains", hint=1)
def only_the_last_tile_remains(q, k, v, block):
    "Each tile overwrites what the tiles before it found."
    return _walk(q, k, v, block, merge=lambda out, lse, o, l: (o, l))


@tiled_attention.mistake("the short block at the end is lost", hint=4)
def the_short_block_at_the_end_is_lost(q, k, v, block):
    "T need not be a multiple of the block: the last, shorter block of queries is left at zero."
    whole = q.shape[2] // block * block
    rest = torch.zeros_like(q[:, :, whole:])
    past = k.shape[2] - q.shape[2]
    return torch.cat((_walk(q[:, :, :whole], k, v, block, past=past), rest), 2) if whole else rest


lean_attention = Exercise(
    "lean_attention",
    chapter="11_attention",
    kind="diagnose",
    minutes=60,
    difficulty=3,
    wrt=("v",),
    factor=64.0,
    condition=_height,
    points={"values": 2, "gradients": 1, "invariant": 1, "ledger": 6},
    hints=(
        "Take one tile as large as the text: the values are right. Take smaller ones and "
        "large scores: they are not. What happens to the output so far when a larger maximum "
        "comes?",
        "The gradient of a score is p (g·v - g·o): compare, term by term. (The lecture has "
        "the derivation.)",
        "What does ctx hold when forward is over? Weights can be made again: exp(scores - lse).",
        "For which i and j does a tile hold something? Keys from j on, queries up to i + "
        "block - 1. The same tiles matter in both directions.",
    ),
)


@lean_attention.cases
def cases_of_lean_attention(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, block, size in (
        (torch.float64, (1, 2, 6, 4), 3, 1.0),
        (torch.float32, (2, 1, 7, 6), 4, 4.0),
        (torch.float32, (1, 1, 5, 4), 2, 1.0),
    ):
        q, k, v = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3))
        if shape[2] == 5:
            q[..., 0], k[..., 0] = 10, 30  # all scores about 150: exp alone is infinite
        yield (size * q).to(dtype), k.to(dtype), v.to(dtype), block


lean_attention.reference(lambda q, k, v, block: causal_attention(q, k, v))


def _gradients(seen, q, k, v):
    "What the answer's gradients are, and what they should be, for a random gradient that arrives."
    arriving = torch.randn(q.shape, generator=torch.Generator().manual_seed(9))
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    truth = torch.autograd.grad(causal_attention(*exact), exact, arriving.double())
    return seen(q, k, v, 4, wrt=(0, 1, 2), cotangent=arriving).grads, truth


@lean_attention.invariant(
    "where all values are alike, no score matters: queries and keys get no gradient"
)
def where_all_values_are_alike(seen):
    q, k = torch.randn(2, 1, 2, 6, 4, generator=torch.Generator().manual_seed(5))
    found, _ = _gradients(seen, q, k, torch.ones_like(q))
    return all(grad.abs().max() < 1e-4 for grad in found[:2])


@lean_attention.invariant("queries and keys get the gradients that float64 gives them")
def queries_and_keys_get_the_gradients_that_float64_gives_them(seen):
    q, k, v = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(8))
    pairs = zip(*_gradients(seen, q, k, v))
    return all((ours - truth).abs().max() < 1e-4 * truth.abs().max() for ours, truth in pairs)


@lean_attention.limit("saved_bytes", "a number or two for each query is kept, and no weights")
def most_saved_bytes_of_lean_attention(q, k, v, block):
    return 2 * q[..., 0].numel() * q.element_size()


@lean_attention.limit(
    "largest_tensor", "nothing larger than a tile or the queries; no T x T matrix"
)
def most_largest_tensor_of_lean_attention(q, k, v, block):
    return max(q.numel(), q[:, :, 0, 0].numel() * block * block)


@lean_attention.limit("flops", "tiles that are wholly masked are not computed on the way there")
def most_flops_of_lean_attention(q, k, v, block):
    return tile_flops(q, k, block)


@lean_attention.limit("backward_flops", "nor in the backward pass: five products a visible tile")
def most_backward_flops_of_lean_attention(q, k, v, block):
    return tile_flops(q, k, block, products=5)


def _scores(q, k, i: int, j: int, block: int) -> Tensor:
    "The scores of a tile, masked; q and k whole."
    scores = q[:, :, i : i + block] @ k[:, :, j : j + block].mT * q.shape[-1] ** -0.5
    n, m = scores.shape[-2:]
    return scores.masked_fill(torch.arange(j, j + m) > torch.arange(i, i + n)[:, None], -torch.inf)


class _Lean(torch.autograd.Function):
    "Attention in tiles, forward and backward, with a place for each mistake (`how`)."

    @staticmethod
    def forward(ctx, q, k, v, block, how):
        ctx.block, ctx.how, ctx.weights = block, how, []
        out, lse = torch.empty_like(q), torch.empty_like(q[..., :1])
        for i in range(0, q.shape[2], block):
            top, total, mean = torch.full_like(lse[:, :, i : i + block], -torch.inf), 0, 0
            for j in range(0, q.shape[2] if "masked" in how else i + 1, block):
                scores = _scores(q, k, i, j, block)
                new = torch.maximum(top, scores.amax(-1, keepdim=True))
                weights, shrink = (scores - new).exp(), (top - new).exp()
                total = total * (1 if "sum" in how else shrink) + weights.sum(-1, keepdim=True)
                mean = mean * (1 if "output" in how else shrink) + weights @ v[:, :, j : j + block]
                if "keep" in how:
                    ctx.weights.append(weights)
                top = new
            out[:, :, i : i + block] = mean / total
            lse[:, :, i : i + block] = total.log() + (0 if "lse" in how else top)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        "The gradients of q, k and v, tile by tile."
        (q, k, v, out, lse), block, how = ctx.saved_tensors, ctx.block, ctx.how
        scale = q.shape[-1] ** -0.5
        mean = 0 * lse if "mean" in how else (grad * out).sum(-1, keepdim=True)
        dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
        for i in range(0, q.shape[2], block):
            rows = slice(i, i + block)
            for j in range(0, q.shape[2] if {"masked", "back"} & set(how) else i + 1, block):
                columns = slice(j, j + block)
                weights = (_scores(q, k, i, j, block) - lse[:, :, rows]).exp()
                to_scores = weights * (grad[:, :, rows] @ v[:, :, columns].mT - mean[:, :, rows])
                dq[:, :, rows] += to_scores @ k[:, :, columns] * (1 if "scale" in how else scale)
                dk[:, :, columns] += to_scores.mT @ q[:, :, rows] * scale
                dv[:, :, columns] += weights.mT @ grad[:, :, rows]
        return dq, dk, dv, None, None


def _lean(*how):
    "The answer with these mistakes."
    return lambda q, k, v, block: _Lean.apply(q, k, v, block, how)


lean_attention.right(_lean())


class _Merging(torch.autograd.Function):
    "The same with finished outputs that are merged."

    @staticmethod
    def forward(ctx, q, k, v, block):
        outs, lses, ctx.block = [], [], block
        for i in range(0, q.shape[2], block):
            rows = q[:, :, i : i + block]
            part = torch.zeros_like(rows), torch.full_like(rows[..., 0], -torch.inf)
            for j in range(0, i + 1, block):
                tile = _tile(rows, k[:, :, j : j + block], v[:, :, j : j + block], i, j)
                part = _merged(*part, *tile)
            outs.append(part[0])
            lses.append(part[1])
        out, lse, ctx.how = torch.cat(outs, 2), torch.cat(lses, 2)[..., None], ()
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        return _Lean.backward(ctx, grad)[:4]


@lean_attention.right
def merging_part_by_part(q, k, v, block):
    return _Merging.apply(q, k, v, block)


@lean_attention.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(q, k, v, block):
    """The output so far is not shrunk when the maximum climbs; and that is the first of four
    mistakes."""
    return _lean("output", "mean", "keep", "masked")(q, k, v, block)


@lean_attention.mistake("exp without a maximum", hint=1)
def exp_without_a_maximum_in_lean_attention(q, k, v, block):
    "exp of a score above 88 is infinite: subtract the largest so far."
    return _by_sums(q, k, v, block)


@lean_attention.mistake("the sum is not shrunk", hint=1)
def the_sum_is_not_shrunk(q, k, v, block):
    "When the maximum climbs, the sum so far shrinks by exp(old - new), as the output does."
    return _lean("sum")(q, k, v, block)


@lean_attention.mistake("the mean is missing", hint=2)
def the_mean_is_missing(q, k, v, block):
    "The gradient of a score is p (g·v - g·o): the second term is missing."
    return _lean("mean")(q, k, v, block)


@lean_attention.mistake("the root of Q is missing on the way to q", hint=2)
def the_root_of_q_is_missing_on_the_way_to_q(q, k, v, block):
    "The scores were divided by the root of Q, so the gradient of q is, too."
    return _lean("scale")(q, k, v, block)


@lean_attention.mistake("the log-sum-exp without the maximum", hint=3)
def the_log_sum_exp_without_the_maximum(q, k, v, block):
    """The logarithm of the sum alone is relative to the maximum: add the maximum before you keep
    it."""
    return _lean("lse")(q, k, v, block)


@lean_attention.mistake("the weights of every tile are kept", hint=3)
def the_weights_of_every_tile_are_kept(q, k, v, block):
    "Right in value, but ctx keeps the weights: it is the T x T matrix, in pieces."
    return _lean("keep")(q, k, v, block)


@lean_attention.mistake("masked tiles are computed", hint=4)
def masked_tiles_are_computed_in_lean_attention(q, k, v, block):
    "Right in value, but tiles above the diagonal are computed: every key in them comes too late."
    return _lean("masked")(q, k, v, block)


@lean_attention.mistake("masked tiles in the backward pass", hint=4)
def masked_tiles_on_the_way_back(q, k, v, block):
    "The forward pass leaves the masked tiles out, the backward pass still computes them."
    return _lean("back")(q, k, v, block)


@lean_attention.mistake("the whole matrix", hint=3)
def the_whole_matrix_in_lean_attention(q, k, v, block):
    "Right in value, but autograd stores the T x T weights: a backward pass of your own need not."
    return _whole(q, k, v)


@lean_attention.mistake("the whole matrix, made twice", hint=3)
def the_whole_matrix_made_twice(q, k, v, block):
    "Checkpointing keeps nothing, but makes the T x T matrix, and again in the backward pass."
    return checkpoint(_whole, q, k, v, use_reentrant=False)


@lean_attention.mistake("autograd through the tiles", hint=3)
def autograd_through_the_tiles(q, k, v, block):
    """The forward pass goes by tiles, but autograd keeps all of them: write the backward pass
    yourself."""
    return _walk(q, k, v, block)
