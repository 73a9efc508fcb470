"What the judge knows of `reduce_scatter`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import GIVEN, cancellation, on_stage

reduce_scatter = Exercise(
    "reduce_scatter",
    chapter="16_collectives",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    condition=cancellation,
    call=on_stage(lambda parts: [(list(own),) for own in parts]),
    allowed=GIVEN,
    points={"values": 3, "laws": 1, "cost": 6},
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
    return (len(parts) - 1) * parts[0, 0].nbytes


def _ring(wire, parts, first=-1, steps=None, back=False):
    "The ring, with a place for each mistake."
    n, r = wire.size, wire.rank
    moving, way = parts[(r + first) % n], -1 if back else 1
    for step in range(1, n if steps is None else steps):
        wire.send(moving, (r + way) % n)
        moving = wire.recv(moving, (r - way) % n) + parts[(r + first - step * way) % n]
    return moving


reduce_scatter.right(_ring)


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
    own = moving = _ring(wire, parts)
    for _ in range(1, wire.size):
        wire.send(moving, (wire.rank + 1) % wire.size)
        moving = wire.recv(moving, (wire.rank - 1) % wire.size)
    return own


@reduce_scatter.mistake("all parts to everybody", hint=3)
def all_parts_to_everybody(wire, parts):
    "Each rank sends all its parts to all others: N times the bytes."
    whole, others = torch.stack(parts), [r for r in range(wire.size) if r != wire.rank]
    for to in others:
        wire.send(whole, to)
    return sum((wire.recv(whole, r)[wire.rank] for r in others), parts[wire.rank])
