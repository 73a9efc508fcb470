"What the judge knows of `ragged_perplexity`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise


def _each_for_itself(answer, *args):
    "The answer as a column: each perplexity is compared by its own size."
    found = answer(*args)
    return found[:, None] if isinstance(found, torch.Tensor) and found.dim() == 1 else found


ragged_perplexity = Exercise(
    "ragged_perplexity",
    chapter="28_bias",
    kind="extend",
    minutes=25,
    difficulty=2,
    call=_each_for_itself,
    factor=1.0,
    condition=lambda logits, *_: 1.0 if logits.element_size() == 2 else 256.0,  # exp magnifies
    points={"values": 8, "laws": 2},
    hints=(
        "Row t of the logits speaks of token t + 1. So logits[:, :-1] and ids[:, 1:] belong "
        "together, and of these the first length - 1 places count.",
        "torch.arange(T - 1) < lengths[:, None] - 1 is (B, T - 1): the places that count.",
        "What is no number stays none when it is multiplied with 0. Put something else there "
        "before you add: torch.where(counts, costs, 0), or masked_fill.",
        "logsumexp(-1) minus the logit of the token is its cost in nats. 16-bit logits go to "
        "float32 first; the result comes back to their dtype.",
    ),
)


@ragged_perplexity.cases
def cases_of_ragged_perplexity(seed):
    random = torch.Generator().manual_seed(seed)
    for B, T, V, size, lengths, dtype in (
        (1, 2, 5, 1.0, [2], torch.float64),
        (3, 7, 11, 2.0, [7, 2, 5], torch.float32),
        (4, 6, 9, 4.0, [6, 3, 2, 4], torch.float32),
        (7, 5, 30, 4.0, [4, 3, 5, 5, 2, 4, 5], torch.bfloat16),
    ):
        logits = size * torch.randn(B, T, V, generator=random)
        ids = torch.randint(V, (B, T), generator=random)
        if B == 4:  # a probability that float32 rounds to 0
            logits[0, 0, ids[0, 1]] = logits[0, 0].max() - 120
        for row, length in enumerate(lengths):
            logits[row, length - 1 :] = torch.nan if row % 2 else torch.inf
            ids[row, length:] = -1
        yield logits.to(dtype), ids, torch.tensor(lengths)


@ragged_perplexity.reference
def truth_of_ragged_perplexity(logits, ids, lengths):
    "Sentence by sentence, token by token."
    found = []
    for row, n in enumerate(lengths.tolist()):
        logs = [logits[row, t - 1].log_softmax(-1)[ids[row, t]] for t in range(1, n)]
        found.append((-torch.stack(logs).mean()).exp())
    return torch.stack(found)[:, None]


def _perplexity(
    logits, ids, lengths, *, shift=1, count=lambda n: n - 1, clean=True, wide=True, rows=True,
    logs=lambda x: x.log_softmax(-1), exp=torch.exp,
):  # fmt: skip
    "The usual answer, with a place for each mistake."
    scores = logits.float() if wide and logits.dtype != torch.float64 else logits
    scores, targets = scores[:, : ids.shape[1] - shift], ids[:, shift:].clamp(min=0)
    costs = -logs(scores).gather(-1, targets[..., None])[..., 0]
    counts = torch.arange(targets.shape[1]) < lengths[:, None] - shift
    costs = costs.masked_fill(~counts, 0) if clean else costs * counts
    if not rows:
        mean = (costs.sum() / counts.sum()).expand(len(ids))
    else:
        mean = costs.sum(-1) / count(lengths)
    return exp(mean).to(logits.dtype)


ragged_perplexity.right(_perplexity)


@ragged_perplexity.right
def sentence_by_sentence(logits, ids, lengths):
    out = torch.empty(len(ids), dtype=logits.dtype)
    for row, n in enumerate(lengths.tolist()):
        scores = logits[row, : n - 1].to(torch.promote_types(logits.dtype, torch.float32))
        out[row] = torch.nn.functional.cross_entropy(scores, ids[row, 1:n]).exp()
    return out


@ragged_perplexity.invariant("how much padding stands behind a sentence does not matter")
def how_much_padding_does_not_matter(seen):
    logits, ids, lengths = list(ragged_perplexity.make_cases(5))[1]
    more = torch.cat([logits, torch.full((3, 4, 11), torch.nan)], 1)
    wider = torch.cat([ids, torch.full((3, 4), -1)], 1)
    long = seen(more, wider, lengths).value
    return torch.allclose(seen(logits, ids, lengths).value, long, rtol=1e-5)


@ragged_perplexity.invariant("a model that knows nothing has the perplexity V")
def a_model_that_knows_nothing_has_the_perplexity_v(seen):
    found = seen(torch.zeros(2, 4, 6), torch.tensor([[0, 5, 2, 1], [3, 3, -1, -1]]),
                 torch.tensor([4, 2])).value  # fmt: skip
    return torch.allclose(found, torch.full((2, 1), 6.0))


@ragged_perplexity.mistake("padding times zero", hint=3)
def padding_times_zero(*args):
    "NaN times 0 is NaN: what is no number must be replaced, not multiplied away."
    return _perplexity(*args, clean=False)


@ragged_perplexity.mistake("each row judges its own token", hint=1)
def each_row_judges_its_own_token(*args):
    "The logits at a token are about the token after it."
    return _perplexity(*args, shift=0)


@ragged_perplexity.mistake("divided by the length", hint=1)
def divided_by_the_length(*args):
    "The first token is not predicted: a sentence of n tokens has n - 1 predictions."
    return _perplexity(*args, count=lambda n: n)


@ragged_perplexity.mistake("divided by the longest", hint=2)
def divided_by_the_longest(*args):
    "Each sentence is divided by its own number of predictions."
    return _perplexity(*args, count=lambda n: n.max() - 1)


@ragged_perplexity.mistake("one perplexity for the batch", hint=1)
def one_perplexity_for_the_batch(*args):
    "Each sentence has its own."
    return _perplexity(*args, rows=False)


@ragged_perplexity.mistake("a softmax that underflows", hint=4)
def a_softmax_that_underflows(*args):
    "A probability of e^-120 is 0 in float32, and its logarithm infinite."
    return _perplexity(*args, logs=lambda x: x.softmax(-1).log())


@ragged_perplexity.mistake("the mean cost, not its exponential", hint=1)
def the_mean_cost_itself(*args):
    "The perplexity is exp of the mean cost."
    return _perplexity(*args, exp=lambda x: x)


@ragged_perplexity.mistake("two to the mean", hint=1)
def two_to_the_mean(*args):
    "Costs in nats go with e, costs in bits with 2."
    return _perplexity(*args, exp=lambda x: 2**x)


@ragged_perplexity.mistake("16 bits all the way", hint=4)
def sixteen_bits_all_the_way(*args):
    "A sum of logarithms in bfloat16 has an error that exp makes larger: go to float32 first."
    return _perplexity(*args, wide=False)
