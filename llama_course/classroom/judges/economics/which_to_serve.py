"What the judge knows of `which_to_serve`. Spoilers ahead."

import math
import random

from llama_course.classroom.exercise import Exercise

which_to_serve = Exercise(
    "which_to_serve",
    chapter="02_economics",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
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
    # exactly two standard errors, 2 * hypot(0.375, 0.5), are no difference
    yield (2.0, 0.375, 1.0, 1.0), (3.25, 0.5, 0.5, 0.5), (1e6, 2e6)
    yield a, a, (1e6, 1e9)  # equal in all: the first
    even, odd = (2.0, 0.005, 1000.0, 40.0), (2.0, 0.005, 3000.0, 20.0)
    for demand in ((1e8, 1e8), (1e8, 2e8), (5e7, 1e8)):  # both cost the same at 1e8 tokens
        yield even, odd, demand
        yield odd, even, demand


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
    saved, more = first[3] - second[3], second[2] - first[2]  # by serving; by training
    if not saved:
        return int(more < 0)
    crossover = 1e6 * more / saved
    beyond = [tokens > crossover if saved > 0 else tokens < crossover for tokens in demand]
    return int(beyond[0]) if beyond[0] == beyond[1] else None


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


@which_to_serve.mistake("equal costs elect the second", hint=3)
def equal_costs_elect_the_second(first, second, demand):
    "The second must be strictly cheaper: where both cost the same, the first is served."
    answer = _choice(second, first, demand)
    return answer if answer is None else 1 - answer


@which_to_serve.mistake("the errors are added", hint=1)
def the_errors_are_added(first, second, demand):
    "Independent errors add up in squares: sqrt(s0² + s1²) is less than s0 + s1."
    return _choice(first, second, demand, spread=lambda a, b: a + b)


@which_to_serve.mistake("the highest demand decides", hint=3)
def the_highest_demand_decides(first, second, demand):
    "Both ends of the expected demand count: if they disagree, the answer is None."
    return _choice(first, second, demand[1:])
