"What the judges of this chapter's exercises share."

import random


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
