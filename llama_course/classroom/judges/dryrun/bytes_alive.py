"What the judge knows of `bytes_alive`. Spoilers ahead."

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from llama_course.classroom.exercise import Exercise


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
    points={"values": 8, "laws": 2},
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
