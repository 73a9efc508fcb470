"What the judge knows of `merge_pieces`. Spoilers ahead."

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.tokenizer.common import _found, _merge_by, merge_cases

merge_pieces = Exercise(
    "merge_pieces",
    chapter="06_tokenizer",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    points={"values": 7, "laws": 3},
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
