"What the judges of this chapter's exercises share."

import math
import random

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


_LAW = (1.69, 406.4, 410.7, 0.336, 0.283)
