"What the judge knows of `bigram_perplexity`. Spoilers ahead."

import math
import random

from llama_course.classroom.exercise import Exercise

bigram_perplexity = Exercise(
    "bigram_perplexity",
    chapter="04_web",
    kind="rebuild",
    minutes=30,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "Four counts come first: how often a word was followed by anything; by how many different "
        "words; how many different words came before a word; how many different pairs there are.",
        "The part that all pairs lose, discount · (different words after a) / (count of a), is "
        "what the second word's own probability is multiplied by.",
        "A word a that was never followed by anything has no counts: then only the second "
        "probability remains, with the factor 1.",
        "math.exp(-(sum of the logarithms) / (number of pairs)); the mean is taken of logarithms. "
        "Where a probability is 0 the perplexity is math.inf.",
    ),
)


_WORDS = "the cat dog sat on mat a ran and".split()


@bigram_perplexity.cases
def cases_of_bigram_perplexity(seed):
    draw = random.Random(seed)
    for size, discount, unknown in ((20, 0.75, 0), (60, 0.5, 0), (200, 0.9, 0), (30, 0.0, 2)):
        text = draw.choices(_WORDS, k=size)
        pairs = {}
        for a, b in zip(text, text[1:]):
            pairs[a, b] = pairs.get((a, b), 0) + 1
        words = draw.choices(_WORDS[: 9 - unknown], k=draw.randint(2, 12))
        yield pairs, words, discount
    yield {("a", "b"): 3, ("b", "a"): 1}, ["a", "c"], 0.5  # c never came second: infinite
    yield {("a", "b"): 3, ("b", "a"): 1}, ["c", "a", "b", "b"], 0.5  # c was never first
    yield {("a", "b"): 3}, ["a"], 0.5  # no pair
    yield {("a", "b"): 3}, [], 0.5  # no word
    yield {("a", "b"): 1, ("a", "c"): 1}, ["a", "b"], 1.0  # all is taken away
    some = {("a", "b"): 3, ("a", "c"): 9, ("b", "a"): 1, ("b", "d"): 8}
    yield some, ["a", "b"] * 700, 0.75  # a product underflows


@bigram_perplexity.reference
def truth_of_bigram_perplexity(pairs, words, discount):
    logs = []
    for a, b in zip(words, words[1:]):
        after = {y: n for (x, y), n in pairs.items() if x == a}
        share = sum(y == b for _, y in pairs) / len(pairs)
        if after:
            total = sum(after.values())
            share = (
                max(after.get(b, 0) - discount, 0) / total + discount * len(after) / total * share
            )
        if share == 0:
            return math.inf
        logs.append(math.log(share))
    return math.exp(-math.fsum(logs) / len(logs)) if logs else math.inf


def _perplexity(
    pairs, words, discount, *,
    lower="types", spread=True, unseen=True, mean="log", base=math.e, floor=True, per=None,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    total, types, before, seconds = {}, {}, {}, {}
    for (a, b), n in pairs.items():
        total[a] = total.get(a, 0) + n
        types[a] = types.get(a, 0) + 1
        before[b] = before.get(b, 0) + 1
        seconds[b] = seconds.get(b, 0) + n
    below = before if lower == "types" else seconds
    size = sum(below.values())
    found = []
    for a, b in zip(words, words[1:]):
        p = below.get(b, 0) / size if lower != "uniform" else 1 / len(before)
        if a in total:
            first = (pairs.get((a, b), 0) - discount) / total[a]
            first = max(first, 0) if floor else first
            p = first + (discount * types[a] / total[a] if spread else 1 - discount) * p
        elif not unseen:
            p = 0
        found.append(p)
    if not found or min(found) <= 0:
        return math.inf
    if mean == "log":
        return base ** (-sum(math.log(p, base) for p in found) / (per or len(found)))
    if mean == "product":
        product = math.prod(found)
        return product ** (-1 / len(found)) if product else math.inf
    return len(found) / sum(found) if mean == "p" else sum(1 / p for p in found) / len(found)


bigram_perplexity.right(_perplexity)


@bigram_perplexity.right
def with_bits(pairs, words, discount):
    return _perplexity(pairs, words, discount, base=2)


def _corpus():
    text = "a b a c a b b a c c a b a a c b".split()
    pairs = {}
    for pair in zip(text, text[1:]):
        pairs[pair] = pairs.get(pair, 0) + 1
    return pairs


@bigram_perplexity.invariant("after each word the probabilities of all words sum to one")
def the_probabilities_sum_to_one(seen):
    sums = [
        sum(1 / seen(_corpus(), [a, b], discount).value for b in "abc")
        for a, discount in (("a", 0.75), ("c", 0.25), ("never", 0.5))
    ]
    return all(math.isclose(total, 1, rel_tol=1e-9) for total in sums)


@bigram_perplexity.invariant("a text read twice is as surprising as read once")
def a_text_read_twice(seen):
    once, twice = (seen(_corpus(), ["a", "b"] * n + ["a"], 0.5).value for n in (2, 4))
    return math.isclose(once, twice, rel_tol=1e-9)


@bigram_perplexity.mistake("the product underflows", hint=4)
def the_product_underflows(pairs, words, discount):
    "The product of a thousand probabilities is 0 in floating point: add logarithms instead."
    return _perplexity(pairs, words, discount, mean="product")


@bigram_perplexity.mistake("how often, not after how many words", hint=1)
def how_often_not_after_how_many_words(pairs, words, discount):
    "The second probability counts *different* words before b, not how often b occurs."
    return _perplexity(pairs, words, discount, lower="counts")


@bigram_perplexity.mistake("all words equally likely below", hint=1)
def all_words_equally_likely_below(pairs, words, discount):
    "The second probability depends on the word b: on how many different words it follows."
    return _perplexity(pairs, words, discount, lower="uniform")


@bigram_perplexity.mistake("the discount is not given back", hint=2)
def the_discount_is_not_given_back(pairs, words, discount):
    "What is taken from the pairs, discount times their kinds, over the count, goes to the rest."
    return _perplexity(pairs, words, discount, spread=False)


@bigram_perplexity.mistake("a word never seen first is impossible", hint=3)
def a_word_never_seen_first_is_impossible(pairs, words, discount):
    "After a word that was never followed by anything the second probability stands alone."
    return _perplexity(pairs, words, discount, unseen=False)


@bigram_perplexity.mistake("counts below zero", hint=2)
def counts_below_zero(pairs, words, discount):
    "A pair that never came has a count of 0, and nothing can be taken from it."
    return _perplexity(pairs, words, discount, floor=False)


@bigram_perplexity.mistake("the mean of the probabilities", hint=4)
def the_mean_of_the_probabilities(pairs, words, discount):
    "The mean is taken of the logarithms."
    return _perplexity(pairs, words, discount, mean="p")


@bigram_perplexity.mistake("the mean of the perplexities", hint=4)
def the_mean_of_the_perplexities(pairs, words, discount):
    "The mean is taken of the logarithms, before exp."
    return _perplexity(pairs, words, discount, mean="1/p")


@bigram_perplexity.mistake("divided by the words instead of the pairs", hint=4)
def divided_by_the_words(pairs, words, discount):
    "The first word is given: there is one probability less than there are words."
    return _perplexity(pairs, words, discount, per=len(words))
