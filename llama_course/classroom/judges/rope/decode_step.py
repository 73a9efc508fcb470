"What the judge knows of `decode_step`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.rope.common import _one_row, _turn
from llama_course.classroom.judges.rope.rope import rope_reference

decode_step = Exercise(
    "decode_step",
    chapter="10_rope",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    factor=16.0,
    condition=lambda q, k, v, past_k, past_v, theta: 1 + past_k.shape[2],
    points={"values": 4, "laws": 4, "cost": 2},
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
