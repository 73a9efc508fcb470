"What the judges of this chapter's exercises share."

from torch.utils._python_dispatch import _get_current_dispatch_mode

from llama_course.collectives import (
    rehearse,
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
