"""What the judge knows of the four exercises in `exercises/06_tokenizer.ipynb`. Spoilers from
here on."""

import bisect
import heapq
import random
import re

from llama_course.classroom.exercise import Exercise


def merge_cases(seed: int):
    "Arguments (symbols, rank): rows of up to 40 letters, and ranks of about 30 pieces."
    chance = random.Random(seed)
    for length, letters, shuffled in (
        (40, "abc", False),
        (40, "abc", True),
        (30, "ab", True),
        (24, "ab", False),
        (9, "a", False),
        (13, "a", True),
        (2, "ab", False),
        (1, "a", False),
        (0, "a", False),
    ):
        pieces = list(letters)
        for _ in range(60):
            made = chance.choice(pieces) + chance.choice(pieces)
            if len(made) <= 6 and made not in pieces and len(pieces) < 30:
                pieces.append(made)
        ranks = list(range(len(pieces)))
        if shuffled:
            chance.shuffle(ranks)
        yield chance.choices(letters, k=length), dict(zip(pieces, ranks))
    yield list("abab"), {"ab": 2**70, "ba": 2**80}  # numbers may be as large as they like
    yield list("abcddddabc"), {"bc": 0, "ab": 1, "dddd": 2}  # a piece that no merges lead to


merge_pieces = Exercise(
    "merge_pieces",
    chapter="06_tokenizer",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    points={"values": 7, "invariant": 3},
    hints=(
        "One round: look at all neighbours, find the pair to merge, merge it. How do you know"
        " that you are done?",
        "A pair can be merged if its two texts together are in `rank`. Of all such pairs the "
        "one with the smallest rank is merged, and of equals the leftmost. min() of (rank, "
        "place) finds it.",
        "After a merge there are new neighbours: look again at the whole row. A merged symbol"
        " is one symbol, so in a a a only the first two become one. Work on a copy: "
        "list(symbols).",
    ),
)
merge_pieces.cases(merge_cases)


@merge_pieces.reference
def by_the_rule(symbols, rank):
    pieces = list(symbols)
    while found := [
        (rank[a + b], i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in rank
    ]:
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


@merge_pieces.right
def round_by_round(symbols, rank):
    return by_the_rule(symbols, rank)


@merge_pieces.right
def with_the_best_place(symbols, rank):
    pieces = [*symbols]
    while len(pieces) > 1:
        best = min(
            range(len(pieces) - 1), key=lambda i: rank.get(pieces[i] + pieces[i + 1], float("inf"))
        )
        if pieces[best] + pieces[best + 1] not in rank:
            break
        pieces[best] += pieces.pop(best + 1)
    return pieces


@merge_pieces.invariant("glued together the pieces are the text")
def glued_together_the_pieces_are_the_text(seen):
    symbols = list("abcabcaabbcc")
    return "".join(seen(symbols, {"ab": 1, "bc": 0, "abc": 2, "cc": 3}).value) == "".join(symbols)


@merge_pieces.invariant("a row that is done stays as it is")
def a_row_that_is_done_stays_as_it_is(seen):
    rank = {"ab": 1, "bc": 0, "abc": 2, "cc": 3}
    done = seen(list("abcabcaabbcc"), rank).value
    return seen(done, rank).value == done


def _found(pieces, rank):
    "(rank, place) of all pairs that can be merged."
    return [(rank[a + b], i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in rank]


def _merge_by(choose):
    """An answer that merges the pair that `choose` takes from (rank, place) of all that can be
    merged."""

    def answer(symbols, rank):
        pieces = list(symbols)
        while found := _found(pieces, rank):
            _, i = choose(found)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return pieces

    return answer


@merge_pieces.mistake("the first pair instead of the best", hint=2)
def the_first_pair_instead_of_the_best(symbols, rank):
    "The leftmost pair that is a piece is merged; it must be the one with the smallest rank."
    return _merge_by(lambda found: found[0])(symbols, rank)


@merge_pieces.mistake("the worst pair first", hint=2)
def the_worst_pair_first(symbols, rank):
    "The largest rank is merged first; the smallest is the best."
    return _merge_by(lambda found: max(found, key=lambda pair: (pair[0], -pair[1])))(symbols, rank)


@merge_pieces.mistake("of equals the rightmost", hint=2)
def of_equals_the_rightmost(symbols, rank):
    "Where the best pair occurs more than once, the leftmost is merged first."
    return _merge_by(lambda found: min(found, key=lambda pair: (pair[0], -pair[1])))(symbols, rank)


@merge_pieces.mistake("one merge and no more", hint=1)
def one_merge_and_no_more(symbols, rank):
    "After the first merge you stop; go on until no two neighbours are a piece."
    found = _found(symbols, rank)
    if not found:
        return list(symbols)
    _, i = min(found)
    return [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


@merge_pieces.mistake("the longest piece from the left", hint=2)
def the_longest_piece_from_the_left(symbols, rank):
    "That is greedy matching, as WordPiece does it: BPE merges pairs in the order of their ranks."
    text, pieces, at = "".join(symbols), [], 0
    while at < len(text):
        end = next((e for e in range(len(text), at + 1, -1) if text[at:e] in rank), at + 1)
        pieces, at = [*pieces, text[at:end]], end
    return pieces


@merge_pieces.mistake("each piece once, in the order of ranks", hint=3)
def each_piece_once_in_the_order_of_ranks(symbols, rank):
    "One pass over the ranks is not enough: a merge can make a pair with a smaller rank possible."
    pieces = list(symbols)
    for piece in sorted(rank, key=rank.get):
        i = 0
        while i < len(pieces) - 1:
            if pieces[i] + pieces[i + 1] == piece:
                pieces[i : i + 2] = [piece]
            i += 1
    return pieces


@merge_pieces.mistake("new neighbours are not looked at", hint=3)
def new_neighbours_are_not_looked_at(symbols, rank):
    "You look at the pairs of the beginning only; a merged piece has neighbours as well."
    pieces, used = list(symbols), set()
    for _, i in sorted(_found(symbols, rank)):
        if not used & {i, i + 1}:
            pieces[i : i + 2], used = [pieces[i] + pieces[i + 1], ""], used | {i, i + 1}
    return [piece for piece in pieces if piece]


@merge_pieces.mistake("overlapping pairs are merged twice", hint=3)
def overlapping_pairs_are_merged_twice(symbols, rank):
    "In a a a the middle one is used for both pairs, and the text gets longer."
    pieces, rounds = list(symbols), 0
    while (
        found := [rank[a + b] for a, b in zip(pieces, pieces[1:]) if a + b in rank]
    ) and rounds < 9:
        best, new, rounds = min(found), [], rounds + 1
        for i, piece in enumerate(pieces):
            both = piece + pieces[i + 1] if i + 1 < len(pieces) else ""
            if rank.get(both) == best:
                new.append(both)
            elif not (i and rank.get(pieces[i - 1] + piece) == best):
                new.append(piece)
        pieces = new
    return pieces


@merge_pieces.mistake("the ranks instead of the pieces", hint=1)
def the_ranks_instead_of_the_pieces(symbols, rank):
    "The pieces are asked for, as texts, not their ranks."
    return [rank.get(piece, -1) for piece in by_the_rule(symbols, rank)]


@merge_pieces.mistake("symbols is changed in place", hint=3)
def symbols_is_changed_in_place(symbols, rank):
    "The caller's list is merged; begin with a copy of it."
    symbols[:] = by_the_rule(symbols, rank)
    return symbols


class CountedRanks(dict):
    "A dictionary that counts every look into it."

    asked = 0

    def get(self, *key):
        self.asked += 1
        return super().get(*key)

    def __getitem__(self, key):
        self.asked += 1
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked += 1
        return super().__contains__(key)

    def __iter__(self):
        self.asked += len(self)
        return super().__iter__()

    def keys(self):
        self.asked += len(self)
        return super().keys()

    def values(self):
        self.asked += len(self)
        return super().values()

    def items(self):
        self.asked += len(self)
        return super().items()

    def copy(self):
        self.asked += len(self)
        return CountedRanks(self)


def with_count(answer, symbols, rank):
    "The pieces; of a long row how often the ranks were looked at."
    counted = CountedRanks(rank)
    pieces = answer(symbols, counted)
    return pieces if len(symbols) < 1000 else counted.asked


linear_merge = Exercise(
    "linear_merge",
    chapter="06_tokenizer",
    kind="extend",
    minutes=40,
    difficulty=3,
    call=with_count,
    points={"values": 4, "invariant": 6},
    hints=(
        "A merge changes only its neighbourhood: up to three pairs vanish, two new ones "
        "appear. Which structure hands out the best of many, and takes new ones at any time?",
        "heapq with entries (rank, left, right, text). Keep each symbol at its first place, "
        "with a list of who comes after it and one of who comes before it; a symbol that was "
        "merged into its neighbour becomes the empty text.",
        "An entry may be out of date when its turn comes. It is valid only if both symbols "
        "are still there and together are still its text: pieces[left] + pieces[right] == "
        "text.",
        "After a merge of left and right: after[left] = after[right]; if there is somebody, "
        "his before is left. Then look at the pair (before[left], left) and at (left, "
        "after[left]). One rank.get() each.",
    ),
)
linear_merge.cases(merge_cases)
linear_merge.reference(by_the_rule)


def queued(valid=None, sign=1, tie=1, on_left=True, on_right=True, link_back=True):
    "An answer with a queue; each switch breaks it at one place."

    def answer(symbols, rank):
        pieces, n, queue = list(symbols), len(symbols), []
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))

        def look(a, b):
            r = rank.get(pieces[a] + pieces[b])
            if r is not None:
                heapq.heappush(queue, (sign * r, tie * a, a, b, pieces[a] + pieces[b]))

        for i in range(n - 1):
            look(i, i + 1)
        while queue:
            _, _, a, b, text = heapq.heappop(queue)
            if not (valid or _all_of_it)(pieces[a], pieces[b], text):
                continue
            pieces[a], pieces[b], after[a] = pieces[a] + pieces[b], "", after[b]
            if after[a] < n and link_back:
                before[after[a]] = a
            if before[a] >= 0 and on_left:
                look(before[a], a)
            if after[a] < n and on_right:
                look(a, after[a])
        return [piece for piece in pieces if piece]

    return answer


def _all_of_it(left, right, text):
    return left and right and left + right == text


linear_merge.right(queued())


@linear_merge.right
def in_a_chain_of_cells(symbols, rank):
    "Cells [piece, cell before, cell behind, number, alive], and places sorted by rank."
    cells = [[piece, None, None, i, True] for i, piece in enumerate(symbols)]
    for left, right in zip(cells, cells[1:]):
        left[2], right[1] = right, left
    todo = []

    def note(left):
        if left is None or left[2] is None:
            return
        whole = left[0] + left[2][0]
        found = rank.get(whole)
        if found is not None:
            bisect.insort(todo, (-found, -left[3], whole))

    for cell in cells:
        note(cell)
    while todo:
        _, place, whole = todo.pop()
        left = cells[-place]
        right = left[2]
        if not left[4] or right is None or left[0] + right[0] != whole:
            continue
        left[0], left[2], right[4] = whole, right[2], False
        if left[2]:
            left[2][1] = left
        note(left[1])
        note(left)
    return [cell[0] for cell in cells if cell[4]]


@linear_merge.invariant("glued together the pieces are the text")
def glued_together_the_pieces_are_the_text_in_linear_merge(seen):
    pieces = seen(list("abcabcaabbcc"), {"ab": 1, "bc": 0, "abc": 2, "cc": 3}).value
    return "".join(pieces) == "abcabcaabbcc"


@linear_merge.invariant("a row of a thousand symbols takes at most three lookups a symbol")
def a_row_of_a_thousand_symbols_takes_at_most_three_lookups(seen):
    rank = {"ab": 2, "ba": 1, "abab": 0, "baba": 3, "bab": 4}
    return (
        seen(list("ab" * 500), rank).value <= 3 * 1000
        and seen(list("ba" * 500), rank).value <= 3 * 1000
    )


@linear_merge.mistake("the whole row again for each merge", hint=1)
def the_whole_row_again_for_each_merge(symbols, rank):
    """The pieces are right, but each merge looks at all pairs: that grows with the square of the
    text."""
    return _merge_by(min)(symbols, rank)


@linear_merge.mistake("entries are not checked", hint=3)
def entries_are_not_checked(symbols, rank):
    """What comes out of the queue may be out of date: one of its symbols was merged with another
    meanwhile."""
    return queued(valid=lambda left, right, text: True)(symbols, rank)


@linear_merge.mistake("only checked that both symbols are there", hint=3)
def only_checked_that_both_symbols_are_there(symbols, rank):
    "A symbol may still be there and have grown; compare the text as well."
    return queued(valid=lambda left, right, text: left and right)(symbols, rank)


@linear_merge.mistake("the worst pair first", hint=2)
def the_worst_pair_first_in_linear_merge(symbols, rank):
    "heapq hands out the smallest entry; with a minus before the rank that is the worst pair."
    return queued(sign=-1)(symbols, rank)


@linear_merge.mistake("of equals the rightmost", hint=2)
def of_equals_the_rightmost_in_linear_merge(symbols, rank):
    """Of pairs with equal rank the leftmost comes first: the place must stand in the entry after
    the rank."""
    return queued(tie=-1)(symbols, rank)


@linear_merge.mistake("the new pair on the left is forgotten", hint=4)
def the_new_pair_on_the_left_is_forgotten(symbols, rank):
    "A merge has two new pairs: with the symbol before and with the one behind."
    return queued(on_left=False)(symbols, rank)


@linear_merge.mistake("the new pair on the right is forgotten", hint=4)
def the_new_pair_on_the_right_is_forgotten(symbols, rank):
    "A merge has two new pairs: with the symbol before and with the one behind."
    return queued(on_right=False)(symbols, rank)


@linear_merge.mistake("the link back is not moved", hint=4)
def the_link_back_is_not_moved(symbols, rank):
    "The symbol behind the merged one must learn who stands before it now."
    return queued(link_back=False)(symbols, rank)


@linear_merge.mistake("the list is shortened while the queue has places in it", hint=2)
def the_list_is_shortened_while_the_queue_has_places_in_it(symbols, rank):
    "After a deletion all later symbols have other places than those that stand in the queue."
    pieces, queue = list(symbols), []

    def look(i):
        if 0 <= i < len(pieces) - 1 and (r := rank.get(pieces[i] + pieces[i + 1])) is not None:
            heapq.heappush(queue, (r, i, pieces[i] + pieces[i + 1]))

    for i in range(len(pieces)):
        look(i)
    while queue:
        _, i, text = heapq.heappop(queue)
        if i + 1 < len(pieces) and pieces[i] + pieces[i + 1] == text:
            pieces[i : i + 2] = [text]
            look(i - 1)
            look(i)
    return pieces


decode_bytes = Exercise(
    "decode_bytes",
    chapter="06_tokenizer",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 8, "invariant": 2},
    hints=(
        "A character may need up to four byte pieces: collect bytes until a piece comes that "
        "is none, and decode them together. What is still collected at the end?",
        "<0x41> is hexadecimal: int(piece[3:5], 16). ▁ is a space where a piece says so; the "
        "three bytes E2 96 81 are the character ▁ itself, so replace in pieces, not in the "
        "text that came out.",
        "Bytes that are no UTF-8 become U+FFFD, one for each byte. Python's errors='replace' "
        "writes one for a whole broken character; UnicodeDecodeError has .start, the place of"
        " the first wrong byte.",
    ),
)


@decode_bytes.cases
def cases_of_decode_bytes(seed):
    chance = random.Random(seed)
    for text in ("ż", "字", "🦙"):  # whole characters
        yield (["▁a", *(f"<0x{byte:02X}>" for byte in text.encode()), "b▁", "c"],)
    yield (["▁the", "▁", "x▁y"],)
    yield (["<0x41>", "<0x7A>", "<0x0A>"],)
    yield (["a", "<0xE2>", "<0x96>", "<0x81>", "▁b"],)  # the character ▁, not a space
    yield (["<0xF0>", "<0x9F>", "a", "<0xA6>", "<0x99>"],)  # a llama that is interrupted
    yield (["<0xE5>", "<0xAD>", "<0x97>", "<0xE5>", "<0xAD>"],)  # the last character lacks a byte
    yield (["<0xC5>", "<0xC5>", "<0xBC>", "<0xFF>"],)
    yield (["▁hello", "string", "ab"],)
    yield (["<0x", "<0xC5", "<0xC5>a", "a<0x41>", "<0xZZ>", "<0x+5>", "<0x4>"],)
    yield ([],)
    pieces = [
        "▁",
        "e",
        "▁it",
        "<0xC5>",
        "<0xBC>",
        "<0x80>",
        "<0xE2>",
        "<0x96>",
        "<0x81>",
        "<0xF0>",
        "<0x9F>",
    ]
    for _ in range(4):
        yield (chance.choices(pieces, k=16),)


@decode_bytes.reference
def text_of(pieces):
    return _decode(pieces)


def _strictly(data):
    "UTF-8 as text; each byte that is wrong becomes U+FFFD."
    text = ""
    while data:
        try:
            return text + data.decode()
        except UnicodeDecodeError as error:
            text, data = text + data[: error.start].decode() + "\ufffd", data[error.start + 1 :]
    return text


def _decode(
    pieces, decode=_strictly, number=lambda digits: int(digits, 16), space=" ", last=True, after="▁"
):
    "The text of the pieces; each switch breaks it at one place."
    text, data = "", b""
    for piece in pieces:
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            data += bytes([number(piece[3:5])])
        else:
            text, data = text + decode(data) + piece.replace("▁", space), b""
    return (text + decode(data) if last else text).replace("▁", after)


@decode_bytes.right
def byte_by_byte(pieces):
    text, data = [], bytearray()
    for piece in [*pieces, ""]:
        digits = piece[3:5]
        if piece == f"<0x{digits}>" and len(digits) == 2 and set(digits) <= set("0123456789ABCDEF"):
            data.append(int(digits, 16))
        else:
            text.append(_strictly(bytes(data)))
            text.append(piece.replace("▁", " "))
            data.clear()
    return "".join(text)


@decode_bytes.right
def with_surrogates(pieces):
    data = b""
    for piece in pieces:
        byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        data += bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
    # what is wrong becomes a surrogate, one for each byte, and each surrogate a sign
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode(errors="surrogateescape"))


@decode_bytes.invariant("a text in bytes alone comes back")
def a_text_in_bytes_alone_comes_back(seen):
    text = "Zażółć gęślą jaźń 🦙 ▁"
    return seen([f"<0x{byte:02X}>" for byte in text.encode()]).value == text


def _decode_if(is_byte):
    "The right answer with another idea of what a byte piece is."

    def answer(pieces):
        marked = [p if is_byte(p) else "\0" + p for p in pieces]
        text, data = "", b""
        for piece in [*marked, "\0"]:
            if piece.startswith("\0"):
                text, data = text + _strictly(data) + piece[1:].replace("▁", " "), b""
            else:
                data += bytes([int(piece[3:5], 16)])
        return text

    return answer


@decode_bytes.mistake("any piece that begins with <0x", hint=2)
def any_piece_that_begins_with_0x(pieces):
    "A piece is a byte if it is <0x, two hexadecimal digits, >, and nothing more."
    return _decode_if(lambda piece: piece.startswith("<0x"))(pieces)


@decode_bytes.mistake("any piece of six characters", hint=2)
def any_piece_of_six_characters(pieces):
    "A piece is a byte if it is <0x, two hexadecimal digits, >; a word may have six letters, too."
    return _decode_if(lambda piece: len(piece) == 6)(pieces)


@decode_bytes.mistake("each byte alone", hint=1)
def each_byte_alone(pieces):
    "A byte of a longer character is no text by itself: collect them, and decode them together."
    return "".join(_decode([piece]) for piece in pieces)


@decode_bytes.mistake("bytes as Latin-1", hint=1)
def bytes_as_latin_1(pieces):
    "chr(byte) is right for ASCII only; the bytes are UTF-8."
    return _decode(pieces, decode=lambda data: data.decode("latin-1"), after="▁")


@decode_bytes.mistake("the bytes at the end are lost", hint=1)
def the_bytes_at_the_end_are_lost(pieces):
    "What was collected is written only when another piece comes; at the end none does."
    return _decode(pieces, last=False)


@decode_bytes.mistake("the number is read as decimal", hint=2)
def the_number_is_read_as_decimal(pieces):
    "The two digits are hexadecimal: int(piece[3:5], 16)."
    return _decode(pieces, number=int)


@decode_bytes.mistake("▁ stays", hint=2)
def stays(pieces):
    "▁ in a piece stands for a space."
    return _decode(pieces, space="▁")


@decode_bytes.mistake("▁ is replaced at the end", hint=2)
def is_replaced_at_the_end(pieces):
    """In the finished text ▁ may be the character itself, spelled in bytes; replace it in the
    pieces."""
    return _decode(pieces, after=" ")


@decode_bytes.mistake("one sign for a broken character", hint=3)
def one_sign_for_a_broken_character(pieces):
    "errors='replace' writes one U+FFFD for several bytes; one for each is asked for."
    return _decode(pieces, decode=lambda data: data.decode(errors="replace"))


@decode_bytes.mistake("wrong bytes are dropped", hint=3)
def wrong_bytes_are_dropped(pieces):
    "errors='ignore' loses that there was something: each wrong byte becomes U+FFFD."
    return _decode(pieces, decode=lambda data: data.decode(errors="ignore"))


@decode_bytes.mistake("wrong bytes end it", hint=3)
def wrong_bytes_end_it(pieces):
    "A model may write half a character; decoding must not raise UnicodeDecodeError."
    return _decode(pieces, decode=bytes.decode)


@decode_bytes.mistake("the first space is removed", hint=2)
def the_first_space_is_removed(pieces):
    "This model has no dummy prefix: a space at the beginning belongs to the text."
    return _decode(pieces).removeprefix(" ")


LEARNED = [
    "▁t",
    "he",
    "▁the",
    "in",
    "▁a",
    "re",
    "an",
    "</",
    "▁in",
    "▁an",
    "th",
    "er",
    "</s",
    "▁re",
    "there",
    "ing",
]
VOCABULARY = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *LEARNED,
    *("<0", "<0x", "<0xF", "<0xFF"),
    *"▁ethianrsgod<>/.0123456789",
]


def small_vocabulary() -> dict:
    "Piece -> id; of two merges the one with the smaller id comes first."
    return {piece: i for i, piece in enumerate(VOCABULARY)}


encode_text = Exercise(
    "encode_text",
    chapter="06_tokenizer",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "There are four mistakes. Encode ' the', 'there', 'ż' and '</s>', and look at the "
        "pieces of the ids.",
        "When do spaces become ▁? And which of the pairs is merged first: the id tells the "
        "order in which pieces were learned.",
        "What is no piece becomes its bytes in UTF-8, and <0x00> has the id 3. Control tokens"
        " and byte pieces have ids, but no text may become one by merging: only ids from 259 "
        "on.",
    ),
)


@encode_text.cases
def cases_of_encode_text(seed):
    chance, parts = random.Random(seed), [*"then ri gasd", " the", "there", "</s>", "ż", "字", "7"]
    texts = [
        " the the",
        "there in the ring",
        " an</s>",
        "ż",
        "🦙 an",
        "12 the",
        "a\n",
        "▁the",
        "",
        "</s>the",
        "<0xFF> the",  # somebody types the name of a byte
    ]
    texts += ["".join(chance.choices(parts, k=10)) for _ in range(4)]
    for text in texts:
        yield text, small_vocabulary()


def _encode(text, vocabulary, first=259, spaces="before", choose=min, unknown="utf-8", offset=3):
    "The ids of a text; each switch breaks it at one place."
    pieces = list(text.replace(" ", "▁") if spaces == "before" else text)
    table = {piece: i for piece, i in vocabulary.items() if i >= first}
    sign = -1 if choose is max else 1  # of equals the leftmost
    while found := [(rank, sign * i) for rank, i in _found(pieces, table)]:
        i = sign * choose(found)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = []
    for piece in pieces if spaces == "before" else [piece.replace(" ", "▁") for piece in pieces]:
        if piece in table:
            ids.append(table[piece])
        else:
            ids += [0] if unknown == "unk" else [offset + byte for byte in piece.encode(unknown)]
    return ids


@encode_text.reference
def truth_of_encode_text(text, vocabulary):
    return _encode(text, vocabulary)


@encode_text.right
def with_a_chain_of_cells(text, vocabulary):
    rank = {piece: i for piece, i in vocabulary.items() if i >= 259}
    ids = []
    for piece in in_a_chain_of_cells(text.replace(" ", "▁"), rank):
        ids += (
            [rank[piece]]
            if piece in rank
            else [vocabulary[f"<0x{byte:02X}>"] for byte in piece.encode()]
        )
    return ids


@encode_text.right
def with_ids(text, vocabulary):
    pieces = ["▁" if character == " " else character for character in text]
    for _ in range(len(text)):
        ids = [vocabulary.get(a + b, 0) for a, b in zip(pieces, pieces[1:])]
        allowed = [i for i in ids if i > 258]
        if not allowed:
            break
        place = ids.index(min(allowed))
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    spelled = [
        [p] if vocabulary.get(p, 0) > 258 else [f"<0x{b:02X}>" for b in p.encode()] for p in pieces
    ]
    return [vocabulary[piece] for row in spelled for piece in row]


@encode_text.invariant("no text becomes a control token")
def no_text_becomes_a_control_token(seen):
    texts = ("</s>", "<s>", "<unk>", "a</s>b", "<0x41>", "字")
    return not any(i < 3 for text in texts for i in seen(text, small_vocabulary()).value)


@encode_text.mistake("the encoder as it was given", hint=1)
def the_encoder_as_it_was_given(text, vocabulary):
    """Spaces become ▁ too late, the worst pair is first, control tokens count as pieces, bytes
    are not used."""
    return _encode(text, vocabulary, first=0, spaces="after", choose=max, unknown="unk")


@encode_text.mistake("spaces become ▁ after the merges", hint=2)
def spaces_become_after_the_merges(text, vocabulary):
    """Pieces such as ▁the are never found, because while pairs are merged there is no ▁ in the
    text."""
    return _encode(text, vocabulary, spaces="after")


@encode_text.mistake("the worst pair first", hint=2)
def the_worst_pair_first_in_encode_text(text, vocabulary):
    "The pair with the largest id was learned last; the smallest comes first."
    return _encode(text, vocabulary, choose=max)


@encode_text.mistake("unknown characters become <unk>", hint=3)
def unknown_characters_become_unk(text, vocabulary):
    "The model has byte fallback: what is no piece is written as its bytes, and nothing is lost."
    return _encode(text, vocabulary, unknown="unk")


@encode_text.mistake("a text can become a control token", hint=3)
def a_text_can_become_a_control_token(text, vocabulary):
    "Who types </s> would end the text: control tokens must not be found by merging."
    return _encode(text, vocabulary, first=0)


@encode_text.mistake("ids of bytes without the three before them", hint=3)
def ids_of_bytes_without_the_three_before_them(text, vocabulary):
    "The byte 0 has the id 3, after <unk>, <s> and </s>."
    return _encode(text, vocabulary, offset=0)


@encode_text.mistake("UTF-16 instead of UTF-8", hint=3)
def utf_16_instead_of_utf_8(text, vocabulary):
    "Byte pieces are the bytes of UTF-8."
    return _encode(text, vocabulary, unknown="utf-16-le")


@encode_text.mistake("a space in front of every text", hint=2)
def a_space_in_front_of_every_text(text, vocabulary):
    "That is the dummy prefix, which this model does not have."
    return _encode(" " + text if text else "", vocabulary)


@encode_text.mistake("the first pair that is found", hint=2)
def the_first_pair_that_is_found(text, vocabulary):
    "The leftmost pair is merged; it must be the one with the smallest id."
    return _encode(text, vocabulary, choose=lambda found: found[0])
