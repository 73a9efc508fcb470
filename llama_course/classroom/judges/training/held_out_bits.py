"What the judge knows of `held_out_bits`. Spoilers ahead."

import math

import torch
import torch.nn.functional as F
from torch import nn

from llama_course.classroom.exercise import Exercise


class _Reader(nn.Module):
    "Logits that depend on all tokens so far, and so on where a window begins."

    def __init__(self, table, most):
        super().__init__()
        self.table = nn.Parameter(table.clone())  # (V, V)
        self.most = most  # tokens

    def forward(self, tokens):
        if tokens.shape[1] > self.most:
            raise ValueError(f"the model is given {tokens.shape[1]} tokens, and reads {self.most}")
        places = torch.arange(1, tokens.shape[1] + 1)
        return self.table[tokens].cumsum(1) / places[:, None]


held_out_bits = Exercise(
    "held_out_bits",
    chapter="15_training",
    kind="diagnose",
    minutes=20,
    difficulty=1,
    call=lambda answer, table, tokens, text_bytes, seq_len: answer(
        _Reader(table, seq_len), tokens, text_bytes, seq_len
    ),
    points={"values": 7, "laws": 3},
    hints=(
        "Take a model that knows nothing. What should come out, and what does?",
        "Which tokens are predicted, and from where? Write the places down for N = 8 and T = 3: "
        "each but the first must be there once.",
        "A window of T + 1 tokens has T predictions: the model reads the first T, and its last "
        "token is the first that the next window reads. The last window may be shorter.",
        "Add nats, token by token. At the end: divided by ln 2, divided by the bytes of the text.",
    ),
)


@held_out_bits.cases
def cases_of_held_out_bits(seed):
    random = torch.Generator().manual_seed(seed)
    for length, text_bytes, seq_len in ((9, 31, 4), (8, 20, 3), (3, 7, 5), (6, 6, 5), (2, 9, 1)):
        table = 2 * torch.randn(6, 6, generator=random)
        yield table, torch.randint(6, (length,), generator=random), text_bytes, seq_len
    yield torch.zeros(6, 6), torch.tensor([3]), 1, 4  # nothing to predict


@held_out_bits.reference
def truth_of_held_out_bits(table, tokens, text_bytes, seq_len):
    "One token at a time."
    bits = 0.0
    for i in range(1, len(tokens)):
        context = tokens[(i - 1) // seq_len * seq_len : i]
        bits -= table[context].mean(0).log_softmax(-1)[tokens[i]].item() / math.log(2)
    return bits / text_bytes


def _bits(
    model, tokens, text_bytes, seq_len, *, overlap=1, rest=True, mean=False, unit=math.log(2),
    per=None,
):  # fmt: skip
    "Window by window, with a place for each mistake."
    nats, windows = [], 0
    for i in range(0, len(tokens) - 1, seq_len):
        window = tokens[i : i + seq_len + overlap]
        if len(window) < 2 or (len(window) < seq_len + overlap and not rest):
            continue
        logits = model(window[None, :-1])[0]
        nats.append(F.cross_entropy(logits, window[1:], reduction="sum").item())
        windows += len(window) - 1
    if mean:
        size = [min(seq_len, len(tokens) - 1 - i) for i in range(0, len(tokens) - 1, seq_len)]
        total = sum(n / s for n, s in zip(nats, size)) / max(len(size), 1) * windows
    else:
        total = sum(nats)
    return total / unit / (text_bytes if per is None else max(per(tokens), 1))


held_out_bits.right(
    lambda model, tokens, text_bytes, seq_len: _bits(model, tokens, text_bytes, seq_len)
)


@held_out_bits.right
@torch.no_grad()
def with_all_whole_windows_in_one_batch(model, tokens, text_bytes, seq_len):
    whole = (len(tokens) - 1) // seq_len * seq_len
    parts = [tokens[whole:][None]]
    if whole:
        parts.append(tokens[: whole + 1].unfold(0, seq_len + 1, seq_len))
    bits = 0.0
    for part in parts:
        chances = model(part[:, :-1]).double().softmax(-1).gather(-1, part[:, 1:, None])
        bits += float(-chances.log2().sum())
    return bits / text_bytes


@held_out_bits.invariant("a model that knows nothing pays log2 V bits for each token but the first")
def a_model_that_knows_nothing(seen):
    tokens = torch.arange(11) % 8
    found = [seen(torch.zeros(8, 8), tokens, 15, n).value for n in (1, 3, 4, 10, 50)]
    return all(abs(bits - 10 * 3 / 15) < 1e-5 for bits in found)


@held_out_bits.mistake("the code as it was given", hint=1)
def the_bits_as_they_were_given(model, tokens, text_bytes, seq_len):
    "Nats per token, of some of the tokens: unit, denominator and windows are wrong."
    total, windows = 0.0, 0
    for i in range(0, len(tokens) - seq_len + 1, seq_len):
        window = tokens[i : i + seq_len]
        total += F.cross_entropy(model(window[None])[0, :-1], window[1:]).item()
        windows += 1
    return total / windows


@held_out_bits.mistake("nats, not bits", hint=4)
def nats_not_bits(*args):
    "F.cross_entropy is in nats: a bit is ln 2 nats."
    return _bits(*args, unit=1.0)


@held_out_bits.mistake("times ln 2", hint=4)
def times_ln_2(*args):
    "A nat is more than a bit, so there are more bits than nats: divide by ln 2."
    return _bits(*args, unit=1 / math.log(2))


@held_out_bits.mistake("bits per token", hint=4)
def bits_per_token(*args):
    "Divided by the tokens that were predicted, not by the bytes of the text."
    return _bits(*args, per=lambda tokens: len(tokens) - 1)


@held_out_bits.mistake("each window's first token is never predicted", hint=3)
def each_windows_first_token_is_never_predicted(*args):
    "Windows of T tokens have T - 1 predictions: they must share a token with the next window."
    return _bits(*args, overlap=0)


@held_out_bits.mistake("the rest is left out", hint=3)
def the_rest_is_left_out(*args):
    "N - 1 need not be a multiple of T: the last, shorter window belongs to the text as well."
    return _bits(*args, rest=False)


@held_out_bits.mistake("every window counts the same", hint=4)
def every_window_counts_the_same(*args):
    "A mean of the windows' means gives the tokens of a short window more weight than others."
    return _bits(*args, mean=True)


@held_out_bits.mistake("the last target is read, too", hint=3)
def the_last_target_is_read_too(model, tokens, text_bytes, seq_len):
    "A window has T + 1 tokens, of which the model reads the first T: it cannot read more."
    nats = 0.0
    for i in range(0, len(tokens) - 1, seq_len):
        window = tokens[i : i + seq_len + 1]
        logits = model(window[None])[0, :-1]
        nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / math.log(2) / text_bytes


@held_out_bits.mistake("one window for all", hint=3)
def one_window_for_all(model, tokens, text_bytes, seq_len):
    "The context is not cut at T: a model must not be shown more tokens than it can read."
    return _bits(model, tokens, text_bytes, len(tokens))
