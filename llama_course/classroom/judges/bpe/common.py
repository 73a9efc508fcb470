"What the judges of this chapter's exercises share."

import random
from collections import Counter


def word_cases(seed: int, rounds=(5, 12, 100)):
    "Arguments (words, n): words of few letters with their counts; ties and overlaps are frequent."
    draw = random.Random(seed)
    for letters, size, longest, n in (
        ("abc", 12, 6, rounds[0]),
        ("ab", 10, 9, rounds[1]),
        ("abcdeż你", 20, 7, rounds[1]),
        ("a", 4, 9, rounds[1]),  # aaaa: overlapping pairs
        ("abcd", 6, 5, rounds[2]),  # more rounds than there are pairs
    ):
        words = {}
        for _ in range(size):
            word = "".join(draw.choices(letters, k=draw.randint(1, longest)))
            words[word] = draw.choice((1, 1, 2, 3, 10))
        yield words, n
    yield {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}, 3
    yield {"x": 3, "": 2}, 4  # nothing to merge
    yield {}, 2
    yield {"hug": 10}, 0  # no round at all


def _pairs(words, weigh=True):
    counts = Counter()
    for symbols, count in words:
        for pair in zip(symbols, symbols[1:]):
            counts[pair] += count if weigh else 1
    return counts


def _joined(symbols, pair):
    new, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            new.append(pair[0] + pair[1])
            i += 2
        else:
            new.append(symbols[i])
            i += 1
    return new


def _most_frequent(counts):
    return lambda pair: (-counts[pair], pair)


def _learn(words, n, key=None, weigh=True, join=_joined, once=False, least=1):
    "The right answer, with a switch for each mistake."
    parts, merges = [(list(word), count) for word, count in words.items()], []
    counts = _pairs(parts, weigh)
    for _ in range(n):
        counts = counts if once and merges else _pairs(parts, weigh)
        counts = Counter({pair: c for pair, c in counts.items() if c >= least})
        if once:
            for pair in merges:
                counts.pop(pair, None)
        if not counts:
            break
        best = min(counts, key=(key or _most_frequent)(counts))
        merges.append(best)
        parts = [(join(symbols, best), count) for symbols, count in parts]
    return merges
