"What the judge knows of `packed_attention`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_course.classroom.exercise import Exercise


def packed_cases(seed: int):
    "Arguments (q, k, v, documents): (B, H, T, Q) three times, and (B, T) integers, -1 for padding."
    random = torch.Generator().manual_seed(seed)
    for B, H, lengths, Q, size, dtype in (
        (2, 3, ((4, 5, 1), (2, 7)), 8, 1.0, torch.float32),
        (3, 1, ((6,), (3, 3), (1, 1, 2)), 4, 3.0, torch.float32),
        (1, 2, ((5, 3, 4),), 6, 1.0, torch.float64),
    ):
        T = 12 if B < 3 else 6
        names = (0, 1, 2) if B > 1 else (70, 0, 3)  # any integers
        rows = [[names[i] for i, n in enumerate(row) for _ in range(n)] for row in lengths]
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
    points={"values": 3, "gradients": 2, "laws": 3, "cost": 2},
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


@packed_attention.mistake("examples are taken to be numbered in order", hint=1)
def examples_are_taken_to_be_numbered_in_order(q, k, v, documents):
    "A token sees its own example only: equal numbers, whatever their order."
    number = documents[:, None, :, None] - documents[:, None, None, :]
    late = (documents >= 0)[:, None, :, None] == (documents >= 0)[:, None, None, :]
    return _packed(q, k, v, documents, seen=lambda _: ((number <= 0) & late).tril())


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
