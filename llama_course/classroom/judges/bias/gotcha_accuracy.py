"What the judge knows of `gotcha_accuracy`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

gotcha_accuracy = Exercise(
    "gotcha_accuracy",
    chapter="28_bias",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "laws": 3},
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
