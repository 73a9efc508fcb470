"What the judge knows of `adamw_step`. Spoilers ahead."

import functools

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.optimizer.common import B1, B2, EPS, _by_pytorch, _step


def _cancelling(p, grad, mean, square, *rest) -> float:
    "What was and what is added may nearly cancel."
    return 8.0


adamw_step = Exercise(
    "adamw_step",
    chapter="14_optimizer",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    condition=_cancelling,
    points={"values": 7, "laws": 3},
    hints=(
        "Five lines, in this order: the mean, the square, what both would be without their start "
        "at zero, the decay, the step.",
        "The means forget: mean ← β₁ mean + (1 - β₁) grad, and the same for the square of the "
        "gradient with β₂. In step t their weights sum to 1 - βᵗ, so divide by that.",
        "ε is added to the root, not under it: it only matters where the root is nearly zero. "
        "With a gradient of zero nothing moves but the decay.",
        "The decay stands beside the rest: p ← p - lr · decay · p. It never passes through the "
        "means, and it is multiplied by the learning rate. Return new tensors.",
    ),
)


@adamw_step.cases
def cases_of_adamw_step(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, step, size, lr, decay in (
        (torch.float64, (3, 4), 1, 1.0, 0.1, 0.1),
        (torch.float32, (5, 8), 1, 1.0, 3e-3, 0.0),
        (torch.float32, (2, 3, 4), 7, 0.01, 1e-2, 0.1),
        (torch.float32, (6,), 2000, 5.0, 1e-2, 0.5),
        (torch.float32, (4, 4), 3, 1e-8, 1e-2, 0.1),  # the root is about as large as eps
        (torch.float32, (), 2, 1.0, 1e-2, 0.1),  # a tensor without dimensions
        (torch.float32, (3, 5), 4, 1e-18, 1e-2, 0.2),
        (torch.float32, (3, 3), 2, 1.0, 0.0, 0.3),  # warm-up may begin at zero
    ):
        p, grad = (torch.randn(shape, generator=draw) for _ in range(2))
        mean, square = torch.randn(shape, generator=draw), torch.rand(shape, generator=draw)
        if step == 1:
            mean, square = torch.zeros(shape), torch.zeros(shape)
        if len(shape) > 1:
            grad[0], mean[0], square[0] = 0, 0, 0  # the token that never came
        tensors = p, size * grad, size * mean, size**2 * square
        yield (*(t.to(dtype) for t in tensors), step, lr, decay)


@adamw_step.reference
def truth_of_adamw_step(p, grad, mean, square, step, lr, decay):
    return _by_pytorch(p, grad, mean, square, step, lr, decay)


adamw_step.right(_step)


@adamw_step.right
def with_lerp(p, grad, mean, square, step, lr, decay):
    mean, square = mean.lerp(grad, 1 - B1), square.lerp(grad * grad, 1 - B2)
    size = (square / (1 - B2**step)).sqrt() + EPS
    return (p * (1 - lr * decay)).addcdiv(mean, size, value=-lr / (1 - B1**step)), mean, square


@adamw_step.right
def with_the_step_first(p, grad, mean, square, step, lr, decay):
    mean = mean * B1 + grad * (1 - B1)
    square = square * B2 + grad.square() * (1 - B2)
    rate = lr / (1 - B1**step)
    return p - rate * mean / ((square / (1 - B2**step)) ** 0.5 + EPS) - lr * decay * p, mean, square


def _some_state(seed=1):
    draw = torch.Generator().manual_seed(seed)
    zero = torch.zeros(4, 4)
    return torch.randn(4, 4, generator=draw), torch.randn(4, 4, generator=draw), zero, zero


@adamw_step.invariant("the first step is as long as the learning rate, however large the gradient")
def the_first_step_is_as_long_as_the_learning_rate(seen):
    p, grad, *zeros = _some_state()
    small, large = (seen(p, s * grad, *zeros, 1, 0.01, 0.0).value[0] for s in (1e-3, 1e3))
    moved = (p - small).abs()
    return torch.allclose(moved, torch.full_like(p, 0.01), rtol=1e-2) and torch.allclose(
        small, large, atol=1e-5
    )


@adamw_step.invariant("without a gradient only the decay moves a parameter")
def without_a_gradient_only_the_decay_moves(seen):
    p, _, *zeros = _some_state(2)
    moved = seen(p, zeros[0], *zeros, 1, 0.1, 0.5).value[0]
    return torch.allclose(moved, 0.95 * p, rtol=1e-5)


@adamw_step.invariant("the decay does not enter the two means")
def the_decay_does_not_enter_the_two_means(seen):
    p, grad, *zeros = _some_state(3)
    some, none = (seen(p, grad, *zeros, 1, 0.1, decay).value for decay in (0.5, 0.0))
    return torch.equal(some[1], none[1]) and torch.equal(some[2], none[2])


def _mistaken(**switches):
    return functools.partial(_step, **switches)


@adamw_step.mistake("eps is left out", hint=3)
def eps_is_left_out(p, grad, mean, square, step, lr, decay):
    "Where the gradient is zero you divide 0 by 0, and a tiny gradient moves as far as a large one."
    return _mistaken(root=lambda v: v.sqrt())(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("eps under the root", hint=3)
def eps_under_the_root(p, grad, mean, square, step, lr, decay):
    "ε is added to the root: under it, it would be ten thousand times as large."
    return _mistaken(root=lambda v: (v + EPS).sqrt())(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("eps of 1e-6", hint=3)
def another_eps(p, grad, mean, square, step, lr, decay):
    "ε is 1e-8 in this task: with another value small gradients make other steps."
    return _mistaken(root=lambda v: v.sqrt() + 1e-6)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("eps before the bias correction", hint=3)
def eps_before_the_correction(p, grad, mean, square, step, lr, decay):
    "ε is added after the square was divided by 1 - β₂ᵗ, not before."
    scale = (1 - B2**step) ** 0.5
    root = lambda v: v.sqrt() + EPS / scale
    return _mistaken(root=root)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("no bias correction", hint=2)
def no_bias_correction(p, grad, mean, square, step, lr, decay):
    "The means began at zero: without dividing by 1 - βᵗ the first steps have the wrong length."
    return _mistaken(corrected=False)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("steps counted from zero", hint=2)
def steps_counted_from_zero(p, grad, mean, square, step, lr, decay):
    "The first step is number 1, and 1 - β¹ is what the first gradient weighs."
    return _mistaken(corrected="late")(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("the decay passes through the means", hint=4)
def the_decay_passes_through_the_means(p, grad, mean, square, step, lr, decay):
    "That is Adam with L2: the W of AdamW stands for decay *beside* the gradient."
    return _mistaken(l2=True)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("the decay without the learning rate", hint=4)
def the_decay_without_the_learning_rate(p, grad, mean, square, step, lr, decay):
    "The decay is multiplied by the learning rate: p loses lr · decay of itself in each step."
    return _mistaken(apart=False)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("beta2 of 0.999", hint=2)
def beta2_of_0999(p, grad, mean, square, step, lr, decay):
    "LLaMA's β₂ is 0.95; 0.999 is Adam's default."
    return _mistaken(b2=0.999)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("the old means", hint=1)
def the_old_means(p, grad, mean, square, step, lr, decay):
    "The step uses the means that this gradient has entered already."
    return _mistaken(before=True)(p, grad, mean, square, step, lr, decay)


@adamw_step.mistake("the tensors are changed in place", hint=4)
def the_tensors_are_changed_in_place(p, grad, mean, square, step, lr, decay):
    "This task wants new tensors; writing into p comes in the next one."
    new = _step(p, grad, mean, square, step, lr, decay)
    return tuple(old.copy_(t) for old, t in zip((p, mean, square), new))


@adamw_step.mistake("the library's own optimizer", hint=1)
def the_librarys_own_optimizer(p, grad, mean, square, step, lr, decay):
    "torch.optim.AdamW is what this task builds."
    return _by_pytorch(p, grad, mean, square, step, lr, decay)
