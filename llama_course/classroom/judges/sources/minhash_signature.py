"What the judge knows of `minhash_signature`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

PRIME = 2**31 - 1


minhash_signature = Exercise(
    "minhash_signature",
    chapter="05_sources",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 5, "laws": 3, "cost": 2},
    hints=(
        "One random order: every shingle gets the number (a · x + b) mod p, and the smallest of "
        "these numbers is kept. Do it for one a and b first.",
        "((a * shingles + b) % p).min() for each pair a, b; torch.stack at the end. The modulus "
        "comes before the minimum, and the numbers stay int64.",
        "shingles[:, None] * a makes n times k numbers: for a book of 100,000 words and 128 "
        "orders that is 100 MB. Take the orders one after the other.",
    ),
)


@minhash_signature.cases
def cases_of_minhash_signature(seed):
    draw = torch.Generator().manual_seed(seed)
    for n, k, high in ((5, 4, 100), (40, 16, PRIME), (1, 3, PRIME), (300, 8, PRIME), (60, 1, 10)):
        shingles = torch.randint(high, (n,), generator=draw)
        a = torch.randint(1, PRIME, (k,), generator=draw)
        b = torch.randint(PRIME, (k,), generator=draw)
        b[0] = PRIME - 1
        yield shingles, a, b


@minhash_signature.reference
def truth_of_minhash_signature(shingles, a, b):
    orders = zip(a.tolist(), b.tolist())
    numbers = shingles.tolist()
    return torch.tensor([min((i * x + j) % PRIME for x in numbers) for i, j in orders])


@minhash_signature.right
def order_by_order(shingles, a, b):
    return torch.stack([((i * shingles + j) % PRIME).min() for i, j in zip(a, b)])


@minhash_signature.right
def shingle_by_shingle(shingles, a, b):
    best = torch.full_like(a, PRIME)
    for x in shingles:
        best = torch.minimum(best, (a * x + b).remainder(PRIME))
    return best


def _orders(k=32, seed=4):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(1, PRIME, (k,), generator=draw) for _ in range(2))


@minhash_signature.invariant("the order of the shingles does not matter, nor how often one occurs")
def the_order_of_the_shingles_does_not_matter(seen):
    a, b = _orders()
    x = torch.arange(50) * 7919
    return torch.equal(seen(x, a, b).value, seen(torch.cat((x.flip(0), x[:9])), a, b).value)


@minhash_signature.invariant("two documents together have the smaller number of each order")
def two_documents_together(seen):
    a, b = _orders()
    x, y = torch.arange(40) * 104729, torch.arange(25, 70) * 104729
    both = seen(torch.cat((x, y)), a, b).value
    return torch.equal(both, torch.minimum(seen(x, a, b).value, seen(y, a, b).value))


@minhash_signature.invariant("the share of equal numbers estimates the Jaccard index")
def the_share_of_equal_numbers(seen):
    a, b = _orders(k=512)
    x, y = torch.arange(60) * 104729, torch.arange(20, 80) * 104729  # 40 of 80 in common
    same = (seen(x, a, b).value == seen(y, a, b).value).double().mean()
    return abs(same.item() - 0.5) < 0.1


@minhash_signature.limit("largest_tensor", "one order at a time: never n times k numbers")
def most_largest_tensor_of_minhash_signature(shingles, a, b):
    return max(len(shingles), len(a))


def _signature(shingles, a, b, number=lambda i, j, x: (i * x + j) % PRIME, choose=torch.min):
    return torch.stack([choose(number(i, j, shingles)) for i, j in zip(a, b)])


@minhash_signature.mistake("the largest number", hint=1)
def the_largest_number(shingles, a, b):
    "The smallest number of each order is kept."
    return _signature(shingles, a, b, choose=torch.max)


@minhash_signature.mistake("the modulus after the minimum", hint=2)
def the_modulus_after_the_minimum(shingles, a, b):
    "Without the modulus the smallest shingle has the smallest number in every order."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x + j) % PRIME


@minhash_signature.mistake("b is left out", hint=2)
def b_is_left_out(shingles, a, b):
    "The number of a shingle is (a · x + b) mod p."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x % PRIME)


@minhash_signature.mistake("b after the modulus", hint=2)
def b_after_the_modulus(shingles, a, b):
    "b belongs into the bracket: the modulus is taken of the sum."
    return _signature(shingles, a, b, number=lambda i, j, x: i * x % PRIME + j)


@minhash_signature.mistake("a and b exchanged", hint=2)
def a_and_b_exchanged(shingles, a, b):
    "The shingle is multiplied by a, and b is added."
    return _signature(shingles, b, a)


@minhash_signature.mistake("rounded to float32", hint=2)
def rounded_to_float32(shingles, a, b):
    "float32 has 24 bits: products of up to 62 bits need int64."
    number = lambda i, j, x: ((i.float() * x + j) % PRIME).long()
    return _signature(shingles, a, b, number=number)


@minhash_signature.mistake("the shingle instead of its number", hint=1)
def the_shingle_instead_of_its_number(shingles, a, b):
    "The signature holds the smallest numbers, not the shingles that have them."
    return torch.stack([shingles[((i * shingles + j) % PRIME).argmin()] for i, j in zip(a, b)])


@minhash_signature.mistake("all orders at once", hint=3)
def all_orders_at_once(shingles, a, b):
    "Right in value, but n times k numbers exist at the same time."
    return ((shingles[:, None] * a + b) % PRIME).min(0).values
