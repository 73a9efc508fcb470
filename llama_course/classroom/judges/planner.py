"""What the judge knows of the five exercises in `exercises/19_planner.ipynb`. Spoilers from
here on."""

import math
import random
from fractions import Fraction

from llama_course.classroom.exercise import Exercise

GIB = 2**30
PARTS = ("parameters", "gradients", "optimizer", "activations", "logits")

memory_gib = Exercise(
    "memory_gib",
    chapter="19_planner",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    factor=84.0,
    points={"values": 6, "invariant": 4},
    hints=(
        "16 bytes a parameter in all: 4 for its value, 4 for its gradient, 8 for the "
        "optimizer. FSDP spreads them over the data ranks, tensor parallelism over the tensor"
        " ranks: divide by both.",
        "Activations: layers * micro_batch * seq_len * (8 D / t + 8 D / t + 8 F / t) bytes "
        "with sequence parallelism. Data parallelism does not divide them: each rank has its "
        "own sequences.",
        "Without sequence parallelism the first 8 D, stream and norms, are whole on each "
        "tensor rank. Logits: 10 bytes for each of micro_batch * seq_len * V / t. A GiB is "
        "2**30 bytes.",
    ),
)


@memory_gib.cases
def cases_of_memory_gib(seed):
    draw = random.Random(seed)
    for i in range(6):
        D = 128 * draw.randint(8, 64)
        L, F, V = draw.randint(8, 80), 256 * draw.randint(2, 9) + 2 * D, 1000 * draw.randint(8, 64)
        data, tensor, micro_batch = (
            draw.choice((3, 8, 24)),
            draw.choice((2, 4)),
            draw.choice((3, 5)),
        )
        yield D, L, F, V, data, tensor, i % 2 == 0, micro_batch, 1024 + 512 * i


def _whole(D, L, F, V):
    "Parameters of a LLaMA of that shape."
    return 2 * V * D + L * (4 * D * D + 3 * D * F + 2 * D) + D


@memory_gib.reference
def needed(D, L, F, V, data, tensor, sequence, micro_batch, seq_len, spread=None):
    "By part."
    states, tokens = _whole(D, L, F, V) / (spread or data * tensor), micro_batch * seq_len
    stream = 8 * D / tensor if sequence else 8 * D
    bytes = (
        4 * states,
        4 * states,
        8 * states,
        L * tokens * (stream + 8 * D / tensor + 8 * F / tensor),
        10.0 * tokens * V / tensor,
    )
    return {part: size / GIB for part, size in zip(PARTS, bytes)}


memory_gib.right(needed)


@memory_gib.right
def summed_by_matrix(D, L, F, V, data, tensor, sequence, micro_batch, seq_len):
    P = sum([V * D] * 2 + [D] + [D * D] * 4 * L + [D * F] * 3 * L + [D] * 2 * L)
    own = {"parameters": 4, "gradients": 4, "optimizer": 8}
    out = {part: size * P / data / tensor / 1024**3 for part, size in own.items()}
    whole, split = (0, 16 * D) if sequence else (8 * D, 8 * D)
    out["activations"] = L * micro_batch * seq_len * (whole + (split + 8 * F) / tensor) / 1024**3
    out["logits"] = micro_batch * seq_len * V * 10 / tensor / 1024**3
    return out


_SHAPE = (4096, 32, 11008, 32000)


@memory_gib.invariant("7B on one GPU: 16 bytes a parameter, 107.8 GB")
def one_gpu_is_enough_for_7b(seen):
    parts = seen(*_SHAPE, 1, 1, True, 1, 2048).value
    return abs(sum(parts[part] for part in PARTS[:3]) * GIB / 1e9 - 107.8) < 0.05


@memory_gib.invariant(
    "more data ranks change the model states alone, more sequences the rest alone"
)
def more_data_ranks_change_the_model_states_alone(seen):
    one, more, twice = (
        seen(*_SHAPE, data, 2, False, b, 2048).value for data, b in ((4, 1), (8, 1), (4, 2))
    )
    same = lambda a, b: math.isclose(a, b, rel_tol=1e-6)
    states = all(same(one[p], 2 * more[p]) and same(one[p], twice[p]) for p in PARTS[:3])
    return states and all(same(one[p], more[p]) and same(2 * one[p], twice[p]) for p in PARTS[3:])


def _changed(change):
    "An answer that is right but for `change(parts, case) -> parts`."

    def answer(*case):
        return change(needed(*case), dict(zip(memory_gib.names, case)))

    return answer


@memory_gib.mistake("the states are not spread over the tensor ranks", hint=1)
def the_states_are_not_spread_over_the_tensor_ranks(
    D, L, F, V, data, tensor, sequence, micro_batch, seq_len
):
    "Each tensor rank holds a part of each matrix: divide by data * tensor."
    return needed(D, L, F, V, data, tensor, sequence, micro_batch, seq_len, spread=data)


@memory_gib.mistake("the states are not spread over the data ranks", hint=1)
def the_states_are_not_spread_over_the_data_ranks(
    D, L, F, V, data, tensor, sequence, micro_batch, seq_len
):
    "That is plain data parallelism; FSDP spreads the states over the data ranks as well."
    return needed(D, L, F, V, data, tensor, sequence, micro_batch, seq_len, spread=tensor)


@memory_gib.mistake("activations divided by the data ranks", hint=2)
def activations_divided_by_the_data_ranks(*case):
    "micro_batch is already the number of sequences of one data rank."
    return _changed(lambda parts, c: parts | {"activations": parts["activations"] / c["data"]})(
        *case
    )


@memory_gib.mistake("one layer of activations", hint=2)
def one_layer_of_activations(*case):
    "Every layer keeps its activations until the backward pass comes to it."
    return _changed(lambda parts, c: parts | {"activations": parts["activations"] / c["L"]})(*case)


@memory_gib.mistake("sequence parallelism always on", hint=3)
def sequence_parallelism_always_on(D, L, F, V, data, tensor, sequence, micro_batch, seq_len):
    "Without it, the stream and the norms are whole on every tensor rank."
    return needed(D, L, F, V, data, tensor, True, micro_batch, seq_len)


@memory_gib.mistake("sequence parallelism always off", hint=3)
def sequence_parallelism_always_off(D, L, F, V, data, tensor, sequence, micro_batch, seq_len):
    "With it, the stream and the norms are spread too."
    return needed(D, L, F, V, data, tensor, False, micro_batch, seq_len)


@memory_gib.mistake("a GiB of 10⁹ bytes", hint=3)
def a_gib_of_1e9_bytes(*case):
    "10⁹ bytes are a GB; a GiB is 2**30."
    return {part: size * GIB / 1e9 for part, size in needed(*case).items()}


@memory_gib.mistake("logits whole on every tensor rank", hint=3)
def logits_whole_on_every_tensor_rank(*case):
    "The output matrix is split by the vocabulary: each tensor rank has V / t logits."
    return _changed(lambda parts, c: parts | {"logits": parts["logits"] * c["tensor"]})(*case)


@memory_gib.mistake("the matrices of the blocks alone", hint=1)
def the_matrices_of_the_blocks_alone(D, L, F, V, data, tensor, sequence, micro_batch, seq_len):
    "Embedding and output have V D parameters each: 2 V D is missing."
    parts = needed(D, L, F, V, data, tensor, sequence, micro_batch, seq_len)
    share = 1 - 2 * V * D / _whole(D, L, F, V)
    return parts | {part: share * parts[part] for part in PARTS[:3]}


smallest_cluster = Exercise(
    "smallest_cluster",
    chapter="19_planner",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=84.0,
    points={"values": 6, "invariant": 4},
    hints=(
        "Two loops: sizes 8, 16, 32, ... up to most; for each the tensor degrees 1, 2, 4, 8. "
        "The first size with a layout that fits and is in time is the answer.",
        "It fits if states / gpus + activations / tensor <= room. It takes tokens / (gpus * "
        "speed * efficiency[tensor]) seconds, 86,400 of them a day.",
        "Of the layouts of that size that fit, take the fastest: the one with the largest "
        "efficiency. If no size will do, return None.",
    ),
)


@smallest_cluster.cases
def cases_of_smallest_cluster(seed):
    draw = random.Random(seed).uniform
    # exactly as much as there is room for, exactly in time
    yield 80, 10, 20, 8 * 100 * 2 * 86400, 100, {1: 1.0}, 2, 64
    for states, days, tokens in (
        (1045, 21, 1.4e12),
        (1045, 90, 1.4e12),
        (208, 5, 1e12),
        (3000, 365, 1e11),
        (600, 365, 1e11),
        (520, 0.001, 1e12),
        (1045, 60, 1.4e12),
    ):
        efficiency = {
            1: draw(0.92, 1.0),
            2: draw(0.86, 0.92),
            4: draw(0.75, 0.86),
            8: draw(0.55, 0.75),
        }
        yield (
            states * 1.0,
            draw(90, 260),
            80.0,
            tokens,
            draw(900, 1400),
            efficiency,
            days * draw(0.9, 1.1),
            4096,
        )


@smallest_cluster.reference
def cluster(states, activations, room, tokens, speed, efficiency, days, most, sizes=None):
    "By trying all."
    gpus = 8
    while gpus <= most:
        fitting = [t for t in efficiency if states / gpus + activations / t <= room]
        if fitting:
            tensor = max(fitting, key=efficiency.get)
            taken = tokens / (gpus * speed * efficiency[tensor]) / 86400
            if taken <= days:
                return gpus, tensor, taken
        gpus *= 2
    return None


smallest_cluster.right(cluster)


@smallest_cluster.right
def over_all_clusters(states, activations, room, tokens, speed, efficiency, days, most):
    found = []
    for gpus in (8 * 2**i for i in range(40)):
        for tensor, share in efficiency.items():
            taken = tokens / gpus / speed / share / 3600 / 24
            if gpus <= most and taken <= days and states / gpus <= room - activations / tensor:
                found.append((gpus, taken, tensor))
    return (lambda g, d, t: [g, t, d])(*min(found)) if found else None


_CASE = (1045.0, 320.0, 80.0, 1.4e12, 1100.0, {1: 1.0, 2: 0.95, 4: 0.9, 8: 0.8})


@smallest_cluster.invariant(
    "with a little more time the same GPUs do, with half the time they do not"
)
def with_a_little_more_time_the_same_gpus_do(seen):
    gpus, _, days = seen(*_CASE, 30.0, 4096).value
    return (
        seen(*_CASE, days * 1.01, 4096).value[0] == gpus < seen(*_CASE, days * 0.5, 4096).value[0]
    )


@smallest_cluster.invariant("no cluster beyond the largest that is allowed")
def no_cluster_beyond_the_largest_that_is_allowed(seen):
    gpus, *_ = seen(*_CASE, 30.0, 4096).value
    return seen(*_CASE, 30.0, gpus).value[0] == gpus and seen(*_CASE, 30.0, gpus // 2).value is None


@smallest_cluster.mistake("the memory is not looked at", hint=2)
def the_memory_is_not_looked_at(states, activations, *rest):
    "A layout that does not fit is no layout, however fast."
    return cluster(0.0, 0.0, *rest)


@smallest_cluster.mistake("the activations are forgotten", hint=2)
def the_activations_are_forgotten(states, activations, *rest):
    "Model states and activations must fit together."
    return cluster(states, 0.0, *rest)


@smallest_cluster.mistake("activations spread over all GPUs", hint=2)
def activations_spread_over_all_gpus(
    states, activations, room, tokens, speed, efficiency, days, most
):
    """Data parallelism does not make a sequence's activations smaller; only the tensor ranks
    share them."""
    for gpus in (8 * 2**i for i in range(20)):
        tensor = max(efficiency, key=efficiency.get)
        taken = tokens / (gpus * speed * efficiency[tensor]) / 86400
        fits = (states + activations) / gpus <= room
        if fits and taken <= days and gpus <= most:
            return gpus, tensor, taken


@smallest_cluster.mistake("always eight tensor ranks", hint=3)
def always_eight_tensor_ranks(states, activations, room, tokens, speed, efficiency, *rest):
    """Tensor parallelism costs speed: take the fastest layout that fits, not the one that surely
    fits."""
    return cluster(states, activations, room, tokens, speed, {8: efficiency[8]}, *rest)


@smallest_cluster.mistake("always one tensor rank", hint=1)
def always_one_tensor_rank(states, activations, room, tokens, speed, efficiency, *rest):
    "Where the activations do not fit, more tensor ranks make room."
    return cluster(states, activations, room, tokens, speed, {1: efficiency[1]}, *rest)


@smallest_cluster.mistake("the largest cluster", hint=1)
def the_largest_cluster(states, activations, room, tokens, speed, efficiency, days, most):
    "Asked for are the fewest GPUs that are in time."
    fitting = [t for t in efficiency if states / most + activations / t <= room]
    tensor = max(fitting, key=efficiency.get, default=8)
    return most, tensor, tokens / (most * speed * efficiency[tensor]) / 86400


@smallest_cluster.mistake("the efficiency is forgotten", hint=2)
def the_efficiency_is_forgotten(states, activations, room, tokens, speed, efficiency, days, most):
    "Each GPU does speed * efficiency[tensor] tokens a second."
    full = {t: 1 - 1e-12 * t for t in efficiency}
    return cluster(states, activations, room, tokens, speed, full, days, most)


@smallest_cluster.mistake("hours instead of days", hint=2)
def hours_instead_of_days(*case):
    "A day has 86,400 seconds."
    found = cluster(*case)
    return found and (found[0], found[1], found[2] * 24)


@smallest_cluster.mistake("the fewest that fit, in time or not", hint=1)
def the_fewest_that_fit_in_time_or_not(
    states, activations, room, tokens, speed, efficiency, days, most
):
    "It must also be done within the days."
    return cluster(states, activations, room, tokens, speed, efficiency, math.inf, most)


step_mfu = Exercise(
    "step_mfu",
    chapter="19_planner",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
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


loss_pieces = Exercise(
    "loss_pieces",
    chapter="19_planner",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Write the bytes for k pieces as a sum of three parts. Only one of them becomes smaller "
        "with k.",
        "The largest piece has ceil(tokens / k) tokens. The gradient of the hidden states is kept "
        "for all tokens, 2 D bytes each, and no tensor rank has less of it than another.",
        "The gradient of the output matrix has V D / tensor numbers: of 2 bytes with one piece, "
        "of 4 with more. So one piece may fit where two do not: try k = 1 by itself, then go on.",
    ),
)


@loss_pieces.cases
def cases_of_loss_pieces(seed):
    draw = random.Random(seed)
    # one piece just fits, though two would not; one byte less
    one = 12 * 8 * 1000 + 2 * 8 * 4096 + 2 * 1000 * 4096
    yield 8, 4096, 1000, 1, 12, one
    yield 8, 4096, 1000, 1, 12, one - 1
    for i in range(9):
        tokens, D = draw.randint(500, 20_000), 128 * draw.randint(8, 64)
        tensor = (1, 2, 8)[i % 3]
        V, per_logit = 8 * draw.randint(2000, 16_000), draw.choice((8, 10, 12, 16))
        most = pieces_bytes(tokens, D, V, tensor, per_logit, 1)
        kept = 2 * tokens * D + 4 * V * D // tensor
        share = (1.5, 1.0, 0.6, 0.3, 0.1, 0.02, 0.004, 0.0, -0.01)[i]
        yield tokens, D, V, tensor, per_logit, int(kept + share * (most - kept))


def pieces_bytes(tokens, D, V, tensor, per_logit, k, kept=None, hidden=None):
    "The bytes with k pieces."
    logits = per_logit * -(-tokens // k) * V // tensor
    stream = 2 * (tokens if hidden is None else hidden(k)) * D
    return logits + stream + (kept or (2 if k == 1 else 4)) * V * D // tensor


@loss_pieces.reference
def fewest_pieces(tokens, D, V, tensor, per_logit, room):
    "By the tokens that a piece may have."
    one = pieces_bytes(tokens, D, V, tensor, per_logit, 1)
    if one <= room:
        return 1, one
    kept = 2 * tokens * D + 4 * V * D // tensor
    fit = (room - kept) * tensor // (per_logit * V)  # tokens of a piece
    if fit < 1 or tokens < 2:
        return None
    k = max(2, -(-tokens // fit))
    return k, pieces_bytes(tokens, D, V, tensor, per_logit, k)


loss_pieces.right(fewest_pieces)


def _tried(tokens, room, bytes_of):
    "One number of pieces after the other."
    for k in range(1, tokens + 1):
        if bytes_of(k) <= room:
            return k, bytes_of(k)
    return None


@loss_pieces.right
def one_after_the_other(tokens, D, V, tensor, per_logit, room):
    shard = V // tensor

    def needed(k):
        longest = max(tokens * (i + 1) // k - tokens * i // k for i in range(k))
        return per_logit * longest * shard + 2 * tokens * D + (4 - 2 * (k == 1)) * shard * D

    low, high = 2, tokens  # more pieces never need more
    if needed(1) <= room:
        return [1, needed(1)]
    if tokens < 2 or needed(tokens) > room:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(middle) <= room else (middle + 1, high)
    return [low, needed(low)]


_TEXT = (8192, 4096, 128256, 1, 12)  # Llama 3 8B: one sequence


@loss_pieces.invariant("what comes out fits, and with a byte less of room it does not")
def what_comes_out_fits(seen):
    for room in (15 * 10**9, 6 * 10**9, 4 * 10**9):
        k, needed = seen(*_TEXT, room).value
        less = seen(*_TEXT, needed - 1).value
        if needed > room or seen(*_TEXT, needed).value[0] != k or (less and less[0] <= k):
            return False
    return True


@loss_pieces.invariant("more room never needs more pieces")
def more_room_never_needs_more_pieces(seen):
    found = [seen(*_TEXT, room * 10**9).value for room in (3, 4, 6, 9, 15)]
    counts = [math.inf if answer is None else answer[0] for answer in found]
    return counts == sorted(counts, reverse=True)


@loss_pieces.mistake("the pieces are rounded down", hint=2)
def the_pieces_are_rounded_down(tokens, D, V, tensor, per_logit, room):
    "Some piece has ceil(tokens / k) tokens, and that one must fit."
    whole = lambda k: pieces_bytes(
        tokens // k * k, D, V, tensor, per_logit, k, hidden=lambda k: tokens
    )
    return _tried(tokens, room, whole)


@loss_pieces.mistake("the gradient of the hidden states for one piece alone", hint=2)
def the_hidden_states_of_one_piece(tokens, D, V, tensor, per_logit, room):
    "It is what the blocks below wait for, and is kept for all tokens."
    return _tried(
        tokens,
        room,
        lambda k: pieces_bytes(
            tokens, D, V, tensor, per_logit, k, hidden=lambda k: -(-tokens // k)
        ),
    )


@loss_pieces.mistake("the matrix's gradient in 2 bytes throughout", hint=3)
def two_bytes_throughout(tokens, D, V, tensor, per_logit, room):
    "With more than one piece it is added up, in float32."
    return _tried(tokens, room, lambda k: pieces_bytes(tokens, D, V, tensor, per_logit, k, kept=2))


@loss_pieces.mistake("the matrix's gradient in 4 bytes throughout", hint=3)
def four_bytes_throughout(tokens, D, V, tensor, per_logit, room):
    "With one piece nothing is added up: 2 bytes."
    return _tried(tokens, room, lambda k: pieces_bytes(tokens, D, V, tensor, per_logit, k, kept=4))


@loss_pieces.mistake("the whole vocabulary on each tensor rank", hint=1)
def the_whole_vocabulary_on_each_rank(tokens, D, V, tensor, per_logit, room):
    "Logits and matrix are split by the vocabulary: a rank has V / tensor of each."
    return _tried(tokens, room, lambda k: pieces_bytes(tokens, D, V, 1, per_logit, k))


@loss_pieces.mistake("the logits alone", hint=1)
def the_logits_alone(tokens, D, V, tensor, per_logit, room):
    "Two gradients are kept beside them."
    return _tried(tokens, room, lambda k: per_logit * -(-tokens // k) * V // tensor)


@loss_pieces.mistake("as many pieces as possible", hint=1)
def as_many_as_possible(tokens, D, V, tensor, per_logit, room):
    "Each piece reads the whole output matrix again: asked for are the fewest that fit."
    least = pieces_bytes(tokens, D, V, tensor, per_logit, tokens)
    return (tokens, least) if least <= room else None


@loss_pieces.mistake("a power of two", hint=1)
def a_power_of_two(tokens, D, V, tensor, per_logit, room):
    "Any number of pieces is allowed."
    found = _tried(tokens, room, lambda k: pieces_bytes(tokens, D, V, tensor, per_logit, k))
    k = 1 << (found[0] - 1).bit_length() if found else 0
    return found and (k, pieces_bytes(tokens, D, V, tensor, per_logit, k))


carbon_bill = Exercise(
    "carbon_bill",
    chapter="19_planner",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    factor=84.0,
    points={"values": 6, "invariant": 4},
    hints=(
        "Tokens divided by the speed of one GPU are GPU-seconds. The number of GPUs decides "
        "how long it takes, not how much is used.",
        "MWh = GPU-hours * watts * PUE / 10⁶. The PUE is what the building adds: it "
        "multiplies, once.",
        "Tonnes = MWh * kg a kWh, without another factor: a thousand kWh to the MWh, a "
        "thousand kg to the tonne. Months: hours / 24 / 30.44.",
    ),
)


@carbon_bill.cases
def cases_of_carbon_bill(seed):
    draw = random.Random(seed).uniform
    for _ in range(6):
        gpus, watts = int(draw(8, 4096)), draw(250, 700)
        yield draw(2e11, 2e12), draw(100, 4000), gpus, watts, draw(1.05, 1.6), draw(0.05, 0.8)


@carbon_bill.reference
def bill(tokens, speed, gpus, watts, pue, intensity):
    hours = tokens / speed / 3600
    mwh = hours * watts * pue / 1e6
    return {
        "gpu_hours": hours,
        "mwh": mwh,
        "tco2e": mwh * intensity,
        "months": hours / gpus / 24 / 30.44,
    }


carbon_bill.right(bill)


@carbon_bill.right
def in_joules(tokens, speed, gpus, watts, pue, intensity):
    joules = tokens / speed * watts * pue
    seconds = tokens / (speed * gpus)
    return {
        "gpu_hours": seconds * gpus / 3600,
        "mwh": joules / 3.6e9,
        "tco2e": joules / 3.6e6 * intensity / 1000,
        "months": seconds / 86400 / 30.44,
    }


@carbon_bill.invariant("65B: 1,022,362 GPU-hours are 449.8 MWh and 173.2 t (Table 15)")
def carbon_of_65b(seen):
    value = seen(1.4e12, 1.4e12 / 1_022_362 / 3600, 2048, 400.0, 1.1, 0.385).value
    return abs(value["mwh"] - 449.84) < 0.01 and abs(value["tco2e"] - 173.19) < 0.01


@carbon_bill.invariant("2,638 MWh of 2,048 GPUs are 4.0 months, whatever the paper says")
def carbon_of_the_table(seen):
    hours = 2638e6 / 400 / 1.1
    return abs(seen(hours * 3600, 1.0, 2048, 400.0, 1.1, 0.385).value["months"] - 4.01) < 0.01


@carbon_bill.mistake("the PUE is forgotten", hint=2)
def the_pue_is_forgotten(tokens, speed, gpus, watts, pue, intensity):
    "The building takes its share: multiply by the PUE."
    return bill(tokens, speed, gpus, watts, 1.0, intensity)


@carbon_bill.mistake("divided by the PUE", hint=2)
def divided_by_the_pue(tokens, speed, gpus, watts, pue, intensity):
    "The building needs more than its GPUs, not less."
    return bill(tokens, speed, gpus, watts, 1 / pue, intensity)


@carbon_bill.mistake("the PUE twice", hint=2)
def the_pue_twice(tokens, speed, gpus, watts, pue, intensity):
    "The carbon follows from the MWh, in which the PUE is already."
    right = bill(tokens, speed, gpus, watts, pue, intensity)
    return right | {"tco2e": right["tco2e"] * pue}


@carbon_bill.mistake("speed of the whole cluster", hint=1)
def speed_of_the_whole_cluster(tokens, speed, gpus, watts, pue, intensity):
    "`speed` is that of one GPU: GPU-hours do not depend on the number of GPUs."
    return bill(tokens, speed * gpus, gpus, watts, pue, intensity)


@carbon_bill.mistake("months of one GPU", hint=1)
def months_of_one_gpu(tokens, speed, gpus, watts, pue, intensity):
    "All GPUs work at once: divide the GPU-hours by their number."
    return bill(tokens, speed, gpus, watts, pue, intensity) | {
        "months": tokens / speed / 86400 / 30.44
    }


@carbon_bill.mistake("kWh for MWh", hint=2)
def kwh_for_mwh(*case):
    "Watt-hours divided by a million are MWh."
    return (lambda right: right | {"mwh": 1000 * right["mwh"], "tco2e": 1000 * right["tco2e"]})(
        bill(*case)
    )


@carbon_bill.mistake("kilograms for tonnes", hint=3)
def kilograms_for_tonnes(*case):
    "kg a kWh is tonnes a MWh: no factor of a thousand is left."
    return (lambda right: right | {"tco2e": 1000 * right["tco2e"]})(bill(*case))


@carbon_bill.mistake("minutes for hours", hint=1)
def minutes_for_hours(tokens, speed, gpus, watts, pue, intensity):
    "An hour has 3,600 seconds."
    return bill(60 * tokens, speed, gpus, watts, pue, intensity)


@carbon_bill.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(tokens, speed, gpus, watts, pue, intensity):
    "Nothing was repaired: look at the speed, at the PUE and at the months."
    hours = tokens / (speed * gpus) / 3600
    mwh = hours * watts / 1e6
    return {
        "gpu_hours": hours,
        "mwh": mwh,
        "tco2e": mwh * pue * intensity,
        "months": hours / 24 / 30,
    }
