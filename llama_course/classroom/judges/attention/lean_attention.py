"What the judge knows of `lean_attention`. Spoilers ahead."

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama_course.attention import causal_attention
from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.attention.common import (
    _by_sums,
    _height,
    _merged,
    _tile,
    _walk,
    _whole,
    tile_flops,
)

lean_attention = Exercise(
    "lean_attention",
    chapter="11_attention",
    kind="diagnose",
    minutes=60,
    difficulty=3,
    wrt=("v",),
    factor=64.0,
    condition=_height,
    points={"values": 2, "gradients": 1, "laws": 1, "cost": 6},
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
