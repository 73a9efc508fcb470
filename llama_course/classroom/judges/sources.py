"What the judge knows of the three exercises in `exercises/05_sources.ipynb`. Spoilers ahead."

import random
import re

import torch

from llama_course.classroom.exercise import Exercise

PRIME = 2**31 - 1

# ------------------------------------------------------------------- MinHash

minhash_signature = Exercise(
    "minhash_signature",
    chapter="05_sources",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 5, "invariant": 3, "ledger": 2},
    hints=(
        "One random order: every shingle gets the number (a · x + b) mod p, and the smallest of "
        "these numbers is kept. Do it for one a and b first.",
        "((a * shingles + b) % p).min() for each pair a, b; torch.stack at the end. The modulus "
        "comes before the minimum, and the numbers stay int64.",
        "shingles[:, None] * a makes n times k numbers: for a book of 100,000 words and 128 "
        "orders that is 100 MB. Take the orders one after the other.",
    ),
)


@minhash_signature.cases
def cases_of_minhash_signature(seed):
    draw = torch.Generator().manual_seed(seed)
    for n, k, high in ((5, 4, 100), (40, 16, PRIME), (1, 3, PRIME), (300, 8, PRIME), (60, 1, 10)):
        shingles = torch.randint(high, (n,), generator=draw)
        a = torch.randint(1, PRIME, (k,), generator=draw)
        b = torch.randint(PRIME, (k,), generator=draw)
        b[0] = PRIME - 1
        yield shingles, a, b


@minhash_signature.reference
def truth_of_minhash_signature(shingles, a, b):
    orders = zip(a.tolist(), b.tolist())
    numbers = shingles.tolist()
    return torch.tensor([min((i * x + j) % PRIME for x in numbers) for i, j in orders])


@minhash_signature.right
def order_by_order(shingles, a, b):
    return torch.stack([((i * shingles + j) % PRIME).min() for i, j in zip(a, b)])


@minhash_signature.right
def shingle_by_shingle(shingles, a, b):
    best = torch.full_like(a, PRIME)
    for x in shingles:
        best = torch.minimum(best, (a * x + b).remainder(PRIME))
    return best


def _orders(k=32, seed=4):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(1, PRIME, (k,), generator=draw) for _ in range(2))


@minhash_signature.invariant("the order of the shingles does not matter, nor how often one occurs")
def the_order_of_the_shingles_does_not_matter(seen):
    a, b = _orders()
    x = torch.arange(50) * 7919
    return torch.equal(seen(x, a, b).value, seen(torch.cat((x.flip(0), x[:9])), a, b).value)


@minhash_signature.invariant("two documents together have the smaller number of each order")
def two_documents_together(seen):
    a, b = _orders()
    x, y = torch.arange(40) * 104729, torch.arange(25, 70) * 104729
    both = seen(torch.cat((x, y)), a, b).value
    return torch.equal(both, torch.minimum(seen(x, a, b).value, seen(y, a, b).value))


@minhash_signature.invariant("the share of equal numbers estimates the Jaccard index")
def the_share_of_equal_numbers(seen):
    a, b = _orders(k=512)
    x, y = torch.arange(60) * 104729, torch.arange(20, 80) * 104729  # 40 of 80 in common
    same = (seen(x, a, b).value == seen(y, a, b).value).double().mean()
    return abs(same.item() - 0.5) < 0.1


@minhash_signature.limit("largest_tensor", "one order at a time: never n times k numbers")
def most_largest_tensor_of_minhash_signature(shingles, a, b):
    return max(len(shingles), len(a))


def _signature(shingles, a, b, number=lambda i, j, x: (i * x + j) % PRIME, choose=torch.min):
    return torch.stack([choose(number(i, j, shingles)) for i, j in zip(a, b)])


@minhash_signature.mistake("the largest number", hint=1)
def the_largest_number(shingles, a, b):
    "The smallest number of each order is kept."
    return _signature(shingles, a, b, choose=torch.max)


@minhash_signature.mistake("the modulus after the minimum", hint=2)
def the_modulus_after_the_minimum(shingles, a, b):
    "Without the modulus the smallest shingle has the smallest number in every order."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x + j) % PRIME


@minhash_signature.mistake("b is left out", hint=2)
def b_is_left_out(shingles, a, b):
    "The number of a shingle is (a · x + b) mod p."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x % PRIME)


@minhash_signature.mistake("b after the modulus", hint=2)
def b_after_the_modulus(shingles, a, b):
    "b belongs into the bracket: the modulus is taken of the sum."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x % PRIME + j)


@minhash_signature.mistake("a and b exchanged", hint=2)
def a_and_b_exchanged(shingles, a, b):
    "The shingle is multiplied by a, and b is added."
    return _signature(shingles, b, a)


@minhash_signature.mistake("rounded to float32", hint=2)
def rounded_to_float32(shingles, a, b):
    "float32 has 24 bits: products of up to 62 bits need int64."
    number = lambda i, j, x: ((i.float() * x + j) % PRIME).long()
    return _signature(shingles, a, b, number=number)


@minhash_signature.mistake("the shingle instead of its number", hint=1)
def the_shingle_instead_of_its_number(shingles, a, b):
    "The signature holds the smallest numbers, not the shingles that have them."
    return torch.stack([shingles[((i * shingles + j) % PRIME).argmin()] for i, j in zip(a, b)])


@minhash_signature.mistake("all orders at once", hint=3)
def all_orders_at_once(shingles, a, b):
    "Right in value, but n times k numbers exist at the same time."
    return ((shingles[:, None] * a + b) % PRIME).min(0).values


# ------------------------------------------------------------------- banding


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
    points={"values": 4, "invariant": 6},
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
    return seen(many, 4).value <= 20_000


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


# ------------------------------------------------------------------- comments of LaTeX

strip_comments = Exercise(
    "strip_comments",
    chapter="05_sources",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        r"Try 50\% of it, then a\\% note: in the first the sign is text, in the second a comment. "
        "What is the difference?",
        "An even number of backslashes before % (also none) leaves it a comment; an odd number "
        "makes it a sign. Read from left to right: a backslash takes the next character with it.",
        "The end of the line goes with the comment, and so do the blanks that begin the next "
        "line. But an empty line is a paragraph's end: then the newline stays.",
        r"re.sub with one pattern for both: (\\.)|%..., and a function that keeps group 1.",
    ),
)

_TEX = (
    r"50\% of it", "text % note", r"a\\% note", r"a\\\% b", "% a whole line", "", "  indented",
    "x%",
    r"\url{a}", "%", r"100\%% twice", "end.", "\t% tab", r"\% first",
)  # fmt: skip


@strip_comments.cases
def cases_of_strip_comments(seed):
    draw = random.Random(seed)
    for size in (3, 6, 12, 12):
        yield ("\n".join(draw.choices(_TEX, k=size)),)
    for text in (
        "one% and\n  two", "one % and\n\ntwo", "only text\n", "% all", "", "a%\n%\n  b",
        "\\\\%x\ny",
        "last % without end", "a%b%c\nd", "x%\n \n y", "end\\", "  % first\nb",
    ):  # fmt: skip
        yield (text,)


@strip_comments.reference
def truth_of_strip_comments(text):
    out, i = [], 0
    while i < len(text):
        if text[i] == "\\":
            out.append(text[i : i + 2])
            i += 2
        elif text[i] == "%":
            end = text.find("\n", i)
            if end < 0:
                break
            after = end + 1
            while after < len(text) and text[after] in " \t":
                after += 1
            empty = after < len(text) and text[after] == "\n"
            i = end if empty else after  # an empty line ends the paragraph
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def _without(text, escape=r"\\.", blanks=r"[ \t]*", paragraph=True):
    "The right answer, with a switch for each mistake."
    comment = r"%[^\n]*(?=\n[ \t]*\n)|" if paragraph else ""
    pattern = rf"({escape})|{comment}%[^\n]*(?:\n{blanks}|\Z)"
    return re.sub(pattern, lambda match: match[1] or "", text, flags=re.S)


strip_comments.right(_without)


@strip_comments.right
def line_by_line(text):
    out, join = [], False
    lines = text.split("\n")
    for n, line in enumerate(lines):
        if join:
            line = line.lstrip(" \t")
        place = 0
        while (place := line.find("%", place)) >= 0:
            before = line[:place]
            if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
                break
            place += 1
        last = n == len(lines) - 1
        blank = not last and not lines[n + 1].strip(" \t") and n + 1 < len(lines) - 1
        join = place >= 0 and not blank
        out.append(line[:place] if place >= 0 else line)
        out.append("" if join or last else "\n")
    return "".join(out)


@strip_comments.invariant("a text without comments stays as it is")
def a_text_without_comments_stays(seen):
    text = "50\\% of \\\\ all\n\n  $x \\% y$\n"
    return seen(text).value == text


@strip_comments.invariant("a second time there is nothing to remove")
def a_second_time_there_is_nothing_to_remove(seen):
    once = seen("a % b\nc\\% d\n% e\n\nf\\\\%g\n h").value
    return seen(once).value == once == "a c\\% d\n\n\nf\\\\h"


@strip_comments.mistake("two backslashes taken for one", hint=2)
def two_backslashes_taken_for_one(text):
    r"In \\% the first backslash takes the second with it, and % begins a comment."
    pattern = r"(?<!\\)(?:%[^\n]*(?=\n[ \t]*\n)|%[^\n]*(?:\n[ \t]*|\Z))"
    return re.sub(pattern, "", text)


@strip_comments.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(text):
    r"It knows \% but not \\%, and leaves the newline that TeX does not see."
    return re.sub(r"(?<!\\)%.*", "", text)


@strip_comments.mistake("every percent sign", hint=1)
def every_percent_sign(text):
    r"\% is a percent sign in the text, not a comment."
    return _without(text, escape=r"(?!)")


@strip_comments.mistake("the newline stays", hint=3)
def the_newline_stays(text):
    "The newline belongs to the comment: TeX joins the two lines."
    return re.sub(r"(\\.)|%[^\n]*", lambda match: match[1] or "", text, flags=re.S)


@strip_comments.mistake("the blanks of the next line stay", hint=3)
def the_blanks_of_the_next_line_stay(text):
    "TeX skips the blanks that begin a line: so they do not count after a comment either."
    return _without(text, blanks="")


@strip_comments.mistake("a paragraph's end is lost", hint=3)
def a_paragraphs_end_is_lost(text):
    "Before an empty line the newline stays: else two paragraphs become one."
    return _without(text, paragraph=False)


@strip_comments.mistake("the last line needs a newline", hint=3)
def the_last_line_needs_a_newline(text):
    "A comment may end with the text, without a newline."
    pattern = r"(\\.)|%[^\n]*(?=\n[ \t]*\n)|%[^\n]*\n[ \t]*"
    return re.sub(pattern, lambda match: match[1] or "", text, flags=re.S)
