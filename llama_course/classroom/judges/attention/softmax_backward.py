"What the judge knows of `softmax_backward`. Spoilers ahead."

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise


def _peakedness(p, grad) -> float:
    """Where one weight is nearly 1, grad minus the sum is small: so much larger becomes each
    rounding of it."""
    return 1.0 if p.itemsize < 4 else 1 / (1 - p.double().amax(-1)).min().item()


softmax_backward = Exercise(
    "softmax_backward",
    chapter="11_attention",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    factor=16.0,
    condition=_peakedness,
    points={"values": 5, "laws": 3, "cost": 2},
    hints=(
        "Every score moves every weight of its row: raising one lowers all others. Which "
        "derivative has weight i by score j, for i = j and for i different from j?",
        "dp_i/ds_j = p_i (1 if i = j else 0) - p_i p_j. Multiply by grad_i, sum over i, and "
        "take p_j out of the bracket.",
        "p * (grad - sum), where sum is one number a row: the sum over the row of p * grad. "
        "keepdim=True lets it broadcast.",
        "In 16 bits compute in float32 and come back at the end. No matrix of S x S "
        "derivatives is needed.",
    ),
)


@softmax_backward.cases
def cases_of_softmax_backward(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, sharp, offset in (
        (torch.float64, (3, 8), 1.0, 0.0),
        (torch.float32, (2, 3, 16), 1.0, 0.0),
        (torch.float32, (5, 33), 4.0, 0.0),
        (torch.bfloat16, (2, 4, 24), 1.0, 100.0),
        (torch.float16, (6, 40), 2.0, 300.0),
        (torch.float32, (9,), 1.0, 0.0),  # a single row
    ):
        scores = sharp * torch.randn(shape, generator=random, dtype=torch.float64)
        scores[..., -2:] = -torch.inf  # masked
        yield (
            scores.softmax(-1).to(dtype),
            (offset + torch.randn(shape, generator=random)).to(dtype),
        )


@softmax_backward.reference
def truth_of_softmax_backward(p, grad):
    jacobian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return (jacobian * grad[..., :, None]).sum(-2)


@softmax_backward.right
def in_float32(p, grad):
    wide = torch.promote_types(p.dtype, torch.float32)
    q, g = p.to(wide), grad.to(wide)
    return (q * (g - (q * g).sum(-1, keepdim=True))).to(p.dtype)


@softmax_backward.right
def with_einsum(p, grad):
    q, g = (t if t.dtype == torch.float64 else t.float() for t in (p, grad))
    mean = torch.einsum("...s,...s->...", q, g)
    return (q * g - q * mean[..., None]).type_as(p)


@softmax_backward.invariant(
    "adding a number to all scores changes no weight, so each row sums to zero"
)
def adding_a_number_to_all_scores_changes_no_weight(seen):
    random = torch.Generator().manual_seed(3)
    p, grad = torch.randn(5, 12, generator=random).softmax(-1), torch.randn(5, 12, generator=random)
    return seen(p, grad).value.sum(-1).abs().max() < 1e-6


@softmax_backward.invariant("a gradient that is the same for all weights of a row moves nothing")
def a_gradient_that_is_the_same_for_all_weights_of_a(seen):
    p = torch.randn(5, 12, generator=torch.Generator().manual_seed(4)).softmax(-1)
    return seen(p, torch.full((5, 12), 3.0)).value.abs().max() < 1e-5


@softmax_backward.limit(
    "largest_tensor", "one number a row is needed, not a matrix of S x S derivatives"
)
def most_largest_tensor_of_softmax_backward(p, grad):
    return p.numel()


@softmax_backward.limit("flops", "no product of matrices is needed")
def most_flops_of_softmax_backward(p, grad):
    return 2 * p.numel()  # the sum, where it is written as a product


def _wide(p, grad, rule):
    "The rule, applied in float32."
    wide = torch.promote_types(p.dtype, torch.float32)
    return rule(p.to(wide), grad.to(wide)).to(p.dtype)


def _total(t: Tensor, axis: int = -1) -> Tensor:
    return t.sum(axis, keepdim=True)


@softmax_backward.mistake("only the diagonal", hint=1)
def only_the_diagonal(p, grad):
    "p (1 - p) grad is what a score does to its own weight; it moves all the others too."
    return _wide(p, grad, rule=lambda p, g: p * (1 - p) * g)


@softmax_backward.mistake("the sum is missing", hint=3)
def the_sum_is_missing(p, grad):
    "p * grad is the first half: subtract p times the sum of p * grad."
    return _wide(p, grad, rule=lambda p, g: p * g)


@softmax_backward.mistake("a mean in place of the sum", hint=3)
def a_mean_in_place_of_the_sum(p, grad):
    """The weights already sum to one: the sum of p * grad is an average, dividing by S again is
    too much."""
    return _wide(p, grad, rule=lambda p, g: p * (g - (p * g).mean(-1, keepdim=True)))


@softmax_backward.mistake("the sum without weights", hint=3)
def the_sum_without_weights(p, grad):
    "The sum is over p * grad, not over grad."
    return _wide(p, grad, rule=lambda p, g: p * (g - _total(g)))


@softmax_backward.mistake("the weight outside is missing", hint=2)
def the_weight_outside_is_missing(p, grad):
    "The bracket is right, but it is multiplied by p_j."
    return _wide(p, grad, rule=lambda p, g: g - _total(p * g))


@softmax_backward.mistake("the sign is flipped", hint=3)
def the_sign_is_flipped(p, grad):
    "It is grad minus the sum, not the sum minus grad."
    return _wide(p, grad, rule=lambda p, g: p * (_total(p * g) - g))


@softmax_backward.mistake("the library's own derivative", hint=1)
def the_librarys_own_derivative(p, grad):
    "Autograd's derivative of softmax is what this task builds."
    with torch.enable_grad():
        scores = p.double().log().requires_grad_()
        return torch.autograd.grad(scores.softmax(-1), scores, grad.double())[0].type_as(p)


@softmax_backward.mistake("softmax once more", hint=2)
def softmax_once_more(p, grad):
    "p is softmax's result already: no softmax is taken of it again."
    return _wide(p, grad, rule=lambda p, g: (lambda p: p * (g - _total(p * g)))(p.softmax(-1)))


@softmax_backward.mistake("over the wrong axis", hint=3)
def over_the_wrong_axis(p, grad):
    "The weights sum to one along the last axis; the sum runs along the same."
    return _wide(p, grad, rule=lambda p, g: p * (g - _total(p * g, 0)))


@softmax_backward.mistake("the sum in 16 bits", hint=4)
def the_sum_in_16_bits(p, grad):
    "grad minus the sum is a small difference of large numbers: in 16 bits little of it is left."
    return p * (grad - (p * grad).sum(-1, keepdim=True))


@softmax_backward.mistake("the Jacobian as a matrix", hint=4)
def the_jacobian_as_a_matrix(p, grad):
    "Right in value, but it makes S x S derivatives for each row where one number a row would do."

    def rule(p, g):
        jacobian = torch.diag_embed(p) - p[..., None] * p[..., None, :]
        return (jacobian * g[..., None]).sum(-2)

    return _wide(p, grad, rule)
