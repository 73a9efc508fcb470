"What the judge knows of `batched_lora`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise


def batched_cases(seed: int):
    "Arguments (x, weight, a, b, scale, which): the adapter of each text, -1 for none."
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=random)
    for N, T, width, out, M, rank, dtype in (
        (4, 3, 16, 20, 3, 2, torch.float32),
        (5, 1, 12, 12, 2, 3, torch.float64),
        (3, 2, 24, 10, 5, 3, torch.float32),
        (2, 4, 10, 14, 1, 2, torch.float64),
    ):
        tensors = (
            normal(N, T, width),
            normal(out, width) / width**0.5,
            normal(M, rank, width) / width**0.5,
            normal(M, out, rank),
            0.5 + torch.rand(M, generator=random),
        )
        which = torch.randint(-1, M, (N,), generator=random)
        which[0], which[-1] = M - 1, -1
        yield *(t.to(dtype) for t in tensors), which


batched_lora = Exercise(
    "batched_lora",
    chapter="29_instruct",
    kind="extend",
    minutes=25,
    difficulty=2,
    wrt=("x", "a", "b"),
    factor=256.0,
    points={"values": 2, "gradients": 1, "laws": 1, "cost": 6},
    hints=(
        "The frozen map is the same for all texts: one product. What differs is thin.",
        "a[which] is (N, r, in), the adapter of each text, and small. A batched product does the "
        "rest: x @ a[which].mT is (N, T, r).",
        "An index of -1 is not 'none' for PyTorch: it is the last adapter. Use which.clamp(min=0), "
        "and a factor of 0 for texts without an adapter.",
        "First A, then B: their product would be as large as the weight, and once for each text.",
    ),
)


batched_lora.cases(batched_cases)


@batched_lora.reference
def truth_of_batched_lora(x, weight, a, b, scale, which):
    "Text by text, with a merged weight."
    rows = []
    for text, m in zip(x, which.tolist()):
        whole = weight if m < 0 else weight + scale[m] * b[m] @ a[m]
        rows.append(text @ whole.T)
    return torch.stack(rows)


def _batched(
    x, weight, a, b, scale, which, *, none=True, merged=False, every=False, factor=lambda s: s,
    pick=lambda w: w.clamp(min=0), base=True, cut=False,
):  # fmt: skip
    "All texts at once, with a place for each mistake."
    on = (which >= 0).to(x.dtype)[:, None, None] if none else 1
    m = pick(which)
    y = F.linear(x, weight) if base else 0
    if merged:
        whole = weight + (on * scale[m][:, None, None]) * (b[m] @ a[m])
        return x @ whole.mT
    if every:
        thin = torch.einsum("nti,mri->mntr", x, a)
        wide = torch.einsum("mntr,mor->mnto", thin, b) * scale[:, None, None, None]
        return y + on * wide[m, torch.arange(len(x))]
    thin = x @ (a[m].detach() if cut else a[m]).mT
    return y + on * factor(scale[m])[:, None, None] * (thin @ b[m].mT)


batched_lora.right(_batched)


@batched_lora.right
def adapter_by_adapter(x, weight, a, b, scale, which):
    more = torch.zeros(*x.shape[:2], len(weight), dtype=x.dtype)
    for m in which.unique().tolist():
        if m >= 0:
            rows = (which == m).nonzero()[:, 0]
            more = more.index_add(0, rows, F.linear(F.linear(x[rows], a[m]), scale[m] * b[m]))
    return F.linear(x, weight) + more


@batched_lora.invariant("another order of the texts gives the same, in that order")
def another_order_of_the_texts(seen):
    x, *rest, which = next(batched_cases(5))
    order = torch.tensor([2, 0, 3, 1])
    turned = seen(x[order], *rest, which[order]).value
    return torch.allclose(seen(x, *rest, which).value[order], turned, atol=1e-5)


@batched_lora.limit("largest_tensor", "x, y or the thin matrices of the texts; no merged weight")
def most_largest_tensor_of_batched_lora(x, weight, a, b, scale, which):
    N, T, width = x.shape
    rank, out = a.shape[1], len(weight)
    return max(a.numel(), b.numel(), N * max(T * width, T * out, rank * width, rank * out))


@batched_lora.limit("flops", "the frozen map once, and one thin pair for each text")
def most_flops_of_batched_lora(x, weight, a, b, scale, which):
    N, T, width = x.shape
    out = len(weight)
    return 2 * N * T * (width * out + a.shape[1] * (width + out))


@batched_lora.mistake("-1 is the last adapter", hint=3)
def minus_one_is_the_last_adapter(*args):
    "In Python's indexing -1 is the last: texts without an adapter get one."
    return _batched(*args, none=False, pick=lambda which: which)


@batched_lora.mistake("no adapter is the first", hint=3)
def no_adapter_is_the_first(*args):
    "Clamped to 0, -1 becomes the first adapter: its share must be switched off as well."
    return _batched(*args, none=False)


@batched_lora.mistake("one adapter for all", hint=2)
def one_adapter_for_all(*args):
    "Every text has its own adapter; you use that of the first text."
    return _batched(*args, pick=lambda which: which[:1].clamp(min=0).expand(len(which)))


@batched_lora.mistake("the scale is forgotten", hint=2)
def the_scale_is_forgotten(*args):
    "scale[m] multiplies the product of adapter m."
    return _batched(*args, factor=torch.ones_like)


@batched_lora.mistake("the frozen map is missing", hint=1)
def the_map_of_all_texts_is_missing(*args):
    "The adapter's part is *added* to what the frozen weight gives."
    return _batched(*args, base=False)


@batched_lora.mistake("A learns nothing", hint=2)
def a_learns_nothing(*args):
    "Right in value, but A is cut off from the graph: its gradient is missing."
    return _batched(*args, cut=True)


@batched_lora.mistake("a merged weight for each text", hint=4)
def a_merged_weight_for_each_text(*args):
    "Right in value, but N weights are made, each as large as the frozen one."
    return _batched(*args, merged=True)


@batched_lora.mistake("every adapter for every text", hint=2)
def every_adapter_for_every_text(*args):
    "Right in value, but all M adapters are applied to all texts, and all but one thrown away."
    return _batched(*args, every=True)
