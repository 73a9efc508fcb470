"What the judge knows of `fused_feed_forward`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.feedforward.common import _some, _weights
from llama_course.classroom.judges.feedforward.swiglu import truth_of_swiglu

fused_feed_forward = Exercise(
    "fused_feed_forward",
    chapter="09_feedforward",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    wrt=("x", "w13", "w2"),
    factor=32.0,
    points={"values": 6, "gradients": 1, "laws": 3},
    hints=(
        "Take D = 6 and F = 24, then F = 16, as LLaMA has it. The first runs by accident.",
        "Which half of w13 is the gate? Take a w3 of zeros: the result must be zero. Then a w1 of "
        "zeros.",
        "The block adds x; the feed-forward part does not. With w2 = 0, what must come out?",
    ),
)


@fused_feed_forward.cases
def cases_of_fused_feed_forward(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, inside in (
        (torch.float64, (3, 6), 24),  # F = 4D, as in 2017
        (torch.float32, (2, 4, 6), 16),  # F = 8D / 3, as in LLaMA
        (torch.float32, (5, 8), 3),
        (torch.float32, (4,), 11),
        (torch.bfloat16, (2, 3, 12), 32),
    ):
        x = torch.randn(shape, generator=draw)
        w1, w2, w3 = _weights(draw, shape[-1], inside)
        yield x.to(dtype), torch.cat((w1, w3)).to(dtype), w2.to(dtype)


@fused_feed_forward.reference
def truth_of_fused_feed_forward(x, w13, w2):
    w1, w3 = w13[: w2.shape[1]], w13[w2.shape[1] :]
    return truth_of_swiglu(x, w1, w2, w3)


@fused_feed_forward.right
def with_chunk(x, w13, w2):
    a, b = (x @ w13.T).chunk(2, -1)
    return (F.silu(a) * b) @ w2.T


@fused_feed_forward.right
def with_two_products(x, w13, w2):
    inside = len(w13) // 2
    return (F.silu(x @ w13[:inside].T) * (x @ w13[inside:].T)) @ w2.T


@fused_feed_forward.invariant("with w2 = 0 nothing is added to the residual stream")
def nothing_is_added(seen):
    x, w1, w2, w3 = _some(3)
    return seen(x, torch.cat((w1, w3)), torch.zeros_like(w2)).value.abs().max() == 0


@fused_feed_forward.invariant("doubling the second half of w13 doubles the result")
def doubling_the_second_half(seen):
    x, w1, w2, w3 = _some(4)
    once = seen(x, torch.cat((w1, w3)), w2).value
    twice = seen(x, torch.cat((w1, 2 * w3)), w2).value
    return torch.allclose(2 * once, twice, rtol=1e-4, atol=1e-6)


def _fused(x, w13, w2, split=None, swap=False, residual=False, rule=F.silu):
    split = len(w13) // 2 if split is None else split
    both = x @ w13.T
    a, b = both[..., :split], both[..., split:]
    a, b = (b, a) if swap else (a, b)
    return (rule(a) * b) @ w2.T + (x if residual else 0)


@fused_feed_forward.mistake("cut at 4D", hint=1)
def cut_at_4d(x, w13, w2):
    "LLaMA's F is not 4D: w13 has 2F rows, so its half says where to cut."
    return _fused(x, w13, w2, 4 * x.shape[-1])


@fused_feed_forward.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(x, w13, w2):
    "Three things are wrong in it: where w13 is cut, which half is the gate, and what is added."
    return _fused(x, w13, w2, 4 * x.shape[-1], swap=True, residual=True)


@fused_feed_forward.mistake("the second half is the gate", hint=2)
def the_second_half_is_the_gate(x, w13, w2):
    "The first F rows are w1, and silu goes with w1."
    return _fused(x, w13, w2, swap=True)


@fused_feed_forward.mistake("x is added", hint=3)
def x_is_added(x, w13, w2):
    "The block adds x to what this part returns: added here as well it counts twice."
    return _fused(x, w13, w2, residual=True)


@fused_feed_forward.mistake("the gate is mended, the sum is not", hint=3)
def the_gate_is_not_mended(x, w13, w2):
    "w13 is cut where it should be, but the halves are exchanged and x is added."
    return _fused(x, w13, w2, swap=True, residual=True)


@fused_feed_forward.mistake("every second row is the gate", hint=2)
def every_second_row_is_the_gate(x, w13, w2):
    "w1 and w3 stand one below the other in w13, they are not interleaved."
    both = x @ w13.T
    return (F.silu(both[..., 0::2]) * both[..., 1::2]) @ w2.T


@fused_feed_forward.mistake("sigmoid instead of silu", hint=2)
def sigmoid_in_fused_feed_forward(x, w13, w2):
    "F.glu's gate is a sigmoid (and its second half); LLaMA's is silu."
    return _fused(x, w13, w2, rule=torch.sigmoid)


@fused_feed_forward.mistake("the gate learns nothing", hint=2)
def the_gate_learns_nothing(x, w13, w2):
    "A .detach() or .data on the gate cuts w1 off from its gradient."
    return _fused(x, w13, w2, rule=lambda a: F.silu(a.detach()))
