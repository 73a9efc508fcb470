"What the judge knows of `loss_pieces`. Spoilers ahead."

import math
import random

from llama_course.classroom.exercise import Exercise

loss_pieces = Exercise(
    "loss_pieces",
    chapter="19_planner",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "laws": 3},
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
