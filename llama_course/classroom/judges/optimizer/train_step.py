"What the judge knows of `train_step`. Spoilers ahead."

import functools

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.optimizer.common import B1, B2, EPS, _by_pytorch, _step

train_step = Exercise(
    "train_step",
    chapter="14_optimizer",
    kind="diagnose",
    minutes=25,
    difficulty=3,
    condition=lambda *args: 8.0,
    points={"values": 6, "laws": 4},
    hints=(
        "Try it with one parameter at a time: no gradient, only decay; then a long gradient and a "
        "short one together; then a vector, which is a norm's gain.",
        "Clipping: one length of all gradients together, one factor. Decay: beside the step, lr · "
        "decay · p, and never through the means.",
        "Tensors of fewer than two dimensions are gains: they are not decayed. The mean and the "
        "square are corrected by 1 - β₁ᵗ and 1 - β₂ᵗ; the given code uses β₁ for both.",
    ),
)


@train_step.cases
def cases_of_train_step(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, step, size, decay, max_norm in (
        (torch.float32, 1, 1.0, 0.1, 1.0),
        (torch.float32, 1, 3.0, 0.0, 1.0),
        (torch.float32, 5, 0.001, 0.1, 1.0),
        (torch.float32, 50, 2.0, 0.5, 0.5),
        (torch.float32, 3, 0.0, 0.3, 1.0),
    ):
        shapes = (3, 4), (4,), (2, 2, 2), ()
        params = [torch.randn(s, generator=draw).to(dtype) for s in shapes]
        grads = [(size * torch.randn(s, generator=draw)).to(dtype) for s in shapes]
        means = [0.3 * (step > 1) * torch.randn(s, generator=draw).to(dtype) for s in shapes]
        squares = [0.3 * (step > 1) * torch.rand(s, generator=draw).to(dtype) for s in shapes]
        yield params, grads, means, squares, step, 0.01, decay, max_norm


@train_step.reference
def truth_of_train_step(params, grads, means, squares, step, lr, decay, max_norm):
    total = torch.cat([g.flatten() for g in grads]).norm().item()
    scale = min(1.0, max_norm / total) if total else 1.0
    new = [
        _by_pytorch(p, scale * g, m, v, step, lr, decay if p.dim() > 1 else 0.0)
        for p, g, m, v in zip(params, grads, means, squares)
    ]
    return tuple(list(part) for part in zip(*new))


def _train(
    params, grads, means, squares, step, lr, decay, max_norm, *,
    each=False, gains=False, factor=None, **how,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    lengths = [g.norm() for g in grads]
    total = torch.stack(lengths).norm()
    new = []
    for p, g, m, v, own in zip(params, grads, means, squares, lengths):
        length = own if each else total
        scale = factor(length, max_norm) if factor else max_norm / length.clamp(min=max_norm)
        rate = decay if p.dim() > 1 or gains else 0.0
        new.append(_step(p, g * scale, m, v, step, lr, rate, **how))
    return tuple(list(part) for part in zip(*new))


train_step.right(_train)


@train_step.right
def with_two_passes(params, grads, means, squares, step, lr, decay, max_norm):
    total = sum(g.square().sum() for g in grads).sqrt()
    if total > max_norm:
        grads = [g * (max_norm / total) for g in grads]
    means = [m.lerp(g, 1 - B1) for m, g in zip(means, grads)]
    squares = [v.lerp(g * g, 1 - B2) for v, g in zip(squares, grads)]
    moved = []
    for p, m, v in zip(params, means, squares):
        decayed = p * (1 - lr * decay) if p.dim() > 1 else p
        moved.append(decayed - lr * (m / (1 - B1**step)) / ((v / (1 - B2**step)).sqrt() + EPS))
    return moved, means, squares


def _small_model(seed=7):
    draw = torch.Generator().manual_seed(seed)
    params = [torch.randn(3, 3, generator=draw), torch.ones(3)]
    zeros = [torch.zeros_like(p) for p in params]
    return params, [torch.randn(p.shape, generator=draw) for p in params], zeros


@train_step.invariant("without gradients the matrices shrink by lr · decay, and the gains do not")
def without_gradients_the_matrices_shrink(seen):
    params, _, zeros = _small_model()
    (matrix, gain), means, _ = seen(params, zeros, zeros, zeros, 1, 0.1, 0.5, 1.0).value
    shrunk = torch.allclose(matrix, 0.95 * params[0], rtol=1e-5)
    return shrunk and torch.equal(gain, params[1]) and not any(m.any() for m in means)


@train_step.invariant("gradients that are too long have the effect of the same ones made shorter")
def gradients_that_are_too_long(seen):
    params, grads, zeros = _small_model(8)
    once, again = (
        seen(params, [s * g for g in grads], zeros, zeros, 1, 0.1, 0.0, 0.5).value
        for s in (10, 100)
    )
    return all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(once[1], again[1]))


@train_step.invariant("the mean of the clipped gradients is no longer than (1 - β₁) max_norm")
def the_mean_of_the_clipped_gradients(seen):
    params, grads, zeros = _small_model(9)
    _, means, _ = seen(params, [50 * g for g in grads], zeros, zeros, 1, 0.1, 0.1, 2.0).value
    return abs(torch.cat([m.flatten() for m in means]).norm().item() - 0.2) < 1e-4


def _with(**switches):
    return functools.partial(_train, **switches)


@train_step.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(params, grads, means, squares, step, lr, decay, max_norm):
    "Four things are wrong in it: how it clips, how it decays, what it decays, and a correction."
    wrong = _with(each=True, gains=True, l2=True, root=_given_root(step))
    return wrong(params, grads, means, squares, step, lr, decay, max_norm)


def _given_root(step):
    "The square, corrected as if its beta were that of the mean."
    return lambda v: (v * (1 - B2**step) / (1 - B1**step)).sqrt() + EPS


@train_step.mistake("each tensor clipped for itself", hint=2)
def each_tensor_clipped_for_itself(params, grads, means, squares, step, lr, decay, max_norm):
    "One factor for all gradients, from the length of all of them together."
    return _with(each=True)(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("L2 instead of decay", hint=2)
def l2_instead_of_decay(params, grads, means, squares, step, lr, decay, max_norm):
    "Decay that passes through the means is divided by the root, and so hardly depends on p."
    return _with(l2=True)(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("the gains are decayed", hint=3)
def the_gains_are_decayed(params, grads, means, squares, step, lr, decay, max_norm):
    "A gain should stay about 1: tensors of fewer than two dimensions are left alone."
    return _with(gains=True)(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("one beta for both corrections", hint=3)
def one_beta_for_both_corrections(params, grads, means, squares, step, lr, decay, max_norm):
    "The square forgets with β₂, so it is divided by 1 - β₂ᵗ."
    wrong = _with(root=_given_root(step))
    return wrong(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("short gradients are stretched", hint=2)
def short_gradients_are_stretched(params, grads, means, squares, step, lr, decay, max_norm):
    "Clipping never makes a gradient longer."
    stretch = lambda length, limit: limit / length.clamp(min=1e-12)
    wrong = _with(factor=stretch)
    return wrong(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("nothing is clipped", hint=2)
def nothing_is_clipped(params, grads, means, squares, step, lr, decay, max_norm):
    "Gradients that are longer than max_norm together are scaled down first."
    wrong = _with(factor=lambda length, limit: 1.0)
    return wrong(params, grads, means, squares, step, lr, decay, max_norm)


@train_step.mistake("no bias correction", hint=3)
def no_bias_correction_in_train_step(params, grads, means, squares, step, lr, decay, max_norm):
    "Both means began at zero: divide them by 1 - β₁ᵗ and 1 - β₂ᵗ."
    return _with(corrected=False)(params, grads, means, squares, step, lr, decay, max_norm)
