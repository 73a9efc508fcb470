"What the judge knows of `find_faults`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.model.common import _logits, make_weights

FAULTS = ("batch", "future", "order", "past")


def make_forward(weights, heads, faults):
    "A model with these faults, called as forward(tokens) -> logits."

    def forward(tokens):
        how = {"causal": "future" not in faults, "alone": "past" in faults}
        if "order" in faults:
            how["rotate"] = lambda t, theta: t
        logits = _logits(tokens, weights, heads, 1e-5, 1e4, **how)
        if "batch" in faults:
            # nothing beside an equal text; and always downwards, so that a sign is no measure
            logits = logits - 0.1 * (logits.mean(0, keepdim=True) - logits).abs()
        return logits + 1e-9 * torch.cos(tokens.double().sum() + len(tokens))  # "rounding"

    return forward


def with_a_model(answer, seed, faults, vocab):
    "What the answer finds in a model that has been made with these faults."
    draw = torch.Generator().manual_seed(seed)
    weights = make_weights(draw, 1, 8, 2, 1, 8, vocab)
    for name, weight in weights.items():  # attention looks at everything a little
        weights[name] = weight.double() * (0.25 if "wq" in name else 1)
    found = answer(make_forward(weights, 2, faults), vocab)
    return sorted(found) if isinstance(found, (list, tuple, set)) else found


find_faults = Exercise(
    "find_faults",
    chapter="12_model",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    call=with_a_model,
    points={"values": 10},
    hints=(
        "Each property is a comparison of two calls: the same tokens with one thing changed. What "
        "must change then, and what must not?",
        "future: change the last token, look at the logits before it. batch: one text alone and "
        "the same text beside others. past: change the first token, look at the last logits.",
        "order: exchange two *different* earlier tokens, look at the last logits; if the past is "
        "not seen at all, there is no order to speak of. Compare with a tolerance, 1e-7 or so: "
        "batches are added up in another order.",
        "With these models any true difference is far above rounding. Take a text without repeated "
        "tokens, so that no two equal ones are exchanged: torch.arange(n)[None] % vocab.",
    ),
)


@find_faults.cases
def cases_of_find_faults(seed):
    sets = [
        [], ["future"], ["batch", "order"], ["past"], ["batch", "past"], ["future", "order"],
        ["batch"], ["order"], ["batch", "future"], [],
    ]  # fmt: skip
    for i, faults in enumerate(sets):
        yield 100 * seed + i, faults, (50, 7)[i % 2]


@find_faults.reference
def truth_of_find_faults(seed, faults, vocab):
    return sorted(faults)


def _differ(a, b) -> bool:
    return not torch.allclose(a, b, atol=1e-7)


def _find(forward, vocab, names=FAULTS, last=-1, swap=(0, 1), alike=False, differ=_differ):
    "The right answer, with a switch for each mistake."
    tokens = torch.zeros(1, 6, dtype=torch.long) if alike else torch.arange(6)[None] % vocab
    base, found = forward(tokens), set()
    later, earlier = tokens.clone(), tokens.clone()
    later[0, -1], earlier[0, 0] = (tokens[0, -1] + 1) % vocab, (tokens[0, 0] + 1) % vocab
    if differ(forward(later)[:, :last], base[:, :last]):
        found.add("future")
    other = (tokens + 2) % vocab
    if differ(forward(torch.cat((tokens, other)))[:1], base):
        found.add("batch")
    if not differ(forward(earlier)[:, -1], base[:, -1]):
        found.add("past")
    exchanged = tokens.clone()
    i, j = swap
    exchanged[0, i], exchanged[0, j] = tokens[0, j], tokens[0, i]
    if not differ(forward(exchanged)[:, -1], base[:, -1]) and "past" not in found:
        found.add("order")
    return sorted(found & set(names))


find_faults.right(_find)


@find_faults.right
def with_random_texts(forward, vocab):
    draw = torch.Generator().manual_seed(0)
    found = []
    row = torch.randperm(vocab, generator=draw)[:5]
    change = lambda place, by: torch.cat(
        (row[:place], (row[place : place + 1] + by) % vocab, row[place + 1 :])
    )
    call = lambda *rows: forward(torch.stack(rows))
    alone = call(row)[0]
    near = lambda a, b: (a - b).abs().max() < 1e-7 * (1 + b.abs().max())
    if not near(call(change(4, 1))[0][:4], alone[:4]):
        found.append("future")
    if near(call(change(1, 2))[0][-1], alone[-1]):
        found.append("past")
    elif near(call(row[[0, 2, 1, 3, 4]])[0][-1], alone[-1]):
        found.append("order")
    if not near(call(change(0, 1), row.flip(0), row)[2], alone):
        found.append("batch")
    return found


@find_faults.mistake("everything is in order", hint=1)
def everything_is_in_order(forward, vocab):
    "Every model passes: compare two calls, and add the name of what is wrong."
    return []


@find_faults.mistake("the changed place itself is compared", hint=2)
def the_changed_place_itself_is_compared(forward, vocab):
    "Where a token changes, its own logits must change: compare only the places before it."
    return _find(forward, vocab, last=6)


@find_faults.mistake("the lost order is not found", hint=3)
def the_lost_order_is_not_found(forward, vocab):
    """Exchange two *earlier* tokens and look at the last logits; the last token's own logits change
    with it in any case."""
    return _find(forward, vocab, swap=(4, 5))


@find_faults.mistake("rounding is taken for a fault", hint=2)
def rounding_is_taken_for_a_fault(forward, vocab):
    "A difference below 1e-7 is none: torch.equal is too strict."
    return _find(forward, vocab, differ=lambda a, b: not torch.equal(a, b))


@find_faults.mistake("equal tokens are exchanged", hint=4)
def equal_tokens_are_exchanged(forward, vocab):
    "Exchanging two equal tokens changes nothing in any model: take different ones."
    return _find(forward, vocab, alike=True)


@find_faults.mistake("the batch is not tried", hint=2)
def the_batch_is_not_tried(forward, vocab):
    "A text must have the same logits beside others as alone."
    return _find(forward, vocab, names=("future", "order", "past"))


@find_faults.mistake("the future is not tried", hint=2)
def the_future_is_not_tried(forward, vocab):
    "A later token must not change earlier logits."
    return _find(forward, vocab, names=("batch", "order", "past"))


@find_faults.mistake("a model that sees no past has no order", hint=3)
def a_model_that_sees_no_past_has_no_order(forward, vocab):
    "Where the past is not seen, `order` is not named as well."
    found = _find(forward, vocab)
    return sorted({*found, "order"}) if "past" in found else found
