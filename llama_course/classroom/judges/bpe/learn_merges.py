"What the judge knows of `learn_merges`. Spoilers ahead."

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.bpe.common import _joined, _learn, word_cases

learn_merges = Exercise(
    "learn_merges",
    chapter="07_bpe",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "Keep every word as a list of symbols, at first its characters. One round: count the "
        "pairs of neighbours in all words, choose one, merge it in all words.",
        "A pair in a word that occurs ten times counts ten times. Neighbours overlap: a a a has "
        "two pairs (a, a).",
        "min(pairs, key=lambda pair: (-count[pair], pair)) takes the most frequent, and of equals "
        "the first in Python's order. Merging goes from left to right: a a a becomes aa a.",
    ),
)


learn_merges.cases(word_cases)


@learn_merges.reference
def truth_of_learn_merges(words, n):
    return _learn(words, n)


@learn_merges.right
def by_counting_anew(words, n):
    return _learn(words, n)


@learn_merges.right
def with_texts_and_a_separator(words, n):
    rows, merges = {"\0".join(word): count for word, count in words.items()}, []
    for _ in range(n):
        counts = {}
        for row, count in rows.items():
            symbols = row.split("\0")
            for i in range(len(symbols) - 1):
                pair = symbols[i], symbols[i + 1]
                counts[pair] = counts.get(pair, 0) + count
        if not counts:
            return merges
        most = max(counts.values())
        best = sorted(pair for pair, count in counts.items() if count == most)[0]
        merges.append(best)
        a, b = best
        new = {}
        for row, count in rows.items():
            text = f"\0{row}\0".replace("\0", "\0\0")
            text = text.replace(f"\0{a}\0\0{b}\0", f"\0{a}{b}\0").replace("\0\0", "\0").strip("\0")
            new[text] = new.get(text, 0) + count
        rows = new
    return merges


@learn_merges.invariant("all counts times ten: the same merges")
def all_counts_times_ten(seen):
    words = {"abab": 3, "ba": 2, "aab": 5, "bb": 1}
    return seen(words, 4).value == seen({w: 10 * c for w, c in words.items()}, 4).value


@learn_merges.invariant("the first merges of many are the few")
def the_first_merges_of_many_are_the_few(seen):
    words = {"banana": 3, "bandana": 2, "ananas": 5}
    return seen(words, 6).value[:3] == seen(words, 3).value and len(seen(words, 3).value) == 3


@learn_merges.mistake("words counted once", hint=2)
def words_counted_once(words, n):
    "A pair counts as often as its word occurs."
    return _learn(words, n, weigh=False)


@learn_merges.mistake("of equals the last", hint=3)
def of_equals_the_last(words, n):
    "Of equally frequent pairs the first in the order of Python's tuples is merged."
    return _learn(words, n, key=lambda c: lambda p: (-c[p], [-ord(x) for x in "".join(p)], p))


@learn_merges.mistake("of equals the one that came first", hint=3)
def of_equals_the_one_that_came_first(words, n):
    "max() and most_common() take the pair that was counted first; the order of pairs decides."
    return _learn(words, n, key=lambda c: lambda p: -c[p])


@learn_merges.mistake("the rarest pair", hint=3)
def the_rarest_pair(words, n):
    "The most frequent pair is merged, not the least."
    return _learn(words, n, key=lambda c: lambda p: (c[p], p))


@learn_merges.mistake("counted once and for all", hint=1)
def counted_once_and_for_all(words, n):
    "Each merge makes new pairs: count again in every round."
    return _learn(words, n, once=True)


@learn_merges.mistake("only the first place of a word", hint=1)
def only_the_first_place_of_a_word(words, n):
    "The pair is merged wherever it stands in a word."

    def join(symbols, pair):
        for i in range(len(symbols) - 1):
            if (symbols[i], symbols[i + 1]) == pair:
                return symbols[:i] + [pair[0] + pair[1]] + symbols[i + 2 :]
        return symbols

    return _learn(words, n, join=join)


@learn_merges.mistake("merged from the right", hint=3)
def merged_from_the_right(words, n):
    "In a a a the two on the left become one, not the two on the right."
    back = lambda symbols, pair: _joined(symbols[::-1], pair[::-1])
    turn = lambda symbols, pair: [
        pair[0] + pair[1] if s == pair[1] + pair[0] and len(pair[0]) + len(pair[1]) == len(s) else s
        for s in back(symbols, pair)
    ][::-1]
    return _learn(words, n, join=turn)


@learn_merges.mistake("pairs that occur once are left", hint=1)
def pairs_that_occur_once_are_left(words, n):
    "Merging goes on until n pairs are merged or no word has two symbols: a count of 1 is enough."
    return _learn(words, n, least=2)


@learn_merges.mistake("the pieces instead of the pairs", hint=1)
def the_pieces_instead_of_the_pairs(words, n):
    "A list of pairs (left, right) is asked for."
    return [a + b for a, b in _learn(words, n)]
