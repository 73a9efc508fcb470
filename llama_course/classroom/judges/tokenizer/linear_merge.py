"What the judge knows of `linear_merge`. Spoilers ahead."

import bisect
import heapq

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.tokenizer.common import _merge_by, merge_cases
from llama_course.classroom.judges.tokenizer.merge_pieces import by_the_rule


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

    def __or__(self, other):
        return self.copy() | other

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
    points={"values": 4, "laws": 6},
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


@linear_merge.invariant("a row of a thousand symbols takes at most three lookups per symbol")
def a_row_of_a_thousand_symbols_takes_at_most_three_lookups(seen):
    rank = {"ab": 2, "ba": 1, "abab": 0, "baba": 3, "bab": 4}
    rank |= {f"piece {i}": 5 + i for i in range(4000)}  # a copy of them is no way round the count
    return (
        seen(list("ab" * 500), rank).value <= 3 * 1000
        and seen(list("ba" * 500), rank).value <= 3 * 1000
    )


@linear_merge.mistake("the whole row again for each merge", hint=1)
def the_whole_row_again_for_each_merge(symbols, rank):
    """The pieces are right, but each merge looks at all pairs: that grows with the square of the
    text."""
    return _merge_by(min)(symbols, rank)


@linear_merge.mistake("a copy of the ranks", hint=1)
def a_copy_of_the_ranks(symbols, rank):
    "A copy reads each rank of the vocabulary: that is more than three lookups per symbol."
    return _merge_by(min)(symbols, dict(rank))


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
