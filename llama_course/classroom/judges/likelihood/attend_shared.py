"What the judge knows of `attend_shared`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

attend_shared = Exercise(
    "attend_shared",
    chapter="25_likelihood",
    kind="extend",
    minutes=30,
    difficulty=3,
    factor=32.0,
    points={"values": 3, "laws": 1, "cost": 6},
    hints=(
        "Each query has scores for all S context places and for the places of its own option "
        "up to itself. One softmax runs over both together.",
        "Scores of the context for all options at once: the options are just more queries. "
        "Bring q into the form (H, N·T, Q), multiply with context_k, (H, S, Q), and bring the"
        " result back to (N, H, T, S).",
        "torch.cat([to_context, to_own], -1).softmax(-1), then cut at S: the first part meets"
        " context_v in the same way as above, the second part v. einsum('nhtq,hsq->nhts') "
        "copies nothing; @ does when it broadcasts.",
    ),
)


@attend_shared.cases
def cases_of_attend_shared(seed):
    random = torch.Generator().manual_seed(seed)
    for N, H, T, S, Q in ((3, 2, 3, 40, 16), (4, 1, 2, 60, 8), (2, 3, 1, 30, 32)):
        q, k, v = torch.randn(3, N, H, T, Q, generator=random)
        context_k, context_v = torch.randn(2, H, S, Q, generator=random)
        yield q, context_k, context_v, k, v


@attend_shared.reference
def truth_of_attend_shared(q, context_k, context_v, k, v):
    T, S, out = q.size(2), context_k.size(1), torch.empty_like(q)
    for n in range(len(q)):
        keys, values = torch.cat([context_k, k[n]], 1), torch.cat([context_v, v[n]], 1)
        for t in range(T):
            scores = keys[:, : S + t + 1] @ q[n, :, t, :, None] / q.size(-1) ** 0.5
            out[n, :, t] = (scores.softmax(1) * values[:, : S + t + 1]).sum(1)
    return out


@attend_shared.invariant("an option does not see another one")
def an_option_does_not_see_another_one(seen):
    q, context_k, context_v, k, v = next(attend_shared.make_cases(7))
    other = [t.clone() for t in (q, k, v)]
    for t in other:
        t[0] = 3.0
    one, two = seen(q, context_k, context_v, k, v), seen(other[0], context_k, context_v, *other[1:])
    return torch.allclose(one.value[1:], two.value[1:], atol=1e-6)


@attend_shared.limit(
    "largest_tensor", "scores are the largest thing; the context's keys are not copied"
)
def most_largest_tensor_of_attend_shared(q, context_k, context_v, k, v):
    N, H, T, Q = q.shape
    return max(N * H * T * (context_k.size(1) + T), q.numel())


def _attend(
    q, context_k, context_v, k, v, scale=True, mask=lambda t: t.triu(1), softmax=None, see=None
):
    "The usual answer, with what goes wrong as arguments."
    (T, Q), S = q.shape[2:], context_k.size(1)
    if scale:
        q = q / Q**0.5
    far, own = torch.einsum("nhtq,hsq->nhts", q, context_k), q @ k.mT
    own = own.masked_fill(mask(torch.ones(T, T)).bool(), -torch.inf)
    if see:
        far = far.masked_fill(~see(T, S), -torch.inf)
    p = softmax(far, own) if softmax else torch.cat([far, own], -1).softmax(-1)
    return torch.einsum("nhts,hsq->nhtq", p[..., :S], context_v) + p[..., S:] @ v


attend_shared.right(_attend)


@attend_shared.right
def flattened_over_the_batch(q, context_k, context_v, k, v):
    N, H, T, Q = q.shape
    flat = q.transpose(0, 1).reshape(H, N * T, Q)

    def part(scores, values):  # unnormalized output, and the sum of its weights
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        return weights @ values, weights.sum(-1, keepdim=True), top

    far, far_sum, far_top = part(flat @ context_k.mT / Q**0.5, context_v)
    far, far_sum, far_top = (t.view(H, N, T, -1).transpose(0, 1) for t in (far, far_sum, far_top))
    scores = (q @ k.mT / Q**0.5).masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf)
    own, own_sum, own_top = part(scores, v)
    top = torch.maximum(far_top, own_top)
    a, b = (far_top - top).exp(), (own_top - top).exp()
    return (a * far + b * own) / (a * far_sum + b * own_sum)


@attend_shared.mistake("an option sees what comes after", hint=1)
def an_option_sees_what_comes_after(q, context_k, context_v, k, v):
    "Within an option a place sees itself and what stands before it: the causal mask is missing."
    return _attend(q, context_k, context_v, k, v, mask=lambda t: 0 * t)


@attend_shared.mistake("a place does not see itself", hint=1)
def a_place_does_not_see_itself(q, context_k, context_v, k, v):
    "A place sees itself, too: the mask begins one place too early."
    return _attend(q, context_k, context_v, k, v, mask=lambda t: t.triu(0))


@attend_shared.mistake("the mask is turned around", hint=1)
def the_mask_is_turned_around(q, context_k, context_v, k, v):
    "The mask hides the past and shows the future."
    return _attend(q, context_k, context_v, k, v, mask=lambda t: t.tril(-1))


@attend_shared.mistake("two softmaxes, added", hint=1)
def two_softmaxes_added(q, context_k, context_v, k, v):
    "Context and option share ONE softmax: the weights of both together add up to one."
    return _attend(
        q,
        context_k,
        context_v,
        k,
        v,
        softmax=lambda far, own: torch.cat([far.softmax(-1), own.softmax(-1)], -1),
    )


@attend_shared.mistake("two softmaxes, averaged", hint=1)
def two_softmaxes_averaged(q, context_k, context_v, k, v):
    """Half the weight for the context and half for the option is not attention: one softmax over
    both."""
    return _attend(
        q,
        context_k,
        context_v,
        k,
        v,
        softmax=lambda far, own: torch.cat([far.softmax(-1), own.softmax(-1)], -1) / 2,
    )


@attend_shared.mistake("the scores are not scaled", hint=1)
def the_scores_are_not_scaled(q, context_k, context_v, k, v):
    "Scores are divided by the root of Q."
    return _attend(q, context_k, context_v, k, v, scale=False)


@attend_shared.mistake("a causal mask over the context", hint=1)
def a_causal_mask_over_the_context(q, context_k, context_v, k, v):
    "All of the context stands before the option: every place of it sees the whole context."
    return _attend(q, context_k, context_v, k, v, see=lambda T, S: torch.ones(T, S).tril().bool())


@attend_shared.mistake("options see each other", hint=2)
def options_see_each_other(q, context_k, context_v, k, v):
    "The options stand in one row and see each other: what is shared is the context alone."
    N, H, T, Q = q.shape
    flat = lambda t: t.transpose(0, 1).reshape(H, N * T, Q)
    far, own = flat(q) @ context_k.mT, flat(q) @ flat(k).mT
    own = own.masked_fill(torch.ones(N * T, N * T).triu(1).bool(), -torch.inf)
    p = (torch.cat([far, own], -1) / Q**0.5).softmax(-1)
    S = context_k.size(1)
    return (p[..., :S] @ context_v + p[..., S:] @ flat(v)).view(H, N, T, Q).transpose(0, 1)


@attend_shared.mistake("the context is copied for each option", hint=3)
def the_context_is_copied_for_each_option(q, context_k, context_v, k, v):
    """A copy of the context's keys and values for each option: the memory that sharing should
    save."""
    N, T, S = len(q), q.size(2), context_k.size(1)
    keys = torch.cat([context_k.expand(N, -1, -1, -1), k], 2)
    values = torch.cat([context_v.expand(N, -1, -1, -1), v], 2)
    scores = q @ keys.mT / q.size(-1) ** 0.5
    return (
        scores.masked_fill(torch.ones(T, S + T).triu(S + 1).bool(), -torch.inf).softmax(-1) @ values
    )


@attend_shared.mistake("a product that broadcasts", hint=3)
def a_product_that_broadcasts(q, context_k, context_v, k, v):
    "q @ context_k.mT broadcasts over the options, and PyTorch copies the keys for each of them."
    T, S = q.size(2), context_k.size(1)
    own = (q @ k.mT).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    keys, values = (t.expand(len(q), *t.shape).clone() for t in (context_k, context_v))
    p = (torch.cat([q @ keys.mT, own], -1) / q.size(-1) ** 0.5).softmax(-1)
    return p[..., :S] @ values + p[..., S:] @ v


@attend_shared.mistake("without the context", hint=1)
def without_the_context(q, context_k, context_v, k, v):
    "The options see nothing of the context."
    hidden = torch.zeros(q.size(2), context_k.size(1)).bool()
    return _attend(q, context_k, context_v, k, v, see=lambda T, S: hidden)
