"A run of one process: killed in every way it goes on, and ends as an undisturbed run does."

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import ran, with_small_files
from safetensors.torch import load_file
from training_run import Run, make, run

from llama_course.fault_tolerance import Checkpoints, seal
from llama_course.launch.machine import can_compile
from llama_course.launch.run import train_in_folder
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import make_optimizer
from llama_course.support.errors import UserError

SCRIPT = Path(__file__).with_name("training_run.py")


def start(folder, *changes):
    if any(
        "compile" in change for change in changes
    ):  # the compiler begins threads and processes: from scratch
        command = [sys.executable, SCRIPT, folder, *changes]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Run(folder, *changes)


def finish(folder, *changes):
    "Runs to the end; the weights' fingerprint."
    process = start(folder, *changes)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def lines(folder):
    "metrics.jsonl without the clock's fields."
    timed = ("seconds", "tokens_per_second", "memory_gib", "mfu")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def contents(folder):
    "All files below, by name."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stop_at(process, folder, step, number):
    "Sends the signal as soon as that step is in the metrics; the exit status."
    path, until = folder / "metrics.jsonl", time.time() + 200
    while time.time() < until and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            process.send_signal(number)
            break
        time.sleep(0.005)
    process.err = process.communicate(timeout=200)[1]
    return process.returncode


def test_the_bar_shows_loss_rate_speed_and_the_time_left(tmp_path):
    process = start(tmp_path, "steps=3")
    bar = process.communicate(timeout=200)[1].split("\r")[-1]
    assert re.search(
        r"3/3 \[\d\d:\d\d<\d\d:\d\d, .*loss \d\.\d{3}, lr \d\.\de-\d\d, [\d,]+ tokens/s", bar
    ), bar


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finish(folder), lines(folder)


def test_two_runs_are_equal_bit_for_bit(undisturbed, tmp_path):
    _, weights, metrics = undisturbed
    assert [m["step"] for m in metrics] == list(range(1, 41))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5  # and it learned something
    assert finish(tmp_path) == weights and lines(tmp_path) == metrics


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["ctrl-c", "kill", "kill -9"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(number, status, undisturbed, tmp_path):
    _, weights, metrics = undisturbed
    for step in (3, 25):  # twice in one run
        process = start(tmp_path)
        assert stop_at(process, tmp_path, step, number) == status
        if number != signal.SIGKILL:
            assert "stopped after step" in process.err and "Traceback" not in process.err
    done = max(
        int(p.name.split("-")[1])
        for p in (tmp_path / "checkpoints").iterdir()
        if not p.name.startswith(".")
    )
    assert 0 < done < 40
    assert finish(tmp_path) == weights and lines(tmp_path) == metrics


def test_only_the_first_checkpoint_was_written(undisturbed, tmp_path):
    "With the next save far away: kill -9 loses the steps in between, and they are done again."
    _, weights, metrics = undisturbed
    assert (
        stop_at(start(tmp_path, "save_every=null", "pause=1000"), tmp_path, 25, signal.SIGKILL)
        == -9
    )
    assert [p.name for p in (tmp_path / "checkpoints").glob("step*")] == ["step-00000001"]
    assert len(lines(tmp_path)) >= 25
    assert (
        finish(tmp_path, "save_every=null", "pause=1000") == weights and lines(tmp_path) == metrics
    )


@pytest.mark.parametrize(
    "changes",
    [
        ("threads=2", "steps=12"),
        ("threads=2", "steps=12", "compile=true", 'precision="bfloat16"'),
    ],
    ids=["two threads", "and compiled"],
)
def test_with_two_threads_compiled_and_in_bfloat16_too(changes, tmp_path):
    if "compile=true" in changes and not can_compile():
        pytest.skip("torch.compile needs a C++ compiler")
    weights, metrics = finish(tmp_path / "whole", *changes), lines(tmp_path / "whole")
    assert stop_at(start(tmp_path / "cut", *changes), tmp_path / "cut", 5, signal.SIGINT) == 130
    assert finish(tmp_path / "cut", *changes) == weights and lines(tmp_path / "cut") == metrics


def damage(path, kind):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes({"cut": content[:1000], "altered": content, "empty": b""}[kind])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "A run that was stopped at step 20."
    folder = tmp_path_factory.mktemp("stopped")
    assert stop_at(start(folder), folder, 20, signal.SIGINT) == 130
    return folder


@pytest.fixture
def run_at_20(stopped, tmp_path):
    "A copy of it, to be damaged: its folder."
    return shutil.copytree(stopped, tmp_path / "run")


def two_checkpoints(folder):
    "The newest checkpoint and the one before."
    return sorted((folder / "checkpoints").glob("step*"), reverse=True)


@pytest.mark.parametrize("kind", ["cut", "altered", "empty"])
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_checkpoint_is_passed_over(kind, suffix, undisturbed, run_at_20):
    _, weights, metrics = undisturbed
    newest, older = two_checkpoints(run_at_20)
    (file,) = newest.glob(f"*.{suffix}")
    damage(file, kind)
    process = start(run_at_20)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and f"{newest} is damaged and is passed over" in err
    assert out.strip() == weights and lines(run_at_20) == metrics


def test_with_no_checkpoint_whole_the_run_refuses_and_touches_nothing(undisturbed, run_at_20):
    _, weights, metrics = undisturbed
    good = []
    for path in two_checkpoints(run_at_20):
        (file,) = path.glob("*.safetensors")
        good.append((file, file.read_bytes()))
        damage(file, "altered")
    before = contents(run_at_20)
    process = start(run_at_20)
    err = process.communicate(timeout=200)[1]
    assert (
        process.returncode == 1 and "UserError" in err and "none of 2 checkpoints is whole" in err
    )
    assert contents(run_at_20) == before
    good[1][0].write_bytes(good[1][1])  # restored, as the message says
    assert finish(run_at_20) == weights and lines(run_at_20) == metrics


def test_another_recipe_is_refused_and_nothing_is_lost(undisturbed, run_at_20):
    _, weights, metrics = undisturbed
    before = contents(run_at_20 / "checkpoints")
    process = start(run_at_20, "lr=0.001")
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 1 and "UserError" in err and "recipe lr was 0.003, is 0.001" in err
    assert contents(run_at_20 / "checkpoints") == before
    assert finish(run_at_20) == weights and lines(run_at_20) == metrics


def test_a_file_too_many_or_too_few_is_damage(run_at_20):
    newest, older = two_checkpoints(run_at_20)
    (file,) = newest.glob("*.safetensors")
    (newest / "shard-00002-model-00001-of-00001.safetensors").write_bytes(file.read_bytes())
    (file,) = older.glob("*.safetensors")
    file.unlink()
    process = start(run_at_20)
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 1 and "none of 2" in err and err.count("is damaged") == 2


def test_a_checkpoint_holds_no_pickle(tmp_path):
    "Its files are JSON, and safetensors: a length, JSON, numbers."
    model, shards, recipe = make(tmp_path, steps=1)
    train_in_folder(model, shards, recipe, tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("step*")
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    (file,) = path.glob("*.safetensors")
    content = file.read_bytes()
    table = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = set(table) - {"__metadata__"}
    assert sum(
        math.prod(table[name]["shape"]) for name in names if name.endswith("exp_avg")
    ) == sum(p.numel() for p in model.parameters())


def test_lost_metrics_are_named(run_at_20):
    (run_at_20 / "metrics.jsonl").unlink()
    process = start(run_at_20)
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 1 and "UserError" in err and "metrics.jsonl has 0 lines" in err


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model, shards, recipe = make(tmp_path)
    with torch.no_grad():
        model.norm.weight[0] = math.inf
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        train_in_folder(model, shards, recipe, tmp_path)
    assert not list(tmp_path.glob("checkpoints/step*"))  # such weights are not kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on files are POSIX")
def test_a_full_disk_is_one_clear_line(tmp_path):
    folder = tmp_path / "run"
    done = ran(with_small_files, 300_000, run, str(folder))  # a checkpoint takes more
    assert done.returncode == 1, done.stderr
    assert "UserError: cannot write" in done.stderr and "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.rglob("*.part")) and not list(folder.rglob("*step-*"))


def test_no_handler_and_no_mode_is_left_behind(tmp_path):
    before = (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        torch.are_deterministic_algorithms_enabled(),
    )
    model, shards, recipe = make(tmp_path, steps=2)
    train_in_folder(model, shards, recipe, tmp_path)
    after = (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert before == after


def test_checkpoint_holds_tied_weights_and_buffers_once(tmp_path):
    def build():
        config = LlamaConfig(
            dim=32, n_layers=1, n_heads=2, vocab_size=64, max_seq_len=16, tie_embeddings=True
        )
        model = Llama(config)
        model.register_buffer("kept", torch.randn(3))
        model.norm.weight.requires_grad_(False)  # what is not trained is not saved
        return model, make_optimizer(model, 1e-3)

    model, optimizer = build()
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, model, optimizer, {})
    checkpoints.save(1)
    checkpoints.finish()
    (path,) = tmp_path.rglob("*.safetensors")
    saved = load_file(path)
    assert sum(t.numel() == 64 * 32 for name, t in saved.items() if name.startswith("model.")) == 1
    assert "model.kept" in saved and "model.norm.weight" not in saved
    again, its_optimizer = build()
    assert Checkpoints(tmp_path, again, its_optimizer, {}).load()["step"] == 1
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())
    )
    old, new = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert (
        all(torch.equal(old[i][k], new[i][k]) for i in old for k in old[i])
        and old.keys() == new.keys()
    )
    assert again.output.weight is again.tok_embeddings.weight


def test_a_table_that_says_another_step_is_damaged(tmp_path, capsys):
    model, optimizer = (m := Llama(LlamaConfig(32, 1, 2, vocab_size=64))), make_optimizer(m, 1e-3)
    checkpoints = Checkpoints(tmp_path, model, optimizer, {})
    checkpoints.save(1)
    checkpoints.finish()
    (file,) = tmp_path.rglob("about.json")
    about = json.loads(file.read_text())
    assert about.pop("sha256") == seal(about)
    file.write_text(file.read_text().replace('"step": 1', '"step": 2'))
    with pytest.raises(UserError, match="none of 1"):
        checkpoints.load()
    assert "is damaged" in capsys.readouterr().err
