"""What the judge knows of the three exercises in `exercises/16_collectives.ipynb`. Spoilers from
here on."""

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llama_course.classroom.exercise import Exercise
from llama_course.collectives import (
    padded_parts,
    rehearse,
    ring_all_gather,
    ring_all_reduce,
)
from llama_course.support.ledger import Counter

GIVEN = ("Wire", "StageWire", "Stage", "Deadlock", "padded_parts", "rehearse")  # by the task
RINGS = ("ring_all_gather", "ring_reduce_scatter", "ring_all_reduce")


def on_stage(deal):
    """How an answer is used: answer(wire, *arguments of the rank) for each rank; a list of what
    they return. Counted is what the busiest rank sends."""

    def call(answer, *args):
        counter = _get_current_dispatch_mode()

        def play(wire, *mine):
            wire.recv = _as_announced(wire.recv)
            if not isinstance(counter, Counter):
                return answer(wire, *mine)
            with counter:
                return answer(wire, *mine)

        results, wires = rehearse(play, deal(*args))
        if isinstance(counter, Counter):
            busiest = max(w.messages for w in wires), max(w.sent for w in wires)
            if busiest[0]:
                counter.collectives["send"] = busiest
        return results

    return call


def _as_announced(recv):
    "`recv`, which refuses a message of another shape than it was told to expect."

    def checked(like, source):
        got = recv(like, source)
        if (got.shape, got.dtype) != (like.shape, like.dtype):
            what = f"{tuple(got.shape)} {got.dtype}", f"{tuple(like.shape)} {like.dtype}"
            raise ValueError(f"rank {source} sent {what[0]}, and `like` has {what[1]}")
        return got

    return checked


def cancellation(tensors, *_):
    "How much a sum over the first axis magnifies a rounding error, in its worst row."
    terms, total = tensors.double().abs().sum(0), tensors.double().sum(0).abs()
    worst = terms.amax(-1) / total.amax(-1).clamp(min=1e-300)
    return float(worst.max().clamp(1, 1e6))


reduce_scatter = Exercise(
    "reduce_scatter",
    chapter="16_collectives",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    condition=cancellation,
    call=on_stage(lambda parts: [(list(own),) for own in parts]),
    allowed=GIVEN,
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


doubling_all_reduce = Exercise(
    "doubling_all_reduce",
    chapter="16_collectives",
    kind="extend",
    minutes=35,
    difficulty=3,
    condition=cancellation,
    call=on_stage(lambda tensors: [(t,) for t in tensors]),
    allowed=GIVEN + RINGS,
    points={"values": 4, "invariant": 2, "ledger": 4},
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


def _roundings(tensors, *_):
    "Sums in float32 or more: 16 bits are rounded once, at the end."
    return 0.6 if tensors.element_size() == 2 else 8 * cancellation(tensors)


equal_sums = Exercise(
    "equal_sums",
    chapter="16_collectives",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    factor=1.0,
    condition=_roundings,
    call=on_stage(lambda tensors: [(t,) for t in tensors]),
    allowed=GIVEN + RINGS,
    points={"values": 4, "invariant": 4, "ledger": 2},
    hints=(
        "(a + b) + c and (b + c) + a are not the same number in floating point. In which order "
        "does rank 0 add, and in which rank 1?",
        "Every rank must add the same terms in the same order, its own among them at its own "
        "place; or one rank adds and the others are told.",
        "Each addition in bfloat16 rounds to 8 bits. Add in float32 (float64 stays), and go back "
        "to the tensor's dtype once, at the end. Send what is 16 bits wide as 16 bits.",
        "`total = tensor` is the caller's tensor, and += writes into it.",
    ),
)


@equal_sums.cases
def cases_of_equal_sums(seed: int):
    random = torch.Generator().manual_seed(seed)
    for n, shape, dtype in (
        (1, (4,), torch.float32),
        (3, (5,), torch.float64),
        (5, (2, 6), torch.float32),
        (6, (64, 1), torch.bfloat16),
        (5, (64, 1), torch.float16),
    ):
        far = 1.5 if dtype.itemsize == 2 else 0.0  # no sum is small beside its terms
        yield ((far + torch.randn(n, *shape, generator=random)).to(dtype),)


equal_sums.reference(truth_of_doubling_all_reduce)


def _summed(wire, tensor, *, own_first=False, wide=True, back=True, mean=False, skip=False):
    "Everybody to everybody, with a place for each mistake."
    for to in range(wire.size):
        if to != wire.rank:
            wire.send(tensor, to)
    terms = [
        tensor if source == wire.rank else wire.recv(tensor, source) for source in range(wire.size)
    ]
    if own_first:
        terms.insert(0, terms.pop(wire.rank))
    if skip and wire.size > 1:
        terms.pop(wire.rank)
    if wide:
        terms = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in terms]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return (total / (wire.size if mean else 1)).to(tensor.dtype if back else total.dtype)


equal_sums.right(_summed)


@equal_sums.right
def one_rank_adds(wire, tensor):
    if wire.rank:
        wire.send(tensor, 0)
        return wire.recv(tensor, 0)
    parts = torch.stack([tensor] + [wire.recv(tensor, r) for r in range(1, wire.size)])
    total = parts.double().sum(0).to(tensor.dtype)
    for to in range(1, wire.size):
        wire.send(total, to)
    return total


@equal_sums.right
def a_ring_of_terms(wire, tensor):
    terms = torch.stack(ring_all_gather(wire, tensor))
    return terms.sum(0, dtype=torch.promote_types(tensor.dtype, torch.float32)).to(tensor.dtype)


@equal_sums.invariant("all replicas have the same sum, bit for bit")
def all_replicas_have_the_same_sum(seen):
    random = torch.Generator().manual_seed(2)
    for n, dtype in ((3, torch.float32), (5, torch.float32), (4, torch.float64)):
        first, *others = seen(torch.randn(n, 60, generator=random).to(dtype)).value
        if not all(torch.equal(first, other) for other in others):
            return False
    return True


@equal_sums.limit("collective_bytes", "each tensor goes to each other rank once, as it is")
def most_collective_bytes_of_equal_sums(tensors):
    return (len(tensors) - 1) * tensors[0].nbytes


@equal_sums.mistake("the code as it was given", hint=4)
def the_sum_as_it_was_given(wire, tensor):
    "The caller's tensor is overwritten, and that is one of three faults."
    for to in range(wire.size):
        if to != wire.rank:
            wire.send(tensor, to)
    total = tensor
    for source in range(wire.size):
        if source != wire.rank:
            total += wire.recv(tensor, source)
    return total


@equal_sums.mistake("each rank begins with its own", hint=1)
def each_rank_begins_with_its_own(wire, tensor):
    "Every rank adds in an order of its own, and the sums differ in their last bits."
    return _summed(wire, tensor, own_first=True)


@equal_sums.mistake("added in 16 bits", hint=3)
def added_in_16_bits(wire, tensor):
    "Each addition rounds to the 16 bits of the tensor: the errors of N - 1 additions remain."
    return _summed(wire, tensor, wide=False)


@equal_sums.mistake("the sum stays float32", hint=3)
def the_sum_stays_float32(wire, tensor):
    "The result has the dtype of the tensor: go back once, at the end."
    return _summed(wire, tensor, back=False)


@equal_sums.mistake("the mean", hint=2)
def the_mean_of_the_replicas(wire, tensor):
    "The sum is divided by the number of ranks."
    return _summed(wire, tensor, mean=True)


@equal_sums.mistake("the own term is left out", hint=2)
def the_own_term_is_left_out(wire, tensor):
    "Each rank adds what the others send, and forgets its own tensor."
    return _summed(wire, tensor, skip=True)


@equal_sums.mistake("float32 is sent", hint=3)
def float32_is_sent(wire, tensor):
    "Right in value, but what has 16 bits travels as 32: make it wide where it arrives."
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return _summed(wire, wide).to(tensor.dtype)
