"""Instruction finetuning: what is learnt, who sees whom, and what LoRA changes."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F

from llama_course.checkpointing import apply_checkpointing
from llama_course.generation import generate
from llama_course.instruct import (
    INSTRUCTION_TASKS,
    Encoded,
    Example,
    LoRA,
    Packed,
    PackedLoader,
    add_lora,
    answer_loss,
    answered,
    beside,
    document_mask,
    encode_example,
    first_fit,
    is_held_out_example,
    lora_state,
    make_examples,
    merge_lora,
    mixture,
    pack_examples,
    packed_loss,
    row_shares,
    text_rows,
)
from llama_course.launch.templates import ANSWER_TEMPLATES, choose_template
from llama_course.model import Llama, LlamaConfig, Parts
from llama_course.support.errors import UserError
from llama_course.support.ledger import ledger
from llama_course.training import Recipe, Step, loss_of

V = 40


class Letters:
    "A tokenizer of single characters, with control tokens 0 and 1."

    bos_id, eos_id, vocab_size, path = 0, 1, V, "letters"
    alphabet = " \n:.?ABCDEFGQabcdefghirswn0123456789"

    def encode(self, text, bos=False, eos=False):
        return [0] * bos + [2 + max(0, self.alphabet.find(c)) for c in text] + [1] * eos

    def decode(self, ids):
        return "".join(self.alphabet[i - 2] for i in ids if i > 1)


class Talker(Letters):
    chat_template = "..."

    def encode_chat(self, messages):
        return [5, *self.encode(messages[0]["content"]), 6]


def steps_of(model, loss, n, lr=1e-2, weight_decay=0.0):
    "The losses of n training steps; `loss(model)` is that of every batch. And the step."
    step_of = Step(model, Recipe(n, weight_decay=weight_decay), lambda model, *_: loss(model))
    return [step_of(torch.zeros(1), lr)[0] for _ in range(n)], step_of


def tiny(kv=None, **changes):
    torch.manual_seed(0)
    return Llama(
        LlamaConfig(
            **dict(
                dim=16,
                n_layers=2,
                n_heads=4,
                n_kv_heads=kv,
                vocab_size=V,
                hidden_dim=24,
                max_seq_len=128,
            )
            | changes
        )
    )


def some_examples(n=12, seed=0, longest=14):
    r = random.Random(seed)
    found = []
    for _ in range(n):
        prompt, answer = r.randrange(1, longest), r.randrange(1, 6)
        ids = [r.randrange(2, V) for _ in range(prompt + answer)]
        found.append(Encoded(ids, [False] * prompt + [True] * answer))
    return found


# ---- examples, templates, encoding


def test_held_out_depends_on_the_instruction_alone():
    for i in range(200):
        sides = {
            is_held_out_example(Example(f"q {i}", answer, task)) for answer in "ab" for task in "cd"
        }
        assert len(sides) == 1
    assert sum(is_held_out_example(Example(f"q {i}", "")) for i in range(4000)) == pytest.approx(
        400, abs=60
    )
    assert not any(is_held_out_example(Example(f"q {i}", ""), 0.0) for i in range(50))
    assert all(is_held_out_example(Example(f"q {i}", ""), 1.0) for i in range(50))


TRUTH = {
    "arithmetic": lambda q: str(sum(map(int, q.split(" plus ")))),
    "sorting": lambda q: "".join(sorted(q[5:])),
    "copying": lambda q: q[7:],
    "lookup": lambda q: {p[0]: p[1] for p in q.split(",")[0].split()}[q[-1]],
    "choosing": lambda q: max((p[1], p[0]) for p in q.split()[1:])[1],
}


@pytest.mark.parametrize("task", INSTRUCTION_TASKS)
def test_tasks_have_right_answers_and_an_honest_chance(task):
    examples, chance = make_examples(task, 300)
    assert len({e.instruction for e in examples}) == 300 and {e.task for e in examples} == {task}
    for e in examples:
        assert TRUTH[task](e.instruction) == e.answer, e
    assert make_examples(task, 300) == (examples, chance) != make_examples(task, 300, seed=1)
    r = random.Random(5)
    triples = [INSTRUCTION_TASKS[task](r) for _ in range(3000)]
    assert chance == pytest.approx(sum(a == g for _, a, g in triples) / 3000, abs=0.1)
    if task in ("lookup", "choosing"):
        assert 0.2 < chance < 0.45


def test_too_many_examples_are_refused():
    with pytest.raises(UserError, match="choosing has no 2000"):
        make_examples("choosing", 2000)


def test_prompt_at_training_is_the_prompt_when_asked():
    for tokenizer, name in ((Letters(), "plain"), (Talker(), "chat")):
        template = choose_template(tokenizer)
        assert template.name == name
        ids, is_answer = encode_example(tokenizer, Example("Sort 31.", "13"), template)
        prompt = template.prompt(tokenizer, [{"role": "user", "content": "Sort 31."}])
        assert ids[: len(prompt)] == prompt and is_answer == [
            i >= len(prompt) for i in range(len(ids))
        ]
        assert ids[-1] == tokenizer.eos_id and is_answer[-1]
        assert tokenizer.decode(ids[len(prompt) :]).strip() == "13"
    assert choose_template(Talker(), "plain") is ANSWER_TEMPLATES["plain"]


@pytest.mark.parametrize(
    "name, words", [("chat", "letters has no chat template"), ("poem", "choose one of plain")]
)
def test_unknown_templates_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        choose_template(Letters(), name)


# ---- packing


@pytest.mark.parametrize("open_rows", [1, 3, 100])
def test_first_fit_places_each_once_and_no_row_overflows(open_rows):
    r = random.Random(1)
    lengths = [r.randrange(1, 30) for _ in range(300)]
    rows = first_fit(lengths, 30, open_rows)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert all(0 < sum(lengths[i] for i in row) <= 30 for row in rows)
    if open_rows == 100:
        assert sum(lengths) > 0.9 * 30 * len(rows)


def test_too_long_an_example_is_refused():
    with pytest.raises(UserError, match="example 1 has 12 tokens, a row takes 11"):
        first_fit([3, 11], 10)


def test_packed_rows_hold_every_example_whole():
    examples = some_examples(40)
    packed = pack_examples(examples, 24)
    assert isinstance(packed, Packed) and packed.tokens.shape[1] == 24
    for e, (row, number) in zip(examples, packed.places):
        mine = packed.documents[row] == number
        where = mine.nonzero()[:, 0]
        assert where.tolist() == list(range(where[0], where[0] + len(e.ids) - 1))  # in one piece
        assert packed.tokens[row, mine].tolist() == e.ids[:-1]
        assert packed.targets[row, mine].tolist() == e.ids[1:]
        assert packed.answers[row, mine].tolist() == e.is_answer[1:]
        assert packed.positions[row, mine].tolist() == list(range(len(where)))
    padding = packed.documents < 0
    assert not packed.answers[padding].any()
    assert (~padding).sum() == sum(len(e.ids) - 1 for e in examples)
    assert packed.answers.sum() == sum(sum(e.is_answer[1:]) for e in examples)


def test_rows_and_text_beside():
    packed, windows = pack_examples(some_examples(), 24), torch.randint(V, (3, 25))
    both = beside([packed, text_rows(windows)])
    assert len(both) == len(packed) + 3 and len(both.rows([0, -1])) == 2
    assert torch.equal(both.targets[-3:], windows[:, 1:]) and both.answers[-3:].all()
    model = tiny()
    torch.testing.assert_close(packed_loss(model, text_rows(windows)), loss_of(model, windows))


# ---- documents that do not see each other


def separately(model, batch):
    "The logits, with each document's own positions and mask."
    return model(batch.tokens, batch.positions, document_mask(batch.documents))


def test_mask_is_a_block_for_each_document():
    mask = document_mask(torch.tensor([[0, 0, 1, 1, 1, -1]]))[0]
    for i in range(6):
        for j in range(6):
            assert mask[i, j] == (j <= i and [0, 0, 1, 1, 1, 2][i] == [0, 0, 1, 1, 1, 2][j])


@pytest.mark.parametrize("kv", [None, 2])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_packed_equals_alone_forwards_and_backwards(kv, mode):
    model, examples = tiny(kv), some_examples(9)
    packed = pack_examples(examples, 32)
    alone = copy.deepcopy(model)
    total = sum(sum(e.is_answer[1:]) for e in examples)
    for e in examples:
        ids, learnt = torch.tensor([e.ids]), torch.tensor([e.is_answer])
        answer_loss(alone(ids[:, :-1]), ids[:, 1:], learnt[:, 1:], total).backward()
    apply_checkpointing(model, mode)
    logits = separately(model, packed)
    answer_loss(logits, packed.targets, packed.answers).backward()
    for e, (row, number) in zip(examples, packed.places):
        single = alone(torch.tensor([e.ids[:-1]]))[0]
        torch.testing.assert_close(
            logits[row, packed.documents[row] == number], single, rtol=1e-4, atol=1e-5
        )
    for (name, p), q in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_no_gradient_crosses_a_border_and_without_the_mask_it_does():
    model = tiny()
    packed = pack_examples(some_examples(9), 32)
    for inside in (True, False):
        kept = []

        def keep(module, args, out):
            out.retain_grad()
            kept.append(out)

        with model.tok_embeddings.register_forward_hook(keep):
            logits = separately(model, packed) if inside else model(packed.tokens)
        logits[packed.documents == 1].square().sum().backward()
        others = kept[0].grad[packed.documents != 1]
        assert others.any() != inside


def test_positions_need_not_begin_anew():
    "RoPE knows distances alone: without positions of their own, examples have the same logits."
    model = tiny()
    packed = pack_examples(some_examples(9), 32)
    mask = document_mask(packed.documents)
    with torch.no_grad():
        anew = separately(model, packed)
        torch.testing.assert_close(model(packed.tokens, mask=mask), anew, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(packed.tokens, packed.positions * 0, mask), anew, atol=1e-2)


class OwnAttention(torch.nn.Module):
    "A learner's attention: one head, from the formula, with the arguments of the course's."

    def __init__(self, dim, n_heads, n_kv_heads=None):
        super().__init__()
        self.qkv = torch.nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, x, rotary, mask=None, cache=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        seen = torch.ones(x.size(1), x.size(1)).tril().bool() if mask is None else mask
        return (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def test_an_attention_of_your_own_is_packed_too():
    torch.manual_seed(0)
    model = Llama(tiny().config, Parts(attention=OwnAttention))
    examples = some_examples(9)
    packed = pack_examples(examples, 32)
    logits = separately(model, packed)
    for e, (row, number) in zip(examples, packed.places):
        single = model(torch.tensor([e.ids[:-1]]))[0]
        torch.testing.assert_close(
            logits[row, packed.documents[row] == number], single, rtol=1e-4, atol=1e-5
        )


def test_answered_is_what_greedy_decoding_writes():
    model, r = tiny(), random.Random(2)
    asked, expected = [], []
    for i in range(24):
        prompt = [r.randrange(2, V) for _ in range(r.randrange(2, 9))]
        answer = list(generate(model, prompt, 3, temperature=0.0))
        if i % 3 == 0:
            answer[r.randrange(3)] ^= 1
        asked.append(Encoded(prompt + answer, [False] * len(prompt) + [True] * 3))
        expected.append(i % 3 != 0)
    assert answered(model, asked, 32, rows=2) == expected
    assert all(a is b for a, b in zip(answered(model, asked, 64), expected))


# ---- the loss


def test_loss_is_that_of_ignored_labels_and_counts_tokens_not_parts():
    packed, logits = pack_examples(some_examples(20), 32), None
    logits = torch.randn(*packed.tokens.shape, V, requires_grad=True)
    labels = packed.targets.masked_fill(~packed.answers, -100)
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    got = answer_loss(logits, packed.targets, packed.answers)
    torch.testing.assert_close(got, want)
    count = packed.answers.sum()
    pieces = [
        answer_loss(logits[i : i + 1], packed.targets[i : i + 1], packed.answers[i : i + 1], count)
        for i in range(len(packed))
    ]
    torch.testing.assert_close(sum(pieces), want)
    got.backward()
    assert not logits.grad[~packed.answers].any() and logits.grad[packed.answers].any(-1).all()


def test_loss_of_no_answer_is_zero_and_of_16_bits_is_summed_in_32():
    targets = torch.zeros(1, 4, dtype=torch.long)
    assert answer_loss(torch.randn(1, 4, V), targets, targets.bool()) == 0
    logits = torch.randn(1, 4, V).bfloat16()
    assert answer_loss(logits, targets, ~targets.bool()).dtype == torch.float32


def test_nothing_is_kept_of_what_is_not_learnt():
    packed = pack_examples(some_examples(20), 32)
    logits = torch.randn(*packed.tokens.shape, V, requires_grad=True)
    kept = ledger(answer_loss, logits, packed.targets, packed.answers).saved_bytes
    assert kept < 3 * 4 * V * int(packed.answers.sum()) + 64 * packed.tokens.numel()


# ---- LoRA


def test_lora_starts_as_the_model_and_can_move():
    model = tiny()
    tokens = torch.randint(V, (2, 9))
    thin = add_lora(copy.deepcopy(model), 4, 8, ("wq", "w2"))
    assert torch.equal(thin(tokens), model(tokens))
    assert {n.split(".")[-2] for n in lora_state(thin)} == {"wq", "w2"} and len(
        lora_state(thin)
    ) == 8
    thin(tokens).square().mean().backward()
    for name, p in thin.named_parameters():
        assert (p.grad is not None) == (name in lora_state(thin))
        if name.endswith(".b"):
            assert p.grad.any()
    frozen = {n: p.clone() for n, p in thin.named_parameters() if n not in lora_state(thin)}
    steps_of(thin, lambda model: model(tokens).square().mean(), 3, weight_decay=0.1)
    assert all(torch.equal(p, frozen[n]) for n, p in thin.named_parameters() if n in frozen)
    assert not torch.allclose(thin(tokens), model(tokens), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_unmerged(dtype):
    model = add_lora(tiny().to(dtype), 4, 8, ("wq", "wk", "wv", "wo", "w1", "w2", "w3"))
    for p in lora_state(model).values():
        p.normal_(std=0.1)
    tokens = torch.randint(V, (2, 9))
    with torch.no_grad():
        before = model(tokens)
        merge_lora(model)
        near = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=0.1, atol=0.1)
        torch.testing.assert_close(model(tokens), before, **near)
    assert set(model.state_dict()) == set(tiny().state_dict())
    assert all(p.requires_grad for p in model.parameters()) and not any(
        isinstance(m, LoRA) for m in model.modules()
    )


def test_lora_is_pefts():
    peft = pytest.importorskip("peft", reason="pip install peft")
    model, tokens = tiny(), torch.randint(V, (2, 9))
    ours = add_lora(copy.deepcopy(model), 4, 6, ("wq", "w1"))
    for p in lora_state(ours).values():
        p.normal_(std=0.3)
    theirs = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["wq", "w1"])
    )
    state = {
        f"base_model.model.{n[:-2]}.lora_{n[-1].upper()}.default.weight": p
        for n, p in lora_state(ours).items()
    }
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_lora_costs_two_thin_products_and_its_optimizer_two_thin_moments():
    linear = torch.nn.Linear(64, 48, bias=False)
    thin, x = LoRA(linear, 4), torch.randn(10, 64)
    book = ledger(thin, x, backward=False)
    assert book.flops == 2 * 10 * (64 * 48 + 4 * (64 + 48)) and book.largest_tensor <= 10 * 48
    model = add_lora(tiny(), 2)
    _, step_of = steps_of(model, lambda model: model(torch.randint(V, (1, 5))).square().mean(), 1)
    moments = sum(t.nbytes for s in step_of.optimizer.state.values() for t in s.values() if t.dim())
    assert (
        moments
        == 8 * sum(p.numel() for p in lora_state(model).values())
        == 8 * 2 * 2 * 2 * (16 + 16)
    )


def test_impossible_loras_are_refused():
    for rank in (0, -1, 17):
        with pytest.raises(UserError, match="must be 1 to 16"):
            add_lora(tiny(), rank)
    with pytest.raises(UserError, match="no linear map called w9"):
        add_lora(tiny(), 2, parts=("w9",))


def test_packing_and_lora_together():
    model, packed = add_lora(tiny(), 2), pack_examples(some_examples(9), 32)
    for p in lora_state(model).values():
        p.normal_(std=0.3)
    with torch.no_grad():
        logits = separately(model, packed)
    row, number = packed.places[4]
    mine = packed.documents[row] == number
    with torch.no_grad():
        single = model(packed.tokens[row, mine][None])[0]
    torch.testing.assert_close(logits[row, mine], single, rtol=1e-4, atol=1e-5)


# ---- the mixture


def test_mixture_is_proportional_up_to_the_cap():
    assert mixture({"a": 10, "b": 30}) == {"a": 0.25, "b": 0.75}
    assert mixture({"a": 10, "b": 990, "c": 10**6}, 1000) == {"a": 0.005, "b": 0.495, "c": 0.5}
    assert mixture({"a": 5, "b": 10**6}, 1) == {"a": 0.5, "b": 0.5}
    for wrong in (({}, 3), ({"a": 0}, 3), ({"a": 3}, 0)):
        with pytest.raises(UserError, match="a mixture needs"):
            mixture(*wrong)


def test_shares_of_examples_become_shares_of_rows():
    long, short = some_examples(40, longest=20), some_examples(40, seed=1, longest=3)
    packed = {"long": pack_examples(long, 32), "short": pack_examples(short, 32)}
    shares = row_shares(packed, {"long": 0.5, "short": 0.5})
    examples = {
        task: shares[task] * len(p.places) / len(p) for task, p in packed.items()
    }  # per row drawn
    assert sum(shares.values()) == pytest.approx(1) and shares["long"] > 0.6
    assert examples["long"] == pytest.approx(examples["short"])


def test_batches_are_a_function_of_seed_and_step_and_hold_every_row():
    packed = {
        "a": pack_examples(some_examples(40), 32),
        "b": pack_examples(some_examples(20, seed=1), 32),
    }
    make = lambda seed=0: PackedLoader(packed, {"a": 0.75, "b": 0.25}, 4, seed)
    assert torch.equal(make().whole(7).tokens, make().whole(7).tokens)
    assert not torch.equal(make(1).whole(7).tokens, make().whole(7).tokens)
    drawn = [row for step in range(4 * len(packed["a"])) for row in make().whole(step).tokens]
    assert {tuple(row.tolist()) for p in packed.values() for row in p.tokens} == {
        tuple(r.tolist()) for r in drawn
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_mean_over_ranks_is_the_mean_over_answers(precision):
    model, loader = tiny(), PackedLoader({"a": pack_examples(some_examples(40), 32)}, {"a": 1.0}, 4)
    whole = loader.whole(3)
    parts = [loader.batch(3, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([p.tokens for p in parts]), whole.tokens)
    assert len({int(p.answers.sum()) for p in parts}) > 1 and {p.count for p in parts} == {
        int(whole.answers.sum()) / 4
    }
    mean = sum(packed_loss(model, p, precision) for p in parts) / 4
    near = dict(rtol=1e-5, atol=0) if precision == "float32" else dict(rtol=0.02, atol=0)
    torch.testing.assert_close(mean, packed_loss(model, whole), **near)
    with pytest.raises(UserError, match="4 rows cannot be shared evenly by 3"):
        loader.batch(0, 0, 3)


def test_finetuning_learns_held_out_copies():
    "A little training on answers alone writes the end of text, and what was never learnt stays."
    model, tokenizer = tiny(dim=32, n_heads=2), Letters()
    examples = [Example(f"Q {a}", a) for a in "0123456789"]
    packed = pack_examples(
        [encode_example(tokenizer, e, ANSWER_TEMPLATES["plain"]) for e in examples], 64
    )
    losses, _ = steps_of(model, lambda model: packed_loss(model, packed), 60)
    assert losses[-1] < 0.1 < losses[0]
    assert all(
        answered(
            model, [encode_example(tokenizer, e, ANSWER_TEMPLATES["plain"]) for e in examples], 64
        )
    )
