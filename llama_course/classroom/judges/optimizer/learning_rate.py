"What the judge knows of `learning_rate`. Spoilers ahead."

import functools
import math
import random

from llama_course.classroom.exercise import Exercise

learning_rate = Exercise(
    "learning_rate",
    chapter="14_optimizer",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 7, "laws": 3},
    hints=(
        "Look at the first rate, at those before and after the peak, and at the last one. Which of "
        "them should be 0.33, 1 and 0.1?",
        "Let t = step + 1 and use it everywhere: the first rate is then peak / warmup, and the "
        "last step is t = steps.",
        "The cosine begins where the warmup ends, with t - warmup = 0, and has steps - warmup "
        "steps. It goes from 1 to 0, and 0.1 + 0.9 times that goes from 1 to 0.1.",
    ),
)


@learning_rate.cases
def cases_of_learning_rate(seed):
    chance = random.Random(seed)
    for steps, warmup in ((100, 10), (10, 3), (334_000, 2000), (7, 1)):
        peak = chance.choice((3e-4, 1.5e-4, 1.0, 0.02))
        inside = chance.randrange(warmup + 1, steps - 1)
        for step in (0, warmup - 1, warmup, inside, steps - 1):
            yield step, steps, peak, warmup
    for step in (0, 1, 19):
        yield step, 20, 1e-3, 0
    for step in (0, chance.randrange(1, 11), 11):
        yield step, 12, 1e-3, 12
    yield 0, 1, 0.5, 0
    yield 0, 1, 0.5, 1


@learning_rate.reference
def truth_of_learning_rate(step, steps, peak, warmup):
    if step < warmup:
        return (step + 1) / warmup * peak
    half = math.cos(math.pi / 2 * (step + 1 - warmup) / (steps - warmup))
    return 0.1 * peak + 0.9 * peak * half**2


def _rate(
    step, steps, peak, warmup, *,
    late=False, late_cosine=False, start=True, fall=None, floor=0.1, add=False, least=False,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    t = step if late else step + 1
    if (step < warmup) if late else t <= warmup:
        return peak * t / warmup
    if late_cosine:
        t = step
    length = max(steps - warmup if start else steps, 1)
    part = (t - warmup if start else t) / length
    share = fall(part) if fall else 0.5 * (1 + math.cos(math.pi * part))
    if least:
        return max(peak * share, floor * peak)
    return peak * (floor + (1.0 if add else 1 - floor) * share)


learning_rate.right(_rate)


@learning_rate.right
def with_the_middle(step, steps, peak, warmup):
    rise = (step + 1) / warmup if warmup else 1.0
    if rise <= 1 and warmup:
        return rise * peak
    turn = (step + 1 - warmup) * math.pi / (steps - warmup)
    return peak * 0.55 + peak * 0.45 * math.cos(turn)


@learning_rate.right
def with_a_list(step, steps, peak, warmup):
    up = [peak * (i + 1) / warmup for i in range(warmup)]
    if step < warmup:
        return up[step]
    left = steps - warmup
    return peak * (1 - 0.9 * math.sin(math.pi * (step + 1 - warmup) / (2 * left)) ** 2)


@learning_rate.invariant("from the peak on it only falls, and ends at a tenth")
def from_the_peak_on_it_only_falls(seen):
    rates = [seen(step, 30, 2.0, 6).value for step in range(5, 30)]
    falls = all(before > after for before, after in zip(rates, rates[1:]))
    return falls and math.isclose(rates[0], 2.0) and math.isclose(rates[-1], 0.2, rel_tol=1e-6)


@learning_rate.invariant("rates equally far from the middle of the fall sum to 1.1 times the peak")
def rates_equally_far_from_the_middle(seen):
    rates = [seen(step, 24, 1.0, 4).value for step in range(3, 24)]
    return all(math.isclose(a + b, 1.1, rel_tol=1e-6) for a, b in zip(rates, rates[::-1]))


def _wrong(name, hint, text, **switches):
    "Enters a mistake that is one switch, or several, of the right answer."

    @functools.wraps(_rate)
    def answer(step, steps, peak, warmup):
        return _rate(step, steps, peak, warmup, **switches)

    answer.__doc__ = text
    learning_rate.mistake(name, hint)(answer)


_wrong(
    "the code as it was given", 1,
    "Three things are wrong in it: how it counts, where its cosine begins, how it adds the tenth.",
    late=True, start=False, add=True,
)  # fmt: skip


_wrong(
    "steps counted from zero", 2,
    "The first step has the rate zero and the last one does not reach the tenth: t is step + 1.",
    late=True,
)  # fmt: skip


_wrong(
    "the cosine one step late", 2,
    "The warmup counts from one and the cosine from zero: the peak comes twice, the tenth never.",
    late_cosine=True,
)  # fmt: skip


_wrong(
    "the cosine begins with the run", 3,
    "When the warmup ends the cosine has already fallen: it begins there, at t - warmup.",
    start=False,
)  # fmt: skip


_wrong(
    "a tenth on top", 3,
    "0.1 + 1 times the cosine begins at 1.1 of the peak: the cosine has the other 0.9.",
    add=True,
)  # fmt: skip


_wrong(
    "down to zero", 3,
    "The last rate is a tenth of the peak, not zero.",
    floor=0.0,
)  # fmt: skip


_wrong(
    "cut off at a tenth", 3,
    "A cosine to zero that is held at a tenth is another curve: the whole fall ends at a tenth.",
    least=True,
)  # fmt: skip


_wrong(
    "a straight line down", 3,
    "The fall is half a cosine: slow at first, steep in the middle, slow at the end.",
    fall=lambda part: 1 - part,
)  # fmt: skip


_wrong(
    "a whole turn", 3,
    "The cosine goes from 1 to -1, half a turn: over 2π it comes back to the peak.",
    fall=lambda part: 0.5 * (1 + math.cos(2 * math.pi * part)),
)  # fmt: skip
