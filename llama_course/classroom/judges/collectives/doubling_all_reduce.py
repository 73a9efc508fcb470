"What the judge knows of `doubling_all_reduce`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import GIVEN, RINGS, cancellation, on_stage
from llama_course.collectives import (
    padded_parts,
    ring_all_reduce,
)

doubling_all_reduce = Exercise(
    "doubling_all_reduce",
    chapter="16_collectives",
    kind="extend",
    minutes=35,
    difficulty=3,
    condition=cancellation,
    call=on_stage(lambda tensors: [(t,) for t in tensors]),
    allowed=GIVEN + RINGS,
    points={"values": 3, "laws": 1, "cost": 6},
    hints=(
        "Two ranks: each sends the other one half, adds what it gets to its own half, and sends "
        "the sum back. Four ranks: first with the rank that is two away, then, with half of the "
        "half, with the neighbour.",
        "The partner at distance d (N/2, N/4, ..., 1) is rank ^ d. After the exchange a rank "
        "works on the half that its own number lies in; the other half was sent away.",
        "Back: distances 1, 2, ..., N/2, with the same partners. Each sends all parts that it has "
        "finished, and gets as many.",
        "padded_parts(tensor, N) gives N parts; a rank ends the first half of the way with part "
        "`rank`. A torch.stack of the parts is easily cut into halves. Cut off the padding.",
    ),
)


@doubling_all_reduce.cases
def cases_of_doubling_all_reduce(seed: int):
    random = torch.Generator().manual_seed(seed)
    for n, shape, dtype in (
        (1, (3,), torch.float32),
        (2, (2, 4), torch.float64),
        (4, (8,), torch.float32),
        (4, (3, 3), torch.float32),  # does not divide
        (8, (5,), torch.float64),  # fewer numbers than ranks
        (8, (2, 12), torch.bfloat16),
        (16, (3,), torch.float32),
    ):
        yield (torch.randn(n, *shape, generator=random).to(dtype),)


@doubling_all_reduce.reference
def truth_of_doubling_all_reduce(tensors):
    return [tensors.sum(0)] * len(tensors)


def _doubled(wire, tensor, *, partner=None, mean=False, pad=True, back=True, mirrored=False):
    "Halving and doubling, with a place for each mistake."
    n, r = wire.size, wire.rank
    size = -(-tensor.numel() // n) if pad else tensor.numel() // n
    parts = tensor.new_zeros(n, size)
    flat = tensor.flatten()[: n * size]
    parts.view(-1)[: len(flat)] = flat
    low, high, distance = 0, n, n // 2
    while distance:
        other = r ^ distance if partner is None else partner(r, distance, n)
        middle = (low + high) // 2
        away = slice(middle, high) if r < middle else slice(low, middle)
        low, high = (low, middle) if r < middle else (middle, high)
        wire.send(parts[away], other)
        parts[low:high] += wire.recv(parts[low:high], other)
        distance //= 2
    distance = 1
    while back and distance < n:
        other, theirs = r ^ distance, low ^ distance
        wire.send(parts[low:high], other)
        place = slice(theirs, theirs + distance) if not mirrored else slice(low, high)
        parts[place] = wire.recv(parts[low:high], other)
        low = min(low, theirs)
        high = low + 2 * distance
        distance *= 2
    result = tensor.new_zeros(tensor.numel())
    result[: parts.numel()] = parts.flatten()[: tensor.numel()]
    return result.view_as(tensor) / (n if mean else 1)


doubling_all_reduce.right(_doubled)


@doubling_all_reduce.right
def by_recursion(wire, tensor):
    def summed(parts, ranks):  # parts, one for each of these ranks -> the same, finished
        if len(ranks) == 1:
            return parts
        half = len(ranks) // 2
        upper = wire.rank >= ranks[half]
        mine, theirs = (slice(half, None), slice(0, half))[:: 1 if upper else -1]
        other = wire.rank + (-half if upper else half)
        wire.send(torch.stack(parts[theirs]), other)
        got = wire.recv(torch.stack(parts[mine]), other)
        own = summed([a + b for a, b in zip(parts[mine], got)], ranks[mine])
        wire.send(torch.stack(own), other)
        rest = list(wire.recv(torch.stack(own), other))
        return rest + own if upper else own + rest

    whole = torch.cat(summed(padded_parts(tensor, wire.size), range(wire.size)))
    return whole[: tensor.numel()].view_as(tensor)


@doubling_all_reduce.invariant("all ranks have the same sum, bit for bit")
def all_ranks_have_the_same_sum(seen):
    tensors = torch.randn(8, 40, generator=torch.Generator().manual_seed(11))
    first, *others = seen(tensors).value
    return all(torch.equal(first, other) for other in others)


@doubling_all_reduce.limit("collective_calls", "2 log2 N messages from each rank are enough")
def most_collective_calls_of_doubling_all_reduce(tensors):
    return 2 * (len(tensors).bit_length() - 1)


@doubling_all_reduce.limit("collective_bytes", "each rank sends 2(N - 1) parts and no more")
def most_collective_bytes_of_doubling_all_reduce(tensors):
    n = len(tensors)
    return 2 * (n - 1) * -(-tensors[0].numel() // n) * tensors.element_size()


@doubling_all_reduce.mistake("a ring", hint=1)
def a_ring(wire, tensor):
    "Right in value, but a ring needs 2(N - 1) messages from each rank, one after the other."
    return ring_all_reduce(wire, tensor)


@doubling_all_reduce.mistake("the whole tensor each time", hint=2)
def the_whole_tensor_each_time(wire, tensor):
    "log2 N messages, but each is the whole tensor: the bytes grow with log2 N."
    distance = 1
    while distance < wire.size:
        wire.send(tensor, wire.rank ^ distance)
        tensor = tensor + wire.recv(tensor, wire.rank ^ distance)
        distance *= 2
    return tensor


@doubling_all_reduce.mistake("through rank 0", hint=1)
def through_rank_0(wire, tensor):
    "Right in value, but rank 0 sends the whole tensor N - 1 times."
    if wire.rank:
        wire.send(tensor, 0)
        return wire.recv(tensor, 0)
    total = tensor
    for source in range(1, wire.size):
        total = total + wire.recv(total, source)
    for to in range(1, wire.size):
        wire.send(total, to)
    return total


@doubling_all_reduce.mistake("the partner is rank + d", hint=2)
def the_partner_is_rank_plus_d(wire, tensor):
    "You send to rank + d and wait for rank + d, which talks to somebody else: partners are mutual."
    return _doubled(wire, tensor, partner=lambda r, d, n: (r + d) % n)


@doubling_all_reduce.mistake("only the way there", hint=3)
def only_the_way_there(wire, tensor):
    "A rank ends with one finished part; the others must still be collected."
    return _doubled(wire, tensor, back=False)


@doubling_all_reduce.mistake("parts come back to the wrong place", hint=3)
def parts_come_back_to_the_wrong_place(wire, tensor):
    "What the partner sends belongs to the partner's places, not over your own."
    return _doubled(wire, tensor, mirrored=True)


@doubling_all_reduce.mistake("the rest is lost", hint=4)
def the_rest_is_lost(wire, tensor):
    "The length need not be a multiple of N: pad before you cut, and cut the padding off."
    return _doubled(wire, tensor, pad=False)


@doubling_all_reduce.mistake("a mean of all ranks", hint=1)
def a_mean_of_all_ranks(wire, tensor):
    "The sum is divided by the number of ranks: that is for the caller to decide."
    return _doubled(wire, tensor, mean=True)
