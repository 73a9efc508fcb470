"What the judge knows of `memory_gib`. Spoilers ahead."

import math
import random

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
    points={"values": 6, "laws": 4},
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
