"What the judge knows of the four exercises in `exercises/28_bias.ipynb`. Spoilers from here on."

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

stereotype_share = Exercise(
    "stereotype_share",
    chapter="28_bias",
    kind="rebuild",
    minutes=10,
    difficulty=1,
    points={"values": 7, "invariant": 3},
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


def _each_for_itself(answer, *args):
    "The answer as a column: each perplexity is compared by its own size."
    found = answer(*args)
    return found[:, None] if isinstance(found, torch.Tensor) and found.dim() == 1 else found


ragged_perplexity = Exercise(
    "ragged_perplexity",
    chapter="28_bias",
    kind="extend",
    minutes=25,
    difficulty=2,
    call=_each_for_itself,
    factor=1.0,
    condition=lambda logits, *_: 1.0 if logits.element_size() == 2 else 256.0,  # exp magnifies
    points={"values": 8, "invariant": 2},
    hints=(
        "Row t of the logits speaks of token t + 1. So logits[:, :-1] and ids[:, 1:] belong "
        "together, and of these the first length - 1 places count.",
        "torch.arange(T - 1) < lengths[:, None] - 1 is (B, T - 1): the places that count.",
        "What is no number stays none when it is multiplied with 0. Put something else there "
        "before you add: torch.where(counts, costs, 0), or masked_fill.",
        "logsumexp(-1) minus the logit of the token is its cost in nats. 16-bit logits go to "
        "float32 first; the result comes back to their dtype.",
    ),
)


@ragged_perplexity.cases
def cases_of_ragged_perplexity(seed):
    random = torch.Generator().manual_seed(seed)
    for B, T, V, size, lengths, dtype in (
        (1, 2, 5, 1.0, [2], torch.float64),
        (3, 7, 11, 2.0, [7, 2, 5], torch.float32),
        (4, 6, 9, 4.0, [6, 3, 2, 4], torch.float32),
        (7, 5, 30, 4.0, [4, 3, 5, 5, 2, 4, 5], torch.bfloat16),
    ):
        logits = size * torch.randn(B, T, V, generator=random)
        ids = torch.randint(V, (B, T), generator=random)
        if B == 4:  # a probability that float32 rounds to 0
            logits[0, 0, ids[0, 1]] = logits[0, 0].max() - 120
        for row, length in enumerate(lengths):
            logits[row, length - 1 :] = torch.nan if row % 2 else torch.inf
            ids[row, length:] = -1
        yield logits.to(dtype), ids, torch.tensor(lengths)


@ragged_perplexity.reference
def truth_of_ragged_perplexity(logits, ids, lengths):
    "Sentence by sentence, token by token."
    found = []
    for row, n in enumerate(lengths.tolist()):
        logs = [logits[row, t - 1].log_softmax(-1)[ids[row, t]] for t in range(1, n)]
        found.append((-torch.stack(logs).mean()).exp())
    return torch.stack(found)[:, None]


def _perplexity(
    logits, ids, lengths, *, shift=1, count=lambda n: n - 1, clean=True, wide=True, rows=True,
    logs=lambda x: x.log_softmax(-1), exp=torch.exp,
):  # fmt: skip
    "The usual answer, with a place for each mistake."
    scores = logits.float() if wide and logits.dtype != torch.float64 else logits
    scores, targets = scores[:, : ids.shape[1] - shift], ids[:, shift:].clamp(min=0)
    costs = -logs(scores).gather(-1, targets[..., None])[..., 0]
    counts = torch.arange(targets.shape[1]) < lengths[:, None] - shift
    costs = costs.masked_fill(~counts, 0) if clean else costs * counts
    if not rows:
        mean = (costs.sum() / counts.sum()).expand(len(ids))
    else:
        mean = costs.sum(-1) / count(lengths)
    return exp(mean).to(logits.dtype)


ragged_perplexity.right(_perplexity)


@ragged_perplexity.right
def sentence_by_sentence(logits, ids, lengths):
    out = torch.empty(len(ids), dtype=logits.dtype)
    for row, n in enumerate(lengths.tolist()):
        scores = logits[row, : n - 1].to(torch.promote_types(logits.dtype, torch.float32))
        out[row] = torch.nn.functional.cross_entropy(scores, ids[row, 1:n]).exp()
    return out


@ragged_perplexity.invariant("how much padding stands behind a sentence does not matter")
def how_much_padding_does_not_matter(seen):
    logits, ids, lengths = list(ragged_perplexity.make_cases(5))[1]
    more = torch.cat([logits, torch.full((3, 4, 11), torch.nan)], 1)
    wider = torch.cat([ids, torch.full((3, 4), -1)], 1)
    long = seen(more, wider, lengths).value
    return torch.allclose(seen(logits, ids, lengths).value, long, rtol=1e-5)


@ragged_perplexity.invariant("a model that knows nothing has the perplexity V")
def a_model_that_knows_nothing_has_the_perplexity_v(seen):
    found = seen(torch.zeros(2, 4, 6), torch.tensor([[0, 5, 2, 1], [3, 3, -1, -1]]),
                 torch.tensor([4, 2])).value  # fmt: skip
    return torch.allclose(found, torch.full((2, 1), 6.0))


@ragged_perplexity.mistake("padding times zero", hint=3)
def padding_times_zero(*args):
    "NaN times 0 is NaN: what is no number must be replaced, not multiplied away."
    return _perplexity(*args, clean=False)


@ragged_perplexity.mistake("each row judges its own token", hint=1)
def each_row_judges_its_own_token(*args):
    "The logits at a token are about the token after it."
    return _perplexity(*args, shift=0)


@ragged_perplexity.mistake("divided by the length", hint=1)
def divided_by_the_length(*args):
    "The first token is not predicted: a sentence of n tokens has n - 1 predictions."
    return _perplexity(*args, count=lambda n: n)


@ragged_perplexity.mistake("divided by the longest", hint=2)
def divided_by_the_longest(*args):
    "Each sentence is divided by its own number of predictions."
    return _perplexity(*args, count=lambda n: n.max() - 1)


@ragged_perplexity.mistake("one perplexity for the batch", hint=1)
def one_perplexity_for_the_batch(*args):
    "Each sentence has its own."
    return _perplexity(*args, rows=False)


@ragged_perplexity.mistake("a softmax that underflows", hint=4)
def a_softmax_that_underflows(*args):
    "A probability of e^-120 is 0 in float32, and its logarithm infinite."
    return _perplexity(*args, logs=lambda x: x.softmax(-1).log())


@ragged_perplexity.mistake("the mean cost, not its exponential", hint=1)
def the_mean_cost_itself(*args):
    "The perplexity is exp of the mean cost."
    return _perplexity(*args, exp=lambda x: x)


@ragged_perplexity.mistake("two to the mean", hint=1)
def two_to_the_mean(*args):
    "Costs in nats go with e, costs in bits with 2."
    return _perplexity(*args, exp=lambda x: 2**x)


@ragged_perplexity.mistake("16 bits all the way", hint=4)
def sixteen_bits_all_the_way(*args):
    "A sum of logarithms in bfloat16 has an error that exp makes larger: go to float32 first."
    return _perplexity(*args, wide=False)


gotcha_accuracy = Exercise(
    "gotcha_accuracy",
    chapter="28_bias",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "usual = the pronoun is that of the occupation's majority: (percent_female > 50) == "
        "(pronoun == 0).",
        "If the occupation is meant, a gotcha is a sentence whose pronoun is not the usual "
        "one. If the other person is meant, it is one whose pronoun is.",
        "Leave out 'they' and occupations with exactly 50 %, then take the mean of `right` in"
        " four groups.",
    ),
)


@gotcha_accuracy.cases
def cases_of_gotcha_accuracy(seed):
    random = torch.Generator().manual_seed(seed)
    for extra in (0, 5, 20):
        grid = torch.cartesian_prod(
            torch.arange(3.0), torch.arange(2.0), torch.tensor([8, 49.5, 50, 50.5, 93])
        )
        grid = torch.cat([grid, grid, grid[torch.randint(len(grid), (extra,), generator=random)]])
        grid = grid[torch.randperm(len(grid), generator=random)]
        percent, (pronoun, answer) = grid[:, 2], grid[:, :2].long().unbind(1)
        chance = (2 + 3 * pronoun + 2 * answer + (percent > 50)) / 14
        yield (
            (torch.rand(len(grid), generator=random) < chance).float(),
            pronoun,
            answer,
            percent,
        )


def _gotchas(
    right, pronoun, answer, percent, *, turned=True, most=50, even=True, they=False, only=False
):
    "The four accuracies; each keyword is something that is easily wrong."
    usual = (percent > most) == (pronoun == 0)
    gotcha = (usual == (answer == 1)) if turned else ~usual
    if only:
        gotcha = ~usual & (answer == 0)
    counted = (percent != 50) if even else torch.ones_like(gotcha)
    rows = [(pronoun == 0) & counted, ((pronoun > 0) if they else (pronoun == 1)) & counted]
    mean = lambda row: torch.stack([right[row & kind].mean() for kind in (gotcha, ~gotcha)])
    return torch.stack([mean(row) for row in rows])


@gotcha_accuracy.reference
def truth_of_gotcha_accuracy(right, pronoun, answer, percent_female):
    return _gotchas(right, pronoun, answer, percent_female)


@gotcha_accuracy.invariant("he for she and men for women exchanges the rows")
def he_for_she_and_men_for_women_exchanges_the_rows(seen):
    right, pronoun, answer, percent = next(gotcha_accuracy.make_cases(5))
    other = torch.tensor([1, 0, 2])[pronoun]
    one, two = (
        seen(right, pronoun, answer, percent).value,
        seen(right, other, answer, 100 - percent).value,
    )
    return torch.allclose(one, two.flip(0), atol=1e-6)


@gotcha_accuracy.right
def with_masks(right, pronoun, answer, percent_female):
    return _gotchas(right, pronoun, answer, percent_female)


@gotcha_accuracy.right
def row_by_row(right, pronoun, answer, percent_female):
    cells = {(p, g): [] for p in (0, 1) for g in (True, False)}
    for score, p, a, f in zip(
        right.tolist(), pronoun.tolist(), answer.tolist(), percent_female.tolist()
    ):
        if p == 2 or f == 50:
            continue
        women = f > 50
        fits = women if p == 0 else not women
        cells[p, (not fits) if a == 0 else fits].append(score)
    mean = lambda scores: sum(scores) / len(scores)
    return torch.tensor([[mean(cells[p, g]) for g in (True, False)] for p in (0, 1)])


@gotcha_accuracy.mistake("only where the occupation is meant", hint=2)
def only_where_the_occupation_is_meant(right, pronoun, answer, percent_female):
    """So the paper's sentence says, not its numbers: the other person's sentences have gotchas,
    too."""
    return _gotchas(right, pronoun, answer, percent_female, only=True)


@gotcha_accuracy.mistake("not turned round", hint=2)
def not_turned_round(right, pronoun, answer, percent_female):
    "Where the other person is meant, the usual pronoun is the trap."
    return _gotchas(right, pronoun, answer, percent_female, turned=False)


@gotcha_accuracy.mistake("rows exchanged", hint=3)
def rows_exchanged(right, pronoun, answer, percent_female):
    "The first row is for she, code 0."
    return _gotchas(right, pronoun, answer, percent_female).flip(0)


@gotcha_accuracy.mistake("columns exchanged", hint=3)
def columns_exchanged(right, pronoun, answer, percent_female):
    "The first column is for the gotchas."
    return _gotchas(right, pronoun, answer, percent_female).flip(1)


@gotcha_accuracy.mistake("they counted as he", hint=3)
def they_counted_as_he(right, pronoun, answer, percent_female):
    "Code 2 is they: it has no majority to be unlike, and is left out."
    return _gotchas(right, pronoun, answer, percent_female, they=True)


@gotcha_accuracy.mistake("a percentage taken for a share", hint=1)
def a_percentage_taken_for_a_share(right, pronoun, answer, percent_female):
    "percent_female goes from 0 to 100: the half is 50, not 0.5."
    return _gotchas(right, pronoun, answer, percent_female, most=0.5)


@gotcha_accuracy.mistake("even occupations counted", hint=3)
def even_occupations_counted(right, pronoun, answer, percent_female):
    "With exactly 50 % nobody is in the majority: leave these out."
    return _gotchas(right, pronoun, answer, percent_female, even=False)


@gotcha_accuracy.mistake("errors, not accuracies", hint=3)
def errors_not_accuracies(right, pronoun, answer, percent_female):
    "`right` is 1 for a right answer: its mean is the accuracy."
    return 1 - _gotchas(right, pronoun, answer, percent_female)


expected_maximum = Exercise(
    "expected_maximum",
    chapter="28_bias",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 7, "invariant": 3},
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
