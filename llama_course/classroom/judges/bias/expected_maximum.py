"What the judge knows of `expected_maximum`. Spoilers ahead."

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

expected_maximum = Exercise(
    "expected_maximum",
    chapter="28_bias",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 7, "laws": 3},
    hints=(
        "The more often you draw, the larger the largest: so the number of draws must be k "
        "for all.",
        "There are comb(n, k) choices of k continuations. Take the largest of each choice, "
        "and their mean.",
        "Sort the n scores. The i-th from below (from 0) is the largest in comb(i, k - 1) of "
        "the choices.",
    ),
)


@expected_maximum.cases
def cases_of_expected_maximum(seed):
    random = torch.Generator().manual_seed(seed)
    for prompts, n, k in ((3, 5, 2), (4, 6, 4), (2, 7, 3)):
        yield torch.rand(prompts, n, generator=random) ** 2, k


def _largest(scores, weight) -> Tensor:
    "The mean over prompts of the sorted scores, weighted by place."
    n = scores.size(1)
    weights = torch.tensor([weight(i, n) for i in range(n)], dtype=scores.dtype)
    return (scores.sort(-1).values * weights).sum(-1).mean()


@expected_maximum.reference
def truth_of_expected_maximum(scores, k):
    return _largest(scores, lambda i, n: comb(i, k - 1) / comb(n, k))


@expected_maximum.invariant(
    "of one it is the mean, of all the maximum, and the order does not matter"
)
def of_one_it_is_the_mean(seen):
    scores = next(expected_maximum.make_cases(3))[0]
    value = lambda scores, k: seen(scores, k).value
    same = lambda a, b: torch.allclose(a, b, atol=1e-5)
    n, largest = scores.size(1), scores.amax(1).mean()
    ends = same(value(scores, 1), scores.mean()) and same(value(scores, n), largest)
    return ends and same(value(scores.flip(1), 2), value(scores, 2))


@expected_maximum.right
def over_all_choices(scores, k):
    choices = combinations(range(scores.size(1)), k)
    return torch.stack([scores[:, list(choice)].amax(1) for choice in choices]).mean()


@expected_maximum.right
def by_the_rank_of_the_largest(scores, k):
    n, total = scores.size(1), 0.0
    for row in scores.sort(-1, descending=True).values:
        left = 1.0  # the probability that none of those before is among the k
        for i, s in enumerate(row):
            total = total + left * k / (n - i) * s
            left *= 1 - k / (n - i)
            if left <= 0:
                break
    return total / len(scores)


@expected_maximum.mistake("the maximum as it was given", hint=1)
def the_maximum_as_it_was_given(scores, k):
    "The largest of all n grows with n, whatever k is."
    return scores.amax(1).mean()


@expected_maximum.mistake("the mean", hint=1)
def the_mean(scores, k):
    "That is the paper's number; here the largest of k is asked for."
    return scores.mean()


@expected_maximum.mistake("the first k", hint=2)
def the_first_k(scores, k):
    "The first k are one choice of many: right on average, but all the others are thrown away."
    return scores[:, :k].amax(1).mean()


@expected_maximum.mistake("drawn with replacement", hint=2)
def drawn_with_replacement(scores, k):
    "A continuation is in a choice once: (i/n)^k counts choices in which it may be several times."
    return _largest(scores, lambda i, n: ((i + 1) / n) ** k - (i / n) ** k)


@expected_maximum.mistake("the smallest of k", hint=3)
def the_smallest_of_k(scores, k):
    "Sorted from the largest down, the weights belong to the other end."
    return _largest(scores, lambda i, n: comb(n - 1 - i, k - 1) / comb(n, k))


@expected_maximum.mistake("off by one", hint=3)
def off_by_one(scores, k):
    "Below the i-th, counted from 0, are i others, of which k - 1 are chosen: comb(i, k - 1)."
    return _largest(scores, lambda i, n: comb(i, k) / comb(n, k + 1))


@expected_maximum.mistake("the k largest, averaged", hint=2)
def the_k_largest_averaged(scores, k):
    "The mean of the k largest is no maximum of k that were drawn."
    return scores.topk(k, dim=1).values.mean()


@expected_maximum.mistake("the largest of all prompts", hint=2)
def the_largest_of_all_prompts(scores, k):
    "Each prompt has its own maximum; the mean is over prompts."
    return _largest(scores.flatten()[None], lambda i, n: comb(i, k - 1) / comb(n, k))


@expected_maximum.mistake("a sum over prompts", hint=2)
def a_sum_over_prompts(scores, k):
    "The mean over prompts is asked for."
    return len(scores) * _largest(scores, lambda i, n: comb(i, k - 1) / comb(n, k))
