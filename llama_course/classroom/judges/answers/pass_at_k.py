"What the judge knows of `pass_at_k`. Spoilers ahead."

import math
import random
from itertools import combinations

from llama_course.classroom.exercise import Exercise

pass_at_k = Exercise(
    "pass_at_k",
    chapter="26_answers",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    points={"values": 6, "laws": 4},
    hints=(
        "The given formula may take the same program twice. Which choices of k different "
        "programs are there?",
        "The share of choices without one that passes is C(n - c, k) / C(n, k): all k come "
        "from the n - c.",
        "If n - c < k, no choice does without one that passes. math.comb is exact for any "
        "size; as a product it is (1 - k/i) for i from n - c + 1 to n.",
    ),
)


@pass_at_k.cases
def cases_of_pass_at_k(seed):
    chance = random.Random(seed)
    yield from (
        (5, 0, 2),
        (5, 5, 2),
        (5, 1, 5),
        (5, 1, 1),
        (6, 2, 3),
        (10, 7, 4),
        (4, 2, 3),
        (1, 1, 1),
    )
    yield from ((1, 0, 1), (200, 3, 100), (2000, 1, 1000))
    for _ in range(5):
        n = chance.randint(3, 9)
        yield n, chance.randint(0, n), chance.randint(1, n)


def _counted(n, c, k):
    if n > 12:
        return 1 - math.comb(n - c, k) / math.comb(n, k)
    choices = list(combinations(range(n), k))
    return sum(min(choice) < c for choice in choices) / len(choices)


@pass_at_k.reference
def truth_of_pass_at_k(n, c, k):
    return float(_counted(n, c, k))


@pass_at_k.invariant("its mean over many runs is the truth")
def its_mean_over_many_runs_is_the_truth(seen):
    n, k = 8, 4
    for p in (0.1, 0.4):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * seen(n, c, k).value for c in range(n + 1)
        )
        if abs(mean - (1 - (1 - p) ** k)) > 1e-6:
            return False
    return True


@pass_at_k.invariant("with k = 1 it is the share that passes, with k = n whether any does")
def with_k_1_it_is_the_share_that_passes(seen):
    return all(
        abs(seen(6, c, 1).value - c / 6) < 1e-6 and seen(6, c, 6).value == (c > 0) for c in range(7)
    )


@pass_at_k.right
def by_binomials(n, c, k):
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.right
def by_a_running_product(n, c, k):
    none = 1.0
    for i in range(n - c + 1, n + 1):
        none *= max(0.0, 1 - k / i)
    return 1.0 - none


@pass_at_k.mistake("as it was given", hint=1)
def as_it_was_given(n, c, k):
    "This draws with return: the same program may be taken twice, and the estimate is too low."
    return 1 - (1 - c / n) ** k


@pass_at_k.mistake("the share that passes, k times", hint=1)
def the_share_that_passes_k_times(n, c, k):
    "k chances of c/n do not add up: two of the k may pass together."
    return min(1.0, k * c / n)


@pass_at_k.mistake("all k pass", hint=2)
def all_k_pass(n, c, k):
    "That is the share of choices in which all k pass: C(c, k). One is enough."
    return math.comb(c, k) / math.comb(n, k)


@pass_at_k.mistake("none passes", hint=2)
def none_passes(n, c, k):
    "That is the share without any that passes: take it from 1."
    return math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.mistake("the first k only", hint=1)
def the_first_k_only(n, c, k):
    """Whether one of k passes, if any does: the other n - k programs were thrown away or all
    counted as one."""
    return float(c > 0)


@pass_at_k.mistake("k - 1 programs", hint=2)
def k_1_programs(n, c, k):
    "One program too few was chosen: C(n - c, k - 1) / C(n, k - 1)."
    return 1 - math.comb(n - c, k - 1) / math.comb(n, k - 1)


@pass_at_k.mistake("the product begins one too early", hint=3)
def the_product_begins_one_too_early(n, c, k):
    "The product has c factors, i from n - c + 1 to n; one more was taken."
    return 1 - math.prod(max(0.0, 1 - k / i) for i in range(max(1, n - c), n + 1))


@pass_at_k.mistake("the product ends one too early", hint=3)
def the_product_ends_one_too_early(n, c, k):
    "The product has c factors, i from n - c + 1 to n; range(a, b) leaves out b."
    return 1 - math.prod(max(0.0, 1 - k / i) for i in range(n - c + 1, n))


@pass_at_k.mistake("factors below zero", hint=3)
def factors_below_zero(n, c, k):
    """If n - c < k a factor of the product is negative or zero and its product means nothing:
    answer 1 there."""
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1) if i != k)
