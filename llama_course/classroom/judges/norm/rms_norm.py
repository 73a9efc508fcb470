"What the judge knows of `rms_norm`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.norm.common import norm_cases

rms_norm = Exercise(
    "rms_norm",
    chapter="08_norm",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    wrt=("x", "weight"),
    points={"values": 4, "gradients": 2, "laws": 2, "cost": 2},
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
