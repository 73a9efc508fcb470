"What the judge knows of `cheapest_life`. Spoilers ahead."

import math

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.economics.common import _LAW, FACTOR, _golden, laws, loss_of
from llama_course.classroom.judges.economics.compute_optimal import optimal

cheapest_life = Exercise(
    "cheapest_life",
    chapter="02_economics",
    kind="extend",
    minutes=30,
    difficulty=3,
    factor=FACTOR,
    points={"values": 6, "laws": 4},
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
