"What the judge knows of `fit_loss_law`. Spoilers ahead."

import math
import random
from itertools import product

import numpy as np

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.economics.common import FACTOR, loss_of

fit_loss_law = Exercise(
    "fit_loss_law",
    chapter="02_economics",
    kind="rebuild",
    minutes=30,
    difficulty=3,
    factor=FACTOR,
    points={"values": 6, "laws": 4},
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
    # other lists of exponents
    law = 1.7, 3.1 * 1e6**0.33, 0.8 * 1e8**0.28, 0.33, 0.28
    yield N, D, [loss_of(n, d, *law) for n, d in zip(N, D, strict=True)], [0.47, 0.33, 0.28]
    yield N, D, [loss_of(n, d, *law) for n, d in zip(N, D, strict=True)], [0.35]  # only one


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


@fit_loss_law.mistake("exponents of one's own", hint=2)
def exponents_of_ones_own(N, D, loss, exponents):
    "The exponents to choose from are an argument."
    return fitted(N, D, loss, list(GRID))


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
