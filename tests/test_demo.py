"From raw text to report: whole, killed at every stage, begun twice; always the same command."

import json
import shutil
import signal
import time
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from forked import COMMAND, Forked, llama_course, ran

from llama_course.data import shakespeare
from llama_course.files.load import load
from llama_course.files.run import RunFolder
from llama_course.launch import demo
from llama_course.launch.demo import run_own
from llama_course.report.page import bars, clock, fill_page, report_facts
from llama_course.report.pictures import running_mean
from llama_course.support.errors import UserError

STEPS = 10


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    "Three plays as plain files: about 400 kB."
    folder = tmp_path_factory.mktemp("texts")
    for play, _ in zip(shakespeare(), range(3)):
        (folder / f"{play.name}.txt").write_text(play.text, encoding="utf-8")
    return folder


def command(texts, run, *more):
    "`llama-course train`, in a process of its own."
    words = ["train", texts, "--run", run, *(more or ("--steps", STEPS)), "--json"]
    return Forked(*COMMAND, *words)


def finish(texts, run):
    process = command(texts, run)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


def stop_when(ready, texts, run, number):
    "Starts the run and sends the signal as soon as `ready()`; exit status and standard error."
    process, until = command(texts, run), time.time() + 300
    while not ready() and process.poll() is None and time.time() < until:
        time.sleep(0.01)
    process.send_signal(number)
    err = process.communicate(timeout=300)[1]
    return process.returncode, err


def outcome(run):
    "All that must be the same in two runs: losses, weights, results."
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "memory_gib", "mfu")
    return (
        [{k: v for k, v in row.items() if k not in timed} for row in rows],
        (run / "model.safetensors").read_bytes(),
        (run / "results.json").read_text(),
        (run / "tokenizer.model").read_bytes(),
        json.loads((run / "run.json").read_text())["recipe"],
    )


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, finish(texts, run)


def test_what_a_run_leaves(whole):
    run, results = whole
    names = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    assert names == {
        "run.json",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "metrics.jsonl",
        "results.json",
        "loss.png",
        "report.html",
        "data",
    }
    assert json.loads((run / "results.json").read_text()) == results
    score = results["held_out"]["text"]
    assert 2 < score["bits_per_byte"] < 5  # far from 8, and ten steps are not many
    assert {"gzip", "xz", "token frequencies"} == set(score["others"])
    assert len(results["samples"]) == 3 and all(s["text"] for s in results["samples"])
    rows = outcome(run)[0]
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1)) and rows[-1]["loss"] < rows[0][
        "loss"
    ] - 0.5
    assert set(rows[0]) == {"step", "loss", "lr", "grad_norm", "tokens"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_and_held_out_text_share_nothing(whole, texts):
    from llama_course.support.shards import Shard

    run, _ = whole
    _, tokenizer = load(run)
    shards = [
        Shard(run / "data" / f"text.{side}.tokens", tokenizer) for side in ("train", "held_out")
    ]
    train, held_out = (tokenizer.decode(s.tokens) for s in shards)
    lines = [line for line in held_out.splitlines() if len(line) > 30]
    assert len(lines) > 200 and sum(line in train for line in lines) < 0.02 * len(lines)
    assert len(train) + len(held_out) == sum(
        len(p.read_text(encoding="utf-8")) for p in texts.iterdir()
    )


def test_bits_per_byte_by_another_way(whole):
    "transformers' LLaMA with our weights, text read by hand."
    import math

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llama_course.rope import adjacent_to_half
    from llama_course.support.shards import Shard

    run, results = whole
    model, tokenizer = load(run)
    c = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=c.dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            intermediate_size=c.hidden_dim,
            vocab_size=c.vocab_size,
            rms_norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            max_position_embeddings=c.max_seq_len,
            tie_word_embeddings=c.tie_embeddings,
        )
    )
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for name, w in model.state_dict().items():
        if name.endswith("wq.weight"):
            w = adjacent_to_half(w, c.n_heads)
        if name.endswith("wk.weight"):
            w = adjacent_to_half(w, c.n_kv_heads)
        for ours, other in names.items():
            name = name.replace(ours, other)
        name = name.replace("tok_embeddings", "embed_tokens")
        state[name.replace("output.", "lm_head.") if "output" in name else f"model.{name}"] = w
    theirs.load_state_dict(state)
    shard = Shard(run / "data" / "text.held_out.tokens", tokenizer)
    text, ids = tokenizer.decode(shard.tokens), torch.tensor(shard.tokens.astype("int64"))
    T, nats = json.loads((run / "run.json").read_text())["recipe"]["seq_len"], 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, T):
            window = ids[start : start + T + 1][None]
            logits = theirs(window[:, :-1]).logits.double().log_softmax(-1)
            nats -= logits.gather(-1, window[:, 1:, None]).sum().item()
    bits = nats / math.log(2) / len(text.encode())
    assert results["held_out"]["text"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_killed_at_every_stage(whole, texts, tmp_path):
    run = tmp_path / "run"
    lines = lambda n: (
        (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= n
    )
    stages = [
        (
            lambda: (run / "run.json").exists(),
            signal.SIGKILL,
            -9,
        ),  # the text is read, the tokenizer trained
        (lambda: list(run.glob("data/*")), signal.SIGKILL, -9),  # while shards are written
        (lambda: lines(2), signal.SIGKILL, -9),  # training
        (lambda: lines(4), signal.SIGINT, 130),
        (lambda: lines(6), signal.SIGTERM, 143),
        (lambda: (run / "model.safetensors").exists(), signal.SIGKILL, -9),  # while it is judged
    ]
    for ready, number, status in stages:
        code, err = stop_when(ready, texts, run, number)
        assert code == status, err
        if number != signal.SIGKILL:
            assert "stopped after step" in err and "the same command goes on from here" in err
            assert "Traceback" not in err
    finish(texts, run)
    assert outcome(run) == outcome(whole[0])
    assert not list(run.rglob("*.part")) and (run / "report.html").exists()


def test_a_finished_run_is_left_alone(whole, texts):
    run, results = whole
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert finish(texts, run) == results
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "changes, named",
    [
        (["--steps", "13"], "was begun with steps = 10, now it is 13"),
        (["--minutes", "3"], "was begun with minutes = None, now it is 3.0"),
        (["--seed", "5"], "was begun with seed = 0, now it is 5"),
        (["--model", "pocket"], "was begun with model = demo, now it is pocket"),
    ],
)
def test_other_settings_are_refused(changes, named, whole, texts):
    process = command(texts, whole[0], *changes)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and named in err and err.count("\n") == 1


def test_two_at_once(texts, tmp_path):
    run = tmp_path / "run"
    first = command(texts, run)
    try:
        while not (run / "run.json").exists() and first.poll() is None:
            time.sleep(0.05)
        second = command(texts, run)
        err = second.communicate(timeout=300)[1]
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2 and err.count("\n") == 1
    assert f"{run} is in use by another process" in err


def test_an_altered_shard_is_named_and_can_be_made_again(whole, texts, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for name in ("model.safetensors", "config.json", "results.json", "report.html"):
        (run / name).unlink()
    shard = run / "data" / "text.train.tokens"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    process = command(texts, run)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and f"{shard} is damaged" in err and "remove the file" in err
    shard.unlink()  # as the message says
    code, err = stop_when(shard.exists, texts, run, signal.SIGKILL)
    assert code == -9, err
    assert (
        shard.read_bytes() == (whole[0] / "data" / shard.name).read_bytes()
    )  # and what follows from it is proven above


def test_minutes_become_steps_once(texts, tmp_path, monkeypatch):
    briefly = partial(demo.seconds_per_step, seconds=0.2)
    monkeypatch.setattr(demo, "seconds_per_step", briefly)
    monkeypatch.setattr(demo, "HELD_OUT_BYTES", 20_000)
    run, play = tmp_path / "run", min(texts.iterdir(), key=lambda path: path.stat().st_size)
    first = run_own([play], run, minutes=0.01, vocab_size=1000)
    about = json.loads((run / "run.json").read_text())
    assert about["recipe"]["steps"] == max(1, round(60 * 0.01 / about["seconds_per_step"]))
    for name in ("model.safetensors", "config.json", "results.json"):
        (run / name).unlink()
    assert (
        run_own([play], run, minutes=0.01, vocab_size=1000) == first
    )  # measured again it would be another number
    assert json.loads((run / "run.json").read_text())["recipe"] == about["recipe"]


def test_refusals_leave_the_folder_usable(texts, tmp_path):
    with pytest.raises(UserError, match="at most"):  # more pieces than the text has
        run_own([texts], tmp_path / "run", steps=2, vocab_size=60_000)
    run_own([texts], tmp_path / "run", steps=1, vocab_size=600)
    with pytest.raises(UserError, match="holds other files"):
        run_own([texts], texts, steps=1)


class Page(HTMLParser):
    "Every address that the page would fetch, and its text."

    def __init__(self):
        super().__init__()
        self.addresses, self.words = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [
            v for k, v in attributes if k in ("src", "srcset", "href", "data", "action", "poster")
        ]

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_needs_no_network(whole):
    run, results = whole
    source = (run / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    assert len(page.addresses) == 2 and all(
        a.startswith("data:image/png;base64,") for a in page.addresses
    )
    assert "<script" not in source and "url(" not in source and "@import" not in source
    words = "".join(page.words)
    for sample in results["samples"]:
        assert sample["text"] in words  # whole and escaped
    assert f"{results['held_out']['text']['bits_per_byte']:.3f}" in words


def test_samples_are_escaped(whole):
    "In the page of the same run, with a sample, a source and a folder that would be markup."
    run = RunFolder(whole[0])
    metrics = run.metrics()
    results = {
        "samples": [{"prompt": "<b>", "text": "<script>x&y"}],
        "held_out": {"<i>": whole[1]["held_out"]["text"]},
    }
    page = fill_page(
        report_facts(run, load(run.path)[0].config, results, metrics) | {"folder": "<u>"}, b"", b""
    )
    assert "<pre><b>&lt;b&gt;</b>&lt;script&gt;x&amp;y</pre>" in page and "<b>&lt;i&gt;</b>" in page
    assert "--run &lt;u&gt;" in page and "<script" not in page


def test_numbers_of_the_report():
    assert clock(75) == "75 s" and clock(179.7) == "3 min 00 s"
    mean = running_mean(np.arange(500.0))
    assert np.allclose(mean[10:-10], np.arange(500)[10:-10], atol=0.51)
    first, last = bars({"gzip": 4.0, "this model": 2.0}, "this model")
    assert (first["name"], first["percent"], first["is_ours"], last["percent"]) == (
        "this model",
        40,
        True,
        80,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(whole, browser, scheme):
    page = browser.new_page(color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((whole[0] / "report.html").as_uri())
    assert page.evaluate("document.images[0].complete && document.images[0].naturalWidth") > 500
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not said and [url for url in asked if not url.startswith("data:")] == [
        (whole[0] / "report.html").as_uri()
    ]
    background, ink = (
        page.evaluate(f"getComputedStyle(document.body).{c}") for c in ("backgroundColor", "color")
    )
    assert (background, ink) == {
        "light": ("rgb(255, 255, 255)", "rgb(29, 33, 39)"),
        "dark": ("rgb(21, 24, 28)", "rgb(232, 230, 225)"),
    }[scheme]
    page.close()


def frugally(function, *arguments):
    "The call; of each source less held-out text is priced, which takes the longest."
    demo.HELD_OUT_BYTES = 40_000
    function(*arguments)


def test_the_demo_itself(tmp_path):
    "`llama-course demo` on all of its text, with few steps, and a text from what it leaves."
    run = tmp_path / "demo"
    done = ran(frugally, *COMMAND, "demo", "--run", run, "--steps", 12)
    assert done.returncode == 0, done.stderr
    assert f"Open {run / 'report.html'}" in done.stdout and "llama-course generate" in done.stdout
    results = json.loads((run / "results.json").read_text())
    assert list(results["held_out"]) == ["shakespeare", "python"]
    assert all(2 < s["bits_per_byte"] < 5 for s in results["held_out"].values())
    assert [s["prompt"] for s in results["samples"]] == ["ROMEO:", "def ", ""]
    said = llama_course("generate", "--run", run, "ROMEO:", "--tokens", 20)
    assert said.stdout.startswith("ROMEO:") and not said.stderr
