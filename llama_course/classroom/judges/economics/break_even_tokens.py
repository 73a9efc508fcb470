"What the judge knows of `break_even_tokens`. Spoilers ahead."

import math

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.economics.common import _LAW, FACTOR, laws, loss_of
from llama_course.classroom.judges.economics.compute_optimal import optimal

break_even_tokens = Exercise(
    "break_even_tokens",
    chapter="02_economics",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    factor=FACTOR,
    points={"values": 7, "laws": 3},
    hints=(
        "The models are equally good, not equally trained: the law says how many tokens each "
        "of them needs.",
        "Bills: 6 N D + 2 N T for both. They are equal where T = 3 (n d - N D) / (N - n), "
        "small letters for the small model.",
        "Three cases. The small one cannot reach the loss (loss - E - A/n^alpha is not "
        "positive): math.inf. It is cheaper to train as well: 0.0. Otherwise the formula. E "
        "belongs to the law.",
    ),
)


def _needs(N: float, loss: float, E, A, B, alpha, beta) -> float:
    "Tokens that a model needs for the loss."
    rest = loss - E - A / N**alpha
    return (B / rest) ** (1 / beta) if rest > 0 else math.inf


@break_even_tokens.cases
def cases_of_break_even_tokens(seed):
    law = laws(seed + 200, 1)[0]
    for flops, size, ratio in (
        (1e21, 1.0, 0.5),
        (1e22, 0.8, 0.6),
        (1e23, 1.2, 0.5),
        (1e24, 2.0, 0.2),
    ):
        N, D = optimal(flops, *law[1:])
        yield size * N, size * ratio * N, loss_of(N, D, *law), *law
    yield 65e9, 6e9, law[0] + 0.5 * law[1] / 6e9 ** law[3], *law  # out of the small one's reach
    N, D = optimal(1e22, *law[1:])
    yield 9 * N, N, loss_of(N, D, *law), *law  # the big one is too big even to train


@break_even_tokens.reference
def break_even(big, small, loss, E, A, B, alpha, beta):
    law = (E, A, B, alpha, beta)
    more = small * _needs(small, loss, *law) - big * _needs(big, loss, *law)
    return max(0.0, 3 * more / (big - small))


@break_even_tokens.right
def by_the_definition(*args):
    return float(break_even(*args))


@break_even_tokens.right
def by_the_bills(big, small, loss, *law):
    bills = [6 * N * _needs(N, loss, *law) for N in (big, small)]
    if bills[1] == math.inf:
        return math.inf
    return (bills[1] - bills[0]) / (2 * big - 2 * small) if bills[1] > bills[0] else 0.0


@break_even_tokens.invariant("at that number of tokens the two bills are equal")
def at_that_number_of_tokens_the_two_bills_are_equal(seen):
    big, small, loss = 33e9, 13e9, 1.95
    T = seen(big, small, loss, *_LAW).value
    bills = [6 * N * _needs(N, loss, *_LAW) + 2 * N * T for N in (big, small)]
    return math.isclose(*bills, rel_tol=1e-6)


@break_even_tokens.invariant("a model that cannot become so good never breaks even")
def a_model_that_cannot_become_so_good_never_breaks_even(seen):
    return seen(65e9, 1e9, 1.9, *_LAW).value == math.inf


@break_even_tokens.mistake("both on the same tokens", hint=1)
def both_on_the_same_tokens(big, small, loss, *law):
    "The small model needs more tokens than the big one for the same loss."
    D = _needs(big, loss, *law)
    return max(0.0, 3 * (small * D - big * D) / (big - small))


@break_even_tokens.mistake("tokens instead of operations", hint=2)
def tokens_instead_of_operations(big, small, loss, *law):
    "Compare 6 N D, not D: a token costs the big model more."
    return max(0.0, 3 * (_needs(small, loss, *law) - _needs(big, loss, *law)))


@break_even_tokens.mistake("training and serving cost alike", hint=2)
def training_and_serving_cost_alike(big, small, loss, *law):
    "A token costs 6 N to learn from and 2 N to serve: the 3 is missing."
    return break_even(big, small, loss, *law) / 3


@break_even_tokens.mistake("the small model serves for nothing", hint=2)
def the_small_model_serves_for_nothing(big, small, loss, *law):
    """What is saved with each token served is 2 (N - n), not 2 N: the small model has to be paid
    too."""
    return break_even(big, small, loss, *law) * (big - small) / big


@break_even_tokens.mistake("compared with the small model's serving", hint=2)
def compared_with_the_small_models_serving(big, small, loss, *law):
    "What is saved with each token served is 2 (N - n), not 2 n."
    return break_even(big, small, loss, *law) * (big - small) / small


@break_even_tokens.mistake("a negative number of tokens", hint=3)
def a_negative_number_of_tokens(big, small, loss, *law):
    "If the small model is cheaper to train as well, it has cost less from the first token: 0."
    return 3 * (small * _needs(small, loss, *law) - big * _needs(big, loss, *law)) / (big - small)


@break_even_tokens.mistake("a loss that the small model cannot reach", hint=3)
def a_loss_that_the_small_model_cannot_reach(big, small, loss, E, A, B, alpha, beta):
    "If loss - E - A/n^alpha is not positive, no number of tokens is enough: math.inf."
    if loss - E - A / small**alpha <= 0:
        return 0.0
    return break_even(big, small, loss, E, A, B, alpha, beta)


@break_even_tokens.mistake("the code as it was given", hint=2)
def the_code_as_it_was_given(big, small, loss, *law):
    "Nothing was repaired: it compares tokens, not operations, and divides by the wrong thing."
    return 3 * (_needs(small, loss, *law) - _needs(big, loss, *law)) * small / big
