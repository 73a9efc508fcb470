"Likelihoods of options: the tree and its mask, batches, what questions share, the rules."

import math

import pytest
import torch
from scoring import REQUESTS, TEXT, expected, make_model, same

from llama_course import likelihood as ev
from llama_course.likelihood import Choose, Likelihood, likelihoods
from llama_course.model import Llama, Parts, hugging_face_settings, to_hugging_face
from llama_course.rope import apply_rotary
from llama_course.support.errors import UserError
from llama_course.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXT * 3, 600, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_heads": 4, "tie_embeddings": True}, {"n_kv_heads": 1, "rope_theta": 100.0}],
)
def test_likelihoods_are_those_of_a_pass_a_token(tokenizer, changes):
    model = make_model(3, **changes)
    for request in REQUESTS:
        same(likelihoods(model, tokenizer, request), list(expected(model, tokenizer, request)))


def test_likelihoods_are_the_loss_of_transformers(tokenizer, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **hugging_face_settings(model.config),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    theirs.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    for request in REQUESTS[:3]:
        for option, l in zip(request.options, likelihoods(model, tokenizer, request)):
            before, after = ev.encode_pair(tokenizer, request.context, option)
            labels = torch.tensor([[-100] * len(before) + after])
            with torch.no_grad():
                loss = theirs(torch.tensor([before + after]), labels=labels).loss.item()
            assert abs(l.total + loss * len(after)) < 2e-4


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_batches_do_not_change_a_thing(tokenizer, model, batch_tokens):
    found = dict(ev.likelihoods_of(model, tokenizer, REQUESTS, batch_tokens))
    assert sorted(found) == list(range(len(REQUESTS)))
    for i, request in enumerate(REQUESTS):
        same(found[i], list(expected(model, tokenizer, request)))


def test_judged_in_parts_of_any_size(model):
    torch.manual_seed(1)
    states, places = torch.randn(9, 32), torch.tensor([3, 3, 8, 0, 3, 5])
    targets = torch.tensor([1, 2, 3, 4, 1, 0])
    with torch.no_grad():
        logs = model.output(states).log_softmax(-1)
    for rows in (1, 2, 3, 100):
        found, best = ev.score_places(model, states, places, targets, rows)
        torch.testing.assert_close(found, logs[places, targets], atol=1e-5, rtol=1e-5)
        assert best.tolist() == (logs[places].argmax(-1) == targets).tolist()


@torch.no_grad()
def test_greedy_means_every_token(tokenizer, model):
    before, likeliest = tokenizer.encode("The cat", bos=True), []
    for _ in range(3):
        likeliest.append(model(torch.tensor([before + likeliest]))[0, -1].argmax().item())
    others = [[(i + (n == at)) % 600 for n, i in enumerate(likeliest)] for at in range(3)]
    tree = ev.grow_tree([(before, after) for after in (likeliest, *others)])
    assert [greedy for _, greedy in ev.score_trees(model, [tree])[0]] == [True, False, False, False]


def test_every_shared_beginning_is_read_once(tokenizer, model, monkeypatch):
    read = []
    hidden = type(model).hidden
    monkeypatch.setattr(
        type(model),
        "hidden",
        lambda m, tokens, **how: read.append(tokens.numel()) or hidden(m, tokens, **how),
    )
    for request in REQUESTS:
        n = len(request.options)
        contexts = request.context if isinstance(request.context, tuple) else (request.context,) * n
        contexts += (request.neutral,) * (n if request.neutral is not None else 0)
        beginnings = set()
        for context, option in zip(contexts, request.options * 2):
            before, after = ev.encode_pair(tokenizer, context, option)
            ids = (before + after)[:-1]
            beginnings |= {tuple(ids[: i + 1]) for i in range(len(ids))}
        likelihoods(model, tokenizer, request)
        assert read.pop() == len(beginnings)


def test_who_sees_whom():
    parents = [-1, 0, 1, 1, 3, -1, 5]
    seen = ev.tree_mask(parents, 8)

    def ancestors(i):
        return {i} | (ancestors(parents[i]) if parents[i] >= 0 else set())

    assert [set(row.nonzero()[0]) for row in seen] == [*map(ancestors, range(7)), {7}]


def test_siblings_and_neighbours_do_not_matter(tokenizer, model):
    alone = likelihoods(model, tokenizer, Choose("The cat sat on", (" the mat",)))[0]
    for others in ((" a chair", " the moon at night"), (" the mat of my aunt",)):
        found = likelihoods(model, tokenizer, Choose("The cat sat on", (" the mat", *others)))[0]
        assert abs(found.total - alone.total) < 1e-4


def test_the_border_between_context_and_option(tokenizer):
    whole = tokenizer.encode("Answer: yes", bos=True)
    before, after = ev.encode_pair(tokenizer, "Answer:", " yes")
    assert before + after == whole and before == tokenizer.encode("Answer:", bos=True)
    assert ev.encode_pair(tokenizer, "Answer: ", "yes") == (before, after)
    for context in ("The cat s", "", "A line\n", "The", "  "):
        for option in ("at", "cat", "\nthe", " the"):
            before, after = ev.encode_pair(tokenizer, context, option)
            assert before and after and tokenizer.decode(before + after) == context + option


def test_a_long_context_is_cut_on_the_left(tokenizer):
    small = make_model(2, max_seq_len=24)
    long = Choose("The cat sat on the mat. " * 9 + "The cat sat on", (" the mat", " a chair"))
    found = likelihoods(small, tokenizer, long)
    for option, l in zip(long.options, found):
        before, after = ev.encode_pair(tokenizer, long.context, option)
        ids = (before + after)[-25:]
        with torch.no_grad():
            logs = small(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        wanted = sum(logs[len(ids) - len(after) - 1 + i, t].item() for i, t in enumerate(after))
        assert abs(l.total - wanted) < 2e-4
    with pytest.raises(UserError, match="leaves no room"):
        likelihoods(small, tokenizer, Choose("The", (" cat" * 40, " dog")))


@pytest.mark.parametrize("context, options", [("a", ()), ("a", ("",)), (("a",), (" b", " c"))])
def test_requests_that_make_no_sense(context, options):
    with pytest.raises(UserError):
        Choose(context, options)


def test_the_three_rules_choose_differently():
    short = Likelihood(-6.0, 1, 3, False, -8.0)
    long = Likelihood(-10.0, 4, 20, False, -11.0)
    likely_anyway = Likelihood(-9.0, 2, 9, False, -3.0)
    answer = [short, long, likely_anyway]
    assert [
        ev.best_option(answer, rule) for rule in (ev.in_total, ev.per_character, ev.against_neutral)
    ] == [0, 1, 0]
    assert ev.against_neutral(short) == 2.0 and ev.per_character(long) == -0.5
    assert ev.best_option([short, short]) == 0


def test_what_questions_share_is_read_once(tokenizer, model, monkeypatch):
    passage = "The mill stands by the river, and the river is old. " * 2
    requests = [
        Choose(passage + q, (" yes", " no, not at all"), "Answer:")
        for q in ("Where?", "How old?", "Who?")
    ]
    requests.insert(1, Choose("Another text altogether.", (" yes", " no")))
    trees = [ev.request_tree(tokenizer, r, 512) for r in requests]
    one = ev.merge_trees([trees[0], trees[2], trees[3]])
    beginnings = set()
    for t in (trees[0], trees[2], trees[3]):

        def path(i):
            return (path(t.parents[i]) if t.parents[i] >= 0 else ()) + (t.tokens[i],)

        beginnings |= {path(i) for i in range(len(t.tokens))}
    assert (
        len(one.tokens) == len(beginnings)
        and one.targets == trees[0].targets + trees[2].targets + trees[3].targets
    )
    assert sorted(map(sorted, ev.group_trees(trees))) == [[0, 2, 3], [1]]
    assert sorted(map(sorted, ev.group_trees(trees, most=len(trees[0].tokens)))) == [
        [0],
        [1],
        [2],
        [3],
    ]
    for i, found in ev.likelihoods_of(model, tokenizer, requests):
        same(found, list(expected(model, tokenizer, requests[i])))
    kept = [i for batch in ev.score_all(model, trees, 2048, done={2}) for i, _ in batch]
    assert sorted(kept) == [0, 1, 3]


def test_a_likelihood_that_is_no_number_is_refused(tokenizer):
    broken = make_model()
    torch.nn.init.constant_(broken.layers[1].ffn_norm.weight, math.nan)
    with pytest.raises(UserError, match="no finite number: the model's weights are damaged"):
        likelihoods(broken, tokenizer, REQUESTS[0])


class SlowAttention(torch.nn.Module):
    "A learner's own attention: head by head, with the weights' names of the course's."

    def __init__(self, D, H, K):
        super().__init__()
        Q = D // H
        self.wq, self.wk, self.wv, self.wo = (
            torch.nn.Linear(*shape, bias=False)
            for shape in ((D, H * Q), (D, K * Q), (D, K * Q), (H * Q, D))
        )
        self.H, self.K, self.Q = H, K, Q

    def forward(self, x, rotary, mask=None, cache=None):
        assert cache is None and mask is not None
        q, k, v = (w(x).unflatten(-1, (-1, self.Q)) for w in (self.wq, self.wk, self.wv))
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        out = torch.zeros_like(q)
        for h in range(self.H):
            g = h * self.K // self.H
            scores = torch.einsum("btq,bsq->bts", q[:, :, h], k[:, :, g]) * self.Q**-0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out[:, :, h] = weights @ v[:, :, g]
        return self.wo(out.flatten(2))


def test_own_attention_reads_trees(tokenizer, model):
    own = Llama(model.config, parts=Parts(attention=SlowAttention)).eval()
    own.load_state_dict(model.state_dict())
    for request in REQUESTS:
        same(likelihoods(own, tokenizer, request), likelihoods(model, tokenizer, request))
