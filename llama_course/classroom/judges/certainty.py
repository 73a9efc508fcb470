"""What the judge knows of the three exercises in `exercises/27_certainty.ipynb`. Spoilers from
here on."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import torch

from llama_course.classroom.exercise import Exercise


def _as_tensor(answer, *args):
    "The numbers that the answer returns, compared with the largest of them."
    return torch.tensor([float(x) for x in answer(*args)], dtype=torch.float32)


wilson_interval = Exercise(
    "wilson_interval",
    chapter="27_certainty",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    call=_as_tensor,
    factor=16.0,
    points={"values": 7, "invariant": 3},
    hints=(
        "Square both sides: (s - p)² = z² p (1 - p) / n, with s = right / n. What kind of equation "
        "for p is that, and how many solutions has it?",
        "Sorted by powers of p: (1 + z²/n) p² - (2 s + z²/n) p + s² = 0.",
        "Its solutions: (s + z²/2n ± z sqrt(s (1 - s)/n + z²/4n²)) / (1 + z²/n).",
        "z for 95 % is 1.96: 2.5 % of a normal distribution lie above it, 2.5 % below -z. "
        "NormalDist().inv_cdf((1 + level) / 2).",
    ),
)


@wilson_interval.cases
def cases_of_wilson_interval(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=random))
    yield 0, 1, 0.95
    yield 1, 1, 0.95
    yield 0, 20 + draw(80), 0.99
    n = 5 + draw(50)
    yield n, n, 0.9
    yield 3, 8, 0.5
    for n in (13, 164, 1319, 14042):
        yield draw(n), n, (0.95, 0.8, 0.999)[draw(3)]


@wilson_interval.reference
def truth_of_wilson_interval(right, n, level):
    "Each end by bisection, from what it is: the share that is z standard errors away."
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / n

    def end(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            near = abs(share - middle) <= z * math.sqrt(middle * (1 - middle) / n)
            inside, outside = (middle, outside) if near else (inside, middle)
        return inside

    low = 0.0 if right == 0 else end(share, 0.0)
    high = 1.0 if right == n else end(share, 1.0)
    return torch.tensor([low, high], dtype=torch.float64)


def _interval(
    right, n, level, *, z_of=lambda level: (1 + level) / 2, middle=0.5, root=0.25, shrink=1
):
    "The formula, with a place for each mistake."
    z, s = NormalDist().inv_cdf(z_of(level)), right / n
    center, reach = s + middle * z * z / n, z * math.sqrt(s * (1 - s) / n + root * z * z / n**2)
    whole = 1 + shrink * z * z / n
    return (center - reach) / whole, (center + reach) / whole


wilson_interval.right(_interval)


@wilson_interval.right
def with_two_more_of_each(right, n, level):
    "The centre is a share of n + z² items, of which z²/2 more are right."
    z = -NormalDist().inv_cdf((1 - level) / 2)
    more = n + z**2
    center = (right + z**2 / 2) / more
    reach = z / more * ((n - right) * right / n + z**2 / 4) ** 0.5
    return [max(center - reach, 0.0), min(center + reach, 1.0)]


@wilson_interval.right
def by_the_roots_of_a_polynomial(right, n, level):
    w = NormalDist().inv_cdf((1 + level) / 2) ** 2 / n
    low, high = sorted(np.roots([1 + w, -(2 * right / n + w), (right / n) ** 2]).real)
    return low, high


@wilson_interval.invariant("wrong answers counted as right: the same interval, seen from 1")
def wrong_answers_counted_as_right(seen):
    for right, n in ((0, 7), (3, 7), (90, 100), (5, 1000)):
        low, high = seen(right, n, 0.95).value.tolist()
        other = seen(n - right, n, 0.95).value.tolist()
        if abs(low + other[1] - 1) > 1e-5 or abs(high + other[0] - 1) > 1e-5:
            return False
    return True


@wilson_interval.mistake("the share plus and minus z standard errors", hint=1)
def the_share_plus_and_minus(right, n, level):
    "The standard error is that of the *observed* share: with 0 of 20 the interval has no width."
    return _interval(right, n, level, middle=0, root=0, shrink=0)


@wilson_interval.mistake("z of the wrong tail", hint=4)
def z_of_the_wrong_tail(right, n, level):
    "1.645 has 5 % above it; of a two-sided interval of 95 % 2.5 % lie on each side."
    return _interval(right, n, level, z_of=lambda level: level)


@wilson_interval.mistake("1.96 for every level", hint=4)
def always_1_96(right, n, level):
    "1.96 belongs to 95 %; the level is an argument."
    return _interval(right, n, 0.95)


@wilson_interval.mistake("the centre is not moved", hint=3)
def the_centre_is_not_moved(right, n, level):
    "z²/2n is missing in the centre: the interval lies around the share that was seen."
    return _interval(right, n, level, middle=0)


@wilson_interval.mistake("not divided by 1 + z²/n", hint=3)
def not_divided(right, n, level):
    "The factor of p² is 1 + z²/n: both ends must be divided by it."
    return _interval(right, n, level, shrink=0)


@wilson_interval.mistake("z²/4n² is missing under the root", hint=3)
def z_is_missing_under_the_root(right, n, level):
    "With no answer right, or all, the root would be zero."
    return _interval(right, n, level, root=0)


@wilson_interval.mistake("z²/n in the centre", hint=2)
def twice_the_move_of_the_centre(right, n, level):
    "The centre moves by half of z²/n: of -b/2a the 2 is missing."
    return _interval(right, n, level, middle=1)


clustered_error = Exercise(
    "clustered_error",
    chapter="27_certainty",
    kind="extend",
    minutes=20,
    difficulty=2,
    call=_as_tensor,
    factor=32.0,
    points={"values": 6, "invariant": 4},
    hints=(
        "First the differences, item by item: what is compared are pairs. Then each difference's "
        "distance from the mean of all.",
        "Within a group the distances are not independent: add them up before you square. Between "
        "groups they are: square the sums, and add the squares.",
        "The root of the sum of the groups' squared sums, divided by n, the number of items.",
    ),
)


@clustered_error.cases
def cases_of_clustered_error(seed):
    random = torch.Generator().manual_seed(seed)
    bits = lambda n: torch.randint(2, (n,), generator=random).tolist()
    yield [1, 0, 1], [0, 0, 1], ["a", "b", "c"]
    yield [1.0], [0.25], [7]
    yield bits(6), bits(6), ["one text"] * 6  # nothing to compare groups by
    for n, groups in ((12, 4), (30, 7), (25, 3)):
        share = torch.rand(n, generator=random).tolist()
        names = torch.randint(groups, (n,), generator=random).tolist()
        yield bits(n), share, [f"text {name}" for name in names]
    yield bits(20), bits(20), [i // 4 for i in range(20)]


@clustered_error.reference
def truth_of_clustered_error(ours, theirs, groups):
    "By all pairs of items of one group."
    d = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    apart, n = d - d.mean(), len(d)
    same = torch.tensor([[float(a == b) for b in groups] for a in groups], dtype=torch.float64)
    variance = (same * apart[:, None] * apart[None, :]).sum() / n**2
    return torch.stack([d.mean(), variance.clamp(min=0).sqrt()])


def _clustered(
    ours, theirs, groups, *, by=None, centred=True, n_of=len, mean_of_groups=False, pairs=True,
    root=True,
):  # fmt: skip
    "Sums by group, with a place for each mistake."
    d = [a - b for a, b in zip(ours, theirs)]
    names = by(groups) if by else groups
    mean = sum(d) / len(d)
    sums, sizes = {}, {}
    for x, name in zip(d if pairs else ours, names):
        x = x - (mean if centred else 0)
        sums[name] = sums.get(name, 0) + x
        sizes[name] = sizes.get(name, 0) + 1
    if mean_of_groups:
        means = [sum(x for x, g in zip(d, names) if g == name) / sizes[name] for name in sums]
        mean = sum(means) / len(means)
        variance = sum((m - mean) ** 2 for m in means) / len(means) ** 2
        return mean, variance**0.5
    variance = sum(s**2 for s in sums.values()) / n_of(names) ** 2
    return mean, variance**0.5 if root else variance


clustered_error.right(_clustered)


@clustered_error.right
def with_a_matrix_of_groups(ours, theirs, groups):
    d = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    places = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([places[name] for name in groups])
    sums = torch.zeros(len(places), dtype=torch.float64).index_add(0, index, d - d.mean())
    return d.mean().item(), sums.norm().item() / len(d)


@clustered_error.invariant("each item its own group: the ordinary standard error of a mean")
def each_item_its_own_group(seen):
    ours, theirs = [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0]
    d = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs)
    want = d.std(correction=0) / len(d) ** 0.5
    return abs(seen(ours, theirs, list(range(6))).value[1] - want) < 1e-6


@clustered_error.invariant("every item three times in its group: nothing more is known")
def every_item_three_times_in_its_group(seen):
    args = [1, 0, 1, 1, 0], [0.5, 0.25, 0.0, 1.0, 0.0], ["a", "a", "b", "c", "c"]
    thrice = seen(*(3 * part for part in args)).value
    return torch.allclose(seen(*args).value, thrice, rtol=1e-5)


@clustered_error.mistake("the groups are ignored", hint=2)
def the_groups_are_ignored(ours, theirs, groups):
    "Items of one group are taken for independent: the error comes out too small."
    return _clustered(ours, theirs, groups, by=lambda groups: range(len(groups)))


@clustered_error.mistake("distances from zero", hint=1)
def distances_from_zero(ours, theirs, groups):
    "The mean is not taken away: the spread is that around the mean difference."
    return _clustered(ours, theirs, groups, centred=False)


@clustered_error.mistake("divided by the number of groups", hint=3)
def divided_by_the_number_of_groups(ours, theirs, groups):
    "The mean is over items, so the sum is divided by their number."
    return _clustered(ours, theirs, groups, n_of=lambda names: len(set(names)))


@clustered_error.mistake("the mean of the groups' means", hint=1)
def the_mean_of_the_groups_means(ours, theirs, groups):
    "That gives an item of a small group more weight than one of a large group."
    return _clustered(ours, theirs, groups, mean_of_groups=True)


@clustered_error.mistake("one model alone", hint=1)
def one_model_alone(ours, theirs, groups):
    "The spread is that of one model's scores; asked for is that of the differences."
    return _clustered(ours, theirs, groups, pairs=False)


@clustered_error.mistake("the variance", hint=3)
def the_variance_itself(ours, theirs, groups):
    "The root is missing."
    return _clustered(ours, theirs, groups, root=False)


@clustered_error.mistake("n - 1", hint=3)
def n_minus_one(ours, theirs, groups):
    "Divide by n here: the formula has no correction, as the text says."
    return _clustered(ours, theirs, groups, n_of=lambda names: max(len(names) - 1, 1))


paired_p_value = Exercise(
    "paired_p_value",
    chapter="27_certainty",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    factor=64.0,
    points={"values": 8, "invariant": 2},
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
