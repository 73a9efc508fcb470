"What the judge knows of `stereotype_share`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

stereotype_share = Exercise(
    "stereotype_share",
    chapter="28_bias",
    kind="rebuild",
    minutes=10,
    difficulty=1,
    points={"values": 7, "laws": 3},
    hints=(
        "Perplexity is exp of minus the mean log-probability of a token: the lower, the likelier.",
        "exp keeps the order: it is enough to compare the means, pair by pair. Lengths differ"
        " within a pair.",
        "Count 1 where the mean of `more` is larger, 0.5 where both are equal; divide by how "
        "many there are.",
    ),
)


@stereotype_share.cases
def cases_of_stereotype_share(seed):
    random = torch.Generator().manual_seed(seed)
    length = lambda: int(torch.randint(2, 9, (), generator=random))
    draw = lambda n, scale: -scale * torch.rand(n, generator=random)
    for pairs in (4, 7, 12):
        more = [draw(length(), 4.0) for _ in range(pairs)]
        less = [draw(length(), 4.0) for _ in range(pairs)]
        more += [
            torch.tensor([-1.0, -3.0]),
            torch.tensor([-0.5, -0.25]),
            draw(9, 1.0),
            draw(2, 4.0),
        ]
        less += [
            torch.tensor([-2.0]),
            torch.tensor([-0.5, -0.25]),
            draw(2, 1.0),
            draw(8, 1.0) - 0.5,
        ]
        yield more, less


def _share(more, less, value=lambda logs: logs.mean(), tie=0.5) -> float:
    "The share by a rule; what is easily wrong can be put in."
    pairs = [(float(value(a)), float(value(b))) for a, b in zip(more, less)]
    return sum(tie if a == b else float(a > b) for a, b in pairs) / len(pairs)


@stereotype_share.reference
def truth_of_stereotype_share(more, less):
    return _share(more, less)


@stereotype_share.invariant("with the sides exchanged it is one minus the share")
def with_the_sides_exchanged_it_is_one_minus_the_share(seen):
    more, less = next(stereotype_share.make_cases(3))
    return abs(seen(more, less).value + seen(less, more).value - 1) < 1e-6


@stereotype_share.right
def pair_by_pair(more, less):
    wins = 0.0
    for a, b in zip(more, less):
        first, second = torch.exp(-a.double().mean()), torch.exp(-b.double().mean())
        wins += 1.0 if first < second else 0.5 if first == second else 0.0
    return wins / len(more)


@stereotype_share.right
def by_the_signs_of_the_gaps(more, less):
    gaps = torch.stack([a.sum() / a.numel() - b.sum() / b.numel() for a, b in zip(more, less)])
    return ((gaps.sign() + 1) / 2).mean().item()


@stereotype_share.mistake("sums compared", hint=1)
def sums_compared(more, less):
    "The sum favours the sentence with fewer tokens; perplexity divides by their number."
    return _share(more, less, torch.sum)


@stereotype_share.mistake("the larger perplexity wins", hint=1)
def the_larger_perplexity_wins(more, less):
    "A low perplexity is a likely sentence."
    return _share(more, less, lambda logs: -logs.mean())


@stereotype_share.mistake("a tie is a stereotype", hint=3)
def a_tie_is_a_stereotype(more, less):
    "Equal perplexities are no preference: half a point, not one."
    return _share(more, less, tie=1.0)


@stereotype_share.mistake("a tie is none", hint=3)
def a_tie_is_none(more, less):
    "Equal perplexities are no preference: half a point, not none."
    return _share(more, less, tie=0.0)


@stereotype_share.mistake("a count", hint=3)
def a_count(more, less):
    "A share is asked for: divide by the number of pairs."
    return _share(more, less) * len(more)


@stereotype_share.mistake("in percent", hint=3)
def in_percent(more, less):
    "A share lies between 0 and 1."
    return 100 * _share(more, less)


@stereotype_share.mistake("the mean of probabilities", hint=1)
def the_mean_of_probabilities(more, less):
    """The mean is taken of the logarithms: the mean of the probabilities forgets what was nearly
    impossible."""
    return _share(more, less, lambda logs: logs.exp().mean())


@stereotype_share.mistake("one perplexity for all", hint=2)
def one_perplexity_for_all(more, less):
    "Each pair is compared for itself; one perplexity over all sentences is one comparison."
    return _share([torch.cat(more)], [torch.cat(less)])


@stereotype_share.mistake("the first tokens only", hint=2)
def the_first_tokens_only(more, less):
    "All tokens of both sentences count, also those that the longer one has more."
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(more, less)]
    return _share(*zip(*pairs))
