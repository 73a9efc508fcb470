"What the judge knows of `parallel_swiglu`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import on_stage
from llama_course.collectives import ring_all_gather, ring_all_reduce

parallel_swiglu = Exercise(
    "parallel_swiglu",
    chapter="17_parallel",
    kind="rebuild",
    minutes=40,
    difficulty=3,
    factor=256.0,
    call=on_stage(
        lambda x, w1, w2, w3, grad, n: [
            (x, *shards, grad) for shards in zip(w1.chunk(n), w2.chunk(n, dim=1), w3.chunk(n))
        ]
    ),
    points={"values": 3, "laws": 1, "cost": 6},
    hints=(
        "What can a rank compute of silu(W1 x) * W3 x, with some rows of W1 and W3? And of W2"
        " times that? Nothing has to be sent until then.",
        "The result of W2's columns is one term of a sum over ranks: one all-reduce gives y. Going "
        "back, `grad` is the whole gradient already, and every rank has it.",
        "With h = silu(a) * b: what arrives at h is grad @ w2, and w2 gets grad^T h, both local. "
        "Then a gets (grad @ w2) * b * silu'(a), b gets (grad @ w2) * silu(a), with silu'(a) = s "
        "(1 + a (1 - s)) and s the sigmoid of a.",
        "x went into every rank's rows of W1 and W3, so its gradient is a sum over ranks: add the "
        "two terms of this rank, then one all-reduce. torch.autograd.grad may do the local part.",
    ),
)


@parallel_swiglu.cases
def cases_of_parallel_swiglu(seed: int):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5
    for n, B, T, D, F_ in ((1, 1, 3, 8, 12), (2, 2, 3, 8, 24), (3, 1, 5, 6, 18), (4, 2, 3, 8, 32)):
        dtype = torch.float64 if n == 3 else torch.float32
        tensors = 3 * draw(B, T, D), draw(F_, D), draw(D, F_), draw(F_, D), draw(B, T, D)
        yield *(t.to(dtype) for t in tensors), n


@parallel_swiglu.reference
def truth_of_parallel_swiglu(x, w1, w2, w3, grad, n):
    leaves = [t.detach().requires_grad_() for t in (x, w1, w2, w3)]
    with torch.enable_grad():
        inner = F.silu(F.linear(leaves[0], leaves[1])) * F.linear(leaves[0], leaves[3])
        y = F.linear(inner, leaves[2])
    dx, *grads = torch.autograd.grad(y, leaves, grad)
    shards = zip(grads[0].chunk(n), grads[1].chunk(n, dim=1), grads[2].chunk(n))
    return [(y.detach(), dx, *own) for own in shards]


def _keep(wire, tensor):
    return tensor


def _mean(wire, tensor):
    return ring_all_reduce(wire, tensor) / wire.size


def _twofold(wire, *terms):
    return sum(ring_all_reduce(wire, term) for term in terms)


def _swiglu(
    wire, x, w1, w2, w3, grad, *, y_of=ring_all_reduce, arriving=_keep, x_of=ring_all_reduce,
    weights_of=_keep, slope=None, apart=False, swapped=False,
):  # fmt: skip
    "Forward and backward on one rank, with a place for each mistake."
    if swapped:
        w1, w3 = w3, w1
    a, b = F.linear(x, w1), F.linear(x, w3)
    gate = a.sigmoid()
    h = a * gate * b
    y, grad = y_of(wire, F.linear(h, w2)), arriving(wire, grad)
    to_h = grad @ w2
    to_a = to_h * b * (slope(a) if slope else gate * (1 + a * (1 - gate)))
    to_b = to_h * a * gate
    rows = lambda t: t.flatten(0, 1)
    of_w1, of_w3 = (rows(t).T @ rows(x) for t in (to_a, to_b))
    if swapped:
        of_w1, of_w3 = of_w3, of_w1
    of_weights = [weights_of(wire, t) for t in (of_w1, rows(grad).T @ rows(h), of_w3)]
    terms = to_a @ w1, to_b @ w3
    return y, _twofold(wire, *terms) if apart else x_of(wire, sum(terms)), *of_weights


parallel_swiglu.right(_swiglu)


@parallel_swiglu.right
def with_autograd_on_each_rank(wire, x, w1, w2, w3, grad):
    leaves = [t.detach().clone().requires_grad_() for t in (x, w1, w2, w3)]
    x_, one, two, three = leaves
    with torch.enable_grad():
        term = (F.silu(x_ @ one.T) * (x_ @ three.T)) @ two.T
    of_x, *of_weights = torch.autograd.grad(term, leaves, grad)
    y, of_x = ring_all_reduce(wire, torch.stack([term.detach(), of_x]))  # both in one message
    return y, of_x, *of_weights


@parallel_swiglu.invariant("which rank has which inner elements does not matter")
def which_rank_has_which_inner_elements_does_not_matter(seen):
    x, w1, w2, w3, grad, n = list(parallel_swiglu.make_cases(3))[3]
    order = torch.randperm(len(w1), generator=torch.Generator().manual_seed(0))
    one = seen(x, w1, w2, w3, grad, n).value[1][:2]
    other = seen(x, w1[order], w2[:, order], w3[order], grad, n).value[1][:2]
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other))


@parallel_swiglu.limit("collective_bytes", "one all-reduce as large as x forward, and one back")
def most_collective_bytes_of_parallel_swiglu(x, w1, w2, w3, grad, n):
    return 2 * 2 * (n - 1) * x.element_size() * -(-x.numel() // n)


@parallel_swiglu.limit("flops", "all ranks together multiply what one would: nine products")
def most_flops_of_parallel_swiglu(x, w1, w2, w3, grad, n):
    return 9 * 2 * x.numel() * len(w1)


@parallel_swiglu.mistake("y is not summed", hint=2)
def y_is_not_summed(*args):
    "A rank's y is only its own term of the sum over ranks."
    return _swiglu(*args, y_of=_keep)


@parallel_swiglu.mistake("y is a mean", hint=2)
def y_is_a_mean(*args):
    "The terms are summed and then divided by N: the ranks hold terms here, not copies."
    return _swiglu(*args, y_of=_mean)


@parallel_swiglu.mistake("the gradient of x is not summed", hint=4)
def the_gradient_of_x_is_not_summed(*args):
    "x is used by every rank's rows: its gradient is the sum of what comes back from all of them."
    return _swiglu(*args, x_of=_keep)


@parallel_swiglu.mistake("the gradient of x is a mean", hint=4)
def the_gradient_of_x_is_a_mean(*args):
    "Data-parallel ranks average their gradients; here each rank has one term of a sum."
    return _swiglu(*args, x_of=_mean)


@parallel_swiglu.mistake("the arriving gradient is summed", hint=2)
def the_arriving_gradient_is_summed(*args):
    "Every rank has the whole gradient already: their sum is N times as large."
    return _swiglu(*args, arriving=ring_all_reduce)


@parallel_swiglu.mistake("gradients of weights are summed", hint=3)
def gradients_of_weights_are_summed(*args):
    "Each rank has other rows and columns: their gradients are its own, and nothing is to be added."
    return _swiglu(*args, weights_of=ring_all_reduce)


@parallel_swiglu.mistake("silu's slope is the sigmoid", hint=3)
def the_slope_of_silu_is_the_sigmoid(*args):
    "silu(a) = a s(a) has two factors that depend on a: the slope is s + a s (1 - s)."
    return _swiglu(*args, slope=torch.sigmoid)


@parallel_swiglu.mistake("silu on the other branch", hint=1)
def silu_on_the_other_branch(*args):
    "The gate is silu(W1 x); you gate with silu(W3 x)."
    return _swiglu(*args, swapped=True)


@parallel_swiglu.mistake("two sums for x", hint=4)
def two_sums_for_x(*args):
    "Right in value, but the terms of W1 and of W3 are sent one by one: add them on the rank first."
    return _swiglu(*args, apart=True)


@parallel_swiglu.mistake("the weights are gathered", hint=1)
def the_weights_are_gathered(wire, x, w1, w2, w3, grad):
    "Right in value, but every rank collects all weights: that saves neither work nor memory."
    w1, w3, w2 = (
        torch.cat(ring_all_gather(wire, w), dim) for w, dim in ((w1, 0), (w3, 0), (w2, 1))
    )
    whole = _swiglu(wire, x, w1, w2, w3, grad, y_of=_keep, x_of=_keep)
    own = lambda t, dim=0: t.chunk(wire.size, dim)[wire.rank]
    return *whole[:2], own(whole[2]), own(whole[3], 1), own(whole[4])
