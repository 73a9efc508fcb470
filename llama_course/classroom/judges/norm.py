"What the judge knows of the three exercises in `exercises/08_norm.ipynb`. Spoilers from here on."

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing


def norm_cases(seed: int):
    "Arguments (x, weight, eps) in all dtypes, rows from 0.001 to 1 times the case's size."
    random = torch.Generator().manual_seed(seed)
    for dtype, size, shape, eps in (
        (torch.float64, 1.0, (3, 8), 1e-5),
        (torch.float32, 1.0, (5, 24), 1e-5),
        (torch.float32, 0.05, (2, 3, 16), 1e-3),
        (torch.float32, 3.0, (2, 4, 2, 64), 1e-6),
        (torch.bfloat16, 2.0, (2, 6, 32), 1e-5),
        (torch.float16, 300.0, (4, 4, 32), 1e-5),
        (torch.float16, 0.02, (6, 48), 1e-6),
        (torch.float32, 2.0, (12,), 1e-5),  # a single vector
    ):
        spread = 10 ** (3 * torch.rand(*shape[:-1], 1, generator=random) - 3)
        x = size * spread * (0.5 + torch.randn(shape, generator=random))
        if size == 1.0:
            x.view(-1, shape[-1])[0] = 0
        weight = 1 + 0.5 * torch.randn(shape[-1], generator=random)
        yield x.to(dtype), weight.to(dtype), eps


rms_norm = Exercise(
    "rms_norm",
    chapter="08_norm",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    wrt=("x", "weight"),
    call=refusing("rms_norm", "fused_rms_norm"),
    points={"values": 4, "gradients": 2, "invariant": 2, "ledger": 2},
    hints=(
        "Three steps: the mean of the squares of each row, one number that scales the row, "
        "the gain.",
        "y = x / sqrt(mean(x²) + eps) * weight. The mean is over the last dimension only, "
        "keepdim=True makes it fit, and eps stands inside the root: without it a row of zeros"
        " is 0/0, beside the root it changes small rows.",
        "Squares need more range than 16 bits have: 300² is infinite in float16. Go to "
        "float32 first (but leave float64 alone), and come back with .type_as(x) before the "
        "gain.",
        "Nothing else is needed: products of elements, no matrices, nothing written into x, "
        "and no view() of an x that may be transposed. What you compute in float64 is kept in"
        " float64, twice the bytes.",
    ),
)
rms_norm.cases(norm_cases)


@rms_norm.reference
def reference(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


@rms_norm.right
def with_rsqrt(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight


@rms_norm.right
def with_vector_norm(x, weight, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = (length**2 / x.shape[-1] + eps) ** 0.5
    return (wide / root * weight).to(x.dtype)


@rms_norm.invariant("how x lies in memory does not matter: a transposed x gives the same rows")
def how_x_lies_in_memory_does_not_matter(seen):
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1))
    weight = torch.linspace(0.5, 1.5, 16)
    apart = seen(x.transpose(0, 1).contiguous(), weight, 1e-5).value
    return torch.allclose(seen(x.transpose(0, 1), weight, 1e-5).value, apart, rtol=1e-5)


@rms_norm.invariant("x times a constant gives the same result when eps is negligible")
def x_times_a_constant_gives_the_same_result_when_eps_is(seen):
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    weight = torch.linspace(0.5, 1.5, 16)
    return torch.allclose(
        seen(x, weight, 1e-12).value, seen(1000 * x, weight, 1e-12).value, rtol=1e-5
    )


@rms_norm.limit("saved_bytes", "two float32 copies of x and a few numbers a row are enough")
def most_saved_bytes_of_rms_norm(x, weight, eps):
    width = x.shape[-1]
    return (16 if x.dtype == torch.float64 else 8) * x.numel() + 40 * x.numel() // width + 8 * width


@rms_norm.limit("largest_tensor", "nothing larger than x is needed")
def most_largest_tensor_of_rms_norm(x, weight, eps):
    return x.numel()


@rms_norm.limit("flops", "no matrix product is needed")
def most_flops_of_rms_norm(x, weight, eps):
    return 0


def _scaled(x, weight, eps, mean):
    "The usual answer, with `mean(x)` in place of the mean of the squares."
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(mean(wide) + eps)).type_as(x) * weight


@rms_norm.mistake("eps is left out", hint=2)
def eps_is_left_out(x, weight, eps):
    "Without eps a row of zeros becomes 0/0, and small rows come out too large."
    return with_rsqrt(x, weight, 0.0)


@rms_norm.mistake("eps outside the root", hint=2)
def eps_outside_the_root(x, weight, eps):
    "eps belongs to the mean of the squares, under the root; you add it to the root."
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (wide.square().mean(-1, keepdim=True).sqrt() + eps)).type_as(x) * weight


@rms_norm.mistake("the mean is subtracted", hint=2)
def the_mean_is_subtracted(x, weight, eps):
    "That is LayerNorm: RMSNorm leaves the mean where it is."
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


@rms_norm.mistake("the variance instead of the mean square", hint=2)
def the_variance_instead_of_the_mean_square(x, weight, eps):
    ".var() and .std() measure the distance from the mean; RMSNorm measures it from zero."
    return _scaled(x, weight, eps, mean=lambda t: t.var(-1, keepdim=True))


@rms_norm.mistake("a sum instead of a mean", hint=2)
def a_sum_instead_of_a_mean(x, weight, eps):
    """The squares are summed but not divided by their number: rows get length one, not root mean
    square one."""
    return _scaled(x, weight, eps, mean=lambda t: t.square().sum(-1, keepdim=True))


@rms_norm.mistake("the mean over the whole tensor", hint=2)
def the_mean_over_the_whole_tensor(x, weight, eps):
    "One number scales all rows: the mean must be over the last dimension, row by row."
    return _scaled(x, weight, eps, mean=lambda t: t.square().mean())


@rms_norm.mistake("the mean over the first axis", hint=2)
def the_mean_over_the_first_axis(x, weight, eps):
    "The columns are normalized instead of the rows: the mean must be over dimension -1."
    return _scaled(x, weight, eps, mean=lambda t: t.square().mean(0, keepdim=True))


@rms_norm.mistake("the gain is forgotten", hint=1)
def the_gain_is_forgotten(x, weight, eps):
    "The result is not multiplied by weight."
    return with_rsqrt(x, torch.ones_like(weight), eps)


@rms_norm.mistake("one plus the gain", hint=1)
def one_plus_the_gain(x, weight, eps):
    "Some models store the gain as its difference from one; LLaMA stores the gain itself."
    return with_rsqrt(x, 1 + weight, eps)


@rms_norm.mistake("squares in 16 bits", hint=3)
def squares_in_16_bits(x, weight, eps):
    """Squares are taken in the dtype of x: in float16 that of 300 is infinite and that of 0.0001
    is zero."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@rms_norm.mistake("the result stays float32", hint=3)
def the_result_stays_float32(x, weight, eps):
    "The result must have the dtype of x: go back with .type_as(x)."
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


@rms_norm.mistake("x is changed in place", hint=4)
def x_is_changed_in_place(x, weight, eps):
    "x.mul_() and x *= write into the caller's tensor, which the residual stream still needs."
    return x.copy_(with_rsqrt(x, weight, eps))


@rms_norm.mistake("the scale is cut off from the graph", hint=1)
def the_scale_is_cut_off_from_the_graph(x, weight, eps):
    """The scale depends on x, so its derivative belongs to the gradient: no .detach(), .item()
    or no_grad()."""
    return _scaled(x, weight, eps, mean=lambda t: t.detach().square().mean(-1, keepdim=True))


@rms_norm.mistake("view() of an x that may be transposed", hint=4)
def view_of_an_x_that_may_be_transposed(x, weight, eps):
    "x.view(-1, D) fails when x is not contiguous; work on the last dimension, or use reshape."
    return with_rsqrt(x.view(-1, x.shape[-1]), weight, eps).view(x.shape)


@rms_norm.mistake("everything in float64", hint=4)
def everything_in_float64(x, weight, eps):
    "float64 is not needed for the squares, float32 has range enough; it doubles what is kept."
    wide = x.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.double()).type_as(x)


@rms_norm.mistake("the gain as a diagonal matrix", hint=4)
def the_gain_as_a_diagonal_matrix(x, weight, eps):
    "A product with a D×D matrix costs D times as much as a product of elements."
    return with_rsqrt(x, torch.ones_like(weight), eps) @ torch.diag(weight)


@rms_norm.mistake("the library's own norm", hint=1)
def the_librarys_own_norm(x, weight, eps):
    "F.rms_norm and nn.RMSNorm are what this task builds."
    return F.rms_norm(x, (len(weight),), weight, eps)


lean_rms_norm = Exercise(
    "lean_rms_norm",
    chapter="08_norm",
    kind="extend",
    minutes=45,
    difficulty=3,
    wrt=("x", "weight"),
    points={"values": 1, "gradients": 2, "invariant": 1, "ledger": 6},
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


pre_norm_block = Exercise(
    "pre_norm_block",
    chapter="08_norm",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    wrt=("x", "w1", "w2", "g1", "g2"),
    factor=16.0,
    points={"values": 5, "gradients": 2, "invariant": 3},
    hints=(
        "Set both matrices to zero. What should come out, and what does?",
        "There are three mistakes. Follow the stream: what is added to what? Then look at "
        "which gain stands where.",
        "Both sums must start from the stream: the first from x, not from the normalized x, and "
        "the second from h, not from the normalized h. And the second norm has its own gain, g2.",
    ),
)


@pre_norm_block.cases
def cases_of_pre_norm_block(seed):
    random = torch.Generator().manual_seed(seed)
    for shape, dtype in (
        ((4, 8), torch.float64),
        ((2, 3, 16), torch.float32),
        ((1, 5, 32), torch.float32),
    ):
        width = shape[-1]
        x = torch.randn(shape, generator=random)
        w1, w2 = torch.randn(2, width, width, generator=random) / width**0.5
        g1, g2 = 1 + 0.5 * torch.randn(2, width, generator=random)
        yield tuple(t.to(dtype) for t in (2 * x + 0.5, w1, w2, g1, g2)) + (1e-5,)


@pre_norm_block.reference
def truth_of_pre_norm_block(x, w1, w2, g1, g2, eps):
    h = x + reference(x, g1, eps) @ w1
    return h + reference(h, g2, eps) @ w2


@pre_norm_block.invariant(
    "with both matrices zero the stream passes unchanged, forwards and backwards"
)
def with_both_matrices_zero_the_stream_passes_unchanged(seen):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    zero, gain = torch.zeros(8, 8), torch.ones(8)
    result = seen(x, zero, zero, gain, gain, 1e-5, wrt=(0,), cotangent=torch.ones(3, 8))
    return torch.equal(result.value, x) and torch.allclose(result.grads[0], torch.ones(3, 8))


@pre_norm_block.right
def in_two_sums(x, w1, w2, g1, g2, eps):
    def norm(x, g):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * g

    x = x + norm(x, g1) @ w1
    return x + norm(x, g2) @ w2


@pre_norm_block.right
def in_a_loop(x, w1, w2, g1, g2, eps):
    for g, w in ((g1, w1), (g2, w2)):
        root = ((x**2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()
        x = x + torch.einsum("...i,i,ij->...j", x / root, g, w)
    return x


@pre_norm_block.mistake("the block as it was given", hint=1)
def the_block_as_it_was_given(x, w1, w2, g1, g2, eps):
    "The sum starts from the normalized x, and both norms use the gain g1."
    x = reference(x, g1, eps)
    x = x + x @ w1
    h = reference(x, g1, eps)
    return h + h @ w2


@pre_norm_block.mistake("the sum starts from the normalized x", hint=3)
def the_sum_starts_from_the_normalized_x(x, w1, w2, g1, g2, eps):
    "norm(x) + norm(x) W puts the norm on the road of the gradient; it must be x + norm(x) W."
    x = reference(x, g1, eps)
    h = x + x @ w1
    h = reference(h, g2, eps)
    return h + h @ w2


@pre_norm_block.mistake("the first gain is used twice", hint=3)
def the_first_gain_is_used_twice(x, w1, w2, g1, g2, eps):
    "The second norm has a gain of its own, g2."
    h = x + reference(x, g1, eps) @ w1
    return h + reference(h, g1, eps) @ w2


@pre_norm_block.mistake("the second norm reads x", hint=3)
def the_second_norm_reads_x(x, w1, w2, g1, g2, eps):
    "Both sub-layers read the same x: that is the parallel block of GPT-J and PaLM, not LLaMA's."
    return x + reference(x, g1, eps) @ w1 + reference(x, g2, eps) @ w2


@pre_norm_block.mistake("post-normalization", hint=1)
def post_normalization(x, w1, w2, g1, g2, eps):
    "The norm stands after the sum, as in the transformer of 2017."
    h = reference(x + x @ w1, g1, eps)
    return reference(h + h @ w2, g2, eps)


@pre_norm_block.mistake("the output of the sub-layer is normalized", hint=1)
def the_output_of_the_sub_layer_is_normalized(x, w1, w2, g1, g2, eps):
    "The norm must come before the matrix, not after it."
    h = x + reference(x @ w1, g1, eps)
    return h + reference(h @ w2, g2, eps)


@pre_norm_block.mistake("the first sum is lost", hint=2)
def the_first_sum_is_lost(x, w1, w2, g1, g2, eps):
    "The second sub-layer adds to x instead of to the stream after the first."
    h = x + reference(x, g1, eps) @ w1
    return x + reference(h, g2, eps) @ w2


@pre_norm_block.mistake("no second sum", hint=2)
def no_second_sum(x, w1, w2, g1, g2, eps):
    "The second sub-layer's result replaces the stream instead of being added to it."
    h = x + reference(x, g1, eps) @ w1
    return reference(h, g2, eps) @ w2
