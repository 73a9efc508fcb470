"What the judge knows of `wilson_interval`. Spoilers ahead."

import math
from statistics import NormalDist

import numpy as np
import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.certainty.common import _as_tensor

wilson_interval = Exercise(
    "wilson_interval",
    chapter="27_certainty",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    call=_as_tensor,
    factor=16.0,
    points={"values": 7, "laws": 3},
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
