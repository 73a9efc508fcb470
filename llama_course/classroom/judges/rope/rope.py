"What the judge knows of `rope`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.rope.common import _table, _turn


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
    points={"values": 4, "gradients": 1, "laws": 3, "cost": 2},
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
