"What the judge knows of `counts_at_depth`. Spoilers ahead."

from fractions import Fraction

import torch

from llama_course.classroom.exercise import Exercise


def _or_value_error(answer, *args):
    "What the answer returns, or that it raised ValueError."
    try:
        return answer(*args)
    except ValueError:
        return "ValueError"


counts_at_depth = Exercise(
    "counts_at_depth",
    chapter="20_dryrun",
    kind="extend",
    minutes=25,
    difficulty=2,
    call=_or_value_error,
    points={"values": 7, "laws": 3},
    hints=(
        "A line through two points: c(L) = c(a) + (L - a) (c(b) - c(a)) / (b - a). What remains "
        "is to check the other points, and to stay exact.",
        "sorted(counts) gives the depths. A key that some depth does not have counts 0 there: "
        "take the keys of all depths together.",
        "Python's whole numbers are exact, floats are not beyond 2^53. Test (b - a) c(x) == (b - "
        "a) c(a) + (x - a) (c(b) - c(a)) for every depth x: no division is needed.",
        "divmod(n, b - a) has a remainder where the result is no whole number: ValueError.",
    ),
)


@counts_at_depth.cases
def cases_of_counts_at_depth(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=random))

    def line(depths, **keys):
        return {L: {k: a + b * L for k, (a, b) in keys.items() if a + b * L} for L in depths}

    huge = 2**60 + draw(100)
    yield line((2, 3, 4), gather=(1, 2), ends=(5 + draw(9), 0)), 80
    yield line((4, 5, 6), bytes=(huge, 3 * huge + 1)), 80
    yield line((9, 3, 5), sums=(3, draw(7) + 1), none=(0, 0), less=(90, -4)), 12
    yield {2: {"loss": 3}, 6: {"loss": 5}, 4: {"loss": 4}}, 8  # half a count for each layer
    yield {2: {"loss": 3}, 6: {"loss": 5}, 4: {"loss": 4}}, 7
    yield line((2, 3, 4), late=(-4, 2)), 10  # not there at depth 2
    yield line((2, 3, 4), fading=(8, -2), gather=(1, 2)), 3  # not there at depth 4
    yield line((2, 3, 4), fading=(8, -2), gather=(1, 2)), 4  # nothing is left of it: 0
    yield {2: {"zero": 0}, 3: {"one": 1}, 4: {"one": 2}}, 5
    straight, bent = (line((2, 3, 4, 5), gather=(1, 2), moment=(huge, huge)) for _ in range(2))
    bent[5]["moment"] += 1
    yield straight, 2
    yield bent, 40  # one byte beside the line
    yield line((2, 3, 4), gather=(1, 2)) | {6: {"gather": 13, "other": 1}}, 40


@counts_at_depth.reference
def truth_of_counts_at_depth(counts, layers):
    "By fractions, from the first and the last depth."
    low, high = min(counts), max(counts)
    found = {}
    for key in dict.fromkeys(key for at in counts.values() for key in at):
        points = {L: counts[L].get(key, 0) for L in counts}
        slope = Fraction(points[high] - points[low], high - low)
        values = {L: points[low] + slope * (L - low) for L in (*points, layers)}
        if any(values[L] != points[L] for L in points) or values[layers].denominator > 1:
            return "ValueError"
        found[key] = int(values[layers])
    return found


def _at_depth(
    counts, layers, *, number=int, check=True, keys=None, neighbours=False, whole=True, ratio=False
):
    "The line, with a place for each mistake."
    depths = sorted(counts)
    a, b = depths[:2]
    gap = 1 if neighbours else b - a
    found = {}
    for key in keys(counts) if keys else {k for at in counts.values() for k in at}:
        at = lambda L, key=key: number(counts[L].get(key, 0))
        rise = at(b) - at(a)
        if check and any(gap * (at(x) - at(a)) != (x - a) * rise for x in depths):
            raise ValueError(f"{key} is no straight line over the depth")
        n, rest = divmod((layers - a) * rise, gap)
        if rest and whole:
            raise ValueError(f"{key} is no whole number at {layers}")
        found[key] = at(a) * layers // a if ratio else int(at(a) + n)
    return found


counts_at_depth.right(_at_depth)


@counts_at_depth.right
def by_slopes_between_neighbours(counts, layers):
    names, depths, result = set().union(*counts.values()), sorted(counts), {}
    for name in names:
        ys = [counts[d].get(name, 0) for d in depths]
        slopes = {
            Fraction(y2 - y1, d2 - d1) for y1, y2, d1, d2 in zip(ys, ys[1:], depths, depths[1:])
        }
        if len(slopes) > 1:
            raise ValueError(name)
        value = ys[-1] + (layers - depths[-1]) * slopes.pop()
        if value != int(value):
            raise ValueError(name)
        result[name] = int(value)
    return result


@counts_at_depth.invariant("at a depth that was traced, the line gives what was traced")
def at_a_depth_that_was_traced(seen):
    counts = {L: {"gather": 2 * L + 1, "bytes": 10**17 * L + 7} for L in (3, 4, 7)}
    return all(seen(counts, L).value == counts[L] for L in counts)


@counts_at_depth.mistake("floating point", hint=3)
def floating_point(counts, layers):
    "Counts of bytes beyond 2^53 are not exact as floats: the result is off by some bytes."
    return _at_depth(counts, layers, number=float, check=False)


@counts_at_depth.mistake("in proportion", hint=1)
def in_proportion(counts, layers):
    "The ends (embedding, loss) are there once, at any depth: a line need not go through zero."
    return _at_depth(counts, layers, ratio=True)


@counts_at_depth.mistake("depths are taken for neighbours", hint=1)
def depths_are_taken_for_neighbours(counts, layers):
    "Between the first two depths may lie more than one layer: divide by b - a."
    return _at_depth(counts, layers, neighbours=True)


@counts_at_depth.mistake("the other depths are not compared", hint=1)
def the_other_depths_are_not_compared(counts, layers):
    "Any two points lie on a line: the third is there to tell whether it is one."
    return _at_depth(counts, layers, check=False)


@counts_at_depth.mistake("keys of the first depth alone", hint=2)
def keys_of_the_first_depth_alone(counts, layers):
    "A message that the shallowest model does not send counts 0 there: its key must not be lost."
    return _at_depth(counts, layers, keys=lambda counts: counts[min(counts)])


@counts_at_depth.mistake("only keys that all depths have", hint=2)
def only_keys_that_all_depths_have(counts, layers):
    "A key that one depth lacks counts 0 there; you leave it out."
    common = lambda counts: set.intersection(*(set(at) for at in counts.values()))
    return _at_depth(counts, layers, keys=common)


@counts_at_depth.mistake("keys with a result of 0 are left out", hint=2)
def keys_with_a_result_of_0_are_left_out(counts, layers):
    "Every key that occurs at any depth is in the result, also where it counts 0."
    return {key: count for key, count in _at_depth(counts, layers).items() if count}


@counts_at_depth.mistake("half a message is rounded", hint=4)
def half_a_message_is_rounded(counts, layers):
    "7 layers would have four and a half: that is no straight line of whole counts, so refuse."
    return _at_depth(counts, layers, whole=False)
