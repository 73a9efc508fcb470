"What the judge knows of `smallest_cluster`. Spoilers ahead."

import math
import random

from llama_course.classroom.exercise import Exercise

smallest_cluster = Exercise(
    "smallest_cluster",
    chapter="19_planner",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=84.0,
    points={"values": 6, "laws": 4},
    hints=(
        "Two loops: sizes 8, 16, 32, ... up to most; for each the tensor degrees 1, 2, 4, 8. "
        "The first size with a layout that fits and is in time is the answer.",
        "It fits if states / gpus + activations / tensor <= room. It takes tokens / (gpus * "
        "speed * efficiency[tensor]) seconds, 86,400 of them a day.",
        "Of the layouts of that size that fit, take the fastest: the one with the largest "
        "efficiency. If no size will do, return None.",
    ),
)


@smallest_cluster.cases
def cases_of_smallest_cluster(seed):
    draw = random.Random(seed).uniform
    # exactly as much as there is room for, exactly in time
    yield 80, 10, 20, 8 * 100 * 2 * 86400, 100, {1: 1.0}, 2, 64
    # efficiencies in no order; and one that is best with two ranks, though one fits as well
    yield 80.0, 40.0, 60.0, 1e11, 1000.0, {8: 0.7, 2: 0.9, 1: 1.0, 4: 0.8}, 365.0, 512
    yield 80.0, 40.0, 60.0, 1e11, 1000.0, {1: 0.8, 2: 0.9, 4: 0.7}, 365.0, 512
    yield 8.0, 1.0, 60.0, 1e11, 1000.0, {1: 1.0}, 365.0, 7  # fewer than the smallest size
    for states, days, tokens in (
        (1045, 21, 1.4e12),
        (1045, 90, 1.4e12),
        (208, 5, 1e12),
        (3000, 365, 1e11),
        (600, 365, 1e11),
        (520, 0.001, 1e12),
        (1045, 60, 1.4e12),
    ):
        efficiency = {
            1: draw(0.92, 1.0),
            2: draw(0.86, 0.92),
            4: draw(0.75, 0.86),
            8: draw(0.55, 0.75),
        }
        yield (
            states * 1.0,
            draw(90, 260),
            80.0,
            tokens,
            draw(900, 1400),
            efficiency,
            days * draw(0.9, 1.1),
            4096,
        )


@smallest_cluster.reference
def cluster(states, activations, room, tokens, speed, efficiency, days, most, sizes=None):
    "By trying all."
    gpus = 8
    while gpus <= most:
        fitting = [t for t in efficiency if states / gpus + activations / t <= room]
        if fitting:
            tensor = max(fitting, key=efficiency.get)
            taken = tokens / (gpus * speed * efficiency[tensor]) / 86400
            if taken <= days:
                return gpus, tensor, taken
        gpus *= 2
    return None


smallest_cluster.right(cluster)


@smallest_cluster.right
def over_all_clusters(states, activations, room, tokens, speed, efficiency, days, most):
    found = []
    for gpus in (8 * 2**i for i in range(40)):
        for tensor, share in efficiency.items():
            taken = tokens / gpus / speed / share / 3600 / 24
            if gpus <= most and taken <= days and states / gpus <= room - activations / tensor:
                found.append((gpus, taken, tensor))
    return (lambda g, d, t: [g, t, d])(*min(found)) if found else None


_CASE = (1045.0, 320.0, 80.0, 1.4e12, 1100.0, {1: 1.0, 2: 0.95, 4: 0.9, 8: 0.8})


@smallest_cluster.invariant(
    "with a little more time the same GPUs do, with half the time they do not"
)
def with_a_little_more_time_the_same_gpus_do(seen):
    gpus, _, days = seen(*_CASE, 30.0, 4096).value
    return (
        seen(*_CASE, days * 1.01, 4096).value[0] == gpus < seen(*_CASE, days * 0.5, 4096).value[0]
    )


@smallest_cluster.invariant("no cluster beyond the largest that is allowed")
def no_cluster_beyond_the_largest_that_is_allowed(seen):
    gpus, *_ = seen(*_CASE, 30.0, 4096).value
    return seen(*_CASE, 30.0, gpus).value[0] == gpus and seen(*_CASE, 30.0, gpus // 2).value is None


@smallest_cluster.mistake("the memory is not looked at", hint=2)
def the_memory_is_not_looked_at(states, activations, *rest):
    "A layout that does not fit is no layout, however fast."
    return cluster(0.0, 0.0, *rest)


@smallest_cluster.mistake("the activations are forgotten", hint=2)
def the_activations_are_forgotten(states, activations, *rest):
    "Model states and activations must fit together."
    return cluster(states, 0.0, *rest)


@smallest_cluster.mistake("activations spread over all GPUs", hint=2)
def activations_spread_over_all_gpus(
    states, activations, room, tokens, speed, efficiency, days, most
):
    """Data parallelism does not make a sequence's activations smaller; only the tensor ranks
    share them."""
    for gpus in (8 * 2**i for i in range(20)):
        tensor = max(efficiency, key=efficiency.get)
        taken = tokens / (gpus * speed * efficiency[tensor]) / 86400
        fits = (states + activations) / gpus <= room
        if fits and taken <= days and gpus <= most:
            return gpus, tensor, taken


@smallest_cluster.mistake("always eight tensor ranks", hint=3)
def always_eight_tensor_ranks(states, activations, room, tokens, speed, efficiency, *rest):
    """Tensor parallelism costs speed: take the fastest layout that fits, not the one that surely
    fits."""
    return cluster(states, activations, room, tokens, speed, {8: efficiency[8]}, *rest)


@smallest_cluster.mistake("always one tensor rank", hint=1)
def always_one_tensor_rank(states, activations, room, tokens, speed, efficiency, *rest):
    "Where the activations do not fit, more tensor ranks make room."
    return cluster(states, activations, room, tokens, speed, {1: efficiency[1]}, *rest)


@smallest_cluster.mistake("the first layout that fits", hint=3)
def the_first_layout_that_fits(states, activations, room, tokens, speed, efficiency, days, most):
    "Of the layouts that fit the fastest is asked for: that with the highest efficiency."
    for gpus in (8 * 2**i for i in range(40)):
        fitting = [t for t in efficiency if states / gpus + activations / t <= room]
        if gpus > most:
            return None
        if fitting:
            taken = tokens / (gpus * speed * efficiency[fitting[0]]) / 86400
            if taken <= days:
                return gpus, fitting[0], taken


@smallest_cluster.mistake("the largest cluster", hint=1)
def the_largest_cluster(states, activations, room, tokens, speed, efficiency, days, most):
    "Asked for are the fewest GPUs that are in time."
    fitting = [t for t in efficiency if states / most + activations / t <= room]
    tensor = max(fitting, key=efficiency.get, default=8)
    return most, tensor, tokens / (most * speed * efficiency[tensor]) / 86400


@smallest_cluster.mistake("the efficiency is forgotten", hint=2)
def the_efficiency_is_forgotten(states, activations, room, tokens, speed, efficiency, days, most):
    "Each GPU does speed * efficiency[tensor] tokens a second."
    full = {t: 1 - 1e-12 * t for t in efficiency}
    return cluster(states, activations, room, tokens, speed, full, days, most)


@smallest_cluster.mistake("hours instead of days", hint=2)
def hours_instead_of_days(*case):
    "A day has 86,400 seconds."
    found = cluster(*case)
    return found and (found[0], found[1], found[2] * 24)


@smallest_cluster.mistake("the fewest that fit, in time or not", hint=1)
def the_fewest_that_fit_in_time_or_not(
    states, activations, room, tokens, speed, efficiency, days, most
):
    "It must also be done within the days."
    return cluster(states, activations, room, tokens, speed, efficiency, math.inf, most)
