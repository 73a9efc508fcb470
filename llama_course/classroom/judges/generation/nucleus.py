"What the judge knows of `nucleus`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

nucleus = Exercise(
    "nucleus",
    chapter="21_generation",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 6, "laws": 4},
    hints=(
        "Sort the tokens of a row by probability, the likeliest first, and add them up from there.",
        "A token is kept while the sum of those BEFORE it is still less than the share: the "
        "one that reaches the share is kept, the next is not. The first one is always kept.",
        "cumsum(-1) - p is the sum before. Set the others to zero, bring the rows back to the"
        " tokens' own order (scatter, or index with argsort of the order), and divide each "
        "row by its new sum.",
    ),
)


@nucleus.cases
def cases_of_nucleus(seed):
    random = torch.Generator().manual_seed(seed)
    steps = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    for share in (0.5, 0.75, 0.76, 0.1, 1.0, 0.875):
        rows = torch.stack([steps[torch.randperm(6, generator=random)] for _ in range(4)])
        yield rows, share
    yield (3 * torch.randn(5, 40, generator=random)).softmax(-1), 0.9
    yield torch.tensor([[0.0, 0.96875, 0.0, 0.03125]]), 0.95


def _nucleus(p, share, kept=lambda before, sorted_p, share: before < share, back=True, divide=True):
    "The usual answer, with what goes wrong as arguments."
    sorted_p, order = p.sort(dim=-1, descending=True, stable=True)
    before = sorted_p.cumsum(-1) - sorted_p
    sorted_p = torch.where(kept(before, sorted_p, share), sorted_p, 0.0)
    out = torch.zeros_like(p).scatter(-1, order, sorted_p) if back else sorted_p
    return out / out.sum(-1, keepdim=True) if divide else out


@nucleus.reference
def truth_of_nucleus(p, share):
    return _nucleus(p, share)


nucleus.right(_nucleus)


@nucleus.right
def token_by_token(p, share):
    out = torch.zeros_like(p)
    for row, target in zip(p, out):
        total = 0.0
        for i in row.argsort(dim=-1, descending=True, stable=True).tolist():
            if total >= share:
                break
            target[i] = row[i]
            total += row[i].item()
    return out / out.sum(-1, keepdim=True)


@nucleus.invariant(
    "without the least likely token that is kept, the rest holds less than the share"
)
def without_the_least_likely_token_that_is_kept(seen):
    p = (
        2 * torch.randn(8, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ).softmax(-1)
    for share in (0.2, 0.6, 0.95):
        kept = torch.where(seen(p, share).value > 0, p, 0)
        least = torch.where(kept > 0, kept, 1).amin(-1)
        if not ((kept.sum(-1) >= share - 1e-9) & (kept.sum(-1) - least < share)).all():
            return False
    return True


@nucleus.invariant("another order of the tokens gives the same, in that order")
def another_order_of_the_tokens_gives_the_same(seen):
    g = torch.Generator().manual_seed(4)
    p, order = torch.randn(3, 20, generator=g).softmax(-1), torch.randperm(20, generator=g)
    return torch.allclose(seen(p[:, order], 0.7).value, seen(p, 0.7).value[:, order])


@nucleus.mistake("the token that reaches the share is left out", hint=2)
def the_token_that_reaches_the_share_is_left_out(p, share):
    """Compare the sum before a token with the share, not the sum with it: the one that reaches
    it stays."""
    return _nucleus(p, share, kept=lambda before, q, share: (before + q <= share) | (before == 0))


@nucleus.mistake("one token too many at the boundary", hint=2)
def one_token_too_many_at_the_boundary(p, share):
    "Where those before already hold exactly the share nothing more is needed: < and not <=."
    return _nucleus(p, share, kept=lambda before, q, share: before <= share)


@nucleus.mistake("everything may be left out", hint=2)
def everything_may_be_left_out(p, share):
    """A likeliest token that holds more than the share is dropped, and 0/0 remains: the first is
    always kept."""
    return _nucleus(p, share, kept=lambda before, q, share: before + q <= share)


@nucleus.mistake("the sorted order comes back", hint=3)
def the_sorted_order_comes_back(p, share):
    "The result is in the order of the likelihood; bring each probability back to its token."
    return _nucleus(p, share, back=False)


@nucleus.mistake("rows do not sum to one", hint=3)
def rows_do_not_sum_to_one(p, share):
    "What is left must be divided by its sum: it is a distribution again."
    return _nucleus(p, share, divide=False)


@nucleus.mistake("a threshold on the probability", hint=1)
def a_threshold_on_the_probability(p, share):
    """Tokens above 1 - share are kept, however much they hold together: that is a threshold, not
    top-p."""
    out = torch.where(p >= 1 - share, p, 0.0)
    return out / out.sum(-1, keepdim=True)


@nucleus.mistake("the least likely first", hint=1)
def the_least_likely_first(p, share):
    "The sum begins at the least likely token: sort descending."
    sorted_p, order = p.sort(-1)
    kept = torch.where(sorted_p.cumsum(-1) - sorted_p < share, sorted_p, 0.0)
    out = torch.zeros_like(p).scatter(-1, order, kept)
    return out / out.sum(-1, keepdim=True)


@nucleus.mistake("min-p instead", hint=1)
def min_p_instead(p, share):
    "Tokens are compared with the likeliest one; top-p adds them up."
    out = torch.where(p >= share * p.amax(-1, keepdim=True), p, 0.0)
    return out / out.sum(-1, keepdim=True)
