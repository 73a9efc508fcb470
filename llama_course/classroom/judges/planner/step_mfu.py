"What the judge knows of `step_mfu`. Spoilers ahead."

import math
import random
from fractions import Fraction

from llama_course.classroom.exercise import Exercise

step_mfu = Exercise(
    "step_mfu",
    chapter="19_planner",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "Two times: that of the arithmetic that is really done, and that of the messages. Only "
        "the first depends on the tokens.",
        "A rank sends 2 (n - 1)/n P bytes for each of two all-gathers in 16 bits, and 4 (n - 1)/n "
        "P for the reduce-scatter in 32 bits: 8 (n - 1)/n P in all.",
        "MFU counts the FLOPs that the model needs, (6 P + extra) per token, not those of the "
        "second forward pass; divided by what the GPU could have done in the step's seconds.",
        "Messages are hidden from the tokens on for which computing takes as long: seconds of "
        "messages / seconds of computing per token, rounded up; 0 where nothing is sent.",
    ),
)


def _mfu_args(draw):
    P = draw.randint(10**8, 7 * 10**10)
    recompute, overlap = draw.random() < 0.5, draw.random() < 0.5
    return (
        P,
        draw.choice((0, P // 10, P // 3)),
        draw.choice((256, 2048, 16384)),
        draw.choice((2, 8, 2048)),
        draw.choice((312e12, 989e12)),
        draw.choice((0.45, 0.6, 0.7)),
        draw.choice((5e9, 25e9, 200e9)),
        overlap,
        recompute,
    )


@step_mfu.cases
def cases_of_step_mfu(seed):
    draw = random.Random(seed)
    yield 7 * 10**9, 10**9, 4096, 1, 312e12, 0.6, 25e9, True, False  # alone
    found = 0
    while found < 8:
        args = list(_mfu_args(draw))
        args[7:] = found % 2 == 0, found % 4 < 2
        tokens = _hidden(args)
        if abs(tokens - round(tokens)) > 1e-6:
            found += 1
            yield tuple(args)


def _hidden(args):
    "The tokens, as a fraction, for which computing takes as long as the messages."
    P, extra, _, data, peak, efficiency, link, _, recompute = args
    each = Fraction(6 * P + extra) * (Fraction(4, 3) if recompute else 1)
    sent = Fraction(8 * P * (data - 1), data) / Fraction(link)
    return sent * Fraction(peak) * Fraction(efficiency) / each


@step_mfu.reference
def truth_of_step_mfu(params, extra, tokens, data, peak, efficiency, link, overlap, recompute):
    "By fractions."
    args = params, extra, tokens, data, peak, efficiency, link, overlap, recompute
    needed = Fraction(6 * params + extra) * tokens
    computing = (
        needed * (Fraction(4, 3) if recompute else 1) / Fraction(peak) / Fraction(efficiency)
    )
    sending = Fraction(8 * params * (data - 1), data) / Fraction(link)
    seconds = max(computing, sending) if overlap else computing + sending
    return float(seconds), float(needed / seconds / Fraction(peak)), math.ceil(_hidden(args))


def _step_of(
    params, extra, tokens, data, peak, efficiency, link, overlap, recompute, *, useful=False,
    share=lambda n: (n - 1) / n, bytes=8, six=6, add=True, both=None, against=lambda p, e: p,
    up=math.ceil, again=True,
):  # fmt: skip
    "One step, with a place for each mistake."
    each = six * params + (extra if add else 0)
    done = each * (4 / 3 if recompute and again else 1)
    computing = done / (peak * efficiency)  # seconds per token
    sending = bytes * params * share(data) / link
    times = computing * tokens, sending
    seconds = max(times) if (overlap if both is None else both) else sum(times)
    mfu = (done if useful else each) * tokens / (seconds * against(peak, efficiency))
    return seconds, mfu, up(sending / computing)


step_mfu.right(_step_of)


@step_mfu.right
def message_by_message(params, extra, tokens, data, peak, efficiency, link, overlap, recompute):
    kept = 1 / data
    sent = sum(width * params * (1 - kept) for width in (2, 2, 4))
    flops = (2 + 2 * 2 + (2 if recompute else 0)) * params  # forward, backward, forward again
    flops += extra * (4 / 3 if recompute else 1)
    rate, wait = flops / peak / efficiency, sent / link
    step = rate * tokens + wait
    if overlap:
        step = wait if wait > rate * tokens else rate * tokens
    return step, tokens / step * (6 * params + extra) / peak, -int(-wait // rate)


@step_mfu.invariant("on one GPU the MFU is the efficiency, or three quarters of it")
def on_one_gpu(seen):
    args = 7 * 10**9, 10**9, 4096, 1, 312e12, 0.6, 25e9
    plain, again = (seen(*args, True, recompute).value for recompute in (False, True))
    return abs(plain[1] - 0.6) < 1e-6 and abs(again[1] - 0.45) < 1e-6 and plain[2] == 0


@step_mfu.invariant("from the tokens that are returned on, messages that overlap cost nothing")
def from_the_tokens_that_are_returned_on(seen):
    args = [13 * 10**9, 10**9, 1, 64, 312e12, 0.6, 25e9, True, False]
    least = seen(*args).value[2]
    found = []
    for args[2] in (least - 1, least, 2 * least):
        found.append(seen(*args).value[1])
    return found[0] < 0.6 * (1 - 1e-9) and all(abs(mfu - 0.6) < 1e-6 for mfu in found[1:])


@step_mfu.mistake("the second forward pass counts", hint=3)
def the_second_forward_pass_counts(*args):
    "That is hardware utilization: MFU counts only what the model needs, however it is computed."
    return _step_of(*args, useful=True)


@step_mfu.mistake("the second forward pass is free", hint=1)
def the_second_forward_pass_is_free(*args):
    "With activation checkpointing a third more is computed, and takes its time."
    return _step_of(*args, again=False)


@step_mfu.mistake("the own share is sent, too", hint=2)
def the_own_share_is_sent(*args):
    "A rank has its own n-th already: (n - 1)/n travels, and nothing where it is alone."
    return _step_of(*args, share=lambda n: 1)


@step_mfu.mistake("6 bytes per parameter", hint=2)
def six_bytes_per_parameter(*args):
    "Parameters are gathered twice in 16 bits, and gradients scattered in 32: 2 + 2 + 4."
    return _step_of(*args, bytes=6)


@step_mfu.mistake("always added", hint=1)
def always_added(*args):
    "Where messages overlap with the arithmetic, the longer of the two is what a step takes."
    return _step_of(*args, both=False)


@step_mfu.mistake("always overlapped", hint=1)
def always_overlapped(*args):
    "Without overlap a step waits for its messages: the times are added."
    return _step_of(*args, both=True)


@step_mfu.mistake("attention is forgotten", hint=3)
def attention_is_forgotten(*args):
    "`extra` FLOPs per token come on top of 6 per parameter."
    return _step_of(*args, add=False)


@step_mfu.mistake("the forward pass alone", hint=3)
def the_forward_pass_alone(*args):
    "2 per parameter are the forward pass; training takes 6."
    return _step_of(*args, six=2)


@step_mfu.mistake("against what is reached", hint=3)
def against_what_is_reached(*args):
    "MFU is a share of the data sheet's peak, not of peak times efficiency."
    return _step_of(*args, against=lambda peak, efficiency: peak * efficiency)


@step_mfu.mistake("a token too few", hint=4)
def a_token_too_few(*args):
    "Round up: with one token fewer the messages still take longer."
    return _step_of(*args, up=math.floor)
