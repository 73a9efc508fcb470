"What the judge knows of `bits_per_byte`. Spoilers ahead."

import math
import random

import torch

from llama_course.classroom.exercise import Exercise

bits_per_byte = Exercise(
    "bits_per_byte",
    chapter="01_bigram",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 6, "laws": 4},
    hints=(
        "Try two texts of very different length, one of them in Polish. Then cut the long text in "
        "two: should the number change?",
        "A nat is the larger unit: log2(e) = 1.44 bits. And what is divided by what? All surprise "
        "of all texts by all of their bytes, not a mean of means.",
        'len("ż") is 1, len("ż".encode()) is 2. A text without losses adds its bytes, too.',
    ),
)


_WORDS = "to be or not żółw łąka 你好 🐢 the question — whether 'tis naïve".split()


@bits_per_byte.cases
def cases_of_bits_per_byte(seed):
    draw = random.Random(seed)
    for texts, most in ((1, 5), (2, 20), (4, 30), (3, 1)):
        written = [" ".join(draw.choices(_WORDS, k=draw.randint(1, most))) for _ in range(texts)]
        losses = [[draw.expovariate(0.5) for _ in range(draw.randint(1, 9))] for _ in written]
        yield losses, written
    yield [[2.0, 3.0], []], ["abcdef", "a"]  # its first byte was given: no loss
    yield [[0.7], [1e-9] * 50], ["ż", "certain " * 20]


@bits_per_byte.reference
def truth_of_bits_per_byte(nats, texts):
    total = math.fsum(loss for losses in nats for loss in losses)
    return total / math.log(2) / sum(len(text.encode()) for text in texts)


@bits_per_byte.right
def in_two_sums(nats, texts):
    bits = sum(sum(losses) for losses in nats) * math.log2(math.e)
    return bits / len("".join(texts).encode("utf-8"))


@bits_per_byte.right
def with_a_tensor(nats, texts):
    losses = torch.tensor([x for losses in nats for x in losses], dtype=torch.float64)
    return (losses.sum() / math.log(2)).item() / sum(len(bytes(t, "utf-8")) for t in texts)


@bits_per_byte.invariant("where a text is cut does not matter")
def where_a_text_is_cut_does_not_matter(seen):
    whole = seen([[1.0, 2.0, 3.0, 0.5], [4.0]], ["żaba na łące", "x"]).value
    parts = seen([[1.0], [2.0, 3.0, 0.5, 4.0]], ["żaba", " na łącex"]).value
    return math.isclose(whole, parts, rel_tol=1e-9)


@bits_per_byte.invariant(
    "how a text is cut into tokens does not matter, if the surprise is the same"
)
def how_a_text_is_cut_into_tokens_does_not_matter(seen):
    fine = seen([[1.0] * 12, [0.5] * 6], ["twelve bytes", "sixsix"]).value
    coarse = seen([[6.0, 6.0], [3.0]], ["twelve bytes", "sixsix"]).value
    return math.isclose(fine, coarse, rel_tol=1e-9)


@bits_per_byte.invariant("256 equally likely bytes are 8 bits per byte")
def equally_likely_bytes(seen):
    return math.isclose(seen([[math.log(256)] * 4], ["four"]).value, 8.0, rel_tol=1e-9)


def _ratio(nats, texts, size=lambda text: len(text.encode()), scale=1 / math.log(2)):
    return sum(map(sum, nats)) * scale / sum(map(size, texts))


def _mean_of_ratios(nats, texts, size, scale):
    return sum(sum(n) * scale / size(t) for n, t in zip(nats, texts)) / len(texts)


@bits_per_byte.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(nats, texts):
    "Three things are wrong in it: the unit, what is counted, and the mean."
    return _mean_of_ratios(nats, texts, len, math.log(2))


@bits_per_byte.mistake("times log 2", hint=2)
def times_log_2(nats, texts):
    "Bits are smaller than nats, so there are more of them: divide by log 2."
    return _ratio(nats, texts, scale=math.log(2))


@bits_per_byte.mistake("still in nats", hint=2)
def still_in_nats(nats, texts):
    "That is nats per byte: divide by log 2."
    return _ratio(nats, texts, scale=1)


@bits_per_byte.mistake("per character", hint=3)
def per_character(nats, texts):
    "ż is one character and two bytes, 你 three: count the bytes of the UTF-8."
    return _ratio(nats, texts, size=len)


@bits_per_byte.mistake("the mean of the texts' numbers", hint=2)
def the_mean_of_the_texts_numbers(nats, texts):
    "A short text would count as much as a long one: divide the sum by the sum."
    return _mean_of_ratios(nats, texts, lambda t: len(t.encode()), 1 / math.log(2))


@bits_per_byte.mistake("per token", hint=2)
def per_token(nats, texts):
    "Per token the number depends on the tokenizer; divide by the bytes of the text."
    return sum(map(sum, nats)) / math.log(2) / sum(map(len, nats))


@bits_per_byte.mistake("texts without losses are left out", hint=3)
def texts_without_losses_are_left_out(nats, texts):
    "Their bytes belong to the text that was read: all bytes of all texts are counted."
    return _ratio(nats, [text for n, text in zip(nats, texts) if n])
