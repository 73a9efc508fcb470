"What the judge knows of `candidate_pairs`. Spoilers ahead."

import random

from llama_course.classroom.exercise import Exercise


class Number(int):
    "An integer that counts how often it is compared or looked up."

    looks = [0]

    def __eq__(self, other):
        self.looks[0] += 1
        return int.__eq__(self, other)

    def __ne__(self, other):
        self.looks[0] += 1
        return int.__ne__(self, other)

    def __hash__(self):
        self.looks[0] += 1
        return int.__hash__(self)


def with_looks(answer, signatures, rows):
    "The pairs; of many documents, how often a number was looked at."
    Number.looks[0] = 0
    pairs = answer([[Number(x) for x in signature] for signature in signatures], rows)
    if len(signatures) >= 200:
        return Number.looks[0]
    return sorted(tuple(p) for p in pairs) if isinstance(pairs, (list, set, tuple)) else pairs


candidate_pairs = Exercise(
    "candidate_pairs",
    chapter="05_sources",
    kind="extend",
    minutes=25,
    difficulty=2,
    call=with_looks,
    points={"values": 4, "laws": 6},
    hints=(
        "A band is a slice of the signature. Two documents meet if the whole slice is equal: so "
        "let the slice be the key of a dictionary.",
        "For each band a dictionary of its own, from tuple(signature[i : i + rows]) to the "
        "documents that have it. Every two documents in one entry are a pair.",
        "A set of pairs takes care of documents that meet in several bands. (i, j) with i < j: "
        "go through the documents in order, and pair each with those that stand there already.",
    ),
)


@candidate_pairs.cases
def cases_of_candidate_pairs(seed):
    draw = random.Random(seed)
    for documents, bands, rows, values in (
        (6, 3, 2, 3), (12, 4, 1, 6), (9, 2, 3, 2), (10, 1, 4, 2), (7, 5, 2, 4),
    ):  # fmt: skip
        signatures = [
            [draw.randrange(values) for _ in range(bands * rows)] for _ in range(documents)
        ]
        signatures[-1] = list(signatures[0])  # twins: they meet in every band
        yield signatures, rows
    yield [[1, 2, 3, 4], [3, 4, 1, 2], [1, 9, 9, 4]], 2  # equal numbers at other places: no pair
    yield [[5, 6]], 1
    yield [], 2


@candidate_pairs.reference
def truth_of_candidate_pairs(signatures, rows):
    found = []
    for i, one in enumerate(signatures):
        for j in range(i + 1, len(signatures)):
            two = signatures[j]
            starts = range(0, len(one), rows)
            if any(one[s : s + rows] == two[s : s + rows] for s in starts):
                found.append((i, j))
    return found


def _bands(signatures, rows, places=True, whole=False, order=True, neighbours=False):
    "The right answer, with a switch for each mistake."
    found, drawers = set(), {}
    for i, signature in enumerate(signatures):
        for s in range(0, len(signature) if not whole else 1, rows):
            part = tuple(signature if whole else signature[s : s + rows])
            key = (s, part) if places else part
            there = drawers.setdefault(key, [])
            for j in there[-1:] if neighbours else there:
                found.add((j, i) if order else (i, j))
            there.append(i)
    return [pair for pair in found if pair[0] != pair[1]]


candidate_pairs.right(_bands)


@candidate_pairs.right
def band_by_band(signatures, rows):
    pairs = set()
    for s in range(0, len(signatures[0]) if signatures else 0, rows):
        groups = {}
        for i, signature in enumerate(signatures):
            groups.setdefault(tuple(signature[s : s + rows]), []).append(i)
        for group in groups.values():
            pairs |= {(a, b) for n, a in enumerate(group) for b in group[n + 1 :]}
    return sorted(pairs)


@candidate_pairs.invariant("among 400 documents of 16 numbers, 20,000 looks at numbers are enough")
def few_looks_are_enough(seen):
    draw = random.Random(6)
    many = [[draw.randrange(10**6) for _ in range(16)] for _ in range(400)]
    looks = seen(many, 4).value
    if looks < 400 * 16:
        return f"only {looks:,} looks were counted: compare the integers that you get, not copies"
    return looks <= 20_000


@candidate_pairs.invariant("with one row per band every equal number at one place makes a pair")
def one_row_per_band(seen):
    return seen([[1, 2], [1, 3], [4, 3]], 1).value == [(0, 1), (1, 2)]


@candidate_pairs.invariant("wider bands find no pair that narrower ones do not")
def wider_bands_find_fewer(seen):
    draw = random.Random(3)
    some = [[draw.randrange(3) for _ in range(8)] for _ in range(12)]
    narrow, wide = (set(map(tuple, seen(some, rows).value)) for rows in (2, 4))
    return wide <= narrow and wide != narrow


@candidate_pairs.mistake("every two documents are compared", hint=1)
def every_two_documents_are_compared(signatures, rows):
    "Right in value, but N documents are N²/2 comparisons: that is what bands are to avoid."
    return truth_of_candidate_pairs(signatures, rows)


@candidate_pairs.mistake("copies that do not count", hint=1)
def copies_that_do_not_count(signatures, rows):
    "All pairs are compared, out of the judge's sight: plain copies of the integers do not count."
    return truth_of_candidate_pairs([[int(str(x)) for x in row] for row in signatures], rows)


@candidate_pairs.mistake("bands of different places meet", hint=2)
def bands_of_different_places_meet(signatures, rows):
    "Equal numbers count only at the same place: each band has a dictionary of its own."
    return _bands(signatures, rows, places=False)


@candidate_pairs.mistake("the whole signature is one band", hint=1)
def the_whole_signature_is_one_band(signatures, rows):
    "That finds identical signatures only; one equal band is enough for a pair."
    return _bands(signatures, rows, whole=True)


@candidate_pairs.mistake("the larger number first", hint=3)
def the_larger_number_first(signatures, rows):
    "A pair is (i, j) with i < j."
    return _bands(signatures, rows, order=False)


@candidate_pairs.mistake("pairs stand twice", hint=3)
def pairs_stand_twice(signatures, rows):
    "Documents that meet in several bands are still one pair."
    found = []
    for s in range(0, len(signatures[0]) if signatures else 0, rows):
        part = [signature[s : s + rows] for signature in signatures]
        found += truth_of_candidate_pairs(part, rows)
    return found


@candidate_pairs.mistake("only neighbours in a drawer", hint=2)
def only_neighbours_in_a_drawer(signatures, rows):
    "Three documents in one entry are three pairs, not two."
    return _bands(signatures, rows, neighbours=True)


@candidate_pairs.mistake("rows taken for the number of bands", hint=2)
def rows_taken_for_the_number_of_bands(signatures, rows):
    "rows is how many numbers a band has."
    return _bands(signatures, len(signatures[0]) // rows) if signatures else []
