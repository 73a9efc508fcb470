"What the judge knows of `shift_keys`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.rope.common import _one_row, _table, _turn
from llama_course.classroom.judges.rope.rope import rope_reference

shift_keys = Exercise(
    "shift_keys",
    chapter="10_rope",
    kind="extend",
    minutes=25,
    difficulty=2,
    wrt=("keys",),
    condition=lambda keys, shift, theta: 1 + abs(shift) if keys.dtype == torch.float32 else 1.0,
    points={"values": 4, "gradients": 1, "laws": 3, "cost": 2},
    hints=(
        "Turning by a and then by b is turning by a + b. What must be added to the angle of a"
        " key that moves by shift?",
        "Every key moves by the same amount, so all are turned by the same angle, shift * "
        "theta ** (-2i / Q): their own positions play no part. Move to the left by a negative"
        " shift.",
        "One row of cosines and one of sines, Q/2 numbers each, in float32, broadcast over "
        "(B, K, S, Q). Neighbours are pairs, as in rope; the result has the dtype of keys.",
    ),
)


@shift_keys.cases
def cases_of_shift_keys(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, shift, theta in (
        (torch.float32, (2, 3, 7, 8), -5, 10000.0),
        (torch.float32, (1, 2, 4, 16), 300, 10000.0),
        (torch.float32, (2, 4, 5, 4), -1, 300.0),
        (torch.bfloat16, (1, 3, 6, 32), -1025, 10000.0),
        (torch.float16, (2, 2, 3, 64), 77, 500000.0),
    ):
        yield torch.randn(shape, generator=random).to(dtype), shift, theta


@shift_keys.reference
def truth_of_shift_keys(keys, shift, theta):
    Q = keys.shape[-1]
    turn = torch.exp(1j * shift * theta ** (-torch.arange(0, Q, 2, dtype=torch.float64) / Q))
    pairs = torch.view_as_complex(keys.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


@shift_keys.right
def by_turning_pairs_of_keys(keys, shift, theta):
    return _turn(keys, *_one_row(shift, keys.shape[-1], theta))


@shift_keys.right
def with_complex_keys(keys, shift, theta):
    Q = keys.shape[-1]
    angle = torch.tensor([shift * theta ** (-2 * i / Q) for i in range(Q // 2)])
    pairs = torch.view_as_complex(keys.float().unflatten(-1, (Q // 2, 2)).contiguous())
    return (
        torch.view_as_real(pairs * torch.polar(torch.ones(Q // 2), angle))
        .flatten(-2)
        .to(keys.dtype)
    )


@shift_keys.invariant("moving by a and then by b is moving by a + b; back again is no move at all")
def moving_by_a_and_then_by_b_is_moving_by_a(seen):
    keys = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(7))
    move = lambda k, shift: seen(k, shift, 10000.0).value
    there = move(keys, 40)
    return torch.allclose(move(there, -15), move(keys, 25), atol=1e-4) and torch.allclose(
        move(there, -40), keys, atol=1e-4
    )


@shift_keys.invariant("a key turned at n and moved by s is the key turned at n + s")
def a_key_turned_at_n_and_moved_by_s_is_the(seen):
    keys = torch.randn(
        1, 6, 2, 16, generator=torch.Generator().manual_seed(8)
    )  # (B, T, H, Q), as in rope
    at = torch.tensor([4, 9, 0, 31, 2, 6])
    turned = rope_reference(keys.double(), at, 10000.0).float().transpose(1, 2)
    wanted = rope_reference(keys.double(), at + 12, 10000.0).float().transpose(1, 2)
    return torch.allclose(seen(turned, 12, 10000.0).value, wanted, atol=1e-4)


@shift_keys.limit("saved_bytes", "one row of cosines and sines serves every key")
def most_saved_bytes_of_shift_keys(keys, shift, theta):
    return 8 * keys.shape[-1]


@shift_keys.limit("largest_tensor", "nothing larger than the keys is needed")
def most_largest_tensor_of_shift_keys(keys, shift, theta):
    return keys.numel()


@shift_keys.limit("flops", "no matrix product is needed")
def most_flops_of_shift_keys(keys, shift, theta):
    return 0


@shift_keys.mistake("turned by each key's place as well", hint=2)
def turned_by_each_keys_place_as_well(keys, shift, theta):
    """The keys are turned already: only the shift is added, not their places 0, 1, 2, ... in the
    cache."""
    cos, sin = _table(torch.arange(keys.shape[2]) + shift, keys.shape[-1], theta)
    return _turn(keys, cos[:, 0], sin[:, 0])


@shift_keys.mistake("moved the other way", hint=2)
def moved_the_other_way(keys, shift, theta):
    "A positive shift means larger positions: the sign of the angle is flipped."
    return _turn(keys, *_one_row(-shift, keys.shape[-1], theta))


@shift_keys.mistake("the other layout", hint=3)
def the_other_layout_in_shift_keys(keys, shift, theta):
    "You turn (k[i], k[i + Q/2]); here neighbours are pairs, as in rope."
    (cos, sin), (u, v) = _one_row(shift, keys.shape[-1], theta), keys.chunk(2, -1)
    return torch.cat((u * cos - v * sin, u * sin + v * cos), -1).type_as(keys)


@shift_keys.mistake("the rows are moved, not turned", hint=1)
def the_rows_are_moved_not_turned(keys, shift, theta):
    """roll() changes which place of the cache a key stands in; its angle stays that of the old
    position."""
    return keys.roll(shift, dims=2)


@shift_keys.mistake("all pairs by the same angle", hint=2)
def all_pairs_by_the_same_angle(keys, shift, theta):
    "Each pair has its own frequency, theta ** (-2i / Q)."
    angle = torch.tensor(float(shift))
    return _turn(keys, angle.cos(), angle.sin())


@shift_keys.mistake("theta fixed at 10000", hint=2)
def theta_fixed_at_10000_in_shift_keys(keys, shift, theta):
    "theta is an argument: later models use other values."
    return _turn(keys, *_one_row(shift, keys.shape[-1], 10000.0))


@shift_keys.mistake("theta to the i/Q", hint=2)
def theta_to_the_i_q_in_shift_keys(keys, shift, theta):
    "The exponent of pair i is -2i/Q; with -i/Q the frequencies fall only half as fast."
    return _turn(keys, *_one_row(shift, keys.shape[-1], theta**0.5))


@shift_keys.mistake("angles in the dtype of the keys", hint=3)
def angles_in_the_dtype_of_the_keys(keys, shift, theta):
    "16 bits do not hold large angles: compute them in float32."
    cos, sin = _one_row(torch.tensor(shift, dtype=keys.dtype), keys.shape[-1], theta, keys.dtype)
    return _turn(keys, cos, sin)


@shift_keys.mistake("keys changed in place", hint=3)
def keys_changed_in_place(keys, shift, theta):
    "The caller's cache is overwritten: return new keys."
    return keys.copy_(by_turning_pairs_of_keys(keys, shift, theta))


@shift_keys.mistake("a row of the table for every key", hint=3)
def a_row_of_the_table_for_every_key(keys, shift, theta):
    "All keys are turned by the same angle: one row of cosines and sines is enough."
    cos, sin = (
        t.expand(*keys.shape[:-1], -1).contiguous() for t in _one_row(shift, keys.shape[-1], theta)
    )
    return _turn(keys, cos, sin)
