"What the judge knows of `fullest_moment`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

fullest_moment = Exercise(
    "fullest_moment",
    chapter="20_dryrun",
    kind="rebuild",
    minutes=20,
    difficulty=1,
    points={"values": 8, "laws": 2},
    hints=(
        "Go through the rows and keep, for each part, what is there now. After each row: is the "
        "sum larger than ever before?",
        "When it is, remember the moment and a *copy* of what is there; the dict itself changes "
        "with the next row.",
        "parts.get(key, 'other') is the part of a tensor. What has come back to 0 bytes is not "
        "listed. `>` and not `>=`: of equal sums the first counts.",
    ),
)


@fullest_moment.cases
def cases_of_fullest_moment(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=random))
    yield [], {}
    yield [("forward", 3, 10)], {3: "weights"}
    yield [("forward", 3, 1)], {}
    yield [("a", 1, 5), ("b", 1, -5), ("c", 2, 5), ("c", 2, -5)], {1: "x"}  # equal: the first
    big = 780 * 10**9 + 1
    yield [("load", 0, big), ("step", 1, 4), ("step", 1, -4), ("step", 2, 3)], {0: "weights"}
    for _ in range(3):
        parts = {key: ("weights", "gradients", "activations")[key % 3] for key in range(7)}
        rows, alive = [("before", 0, 40), ("before", 3, 1 + draw(30))], {}
        for step in range(30):
            key = draw(12) + 1
            if key == 3:
                continue
            moment = ("forward", "loss", "backward")[step // 10]
            if key in alive:
                rows.append((moment, key, -alive.pop(key)))
            else:
                alive[key] = 1 + draw(50)
                rows.append((moment, key, alive[key]))
        rows += [("end", key, -size) for key, size in alive.items()]
        yield rows, parts


@fullest_moment.reference
def truth_of_fullest_moment(trace, parts):
    "Each row's sums from the beginning."
    best = (None, {}, 0)
    for n in range(1, len(trace) + 1):
        sums = {}
        for _, key, change in trace[:n]:
            part = parts[key] if key in parts else "other"
            sums[part] = sums.get(part, 0) + change
        if sum(sums.values()) > best[2]:
            there = {part: size for part, size in sums.items() if size}
            best = trace[n - 1][0], there, sum(sums.values())
    return best[:2]


def _fullest(
    trace, parts, *, last=False, copy=dict, other="other", zeros=False, frees=True, apart=False,
    largest=False,
):  # fmt: skip
    "One walk, with a place for each mistake."
    now, best, at, highest = {}, {}, None, 0
    for moment, key, change in trace:
        part = parts.get(key, other)
        if part is None or (change < 0 and not frees):
            continue
        now[part] = now.get(part, 0) + change
        if apart:
            best = {p: max(best.get(p, 0), now.get(p, 0)) for p in best | now}
        size = change if largest else sum(now.values())
        if size > highest or (last and size == highest):
            highest, at = size, moment
            if not apart:
                best = copy(now)
    return at, {part: size for part, size in best.items() if size or zeros}


fullest_moment.right(_fullest)


@fullest_moment.right
def with_running_sums(trace, parts):
    sizes = torch.tensor([0] + [change for _, _, change in trace]).cumsum(0)
    n = int(sizes.argmax())
    found = {}
    for _, key, change in trace[:n]:
        name = parts.get(key, "other")
        found[name] = found.get(name, 0) + change
    return [trace[n - 1][0] if n else None, {k: v for k, v in found.items() if v > 0}]


@fullest_moment.invariant("what comes and goes below the peak does not matter")
def what_comes_and_goes_below_the_peak(seen):
    rows = [("a", 1, 100), ("b", 2, 50), ("b", 2, -50), ("c", 1, -60)]
    small = [("c", 7, 30), ("c", 7, -30), ("c", 8, 109), ("c", 8, -109)]
    parts = {1: "weights", 2: "logits", 8: "logits"}
    return seen(rows, parts).value == seen(rows + small, parts).value


@fullest_moment.mistake("the last of equal moments", hint=3)
def the_last_of_equal_moments(trace, parts):
    "Where the same sum is reached twice, the first time counts."
    return _fullest(trace, parts, last=True)


@fullest_moment.mistake("the dict is not copied", hint=2)
def the_dict_is_not_copied(trace, parts):
    "What you remember is the dict that goes on changing: at the end it shows the end."
    return _fullest(trace, parts, copy=lambda now: now)


@fullest_moment.mistake("nothing is ever freed", hint=1)
def nothing_is_ever_freed(trace, parts):
    "Negative changes are left out: that is the sum of all that was ever made."
    return _fullest(trace, parts, frees=False)


@fullest_moment.mistake("each part at its own fullest", hint=1)
def each_part_at_its_own_fullest(trace, parts):
    "The parts' largest sizes come at different moments; together they were never there."
    return _fullest(trace, parts, apart=True)


@fullest_moment.mistake("what has no name is left out", hint=3)
def what_has_no_name_is_left_out(trace, parts):
    "Tensors that `parts` does not know take room as well: they belong to 'other'."
    return _fullest(trace, parts, other=None)


@fullest_moment.mistake("parts of no bytes are listed", hint=3)
def parts_of_no_bytes_are_listed(trace, parts):
    "A part of which everything was freed is not there at that moment."
    return _fullest(trace, parts, zeros=True)


@fullest_moment.mistake("the largest tensor", hint=1)
def the_largest_tensor(trace, parts):
    "The moment of the largest single allocation need not be the fullest."
    return _fullest(trace, parts, largest=True)
