"What the judge knows of `roofline_step`. Spoilers ahead."

import math
from fractions import Fraction

import torch

from llama_course.classroom.exercise import Exercise

roofline_step = Exercise(
    "roofline_step",
    chapter="22_serving",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "Count for the whole batch: operations, and numbers that are read. Each divided by its "
        "rate is a time; the step takes the longer of the two.",
        "Operations: 2 B (N + g C). Numbers read: N once for all texts, C for each of them.",
        "Arithmetic is the limit where 2 B (N + g C) / peak >= size (N + B C) / bandwidth. Bring "
        "what has B in it to one side: B (2 (N + g C) / peak - size C / bandwidth) >= size N / "
        "bandwidth.",
        "If that bracket is not above zero, no batch is large enough: None. Otherwise divide by "
        "it and round up.",
    ),
)


@roofline_step.cases
def cases_of_roofline_step(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=random))
    yield 6_600_000_000, 0, 1, 1, 2, 312e12, 1.555e12  # no cache yet
    yield 8, 8, 1, 3, 1, 4.0, 1.0  # with each text both times grow alike
    yield 8, 0, 1, 4, 1, 8.0, 1.0  # with four texts both take 8 s: arithmetic is the limit
    found = 0
    while found < 7:
        weights, size = draw(10**6, 10**10), (2, 4, 1)[found % 3]
        # the fourth: caches that outgrow the weights; the fifth: grouped queries
        cache = draw(10**6, 10**9) if found == 3 else draw(1, 1 + weights // 1000)
        group = 8 if found in (4, 5) else 1
        peak = draw(5, 400) * 1e12
        bandwidth = draw(3, 30) * 1e11
        batch = (1, 4000, draw(2, 300))[found % 3]
        args = weights, cache, group, batch, size, peak, bandwidth
        if (ridge := _ridge(args)) is None or ridge % 1 > 1e-6 and 1 - ridge % 1 > 1e-6:
            found += 1
            yield args


def _ridge(args):
    "The batch, as a fraction, at which both times are equal; None if there is none."
    weights, cache, group, _, size, peak, bandwidth = (Fraction(x) for x in args)
    slope = 2 * (weights + group * cache) / peak - size * cache / bandwidth
    return size * weights / bandwidth / slope if slope > 0 else None


@roofline_step.reference
def truth_of_roofline_step(weights, cache, group, batch, itemsize, peak, bandwidth):
    args = weights, cache, group, batch, itemsize, peak, bandwidth
    arithmetic = Fraction(2 * batch * (weights + group * cache)) / Fraction(peak)
    memory = Fraction(itemsize * (weights + batch * cache)) / Fraction(bandwidth)
    limit = "memory" if memory > arithmetic else "arithmetic"
    ridge = _ridge(args)
    return float(max(arithmetic, memory)), limit, None if ridge is None else math.ceil(ridge)


def _step(
    weights, cache, group, batch, itemsize, peak, bandwidth, *, per_text=False, shared=False,
    both=False, ops=2, swap=False, never=True, up=math.ceil, plain=False, grouped=True,
):  # fmt: skip
    "The roofline, with a place for each mistake."
    group = group if grouped else 1
    each, rows = ops * (weights + group * cache), batch if per_text else 1
    arithmetic = batch * each / peak
    memory = itemsize * (rows * weights + (1 if shared else batch) * cache) / bandwidth
    slope = each / peak - (0 if plain else itemsize * cache / bandwidth)
    ridge = up(itemsize * weights / bandwidth / slope) if slope > 0 or not never else None
    limit = "memory" if (memory > arithmetic) != swap else "arithmetic"
    return arithmetic + memory if both else max(arithmetic, memory), limit, ridge


roofline_step.right(_step)


@roofline_step.right
def by_intensity(weights, cache, group, batch, itemsize, peak, bandwidth):
    def intensity(b):  # operations per byte
        return 2 * b * (weights + group * cache) / (itemsize * (weights + b * cache))

    needed = peak / bandwidth
    seconds = 2 * batch * (weights + group * cache) / min(peak, intensity(batch) * bandwidth)
    limit = "arithmetic" if intensity(batch) >= needed else "memory"
    most = 10**15
    if intensity(most) < needed:
        return seconds, limit, None
    low, high = 0, most  # the smallest batch in (low, high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if intensity(middle) >= needed else (middle, high)
    return seconds, limit, high


@roofline_step.invariant(
    "from the batch that is returned on, and not before, arithmetic is the limit"
)
def from_the_batch_that_is_returned_on(seen):
    args = [7_000_000_000, 500_000_000, 1, 1, 2, 312e12, 1.5e12]
    for cache in (0, 1_000_000, 30_000_000):
        args[1] = cache
        ridge = seen(*args).value[2]
        limits = [seen(*args[:3], b, *args[4:]).value[1] for b in (ridge - 1, ridge, ridge + 1)]
        if limits != ["memory", "arithmetic", "arithmetic"]:
            return False
    return True


@roofline_step.mistake("weights are read for each text", hint=2)
def weights_are_read_for_each_text(*args):
    "All texts of a step use the same weights at the same moment: they are read once."
    return _step(*args, per_text=True)


@roofline_step.mistake("one cache for all", hint=2)
def one_cache_for_all(*args):
    "No two texts share their keys and values: C numbers are read for each of them."
    return _step(*args, shared=True)


@roofline_step.mistake("the times are added", hint=1)
def the_times_are_added(*args):
    "Reading and computing happen at the same time: the longer of the two is what the step takes."
    return _step(*args, both=True)


@roofline_step.mistake("one operation for each number", hint=2)
def one_operation_for_each_number(*args):
    "A weight is multiplied and added: two operations."
    return _step(*args, ops=1)


@roofline_step.mistake("the group is left out", hint=2)
def the_group_is_left_out(*args):
    "g query heads work with the same cached number: it is read once and used g times."
    return _step(*args, grouped=False)


@roofline_step.mistake("the limits are exchanged", hint=1)
def the_limits_are_exchanged(*args):
    "Where reading takes longer, memory is the limit."
    return _step(*args, swap=True)


@roofline_step.mistake("a batch below zero", hint=4)
def a_batch_below_zero(*args):
    "Where the caches outgrow the arithmetic, no batch is large enough; you return a number."
    return _step(*args, never=False)


@roofline_step.mistake("rounded down", hint=4)
def rounded_down(*args):
    "One text fewer than is needed: round up."
    return _step(*args, up=math.floor)


@roofline_step.mistake("a text more than is needed", hint=4)
def a_text_more_than_is_needed(*args):
    "Where both take equally long arithmetic is the limit: round up, and add nothing."
    return _step(*args, up=lambda batch: math.floor(batch) + 1)


@roofline_step.mistake("the batch without caches", hint=3)
def the_batch_without_caches(*args):
    "With every text its cache has to be read as well, so it takes a larger batch."
    return _step(*args, plain=True)
