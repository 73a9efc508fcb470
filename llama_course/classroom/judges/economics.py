"""What the judge knows of the five exercises in `exercises/02_economics.ipynb`. Spoilers from here
on."""

import math
import random
from itertools import product

import numpy as np

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


fit_loss_law = Exercise(
    "fit_loss_law",
    chapter="02_economics",
    kind="rebuild",
    minutes=30,
    difficulty=3,
    factor=FACTOR,
    points={"values": 6, "invariant": 4},
    hints=(
        "With alpha and beta given, the law is a sum of three known columns, 1, N^-alpha and "
        "D^-beta, times three unknown numbers E, A and B: linear least squares.",
        "Two loops over the exponents. In each: solve for E, A and B (np.linalg.lstsq), add up "
        "the squares of what is left, and keep the pair with the least.",
        "X = np.stack([np.ones(n), N ** -alpha, D ** -beta], 1); solution = "
        "np.linalg.lstsq(X, loss, rcond=None)[0]; left = ((X @ solution - loss) ** 2).sum().",
    ),
)

GRID = (0.2, 0.3, 0.4, 0.5, 0.6)


@fit_loss_law.cases
def cases_of_fit_loss_law(seed):
    for i in range(4):
        draw = random.Random(seed + 300 + i)
        alpha, beta = ((0.3, 0.5), (0.5, 0.4), (0.4, 0.3), (0.6, 0.2))[i]
        A, B = draw.uniform(0.5, 2) * 1e6**alpha, draw.uniform(0.5, 2) * 1e8**beta
        law = draw.uniform(1, 2), A, B, alpha, beta
        sizes = [1e5 * 2.0**k for k in range(4 + i)]
        N = [n for n in sizes for _ in range(5)]
        D = [5.0 * n * 2.0**k for n in sizes for k in range(5)]
        noise = (0.0, 0.002, 0.001, 0.004)[i]
        loss = [loss_of(n, d, *law) + draw.gauss(0, noise) for n, d in zip(N, D, strict=True)]
        yield N, D, loss, list(GRID)


def _solved(columns, y) -> tuple:  # the numbers, the sum of squares that is left
    "Least squares, by QR; each column is first scaled to a length of one."
    X, y = np.array(columns, dtype=float).T, np.array(y, dtype=float)
    size = np.sqrt((X**2).sum(0))
    Q, R = np.linalg.qr(X / size)
    found = np.linalg.solve(R, Q.T @ y) / size
    return found, float(((X @ found - y) ** 2).sum())


@fit_loss_law.reference
def fitted(N, D, loss, exponents):
    "Every pair of exponents, E, A and B by QR."
    best = math.inf, ()
    for alpha, beta in product(exponents, exponents):
        columns = [np.ones(len(N)), np.array(N) ** -alpha, np.array(D) ** -beta]
        (E, A, B), left = _solved(columns, loss)
        if left < best[0]:
            best = left, (float(E), float(A), float(B), alpha, beta)
    return best[1]


@fit_loss_law.right
def by_the_normal_equations(N, D, loss, exponents):
    def solve(alpha, beta):
        X = np.array([[1.0, (n / 1e6) ** -alpha, (d / 1e8) ** -beta] for n, d in zip(N, D)])
        E, A, B = np.linalg.solve(X.T @ X, X.T @ np.array(loss))
        left = sum((X @ [E, A, B] - np.array(loss)) ** 2)
        return left, [E, A * 1e6**alpha, B * 1e8**beta, alpha, beta]

    return min((solve(a, b) for a in exponents for b in exponents), key=lambda pair: pair[0])[1]


@fit_loss_law.right
def by_lstsq(N, D, loss, exponents):
    N, D, y, best = np.array(N), np.array(D), np.array(loss), None
    for alpha in exponents:
        for beta in exponents:
            X = np.stack([np.ones(len(N)), N**-alpha, D**-beta], 1)
            found = np.linalg.lstsq(X, y, rcond=None)[0]
            left = np.linalg.norm(X @ found - y)
            if best is None or left < best[0]:
                best = left, (*found, alpha, beta)
    return best[1]


def _points() -> tuple:
    "Points without noise of a law with exponents 0.4 and 0.3."
    N = [n for n in (1e5, 3e5, 1e6) for _ in range(4)]
    D = [n * ratio for n in (1e5, 3e5, 1e6) for ratio in (5, 20, 80, 320)]
    return N, D, [loss_of(n, d, 1.4, 300.0, 200.0, 0.4, 0.3) for n, d in zip(N, D, strict=True)]


@fit_loss_law.invariant("points without noise: the law that they were made by")
def points_without_noise(seen):
    N, D, loss = _points()
    found = seen(N, D, loss, list(GRID)).value
    wanted = 1.4, 300.0, 200.0, 0.4, 0.3
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, wanted, strict=True))


@fit_loss_law.invariant("half a nat more everywhere is half a nat more of E, and nothing else")
def half_a_nat_more(seen):
    N, D, loss = _points()
    first = seen(N, D, loss, list(GRID)).value
    more = seen(N, D, [y + 0.5 for y in loss], list(GRID)).value
    wanted = [first[0] + 0.5, *first[1:]]
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(more, wanted, strict=True))


def _grid(N, D, loss, pairs, columns_of, law_of):
    "The best of some pairs of exponents, with a place for each mistake."
    best = math.inf, ()
    for alpha, beta in pairs:
        found, left = _solved(columns_of(np.array(N), np.array(D), alpha, beta), loss)
        if left < best[0]:
            best = left, tuple(float(x) for x in law_of(found, alpha, beta))
    return best[1]


def _all(N, D, alpha, beta):
    return [np.ones(len(N)), N**-alpha, D**-beta]


def _as_it_is(found, alpha, beta):
    return *found, alpha, beta


@fit_loss_law.mistake("E is left out", hint=1)
def e_is_left_out(N, D, loss, exponents):
    "E is one of the unknown numbers: its column is made of ones."
    law_of = lambda found, alpha, beta: (0.0, *found, alpha, beta)
    columns = lambda *given: _all(*given)[1:]
    return _grid(N, D, loss, product(exponents, exponents), columns, law_of)


@fit_loss_law.mistake("E is the lowest loss", hint=1)
def e_is_the_lowest_loss(N, D, loss, exponents):
    """E is what an endlessly large model would reach on endless text; it lies below every loss that
    was measured, and is fitted like A and B."""
    E = min(loss)
    law_of = lambda found, alpha, beta: (E, *found, alpha, beta)
    columns = lambda *given: _all(*given)[1:]
    return _grid(N, D, [y - E for y in loss], product(exponents, exponents), columns, law_of)


@fit_loss_law.mistake("one exponent for both", hint=2)
def one_exponent_for_both(N, D, loss, exponents):
    "alpha and beta need not be equal: try every pair."
    return _grid(N, D, loss, zip(exponents, exponents, strict=True), _all, _as_it_is)


@fit_loss_law.mistake("N and D exchanged", hint=1)
def n_and_d_exchanged(N, D, loss, exponents):
    "A and alpha belong to the parameters N, B and beta to the tokens D."
    E, A, B, alpha, beta = fitted(N, D, loss, exponents)
    return E, B, A, beta, alpha


@fit_loss_law.mistake("A and B exchanged", hint=3)
def a_and_b_exchanged(N, D, loss, exponents):
    "The result is (E, A, B, alpha, beta), A with N and B with D."
    E, A, B, alpha, beta = fitted(N, D, loss, exponents)
    return E, B, A, alpha, beta


@fit_loss_law.mistake("the loss grows with size", hint=3)
def the_loss_grows_with_size(N, D, loss, exponents):
    "The columns are N^-alpha and D^-beta: without the minus both terms would grow."
    columns = lambda N, D, alpha, beta: [np.ones(len(N)), N**alpha, D**beta]
    return _grid(N, D, loss, product(exponents, exponents), columns, _as_it_is)


@fit_loss_law.mistake("constants for millions", hint=3)
def constants_for_millions(N, D, loss, exponents):
    """With N and D in millions A and B are others: multiply them by 1e6^alpha and 1e6^beta in the
    end."""
    return fitted([n / 1e6 for n in N], [d / 1e6 for d in D], loss, exponents)


@fit_loss_law.mistake("the exponents first", hint=3)
def the_exponents_first(N, D, loss, exponents):
    "The result is (E, A, B, alpha, beta), in this order."
    E, A, B, alpha, beta = fitted(N, D, loss, exponents)
    return alpha, beta, E, A, B


which_to_serve = Exercise(
    "which_to_serve",
    chapter="02_economics",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "First quality, then cost. The difference of two losses has the standard error "
        "sqrt(s0² + s1²).",
        "If the losses differ by more than two such errors, the better model is the answer, and "
        "nothing else is looked at. Otherwise the models count as equally good.",
        "Cost of a life: training + serving * tokens / 1e6. Work out which is cheaper at the "
        "lowest and at the highest demand. The costs are straight lines: whoever is cheaper at "
        "both ends is cheaper between them.",
    ),
)

# loss, its standard error, seconds of training, seconds of serving per million tokens
_BIG, _SMALL = (2.0, 0.005, 1000.0, 40.0), (2.004, 0.004, 3000.0, 10.0)  # equal at 66.7M tokens


@which_to_serve.cases
def cases_of_which_to_serve(seed):
    draw = random.Random(seed + 400).uniform
    scale = draw(0.5, 2)  # of all costs
    a = (*_BIG[:2], _BIG[2] * scale, _BIG[3] * scale)
    b = (*_SMALL[:2], _SMALL[2] * scale, _SMALL[3] * scale)
    yield a, b, (1e6, draw(1e7, 5e7))  # the first, at both ends
    yield a, b, (draw(8e7, 2e8), 1e9)  # the second
    yield a, b, (draw(1e6, 5e7), draw(8e7, 3e8))  # it depends, the middle is beyond
    yield b, a, (draw(1e6, 3e7), draw(8e7, 9e7))  # it depends, the middle is before
    worse = (2.5, 0.004, b[2], b[3])
    yield a, worse, (1e9, 2e9)  # cheaper, and not as good
    yield worse, a, (1e9, 2e9)
    yield (2.0, 0.005, a[2], a[3]), (1.988, 0.005, 9e9, 99.0), (1e8, 1e9)  # 1.7 standard errors
    yield (2.0, 0.005, a[2], a[3]), (1.98, 0.006, 9e9, 99.0), (1e8, 1e9)  # 2.6, though not in sum
    yield a, (2.0, 0.001, 900.0 * scale, 39.0 * scale), (0.0, 1e6)  # cheaper in every way


@which_to_serve.reference
def truth_of_which_to_serve(first, second, demand):
    return _choice(first, second, demand)


def _choice(first, second, demand, *, errors=2.0, spread=math.hypot, training=1.0, per=1e6):
    "The rule, with a place for each mistake."
    if abs(first[0] - second[0]) > errors * spread(first[1], second[1]):
        return int(second[0] < first[0])
    ends = {
        int(training * second[2] + second[3] * T / per < training * first[2] + first[3] * T / per)
        for T in demand
    }
    return ends.pop() if len(ends) == 1 else None


@which_to_serve.right
def by_both_ends(first, second, demand):
    (loss0, s0, train0, serve0), (loss1, s1, train1, serve1) = first, second
    if (loss0 - loss1) ** 2 > 4 * (s0**2 + s1**2):
        return 0 if loss0 < loss1 else 1
    more = [(train1 - train0) * 1e6 + (serve1 - serve0) * tokens for tokens in demand]
    if all(m < 0 for m in more):
        return 1
    return None if any(m < 0 for m in more) else 0


@which_to_serve.right
def by_the_crossover(first, second, demand):
    error = math.sqrt(first[1] ** 2 + second[1] ** 2)
    if abs(second[0] - first[0]) / error > 2:
        return int(first[0] > second[0])
    cheap = int(second[3] < first[3])  # to serve
    models = first, second
    saved = models[1 - cheap][3] - models[cheap][3]
    more = models[cheap][2] - models[1 - cheap][2]
    crossover = 1e6 * more / saved if saved else math.copysign(math.inf, more)
    if demand[0] > crossover:
        return cheap
    return 1 - cheap if demand[1] <= crossover else None


@which_to_serve.invariant("the models in the other order: the other answer")
def the_models_in_the_other_order(seen):
    for T in ((1e6, 2e6), (1e9, 2e9), (1e6, 1e9)):
        one, other = seen(_BIG, _SMALL, T).value, seen(_SMALL, _BIG, T).value
        if (one is None) != (other is None) or one is not None and one + other != 1:
            return False
    return True


@which_to_serve.invariant("all costs in minutes: the same answer")
def all_costs_in_minutes(seen):
    minutes = [(*model[:2], model[2] / 60, model[3] / 60) for model in (_BIG, _SMALL)]
    ranges = (1e6, 2e6), (1e9, 2e9), (1e6, 1e9)
    return all(seen(_BIG, _SMALL, T).value == seen(*minutes, T).value for T in ranges)


@which_to_serve.mistake("training is left out", hint=3)
def training_is_left_out(first, second, demand):
    "The cost of a life has two parts: training, once, and serving, per token."
    return _choice(first, second, demand, training=0.0)


@which_to_serve.mistake("the middle of the demand decides", hint=3)
def the_middle_of_the_demand_decides(first, second, demand):
    """If the crossover lies within the expected demand, the answer depends on a number that nobody
    has yet: None."""
    return _choice(first, second, (sum(demand) / 2,))


@which_to_serve.mistake("tokens counted as millions", hint=3)
def tokens_counted_as_millions(first, second, demand):
    "The demand is in tokens, serving costs seconds per million of them."
    return _choice(first, second, demand, per=1.0)


@which_to_serve.mistake("the lower loss always wins", hint=1)
def the_lower_loss_always_wins(first, second, demand):
    "A difference within two standard errors is no difference: then the cost decides."
    return _choice(first, second, demand, errors=0.0)


@which_to_serve.mistake("the loss is not looked at", hint=2)
def the_loss_is_not_looked_at(first, second, demand):
    "A cheaper model that is clearly worse is no answer: only equals are compared by cost."
    return _choice(first, second, demand, errors=math.inf)


@which_to_serve.mistake("one standard error is enough", hint=2)
def one_standard_error_is_enough(first, second, demand):
    "Differences of one standard error come by chance in one case of three; two are asked for."
    return _choice(first, second, demand, errors=1.0)


@which_to_serve.mistake("the errors are added", hint=1)
def the_errors_are_added(first, second, demand):
    "Independent errors add up in squares: sqrt(s0² + s1²) is less than s0 + s1."
    return _choice(first, second, demand, spread=lambda a, b: a + b)


@which_to_serve.mistake("the highest demand decides", hint=3)
def the_highest_demand_decides(first, second, demand):
    "Both ends of the expected demand count: if they disagree, the answer is None."
    return _choice(first, second, demand[1:])
