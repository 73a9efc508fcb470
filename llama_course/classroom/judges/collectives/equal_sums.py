"What the judge knows of `equal_sums`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import GIVEN, RINGS, cancellation, on_stage
from llama_course.classroom.judges.collectives.doubling_all_reduce import (
    truth_of_doubling_all_reduce,
)
from llama_course.collectives import (
    ring_all_gather,
)


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
    points={"values": 4, "laws": 4, "cost": 2},
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
