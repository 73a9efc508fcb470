"The smallest language model: its counts, its units, and that counting and gradient descent agree."

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course.bigram import Bigram, count_pairs, nats_to_bits
from llama_course.training import bits_per_byte

V = 5
TEXTS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=40), min_size=1, max_size=4)


def drawn(length, seed=0):
    "A text of V tokens in which some pairs are far more frequent than others."
    random = torch.Generator().manual_seed(seed)
    table = torch.softmax(2 * torch.randn(V, V, generator=random), -1)
    ids = [0]
    while len(ids) < length:
        ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=random)))
    return torch.tensor(ids)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_pairs_are_counted_within_each_text(texts):
    counts = count_pairs([torch.tensor(text) for text in texts], V)
    wanted = Counter(pair for text in texts for pair in zip(text, text[1:]))
    assert counts.shape == (V, V)
    assert {
        (a, b): n for a, row in enumerate(counts.tolist()) for b, n in enumerate(row) if n
    } == wanted


def test_nats_and_bits():
    assert nats_to_bits(math.log(2)) == 1 and math.isclose(nats_to_bits(math.log(8)), 3)
    assert nats_to_bits(0.0) == 0


def test_the_logits_of_counts_are_the_shares_of_the_counts():
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    p = torch.softmax(Bigram.from_counts(counts, alpha=1).table, -1)
    assert torch.allclose(p, torch.tensor([[4, 2, 1], [7 / 3] * 3, [2, 2, 3]]) / 7)
    assert Bigram.from_counts(counts, alpha=0).table.exp().equal(counts.float())


def test_the_model_looks_at_one_token():
    model = Bigram.from_counts(torch.arange(V * V).view(V, V), 1.0)
    tokens = torch.tensor([[0, 1, 2], [4, 1, 0]])
    logits = model(tokens)
    assert logits.shape == (2, 3, V)
    assert logits[0, 1].equal(logits[1, 1])  # the same token, whatever stands before it
    assert logits[0, 0].equal(model.table[0])


def test_a_new_model_knows_nothing():
    text = drawn(200)
    loss = F.cross_entropy(Bigram(V)(text[None, :-1])[0], text[1:])
    assert math.isclose(loss.item(), math.log(V), rel_tol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_descent_finds_what_counting_finds(seed):
    text = drawn(4000, seed)
    x, y, model = text[:-1], text[1:], Bigram(V)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[None])[0], y)
        loss.backward()
        return loss

    optimizer.step(closure)
    counts = count_pairs([text], V)
    shares = counts / counts.sum(1, keepdim=True)
    assert torch.allclose(torch.softmax(model.table.detach(), -1), shares, atol=2e-3)
    entropy = (
        -(counts * shares.clamp(min=1e-9).log()).sum() / counts.sum()
    )  # no table has a lower loss
    assert 0 <= closure().item() - entropy.item() + 1e-6 < 1e-4


def test_the_training_chapter_measures_it_as_well():
    text = torch.tensor([0, *[1 + (i * i) % 3 for i in range(700)]])
    model = Bigram.from_counts(count_pairs([text], V), 0.5)
    loss = F.cross_entropy(model(text[None, :-1])[0], text[1:]).item()
    assert math.isclose(
        bits_per_byte(model, text, 700, seq_len=64), nats_to_bits(loss), rel_tol=1e-5
    )
