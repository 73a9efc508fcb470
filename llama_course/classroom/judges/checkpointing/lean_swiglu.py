"What the judge knows of `lean_swiglu`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    checkpoint,
)

from llama_course.classroom.exercise import Exercise


def gate_cases(seed: int):
    "Arguments (a, b) in all dtypes; some gates are far on either side."
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, size in (
        (torch.bfloat16, (4, 6, 32), 2),
        (torch.float32, (5, 24), 1),
        (torch.float32, (3, 16), 30),
        (torch.float64, (2, 3, 8), 3),
        (torch.float16, (6, 40), 4),
    ):
        a, b = (torch.randn(shape, generator=random) for _ in range(2))
        yield (size * a).to(dtype), b.to(dtype)


lean_swiglu = Exercise(
    "lean_swiglu",
    chapter="13_checkpointing",
    kind="rebuild",
    minutes=40,
    difficulty=3,
    wrt=("a", "b"),
    points={"values": 1, "gradients": 2, "laws": 1, "cost": 6},
    hints=(
        "u = silu(a) * b, with silu(a) = a * sigmoid(a). A torch.autograd.Function has "
        "forward(ctx, a, b) and backward(ctx, grad); what backward needs goes through "
        "ctx.save_for_backward.",
        "With s = sigmoid(a): the gradient of b is g a s; that of a is g b s (1 + a (1 - s)),"
        " by the product rule and s' = s (1 - s).",
        "Save a and b, which exist anyway, and compute s again in the backward pass. An attribute "
        "of ctx that holds a tensor made in forward is kept, too. Results and gradients have "
        "the dtype of a and b.",
    ),
)


lean_swiglu.cases(gate_cases)


@lean_swiglu.reference
def gated(a, b):
    return F.silu(a) * b


@lean_swiglu.limit("saved_bytes", "a and b exist anyway; nothing else is needed")
def most_saved_bytes_of_lean_swiglu(a, b):
    return 0


@lean_swiglu.invariant("silu(a) - silu(-a) = a, so the difference of two gates is a b")
def silu_a_silu_a_a(seen):
    a, b = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    return torch.allclose(seen(a, b).value - seen(-a, b).value, a * b, atol=1e-5)


def _own_backward(gradients, forward=gated, keep=lambda ctx, a, b: None):
    """An answer with the backward function `gradients(g, a, b, s) -> (of a, of b)`, in float32
    at least."""

    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            ctx.more = keep(ctx, a, b)
            return forward(a, b)

        @staticmethod
        def backward(ctx, grad):
            a, b, g = (
                t if t.dtype == torch.float64 else t.float() for t in (*ctx.saved_tensors, grad)
            )
            return tuple(t.to(grad.dtype) for t in gradients(g, a, b, a.sigmoid()))

    return Gate.apply


def _right(g, a, b, s):
    return g * b * s * (1 + a * (1 - s)), g * a * s


lean_swiglu.right(_own_backward(_right))


@lean_swiglu.mistake("the library's own checkpoint", hint=1)
def the_librarys_own_checkpoint(a, b):
    "It keeps nothing either, but the backward function is what this task builds."
    return checkpoint(gated, a, b, use_reentrant=False, preserve_rng_state=False)


class _Again(torch.autograd.Function):
    "Lets autograd do the work in the backward pass."

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return b * a * torch.sigmoid(a.double()).to(a.dtype)

    @staticmethod
    def backward(ctx, grad):
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            u = gated(*inputs)
        return torch.autograd.grad(u, inputs, grad)


lean_swiglu.right(_Again.apply)


@lean_swiglu.mistake("autograd keeps silu(a)", hint=1)
def autograd_keeps_silu_a(a, b):
    "F.silu(a) * b is right, but the product keeps silu(a): write the backward function yourself."
    return gated(a, b)


@lean_swiglu.mistake("written out, it keeps even more", hint=1)
def written_out_it_keeps_even_more(a, b):
    "a * sigmoid(a) * b keeps the sigmoid and a * sigmoid(a), one for each product."
    return a * torch.sigmoid(a) * b


@lean_swiglu.mistake("copies hidden on ctx", hint=3)
def copies_hidden_on_ctx(a, b):
    "An attribute of ctx keeps a tensor alive, whether save_for_backward knows of it or not."
    return _own_backward(_right, keep=lambda ctx, a, b: (a.float().sigmoid(), F.silu(a.float())))(
        a, b
    )


@lean_swiglu.mistake("the derivative of the sigmoid", hint=2)
def the_derivative_of_the_sigmoid(a, b):
    """s (1 - s) is the derivative of sigmoid(a); silu(a) is a times that, and needs the product
    rule."""
    return _own_backward(lambda g, a, b, s: (g * b * s * (1 - s), g * a * s))(a, b)


@lean_swiglu.mistake("half of the product rule", hint=2)
def half_of_the_product_rule(a, b):
    "In a * sigmoid(a) both factors depend on a: the second term is missing."
    return _own_backward(lambda g, a, b, s: (g * b * s, g * a * s))(a, b)


@lean_swiglu.mistake("b is missing in the gradient of a", hint=2)
def b_is_missing_in_the_gradient_of_a(a, b):
    "u = silu(a) b: the derivative by a still has the factor b."
    return _own_backward(lambda g, a, b, s: (g * s * (1 + a * (1 - s)), g * a * s))(a, b)


@lean_swiglu.mistake("the gradient of b is the sigmoid", hint=2)
def the_gradient_of_b_is_the_sigmoid(a, b):
    "The derivative of u by b is silu(a) = a sigmoid(a), not the sigmoid alone."
    return _own_backward(lambda g, a, b, s: (_right(g, a, b, s)[0], g * s))(a, b)


@lean_swiglu.mistake("the gradients change places", hint=2)
def the_gradients_change_places(a, b):
    "backward returns the gradients in the order of forward's arguments: a first, then b."
    return _own_backward(lambda g, a, b, s: _right(g, a, b, s)[::-1])(a, b)


@lean_swiglu.mistake("the gate and the value change places", hint=1)
def the_gate_and_the_value_change_places(a, b):
    "The silu is taken of a, the first argument."
    return gated(b, a)


@lean_swiglu.mistake("a sigmoid for a gate", hint=1)
def a_sigmoid_for_a_gate(a, b):
    "That is the GLU of 2016: sigmoid(a) b. SwiGLU's gate is a sigmoid(a)."
    return torch.sigmoid(a) * b


@lean_swiglu.mistake("the result stays float32", hint=3)
def the_result_stays_float32(a, b):
    "The result must have the dtype of a and b."
    return gated(a.to(torch.promote_types(a.dtype, torch.float32)), b)
