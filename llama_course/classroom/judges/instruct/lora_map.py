"What the judge knows of `lora_map`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_course.classroom.exercise import Exercise


def lora_cases(seed: int):
    """Arguments (x, weight, noise, da, db, alpha): (..., in), (out, in), (r, in), (r, in), (out,
    r), a number."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=random)
    for shape, out, rank, alpha, moved, dtype in (
        ((2, 5, 12), 18, 4, 8.0, 1.0, torch.float32),
        ((7, 16), 16, 2, 16.0, 1.0, torch.float32),
        ((3, 4, 20), 10, 3, 1.0, 0.0, torch.float32),
        ((6, 14), 22, 5, 10.0, 0.3, torch.float64),
        ((9,), 6, 2, 4.0, 1.0, torch.float32),  # a single vector
    ):
        width = shape[-1]
        args = (
            normal(*shape),
            normal(out, width) / width**0.5,
            normal(rank, width) / width**0.5,
            0.5 * moved * normal(rank, width),
            moved * normal(out, rank),
        )
        yield *(t.to(dtype) for t in args), alpha


lora_map = Exercise(
    "lora_map",
    chapter="29_instruct",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    wrt=("x", "da", "db"),
    factor=64.0,
    points={"values": 2, "gradients": 1, "laws": 1, "cost": 6},
    hints=(
        "The map is W x + (alpha / r) B A x. W never changes. A and B are what they were at "
        "the start plus da and db. Which of them may be random at the start, if the product "
        "has to be zero?",
        "If A and B were both zero, the gradient of each would be zero, too: it holds the "
        "other as a factor. So one of them starts random and the other at zero, and here the "
        "random one has the shape of A.",
        "weight.detach() keeps W out of the gradient. Multiply x by A first, (..., r), and "
        "then by B: the product B A would be as large as W.",
    ),
)


lora_map.cases(lora_cases)


@lora_map.reference
def truth_of_lora_map(x, weight, noise, da, db, alpha):
    return F.linear(x, weight + alpha / len(noise) * db @ (noise + da))


def _lora(
    x,
    weight,
    noise,
    da,
    db,
    alpha,
    a=lambda noise, da: noise + da,
    b=lambda noise, db: db,
    scale=lambda alpha, rank: alpha / rank,
    frozen=Tensor.detach,
):
    "The right answer, with parts that can be exchanged for wrong ones."
    thin = F.linear(x, a(noise, da))
    return F.linear(x, frozen(weight)) + F.linear(thin, b(noise, db)) * scale(alpha, len(noise))


@lora_map.right
def as_the_paper_writes_it(x, weight, noise, da, db, alpha):
    return _lora(x, weight, noise, da, db, alpha)


@lora_map.right
def scaled_at_the_input(x, weight, noise, da, db, alpha):
    thin = torch.einsum("...i,ri->...r", x * (alpha / da.size(0)), noise + da)
    return x @ weight.data.mT + thin @ db.mT


@lora_map.invariant(
    "before the first step it is the frozen map, and db has a gradient that is not zero"
)
def before_the_first_step_it_is_the_frozen_map(seen):
    x, weight, noise, da, db, alpha = next(lora_cases(9))
    start = seen(
        x, weight, noise, 0 * da, 0 * db, alpha, wrt=(3, 4), cotangent=torch.ones(2, 5, 18)
    )
    return (
        torch.allclose(start.value, F.linear(x, weight), atol=1e-6)
        and start.grads[1].abs().max() > 0.1
    )


@lora_map.invariant("no gradient reaches the frozen weight")
def no_gradient_reaches_the_frozen_weight(seen):
    args = next(lora_cases(9))
    grads = seen(*args, wrt=(1,), cotangent=torch.ones(2, 5, 18)).grads
    return grads is None or grads[0] is None or not grads[0].any()


@lora_map.limit("flops", "the frozen map, and two thin ones: x A first, and then B")
def most_flops_of_lora_map(x, weight, noise, da, db, alpha):
    return 2 * (x.numel() // x.shape[-1]) * (weight.numel() + noise.numel() + db.numel())


@lora_map.limit("largest_tensor", "nothing of the size of weight is made")
def most_largest_tensor_of_lora_map(x, weight, noise, da, db, alpha):
    return max(weight.numel() - 1, x.numel(), x.numel() // x.shape[-1] * len(weight))


@lora_map.mistake("both start at zero", hint=2)
def both_start_at_zero(x, weight, noise, da, db, alpha):
    """Without the noise A and B are both zero at the start: each one's gradient has the other as
    a factor, so nothing ever moves."""
    return _lora(x, weight, noise, da, db, alpha, a=lambda noise, da: da)


@lora_map.mistake("both start at random", hint=1)
def both_start_at_random(x, weight, noise, da, db, alpha):
    "B must be db alone: with noise in both, the model is another one before the first step."
    return _lora(
        x,
        weight,
        noise,
        da,
        db,
        alpha,
        b=lambda noise, db: db + noise.mT.repeat(len(db), 1)[: len(db)],
    )


@lora_map.mistake("alpha without the rank", hint=1)
def alpha_without_the_rank(x, weight, noise, da, db, alpha):
    "The product is scaled by alpha / r, so that a larger rank does not move the model further."
    return _lora(x, weight, noise, da, db, alpha, scale=lambda alpha, rank: alpha)


@lora_map.mistake("no scale", hint=1)
def no_scale(x, weight, noise, da, db, alpha):
    "The product is scaled by alpha / r."
    return _lora(x, weight, noise, da, db, alpha, scale=lambda alpha, rank: 1.0)


@lora_map.mistake("the root of the rank", hint=1)
def the_root_of_the_rank(x, weight, noise, da, db, alpha):
    "alpha / sqrt(r) is another method's rule; Hu et al. divide by r."
    return _lora(x, weight, noise, da, db, alpha, scale=lambda alpha, rank: alpha / rank**0.5)


@lora_map.mistake("the weight learns, too", hint=3)
def the_weight_learns_too(x, weight, noise, da, db, alpha):
    """A gradient reaches weight, so the optimizer would keep two numbers for each of its
    elements: detach it."""
    return _lora(x, weight, noise, da, db, alpha, frozen=lambda weight: weight)


@lora_map.mistake("only B learns", hint=2)
def only_b_learns(x, weight, noise, da, db, alpha):
    "A has to learn as well: noise is a constant, da is not, so their sum must not be detached."
    return _lora(x, weight, noise, da, db, alpha, a=lambda noise, da: (noise + da).detach())


@lora_map.mistake("the sum of both matrices is made", hint=3)
def the_sum_of_both_matrices_is_made(x, weight, noise, da, db, alpha):
    """W + scale B A is as large as W: that is for the end, when the two are merged, and not for
    every step."""
    return F.linear(x, weight.detach() + alpha / len(noise) * db @ (noise + da))


@lora_map.mistake("A reads what W wrote", hint=1)
def a_reads_what_w_wrote(x, weight, noise, da, db, alpha):
    "Both ways start from x; here the thin way starts from the output of the frozen one."
    y = F.linear(x, weight.detach())
    thin = F.linear(y[..., : x.shape[-1]], (noise + da)[:, : y.shape[-1]])
    return y + F.linear(thin, db) * alpha / len(noise)


@lora_map.mistake("the frozen map is missing", hint=1)
def the_frozen_map_is_missing(x, weight, noise, da, db, alpha):
    "The product is added to what the map did before, it does not take its place."
    return _lora(x, 0 * weight, noise, da, db, alpha)


@lora_map.mistake("everything is cut off", hint=3)
def everything_is_cut_off(x, weight, noise, da, db, alpha):
    "Only weight is frozen: under no_grad the whole result is."
    with torch.no_grad():
        return _lora(x, weight, noise, da, db, alpha)
