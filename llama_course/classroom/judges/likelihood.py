"""What the judge knows of the three exercises in `exercises/25_likelihood.ipynb`. Spoilers from
here on."""

import math

import torch

from llama_course.classroom.exercise import Exercise

score_per_character = Exercise(
    "score_per_character",
    chapter="25_likelihood",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Row t of the logits speaks of the token at t + 1. Which row judges the option's "
        "first token?",
        "log_softmax over the vocabulary, for rows start - 1 to T - 2; from each, the number "
        "of the token that really follows; then the sum.",
        "Divide the sum by the characters of the option without its leading space: len counts"
        " characters, not bytes.",
    ),
)


@score_per_character.cases
def cases_of_score_per_character(seed):
    random = torch.Generator().manual_seed(seed)
    options = " né à Orly", " a whole sentence", " théière", " no way"
    for T, start, option in zip((7, 6, 9, 5), (4, 1, 7, 4), options):
        logits = 3 * torch.randn(T, 13, generator=random)
        yield logits, torch.randint(13, (T,), generator=random), start, option
    logits = 110 * torch.randn(6, 13, generator=random)  # probabilities that float32 rounds to 0
    yield logits, logits.argmin(-1).roll(1), 2, " unlikely"


@score_per_character.reference
def truth_of_score_per_character(logits, ids, start, option):
    total = sum(logits[t - 1, ids[t]] - logits[t - 1].logsumexp(0) for t in range(start, len(ids)))
    return total / len(option.removeprefix(" "))


@score_per_character.invariant("the logits of other places do not matter")
def the_logits_of_other_places_do_not_matter(seen):
    logits, ids, start, option = next(score_per_character.make_cases(5))
    other = logits.clone()
    other[: start - 1], other[-1] = 7.0, torch.arange(13.0)
    return torch.equal(
        seen(logits, ids, start, option).value, seen(other, ids, start, option).value
    )


@score_per_character.invariant("a number added to all logits of a place changes nothing")
def a_number_added_to_all_logits_of_a_place_changes_nothing(seen):
    logits, ids, start, option = next(score_per_character.make_cases(6))
    one, two = (
        seen(l, ids, start, option) for l in (logits, logits + torch.arange(len(ids))[:, None])
    )
    return torch.allclose(one.value, two.value, atol=1e-4)


def _score(
    logits, ids, start, option, shift=1, skip=0, logs=lambda x: x.log_softmax(-1), length=None
):
    "The usual answer, with what goes wrong as arguments."
    ids = ids[start + skip :]
    rows = logs(logits)[start + skip - shift :][: len(ids)]
    characters = len(option.removeprefix(" ")) if length is None else length(option, len(ids))
    return rows[torch.arange(len(ids)), ids].sum() / characters


score_per_character.right(_score)


@score_per_character.right
def from_the_cross_entropy(logits, ids, start, option):
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum")
    return -loss / (len(option) - 1)


@score_per_character.mistake("the logarithm of a softmax", hint=2)
def the_logarithm_of_a_softmax(logits, ids, start, option):
    "A probability below 1e-45 is 0 in float32, and its logarithm infinite: log_softmax is not."
    return _score(logits, ids, start, option, logs=lambda x: x.softmax(-1).log())


@score_per_character.mistake("off by one", hint=1)
def off_by_one(logits, ids, start, option):
    "The logits of a place speak of the NEXT token: the row before it judges a token."
    return _score(logits, ids, start, option, shift=0)


@score_per_character.mistake("the first token is left out", hint=1)
def the_first_token_is_left_out(logits, ids, start, option):
    "The option's first token counts too; the context's last row judges it."
    return _score(logits, ids, start, option, skip=1)


@score_per_character.mistake("a token instead of a character", hint=3)
def a_token_instead_of_a_character(logits, ids, start, option):
    "Divided by the number of tokens; then models with other tokenizers are asked something else."
    return _score(logits, ids, start, option, length=lambda option, n: n)


@score_per_character.mistake("the leading space counts", hint=3)
def the_leading_space_counts(logits, ids, start, option):
    "The space before the option belongs to the prompt, not to the option's length."
    return _score(logits, ids, start, option, length=lambda option, n: len(option))


@score_per_character.mistake("bytes instead of characters", hint=3)
def bytes_instead_of_characters(logits, ids, start, option):
    "len(option.encode()) counts bytes: é has two of them, and is one character."
    return _score(logits, ids, start, option, length=lambda option, n: len(option.encode()) - 1)


@score_per_character.mistake("words instead of characters", hint=3)
def words_instead_of_characters(logits, ids, start, option):
    "Divided by the number of words."
    return _score(logits, ids, start, option, length=lambda option, n: len(option.split()))


@score_per_character.mistake("not divided", hint=3)
def not_divided(logits, ids, start, option):
    "The whole sum prefers short options: divide by the option's characters."
    return _score(logits, ids, start, option, length=lambda option, n: 1)


@score_per_character.mistake("logits instead of logarithms of probabilities", hint=2)
def logits_instead_of_logarithms_of_probabilities(logits, ids, start, option):
    "Logits are no logarithms of probabilities until log_softmax has been taken."
    return _score(logits, ids, start, option, logs=lambda x: x)


@score_per_character.mistake("probabilities are added", hint=2)
def probabilities_are_added(logits, ids, start, option):
    "Probabilities multiply, their logarithms add: log_softmax, not softmax."
    return _score(logits, ids, start, option, logs=lambda x: x.softmax(-1))


@score_per_character.mistake("bits instead of nats", hint=2)
def bits_instead_of_nats(logits, ids, start, option):
    "Base 2: take natural logarithms."
    return _score(logits, ids, start, option, logs=lambda x: x.log_softmax(-1) / math.log(2))


@score_per_character.mistake("softmax over the places", hint=2)
def softmax_over_the_places(logits, ids, start, option):
    "The probabilities of one place add up to one over the VOCABULARY: the last dimension."
    return _score(logits, ids, start, option, logs=lambda x: x.log_softmax(0))


@score_per_character.mistake("the context counts as well", hint=1)
def the_context_counts_as_well(logits, ids, start, option):
    "Only the option's tokens count, those from `start` on."
    return _score(logits, ids, 1, option)


attend_shared = Exercise(
    "attend_shared",
    chapter="25_likelihood",
    kind="extend",
    minutes=30,
    difficulty=3,
    factor=32.0,
    points={"values": 5, "invariant": 2, "ledger": 3},
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


option_scores = Exercise(
    "option_scores",
    chapter="25_likelihood",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 7, "invariant": 3},
    hints=(
        "Print the scores of a question with a long context. Which option wins, whatever it says?",
        "The context's log-likelihood C is in every sum. (C + a) / 10 against (C + b) / 20: "
        "and when C is very large?",
        "Sum from `start` on. And see what the length counts for an option such as ' thé'.",
    ),
)


@option_scores.cases
def cases_of_option_scores(seed):
    random = torch.Generator().manual_seed(seed)
    for start, options in (
        (30, (" thé", " café au lait", " water")),
        (3, (" no", " yes")),
        (12, (" the whole of it", " nothing", " a façade", " über")),
    ):
        context = -3 * torch.rand(start, generator=random)
        tails = [-2 * torch.rand(1 + len(o) // 3, generator=random) for o in options]
        yield [torch.cat([context, tail]) for tail in tails], list(options), start


@option_scores.reference
def truth_of_option_scores(logs, options, start):
    totals = [l[start:].sum() / len(o.removeprefix(" ")) for l, o in zip(logs, options)]
    return torch.stack(totals)


@option_scores.invariant("another context with as many tokens gives the same scores")
def another_context_with_as_many_tokens_gives_the_same_scores(seen):
    logs, options, start = next(option_scores.make_cases(8))
    other = [torch.cat([torch.full((start,), -9.0), l[start:]]) for l in logs]
    return torch.equal(seen(logs, options, start).value, seen(other, options, start).value)


def _scores(
    logs, options, start, begin=lambda start: start, length=lambda o, n: len(o) - 1, mean=False
):
    "The usual answer, with what goes wrong as arguments."
    parts = [l[begin(start) :] for l in logs]
    return torch.stack(
        [(p.mean() if mean else p.sum()) / length(o, len(p)) for p, o in zip(parts, options)]
    )


@option_scores.right
def from_the_logs(logs, options, start):
    return _scores(logs, options, start)


@option_scores.right
def minus_the_context(logs, options, start):
    context = logs[0][:start].double().sum()
    lengths = torch.tensor([len(o.lstrip(" ")) for o in options])
    return ((torch.stack([l.double().sum() for l in logs]) - context) / lengths).to(logs[0].dtype)


@option_scores.mistake("as it was given", hint=2)
def as_it_was_given(logs, options, start):
    """The context is in every sum, and divided by different lengths it does not cancel: the
    longest wins."""
    return _scores(
        logs, options, start, begin=lambda start: 0, length=lambda o, n: len(o.encode()) - 1
    )


@option_scores.mistake("the context is still in it", hint=2)
def the_context_is_still_in_it(logs, options, start):
    "Characters are right now, but the context is still in every sum."
    return _scores(logs, options, start, begin=lambda start: 0)


@option_scores.mistake("bytes are still counted", hint=3)
def bytes_are_still_counted(logs, options, start):
    "The context is gone, but é still counts twice: len of the text, not of its bytes."
    return _scores(logs, options, start, length=lambda o, n: len(o.encode()) - 1)


@option_scores.mistake("one token too few", hint=3)
def one_token_too_few(logs, options, start):
    "The option begins at `start`, not behind it."
    return _scores(logs, options, start, begin=lambda start: start + 1)


@option_scores.mistake("one token too many", hint=3)
def one_token_too_many(logs, options, start):
    "The last token of the context is still in the sum."
    return _scores(logs, options, start, begin=lambda start: start - 1)


@option_scores.mistake("a token instead of a character", hint=3)
def a_token_instead_of_a_character_in_option_scores(logs, options, start):
    "Divided by tokens: the rule is a character."
    return _scores(logs, options, start, length=lambda o, n: n)


@option_scores.mistake("the leading space counts", hint=3)
def the_leading_space_counts_in_option_scores(logs, options, start):
    "The space before the option is not part of its length."
    return _scores(logs, options, start, length=lambda o, n: len(o))


@option_scores.mistake("the normalization is given up", hint=2)
def the_normalization_is_given_up(logs, options, start):
    "Without a division the SHORTEST option wins: that is the fault which the rule should mend."
    return _scores(logs, options, start, length=lambda o, n: 1)


@option_scores.mistake("divided twice", hint=3)
def divided_twice(logs, options, start):
    "mean() has divided by the tokens already: sum, then divide by the characters."
    return _scores(logs, options, start, mean=True)


@option_scores.mistake("the whole text's length", hint=2)
def the_whole_texts_length(logs, options, start):
    """Divided by the length of context and option: all lengths are then about equal, nothing is
    normalized."""
    return torch.stack([l[start:].sum() / len(l) for l in logs])
