"""What the judge knows of the four exercises in `exercises/29_instruct.ipynb`. Spoilers from
here on."""

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
    points={"values": 3, "gradients": 3, "invariant": 2, "ledger": 2},
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
    points={"values": 3, "gradients": 2, "invariant": 1, "ledger": 4},
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


def packed_cases(seed: int):
    "Arguments (q, k, v, documents): (B, H, T, Q) three times, and (B, T) integers, -1 for padding."
    random = torch.Generator().manual_seed(seed)
    for B, H, lengths, Q, size, dtype in (
        (2, 3, ((4, 5, 1), (2, 7)), 8, 1.0, torch.float32),
        (3, 1, ((6,), (3, 3), (1, 1, 2)), 4, 3.0, torch.float32),
        (1, 2, ((5, 3, 4),), 6, 1.0, torch.float64),
    ):
        T = 12 if B < 3 else 6
        rows = [[i for i, n in enumerate(row) for _ in range(n)] for row in lengths]
        documents = torch.tensor([row + [-1] * (T - len(row)) for row in rows])
        q, k, v = torch.randn(3, B, H, T, Q, generator=random).to(dtype)
        yield size * q, k, v, documents


def _without_padding(answer, q, k, v, documents):
    "The answer, in which all that is a number counts the same where there is padding."
    out = answer(q, k, v, documents)
    padding = (documents < 0)[:, None, :, None]
    if not isinstance(out, Tensor) or out.shape != q.shape:
        return out
    return torch.where(padding & out.isfinite(), torch.zeros((), dtype=out.dtype), out)


packed_attention = Exercise(
    "packed_attention",
    chapter="29_instruct",
    kind="extend",
    minutes=25,
    difficulty=2,
    call=_without_padding,
    wrt=("v",),
    factor=32.0,
    points={"values": 3, "gradients": 2, "invariant": 3, "ledger": 2},
    hints=(
        "A query may see a key if two things hold: the key stands no later, and both belong "
        "to the same example. documents[:, :, None] == documents[:, None, :] is the second, "
        "(B, T, T).",
        "The scores are (B, H, T, T): the mask needs an axis for the heads. What a query may "
        "not see gets the score minus infinity *before* the softmax, so that its weight is "
        "exactly 0.",
        "Padding has the number -1 like an example of its own and needs no care. Every token "
        "sees itself, so no row is all minus infinity.",
    ),
)
packed_attention.cases(packed_cases)


@packed_attention.reference
def truth_of_packed_attention(q, k, v, documents):
    out = torch.zeros_like(q)  # whatever comes out for padding
    for b, row in enumerate(documents):
        for t, number in enumerate(row.tolist()):
            if number < 0:
                continue
            mine = [s for s in range(t + 1) if row[s] == number]
            scores = (k[b, :, mine] * q[b, :, t : t + 1]).sum(-1) / q.size(-1) ** 0.5
            out[b, :, t] = (scores.softmax(-1)[..., None] * v[b, :, mine]).sum(-2)
    return out


def _same(documents):
    return (documents[:, :, None] == documents[:, None, :])[:, None]


def _packed(
    q,
    k,
    v,
    documents,
    seen=lambda documents: _same(documents).tril(),
    hidden=-torch.inf,
    scale=lambda Q: Q**-0.5,
):
    "The right answer, with parts that can be exchanged for wrong ones."
    scores = q @ k.mT * scale(q.size(-1))
    return scores.masked_fill(~seen(documents), hidden).softmax(-1) @ v


@packed_attention.right
def by_the_definition_of_documents(q, k, v, documents):
    return _packed(q, k, v, documents)


@packed_attention.right
def where_padding_sees_itself_alone(q, k, v, documents):
    own = torch.eye(q.shape[2], dtype=torch.bool) & (documents < 0)[:, None, :, None]
    seen = lambda documents: (_same(documents).tril() & (documents >= 0)[:, None, :, None]) | own
    return _packed(q, k, v, documents, seen=seen)


@packed_attention.right
def with_a_mask(q, k, v, documents):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_same(documents).tril())


@packed_attention.right
def document_by_document(q, k, v, documents):
    rows = []
    for b, row in enumerate(documents):
        ends = [0, *(torch.nonzero(row[1:] != row[:-1])[:, 0] + 1).tolist(), len(row)]
        parts = [
            t[b, None].split([e - s for s, e in zip(ends, ends[1:])], dim=2) for t in (q, k, v)
        ]
        alone = [F.scaled_dot_product_attention(*part, is_causal=True) for part in zip(*parts)]
        rows.append(torch.cat(alone, 2))
    return torch.cat(rows)


@packed_attention.invariant(
    "one example's result has no gradient, not the smallest, from another's tokens"
)
def one_examples_result_has_no_gradient(seen):
    *qkv, documents = next(packed_cases(7))
    arriving = (documents == 1)[:, None, :, None].expand(2, 3, 12, 8).float()
    grads = seen(*qkv, documents, wrt=(0, 1, 2), cotangent=arriving).grads
    return all(not g[(documents != 1)[:, None].expand(g.shape[:3])].any() for g in grads)


@packed_attention.invariant(
    "an example beside others gives what it gives alone, forwards and backwards"
)
def an_example_beside_others_gives_what_it_gives_alone(seen):
    *qkv, documents = next(packed_cases(8))
    arriving = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(8))
    mine = lambda t: t[:1, :, 4:9]
    together = seen(*qkv, documents, wrt=(0, 1, 2), cotangent=arriving)
    number = torch.zeros(1, 5, dtype=torch.long)
    alone = seen(*map(mine, qkv), number, wrt=(0, 1, 2), cotangent=mine(arriving))
    pairs = zip((together.value, *together.grads), (alone.value, *alone.grads))
    return all(torch.allclose(mine(ours), theirs, atol=1e-5) for ours, theirs in pairs)


@packed_attention.invariant("the future does not move the past")
def the_future_does_not_move_the_past(seen):
    *qkv, documents = next(packed_cases(9))
    later = [torch.cat((t[:, :, :7], 5 + t[:, :, 7:]), 2) for t in qkv]
    before, after = (seen(*args, documents).value[:, :, :7] for args in (qkv, later))
    return torch.allclose(before, after, atol=1e-6)


@packed_attention.limit(
    "flops", "two products of queries, keys and values with one another are enough"
)
def most_flops_of_packed_attention(q, k, v, documents):
    return 4 * q.numel() * q.shape[2]


@packed_attention.limit("largest_tensor", "nothing is larger than the scores, (B, H, T, T)")
def most_largest_tensor_of_packed_attention(q, k, v, documents):
    return max(q.numel(), q.numel() // q.shape[3] * q.shape[2])


@packed_attention.mistake("packed examples see each other", hint=1)
def packed_examples_see_each_other(q, k, v, documents):
    """The mask is only causal: a token sees the examples before its own, which are gone when it
    is asked."""
    return _packed(
        q, k, v, documents, seen=lambda documents: torch.ones_like(_same(documents)).tril()
    )


@packed_attention.mistake("the future is seen", hint=1)
def the_future_is_seen(q, k, v, documents):
    """Within an example the mask must be causal, too: else each token sees the one that it is to
    predict."""
    return _packed(q, k, v, documents, seen=_same)


@packed_attention.mistake("the first row's mask for all", hint=1)
def the_first_rows_mask_for_all(q, k, v, documents):
    "Every row of the batch has its borders elsewhere: the mask is (B, 1, T, T)."
    return _packed(q, k, v, documents, seen=lambda documents: _same(documents[:1]).tril())


@packed_attention.mistake("the mask is transposed", hint=1)
def the_mask_is_transposed(q, k, v, documents):
    "Queries are rows, keys are columns: the lower triangle is what they may see."
    return _packed(q, k, v, documents, seen=lambda documents: _same(documents).triu())


@packed_attention.mistake("hidden scores are 0", hint=2)
def hidden_scores_are_0(q, k, v, documents):
    "A score of 0 is a score like others: the softmax gives it weight. It must be minus infinity."
    return _packed(q, k, v, documents, hidden=0.0)


@packed_attention.mistake("hidden scores are only small", hint=2)
def hidden_scores_are_only_small(q, k, v, documents):
    "exp(-10) is not 0: a little of the other examples comes through. It must be minus infinity."
    return _packed(q, k, v, documents, hidden=-10.0)


@packed_attention.mistake("padding sees nothing", hint=3)
def padding_sees_nothing(q, k, v, documents):
    """A row of minus infinity has a softmax of NaN, and one NaN ruins all gradients: let padding
    see itself."""
    return _packed(
        q,
        k,
        v,
        documents,
        seen=lambda documents: _same(documents).tril() & (documents >= 0)[:, None, :, None],
    )


@packed_attention.mistake("a token does not see itself", hint=3)
def a_token_does_not_see_itself(q, k, v, documents):
    "The diagonal belongs to what is seen: without it the first token of an example sees nothing."
    return _packed(q, k, v, documents, seen=lambda documents: _same(documents).tril(-1))


@packed_attention.mistake("no division by the root of Q", hint=1)
def no_division_by_the_root_of_q(q, k, v, documents):
    "Scores are divided by sqrt(Q) before the softmax."
    return _packed(q, k, v, documents, scale=lambda Q: 1.0)


@packed_attention.mistake("the numbers are only compared with the neighbour's", hint=1)
def the_numbers_are_only_compared_with_the_neighbours(q, k, v, documents):
    """Comparing each token with the one before tells where a border is, not which tokens share a
    side."""
    return _packed(
        q,
        k,
        v,
        documents,
        seen=lambda documents: (
            torch.ones_like(_same(documents)).tril()
            & F.pad(documents[:, 1:] == documents[:, :-1], (1, 0), value=True)[:, None, None]
            | torch.eye(documents.size(1), dtype=torch.bool)
        ),
    )


@packed_attention.mistake("masked after the softmax", hint=2)
def masked_after_the_softmax(q, k, v, documents):
    "Weights that are set to 0 after the softmax no longer sum to one: mask the scores before it."
    weights = (q @ k.mT * q.size(-1) ** -0.5).softmax(-1)
    return weights * _same(documents).tril() @ v


@packed_attention.mistake("every product is kept before it is summed", hint=1)
def every_product_is_kept_before_it_is_summed(q, k, v, documents):
    """(q[..., None, :] * k).sum(-1) makes a tensor Q times as large as the scores: use a matrix
    product."""
    scores = (q[..., None, :] * k[:, :, None]).sum(-1) * q.size(-1) ** -0.5
    return scores.masked_fill(~_same(documents).tril(), -torch.inf).softmax(-1) @ v


def loss_cases(seed: int):
    "Arguments (logits, tokens, is_answer): (B, T, V), (B, T) integers, (B, T) truth values."
    random = torch.Generator().manual_seed(seed)
    for spans, T, V, dtype in (
        (((4, 7), (8, 10), (2, 9)), 10, 11, torch.float32),
        (((1, 3), (5, 6), (0, 0), (3, 8)), 8, 30, torch.float32),
        (((3, 9),), 12, 7, torch.float64),
    ):
        at = torch.arange(T)
        is_answer = torch.stack([(at >= start) & (at < stop) for start, stop in spans])
        tokens = torch.randint(V, is_answer.shape, generator=random)
        yield 2 * torch.randn(*tokens.shape, V, generator=random).to(dtype), tokens, is_answer


loss_on_answers = Exercise(
    "loss_on_answers",
    chapter="29_instruct",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    wrt=("logits",),
    factor=32.0,
    points={"values": 4, "gradients": 2, "invariant": 2, "ledger": 2},
    hints=(
        "Write down a row of four tokens, the last two of them the answer. Which positions' "
        "logits predict them? Which entries of the mask does the given code take?",
        "logits[:, t] predict tokens[:, t + 1]. So the mask must be shifted with the tokens: "
        "is_answer[:, 1:].",
        "A mean divides by the number of all tokens. Divide by the number of answer tokens, "
        "of all rows together.",
    ),
)
loss_on_answers.cases(loss_cases)


@loss_on_answers.reference
def truth_of_loss_on_answers(logits, tokens, is_answer):
    places = [(b, t) for b, t in is_answer.nonzero().tolist() if t > 0]
    logs = logits.log_softmax(-1)
    return -torch.stack([logs[b, t - 1, tokens[b, t]] for b, t in places]).mean()


def _costs(logits, tokens):
    return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")


def _loss(
    logits,
    tokens,
    is_answer,
    mask=lambda is_answer: is_answer[:, 1:],
    mean=lambda costs, mask: costs.sum() / mask.sum(),
):
    "The right answer, with parts that can be exchanged for wrong ones."
    chosen = mask(is_answer)
    return mean(_costs(logits, tokens) * chosen, chosen)


@loss_on_answers.right
def of_chosen_rows(logits, tokens, is_answer):
    chosen = is_answer[:, 1:]
    return F.cross_entropy(logits[:, :-1][chosen], tokens[:, 1:][chosen])


@loss_on_answers.right
def with_ignored_targets(logits, tokens, is_answer):
    targets = tokens[:, 1:].masked_fill(~is_answer[:, 1:], -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


@loss_on_answers.right
def by_the_mean_over_answers(logits, tokens, is_answer):
    return _loss(logits, tokens, is_answer)


@loss_on_answers.invariant(
    "what is said before a token of the prompt changes nothing, and has no gradient"
)
def what_is_said_before_a_token_of_the_prompt_changes_nothing(seen):
    logits, tokens, is_answer = next(loss_cases(3))
    idle = ~F.pad(is_answer[:, 1:], (0, 1))
    before = seen(logits, tokens, is_answer, wrt=(0,), cotangent=torch.tensor(1.0))
    after = seen(torch.where(idle[..., None], -logits, logits), tokens, is_answer)
    return torch.allclose(before.value, after.value) and not before.grads[0][idle].any()


@loss_on_answers.invariant("every answer token counts the same, whichever row it is in")
def every_answer_token_counts_the_same(seen):
    args = next(loss_cases(4))
    alone = [seen(*(t[b : b + 1] for t in args)).value for b in range(3)]
    counts = args[2][:, 1:].sum(1)
    return torch.allclose(seen(*args).value, (torch.stack(alone) * counts).sum() / counts.sum())


@loss_on_answers.limit(
    "saved_bytes", "the backward pass needs one number for each logit, and no second copy"
)
def most_saved_bytes_of_loss_on_answers(logits, tokens, is_answer):
    return logits.nbytes + 64 * tokens.numel()


@loss_on_answers.mistake("the loss as it was given", hint=1)
def the_loss_as_it_was_given(logits, tokens, is_answer):
    "The mask is that of the token before, and the sum is divided by the number of all tokens."
    return _loss(
        logits,
        tokens,
        is_answer,
        mask=lambda m: m[:, :-1],
        mean=lambda costs, mask: costs.mean(1).mean(),
    )


@loss_on_answers.mistake("the mask is off by one", hint=2)
def the_mask_is_off_by_one(logits, tokens, is_answer):
    """is_answer[:, :-1] belongs to the tokens that predict: the first answer token is never
    learnt, and what follows the end is."""
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, :-1])


@loss_on_answers.mistake("divided by all tokens", hint=3)
def divided_by_all_tokens(logits, tokens, is_answer):
    """The sum is divided by the number of all tokens: long prompts make the loss, and the step,
    small."""
    return _loss(logits, tokens, is_answer, mean=lambda costs, mask: costs.mean())


@loss_on_answers.mistake("a mean of means", hint=3)
def a_mean_of_means(logits, tokens, is_answer):
    """A mean in each row first: a token of a short answer then counts more than one of a long
    answer."""
    return _loss(
        logits,
        tokens,
        is_answer,
        mean=lambda costs, mask: (costs.sum(1) / mask.sum(1).clamp(min=1)).mean(),
    )


@loss_on_answers.mistake("a sum", hint=3)
def a_sum(logits, tokens, is_answer):
    "The mean is wanted, not the sum."
    return _loss(logits, tokens, is_answer, mean=lambda costs, mask: costs.sum())


@loss_on_answers.mistake("the prompt is learnt as well", hint=1)
def the_prompt_is_learnt_as_well(logits, tokens, is_answer):
    "All tokens count: the mask is not used."
    return _loss(logits, tokens, is_answer, mask=lambda m: torch.ones_like(m[:, 1:]))


@loss_on_answers.mistake("the prompt is learnt, and not the answer", hint=1)
def the_prompt_is_learnt_and_not_the_answer(logits, tokens, is_answer):
    "The mask is the wrong way round."
    return _loss(logits, tokens, is_answer, mask=lambda m: ~m[:, 1:])


@loss_on_answers.mistake("the end is not learnt", hint=2)
def the_end_is_not_learnt(logits, tokens, is_answer):
    "The last token of an answer is its end: a model that never learns it never stops."
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, 1:] & F.pad(m[:, 2:], (0, 1)))


@loss_on_answers.mistake("the first answer token is not learnt", hint=2)
def the_first_answer_token_is_not_learnt(logits, tokens, is_answer):
    """The token before the answer is of the prompt, and what it predicts is the answer's first
    token."""
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, 1:] & m[:, :-1])


@loss_on_answers.mistake("each token predicts itself", hint=2)
def each_token_predicts_itself(logits, tokens, is_answer):
    "logits[:, t] are about tokens[:, t + 1]; here they are compared with tokens[:, t]."
    return F.cross_entropy(logits[is_answer], tokens[is_answer])


@loss_on_answers.mistake("the tokens are set to 0 instead of being left out", hint=3)
def the_tokens_are_set_to_0_instead_of_being_left_out(logits, tokens, is_answer):
    "Token 0 is a token like others: the prompt is now taught to be full of it."
    return F.cross_entropy(logits[:, :-1].mT, (tokens * is_answer)[:, 1:])


@loss_on_answers.mistake("a table of ones and zeros", hint=3)
def a_table_of_ones_and_zeros(logits, tokens, is_answer):
    "A one-hot table is as large as the logits, and kept beside them: pick the elements instead."
    ones = F.one_hot(tokens[:, 1:], logits.size(-1)) * is_answer[:, 1:, None]
    return -(logits[:, :-1].log_softmax(-1) * ones).sum() / is_answer[:, 1:].sum()
