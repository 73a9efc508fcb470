"""What the judge knows of the three exercises in `exercises/17_parallel.ipynb`. Spoilers from
here on."""

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives import on_stage
from llama_course.collectives import ring_all_gather, ring_all_reduce, ring_reduce_scatter

sharded_step = Exercise(
    "sharded_step",
    chapter="17_parallel",
    kind="extend",
    minutes=30,
    difficulty=2,
    factor=32.0,
    call=on_stage(
        lambda weights, grads, mean, square, step, lr: [
            (weights, grad, m, s, step, lr)
            for grad, m, s in zip(grads, mean.chunk(len(grads)), square.chunk(len(grads)))
        ]
    ),
    points={"values": 5, "invariant": 2, "ledger": 3},
    hints=(
        "A rank updates only the share whose averages it has. Of which gradient does it need "
        "what, and how do the others hear of the new weights?",
        "A reduce-scatter of the gradient's parts, divided by N; AdamW on this rank's part of"
        " the weights; an all-gather of the new parts. ring_reduce_scatter and "
        "ring_all_gather are there.",
        "AdamW: m += (1 - b1)(g - m); v = b2 v + (1 - b2) g²; the weight times 1 - lr * "
        "decay, minus lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), with b1 0.9, b2 "
        "0.95, eps 1e-8, decay 0.1. t is `step`.",
        "Nothing but a gradient's parts and new weights has to travel: 2(N - 1)/N of the "
        "vector a rank.",
    ),
)


@sharded_step.cases
def cases_of_sharded_step(seed: int):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    for n, size, step, lr in ((1, 6, 1, 0.01), (2, 8, 3, 0.1), (3, 12, 40, 0.02), (4, 16, 2, 0.05)):
        yield draw(size), draw(n, size), 0.3 * draw(size), draw(size).square() + 0.1, step, lr
    tiny = 1e-7 * draw(2, 8)  # as small as eps, the first step, and one that is zero
    tiny[:, 3] = 0
    yield draw(8), tiny, torch.zeros(8), torch.zeros(8), 1, 0.1


def _adamw(
    weights,
    grad,
    mean,
    square,
    step,
    lr,
    decay=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    corrected=True,
    root=False,
):
    "New weights and averages."
    mean, square = mean + (1 - b1) * (grad - mean), b2 * square + (1 - b2) * grad**2
    one, two = (1 - b1**step, 1 - b2**step) if corrected else (1, 1)
    size = (square / two + eps).sqrt() if root else (square / two).sqrt() + eps
    return (
        weights * (1 - lr * decay) - lr * (mean / one) / size,
        mean,
        square,
    )


@sharded_step.reference
def truth_of_sharded_step(weights, grads, mean, square, step, lr):
    weights, mean, square = _adamw(weights, grads.mean(0), mean, square, step, lr)
    n = len(grads)
    return [(weights, m, s) for m, s in zip(mean.chunk(n), square.chunk(n))]


def _sharded(
    wire, weights, grad, mean, square, step, lr, scale=None, gather=True, whole=False, **how
):
    "The step, with a place for each mistake."
    parts = list(grad.chunk(wire.size))
    own = ring_all_reduce(wire, grad).chunk(wire.size)[wire.rank] if whole else None
    if not whole:
        own = ring_reduce_scatter(wire, parts)
    own = own / (wire.size if scale is None else scale)
    part, mean, square = _adamw(
        weights.chunk(wire.size)[wire.rank], own, mean, square, step, lr, **how
    )
    if gather:
        return torch.cat(ring_all_gather(wire, part)), mean, square
    pieces = list(weights.chunk(wire.size))
    pieces[wire.rank] = part
    return torch.cat(pieces), mean, square


@sharded_step.right
def with_ring_collectives(wire, *args):
    return _sharded(wire, *args)


@sharded_step.right
def with_sends_alone(wire, weights, grad, mean, square, step, lr):
    others = [rank for rank in range(wire.size) if rank != wire.rank]
    size = len(weights) // wire.size
    at = lambda rank: slice(rank * size, (rank + 1) * size)
    for to in others:
        wire.send(grad[at(to)], to)
    g = (grad[at(wire.rank)] + sum(wire.recv(mean, source) for source in others)) / wire.size
    m, v = torch.lerp(mean, g, 0.1), torch.addcmul(0.95 * square, g, g, value=0.05)
    new = weights * (1 - 0.1 * lr)
    moved = lr / (1 - 0.9**step) * m / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    new[at(wire.rank)] -= moved
    for to in others:
        wire.send(new[at(wire.rank)], to)
    for source in others:
        new[at(source)] = wire.recv(mean, source)
    return new, m, v


@sharded_step.invariant("all ranks end with the same weights, bit for bit")
def all_ranks_end_with_the_same_weights(seen):
    case = list(sharded_step.make_cases(5))[3]
    first, *others = [result[0] for result in seen(*case).value]
    return all(torch.equal(first, other) for other in others)


@sharded_step.limit(
    "collective_bytes", "a reduce-scatter of the gradient and an all-gather of the weights"
)
def most_collective_bytes_of_sharded_step(weights, grads, *_):
    return 2 * (len(grads) - 1) * weights.nbytes // len(grads)


@sharded_step.mistake("gradients are summed, not averaged", hint=2)
def gradients_are_summed_not_averaged(wire, weights, grad, mean, square, step, lr):
    "The reduce-scatter gives a sum over ranks; the gradient of the whole batch is its N-th part."
    return _sharded(wire, weights, grad, mean, square, step, lr, scale=1)


@sharded_step.mistake("the own gradient alone", hint=2)
def the_own_gradient_alone(wire, weights, grad, mean, square, step, lr):
    "Each rank updates its share with the gradient of its own sequences."
    part = weights.chunk(wire.size)[wire.rank], grad.chunk(wire.size)[wire.rank]
    part, mean, square = _adamw(*part, mean, square, step, lr)
    return torch.cat(ring_all_gather(wire, part)), mean, square


@sharded_step.mistake("the others do not hear of it", hint=2)
def the_others_do_not_hear_of_it(wire, weights, grad, mean, square, step, lr):
    """A rank's new share stays with it: the weights of the others are old. An all-gather is
    missing."""
    return _sharded(wire, weights, grad, mean, square, step, lr, gather=False)


@sharded_step.mistake("no bias correction", hint=3)
def no_bias_correction(wire, weights, grad, mean, square, step, lr):
    "The averages begin at zero: divide by 1 - b^t before they are used."
    return _sharded(wire, weights, grad, mean, square, step, lr, corrected=False)


@sharded_step.mistake("eps is left out", hint=3)
def eps_is_left_out(wire, weights, grad, mean, square, step, lr):
    "A gradient that has always been zero is 0/0 without eps."
    return _sharded(wire, weights, grad, mean, square, step, lr, eps=0.0)


@sharded_step.mistake("eps inside the root", hint=3)
def eps_inside_the_root(wire, weights, grad, mean, square, step, lr):
    "Adam adds eps to the root, RMSNorm adds it under the root: 1e-8 under the root is 1e-4 beside."
    return _sharded(wire, weights, grad, mean, square, step, lr, root=True)


@sharded_step.mistake("no weight decay", hint=3)
def no_weight_decay(wire, weights, grad, mean, square, step, lr):
    "The W of AdamW is missing: the weight times 1 - lr * 0.1."
    return _sharded(wire, weights, grad, mean, square, step, lr, decay=0.0)


@sharded_step.mistake("Adam's b2 of 0.999", hint=3)
def adams_b2_of_0_999(wire, weights, grad, mean, square, step, lr):
    "LLaMA uses 0.95 (sec. 2.3); 0.999 is PyTorch's default."
    return _sharded(wire, weights, grad, mean, square, step, lr, b2=0.999)


@sharded_step.mistake("an all-reduce where a reduce-scatter is enough", hint=4)
def an_all_reduce_where_a_reduce_scatter_is_enough(wire, weights, grad, mean, square, step, lr):
    "Each rank gets the whole mean gradient and uses an N-th of it: half as many bytes again."
    return _sharded(wire, weights, grad, mean, square, step, lr, whole=True)


@sharded_step.mistake("every rank updates everything", hint=4)
def every_rank_updates_everything(wire, weights, grad, mean, square, step, lr):
    "The averages are gathered, too, and the whole update is done N times: that is no sharding."
    whole = [torch.cat(ring_all_gather(wire, t)) for t in (mean, square)]
    grad = ring_all_reduce(wire, grad) / wire.size
    new = _adamw(weights, grad, *whole, step, lr)
    return new[0], *(t.chunk(wire.size)[wire.rank] for t in new[1:])


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
    points={"values": 5, "invariant": 1, "ledger": 4},
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


clip_shards = Exercise(
    "clip_shards",
    chapter="17_parallel",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    factor=16.0,
    call=on_stage(lambda shards, gains, max_norm: [(shard, gains, max_norm) for shard in shards]),
    points={"values": 5, "invariant": 2, "ledger": 3},
    hints=(
        "Take two ranks with shards (3,) and (4,) and no gains. How long is the whole gradient?",
        "Squares add up, lengths do not. And `gains` is one tensor, of which every rank has a"
        " copy: how often does it count? And what happens to a gradient that is shorter than "
        "max_norm?",
        "norm = sqrt(all-reduce of the shard's squares + the squares of gains); scale = "
        "min(1, max_norm / norm). One number a rank has to travel.",
    ),
)


@clip_shards.cases
def cases_of_clip_shards(seed: int):
    random = torch.Generator().manual_seed(seed)
    for n, size, gains, max_norm in (
        (1, 5, 3, 1.0),
        (2, 6, 4, 1.0),
        (3, 4, 9, 2.0),
        (4, 8, 5, 100.0),
    ):
        yield torch.randn(n, size, generator=random), torch.randn(gains, generator=random), max_norm
    yield torch.zeros(2, 3), torch.zeros(2), 1.0


@clip_shards.reference
def truth_of_clip_shards(shards, gains, max_norm):
    norm = (shards.square().sum() + gains.square().sum()).sqrt()
    scale = min(1.0, max_norm / max(norm.item(), 1e-300))
    return [(shard * scale, gains * scale, norm) for shard in shards]


def _clip(wire, shard, gains, max_norm, total=None, scale=None):
    "Clipping, with a place for each mistake."
    squares = shard.square().sum(), gains.square().sum()
    norm = (
        total(wire, *squares) if total else (ring_all_reduce(wire, squares[0]) + squares[1]).sqrt()
    )
    scale = scale(norm, max_norm) if scale else torch.clamp(max_norm / norm, max=1.0)
    return shard * scale, gains * scale, norm


@clip_shards.right
def with_one_all_reduce(wire, *args):
    return _clip(wire, *args)


@clip_shards.right
def with_gathered_lengths(wire, shard, gains, max_norm):
    lengths = torch.stack(ring_all_gather(wire, torch.linalg.vector_norm(shard)))
    norm = torch.linalg.vector_norm(torch.cat([lengths, gains]))
    if norm <= max_norm:
        return shard.clone(), gains.clone(), norm
    return shard * (max_norm / norm), gains * (max_norm / norm), norm


@clip_shards.invariant("into how many shards a gradient is cut does not matter")
def into_how_many_shards_a_gradient_is_cut_does_not_matter(seen):
    whole = torch.randn(12, generator=torch.Generator().manual_seed(4))
    norms = [seen(whole.view(n, -1), torch.ones(3), 1.0).value[0][2] for n in (1, 2, 3, 4)]
    return torch.allclose(torch.stack(norms), norms[0].expand(4), rtol=1e-5)


@clip_shards.limit(
    "collective_bytes", "one number of each rank, in an all-reduce that pads it to N"
)
def most_collective_bytes_of_clip_shards(shards, gains, max_norm):
    return 2 * (len(shards) - 1) * 4


@clip_shards.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(wire, shard, gains, max_norm):
    """Lengths are added, the copies of gains are counted on every rank, and short gradients are
    made longer."""
    norm = ring_all_reduce(wire, torch.cat([shard, gains]).norm())
    return shard * (max_norm / norm), gains * (max_norm / norm), norm


@clip_shards.mistake("lengths are added", hint=1)
def lengths_are_added(wire, shard, gains, max_norm):
    "3 and 4 make 5, not 7: add squares and take the root of the sum."
    return _clip(
        wire,
        shard,
        gains,
        max_norm,
        total=lambda w, s, g: (ring_all_reduce(w, s.sqrt()) ** 2 + g).sqrt(),
    )


@clip_shards.mistake("each rank for itself", hint=1)
def each_rank_for_itself(wire, shard, gains, max_norm):
    "Each rank clips by its own length, so the shards of one gradient get different factors."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: (s + g).sqrt())


@clip_shards.mistake("gains count on every rank", hint=2)
def gains_count_on_every_rank(wire, shard, gains, max_norm):
    "gains is one tensor with N copies: its squares belong to the sum once."
    return _clip(
        wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s + g).sqrt()
    )


@clip_shards.mistake("gains are left out", hint=2)
def gains_are_left_out(wire, shard, gains, max_norm):
    "The length is that of all parameters together; the squares of gains are missing."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s).sqrt())


@clip_shards.mistake("short gradients are made longer", hint=2)
def short_gradients_are_made_longer(wire, shard, gains, max_norm):
    "A gradient that is short enough stays as it is: the factor is at most 1."
    return _clip(wire, shard, gains, max_norm, scale=lambda norm, most: most / norm)


@clip_shards.mistake("a mean of the squares", hint=1)
def a_mean_of_the_squares(wire, shard, gains, max_norm):
    "The squares are divided by the number of ranks: the shards are pieces, not copies."
    return _clip(
        wire,
        shard,
        gains,
        max_norm,
        total=lambda w, s, g: (ring_all_reduce(w, s) / w.size + g).sqrt(),
    )


@clip_shards.mistake("the square of the length", hint=3)
def the_square_of_the_length(wire, shard, gains, max_norm):
    "The root of the sum of squares is missing."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s) + g)


@clip_shards.mistake("the whole gradient is gathered", hint=3)
def the_whole_gradient_is_gathered(wire, shard, gains, max_norm):
    "Every rank collects all shards to measure them: one number of each is enough."
    norm = torch.cat([*ring_all_gather(wire, shard), gains]).norm()
    scale = torch.clamp(max_norm / norm, max=1.0)
    return shard * scale, gains * scale, norm
