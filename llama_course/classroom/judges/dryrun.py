"What the judge knows of the three exercises in `exercises/20_dryrun.ipynb`. Spoilers from here on."

from fractions import Fraction

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from llama_course.classroom.exercise import Exercise

fullest_moment = Exercise(
    "fullest_moment",
    chapter="20_dryrun",
    kind="rebuild",
    minutes=20,
    difficulty=1,
    points={"values": 8, "invariant": 2},
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
    points={"values": 7, "invariant": 3},
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


@counts_at_depth.mistake("half a message is rounded", hint=4)
def half_a_message_is_rounded(counts, layers):
    "7 layers would have four and a half: that is no straight line of whole counts, so refuse."
    return _at_depth(counts, layers, whole=False)


def _made(recipe):
    "The tensors of a recipe, in which each line may refer to the lines before it."
    found = []
    for kind, *how in recipe:
        if kind == "new":
            rows, columns, dtype, device = how
            found.append(torch.zeros(rows, columns, dtype=getattr(torch, dtype), device=device))
        elif kind == "parameter":
            found.append(nn.Parameter(torch.zeros(how[0], how[1])))
        else:
            t = found[how[0]]
            found.append(
                {
                    "again": lambda t: t,
                    "transposed": lambda t: t.mT,
                    "row": lambda t: t[-1:],
                    "expanded": lambda t: t[:1].expand(50, -1),
                    "detached": lambda t: t.detach(),
                    "flat": lambda t: t.view(-1),
                    "strided": lambda t: t[:, ::2],
                    "copied": lambda t: t.clone(),
                }[kind](t)
            )
    return found


def _alive(answer, recipe, shown):
    "The answer about some of the recipe's tensors; the others are gone."
    made = _made(recipe)
    tensors = [made[i] for i in shown]
    del made
    return answer(tensors)


bytes_alive = Exercise(
    "bytes_alive",
    chapter="20_dryrun",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    call=_alive,
    points={"values": 8, "invariant": 2},
    hints=(
        "x, x.T, x[1:] and x.view(-1) are four tensors and one piece of memory: a *storage*. "
        "t.untyped_storage() is the storage of t.",
        "A view of one row keeps the whole storage alive, and an expanded tensor has many more "
        "elements than memory: the size is storage.nbytes(), not numel() times something.",
        "Each storage counts once. Its address does not tell: tensors on the device 'meta' (or "
        "pretended ones) all have the address 0.",
        "Two tensors share a storage if t.untyped_storage()._cdata is the same number.",
    ),
)


@bytes_alive.cases
def cases_of_bytes_alive(seed):
    random = torch.Generator().manual_seed(seed)
    n = lambda: int(torch.randint(2, 9, (), generator=random))
    new = lambda dtype="float32", device="cpu": ("new", n(), n(), dtype, device)
    yield [], []
    yield [new(), new("bfloat16"), new("int64"), new("bool")], [0, 1, 2, 3]
    yield [new(), ("transposed", 0), ("again", 0), ("flat", 0)], [0, 1, 2, 3]
    yield [new(), ("row", 0), ("strided", 0)], [1, 2]  # the whole is kept by its parts
    yield [new("float64"), ("expanded", 0)], [1]
    yield [("parameter", n(), n()), ("detached", 0), ("copied", 0)], [0, 1, 2]
    yield [new(device="meta"), new(device="meta"), ("row", 0), ("copied", 1)], [0, 1, 2, 3]
    yield [("new", 0, 3, "float32", "cpu"), ("new", 0, 3, "float32", "cpu"), new()], [0, 1, 2]


@bytes_alive.reference
def truth_of_bytes_alive(recipe, shown):
    "By the recipe: what was made, and who still holds it."
    sizes, owner = {}, []
    for i, (kind, *how) in enumerate(recipe):
        if kind in ("new", "parameter", "copied"):
            owner.append(i)
            shape = _made(recipe)[i]
            sizes[i] = shape.numel() * shape.element_size()
        else:
            owner.append(owner[how[0]])
    return sum(sizes[i] for i in {owner[i] for i in shown})


def _bytes(tensors, key=lambda t: t.untyped_storage()._cdata, size=None):
    "Each storage once, with a place for each mistake."
    return sum(
        {key(t): size(t) if size else t.untyped_storage().nbytes() for t in tensors}.values()
    )


bytes_alive.right(_bytes)


@bytes_alive.right
def with_weak_references(tensors):
    found = {StorageWeakRef(t.untyped_storage()): t for t in tensors}
    return sum(t.untyped_storage().nbytes() for t in found.values())


@bytes_alive.right
def one_by_one(tensors):
    counted, total = [], 0
    for t in tensors:
        storage = t.untyped_storage()
        if not any(storage._cdata == other._cdata for other in counted):
            counted.append(storage)
            total += storage.size()
    return total


@bytes_alive.invariant("a view of what is there costs nothing")
def a_view_of_what_is_there_costs_nothing(seen):
    recipe = [("new", 6, 4, "float32", "cpu")]
    views = [(kind, 0) for kind in ("row", "flat", "transposed", "expanded", "strided", "again")]
    counts = [seen(recipe + views, list(range(n))).value for n in range(1, 8)]
    return counts == [96] * 7


_own_size = lambda t: t.numel() * t.element_size()


@bytes_alive.mistake("the code as it was given", hint=1)
def the_bytes_as_they_were_given(tensors):
    "Every tensor counts for itself, so views count their memory again."
    return sum(map(_own_size, tensors))


@bytes_alive.mistake("each object once", hint=1)
def each_object_once(tensors):
    "The same tensor twice counts once, but a view of it is another object with the same memory."
    return _bytes(tensors, key=id)


@bytes_alive.mistake("by the address of the first element", hint=3)
def by_the_address_of_the_first_element(tensors):
    "x[1:] begins at another address than x, and lies in the same storage."
    return _bytes(tensors, key=lambda t: t.data_ptr())


@bytes_alive.mistake("by the storage's address", hint=3)
def by_the_storages_address(tensors):
    "Pretended tensors have no address: all of them look like one."
    return _bytes(tensors, key=lambda t: t.untyped_storage().data_ptr())


@bytes_alive.mistake("a view's own size", hint=2)
def a_views_own_size(tensors):
    "A view keeps its whole storage; and an expanded one has more elements than memory."
    return _bytes(tensors, size=_own_size)


@bytes_alive.mistake("elements, not bytes", hint=2)
def elements_not_bytes(tensors):
    "The storage is counted in elements of its tensor: a float64 takes eight bytes, a bool one."
    return _bytes(tensors, size=lambda t: t.untyped_storage().nbytes() // t.element_size())


@bytes_alive.mistake("four bytes for each element", hint=2)
def four_bytes_for_each_element(tensors):
    "Not every tensor is float32: ask it for its element_size()."
    each = lambda t: 4 * (t.untyped_storage().nbytes() // t.element_size())
    return _bytes(tensors, size=each)


@bytes_alive.mistake("what is pretended is left out", hint=3)
def what_is_pretended_is_left_out(tensors):
    "On the device 'meta' nothing is stored, but a dry run is made of such tensors: count them."
    return _bytes([t for t in tensors if t.device.type != "meta"])
