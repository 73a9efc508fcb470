"""What the judge knows of the four exercises in `exercises/17_parallel.ipynb`. Spoilers from
here on."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llama_course.classroom.exercise import Exercise
from llama_course.collectives import rehearse, ring_all_gather, ring_all_reduce, ring_reduce_scatter
from llama_course.support.ledger import Counter


def on_stage(deal):
    """How an answer is used: answer(wire, *arguments of the rank) for each rank; a list of what
    they return."""

    def call(answer, *args):
        counter = _get_current_dispatch_mode()

        def play(wire, *mine):
            if not isinstance(counter, Counter):
                return answer(wire, *mine)
            with counter:
                return answer(wire, *mine)

        results, wires = rehearse(play, deal(*args))
        if isinstance(counter, Counter):
            sent = sum(w.messages for w in wires), sum(w.sent for w in wires)
            if sent[0]:
                counter.collectives["send"] = sent
        return results

    return call


reduce_scatter = Exercise(
    "reduce_scatter",
    chapter="17_parallel",
    kind="rebuild",
    call=on_stage(lambda parts: [(list(own),) for own in parts]),
    points={"values": 5, "invariant": 2, "ledger": 3},
    hints=(
        "Every part has to travel to one rank and be added up on the way, or there. Who sends"
        " what to whom?",
        "In a ring: begin with part rank - 1. In each of N - 1 steps send what you hold to "
        "rank + 1, receive from rank - 1, and add your own part of the same number: in step s"
        " that is part rank - 1 - s.",
        "All numbers modulo N. Send before you receive, or everybody waits. The sum is a new "
        "tensor: a + b, not a += b. A rank need not send more than N - 1 parts.",
    ),
)


@reduce_scatter.cases
def cases_of_reduce_scatter(seed: int):
    random = torch.Generator().manual_seed(seed)
    for n, shape, dtype in (
        (1, (3,), torch.float32),
        (4, (6,), torch.float64),
        (2, (4,), torch.float32),
        (3, (2, 5), torch.float32),
        (5, (3, 2), torch.float32),
    ):
        yield (torch.randn(n, n, *shape, generator=random).to(dtype),)  # [who has it, who gets it]


@reduce_scatter.reference
def truth_of_reduce_scatter(parts):
    return list(parts.sum(0))


reduce_scatter.right(ring_reduce_scatter)


@reduce_scatter.right
def everybody_to_everybody(wire, parts):
    for to in range(wire.size):
        if to != wire.rank:
            wire.send(parts[to], to)
    others = [wire.recv(parts[0], source) for source in range(wire.size) if source != wire.rank]
    return sum(others, parts[wire.rank])


@reduce_scatter.invariant("a rank's result depends on the parts for that rank alone")
def a_ranks_result_depends_on_the_parts_for_that_rank_alone(seen):
    parts = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1))
    other = parts.clone()
    other[:, 1:] += 1
    return torch.equal(seen(parts).value[0], seen(other).value[0])


@reduce_scatter.limit("collective_bytes", "each rank sends N - 1 parts and no more")
def most_collective_bytes_of_reduce_scatter(parts):
    return (len(parts) - 1) * parts.nbytes // len(parts)


def _ring(wire, parts, first=-1, steps=None, back=False):
    "The ring, with a place for each mistake."
    n, r = wire.size, wire.rank
    moving, way = parts[(r + first) % n], -1 if back else 1
    for step in range(1, n if steps is None else steps):
        wire.send(moving, (r + way) % n)
        moving = wire.recv(moving, (r - way) % n) + parts[(r + first - step * way) % n]
    return moving


@reduce_scatter.mistake("the own part alone", hint=1)
def the_own_part_alone(wire, parts):
    "parts[rank] is only this rank's term of the sum."
    return parts[wire.rank]


@reduce_scatter.mistake("the part of a neighbour", hint=2)
def the_part_of_a_neighbour(wire, parts):
    "The ring began with part rank, so it ends with part rank + 1: begin with rank - 1."
    return _ring(wire, parts, first=0)


@reduce_scatter.mistake("one step too few", hint=2)
def one_step_too_few(wire, parts):
    "N ranks need N - 1 steps: one rank's term is missing."
    return _ring(wire, parts, steps=wire.size - 1)


@reduce_scatter.mistake("a mean", hint=2)
def a_mean(wire, parts):
    "The sum is divided by the number of ranks: that is for the caller to decide."
    return _ring(wire, parts) / wire.size


@reduce_scatter.mistake("all wait", hint=3)
def all_wait(wire, parts):
    "Every rank receives before it sends: each waits for the other."
    moving = parts[wire.rank - 1]
    for step in range(1, wire.size):
        got = wire.recv(moving, (wire.rank - 1) % wire.size)
        wire.send(moving, (wire.rank + 1) % wire.size)
        moving = got + parts[(wire.rank - 1 - step) % wire.size]
    return moving


@reduce_scatter.mistake("parts are changed in place", hint=3)
def parts_are_changed_in_place(wire, parts):
    "+= writes into the caller's gradient."
    for step in range(1, wire.size):
        wire.send(parts[(wire.rank - step) % wire.size], (wire.rank + 1) % wire.size)
        own = parts[(wire.rank - 1 - step) % wire.size]
        own += wire.recv(own, (wire.rank - 1) % wire.size)
    return parts[wire.rank].clone()


@reduce_scatter.mistake("an all-reduce, of which one part is kept", hint=3)
def an_all_reduce_of_which_one_part_is_kept(wire, parts):
    "Every rank gets all sums and throws all but one away: twice the bytes."
    return ring_all_reduce(wire, torch.stack(parts))[wire.rank]


@reduce_scatter.mistake("all parts to everybody", hint=3)
def all_parts_to_everybody(wire, parts):
    "Each rank sends all its parts to all others: N times the bytes."
    return sum(p[wire.rank] for p in ring_all_gather(wire, torch.stack(parts)))


sharded_step = Exercise(
    "sharded_step",
    chapter="17_parallel",
    kind="extend",
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


def _adamw(
    weights, grad, mean, square, step, lr, decay=0.1, b1=0.9, b2=0.95, eps=1e-8, corrected=True
):
    "New weights and averages."
    mean, square = mean + (1 - b1) * (grad - mean), b2 * square + (1 - b2) * grad**2
    one, two = (1 - b1**step, 1 - b2**step) if corrected else (1, 1)
    return (
        weights * (1 - lr * decay) - lr * (mean / one) / ((square / two).sqrt() + eps),
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
    return 2 * (len(grads) - 1) * weights.nbytes


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


parallel_mlp = Exercise(
    "parallel_mlp",
    chapter="17_parallel",
    kind="extend",
    factor=32.0,
    call=on_stage(
        lambda x, w1, w2, w3, n: [
            (x, *shards) for shards in zip(w1.chunk(n), w2.chunk(n, dim=1), w3.chunk(n))
        ]
    ),
    points={"values": 5, "invariant": 2, "ledger": 3},
    hints=(
        "What can a rank compute of silu(W1 x) * W3 x, with some rows of W1 and W3? And of W2"
        " times that?",
        "A rank's rows of W1 and W3 give some elements of the inner vector, and these are "
        "what its columns of W2 are multiplied with. Nothing has to be sent until then.",
        "The result of W2's columns is one term of a sum over ranks: ring_all_reduce, once, "
        "at the end.",
    ),
)


@parallel_mlp.cases
def cases_of_parallel_mlp(seed: int):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random) / shape[-1] ** 0.5
    for n, B, T, D, F_ in ((1, 1, 3, 8, 12), (2, 2, 3, 8, 24), (3, 1, 5, 6, 18), (4, 2, 2, 8, 32)):
        yield 3 * draw(B, T, D), draw(F_, D), draw(D, F_), draw(F_, D), n


@parallel_mlp.reference
def truth_of_parallel_mlp(x, w1, w2, w3, n):
    return [F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)] * n


@parallel_mlp.right
def with_an_all_reduce(wire, x, w1, w2, w3):
    return ring_all_reduce(wire, F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2))


@parallel_mlp.right
def with_reduce_scatter_and_all_gather(wire, x, w1, w2, w3):
    a, b = (x @ torch.cat([w1, w3]).mT).chunk(2, -1)
    rows = torch.nn.functional.pad(
        (a * a.sigmoid() * b @ w2.mT).flatten(), (0, -x.numel() % wire.size)
    )
    own = ring_reduce_scatter(wire, list(rows.chunk(wire.size)))
    return torch.cat(ring_all_gather(wire, own))[: x.numel()].view(x.shape)


@parallel_mlp.invariant("which rank has which inner elements does not matter")
def which_rank_has_which_inner_elements_does_not_matter(seen):
    x, w1, w2, w3, n = list(parallel_mlp.make_cases(3))[3]
    order = torch.randperm(len(w1), generator=torch.Generator().manual_seed(0))
    other = seen(x, w1[order], w2[:, order], w3[order], n).value[1]
    return torch.allclose(seen(x, w1, w2, w3, n).value[1], other, atol=1e-5)


@parallel_mlp.limit("collective_bytes", "one all-reduce of a tensor as large as x")
def most_collective_bytes_of_parallel_mlp(x, w1, w2, w3, n):
    return 2 * (n - 1) * 4 * n * -(-x.numel() // n)


@parallel_mlp.limit("flops", "all ranks together multiply what one would")
def most_flops_of_parallel_mlp(x, w1, w2, w3, n):
    return 2 * 3 * x.numel() * len(w1)


def _inner(x, w1, w3):
    return F.silu(F.linear(x, w1)) * F.linear(x, w3)


@parallel_mlp.mistake("the sum is missing", hint=3)
def the_sum_is_missing(wire, x, w1, w2, w3):
    "A rank's result is only its own term."
    return F.linear(_inner(x, w1, w3), w2)


@parallel_mlp.mistake("a mean", hint=3)
def a_mean_in_parallel_mlp(wire, x, w1, w2, w3):
    "The terms are summed and then divided by N: the ranks hold terms here, not copies."
    return ring_all_reduce(wire, F.linear(_inner(x, w1, w3), w2)) / wire.size


@parallel_mlp.mistake("the residual in the sum", hint=3)
def the_residual_in_the_sum(wire, x, w1, w2, w3):
    "x is added on every rank before the all-reduce, so N times; it is not asked for at all."
    return ring_all_reduce(wire, x + F.linear(_inner(x, w1, w3), w2))


@parallel_mlp.mistake("no gate", hint=1)
def no_gate(wire, x, w1, w2, w3):
    "W3 x is left out."
    return ring_all_reduce(wire, F.linear(F.silu(F.linear(x, w1)), w2))


@parallel_mlp.mistake("silu on the other branch", hint=1)
def silu_on_the_other_branch(wire, x, w1, w2, w3):
    "The gate is silu(W1 x); you gate with silu(W3 x)."
    return ring_all_reduce(wire, F.linear(_inner(x, w3, w1), w2))


@parallel_mlp.mistake("the inner vector is gathered", hint=2)
def the_inner_vector_is_gathered(wire, x, w1, w2, w3):
    """All inner elements travel to all ranks, and each uses its own: nothing needs sending
    before W2."""
    inner = torch.cat(ring_all_gather(wire, _inner(x, w1, w3)), -1).chunk(wire.size, -1)[wire.rank]
    return ring_all_reduce(wire, F.linear(inner, w2))


@parallel_mlp.mistake("all results to everybody", hint=3)
def all_results_to_everybody(wire, x, w1, w2, w3):
    "An all-gather of N whole terms sends N/2 times what an all-reduce does."
    return sum(ring_all_gather(wire, F.linear(_inner(x, w1, w3), w2)))


@parallel_mlp.mistake("the weights are gathered", hint=2)
def the_weights_are_gathered(wire, x, w1, w2, w3):
    """Every rank collects all weights and computes everything: that is neither less work nor
    less memory."""
    w1, w3 = (torch.cat(ring_all_gather(wire, w)) for w in (w1, w3))
    return F.linear(_inner(x, w1, w3), torch.cat(ring_all_gather(wire, w2), 1))


clip_shards = Exercise(
    "clip_shards",
    chapter="17_parallel",
    kind="diagnose",
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


@clip_shards.reference
def truth_of_clip_shards(shards, gains, max_norm):
    norm = (shards.square().sum() + gains.square().sum()).sqrt()
    scale = min(1.0, max_norm / norm.item())
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
    return 2 * (len(shards) - 1) * len(shards) * 4


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
