"What the judge knows of the three exercises in `exercises/07_bpe.ipynb`. Spoilers from here on."

import random
import struct
from collections import Counter

from llama_course.classroom.exercise import Exercise

# ------------------------------------------------------------------- learning merges


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


learn_merges = Exercise(
    "learn_merges",
    chapter="07_bpe",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
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


# ------------------------------------------------------------------- learning without counting anew


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
    points={"values": 4, "invariant": 6},
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


# ------------------------------------------------------------------- protobuf, written

write_fields = Exercise(
    "write_fields",
    chapter="07_bpe",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 8, "invariant": 2},
    hints=(
        "Try the values 0, 127, 128, 300 and -1, and the field number 16. 300 must become the two "
        "bytes AC 02.",
        "The group of the *lowest* seven bits comes first, and every byte but the last has its "
        "highest bit set.",
        "The tag is a varint, too: number * 8 + kind, 128 for field 16 with an integer. A length "
        "is counted in bytes, after encoding: ż has two.",
        "A negative integer is written as if 2**64 were added: ten bytes.",
    ),
)


@write_fields.cases
def cases_of_write_fields(seed):
    draw = random.Random(seed)
    yield ([(1, 0), (2, 1), (3, 127), (4, 128), (5, 300), (6, 16383), (7, 16384)],)
    yield ([(15, 5), (16, 5), (2047, 3), (2048, 2**63 - 1)],)
    yield ([(1, "▁the"), (2, 1.5), (3, b""), (4, ""), (5, bytes(200)), (1, "ż" * 70)],)
    yield ([(1, -1), (2, -(2**31)), (3, -(2**63))],)
    yield ([],)
    some = lambda: draw.choice(
        (
            draw.randint(0, 2 ** draw.randint(1, 62)),
            -draw.randint(1, 99),
            draw.uniform(-9, 9),
            "piece ▁ą",
        )
    )
    yield ([(draw.randint(1, 60), some()) for _ in range(12)],)


@write_fields.reference
def truth_of_write_fields(fields):
    return b"".join(_field(number, value) for number, value in fields)


def _varint(value):
    "By arithmetic on a text of bits: an independent way."
    bits = format(value % 2**64, "b")
    bits = bits.zfill(-(-len(bits) // 7) * 7)
    groups = [bits[i : i + 7] for i in range(0, len(bits), 7)][::-1]
    return bytes(int(("0" if i == len(groups) - 1 else "1") + g, 2) for i, g in enumerate(groups))


def _field(number, value, varint=_varint, tag=None, size=len, floats="<f", text=str.encode):
    tag = tag or varint
    if isinstance(value, float):
        return tag(number * 8 + 5) + struct.pack(floats, value)
    if isinstance(value, int):
        return tag(number * 8) + varint(value)
    data = text(value) if isinstance(value, str) else value
    return tag(number * 8 + 2) + varint(size(value) if size is not len else len(data)) + data


def _small(value, mask=127, more=128, wrap=True):
    "A varint in a loop."
    if value < 0:
        value = value + 2**64 if wrap else -value
    out = []
    while True:
        group, value = value & mask, value >> 7
        out.append(group | (more if value else 0))
        if not value:
            return bytes(out)


@write_fields.right
def with_a_loop(fields):
    return b"".join(_field(number, value, varint=_small) for number, value in fields)


@write_fields.right
def with_a_recursion(fields):
    def varint(value):
        value &= 2**64 - 1
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    out = bytearray()
    for number, value in fields:
        match value:
            case int():
                out += varint(number << 3) + varint(value)
            case float():
                out += varint(number << 3 | 5) + struct.pack("<f", value)
            case _:
                data = value.encode() if isinstance(value, str) else value
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


@write_fields.invariant("a message of two parts is the two messages, one after the other")
def a_message_of_two_parts(seen):
    a, b = [(1, 300), (20, "ż")], [(3, -5), (4, 0.5)]
    return seen(a + b).value == seen(a).value + seen(b).value


@write_fields.invariant("300 in field 1 is 08 AC 02, as protobuf's own documentation has it")
def the_documented_bytes(seen):
    return seen([(1, 150)]).value == b"\x08\x96\x01" and seen([(1, 300)]).value == b"\x08\xac\x02"


def _written(fields, **how):
    return b"".join(_field(number, value, **how) for number, value in fields)


def _highest_first(value):
    data = [b & 127 for b in _small(value)][::-1]
    return bytes(b | 128 for b in data[:-1]) + bytes(data[-1:])


@write_fields.mistake("the highest group first", hint=2)
def the_highest_group_first(fields):
    "The lowest seven bits are the first byte."
    return _written(fields, varint=_highest_first)


@write_fields.mistake("the tag as one byte", hint=3)
def the_tag_as_one_byte(fields):
    "From field 16 on the tag needs two bytes: it is a varint."
    return _written(fields, tag=lambda value: bytes([value % 256]))


@write_fields.mistake("lengths in characters", hint=3)
def lengths_in_characters(fields):
    "The length is that of the bytes: ż has two of them."
    return _written(fields, size=lambda value: len(value))


@write_fields.mistake("negative numbers lose their sign", hint=4)
def negative_numbers_lose_their_sign(fields):
    "A negative integer is written as 2**64 plus itself."
    return _written(fields, varint=lambda value: _small(value, wrap=False))


@write_fields.mistake("negative numbers in 32 bits", hint=4)
def negative_numbers_in_32_bits(fields):
    "Protobuf extends negative integers to 64 bits: ten bytes."
    return _written(fields, varint=lambda value: _small(value % 2**32 if value < 0 else value))


@write_fields.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(fields):
    "Four things are wrong: the order of the groups, the tag, lengths, and negative integers."
    return _written(
        fields,
        varint=lambda value: _highest_first(abs(value)),
        tag=lambda value: bytes([value % 256]),
        size=lambda value: len(value),
    )


@write_fields.mistake("the plain bytes of the number", hint=2)
def whole_bytes(fields):
    "A varint has groups of seven bits, and only as many as the number needs."
    return _written(fields, varint=lambda value: value.to_bytes(10, "little", signed=value < 0))


@write_fields.mistake("the last byte is marked, too", hint=2)
def the_last_byte_is_marked_too(fields):
    "The highest bit of the last byte is 0: it says that the number is over."
    mark = lambda value: bytes(b | 128 for b in _small(value)) if value > 127 else bytes([value])
    return _written(fields, varint=lambda value: mark(value % 2**64))


@write_fields.mistake("floats with their first byte last", hint=1)
def floats_the_wrong_way_round(fields):
    'Protobuf is little-endian: struct.pack("<f", value).'
    return _written(fields, floats=">f")
