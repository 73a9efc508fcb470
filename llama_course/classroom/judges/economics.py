"""What the judge knows of the three exercises in `exercises/02_economics.ipynb`. Spoilers from
here on."""

import math
import random

from llama_course.classroom.exercise import Exercise

FACTOR = 840.0  # of 2⁻²³: one in ten thousand


def laws(seed: int, how_many: int) -> list:
    "Constants (E, A, B, alpha, beta) of loss laws."
    draw = random.Random(seed).uniform
    return [
        (
            draw(1.2, 1.9),
            draw(200, 900),
            draw(300, 3000),
            draw(0.30, 0.36),
            draw(0.25, 0.29) + 0.1 * (i % 2),
        )
        for i in range(how_many)
    ]


def loss_of(N: float, D: float, E: float, A: float, B: float, alpha: float, beta: float) -> float:
    "The law."
    return E + A / N**alpha + B / D**beta


compute_optimal = Exercise(
    "compute_optimal",
    chapter="02_economics",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    factor=FACTOR,
    points={"values": 6, "invariant": 4},
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


def _golden(f, low: float, high: float) -> float:
    "Where a function with one valley is lowest."
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    for _ in range(200):
        if f(a) < f(b):
            high, a, b = b, b - ratio * (b - low), a
        else:
            low, a, b = a, b, a + ratio * (high - a)
    return (low + high) / 2


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


cheapest_life = Exercise(
    "cheapest_life",
    chapter="02_economics",
    kind="extend",
    minutes=30,
    difficulty=3,
    factor=FACTOR,
    points={"values": 6, "invariant": 4},
    hints=(
        "Two unknowns, one equation: the loss. For each N the law says how many tokens D are "
        "needed, if any. So the bill is a function of N alone, with one valley.",
        "The bill is 6 N D + price * 2 N T. On the curve of equal loss its minimum is where "
        "alpha A / N^alpha = (1 + price T / (3 D)) beta B / D^beta.",
        "Put A / N^alpha = loss - E - B / D^beta into that. One side falls with D, the other "
        "rises: halve an interval of log D two hundred times. Then N = (A / (loss - E - "
        "B/D^beta))^(1/alpha).",
    ),
)


@cheapest_life.cases
def cases_of_cheapest_life(seed):
    for i, law in enumerate(laws(seed + 100, 5)):
        loss = loss_of(2e10 * 3.0**i, 1e12, *law)
        yield loss, (0.0, 1e11, 2e12, 3e13, 1e12)[i], (1.0, 4.0, 0.5, 2.0, 10.0)[i], *law


@cheapest_life.reference
def life(loss, served, price, E, A, B, alpha, beta):
    "By bisection of log D."
    low, high = 0.0, 140.0
    for _ in range(300):
        D = math.exp((low + high) / 2)
        size = loss - E - B / D**beta
        enough = alpha * size > (1 + price * served / (3 * D)) * beta * B / D**beta
        low, high = (low, math.log(D)) if enough else (math.log(D), high)
    return (A / size) ** (1 / alpha), D


@cheapest_life.right
def by_bisection(*args):
    return list(life(*args))


@cheapest_life.right
def by_golden_section_over_size(loss, served, price, E, A, B, alpha, beta):
    smallest = (A / (loss - E)) ** (1 / alpha)  # with no end of data

    def tokens(n):  # n: logarithm of how much larger than the smallest
        return (B / (loss - E - A / (smallest * math.exp(n)) ** alpha)) ** (1 / beta)

    n = _golden(lambda n: math.exp(n) * (6 * tokens(n) + 2 * price * served), 1e-3, 12.0)
    return smallest * math.exp(n), tokens(n)


_LAW = (1.69, 406.4, 410.7, 0.336, 0.283)


@cheapest_life.invariant("nobody uses it: Chinchilla's model")
def nobody_uses_it(seen):
    N, D = seen(1.947, 0.0, 5.0, *_LAW).value
    want = optimal(6 * N * D, *_LAW[1:])
    return math.isclose(N, want[0], rel_tol=1e-3) and math.isclose(D, want[1], rel_tol=1e-3)


@cheapest_life.invariant("2T tokens, price 1: 70.96 % of the parameters, 146.77 % of the tokens")
def two_trillion_tokens_at_price_one(seen):
    (N, D), (n, d) = seen(1.947, 0.0, 1.0, *_LAW).value, seen(1.947, 2e12, 1.0, *_LAW).value
    return abs(n / N - 0.7096) < 2e-4 and abs(d / D - 1.4677) < 2e-4


@cheapest_life.invariant(
    "half the tokens at twice the price are the same bill, and the quality is reached"
)
def half_the_tokens_at_twice_the_price_are_the_same_bill(seen):
    (N, _), (n, d) = seen(1.95, 4e12, 1.5, *_LAW).value, seen(1.95, 2e12, 3.0, *_LAW).value
    return math.isclose(N, n, rel_tol=1e-4) and abs(loss_of(n, d, *_LAW) - 1.95) < 1e-5


@cheapest_life.mistake("serving is left out", hint=2)
def serving_is_left_out(loss, served, price, *law):
    "That is the model that is cheapest to train; it is the right one only if nobody uses it."
    return life(loss, 0.0, price, *law)


@cheapest_life.mistake("the price is left out", hint=2)
def the_price_is_left_out(loss, served, price, *law):
    "An operation of serving costs `price` operations of training."
    return life(loss, served, 1.0, *law)


@cheapest_life.mistake("the price divides", hint=2)
def the_price_divides(loss, served, price, *law):
    "A higher price makes serving dearer: it multiplies 2 N T."
    return life(loss, served, 1 / price, *law)


@cheapest_life.mistake("six operations to serve", hint=2)
def six_operations_to_serve(loss, served, price, *law):
    "Serving has no backward pass: 2 operations for each parameter and token."
    return life(loss, 3 * served, price, *law)


@cheapest_life.mistake("tokens first", hint=1)
def tokens_first_in_cheapest_life(loss, served, price, *law):
    "The result is (N, D), the size first."
    return life(loss, served, price, *law)[::-1]


@cheapest_life.mistake("the quality is not reached", hint=3)
def the_quality_is_not_reached(loss, served, price, *law):
    """The size is that of the whole life, the tokens are Chinchilla's: together they miss the
    loss."""
    return (life(loss, served, price, *law)[0], life(loss, 0.0, price, *law)[1])


@cheapest_life.mistake("E is forgotten", hint=3)
def e_is_forgotten(loss, served, price, E, *law):
    "E belongs to the loss that no model can avoid: subtract it first."
    return life(loss, served, price, 0.0, *law)


break_even_tokens = Exercise(
    "break_even_tokens",
    chapter="02_economics",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    factor=FACTOR,
    points={"values": 7, "invariant": 3},
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
