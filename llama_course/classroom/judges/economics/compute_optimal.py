"What the judge knows of `compute_optimal`. Spoilers ahead."

import math

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.economics.common import FACTOR, _golden, laws, loss_of

compute_optimal = Exercise(
    "compute_optimal",
    chapter="02_economics",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    factor=FACTOR,
    points={"values": 6, "laws": 4},
    hints=(
        "On the budget, D is not free: D = C / (6 N). Put it into the law; only N is left.",
        "At the minimum the derivative is zero: alpha A / N^alpha = beta B / D^beta. Both "
        "parts of the loss weigh the same, once each is multiplied by its exponent.",
        "N = G (C/6)^(beta/(alpha+beta)) with G = (alpha A / (beta B))^(1/(alpha+beta)); D = "
        "C / (6 N).",
    ),
)


@compute_optimal.cases
def cases_of_compute_optimal(seed):
    for i, (_, *law) in enumerate(laws(seed, 5)):
        yield 10.0 ** (18 + 2 * i), *law


@compute_optimal.reference
def optimal(flops, A, B, alpha, beta):
    "By bisection on the derivative along the budget: no closed form."
    low, high = 0.0, 80.0  # logarithms of N
    for _ in range(200):
        N = math.exp((low + high) / 2)
        falls = alpha * A / N**alpha > beta * B / (flops / 6 / N) ** beta
        low, high = (math.log(N), high) if falls else (low, math.log(N))
    return N, flops / 6 / N


def _closed(flops, A, B, alpha, beta, six=6.0):
    "The closed form."
    N = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / six) ** (beta / (alpha + beta))
    return N, flops / six / N


@compute_optimal.right
def by_the_closed_form(flops, A, B, alpha, beta):
    return _closed(flops, A, B, alpha, beta)


@compute_optimal.right
def by_golden_section(flops, A, B, alpha, beta):
    cost = lambda n: loss_of(math.exp(n), flops / 6 / math.exp(n), 0.0, A, B, alpha, beta)
    N = math.exp(_golden(cost, 5.0, 60.0))
    return [N, flops / (6 * N)]


@compute_optimal.invariant("the budget is spent: 6 N D is C")
def the_budget_is_spent(seen):
    N, D = seen(5.76e23, 406.4, 410.7, 0.34, 0.28).value
    return math.isclose(6 * N * D, 5.76e23, rel_tol=1e-6)


@compute_optimal.invariant("no other size does better on the same budget")
def no_other_size_does_better_on_the_same_budget(seen):
    A, B, alpha, beta, C = 500.0, 1500.0, 0.35, 0.36, 1e22
    N, _ = seen(C, A, B, alpha, beta).value
    at = lambda n: loss_of(n, C / 6 / n, 1.7, A, B, alpha, beta)
    return at(N) <= min(at(0.97 * N), at(1.03 * N))


@compute_optimal.invariant(
    "size and data are treated alike: with the constants exchanged, so are N and D"
)
def size_and_data_are_treated_alike(seen):
    N, D = seen(1e23, 400.0, 2000.0, 0.34, 0.3).value
    d, n = seen(1e23, 2000.0, 400.0, 0.3, 0.34).value
    return math.isclose(n, N, rel_tol=1e-3) and math.isclose(d, D, rel_tol=1e-3)


@compute_optimal.mistake("twenty tokens a parameter", hint=1)
def twenty_tokens_a_parameter(flops, A, B, alpha, beta):
    "The rule of thumb ignores the constants that you are given."
    N = math.sqrt(flops / 120)
    return N, 20 * N


@compute_optimal.mistake("the six is forgotten", hint=1)
def the_six_is_forgotten(flops, A, B, alpha, beta):
    "Training costs 6 operations for each parameter and token, not one."
    return _closed(flops, A, B, alpha, beta, six=1.0)


@compute_optimal.mistake("two operations instead of six", hint=1)
def two_operations_instead_of_six(flops, A, B, alpha, beta):
    "2 N D is the forward pass; with the backward pass it is 6 N D."
    return _closed(flops, A, B, alpha, beta, six=2.0)


@compute_optimal.mistake("the exponents exchanged", hint=3)
def the_exponents_exchanged(flops, A, B, alpha, beta):
    """N grows with the budget to the beta/(alpha+beta): the better data works, the more goes
    into size."""
    G, both = (alpha * A / (beta * B)) ** (1 / (alpha + beta)), alpha + beta
    N = G * (flops / 6) ** (alpha / both)
    return N, flops / 6 / N


@compute_optimal.mistake("G upside down", hint=3)
def g_upside_down(flops, A, B, alpha, beta):
    "G = (alpha A / (beta B))^(1/(alpha+beta)) multiplies N and divides D."
    N = (beta * B / (alpha * A)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    return N, flops / 6 / N


@compute_optimal.mistake("both parts of the loss equal", hint=2)
def both_parts_of_the_loss_equal(flops, A, B, alpha, beta):
    """A/N^alpha = B/D^beta is not the minimum: what must be equal are their slopes, alpha and
    beta included."""
    N = (A / B) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    return N, flops / 6 / N


@compute_optimal.mistake("half of the budget's exponent each", hint=3)
def half_of_the_budgets_exponent_each(flops, A, B, alpha, beta):
    "N and D grow alike only if alpha = beta."
    N = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (flops / 6) ** 0.5
    return N, flops / 6 / N


@compute_optimal.mistake("tokens first", hint=1)
def tokens_first(flops, A, B, alpha, beta):
    "The result is (N, D), the size first."
    return _closed(flops, A, B, alpha, beta)[::-1]
