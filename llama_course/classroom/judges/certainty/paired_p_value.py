"What the judge knows of `paired_p_value`. Spoilers ahead."

import math
from fractions import Fraction
from statistics import NormalDist

import torch

from llama_course.classroom.exercise import Exercise

paired_p_value = Exercise(
    "paired_p_value",
    chapter="27_certainty",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    factor=64.0,
    points={"values": 8, "laws": 2},
    hints=(
        "On which items do the two models differ, and what would the other items tell if nothing "
        "but chance decided?",
        "Let m items have exactly one model right, k of them the model that is right less often "
        "among them. If neither is better, each of the m is a fair coin.",
        "P(at most k heads of m) = (C(m, 0) + ... + C(m, k)) / 2^m; two-sided twice that, and at "
        "most 1.",
        "2.0 ** m overflows beyond 1,023. Python's whole numbers do not: divide two of them, or "
        "use fractions.Fraction.",
    ),
)


@paired_p_value.cases
def cases_of_paired_p_value(seed):
    random = torch.Generator().manual_seed(seed)

    def models(both, ours, theirs, neither):
        rows = [(True, True)] * both + [(True, False)] * ours
        rows += [(False, True)] * theirs + [(False, False)] * neither
        order = torch.randperm(len(rows), generator=random).tolist()
        return [rows[i][0] for i in order], [rows[i][1] for i in order]

    draw = lambda n: int(torch.randint(n, (), generator=random))
    yield models(50, 8, 1, 30)
    yield models(5, 0, 0, 4)  # they never differ
    yield models(0, 6, 6, 1)  # twice more than a half is still 1
    yield models(3, 0, 5, 0)
    yield models(200, 10 + draw(9), 4 + draw(5), 100)
    yield models(40, draw(6), 12 + draw(9), 7)
    yield models(0, 700 + draw(20), 620 + draw(20), 0)  # 2.0 ** m overflows


@paired_p_value.reference
def truth_of_paired_p_value(ours, theirs):
    "By logarithms of factorials, term by term."
    more = sum(a and not b for a, b in zip(ours, theirs))
    less = sum(b and not a for a, b in zip(ours, theirs))
    m, low = more + less, min(more, less)
    log_of = lambda k: math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1)
    tail = math.fsum(math.exp(log_of(k) - m * math.log(2)) for k in range(low + 1))
    return min(1.0, 2 * tail)


def _sign_test(
    ours, theirs, *, sides=2, everything=False, most=1.0, smaller=min, exact=True, middle=False,
    none=1.0,
):  # fmt: skip
    "The exact test, with a place for each mistake."
    more = sum(a and not b for a, b in zip(ours, theirs))
    less = sum(b and not a for a, b in zip(ours, theirs))
    if everything:
        more, less = sum(ours), len(ours) - sum(ours)
    m, k = more + less, smaller(more, less)
    if not m:
        return none
    if not exact:
        z = abs(more - less) / math.sqrt(m)
        return 2 * (1 - NormalDist().cdf(z))
    tail = sum(math.comb(m, i) for i in range(k + 1))
    half = Fraction(math.comb(m, k), 2) if middle else 0
    return min(most, float(Fraction(sides * (tail - half), 2**m)))


paired_p_value.right(_sign_test)


@paired_p_value.right
def with_whole_numbers(ours, theirs):
    wins = [a for a, b in zip(ours, theirs) if a != b]
    m, k = len(wins), min(sum(wins), len(wins) - sum(wins))
    term = total = 1
    for i in range(k):
        term = term * (m - i) // (i + 1)
        total += term
    return min(2 * total / 2**m, 1)


@paired_p_value.invariant("items on which both are right, or both wrong, change nothing")
def items_on_which_both_agree_change_nothing(seen):
    ours = [True, True, False, True, True, True, True]
    theirs = [False, False, True, False, False, False, True]
    alone = seen(ours, theirs).value
    more = seen(ours + [True] * 40 + [False] * 9, theirs + [True] * 40 + [False] * 9).value
    return alone == more and alone == seen(theirs, ours).value


@paired_p_value.mistake("the code as it was given", hint=1)
def the_p_value_as_it_was_given(ours, theirs):
    "Two samples that have nothing to do with each other; here both models answer the same items."
    n = len(ours)
    p, q = sum(ours) / n, sum(theirs) / n
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return 2 * (1 - NormalDist().cdf(abs(p - q) / error))


@paired_p_value.mistake("one side", hint=3)
def one_side(*args):
    "Either model might have been the better one: the other tail counts as well."
    return _sign_test(*args, sides=1)


@paired_p_value.mistake("above one", hint=3)
def above_one(*args):
    "Where both win equally often the tails overlap: no p-value is above 1."
    return _sign_test(*args, most=9.0)


@paired_p_value.mistake("a normal distribution", hint=3)
def a_normal_distribution(*args):
    "With few items that differ the normal distribution is not near enough: sum binomial terms."
    return _sign_test(*args, exact=False)


@paired_p_value.mistake("the tail of the winner", hint=2)
def the_tail_of_the_winner(*args):
    "At most so many as the *better* model has won: take the smaller of the two counts."
    return _sign_test(*args, smaller=max)


@paired_p_value.mistake("the middle term counts half", hint=3)
def the_middle_term_counts_half(*args):
    "That is the mid-p value; the exact test counts what was seen in full."
    return _sign_test(*args, middle=True)


@paired_p_value.mistake("zero where nothing differs", hint=1)
def zero_where_nothing_differs(*args):
    "Two models that answer alike give no evidence at all: 1, not 0."
    return _sign_test(*args, none=0.0)


@paired_p_value.mistake("one model against a coin", hint=1)
def one_model_against_a_coin(*args):
    "You test whether one model is right more than half of the time."
    return _sign_test(*args, everything=True)


@paired_p_value.mistake("2.0 ** m", hint=4)
def a_float_overflows(ours, theirs):
    "Beyond 1,023 items that differ, 2.0 ** m is no float any more."
    m = sum(a != b for a, b in zip(ours, theirs))
    return _sign_test(ours, theirs) if m < 1024 else 2.0**m
