"What the judge knows of `pre_norm_block`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.norm.rms_norm import reference

pre_norm_block = Exercise(
    "pre_norm_block",
    chapter="08_norm",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    wrt=("x", "w1", "w2", "g1", "g2"),
    factor=16.0,
    points={"values": 5, "gradients": 2, "laws": 3},
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
    for shape, dtype, eps in (
        ((4, 8), torch.float64, 1e-5),
        ((2, 3, 16), torch.float32, 1e-5),
        ((1, 5, 32), torch.float32, 0.1),
        ((8,), torch.float32, 1e-5),  # a single vector
    ):
        width = shape[-1]
        x = torch.randn(shape, generator=random)
        w1, w2 = torch.randn(2, width, width, generator=random) / width**0.5
        g1, g2 = 1 + 0.5 * torch.randn(2, width, generator=random)
        yield tuple(t.to(dtype) for t in (2 * x + 0.5, w1, w2, g1, g2)) + (eps,)


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


@pre_norm_block.mistake("an eps of one's own", hint=3)
def an_eps_of_ones_own(x, w1, w2, g1, g2, eps):
    "Both norms use the eps that was given."
    return truth_of_pre_norm_block(x, w1, w2, g1, g2, 1e-5)


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
