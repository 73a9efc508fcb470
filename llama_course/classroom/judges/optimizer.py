"What the judge knows of the three exercises in `exercises/14_optimizer.ipynb`. Spoilers ahead."

import functools

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing

B1, B2, EPS = 0.9, 0.95, 1e-8


def _by_pytorch(p, grad, mean, square, step, lr, decay, betas=(B1, B2), eps=EPS):
    "One step of PyTorch's AdamW from the given state: the new tensor, mean and square."
    p = p.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([p], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    optimizer.state[p] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    p.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"]


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
    call=refusing("fused_adamw", "fused_adam", "foreach_lerp"),
    points={"values": 7, "invariant": 3},
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


def _step(
    p, grad, mean, square, step, lr, decay, *,
    corrected=True, root=lambda v: v.sqrt() + EPS, l2=False, apart=True, b1=B1, b2=B2, swap=False,
    before=False,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    if l2:
        grad, decay = grad + decay * p, 0.0
    new_mean = b1 * mean + (1 - b1) * grad
    new_square = b2 * square + (1 - b2) * grad**2
    m, v = (mean, square) if before else (new_mean, new_square)
    if corrected:
        t = step - 1 if corrected == "late" else step
        m, v = m / max(1 - b1**t, 1e-3), v / max(1 - b2**t, 1e-3)
    kept = p * (1 - (lr if apart else 1) * decay)
    return kept - lr * m / root(v), new_mean, new_square


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


def watched_clip(answer, grads, max_norm):
    "How `clip_gradients` is used: on copies, which it may change."
    mine = [g.clone() if g is not None else None for g in grads]
    places = [g.data_ptr() if g is not None else 0 for g in mine]
    norm = answer(mine, max_norm)
    same = [g.data_ptr() if g is not None else 0 for g in mine] == places
    return norm, [torch.zeros(0) if g is None else g.float() for g in mine], same


def _itemsize(grads) -> int:
    return next(g.itemsize for g in grads if g is not None)


clip_gradients = Exercise(
    "clip_gradients",
    chapter="14_optimizer",
    kind="extend",
    minutes=20,
    difficulty=2,
    call=watched_clip,
    condition=lambda grads, max_norm: 2.0 ** (14 if _itemsize(grads) == 2 else 1),
    points={"values": 5, "invariant": 2, "ledger": 3},
    hints=(
        "All gradients together are one long vector; its length is the root of the sum of all "
        "squares. How do you get it from the lengths of the parts?",
        "torch.stack([g.float().norm() for g in grads]).norm(). Where it is greater than "
        "max_norm, every gradient is multiplied by the same max_norm / norm, with mul_.",
        "Gradients of 16 bits: 300² is infinite in float16, so the squares need float32. A "
        "parameter that was not used has None. No gradients at all have the norm 0.",
        "No torch.cat: it copies all gradients, which are as large as the model.",
    ),
)


@clip_gradients.cases
def cases_of_clip_gradients(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shapes, size, max_norm in (
        (torch.float64, [(3, 4), (5,)], 1.0, 1.0),
        (torch.float32, [(8, 8), (16,), (2, 3, 4)], 3.0, 1.0),
        (torch.float32, [(4, 4), (6,)], 0.01, 1.0),  # short enough: nothing changes
        (torch.float32, [(6,), None, (3, 3)], 5.0, 2.5),
        (torch.float32, [(4,), (2, 2)], 0.0, 1.0),  # all zero
        (torch.float16, [(8, 4), (5,)], 300.0, 1.0),
        (torch.float32, [(3,), (7,)], 1e6, 1e-3),
        (torch.float16, [(8, 4), (6,)], 2e4, 1.0),  # together longer than 16 bits can say
    ):
        grads = [
            None if s is None else (size * torch.randn(s, generator=draw).clamp(-3, 3)).to(dtype)
            for s in shapes
        ]
        yield grads, max_norm
    yield (
        [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])],
        5.0,
    )  # exactly as long as allowed


@clip_gradients.reference
def truth_of_clip_gradients(grads, max_norm):
    there = [g.double() for g in grads if g is not None]
    norm = torch.cat([g.flatten() for g in there]).square().sum().sqrt()
    scale = min(1.0, max_norm / norm.item()) if norm > 0 else 1.0
    scaled = [torch.zeros(0) if g is None else g * scale for g in grads]
    return norm.item(), scaled, True


def _clip(grads, max_norm, norm_of=None, always=False, wide=True, write=True, each=False):
    "The right answer, with a switch for each mistake."
    there = [g for g in grads if g is not None]
    lengths = [(g.float() if wide and g.itemsize < 4 else g).norm() for g in there]
    norm = (norm_of or (lambda parts: torch.stack(parts).norm()))(lengths)
    for g, length in zip(there, lengths):
        own = length if each else norm
        if (always and own > 0) or own > max_norm:
            if write:
                g.mul_(max_norm / own)
            else:
                g = g * (max_norm / own)
    return norm.item()


clip_gradients.right(_clip)


@clip_gradients.right
def with_a_running_sum(grads, max_norm):
    total = 0.0
    for g in grads:
        if g is not None:
            total += g.double().square().sum().item()
    norm = total**0.5
    if norm > max_norm:
        for g in grads:
            if g is not None:
                g *= max_norm / norm
    return norm


@clip_gradients.right
def with_pytorchs_norms(grads, max_norm):
    there = [g for g in grads if g is not None]
    norm = sum(torch.linalg.vector_norm(g, dtype=torch.float64).item() ** 2 for g in there) ** 0.5
    for g in there:
        g.mul_(min(1.0, max_norm / norm) if norm else 1.0)
    return norm


@clip_gradients.invariant("all gradients keep their direction: one factor for all")
def all_gradients_keep_their_direction(seen):
    grads = [torch.tensor([30.0, 40.0]), torch.tensor([0.3]), torch.tensor([[-5.0]])]
    _, clipped, _ = seen(grads, 1.0).value
    factors = torch.cat([(c / g).flatten() for c, g in zip(clipped, grads)])
    return torch.allclose(factors, factors[:1].expand_as(factors), rtol=1e-4)


@clip_gradients.invariant("how the parameters are cut into tensors does not matter")
def how_the_parameters_are_cut_does_not_matter(seen):
    whole = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 4
    norm, (clipped,), _ = seen([whole], 1.0).value
    in_parts, parts, _ = seen([whole[:5].clone(), whole[5:6].clone(), whole[6:].clone()], 1.0).value
    return abs(norm - in_parts) < 1e-5 * norm and torch.allclose(
        torch.cat(parts), clipped, rtol=1e-4
    )


@clip_gradients.limit("largest_tensor", "no tensor larger than the largest gradient is made")
def most_largest_tensor_of_clip_gradients(grads, max_norm):
    return max(g.numel() for g in grads if g is not None)


@clip_gradients.limit("saved_bytes", "nothing is kept")
def most_saved_bytes_of_clip_gradients(grads, max_norm):
    return sum(g.nbytes for g in grads if g is not None)  # the judge's own copies


@clip_gradients.mistake("each tensor for itself", hint=1)
def each_tensor_for_itself(grads, max_norm):
    "The length is that of all gradients together, and one factor scales them all."
    return _clip(grads, max_norm, each=True)


@clip_gradients.mistake("always scaled", hint=2)
def always_scaled(grads, max_norm):
    "Short gradients stay as they are: only longer ones are scaled down."
    return _clip(grads, max_norm, always=True)


@clip_gradients.mistake("the sum of the lengths", hint=1)
def the_sum_of_the_lengths(grads, max_norm):
    "Lengths are not added: their squares are."
    return _clip(grads, max_norm, lambda parts: torch.stack(parts).sum())


@clip_gradients.mistake("the root is forgotten", hint=1)
def the_root_is_forgotten(grads, max_norm):
    "The sum of the squares is the square of the length."
    return _clip(grads, max_norm, lambda parts: torch.stack(parts).square().sum())


@clip_gradients.mistake("the largest gradient", hint=1)
def the_largest_gradient(grads, max_norm):
    "The length of all gradients together is asked for, not the longest tensor."
    return _clip(grads, max_norm, lambda parts: torch.stack(parts).max())


@clip_gradients.mistake("squares in 16 bits", hint=3)
def squares_in_16_bits(grads, max_norm):
    "300² is infinite in float16: take the squares in float32."
    there = [g for g in grads if g is not None]
    norm = sum(g.square().sum() for g in there).sqrt().item()
    for g in there:
        if norm > max_norm:
            g.mul_(max_norm / norm)
    return norm


@clip_gradients.mistake("the gradients are not changed", hint=2)
def the_gradients_are_not_changed(grads, max_norm):
    "g = g * factor makes a new tensor and leaves the gradient as it was: g.mul_(factor)."
    return _clip(grads, max_norm, write=False)


@clip_gradients.mistake("new tensors in the list", hint=2)
def new_tensors_in_the_list(grads, max_norm):
    "The parameters still point to the old gradients: write into them with mul_."
    fresh = [None if g is None else g.clone() for g in grads]
    norm = _clip(fresh, max_norm)
    grads[:] = fresh
    return norm


@clip_gradients.mistake("all gradients copied into one vector", hint=4)
def all_gradients_copied_into_one_vector(grads, max_norm):
    "torch.cat makes a copy as large as the model."
    there = [g for g in grads if g is not None]
    norm = torch.cat([g.flatten().double() for g in there]).norm().item()
    for g in there:
        if norm > max_norm:
            g.mul_(max_norm / norm)
    return norm


train_step = Exercise(
    "train_step",
    chapter="14_optimizer",
    kind="diagnose",
    minutes=25,
    difficulty=3,
    condition=lambda *args: 8.0,
    points={"values": 6, "invariant": 4},
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
        shapes = (3, 4), (4,), (2, 2, 2)
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
