"What the judge knows of `capped_shares`. Spoilers ahead."

import random

from llama_course.classroom.exercise import Exercise

capped_shares = Exercise(
    "capped_shares",
    chapter="03_data",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 6, "laws": 4},
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
    yield (
        {"a": 0.5, "b": 0.25, "c": 0.25},
        {"a": 1.0, "b": 2.0, "c": 5.0},
        16.0,
        2.0,
    )  # all there is
    yield {"only": 1.0}, {"only": 7.0}, 7.0, 4.0


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
