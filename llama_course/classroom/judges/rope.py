"What the judge knows of the three exercises in `exercises/10_rope.ipynb`. Spoilers from here on."

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_course.classroom.exercise import Exercise


def rope_cases(seed: int):
    "Arguments (x, positions, theta): x (B, T, H, Q), positions (T,) in any order."
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, far, theta in (
        (torch.float32, (2, 7, 3, 8), 30, 10000.0),
        (torch.float32, (1, 5, 2, 16), 2000, 10000.0),
        (torch.float32, (3, 4, 6, 4), 50, 500.0),
        (torch.bfloat16, (2, 6, 4, 32), 2000, 10000.0),
        (torch.float16, (1, 9, 2, 64), 1000, 500000.0),
    ):
        positions = torch.randperm(far, generator=random)[: shape[1]]
        yield torch.randn(shape, generator=random).to(dtype), positions, theta


rope = Exercise(
    "rope",
    chapter="10_rope",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    wrt=("x",),
    condition=lambda x, positions, theta: (
        1 + positions.max().item() if x.dtype == torch.float32 else 1.0
    ),
    points={"values": 4, "gradients": 1, "invariant": 3, "ledger": 2},
    hints=(
        "Each pair of neighbours (x[2i], x[2i+1]) is a point in the plane. Turn it by an "
        "angle: the position times the pair's frequency.",
        "Frequency of pair i: theta ** (-2i / Q), so the first pair turns by one radian a "
        "position and the last hardly at all. Turning by an angle a: (u cos a - v sin a, u "
        "sin a + v cos a).",
        "torch.outer(positions.float(), frequencies) is (T, Q/2); x is (B, T, H, Q), so the "
        "table needs an axis for the heads: table[:, None]. Compute angles in float32 "
        "whatever x is: bfloat16 does not tell position 256 from 257.",
        "The table depends on positions and theta alone: no copy of it for each sequence and "
        "head, no Q×Q matrix, and no cache that forgets which positions it was made for.",
    ),
)
rope.cases(rope_cases)


@rope.reference
def rope_reference(x, positions, theta):
    Q = x.shape[-1]
    angle = positions.double()[:, None] * theta ** (-torch.arange(0, Q, 2, dtype=torch.float64) / Q)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.exp(1j * angle)[:, None]).flatten(-2)


def _table(positions: Tensor, Q: int, theta: float, dtype=torch.float32) -> tuple:
    "Cosines and sines, (T, 1, Q/2) each."
    angle = torch.outer(positions.to(dtype), theta ** (-torch.arange(0, Q, 2).to(dtype) / Q))
    return angle.cos()[:, None], angle.sin()[:, None]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    "Neighbours in the last dimension, turned."
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


@rope.right
def by_turning_pairs(x, positions, theta):
    return _turn(x, *_table(positions, x.shape[-1], theta))


@rope.right
def with_complex_numbers(x, positions, theta):
    Q = x.shape[-1]
    frequency = 1 / theta ** (torch.arange(Q // 2) * 2 / Q)
    angle = (positions.float()[:, None] * frequency)[:, None]
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(3).to(x.dtype)


@rope.right
def by_the_vector_beside(x, positions, theta):
    cos, sin = (t.repeat_interleave(2, -1) for t in _table(positions, x.shape[-1], theta))
    beside = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).reshape(x.shape)
    return (x * cos + beside * sin).to(x.dtype)


@rope.invariant("the score of a query and a key depends on their distance alone")
def the_score_of_a_query_and_a_key_depends_on_their(seen):
    random = torch.Generator().manual_seed(5)
    q, k = torch.randn(2, 1, 6, 2, 16, generator=random)
    where = torch.arange(6)

    def scores(shift):
        turned = [seen(t, where + shift, 10000.0).value for t in (q, k)]
        return torch.einsum("bthq,bshq->bhts", *turned)

    return all(torch.allclose(scores(0), scores(shift), atol=2e-3) for shift in (1, 17, 500))


@rope.invariant("position 0 changes nothing, and no position changes a length")
def position_0_changes_nothing(seen):
    x = torch.randn(1, 4, 2, 16, generator=torch.Generator().manual_seed(6))
    still = seen(x, torch.zeros(4, dtype=torch.long), 10000.0).value
    turned = seen(x, torch.tensor([5, 90, 3, 41]), 10000.0).value
    return torch.equal(still, x) and torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


@rope.invariant("each token is turned by its own position, alone or beside others")
def each_token_is_turned_by_its_own_position(seen):
    x = torch.randn(1, 4, 2, 16, generator=torch.Generator().manual_seed(4))
    positions = torch.tensor([8, 2, 77, 30])
    together = seen(x, positions, 10000.0).value
    alone = [seen(x[:, t : t + 1], positions[t : t + 1], 10000.0).value for t in range(4)]
    return torch.allclose(torch.cat(alone, 1), together, atol=1e-6)


@rope.limit(
    "saved_bytes", "the backward pass needs cosine and sine of each position, once for all heads"
)
def most_saved_bytes_of_rope(x, positions, theta):
    return 8 * len(positions) * x.shape[-1]


@rope.limit("largest_tensor", "nothing larger than x is needed")
def most_largest_tensor_of_rope(x, positions, theta):
    return x.numel()


@rope.limit("flops", "no matrix product is needed")
def most_flops_of_rope(x, positions, theta):
    return 0


@rope.mistake("the positions are ignored", hint=1)
def the_positions_are_ignored(x, positions, theta):
    """The tokens are counted 0, 1, 2, ... whatever positions are given; with a cache they start
    elsewhere."""
    return _turn(x, *_table(torch.arange(len(positions)), x.shape[-1], theta))


@rope.mistake("positions start at one", hint=1)
def positions_start_at_one(x, positions, theta):
    "Each position is one too large: position 0 must change nothing."
    return _turn(x, *_table(positions + 1, x.shape[-1], theta))


@rope.mistake("the other layout", hint=1)
def the_other_layout(x, positions, theta):
    """You turn (x[i], x[i + Q/2]), Hugging Face's layout; asked for are neighbours, (x[2i],
    x[2i+1])."""
    (cos, sin), (u, v) = _table(positions, x.shape[-1], theta), x.chunk(2, -1)
    return torch.cat((u * cos - v * sin, u * sin + v * cos), -1).type_as(x)


@rope.mistake("theta to the i/Q", hint=2)
def theta_to_the_i_q(x, positions, theta):
    "The exponent of pair i is -2i/Q; with -i/Q the frequencies fall only half as fast."
    return _turn(x, *_table(positions, x.shape[-1], theta**0.5))


@rope.mistake("frequencies inverted", hint=2)
def frequencies_inverted(x, positions, theta):
    "theta ** (+2i/Q): the later pairs must turn more slowly, not faster."
    return _turn(x, *_table(positions, x.shape[-1], 1 / theta))


@rope.mistake("the wrong direction", hint=2)
def the_wrong_direction(x, positions, theta):
    "The sign of the sine is flipped: pairs are turned backwards."
    cos, sin = _table(positions, x.shape[-1], theta)
    return _turn(x, cos, -sin)


@rope.mistake("cosine and sine exchanged", hint=2)
def cosine_and_sine_exchanged(x, positions, theta):
    "(u cos a - v sin a, u sin a + v cos a), in this order: at angle 0 nothing may change."
    cos, sin = _table(positions, x.shape[-1], theta)
    return _turn(x, sin, cos)


@rope.mistake("along the heads", hint=3)
def along_the_heads(x, positions, theta):
    "The table was laid along the heads: in (B, T, H, Q) the tokens are dimension 1."
    turned = _turn(x.transpose(1, 2), *_table(torch.arange(x.shape[2]), x.shape[-1], theta))
    return turned.transpose(1, 2)


@rope.mistake("theta fixed at 10000", hint=2)
def theta_fixed_at_10000(x, positions, theta):
    "theta is an argument: later models use other values."
    return _turn(x, *_table(positions, x.shape[-1], 10000.0))


@rope.mistake("only the first half is turned", hint=1)
def only_the_first_half_is_turned(x, positions, theta):
    "GPT-J and GPT-NeoX turn a part of each head; LLaMA turns all of it."
    half = x.shape[-1] // 2
    return torch.cat((_turn(x[..., :half], *_table(positions, half, theta)), x[..., half:]), -1)


@rope.mistake("angles in the dtype of x", hint=3)
def angles_in_the_dtype_of_x(x, positions, theta):
    """16 bits do not hold large positions: bfloat16 does not tell 256 from 257. Compute the
    angles in float32."""
    return _turn(x, *_table(positions, x.shape[-1], theta, x.dtype))


@rope.mistake("the result stays float32", hint=3)
def the_result_stays_float32(x, positions, theta):
    "The result must have the dtype of x: come back with .type_as(x)."
    return _turn(x.float(), *_table(positions, x.shape[-1], theta))


@rope.mistake("a cached table for other positions", hint=4)
def a_cached_table_for_other_positions(x, positions, theta, last={}):  # noqa: B006
    """The last table is used again if the length is the same; but a table depends on the
    positions themselves."""
    key = (len(positions), x.shape[-1], theta)
    if key not in last:
        last.clear()
        last[key] = _table(positions, x.shape[-1], theta)
    return _turn(x, *last[key])


@rope.mistake("a table for every head", hint=4)
def a_table_for_every_head(x, positions, theta):
    """Cosine and sine are repeated to the shape of x; broadcasting does the same without storing
    it."""
    cos, sin = (
        t.expand(*x.shape[:-1], -1).contiguous() for t in _table(positions, x.shape[-1], theta)
    )
    return _turn(x, cos, sin)


@rope.mistake("rotation as a matrix", hint=4)
def rotation_as_a_matrix(x, positions, theta):
    "A Q×Q matrix for each position is all zeros but for two diagonals: turn the pairs directly."
    identity = (
        torch.eye(x.shape[-1]).view(1, 1, *[x.shape[-1]] * 2).expand(1, len(positions), -1, -1)
    )
    matrices = _turn(identity, *_table(positions, x.shape[-1], theta))[0]
    return torch.einsum("bthi,tij->bthj", x.float(), matrices).type_as(x)


shift_keys = Exercise(
    "shift_keys",
    chapter="10_rope",
    kind="extend",
    minutes=25,
    difficulty=2,
    wrt=("keys",),
    condition=lambda keys, shift, theta: 1 + abs(shift) if keys.dtype == torch.float32 else 1.0,
    points={"values": 4, "gradients": 1, "invariant": 3, "ledger": 2},
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


def _one_row(shift, Q: int, theta: float, dtype=torch.float32) -> tuple:
    "Cosine and sine of one position, (Q/2,) each."
    angle = shift * theta ** (-torch.arange(0, Q, 2).to(dtype) / Q)
    return angle.cos(), angle.sin()


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


decode_step = Exercise(
    "decode_step",
    chapter="10_rope",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    factor=16.0,
    condition=lambda q, k, v, past_k, past_v, theta: 1 + past_k.shape[2],
    points={"values": 4, "invariant": 4, "ledger": 2},
    hints=(
        "Generate two tokens by hand, with and without the cache, and compare. Which tensors "
        "does the cached way turn?",
        "Three things are wrong. At which position does the new token stand? Which tensors in"
        " the cache were turned before? And does attention need to know where a value stands?",
        "The new query and key are turned at position S, the number of cached keys. Cached "
        "keys are turned already, values never are. One query needs one row of scores.",
    ),
)


@decode_step.cases
def cases_of_decode_step(seed):
    random = torch.Generator().manual_seed(seed)
    for B, H, S, Q, theta in (
        (1, 2, 5, 8, 1e4),
        (2, 3, 9, 16, 1e4),
        (1, 1, 1, 4, 100.0),
        (2, 2, 12, 8, 5e2),
    ):
        draw = lambda T, B=B, H=H, Q=Q: torch.randn(B, H, T, Q, generator=random)
        yield 2 * draw(1), draw(1), draw(1), draw(S), draw(S), theta


def _turn_at(x: Tensor, position: int, theta: float) -> Tensor:
    "(B, H, T, Q), turned at the positions from `position` on."
    positions = position + torch.arange(x.shape[2])
    return rope_reference(x.transpose(1, 2), positions, theta).type_as(x).transpose(1, 2)


@decode_step.reference
def truth_of_decode_step(q, k, v, past_k, past_v, theta):
    S = past_k.shape[2]
    keys, values = torch.cat((past_k, _turn_at(k, S, theta)), 2), torch.cat((past_v, v), 2)
    weights = torch.einsum(
        "bhtq,bhsq->bhts", _turn_at(q, S, theta), keys / q.shape[-1] ** 0.5
    ).softmax(-1)
    return torch.einsum("bhts,bhsq->bhtq", weights, values)


@decode_step.invariant(
    "token by token with the cache gives what causal attention gives over the whole text"
)
def token_by_token_with_the_cache_gives_what_causal_attention_gives(seen):
    q, k, v = torch.randn(3, 1, 2, 7, 8, generator=torch.Generator().manual_seed(9))
    turned_q, turned_k = (_turn_at(t.double(), 0, 100.0) for t in (q, k))
    whole = F.scaled_dot_product_attention(turned_q, turned_k, v.double(), is_causal=True)

    def step(t):
        now, past = slice(t, t + 1), slice(t)
        new, cache = (
            [x[:, :, now] for x in (q, k, v)],
            (turned_k[:, :, past].float(), v[:, :, past]),
        )
        return seen(*new, *cache, 100.0).value

    return all(torch.allclose(step(t), whole[:, :, t : t + 1].float(), atol=1e-4) for t in range(7))


@decode_step.invariant("the order of the cache does not matter: a key carries its own position")
def the_order_of_the_cache_does_not_matter(seen):
    q, k, v = torch.randn(3, 1, 2, 1, 8, generator=torch.Generator().manual_seed(10))
    past_k, past_v = torch.randn(2, 1, 2, 6, 8, generator=torch.Generator().manual_seed(11))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    same = seen(q, k, v, past_k[:, :, order], past_v[:, :, order], 100.0).value
    return torch.allclose(seen(q, k, v, past_k, past_v, 100.0).value, same, atol=1e-5)


@decode_step.limit("flops", "one query has one row of scores, and the same again for the values")
def most_flops_of_decode_step(q, k, v, past_k, past_v, theta):
    return 4 * past_k.numel() + 4 * k.numel()


def _step(
    q, k, v, past_k, past_v, theta, at=None, past=False, values=False, turn_k=True, scale=None
):
    "A step of generation, with a place for each mistake."
    S = past_k.shape[2]
    at = S if at is None else at
    if past:
        past_k = _turn_at(past_k, 0, theta)
    if values:
        v = _turn_at(v, at, theta)
    keys = torch.cat((past_k, _turn_at(k, at, theta) if turn_k else k), 2)
    scores = _turn_at(q, at, theta) @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.softmax(-1) @ torch.cat((past_v, v), 2)


decode_step.right(_step)


@decode_step.right
def by_torch_attention(q, k, v, past_k, past_v, theta):
    cos, sin = _one_row(past_k.shape[2], q.shape[-1], theta)
    keys = torch.cat((past_k, _turn(k, cos, sin)), 2)
    return F.scaled_dot_product_attention(_turn(q, cos, sin), keys, torch.cat((past_v, v), 2))


@decode_step.mistake("the step as it was given", hint=1)
def the_step_as_it_was_given(q, k, v, past_k, past_v, theta):
    "The new token stands at position 0, the cache is turned again, and so are the values."
    return _step(q, k, v, past_k, past_v, theta, at=0, past=True, values=True)


@decode_step.mistake("the new token stands at position 0", hint=2)
def the_new_token_stands_at_position_0(q, k, v, past_k, past_v, theta):
    "The new token comes after S others: its position is S."
    return _step(q, k, v, past_k, past_v, theta, at=0)


@decode_step.mistake("one position too early", hint=3)
def one_position_too_early(q, k, v, past_k, past_v, theta):
    "Counting starts at 0, so after S tokens the next position is S, not S - 1."
    return _step(q, k, v, past_k, past_v, theta, at=past_k.shape[2] - 1)


@decode_step.mistake("the cache is turned again", hint=2)
def the_cache_is_turned_again(q, k, v, past_k, past_v, theta):
    "Cached keys were turned when they came in; each further turn moves them."
    return _step(q, k, v, past_k, past_v, theta, past=True)


@decode_step.mistake("the values are turned", hint=2)
def the_values_are_turned(q, k, v, past_k, past_v, theta):
    "Only queries and keys are turned: a value says what is said, not where."
    return _step(q, k, v, past_k, past_v, theta, values=True)


@decode_step.mistake("the new key is not turned", hint=3)
def the_new_key_is_not_turned(q, k, v, past_k, past_v, theta):
    "The query is turned and the new key is not: they no longer stand at the same place."
    return _step(q, k, v, past_k, past_v, theta, turn_k=False)


@decode_step.mistake("no division by the root of Q", hint=1)
def no_division_by_the_root_of_q(q, k, v, past_k, past_v, theta):
    "Scores are divided by sqrt(Q) before the softmax."
    return _step(q, k, v, past_k, past_v, theta, scale=1.0)


@decode_step.mistake("the new value is left out", hint=1)
def the_new_value_is_left_out(q, k, v, past_k, past_v, theta):
    "The token attends to itself as well: its own key and value belong to the lists."
    scores = _turn_at(q, past_k.shape[2], theta) @ past_k.mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ past_v


@decode_step.mistake("a causal mask for one query", hint=3)
def a_causal_mask_for_one_query(q, k, v, past_k, past_v, theta):
    "is_causal=True aligns the one query with the first key and hides all others."
    S = past_k.shape[2]
    keys, values = torch.cat((past_k, _turn_at(k, S, theta)), 2), torch.cat((past_v, v), 2)
    return F.scaled_dot_product_attention(_turn_at(q, S, theta), keys, values, is_causal=True)


@decode_step.mistake("every row of scores for one query", hint=3)
def every_row_of_scores_for_one_query(q, k, v, past_k, past_v, theta):
    """S + 1 rows of scores are computed and all but the last thrown away: that is what the cache
    was to save."""
    many = _turn_at(q, past_k.shape[2], theta).expand(-1, -1, past_k.shape[2] + 1, -1)
    keys, values = (
        torch.cat((past_k, _turn_at(k, past_k.shape[2], theta)), 2),
        torch.cat((past_v, v), 2),
    )
    return (many @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)[:, :, -1:] @ values
