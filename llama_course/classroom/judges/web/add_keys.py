"What the judge knows of `add_keys`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

add_keys = Exercise(
    "add_keys",
    chapter="04_web",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 5, "laws": 3, "cost": 2},
    hints=(
        "Two questions for each key: is it among those seen? And is it the first of its kind in "
        "this batch? torch.searchsorted answers the first, for a sorted tensor.",
        "The first of its kind: sort the batch with stable=True; a key is new where it differs "
        "from the one before it. The places that sort() also returns bring it back into order.",
        "searchsorted returns len(seen) for a key above all: clamp it before you look there, and "
        "mind that seen may be empty.",
        "keys[:, None] == seen makes a matrix: for a billion keys that were seen, a billion "
        "numbers for each key of the batch.",
    ),
)


@add_keys.cases
def cases_of_add_keys(seed):
    draw = torch.Generator().manual_seed(seed)
    for n, m, low, high in (
        (12, 9, -20, 20),
        (0, 8, 0, 5),
        (7, 0, 0, 9),
        (0, 0, 0, 1),
        (100, 60, 0, 90),
    ):
        some = torch.randint(low, high, (n,), generator=draw).unique()
        yield some, torch.randint(low, high, (m,), generator=draw)
    ends = torch.tensor([-(2**63), -1, 0, 2**53, 2**53 + 1, 2**63 - 1])
    yield ends[::2].clone(), ends.flip(0).repeat(2)
    yield torch.tensor([5]), torch.tensor([9, 9, 5, 9])


@add_keys.reference
def truth_of_add_keys(seen, keys):
    known, new = set(seen.tolist()), []
    for key in keys.tolist():
        new.append(key not in known)
        known.add(key)
    return torch.tensor(new, dtype=torch.bool), torch.tensor(sorted(known), dtype=torch.int64)


def _added(seen, keys, first=True, known=True, stable=True, merge=True, last=False):
    "The right answer, with a switch for each mistake."
    order = (keys.flip(0) if last else keys).sort(stable=True)
    ranked, places = order.values, order.indices
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    if first:
        fresh[1:] = ranked[1:] != ranked[:-1]
    if known and len(seen):
        at = torch.searchsorted(seen, ranked).clamp(max=len(seen) - 1)
        fresh &= seen[at] != ranked
    new = torch.empty_like(fresh)
    new[places] = fresh
    merged = torch.cat((seen, ranked[fresh]))
    return (new.flip(0) if last else new), merged.sort().values if merge else merged


add_keys.right(_added)


@add_keys.right
def with_a_set(seen, keys):
    return truth_of_add_keys(seen, keys)


@add_keys.right
def with_unique(seen, keys):
    both = torch.cat((seen, keys))
    values, inverse = both.unique(return_inverse=True)
    first = torch.full_like(values, len(both))
    first.scatter_reduce_(0, inverse, torch.arange(len(both)), "amin")
    return first[inverse[len(seen) :]] == torch.arange(len(seen), len(both)), values


@add_keys.invariant("a batch in two parts gives the same as in one")
def a_batch_in_two_parts(seen):
    known, keys = torch.tensor([3, 8]), torch.tensor([5, 3, 5, 1, 8, 1, 9])
    new, merged = seen(known, keys).value
    one, between = seen(known, keys[:3]).value
    two, after = seen(between, keys[3:]).value
    return torch.equal(torch.cat((one, two)), new) and torch.equal(after, merged)


@add_keys.invariant("a second time nothing is new, and nothing is added")
def a_second_time_nothing_is_new(seen):
    keys = torch.tensor([7, -2, 7, 4])
    _, merged = seen(torch.tensor([4]), keys).value
    again, same = seen(merged, keys).value
    return not again.any() and torch.equal(same, merged)


@add_keys.invariant("eight bytes per different key")
def eight_bytes_per_different_key(seen):
    new, merged = seen(torch.arange(0, 100, 2), torch.arange(100) % 70).value
    return merged.nbytes == 8 * (50 + int(new.sum())) == 8 * 85


@add_keys.limit("largest_tensor", "no matrix of all keys against all that were seen")
def most_largest_tensor_of_add_keys(seen, keys):
    return len(seen) + len(keys)


@add_keys.mistake("a matrix of comparisons", hint=4)
def a_matrix_of_comparisons(seen, keys):
    "Right in value, but every key is compared with every other."
    both = torch.cat((seen, keys))
    same = both[:, None] == both[None]
    earlier = torch.ones_like(same).tril(-1)
    new = ~(same & earlier).any(1)[len(seen) :]
    return new, both[torch.cat((torch.ones(len(seen), dtype=torch.bool), new))].sort().values


@add_keys.mistake("duplicates within the batch", hint=2)
def duplicates_within_the_batch(seen, keys):
    "A key that comes twice in the batch is new the first time only."
    return _added(seen, keys, first=False)


@add_keys.mistake("what was seen is not looked at", hint=1)
def what_was_seen_is_not_looked_at(seen, keys):
    "A key that was seen in an earlier batch is not new."
    return _added(seen, keys, known=False)


@add_keys.mistake("the last of its kind", hint=2)
def the_last_of_its_kind(seen, keys):
    "The first of equal keys is new, the later ones are not."
    return _added(seen, keys, last=True)


@add_keys.mistake("the result is not sorted", hint=1)
def the_result_is_not_sorted(seen, keys):
    "The next batch looks the keys up by bisection: they must be in order."
    return _added(seen, keys, merge=False)


@add_keys.mistake("in the order of the sorted keys", hint=2)
def in_the_order_of_the_sorted_keys(seen, keys):
    "The answer for a key stands at the key's own place: undo the sorting."
    new, merged = _added(seen, keys)
    return new[keys.sort(stable=True).indices], merged


@add_keys.mistake("rounded to float", hint=3)
def rounded_to_float(seen, keys):
    "Above 2**53 a float no longer tells neighbours apart: keys stay integers."
    new, merged = truth_of_add_keys(seen.double(), keys.double())
    return new, merged


@add_keys.mistake("a key above all that were seen", hint=3)
def a_key_above_all_that_were_seen(seen, keys):
    "searchsorted returns len(seen) for it, which is no place; and seen may be empty."
    return seen[torch.searchsorted(seen, keys)] != keys, torch.cat((seen, keys)).unique()
