"What the judge knows of `swiglu`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.feedforward.common import _some, _weights

swiglu = Exercise(
    "swiglu",
    chapter="09_feedforward",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    wrt=("x", "w1", "w2", "w3"),
    factor=32.0,
    points={"values": 4, "gradients": 3, "laws": 2, "cost": 1},
    hints=(
        "Three matrices, two branches: a = x w1ᵀ goes through silu, b = x w3ᵀ stays as it is; the "
        "product of the two, element by element, goes through w2.",
        "silu(a) = a · sigmoid(a). A matrix stored as (F, D) is applied by x @ w.T, for any "
        "number of dimensions of x.",
        "a / (1 + exp(-a)) has the right values for a = -200, but its derivative there is "
        "inf / inf: torch.sigmoid takes care of both.",
        "No more than three products of matrices are needed: apply w1 once and keep what comes "
        "out, instead of applying it for a and again for sigmoid(a).",
    ),
)


@swiglu.cases
def cases_of_swiglu(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, inside, size in (
        (torch.float64, (3, 4), 6, 1.0),
        (torch.float32, (2, 5, 8), 12, 1.0),
        (torch.float32, (8,), 20, 1.0),  # a single vector
        (torch.float32, (2, 3, 6), 4, 300.0),  # gates of several hundred
        (torch.float32, (4, 1), 1, 2.0),
        (torch.bfloat16, (2, 3, 8), 16, 1.0),
    ):
        x = size * torch.randn(shape, generator=draw)
        if len(shape) > 2:
            x[0, 0] = 0
        w1, w2, w3 = _weights(draw, shape[-1], inside)
        yield tuple(t.to(dtype) for t in (x, w1, w2, w3))


@swiglu.reference
def truth_of_swiglu(x, w1, w2, w3):
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@swiglu.right
def with_sigmoid(x, w1, w2, w3):
    a, b = x @ w1.T, x @ w3.T
    return (a * torch.sigmoid(a) * b) @ w2.T


@swiglu.right
def with_one_product_for_both(x, w1, w2, w3):
    a, b = F.linear(x, torch.cat((w1, w3))).chunk(2, -1)
    return F.linear(b * a * torch.special.expit(a), w2)


@swiglu.invariant("each token is treated for itself")
def each_token_is_treated_for_itself(seen):
    x, *weights = _some()
    whole = seen(x, *weights).value
    alone = [seen(row, *weights).value for row in x]
    return torch.allclose(whole, torch.stack(alone), rtol=1e-4, atol=1e-6)


@swiglu.invariant("doubling w3 doubles the result; w1 and w3 are not the same to it")
def doubling_w3_doubles_the_result(seen):
    x, w1, w2, w3 = _some(2)
    once, twice = seen(x, w1, w2, w3).value, seen(x, w1, w2, 2 * w3).value
    other = seen(x, w3, w2, w1).value
    return torch.allclose(2 * once, twice, rtol=1e-4, atol=1e-6) and not torch.allclose(once, other)


@swiglu.limit("flops", "three products of matrices, two FLOPs per token and parameter")
def most_flops_of_swiglu(x, w1, w2, w3):
    return 6 * x.numel() // x.shape[-1] * w1.numel()


def _mlp(x, w1, w2, w3, join):
    a, b = x @ w1.T, x @ w3.T
    return join(a, b) @ w2.T


@swiglu.mistake("the derivative is inf / inf", hint=3)
def the_derivative_is_inf_by_inf(x, w1, w2, w3):
    "exp(-a) is infinite for a = -200, and so its derivative is no number: use torch.sigmoid."
    return _mlp(x, w1, w2, w3, lambda a, b: a / (1 + torch.exp(-a)) * b)


@swiglu.mistake("silu on the other branch", hint=1)
def silu_on_the_other_branch(x, w1, w2, w3):
    "silu is applied to what w1 makes; what w3 makes stays as it is."
    return _mlp(x, w1, w2, w3, lambda a, b: a * b * torch.sigmoid(b))


@swiglu.mistake("sigmoid instead of silu", hint=2)
def sigmoid_instead_of_silu(x, w1, w2, w3):
    "That is the GLU of 2016: silu(a) is a times sigmoid(a)."
    return _mlp(x, w1, w2, w3, lambda a, b: torch.sigmoid(a) * b)


@swiglu.mistake("ReLU instead of silu", hint=2)
def relu_instead_of_silu(x, w1, w2, w3):
    "That is ReGLU: silu is smooth, and below zero it is not quite zero."
    return _mlp(x, w1, w2, w3, lambda a, b: a.clamp(min=0) * b)


@swiglu.mistake("GELU instead of silu", hint=2)
def gelu_instead_of_silu(x, w1, w2, w3):
    "That is GeGLU: LLaMA's gate is silu, a times sigmoid(a)."
    return _mlp(x, w1, w2, w3, lambda a, b: F.gelu(a) * b)


@swiglu.mistake("the branches are added", hint=1)
def the_branches_are_added(x, w1, w2, w3):
    "The two branches are multiplied, element by element."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a) + b)


@swiglu.mistake("no gate", hint=1)
def no_gate(x, w1, w2, w3):
    "The branch of w3 is missing: that is the feed-forward network without its gate."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a))


@swiglu.mistake("silu of the product", hint=1)
def silu_of_the_product(x, w1, w2, w3):
    "silu comes before the product of the two branches, not after it."
    return _mlp(x, w1, w2, w3, lambda a, b: a * b * torch.sigmoid(a * b))


@swiglu.mistake("the gate is cut off from the graph", hint=2)
def the_gate_is_cut_off_from_the_graph(x, w1, w2, w3):
    "sigmoid(a) depends on x and w1, so its derivative belongs to the gradient."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a.detach()) * b)


@swiglu.mistake("w1 is applied twice", hint=4)
def w1_is_applied_twice(x, w1, w2, w3):
    "Right in value, but x @ w1.T is computed twice: a third more work."
    return (x @ w1.T * torch.sigmoid(x @ w1.T) * (x @ w3.T)) @ w2.T


@swiglu.mistake("the library's own silu", hint=2)
def the_librarys_own_silu(x, w1, w2, w3):
    "F.silu is what this task builds: a times sigmoid(a)."
    return truth_of_swiglu(x, w1, w2, w3)
