"What the judge knows of `clustered_error`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.certainty.common import _as_tensor

clustered_error = Exercise(
    "clustered_error",
    chapter="27_certainty",
    kind="extend",
    minutes=20,
    difficulty=2,
    call=_as_tensor,
    factor=32.0,
    points={"values": 6, "laws": 4},
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
