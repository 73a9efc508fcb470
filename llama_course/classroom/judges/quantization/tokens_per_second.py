"What the judge knows of `tokens_per_second`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

tokens_per_second = Exercise(
    "tokens_per_second",
    chapter="24_quantization",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 7, "laws": 3},
    hints=(
        "Which matrices does one token read whole? Of the embedding it needs one row.",
        "In a layer: wq and wo (D, D), wk and wv (K·Q, D), and three matrices of the "
        "feed-forward part. Then the output. Each weight has its bits and a share of a 16-bit"
        " scale: 16 / group.",
        "The cache holds keys *and* values, of K heads and not of H, for every position, two "
        "bytes a number.",
    ),
)


@tokens_per_second.cases
def cases_of_tokens_per_second(seed):
    random = torch.Generator().manual_seed(seed)
    for D, L, H, K, F_, V in (
        (64, 2, 4, 2, 192, 1000),
        (128, 3, 8, 1, 320, 50),
        (96, 1, 6, 6, 256, 300),
    ):
        bits, group = ((8, 32), (4, 64), (16, 128))[int(torch.randint(3, (), generator=random))]
        position = int(torch.randint(500, 3000, (), generator=random))
        yield D, L, H, K, F_, V, bits, group, position, 15e9


def _bytes(
    D,
    L,
    H,
    K,
    F_,
    V,
    bits,
    group,
    position,
    *,
    embedding=0,
    output=1,
    ffn=3,
    heads=None,
    kinds=2,
    scale=16,
    itemsize=2,
):
    "Bytes a token moves; each keyword is something that is easily wrong."
    Q = D // H
    weights = (
        L * (2 * D * D + 2 * (heads or K) * Q * D + ffn * D * F_) + (output + embedding) * V * D
    )
    return weights * (bits + scale / group) / 8 + kinds * L * (heads or K) * Q * position * itemsize


@tokens_per_second.reference
def truth_of_tokens_per_second(D, L, H, K, F_, V, bits, group, position, bandwidth):
    return bandwidth / _bytes(D, L, H, K, F_, V, bits, group, position)


@tokens_per_second.invariant("twice the bandwidth is twice the speed, and a longer text is slower")
def twice_the_bandwidth_is_twice_the_speed(seen):
    case = 64, 2, 4, 2, 192, 1000, 8, 32, 100
    slow, fast = seen(*case, 1e9).value, seen(*case, 2e9).value
    later = seen(*case[:-1], 1000, 1e9).value
    return abs(fast / slow - 2) < 1e-6 and later < slow


@tokens_per_second.right
def from_the_bytes(D, L, H, K, F_, V, bits, group, position, bandwidth):
    return bandwidth / _bytes(D, L, H, K, F_, V, bits, group, position)


@tokens_per_second.right
def with_bytes_per_weight(D, L, H, K, F_, V, bits, group, position, bandwidth):
    per_weight, width = bits / 8 + 2 / group, K * (D // H)
    layer = sum(
        rows * columns
        for rows, columns in ((D, D), (width, D), (width, D), (D, D), (F_, D), (F_, D), (D, F_))
    )
    moved = (L * layer + V * D) * per_weight + L * position * 4 * width
    return bandwidth / moved


def _wrong(*case, **how):
    return case[-1] / _bytes(*case[:-1], **how)


@tokens_per_second.mistake("the prediction as it was given", hint=1)
def the_prediction_as_it_was_given(D, L, H, K, F_, V, bits, group, position, bandwidth):
    "It reads the whole embedding for one token, and a cache of all heads."
    moved = _bytes(D, L, H, K, F_, V, bits, group, 0, embedding=1) + 2 * L * D * position * 2
    return bandwidth / moved


@tokens_per_second.mistake("the whole embedding", hint=1)
def the_whole_embedding(*case):
    "One token needs one row of the embedding, not all of them."
    return _wrong(*case, embedding=1)


@tokens_per_second.mistake("without the output", hint=2)
def without_the_output(*case):
    "The scores of all tokens need the whole output matrix."
    return _wrong(*case, output=0)


@tokens_per_second.mistake("as many keys as queries", hint=3)
def as_many_keys_as_queries(*case):
    "With grouped queries wk, wv and the cache have K heads, not H."
    return _wrong(*case, heads=case[2])


@tokens_per_second.mistake("keys without values", hint=3)
def keys_without_values(*case):
    "The cache holds keys and values."
    return _wrong(*case, kinds=1)


@tokens_per_second.mistake("without the cache", hint=3)
def without_the_cache(*case):
    "Every token reads the keys and values of all positions before it."
    return _wrong(*case, kinds=0)


@tokens_per_second.mistake("without the scales", hint=2)
def without_the_scales(*case):
    "A group brings a scale of 16 bits: 16 / group more bits a weight."
    return _wrong(*case, scale=0)


@tokens_per_second.mistake("two matrices in the feed-forward part", hint=2)
def two_matrices_in_the_feed_forward_part(*case):
    "SwiGLU has three matrices: the gate is one of them."
    return _wrong(*case, ffn=2)


@tokens_per_second.mistake("bits taken for bytes", hint=2)
def bits_taken_for_bytes(*case):
    "Eight bits are one byte."
    return case[-1] / (8 * _bytes(*case[:-2], 0) + _bytes(*case[:-1]) - _bytes(*case[:-2], 0))


@tokens_per_second.mistake("a cache in 32 bits", hint=3)
def a_cache_in_32_bits(*case):
    "The cache is said to hold two bytes a number."
    return _wrong(*case, itemsize=4)
