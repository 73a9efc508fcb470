"What the judge knows of the three exercises in `exercises/03_data.ipynb`. Spoilers from here on."

import random
import re
import string
import unicodedata

from llama_course.classroom.exercise import Exercise

unseen_paragraphs = Exercise(
    "unseen_paragraphs",
    chapter="03_data",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 6, "invariant": 4},
    hints=(
        "Keep one set for all pages. For each line, work out its normalized form, look it up,"
        " and keep the line as it was if the form is new.",
        "Four things change: str.lower; each digit to 0, so that 2019 and 2021 are the same "
        "but 99 and 2019 are not; punctuation away, in all of Unicode (unicodedata.category "
        "starts with P); accents away.",
        "Accents: unicodedata.normalize('NFD', text) takes é apart into e and an accent, and "
        "the accent has the category Mn. Encoding to ASCII would drop whole letters of other "
        "alphabets.",
        "A line of which nothing is left goes. The result has one list for each page, empty "
        "or not, and the set is made anew in each call.",
    ),
)

TEMPLATES = (
    "Copyright (c) {y} Zoë Müller. All rights reserved.",
    "copyright (C) {y} zoe muller all rights reserved",
    "Call us: {p}",
    "“Zażółć gęślą jaźń”, {p} times!",
    "zażółć gęślą jaźń {p} times",
    "-----",
    "",
    "  ",
    "Żeglarz {p}",
    "Привет, мир {y}!",
    "привет мир {y}",
    "Page {p} of {y}",
    "ΕΛΛΗΝΙΚΆ – {y}",
    "***",
    "A line of its own",
    "a line—of its own",
    "a lineof its own",
    "你好，世界。",
    "你好世界",
    "the year",
    "the year {y}",
)


@unseen_paragraphs.cases
def cases_of_unseen_paragraphs(seed):
    draw = random.Random(seed)
    fill = lambda line: line.format(
        y=draw.randint(1000, 9999), p=draw.choice(["7", "42", "42", "999", "٣"])
    )
    for size in (1, 3, 6):
        pages = [[fill(line) for line in draw.sample(TEMPLATES, 8)] for _ in range(size)]
        again = [pages[0][0], "The end.", "THE END", *pages[0][:3]]
        yield (["\n".join(lines) for lines in (*pages, again, again)],)
    yield (
        [
            *["\n".join(fill(line) for line in TEMPLATES)] * 2,
            "",
            "C jobs\nC++ jobs\n5 €\n5 $\n5\n_\n`a`\na\n2²\n2\nx³",
            "Année 1999\nannee 2001\nANNÉE 99",
        ],
    )


def _folded(text, keep=lambda c: unicodedata.category(c)[0] != "P", digit=lambda c: "0"):
    "Lower case, digits by `digit`, only what `keep` keeps, no accents."
    parts = unicodedata.normalize("NFD", text.lower())
    letters = (digit(c) if c.isdecimal() else c for c in parts if unicodedata.category(c) != "Mn")
    return "".join(c for c in letters if keep(c) or c == "0").strip()


def _unseen(pages, fold):
    "For each page, its lines whose folded form is new."
    seen, result = {""}, []
    for page in pages:
        lines = []
        for line in page.split("\n"):
            if fold(line) not in seen:
                seen.add(fold(line))
                lines.append(line)
        result.append(lines)
    return result


@unseen_paragraphs.reference
def truth_of_unseen_paragraphs(pages):
    return _unseen(pages, _folded)


@unseen_paragraphs.right
def with_folded_lines(pages):
    return _unseen(pages, _folded)


@unseen_paragraphs.right
def by_first_places(pages):
    def key(line):
        text = re.sub(
            r"\d", "0", unicodedata.normalize("NFKD" if line.isascii() else "NFD", line).lower()
        )
        kinds = ((c, unicodedata.category(c)) for c in text)
        return "".join(c for c, kind in kinds if kind != "Mn" and not kind.startswith("P")).strip()

    first = {}
    for p, page in enumerate(pages):
        for i, line in enumerate(page.split("\n")):
            first.setdefault(key(line), (p, i))
    return [
        [
            line
            for i, line in enumerate(page.split("\n"))
            if key(line) and first[key(line)] == (p, i)
        ]
        for p, page in enumerate(pages)
    ]


@unseen_paragraphs.invariant("reading all pages a second time finds nothing new")
def reading_all_pages_a_second_time_finds_nothing_new(seen):
    pages = ["Tea, 1999\nCoffee", "tea 2005\nMilk\n\nmilk!"]
    once, twice = seen(pages).value, seen(pages + pages).value
    return twice == once + [[], []]


@unseen_paragraphs.invariant("a call knows nothing of the calls before it")
def a_call_knows_nothing_of_the_calls_before_it(seen):
    pages = ["First\nSecond", "second\nThird"]
    return seen(pages).value == seen(pages).value == [["First", "Second"], ["Third"]]


@unseen_paragraphs.invariant("each line that comes back stood on its page, as it was")
def each_line_that_comes_back_stood_on_its_page(seen):
    pages = ["  Zoë says: “2 teas”.", "zoe says 3 teas\nNo. 10"]
    return seen(pages).value == [["  Zoë says: “2 teas”."], ["No. 10"]]


@unseen_paragraphs.mistake("lines compared as they are", hint=1)
def lines_compared_as_they_are(pages):
    "Without normalizing, a year or a comma makes a line new."
    return _unseen(pages, fold=str.strip)


@unseen_paragraphs.mistake("the normalized lines come back", hint=1)
def the_normalized_lines_come_back(pages):
    "The normalized form is for comparing only; the text that is kept must be as it was."
    return [[_folded(line) for line in page] for page in _unseen(pages, _folded)]


@unseen_paragraphs.mistake("only ASCII punctuation", hint=2)
def only_ascii_punctuation(pages):
    "string.punctuation lacks typographic quotes, dashes and the marks of other scripts."
    return _unseen(
        pages, fold=lambda line: _folded(line, keep=lambda c: c not in string.punctuation)
    )


@unseen_paragraphs.mistake("symbols are removed", hint=2)
def symbols_are_removed(pages):
    "€ and + are symbols, not punctuation: C++ is not C."
    kept = lambda line: re.sub(r"[^\w\s]|_", "", _folded(line))
    return _unseen(pages, fold=lambda line: kept(line).strip())


@unseen_paragraphs.mistake("digits are removed", hint=2)
def digits_are_removed(pages):
    """Each digit becomes a 0 and stays a character: without it, "the year" equals "the year
    1999"."""
    return _unseen(pages, fold=lambda line: _folded(line, digit=lambda c: ""))


@unseen_paragraphs.mistake("a number becomes one 0", hint=2)
def a_number_becomes_one_0(pages):
    "Each digit becomes a 0, so numbers keep their length: 7 and 999 are not the same."
    return _unseen(pages, fold=lambda line: re.sub("0+", "0", _folded(line)))


@unseen_paragraphs.mistake("capital letters matter", hint=2)
def capital_letters_matter(pages):
    "The comparison is in lower case."
    upper = lambda line: "".join("^" * c.isupper() for c in line)
    return _unseen(pages, lambda line: _folded(line) and _folded(line) + upper(line))


@unseen_paragraphs.mistake("accents matter", hint=3)
def accents_matter(pages):
    "é and e should be the same: take letters apart with NFD and leave out the category Mn."

    def fold(line):
        kept = (c for c in line.lower() if unicodedata.category(c)[0] != "P")
        return "".join("0" if c.isdecimal() else c for c in kept).strip()

    return _unseen(pages, fold)


@unseen_paragraphs.mistake("letters outside ASCII are dropped", hint=3)
def letters_outside_ascii_are_dropped(pages):
    "Encoding to ASCII drops accents, and with them every Russian, Greek and Chinese letter."
    return _unseen(
        pages, fold=lambda line: _folded(line).encode("ascii", "ignore").decode().strip()
    )


@unseen_paragraphs.mistake("each page starts afresh", hint=1)
def each_page_starts_afresh(pages):
    "The set must outlive the page: most duplicates stand on other pages."
    return [_unseen([page], _folded)[0] for page in pages]


@unseen_paragraphs.mistake("repetitions on one page stay", hint=1)
def repetitions_on_one_page_stay(pages):
    "A line is looked up among earlier pages only; a page can repeat itself."
    seen, result = {""}, []
    for page in pages:
        result.append([line for line in page.split("\n") if _folded(line) not in seen])
        seen |= {_folded(line) for line in page.split("\n")}
    return result


@unseen_paragraphs.mistake("the first copy goes, too", hint=1)
def the_first_copy_goes_too(pages):
    "Of a line that occurs twice, one copy must stay: the first."
    keys = [_folded(line) for page in pages for line in page.split("\n")]
    return [
        [line for line in page.split("\n") if keys.count(_folded(line)) == 1 and _folded(line)]
        for page in pages
    ]


@unseen_paragraphs.mistake("empty lines stay", hint=4)
def empty_lines_stay(pages):
    "A line of which normalizing leaves nothing, such as a row of dashes, is no text."
    seen, result = set(), []
    for page in pages:
        lines = []
        for line in page.split("\n"):
            if (key := _folded(line)) not in seen or not key:
                seen.add(key)
                lines.append(line)
        result.append(lines)
    return result


@unseen_paragraphs.mistake("empty pages vanish", hint=4)
def empty_pages_vanish(pages):
    "There must be one list for each page, or nobody knows which list belongs to which page."
    return [lines for lines in _unseen(pages, _folded) if lines]


capped_shares = Exercise(
    "capped_shares",
    chapter="03_data",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 6, "invariant": 4},
    hints=(
        "A source with so many unique tokens can give at most most * unique of them: its "
        "share is at most most * unique / tokens. Which sources want more than that?",
        "Fix those at their limit. What they leave over goes to the sources that are not "
        "fixed, in proportion to their own shares. Then look again: somebody may be over the "
        "limit now.",
        "Repeat until nobody is. Everything that is not fixed has the share scale * "
        "proportion, with the same scale: (1 - sum of the fixed shares) / (sum of the other "
        "proportions).",
    ),
)


@capped_shares.cases
def cases_of_capped_shares(seed):
    draw = random.Random(seed)
    table = {
        "CommonCrawl": (0.67, 852.7),
        "C4": (0.15, 198.1),
        "GitHub": (0.045, 98.4),
        "Wikipedia": (0.045, 25.7),
        "Books": (0.045, 28.3),
        "ArXiv": (0.025, 33.0),
        "StackExchange": (0.02, 27.2),
    }
    shares, unique = ({name: row[i] for name, row in table.items()} for i in (0, 1))
    yield shares, unique, 1400.0, 4.0  # nobody is over
    yield shares, unique, 1400.0, 1.5
    yield shares, unique, 1400.0 * draw.uniform(2.0, 2.5), 3.0
    for size in (3, 5, 8):
        weights = [draw.uniform(0.2, 3) for _ in range(size)]
        shares = {f"s{i}": w / sum(weights) for i, w in enumerate(weights)}
        unique = {name: draw.uniform(1, 40) for name in shares}
        most = draw.choice([2.0, 3.0, 4.0])
        yield shares, unique, draw.uniform(0.75, 0.95) * most * sum(unique.values()), most


@capped_shares.reference
def capped_shares_reference(proportions, unique, tokens, most):
    limit = {name: most * unique[name] / tokens for name in proportions}
    at = lambda scale: {
        name: min(limit[name], scale * share) for name, share in proportions.items()
    }
    low, high = 0.0, max(limit[name] / share for name, share in proportions.items())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < 1 else (low, middle)
    return at(high)


def _fill(proportions, limit, give, rounds=100):
    "Shares under the limit; `give` says how the rest is divided among the others."
    fixed = {}
    shares = dict(proportions)
    for _ in range(rounds):
        over = [name for name in shares if name not in fixed and shares[name] > limit[name]]
        if not over:
            break
        fixed.update((name, limit[name]) for name in over)
        others = [name for name in shares if name not in fixed]
        shares = {**shares, **fixed, **give(1 - sum(fixed.values()), others, shares)}
    return shares


def _by_share(rest, others, shares):
    "The rest, divided in proportion."
    total = sum(shares[name] for name in others)
    return {name: rest * shares[name] / total for name in others}


@capped_shares.right
def filled_round_by_round(proportions, unique, tokens, most):
    return _fill(
        proportions, {name: most * unique[name] / tokens for name in proportions}, _by_share
    )


@capped_shares.right
def the_tightest_first(proportions, unique, tokens, most):
    limit = {name: most * unique[name] / tokens for name in proportions}
    rest, weight, result = 1.0, sum(proportions.values()), {}
    for name in sorted(
        proportions, key=lambda name: limit[name] / proportions[name]
    ):  # the tightest first
        result[name] = min(limit[name], rest * proportions[name] / weight)
        rest, weight = rest - result[name], weight - proportions[name]
    return {name: result[name] for name in proportions}


@capped_shares.invariant("the shares sum to one, and no source is read more often than allowed")
def the_shares_sum_to_one(seen):
    shares, unique = {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10.0, "b": 2.0, "c": 5.0}
    found = seen(shares, unique, 60.0, 4.0).value
    return abs(sum(found.values()) - 1) < 1e-9 and all(
        60 * found[name] <= 4 * unique[name] * (1 + 1e-9) for name in shares
    )


@capped_shares.invariant("a limit that nobody reaches changes nothing")
def a_limit_that_nobody_reaches_changes_nothing(seen):
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = seen(shares, dict.fromkeys(shares, 100.0), 60.0, 4.0).value
    return all(abs(found[name] - shares[name]) < 1e-12 for name in shares)


@capped_shares.invariant("the sources stand in the order in which they were given")
def the_sources_stand_in_the_order_in_which_they_were_given(seen):
    shares = {"c": 0.2, "a": 0.5, "d": 0.1, "b": 0.2}
    found = seen(shares, {"a": 1.0, "b": 9.0, "c": 9.0, "d": 1.0}, 10.0, 2.0).value
    return list(found) == list(shares)


@capped_shares.invariant("what was given stays as it was")
def what_was_given_stays_as_it_was(seen):
    shares, unique = {"a": 0.9, "b": 0.1}, {"a": 1.0, "b": 9.0}
    seen(shares, unique, 6.0, 2.0)
    return shares == {"a": 0.9, "b": 0.1} and unique == {"a": 1.0, "b": 9.0}


def _limits(proportions, unique, tokens, most):
    return {n: most * unique[n] / tokens for n in proportions}


@capped_shares.mistake("one round only", hint=2)
def one_round_only(proportions, unique, tokens, most):
    "After the rest was given away, somebody else is over the limit: look again until nobody is."
    return _fill(proportions, _limits(proportions, unique, tokens, most), _by_share, rounds=1)


@capped_shares.mistake("the rest is lost", hint=2)
def the_rest_is_lost(proportions, unique, tokens, most):
    "Shares are cut at the limit and nobody gets what was cut: they no longer sum to one."
    limit = _limits(proportions, unique, tokens, most)
    return {name: min(share, limit[name]) for name, share in proportions.items()}


@capped_shares.mistake("everything is scaled up again", hint=3)
def everything_is_scaled_up_again(proportions, unique, tokens, most):
    "Dividing all shares by their sum lifts the sources that were cut over their limit again."
    limit = _limits(proportions, unique, tokens, most)
    cut = {name: min(share, limit[name]) for name, share in proportions.items()}
    return {name: share / sum(cut.values()) for name, share in cut.items()}


@capped_shares.mistake("equal parts of the rest", hint=2)
def equal_parts_of_the_rest(proportions, unique, tokens, most):
    "The rest is divided in proportion to the shares, not into equal parts."

    def give(rest, others, shares):
        more = (rest - sum(shares[name] for name in others)) / len(others)
        return {name: shares[name] + more for name in others}

    return _fill(proportions, _limits(proportions, unique, tokens, most), give)


@capped_shares.mistake("the rest by size", hint=2)
def the_rest_by_size(proportions, unique, tokens, most):
    """The rest is divided by the proportions that were asked for, not by how much text a source
    has."""

    def give(rest, others, shares):
        more = rest - sum(shares[name] for name in others)
        total = sum(unique[name] for name in others)
        return {name: shares[name] + more * unique[name] / total for name in others}

    return _fill(proportions, _limits(proportions, unique, tokens, most), give)


@capped_shares.mistake("the rest to the largest", hint=2)
def the_rest_to_the_largest(proportions, unique, tokens, most):
    "The whole rest went to one source; all that are not at their limit get their part."

    def give(rest, others, shares):
        largest = max(others, key=lambda name: shares[name])
        return {largest: shares[largest] + rest - sum(shares[name] for name in others)}

    return _fill(proportions, _limits(proportions, unique, tokens, most), give)


@capped_shares.mistake("the limit is one epoch", hint=1)
def the_limit_is_one_epoch(proportions, unique, tokens, most):
    "A source can be read `most` times: its limit is most * unique tokens, not unique."
    return _fill(proportions, _limits(proportions, unique, tokens, 1.0), _by_share)


@capped_shares.mistake("tokens, not shares", hint=1)
def tokens_not_shares(proportions, unique, tokens, most):
    "These are numbers of tokens: divide by how many are read in all."
    shares = _fill(proportions, _limits(proportions, unique, tokens, most), _by_share)
    return {name: share * tokens for name, share in shares.items()}


@capped_shares.mistake("epochs, not shares", hint=1)
def epochs_not_shares(proportions, unique, tokens, most):
    "This is how often each source is read; asked for is its share of what is read."
    shares = _fill(proportions, _limits(proportions, unique, tokens, most), _by_share)
    return {name: share * tokens / unique[name] for name, share in shares.items()}


def permutation(n, seed, epoch):
    "The order of an epoch; it stands in the exercise as well."
    return random.Random(f"{seed}, {epoch}").sample(range(n), n)


rank_rows = Exercise(
    "rank_rows",
    chapter="03_data",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    points={"values": 5, "invariant": 5},
    hints=(
        "Write down, for batch_size = 4 and n = 10, which rows step 2 should have, for one "
        "process. Then for two processes. What may depend on the rank, and what must not?",
        "Number all rows of the run: row r stands in epoch r // n at the place r % n. Global "
        "batch `step` has the rows step * batch_size up to (step + 1) * batch_size, and may "
        "end in the next epoch.",
        "A rank gets batch_size // world_size of them, one after the other: from step * "
        "batch_size + rank * (batch_size // world_size). The order of an epoch depends on the"
        " seed and the epoch alone.",
    ),
)


@rank_rows.cases
def cases_of_rank_rows(seed):
    draw = random.Random(seed)
    for n, batch_size in ((10, 4), (23, 8), (16, 8), (7, 8), (50, 6)):
        for world_size in (1, 2, 4):
            if batch_size % world_size == 0:
                step = draw.choice([0, 1, 2, 3, 5, 17])
                yield (
                    step,
                    draw.randrange(world_size),
                    world_size,
                    batch_size,
                    n,
                    draw.randrange(1000),
                )


@rank_rows.reference
def truth_of_rank_rows(step, rank, world_size, batch_size, n, seed):
    epochs = (step + 1) * batch_size // n + 1
    endless = [row for epoch in range(epochs) for row in permutation(n, seed, epoch)]
    share = batch_size // world_size
    return endless[step * batch_size :][rank * share : (rank + 1) * share]


def _rows(start, count, n, order):
    "Rows `start` and on of the whole run; `order(epoch)` is the order of an epoch."
    return [order((start + i) // n)[(start + i) % n] for i in range(count)]


@rank_rows.right
def with_places(step, rank, world_size, batch_size, n, seed):
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed, epoch)
    )


@rank_rows.right
def with_epochs(step, rank, world_size, batch_size, n, seed):
    epoch, place = divmod(step * batch_size, n)
    rows = permutation(n, seed, epoch)[place:]
    while len(rows) < batch_size:
        epoch += 1
        rows += permutation(n, seed, epoch)
    return rows[:batch_size][
        batch_size * rank // world_size : batch_size * (rank + 1) // world_size
    ]


@rank_rows.invariant("however many processes there are, together they read the batch of one")
def however_many_processes_there_are(seen):
    one = seen(5, 0, 1, 8, 21, 3).value
    return all(
        [row for rank in range(size) for row in seen(5, rank, size, 8, 21, 3).value] == one
        for size in (2, 4, 8)
    )


@rank_rows.invariant("in an epoch each row comes once, also where batches do not fit into it")
def in_an_epoch_each_row_comes_once(seen):
    rows = [row for step in range(7) for row in seen(step, 0, 1, 6, 21, 9).value]
    return sorted(rows[:21]) == sorted(rows[21:]) == list(range(21)) and rows[:21] != rows[21:]


@rank_rows.invariant("a step does not depend on the steps before it")
def a_step_does_not_depend_on_the_steps_before_it(seen):
    late = seen(40, 1, 2, 4, 10, 8).value
    for step in range(3):
        seen(step, 1, 2, 4, 10, 8)
    return seen(40, 1, 2, 4, 10, 8).value == late


@rank_rows.mistake("as it was given", hint=1)
def as_it_was_given(step, rank, world_size, batch_size, n, seed):
    """This is the code that was to be repaired: seed, place and epoch all depend on the number
    of processes."""
    share = batch_size // world_size
    steps = max(1, n // share)
    epoch, place = divmod(step, steps)
    return permutation(n, seed + rank, epoch)[place * share : (place + 1) * share]


@rank_rows.mistake("the seed has the rank in it", hint=3)
def the_seed_has_the_rank_in_it(step, rank, world_size, batch_size, n, seed):
    "Every process shuffles in its own way: some rows come twice, some never."
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed + rank, epoch)
    )


@rank_rows.mistake("all ranks read the same", hint=3)
def all_ranks_read_the_same(step, rank, world_size, batch_size, n, seed):
    "The rank is not used: every process reads the first part of the batch."
    order = lambda epoch: permutation(n, seed, epoch)
    return _rows(step * batch_size, batch_size // world_size, n, order)


@rank_rows.mistake("each rank a whole batch", hint=3)
def each_rank_a_whole_batch(step, rank, world_size, batch_size, n, seed):
    "batch_size counts the rows of all processes together; a rank reads batch_size // world_size."
    order = lambda epoch: permutation(n, seed, epoch)
    return _rows((step * world_size + rank) * batch_size, batch_size, n, order)


@rank_rows.mistake("steps counted by one process", hint=2)
def steps_counted_by_one_process(step, rank, world_size, batch_size, n, seed):
    "Step after step, all processes together move on by batch_size rows, not by one rank's share."
    share = batch_size // world_size
    return _rows((step + rank) * share, share, n, lambda epoch: permutation(n, seed, epoch))


@rank_rows.mistake("every so-manieth row", hint=3)
def every_so_manieth_row(step, rank, world_size, batch_size, n, seed):
    """The rows of a rank lie one after the other; with [rank::world_size] the joined batch has
    another order."""
    rows = _rows(step * batch_size, batch_size, n, lambda epoch: permutation(n, seed, epoch))
    return rows[rank::world_size]


@rank_rows.mistake("the rest of an epoch is dropped", hint=2)
def the_rest_of_an_epoch_is_dropped(step, rank, world_size, batch_size, n, seed):
    """Rows that fill no batch are left out of every epoch; a batch may end in the next epoch
    instead."""
    share, steps = batch_size // world_size, max(1, n // batch_size)
    start = step // steps * n + step % steps * batch_size
    return _rows(start + rank * share, share, n, lambda epoch: permutation(n, seed, epoch))


@rank_rows.mistake("the same order in every epoch", hint=3)
def the_same_order_in_every_epoch(step, rank, world_size, batch_size, n, seed):
    "The order must depend on the epoch as well as on the seed."
    share = batch_size // world_size
    return _rows(step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed, 0))


@rank_rows.mistake("a batch begins its epoch again", hint=2)
def a_batch_begins_its_epoch_again(step, rank, world_size, batch_size, n, seed):
    """At the end of an epoch the batch goes on in the next epoch's order, not at the start of
    the same one."""
    share = batch_size // world_size
    epoch = step * batch_size // n
    return _rows(step * batch_size + rank * share, share, n, lambda _: permutation(n, seed, epoch))


@rank_rows.mistake("the epoch is added to the seed", hint=3)
def the_epoch_is_added_to_the_seed(step, rank, world_size, batch_size, n, seed):
    "With seed + epoch, epoch 1 of this seed is epoch 0 of the next: hand both to permutation."
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed + epoch, 0)
    )
