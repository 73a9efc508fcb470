"What the judge knows of `int4_product`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

int4_product = Exercise(
    "int4_product",
    chapter="24_quantization",
    kind="extend",
    minutes=25,
    difficulty=2,
    factor=64.0,
    points={"values": 6, "laws": 2, "cost": 2},
    hints=(
        "packed & 15 is the low half of a byte, packed >> 4 the high half.",
        "Low halves are the first 32 weights of a block, high halves the next 32; each of the"
        " two groups has its own scale and lowest value: torch.stack([low half, high half], "
        "-2) is (R, B, 2, 32).",
        "A weight is scale * code + low. It is enough to make all weights once, R·C numbers, "
        "and multiply.",
    ),
)


@int4_product.cases
def cases_of_int4_product(seed):
    random = torch.Generator().manual_seed(seed)
    for R, B in ((3, 2), (5, 1), (7, 3)):
        packed = torch.randint(256, (R, B, 32), generator=random).to(torch.uint8)
        scale = torch.rand(R, B, 2, generator=random) + 0.1
        low = torch.randn(R, B, 2, generator=random)
        yield packed, scale, low, torch.randn(64 * B, generator=random)


def _unpacked(packed):
    return torch.stack([packed & 15, packed >> 4], -2)


def _product(codes, scale, low, x):
    return (codes * scale[..., None] + low[..., None]).flatten(1) @ x


@int4_product.reference
def truth_of_int4_product(packed, scale, low, x):
    return _product(_unpacked(packed).to(x.dtype), scale, low, x)


@int4_product.invariant("it is linear in x")
def it_is_linear_in_x(seen):
    packed, scale, low, x = next(int4_product.make_cases(5))
    y = x.flip(0)
    one, two, both = (seen(packed, scale, low, v).value for v in (x, y, x + 2 * y))
    return torch.allclose(one + 2 * two, both, atol=1e-2)


@int4_product.limit("largest_tensor", "no tensor has more numbers than the matrix")
def most_largest_tensor_of_int4_product(packed, scale, low, x):
    return 2 * packed.numel()


@int4_product.right
def unpacked_first(packed, scale, low, x):
    return _product(_unpacked(packed), scale, low, x)


@int4_product.right
def half_by_half(packed, scale, low, x):
    parts, total = x.view(-1, 2, 32), 0
    for half, codes in enumerate((packed % 16, packed // 16)):
        products = torch.einsum("rbj,bj->rb", codes.float(), parts[:, half])
        total = total + (products * scale[..., half] + low[..., half] * parts[:, half].sum(-1)).sum(
            -1
        )
    return total


@int4_product.mistake("the halves exchanged", hint=1)
def the_halves_exchanged(packed, scale, low, x):
    "The low half of each byte comes first."
    return _product(torch.stack([packed >> 4, packed & 15], -2), scale, low, x)


@int4_product.mistake("neighbours share a byte", hint=2)
def neighbours_share_a_byte(packed, scale, low, x):
    "The two codes of a byte belong to two groups, 32 weights apart; they are not neighbours."
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).unflatten(-1, (2, 32))
    return _product(codes, scale, low, x)


@int4_product.mistake("the high half is not moved", hint=1)
def the_high_half_is_not_moved(packed, scale, low, x):
    "packed & 240 is the high half times 16: shift it down by four bits."
    return _product(torch.stack([packed & 15, packed & 240], -2), scale, low, x)


@int4_product.mistake("the low half is not cut off", hint=1)
def the_low_half_is_not_cut_off(packed, scale, low, x):
    "The byte holds both codes: & 15 keeps the low one."
    return _product(torch.stack([packed, packed >> 4], -2), scale, low, x)


@int4_product.mistake("the lowest value is forgotten", hint=3)
def the_lowest_value_is_forgotten(packed, scale, low, x):
    "Code 0 is the lowest weight of the group, not zero: scale * code + low."
    return _product(_unpacked(packed), scale, 0 * low, x)


@int4_product.mistake("codes from -8 to 7", hint=3)
def codes_from_8_to_7(packed, scale, low, x):
    "That is Q4_0's way, without a lowest value; here codes go from 0 to 15."
    return _product(_unpacked(packed).to(torch.int8) - 8, scale, low, x)


@int4_product.mistake("one scale for both groups", hint=2)
def one_scale_for_both_groups(packed, scale, low, x):
    "Each group of 32 has its own scale: the second is scale[..., 1]."
    return _product(_unpacked(packed), scale[..., :1], low, x)


@int4_product.mistake("low is scaled, too", hint=3)
def low_is_scaled_too(packed, scale, low, x):
    "scale * (code + low) is another number than scale * code + low."
    return ((_unpacked(packed) + low[..., None]) * scale[..., None]).flatten(1) @ x


@int4_product.mistake("low is added once", hint=3)
def low_is_added_once(packed, scale, low, x):
    "low belongs to each weight, so it is multiplied by the sum of its group's x."
    return _product(_unpacked(packed), scale, 0 * low, x) + low.sum((1, 2))


@int4_product.mistake("a matrix of products", hint=3)
def a_matrix_of_products(packed, scale, low, x):
    "All weights and all products for sixteen codes at once are many times the matrix."
    table = torch.arange(16.0)[:, None, None, None, None] * scale[..., None] + low[..., None]
    table.expand(16, *packed.shape[:2], 2, 32).contiguous()
    return _product(_unpacked(packed), scale, low, x)
