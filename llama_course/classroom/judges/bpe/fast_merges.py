"What the judge knows of `fast_merges`. Spoilers ahead."

import random
from collections import Counter

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.bpe.common import _joined, _learn, _pairs, word_cases


class Symbol(str):
    "A text that counts how often it is compared, hashed or joined."

    looks = [0]

    def __eq__(self, other):
        self.looks[0] += 1
        return str.__eq__(self, other)

    def __hash__(self):
        self.looks[0] += 1
        return str.__hash__(self)

    def __add__(self, other):
        return Symbol(str.__add__(self, other))


def with_looks(answer, words, n):
    "The merges as plain texts; of very many words how often a symbol was looked at."
    Symbol.looks[0] = 0
    rows = [([Symbol(c) for c in word], count) for word, count in words.items()]
    merges = answer(rows, n)
    looks = Symbol.looks[0]
    if isinstance(merges, (list, tuple)):
        merges = [tuple(map(str, m)) if isinstance(m, (list, tuple)) else m for m in merges]
    return merges if len(words) < 300 else looks


fast_merges = Exercise(
    "fast_merges",
    chapter="07_bpe",
    kind="extend",
    minutes=35,
    difficulty=3,
    call=with_looks,
    points={"values": 4, "laws": 6},
    hints=(
        "Count all pairs once, and remember for each pair in which words it occurs: a dictionary "
        "from pair to a set of numbers of words.",
        "A merge of (a, b) touches only the words that contain it. For each of them: take its "
        "pairs out of the counts, merge, put its new pairs in.",
        "Taking out: count[pair] -= how often the word occurs; a pair whose count is 0 is "
        "deleted, or else it may be chosen. Putting in: count[pair] += ..., and the word's number.",
        "A word may stand in where[pair] although the pair is gone from it by now: then merging "
        "leaves it as it is, and nothing is lost.",
    ),
)


@fast_merges.cases
def cases_of_fast_merges(seed):
    yield from word_cases(seed, (5, 9, 60))


@fast_merges.reference
def truth_of_fast_merges(words, n):
    return _learn(words, n)


def _fast(rows, n, forget=True, twice=True, key=lambda c: lambda p: (-c[p], p), weigh=True):
    "The right answer for judged calls, with a switch for each mistake."
    words, weights = [list(symbols) for symbols, _ in rows], [c if weigh else 1 for _, c in rows]
    count, where, merges = Counter(), {}, []

    def enter(number, sign):
        symbols = words[number]
        for pair in zip(symbols, symbols[1:]):
            count[pair] += sign * weights[number]
            where.setdefault(pair, set()).add(number)
            if not count[pair] and forget:
                del count[pair]

    for number in range(len(words)):
        enter(number, 1)
    while len(merges) < n and count:
        best = min(count, key=key(count))
        merges.append(best)
        for number in sorted(where.pop(best)):
            enter(number, -1)
            words[number] = _joined(words[number], best)
            if twice:
                enter(number, 1)
        if not forget and best in count:
            count[best] = -1
        count.pop(best, None)
    return merges


@fast_merges.right
def by_the_words_that_change(words, n):
    return _fast(words, n)


@fast_merges.right
def by_differences_of_counts(words, n):
    rows = [(list(symbols), weight) for symbols, weight in words]
    count, where, merges = {}, {}, []
    for number, (symbols, weight) in enumerate(rows):
        for pair in zip(symbols, symbols[1:]):
            count[pair] = count.get(pair, 0) + weight
            where.setdefault(pair, []).append(number)
    for _ in range(n):
        if not count:
            break
        most = max(count.values())
        best = min(pair for pair, c in count.items() if c == most)
        merges.append(best)
        for number in dict.fromkeys(where.pop(best)):
            symbols, weight = rows[number]
            new = _joined(symbols, best)
            change = Counter(zip(new, new[1:]))
            change.subtract(zip(symbols, symbols[1:]))
            for pair, times in change.items():
                count[pair] = count.get(pair, 0) + times * weight
                if times > 0:
                    where.setdefault(pair, []).append(number)
                if count[pair] == 0:
                    del count[pair]
            rows[number] = new, weight
        count.pop(best, None)
    return merges


def many_words():
    "A thousand words of which each merge changes few."
    draw = random.Random(5)
    letters = [chr(0x4E00 + i) for i in range(12)]
    words = {}
    while len(words) < 1000:
        words["".join(draw.choices(letters, k=8))] = draw.randint(1, 3)
    return words


@fast_merges.invariant(
    "in a thousand words of eight letters, forty merges take 900,000 looks at most"
)
def forty_merges_take_few_looks(seen):
    looks = seen(many_words(), 40).value
    if looks < 1000 * 8:
        return f"only {looks:,} looks were counted: work on the symbols that you get, not on copies"
    return isinstance(looks, int) and looks <= 900_000


@fast_merges.invariant("the merges are those of counting anew")
def the_merges_are_those_of_counting_anew(seen):
    words = {"banana": 3, "bandana": 2, "ananas": 5, "nanana": 1}
    return [tuple(pair) for pair in seen(words, 8).value] == _learn(words, 8)


@fast_merges.mistake("all pairs counted in each round", hint=1)
def all_pairs_counted_in_each_round(words, n):
    "Right in value, but every round looks at all words: a merge changes few of them."
    rows, merges = [(list(symbols), c) for symbols, c in words], []
    for _ in range(n):
        counts = _pairs(rows)
        if not counts:
            break
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        rows = [(_joined(symbols, merges[-1]), c) for symbols, c in rows]
    return merges


@fast_merges.mistake("copies that do not count", hint=1)
def copies_that_do_not_count(words, n):
    "Everything is counted anew, out of the judge's sight: joined texts do not count their looks."
    return _learn({"".join(symbols): count for symbols, count in words}, n)


@fast_merges.mistake("new pairs are not counted", hint=2)
def new_pairs_are_not_counted(words, n):
    "After a merge the word has new pairs; they are put into the counts."
    return _fast(words, n, twice=False)


@fast_merges.mistake("pairs that are gone may be chosen", hint=3)
def pairs_that_are_gone_may_be_chosen(words, n):
    "A pair whose count has fallen to 0 is deleted: else merges are made of nothing."
    return _fast(words, n, forget=False)


@fast_merges.mistake("words counted once", hint=3)
def words_counted_once_in_fast_merges(words, n):
    "A pair counts as often as its word occurs."
    return _fast(words, n, weigh=False)


@fast_merges.mistake("of equals the one that came first", hint=3)
def of_equals_the_one_that_came_first_in_fast_merges(words, n):
    "Of equally frequent pairs the first in the order of tuples is merged, as in the first task."
    return _fast(words, n, key=lambda c: lambda p: -c[p])


@fast_merges.mistake("one merge too few", hint=1)
def one_merge_too_few(words, n):
    "n pairs are merged, if there are so many."
    return _fast(words, max(n - 1, 0))


@fast_merges.mistake("the rarest pair", hint=1)
def the_rarest_pair_in_fast_merges(words, n):
    "The most frequent pair is merged, not the least."
    return _fast(words, n, key=lambda c: lambda p: (c[p], p))
