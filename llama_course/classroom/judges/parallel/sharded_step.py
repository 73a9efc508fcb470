"What the judge knows of `sharded_step`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import on_stage
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
    points={"values": 3, "laws": 1, "cost": 6},
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
