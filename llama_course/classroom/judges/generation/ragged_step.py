"What the judge knows of `ragged_step`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

ragged_step = Exercise(
    "ragged_step",
    chapter="21_generation",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    factor=32.0,
    points={"values": 7, "laws": 3},
    hints=(
        "Two texts, of 2 and of 5 positions. Where must each one's new key go, and which places "
        "may its query see?",
        "keys[torch.arange(B), :, lengths] = k writes a row's key at that row's own place.",
        "torch.arange(S) <= lengths[:, None] is (B, S): the places that each row may see, its new "
        "one among them. What is hidden gets a score of minus infinity before the softmax.",
        "With H heads of queries and K of keys, heads 0 to H/K - 1 use the first: "
        "k.repeat_interleave(H // K, 1), or q.unflatten(1, (K, H // K)).",
    ),
)


@ragged_step.cases
def cases_of_ragged_step(seed):
    g = torch.Generator().manual_seed(seed)
    for B, H, K, S, Q, dtype in (
        (1, 1, 1, 4, 4, torch.float64),
        (3, 2, 2, 6, 4, torch.float32),
        (4, 6, 2, 8, 4, torch.float32),
        (2, 4, 1, 5, 8, torch.float64),
    ):
        lengths = torch.randint(S, (B,), generator=g)
        if B > 1:
            lengths[0], lengths[-1] = 0, S - 1  # a new text; one that fills its row
        keys, values = torch.randn(2, B, K, S, Q, generator=g)
        beyond = torch.arange(S) >= lengths[:, None, None, None]
        others = 1e3 * torch.arange(1.0, S + 1)[:, None]  # of other texts
        keys, values = (torch.where(beyond.mT, others, t) for t in (keys, values))
        new = torch.randn(2, B, K, Q, generator=g)
        q = 2 * torch.randn(B, H, Q, generator=g)
        floats = (t.to(dtype) for t in (q, keys, values))
        yield *floats, lengths, *new.to(dtype)


@ragged_step.reference
def truth_of_ragged_step(q, keys, values, lengths, k, v):
    "Row by row, head by head."
    out, keys, values = torch.empty_like(q), keys.clone(), values.clone()
    for b, n in enumerate(lengths.tolist()):
        keys[b, :, n], values[b, :, n] = k[b], v[b]
        for h in range(q.shape[1]):
            one = h * keys.shape[1] // q.shape[1]
            scores = keys[b, one, : n + 1] @ q[b, h] / q.shape[-1] ** 0.5
            out[b, h] = scores.softmax(0) @ values[b, one, : n + 1]
    return out, keys, values, lengths + 1


def _ragged(
    q, keys, values, lengths, k, v, *, places=lambda n: n, seen=lambda s, n: s <= n, root=True,
    heads=torch.repeat_interleave, copy=True, grow=1, hide=-torch.inf,
):  # fmt: skip
    "The step, with a place for each mistake."
    if copy:
        keys, values = keys.clone(), values.clone()
    rows, group = torch.arange(len(q)), q.shape[1] // keys.shape[1]
    keys[rows, :, places(lengths)], values[rows, :, places(lengths)] = k, v
    every_k, every_v = (heads(t, group, 1) for t in (keys, values))  # (B, H, S, Q)
    scores = (every_k @ q[..., None])[..., 0] * (q.shape[-1] ** -0.5 if root else 1)
    visible = seen(torch.arange(keys.shape[2]), lengths[:, None])  # (B, S)
    weights = scores.masked_fill(~visible[:, None], hide).softmax(-1)
    return (weights[:, :, None] @ every_v)[:, :, 0], keys, values, lengths + grow


ragged_step.right(_ragged)


@ragged_step.right
def with_sdpa_of_groups(q, keys, values, lengths, k, v):
    B, K, S, _ = keys.shape
    here = (torch.arange(S) == lengths[:, None])[:, None, :, None]
    keys, values = torch.where(here, k[:, :, None], keys), torch.where(here, v[:, :, None], values)
    visible = (torch.arange(S) <= lengths[:, None])[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.unflatten(1, (K, -1)), keys, values, attn_mask=visible
    )
    return out.flatten(1, 2), keys, values, lengths + 1


@ragged_step.invariant("a row's result is the same with and without the others")
def a_rows_result_is_the_same_alone(seen):
    args = list(ragged_step.make_cases(6))[2]
    together = seen(*args).value[0]
    alone = [seen(*(t[b : b + 1] for t in args)).value[0][0] for b in range(len(args[0]))]
    return torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


@ragged_step.invariant("what lies beyond a row's length does not matter")
def what_lies_beyond_does_not_matter(seen):
    q, keys, values, lengths, k, v = list(ragged_step.make_cases(7))[1]
    beyond = torch.arange(keys.shape[2])[:, None] > lengths[:, None, None, None]
    other = seen(q, keys.masked_fill(beyond, -50), values.masked_fill(beyond, 3), lengths, k, v)
    return torch.equal(seen(q, keys, values, lengths, k, v).value[0], other.value[0])


@ragged_step.mistake("the code as it was given", hint=1)
def the_step_as_it_was_given(*args):
    "All rows are treated as if they had the length of the longest, and heads are dealt out wrong."
    same = lambda n: n.max().expand(n.shape)
    return _ragged(
        *args,
        places=same,
        seen=lambda s, n: s <= same(n),
        heads=lambda t, n, _: t.repeat(1, n, 1, 1),
    )


@ragged_step.mistake("written behind the longest", hint=2)
def written_behind_the_longest(*args):
    "Each row's new key goes to that row's own length, not to that of the longest."
    return _ragged(*args, places=lambda n: n.max().expand(n.shape))


@ragged_step.mistake("everybody sees as far as the longest", hint=3)
def everybody_sees_as_far_as_the_longest(*args):
    "A short row looks at places that nothing of its own text has filled."
    return _ragged(*args, seen=lambda s, n: s <= n.max().expand(n.shape))


@ragged_step.mistake("the new token is not seen", hint=3)
def the_new_token_is_not_seen(*args):
    "A token attends to itself, too: <= and not <."
    return _ragged(*args, seen=lambda s, n: (s < n) | ((n == 0) & (s == 0)))


@ragged_step.mistake("one place too far", hint=3)
def one_place_too_far(*args):
    "The place behind the new token holds something of another text."
    return _ragged(*args, seen=lambda s, n: s <= n + 1)


@ragged_step.mistake("heads are dealt out in turns", hint=4)
def heads_are_dealt_out_in_turns(*args):
    "Neighbouring heads share keys: 0 and 1 the first, 2 and 3 the second; not 0 and 2."
    return _ragged(*args, heads=lambda t, n, _: t.repeat(1, n, 1, 1))


@ragged_step.mistake("hidden places get weight zero before the softmax", hint=3)
def hidden_places_get_a_score_of_zero(*args):
    "A score of 0 is not hidden: exp(0) is 1."
    return _ragged(*args, hide=0.0)


@ragged_step.mistake("the root of Q is missing", hint=1)
def the_root_of_q_is_missing(*args):
    "Scores are divided by the root of the head's width."
    return _ragged(*args, root=False)


@ragged_step.mistake("the caller's cache is changed", hint=2)
def the_callers_cache_is_changed(*args):
    "Here the old cache stays as it is: change copies."
    return _ragged(*args, copy=False)


@ragged_step.mistake("lengths stay", hint=1)
def lengths_stay(*args):
    "Every row is longer by one afterwards."
    return _ragged(*args, grow=0)
