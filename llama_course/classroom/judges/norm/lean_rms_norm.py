"What the judge knows of `lean_rms_norm`. Spoilers ahead."

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.norm.common import norm_cases
from llama_course.classroom.judges.norm.rms_norm import reference, with_rsqrt

lean_rms_norm = Exercise(
    "lean_rms_norm",
    chapter="08_norm",
    kind="extend",
    minutes=45,
    difficulty=3,
    wrt=("x", "weight"),
    points={"values": 1, "gradients": 2, "laws": 1, "cost": 6},
    hints=(
        "A torch.autograd.Function has two static methods, forward(ctx, x, weight, eps) and "
        "backward(ctx, grad). What backward needs goes through ctx.save_for_backward; it "
        "returns one gradient for each argument of forward.",
        "With r = 1/sqrt(mean(x²) + eps): the gradient of x is r (g w) - r³/D x sum(g w x). "
        "The second term is there because r depends on x. The gradient of weight is g x r, "
        "summed over all rows.",
        "Keep x, weight (they exist anyway) and r; compute x r again in backward. Anything "
        "made in forward and still reachable afterwards counts, also as an attribute of ctx "
        "or in a list. 16-bit inputs: compute in float32.",
    ),
)


lean_rms_norm.cases(norm_cases)


lean_rms_norm.reference(reference)


@lean_rms_norm.limit("saved_bytes", "x and weight exist anyway; one more number a row is enough")
def most_saved_bytes_of_lean_rms_norm(x, weight, eps):
    return 8 * x.numel() // x.shape[-1]


@lean_rms_norm.invariant("a row's length does not matter, so its gradient is orthogonal to it")
def a_rows_length_does_not_matter(seen):
    random = torch.Generator().manual_seed(3)
    x, weight, arriving = (
        torch.randn(4, 16, generator=random, dtype=torch.float64) for _ in range(3)
    )
    grad = seen(x, weight[0], 1e-14, wrt=(0,), cotangent=arriving).grads[0]
    return (x * grad).sum(-1).abs().max().item() < 1e-9


def _lean(gradients, keep=lambda ctx, wide, r: None, upcast=True):
    "An answer with the backward function `gradients(x, weight, r, g, eps) -> (of x, of weight)`."

    class Lean(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, eps):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
            ctx.save_for_backward(x, weight, r)
            ctx.eps, ctx.more = eps, keep(ctx, wide, r)
            return (wide * r).type_as(x) * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight, r = ctx.saved_tensors
            widen = lambda t: t.to(torch.promote_types(t.dtype, torch.float32)) if upcast else t
            r = r if upcast else r.type_as(x)
            of_x, of_weight = gradients(widen(x), widen(weight), widen(r), widen(grad), ctx.eps)
            return of_x.type_as(x), of_weight.type_as(weight), None

    return lambda x, weight, eps: Lean.apply(x, weight, eps)


def _over_rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1]).sum(0)


def _right_gradients(x, weight, r, g, eps):
    inner = (g * weight * x).mean(-1, keepdim=True)
    return r * g * weight - r**3 * x * inner, _over_rows(g * x * r)


lean_rms_norm.right(_lean(_right_gradients))


@lean_rms_norm.right
def checkpointed_norm(x, weight, eps):
    return checkpoint(with_rsqrt, x, weight, eps, use_reentrant=False, preserve_rng_state=False)


class _Again(torch.autograd.Function):
    "Keeps nothing but its arguments and lets autograd do the work a second time, on the way back."

    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return with_rsqrt(x, weight, eps)

    @staticmethod
    def backward(ctx, grad):
        x, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = with_rsqrt(x, weight, ctx.eps)
        return *torch.autograd.grad(y, (x, weight), grad), None


lean_rms_norm.right(_Again.apply)


@lean_rms_norm.mistake("autograd keeps the normalized rows", hint=1)
def autograd_keeps_the_normalized_rows(x, weight, eps):
    """Plain operations let autograd save the normalized rows: write the backward function
    yourself."""
    return with_rsqrt(x, weight, eps)


@lean_rms_norm.mistake("a copy hidden on ctx", hint=3)
def a_copy_hidden_on_ctx(x, weight, eps):
    """An attribute of ctx that holds a tensor keeps it alive, whether save_for_backward knows of
    it or not."""
    return _lean(_right_gradients, keep=lambda ctx, wide, r: (wide * r, wide + 0))(x, weight, eps)


@lean_rms_norm.mistake("the scale is taken for a constant", hint=2)
def the_scale_is_taken_for_a_constant(x, weight, eps):
    "The second term of the gradient is missing: the scale depends on x too."
    return _lean(lambda x, w, r, g, eps: (r * g * w, _over_rows(g * x * r)))(x, weight, eps)


@lean_rms_norm.mistake("a sum where the mean belongs", hint=2)
def a_sum_where_the_mean_belongs(x, weight, eps):
    "The second term lacks its 1/D."

    def gradients(x, w, r, g, eps):
        return r * g * w - r**3 * x * (g * w * x).sum(-1, keepdim=True), _over_rows(g * x * r)

    return _lean(gradients)(x, weight, eps)


@lean_rms_norm.mistake("r instead of r cubed", hint=2)
def r_instead_of_r_cubed(x, weight, eps):
    "The derivative of 1/sqrt(m) is -1/2 m^(-3/2): the second term has r³."

    def gradients(x, w, r, g, eps):
        return r * g * w - r * x * (g * w * x).mean(-1, keepdim=True), _over_rows(g * x * r)

    return _lean(gradients)(x, weight, eps)


@lean_rms_norm.mistake("the gain is missing in the gradient of x", hint=2)
def the_gain_is_missing_in_the_gradient_of_x(x, weight, eps):
    "The gradient passes through the product with weight first: g w, not g."

    def gradients(x, w, r, g, eps):
        return _right_gradients(x, torch.ones_like(w), r, g, eps)

    return _lean(gradients)(x, weight, eps)


@lean_rms_norm.mistake("the gradient of weight is averaged", hint=2)
def the_gradient_of_weight_is_averaged(x, weight, eps):
    "All rows share the weight, so their gradients are added, not averaged."

    def gradients(x, w, r, g, eps):
        return _right_gradients(x, w, r, g, eps)[0], (g * x * r).reshape(-1, x.shape[-1]).mean(0)

    return _lean(gradients)(x, weight, eps)


@lean_rms_norm.mistake("the gradient of weight without the scale", hint=2)
def the_gradient_of_weight_without_the_scale(x, weight, eps):
    "weight multiplies x r, so its gradient is g x r."

    def gradients(x, w, r, g, eps):
        return _right_gradients(x, w, r, g, eps)[0], _over_rows(g * x)

    return _lean(gradients)(x, weight, eps)


@lean_rms_norm.mistake("the backward pass in 16 bits", hint=3)
def the_backward_pass_in_16_bits(x, weight, eps):
    "r³ and the sums need float32: in float16 r³ becomes zero or infinite."
    return _lean(_right_gradients, upcast=False)(x, weight, eps)
