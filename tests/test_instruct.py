"""Instruction finetuning: what is learnt, who sees whom, and what LoRA changes."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F

from llama_course import attention
from llama_course.checkpointing import apply_checkpointing
from llama_course.generation import generate
from llama_course.instruct import (TASKS, TEMPLATES, Encoded, Example, LoRA, Packed, add_lora, answer_loss, answered,
                                   apart, beside, choose_template, document_mask, draw, encode_example, finetune,
                                   first_fit, is_held_out, lora_state, make_examples, merge_lora, mixture, pack,
                                   packed_loss, text_rows)
from llama_course.support.ledger import ledger
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import make_optimizer
from llama_course.support.errors import UserError
from llama_course.training import loss_of

V = 40


class Letters:
    "A tokenizer of single characters, with control tokens 0 and 1."
    bos_id, eos_id, vocab_size, path = 0, 1, V, "letters"
    alphabet = " \n:.?ABCDEFGQabcdefghirswn0123456789"

    def encode(self, text, bos=False, eos=False):
        return [0] * bos + [2 + max(0, self.alphabet.find(c)) for c in text] + [1] * eos

    def decode(self, ids): return "".join(self.alphabet[i - 2] for i in ids if i > 1)


class Talker(Letters):
    chat_template = "..."

    def encode_chat(self, messages): return [5, *self.encode(messages[0]["content"]), 6]


def tiny(kv=None, **changes):
    torch.manual_seed(0)
    return Llama(LlamaConfig(**dict(dim=16, n_layers=2, n_heads=4, n_kv_heads=kv, vocab_size=V, hidden_dim=24,
                                    max_seq_len=128) | changes))


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
        sides = {is_held_out(Example(f"q {i}", answer, task)) for answer in "ab" for task in "cd"}
        assert len(sides) == 1
    assert sum(is_held_out(Example(f"q {i}", "")) for i in range(4000)) == pytest.approx(400, abs=60)
    assert not any(is_held_out(Example(f"q {i}", ""), 0.0) for i in range(50))
    assert all(is_held_out(Example(f"q {i}", ""), 1.0) for i in range(50))


TRUTH = {
    "arithmetic": lambda q: str(sum(map(int, q.split(" plus ")))),
    "sorting": lambda q: "".join(sorted(q[5:])),
    "copying": lambda q: q[7:],
    "lookup": lambda q: {p[0]: p[1] for p in q.split(",")[0].split()}[q[-1]],
    "choice": lambda q: max((p[1], p[0]) for p in q.split()[1:])[1],
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks_have_right_answers_and_an_honest_chance(task):
    examples, chance = make_examples(task, 300)
    assert len({e.instruction for e in examples}) == 300 and {e.task for e in examples} == {task}
    for e in examples: assert TRUTH[task](e.instruction) == e.answer, e
    assert make_examples(task, 300) == (examples, chance) != make_examples(task, 300, seed=1)
    r = random.Random(5)
    triples = [TASKS[task](r) for _ in range(3000)]
    assert chance == pytest.approx(sum(a == g for _, a, g in triples) / 3000, abs=0.1)
    if task in ("lookup", "choice"): assert 0.2 < chance < 0.45


def test_too_many_examples_are_refused():
    with pytest.raises(UserError, match="choice has no 2000"): make_examples("choice", 2000)


def test_prompt_at_training_is_the_prompt_when_asked():
    for tokenizer, name in ((Letters(), "plain"), (Talker(), "chat")):
        template = choose_template(tokenizer)
        assert template.name == name
        ids, is_answer = encode_example(tokenizer, Example("Sort 31.", "13"), template)
        prompt = template.prompt(tokenizer, "Sort 31.")
        assert ids[: len(prompt)] == prompt and is_answer == [i >= len(prompt) for i in range(len(ids))]
        assert ids[-1] == tokenizer.eos_id and is_answer[-1]
        assert tokenizer.decode(ids[len(prompt) :]).strip() == "13"
    assert choose_template(Talker(), "plain") is TEMPLATES["plain"]


@pytest.mark.parametrize("name, words", [("chat", "letters has no chat template"), ("poem", "choose one of plain")])
def test_unknown_templates_are_refused(name, words):
    with pytest.raises(UserError, match=words): choose_template(Letters(), name)


# ---- packing

@pytest.mark.parametrize("open_rows", [1, 3, 100])
def test_first_fit_places_each_once_and_no_row_overflows(open_rows):
    r = random.Random(1)
    lengths = [r.randrange(1, 30) for _ in range(300)]
    rows = first_fit(lengths, 30, open_rows)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert all(0 < sum(lengths[i] for i in row) <= 30 for row in rows)
    if open_rows == 100: assert sum(lengths) > 0.9 * 30 * len(rows)


def test_too_long_an_example_is_refused():
    with pytest.raises(UserError, match="example 1 has 12 tokens, a row takes 11"): first_fit([3, 11], 10)


def test_packed_rows_hold_every_example_whole():
    examples = some_examples(40)
    packed = pack(examples, 24, shuffle=3)
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
    packed, windows = pack(some_examples(), 24), torch.randint(V, (3, 25))
    both = beside(packed, text_rows(windows))
    assert len(both) == len(packed) + 3 and len(both.rows([0, -1])) == 2
    assert torch.equal(both.targets[-3:], windows[:, 1:]) and both.answers[-3:].all()
    model = tiny()
    torch.testing.assert_close(packed_loss(model, text_rows(windows)), loss_of(model, windows))


# ---- apart

def test_mask_is_a_block_for_each_document():
    mask = document_mask(torch.tensor([[0, 0, 1, 1, 1, -1]]))[0, 0]
    for i in range(6):
        for j in range(6):
            assert mask[i, j] == (j <= i and [0, 0, 1, 1, 1, 2][i] == [0, 0, 1, 1, 1, 2][j])


@pytest.mark.parametrize("kv", [None, 2])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_packed_equals_alone_forwards_and_backwards(kv, mode):
    model, examples = tiny(kv), some_examples(9)
    packed = pack(examples, 32)
    alone = copy.deepcopy(model)
    total = sum(sum(e.is_answer[1:]) for e in examples)
    for e in examples:
        ids, learnt = torch.tensor([e.ids]), torch.tensor([e.is_answer])
        answer_loss(alone(ids[:, :-1]), ids[:, 1:], learnt[:, 1:], total).backward()
    apply_checkpointing(model, mode)
    with apart(model, packed.documents):
        logits = model(packed.tokens)
        answer_loss(logits, packed.targets, packed.answers).backward()
    for e, (row, number) in zip(examples, packed.places):
        single = alone(torch.tensor([e.ids[:-1]]))[0]
        torch.testing.assert_close(logits[row, packed.documents[row] == number], single, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_no_gradient_crosses_a_border_and_without_apart_it_does():
    model = tiny()
    packed = pack(some_examples(9), 32)
    for inside in (True, False):
        kept = []

        def keep(module, args, out):
            out.retain_grad()
            kept.append(out)

        with model.tok_embeddings.register_forward_hook(keep):
            if inside:
                with apart(model, packed.documents): logits = model(packed.tokens)
            else: logits = model(packed.tokens)
        logits[packed.documents == 1].square().sum().backward()
        others = kept[0].grad[packed.documents != 1]
        assert others.any() != inside


def test_positions_need_not_begin_anew():
    "RoPE knows distances alone: angles from 0 in every example give the same logits."
    model = tiny()
    packed = pack(some_examples(9), 32).rows([0])
    with torch.no_grad(), apart(model, packed.documents):
        plain = model(packed.tokens)
        torch.testing.assert_close(model(packed.tokens, packed.positions), plain, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(packed.tokens, packed.positions * 0), plain, atol=1e-2)


def test_apart_leaves_everything_as_it_was():
    model, before = tiny(), dict(attention.BACKENDS)
    model.layers[1].attention.backend = "naive"
    packed = pack(some_examples(), 24)
    with pytest.raises(ZeroDivisionError):
        with apart(model, packed.documents):
            with apart(model, packed.documents[:1]): model(packed.tokens[:1])
            model(packed.tokens)
            1 / 0
    assert attention.BACKENDS == before
    assert [layer.attention.backend for layer in model.layers] == ["sdpa", "naive"]
    with pytest.raises(UserError, match="would see each other"):
        with apart(torch.nn.Linear(2, 2), packed.documents): pass


def test_answered_is_what_greedy_decoding_writes():
    model, r = tiny(), random.Random(2)
    asked, expected = [], []
    for i in range(24):
        prompt = [r.randrange(2, V) for _ in range(r.randrange(2, 9))]
        answer = list(generate(model, prompt, 3, temperature=0.0))
        if i % 3 == 0: answer[r.randrange(3)] ^= 1
        asked.append(Encoded(prompt + answer, [False] * len(prompt) + [True] * 3))
        expected.append(i % 3 != 0)
    assert answered(model, asked, 32, rows=2) == expected
    assert all(a is b for a, b in zip(answered(model, asked, 64), expected))


# ---- the loss

def test_loss_is_that_of_ignored_labels_and_counts_tokens_not_parts():
    packed, logits = pack(some_examples(20), 32), None
    logits = torch.randn(*packed.tokens.shape, V, requires_grad=True)
    labels = packed.targets.masked_fill(~packed.answers, -100)
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    got = answer_loss(logits, packed.targets, packed.answers)
    torch.testing.assert_close(got, want)
    count = packed.answers.sum()
    pieces = [answer_loss(logits[i : i + 1], packed.targets[i : i + 1], packed.answers[i : i + 1], count)
              for i in range(len(packed))]
    torch.testing.assert_close(sum(pieces), want)
    got.backward()
    assert not logits.grad[~packed.answers].any() and logits.grad[packed.answers].any(-1).all()


def test_loss_of_no_answer_is_zero_and_of_16_bits_is_summed_in_32():
    targets = torch.zeros(1, 4, dtype=torch.long)
    assert answer_loss(torch.randn(1, 4, V), targets, targets.bool()) == 0
    logits = torch.randn(1, 4, V).bfloat16()
    assert answer_loss(logits, targets, ~targets.bool()).dtype == torch.float32


def test_nothing_is_kept_of_what_is_not_learnt():
    packed = pack(some_examples(20), 32)
    logits = torch.randn(*packed.tokens.shape, V, requires_grad=True)
    kept = ledger(answer_loss, logits, packed.targets, packed.answers).saved_bytes
    assert kept < 3 * 4 * V * int(packed.answers.sum()) + 64 * packed.tokens.numel()


# ---- LoRA

def test_lora_starts_as_the_model_and_can_move():
    model = tiny()
    tokens = torch.randint(V, (2, 9))
    thin = add_lora(copy.deepcopy(model), 4, 8, ("wq", "w2"))
    assert torch.equal(thin(tokens), model(tokens))
    assert {n.split(".")[-2] for n in lora_state(thin)} == {"wq", "w2"} and len(lora_state(thin)) == 8
    thin(tokens).square().mean().backward()
    for name, p in thin.named_parameters():
        assert (p.grad is not None) == (name in lora_state(thin))
        if name.endswith(".b"): assert p.grad.any()
    frozen = {n: p.clone() for n, p in thin.named_parameters() if n not in lora_state(thin)}
    finetune(thin, lambda step: thin(tokens).square().mean(), 3, 1e-2, weight_decay=0.1)
    assert all(torch.equal(p, frozen[n]) for n, p in thin.named_parameters() if n in frozen)
    assert not torch.allclose(thin(tokens), model(tokens), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_unmerged(dtype):
    model = add_lora(tiny().to(dtype), 4, 8, ("wq", "wk", "wv", "wo", "w1", "w2", "w3"))
    for p in lora_state(model).values(): p.normal_(std=0.1)
    tokens = torch.randint(V, (2, 9))
    with torch.no_grad():
        before = model(tokens)
        merge_lora(model)
        near = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=0.1, atol=0.1)
        torch.testing.assert_close(model(tokens), before, **near)
    assert set(model.state_dict()) == set(tiny().state_dict())
    assert all(p.requires_grad for p in model.parameters()) and not any(isinstance(m, LoRA) for m in model.modules())


def test_lora_is_pefts():
    peft = pytest.importorskip("peft", reason="pip install peft")
    model, tokens = tiny(), torch.randint(V, (2, 9))
    ours = add_lora(copy.deepcopy(model), 4, 6, ("wq", "w1"))
    for p in lora_state(ours).values(): p.normal_(std=0.3)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["wq", "w1"]))
    state = {f"base_model.model.{n[:-2]}.lora_{n[-1].upper()}.default.weight": p for n, p in lora_state(ours).items()}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_lora_costs_two_thin_products_and_its_optimizer_two_thin_moments():
    linear = torch.nn.Linear(64, 48, bias=False)
    thin, x = LoRA(linear, 4), torch.randn(10, 64)
    book = ledger(thin, x, backward=False)
    assert book.flops == 2 * 10 * (64 * 48 + 4 * (64 + 48)) and book.largest_tensor <= 10 * 48
    model = add_lora(tiny(), 2)
    finetune(model, lambda step: model(torch.randint(V, (1, 5))).square().mean(), 1, 1e-3)
    optimizer = make_optimizer(model, 1e-3)
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    assert moments == 8 * sum(p.numel() for p in lora_state(model).values()) == 8 * 2 * 2 * 2 * (16 + 16)


def test_impossible_loras_are_refused():
    for rank in (0, -1, 17):
        with pytest.raises(UserError, match="must be 1 to 16"): add_lora(tiny(), rank)
    with pytest.raises(UserError, match="no linear map called w9"): add_lora(tiny(), 2, parts=("w9",))


def test_apart_and_lora_together():
    model, packed = add_lora(tiny(), 2), pack(some_examples(9), 32)
    for p in lora_state(model).values(): p.normal_(std=0.3)
    with torch.no_grad(), apart(model, packed.documents): logits = model(packed.tokens)
    row, number = packed.places[4]
    mine = packed.documents[row] == number
    with torch.no_grad(): single = model(packed.tokens[row, mine][None])[0]
    torch.testing.assert_close(logits[row, mine], single, rtol=1e-4, atol=1e-5)


# ---- the mixture

def test_mixture_is_proportional_up_to_the_cap():
    assert mixture({"a": 10, "b": 30}) == {"a": 0.25, "b": 0.75}
    assert mixture({"a": 10, "b": 990, "c": 10**6}, 1000) == {"a": 0.005, "b": 0.495, "c": 0.5}
    assert mixture({"a": 5, "b": 10**6}, 1) == {"a": 0.5, "b": 0.5}
    for wrong in (({}, 3), ({"a": 0}, 3), ({"a": 3}, 0)):
        with pytest.raises(UserError, match="a mixture needs"): mixture(*wrong)


def test_draw_takes_the_shares_and_repeats_only_when_all_have_come():
    examples = {t: [Example(f"{t} {i}", "", t) for i in range(n)] for t, n in (("a", 10), ("b", 200))}
    drawn = draw(examples, {"a": 0.25, "b": 0.75}, 100, seed=1)
    counts = {t: [e for e in drawn if e.task == t] for t in "ab"}
    assert len(counts["a"]) == 25 and len(counts["b"]) == 75 == len(set(counts["b"]))
    assert {counts["a"].count(e) for e in examples["a"]} <= {2, 3}
    assert drawn == draw(examples, {"a": 0.25, "b": 0.75}, 100, seed=1) != draw(examples, {"a": 0.25, "b": 0.75}, 100)
    assert draw(examples, {"a": 0.0, "b": 1.0}, 5) and draw({"a": [], "b": examples["b"]}, {"a": 0.0, "b": 1.0}, 5)


def test_finetuning_learns_held_out_copies():
    "A little training on answers alone writes the end of text, and what was never learnt stays."
    model, tokenizer = tiny(dim=32, n_heads=2), Letters()
    examples = [Example(f"Q {a}", a) for a in "0123456789"]
    packed = pack([encode_example(tokenizer, e) for e in examples], 64)
    losses = finetune(model, lambda step: packed_loss(model, packed), 60, 1e-2)
    assert losses[-1] < 0.1 < losses[0]
    assert all(answered(model, [encode_example(tokenizer, e) for e in examples], 64))
