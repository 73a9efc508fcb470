"What the judge knows of `clip_gradients`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise


def watched_clip(answer, grads, max_norm):
    "How `clip_gradients` is used: on copies, which it may change."
    mine = [g.clone() if g is not None else None for g in grads]
    places = [g.data_ptr() if g is not None else 0 for g in mine]
    norm = answer(mine, max_norm)
    same = [g.data_ptr() if g is not None else 0 for g in mine] == places
    return norm, [torch.zeros(0) if g is None else g.float() for g in mine], same


def _itemsize(grads) -> int:
    return min(g.itemsize for g in grads if g is not None)


clip_gradients = Exercise(
    "clip_gradients",
    chapter="14_optimizer",
    kind="extend",
    minutes=20,
    difficulty=2,
    call=watched_clip,
    condition=lambda grads, max_norm: 2.0 ** (14 if _itemsize(grads) == 2 else 1),
    points={"values": 5, "laws": 2, "cost": 3},
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
    mixed = [torch.randn(n, generator=draw) for n in (6, 5, 4)]
    yield [mixed[0].half(), 2 * mixed[1].double(), mixed[2]], 1.0  # of several dtypes
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
