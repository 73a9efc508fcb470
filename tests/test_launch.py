"Runs on many ranks: killed, cut, resumed on other numbers of ranks; and their log."

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked, as_command
from training_run import Letters

from llama_course.corpus.build import verify_corpus
from llama_course.data import Document
from llama_course.fault_tolerance import check_finite, read_table
from llama_course.files.load import load
from llama_course.files.plan import RunPlan, write_plan
from llama_course.files.run import RunFolder
from llama_course.launch import pretrain
from llama_course.launch import run as launch
from llama_course.launch.log import Metrics, gpu_called
from llama_course.launch.pretrain import open_data, plan_words
from llama_course.launch.run import train_in_folder
from llama_course.model import Llama, LlamaConfig
from llama_course.planner import GPUS
from llama_course.support.compare import differences
from llama_course.support.disk import only_one, read_json
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, write_shard
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, bits_per_byte

STEPS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for source in ("a", "b"):
        words = np.random.default_rng(ord(source)).choice(["to", "be", "or", "not"], 4000)
        write_shard(
            folder / f"{source}.tokens", [Document(source, "1", " ".join(words))], Letters()
        )
    (folder / "mixture.json").write_text('{"a": 0.25, "b": 0.75}')
    return folder


def command(data, run, *more, **changes):
    known = dict(
        model="demo",
        data=data,
        run_folder=run,
        steps=STEPS,
        batch_size=4,
        seq_len=32,
        warmup=4,
        save_every=4,
    )
    words = [
        str(w)
        for name, value in (known | changes).items()
        for w in (f"--{name.replace('_', '-')}", value)
    ]
    return ["-m", "llama_course.launch", *words, *more]


def start(ranks, words, restarts=0):
    if ranks == 1:
        return Forked(
            as_command,
            "llama_course.launch.pretrain:launch_command",
            *words[2:],
            OMP_NUM_THREADS="1",
            TQDM_DISABLE="1",
        )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "--max-restarts",
        str(restarts),
        "--monitor-interval",
        "0.1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        [*launch, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def finish(ranks, words, restarts=0):
    process = start(ranks, words, restarts)
    err = process.communicate(timeout=280)[1]
    return process.returncode, err


def lines(run):
    path = run / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def losses(run):
    return torch.tensor([loss for _, loss, _ in lines(run)], dtype=torch.float64)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    "Two ranks, to the end; with TensorBoard where it is installed."
    run = tmp_path_factory.mktemp("undisturbed")
    more = ["--tensorboard"] if find_spec("tensorboard") else []
    status, err = finish(2, command(data, run, *more))
    assert status == 0, err
    return run


def test_the_log_says_speed_memory_and_gradient(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and rows[-1]["loss"] < rows[
        0
    ]["loss"]
    assert {"tokens_per_second", "mfu", "memory_gib", "grad_norm", "lr", "tokens"} <= set(rows[0])
    assert len([*(undisturbed / "checkpoints").glob("step-*")]) == 2  # older ones are gone
    assert rows[-1]["tokens"] == STEPS * 4 * 32 and 0.05 < rows[0]["memory_gib"] < 8
    if (undisturbed / "tensorboard").exists():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(undisturbed / "tensorboard"))
        board.Reload()
        assert [round(e.value, 4) for e in board.Scalars("loss")] == [
            round(row["loss"], 4) for row in rows
        ]


def rank_process(run, rank):
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (path / "cmdline").read_text(), (path / "environ").read_text()
        except OSError:
            continue
        if str(run) in words and f"\0RANK={rank}\0" in environment:
            return int(path.name)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a rank is found by /proc")
def test_a_rank_killed_in_mid_run_comes_back_and_the_curve_is_the_same(data, undisturbed, tmp_path):
    process = start(2, command(data, tmp_path), restarts=2)
    while process.poll() is None and len(lines(tmp_path)) < 10:
        time.sleep(0.01)
    os.kill(rank_process(tmp_path, 1), signal.SIGKILL)
    err = process.communicate(timeout=280)[1]
    assert process.returncode == 0 and "exitcode: -9" in err, err
    assert lines(tmp_path) == lines(undisturbed)  # to the last bit
    assert not list((tmp_path / "checkpoints").glob(".part-*"))


def test_it_goes_on_with_another_number_of_ranks(data, undisturbed, tmp_path):
    "8 steps on one rank; then something half written, and the rest on two ranks."
    process = start(1, command(data, tmp_path, save_every=4))
    while process.poll() is None and len(lines(tmp_path)) < 8:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 143 and "which is saved" in err and "Traceback" not in err
    folder = tmp_path / "checkpoints"
    good = max(folder.glob("step-*"))
    assert 8 <= int(good.name[5:]) < STEPS
    broken = (
        folder / "step-00000015"
    )  # what a crash may leave: no table of files, then a file cut short
    broken.mkdir()
    (broken / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    (left := folder / ".part-00000014").mkdir()
    shutil.copytree(good, short := folder / "step-00000014")
    with open(next(short.glob("*.safetensors")), "r+b") as file:
        file.truncate(100)
    assert read_table(broken) is None and read_table(good)["step"] == int(good.name[5:])
    status, err = finish(2, command(data, tmp_path))
    assert status == 0 and err.count("is damaged and is passed over") == 2 and not left.exists(), (
        err
    )
    torch.testing.assert_close(losses(tmp_path), losses(undisturbed), rtol=5e-5, atol=0)


def test_a_run_is_that_of_chapter_15(data, tmp_path):
    "The same weights, batches, rates and losses; and what it leaves is a model."
    status, err = finish(1, command(data, tmp_path / "run", seed=3))
    assert status == 0, err
    config = LlamaConfig.from_name("demo", vocab_size=64)
    torch.manual_seed(3)
    model = Llama(config)
    torch.manual_seed(3)
    model.init_weights()
    recipe = Recipe(
        STEPS, {"a": 0.25, "b": 0.75}, batch_size=4, seq_len=32, lr=3e-4, warmup=4, seed=3
    )
    train_in_folder(model, open_data(data).train, recipe, tmp_path / "alone", save_every=1000)
    torch.testing.assert_close(
        losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=2e-5, atol=0
    )
    kept = dict(Llama.load(tmp_path / "run").named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(kept[name], p, rtol=0, atol=2e-4, msg=name)


def test_another_recipe_is_refused(data, undisturbed):
    before = lines(undisturbed)
    status, err = finish(1, command(data, undisturbed, lr=0.5))
    assert status == 2 and "recipe lr was 0.0003, is 0.5" in err and "Traceback" not in err
    assert lines(undisturbed) == before


@pytest.mark.parametrize("told", ["stop", "skip"])
def test_a_loss_that_is_no_number(told, data, tmp_path):
    status, err = finish(1, command(data, tmp_path, lr=1e30, warmup=1, steps=5, non_finite=told))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    if told == "stop":
        assert (
            status == 2 and "--non-finite skip" in err and len(rows) < 5 and "Traceback" not in err
        )
    else:
        assert (
            status == 0 and len(rows) == 5 and rows[-1]["skipped"] and rows[-1]["loss"] is None
        ), err


@pytest.mark.parametrize(
    "changes, text", [({"tensor_parallel": 2}, "1 processes cannot be grouped by 2")]
)
def test_mistakes_are_one_line(changes, text, data, tmp_path):
    status, err = finish(1, command(data, tmp_path, **changes))
    assert (
        status == 2
        and text in err
        and "Traceback" not in err
        and len(err.strip().splitlines()) == 1
    )


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"non_finite": "hope"}, "--non-finite must be stop or skip"),
        ({"checkpointing": "hope"}, "--checkpointing must be none, "),
        ({"save_every": 0}, "--save-every must be 1 or more"),
        ({"lr": "nan"}, "--lr must be a number"),
        ({"lr": -1}, "--lr must be above 0"),
        ({"seed": -1}, "--seed must be"),
    ],
)
def test_wrong_options_are_one_line(changes, text, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch", *command(data, tmp_path / "run", **changes)[2:]])
    with pytest.raises(SystemExit) as end:
        pretrain.launch_command()
    err = capsys.readouterr().err
    assert (
        end.value.code == 2
        and text in err
        and len(err.splitlines()) == 1
        and not (tmp_path / "run").exists()
    )


def test_gpus_and_marks(monkeypatch):
    for name, known in (
        ("NVIDIA A100-SXM4-40GB", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
    ):
        assert gpu_called(name).flops == GPUS[known].flops
    for name in ("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "Tesla T4"):
        assert gpu_called(name) is None
    for new in ("A10-24GB", "L4-24GB", "H100-NVL-94GB"):  # parts of names
        monkeypatch.setitem(GPUS, new, dataclasses.replace(GPUS["A100-80GB"], name=new, flops=1.0))
    assert gpu_called("NVIDIA L400") is None and gpu_called("NVIDIA L4").flops == 1
    assert gpu_called("NVIDIA H100 NVL").flops == 1 and gpu_called("NVIDIA H100 PCIe") is None
    assert gpu_called("NVIDIA A100-PCIE-40GB").flops == GPUS["A100-80GB"].flops
    line = {"step": 1, "loss": float("inf"), "grad_norm": 1.0}
    assert check_finite(line, "skip") == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "skipped": True,
    }
    with pytest.raises(UserError, match="step 1: the loss is inf"):
        check_finite(line, "stop")


def test_what_the_trainer_leaves_is_read_by_everything(tmp_path):
    "A folder as `llama-course data` writes it: held-out text is left alone."
    texts = [
        " ".join(np.random.default_rng(i).choice(["to", "be", "or", "not"], 3000)) for i in range(2)
    ]
    prep = tmp_path / "prep"
    tokenizer = Tokenizer.train(texts, 275, prep / "tokenizer.model")
    for name, text in zip("ab", texts):
        for side, part in (("train", text), ("held_out", text[:500])):
            write_shard(
                prep / "tokens" / f"{name}.{side}.tokens", [Document(name, side, part)], tokenizer
            )
    (prep / "begun.json").write_text("{}")
    about = {
        "done": True,
        "tokenizer": tokenizer.fingerprint,
        "sources": {n: {"proportion": p} for n, p in zip("ab", (0.9, 0.1))},
    }
    (prep / "data.json").write_text(json.dumps(about))
    for folder in (prep, prep / "tokens"):
        found = open_data(folder)
        for side, shards in (("train", found.train), ("held_out", found.held_out)):
            assert {name: shard.path.name for name, shard in shards.items()} == {
                "a": f"a.{side}.tokens",
                "b": f"b.{side}.tokens",
            }
        assert found.shares == {"a": 0.9, "b": 0.1} and found.tokenizer == prep / "tokenizer.model"
    status, err = finish(
        1, command(prep, tmp_path / "run", "--profile", steps=6, warmup=1, measure_every=4)
    )
    assert status == 0, err
    run = RunFolder(tmp_path / "run")
    assert (
        run.is_done
        and run.facts.kind == "pretrain"
        and run.recipe.proportions == {"a": 0.9, "b": 0.1}
    )
    model, its = load(run.path)
    assert its.fingerprint == tokenizer.fingerprint and model.config.vocab_size == 275
    # held-out text, by the function of chapter 15 over the same windows
    measured = run.held_out()
    assert {name: list(at) for name, at in measured.items()} == {"a": [4, 6], "b": [4, 6]}
    for name, at in measured.items():
        ids = Shard(prep / "tokens" / f"{name}.held_out.tokens").tokens
        ids = ids[: (len(ids) - 1) // 32 * 32 + 1]
        size = len(tokenizer.decode(ids).encode())
        assert at[6] == pytest.approx(bits_per_byte(model, ids, size, seq_len=32), rel=1e-5)
    names = {e["name"] for e in read_json(run.path / "trace" / "rank-0.json")["traceEvents"]}
    assert any("aten::" in name for name in names)
    again = command(prep, tmp_path / "run", steps=6, warmup=1, measure_every=4)
    before = (run.path / "model.safetensors").stat().st_mtime_ns
    assert finish(1, again)[0] == 0
    assert (run.path / "model.safetensors").stat().st_mtime_ns == before


def test_a_shard_that_is_cut_off_or_another_is_found_before_a_run_begins(data, tmp_path):
    "At each start by its length and by data.json; its tokens are read by `data --verify` alone."
    shutil.copytree(data, tmp_path / "data")
    shard = tmp_path / "data" / "b.tokens"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    status, err = finish(1, command(tmp_path / "data", tmp_path / "run"))
    assert status == 2 and "b.tokens is cut off" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "run.json").exists()
    shard.write_bytes(whole[:-1] + b"!")
    with pytest.raises(UserError, match="b.tokens is damaged"):
        verify_corpus(tmp_path / "data")
    shard.write_bytes(whole)
    assert verify_corpus(tmp_path / "data") > len(whole)
    prep = tmp_path / "prep"
    (prep / "tokens").mkdir(parents=True)
    shutil.copy(data / "a.tokens", prep / "tokens" / "a.train.tokens")
    about = {"proportion": 1.0, "shards": {"tokens/a.train.tokens": {"sha256": "0" * 64}}}
    (prep / "begun.json").write_text("{}")
    (prep / "data.json").write_text(json.dumps({"sources": {"a": about}}))
    with pytest.raises(UserError, match="is not the shard that .*data.json names"):
        open_data(prep)
    about["shards"] = {"tokens/a.held_out.tokens": {"sha256": "0" * 64}}
    (prep / "data.json").write_text(json.dumps({"sources": {"a": about}}))
    with pytest.raises(UserError, match="has no tokens/a.held_out.tokens"):
        open_data(prep)


def test_a_plan_for_other_ranks_or_tokens_is_refused(data, tmp_path):
    shape = LlamaConfig(64, 1, 2, vocab_size=64)
    plan = RunPlan(shape, 2, 2, 1, True, 1, 1, 32, "none", 4)
    write_plan(plan, tmp_path / "plan.json")
    words = ["--data", data, "--run-folder", tmp_path / "run", "--plan", tmp_path / "plan.json"]
    for more, text in (
        ([], "is for 2 ranks, and here are 1: plan again with --gpus 1"),
        (["--model", "demo"], "--model and --plan do not go together"),
    ):
        status, err = finish(1, ["-m", "llama_course.launch", *map(str, [*words, *more])])
        assert status == 2 and text in err and len(err.strip().splitlines()) == 1
    assert plan_words(plan)[:4] == ["--steps", "4", "--batch-size", "2"]


def test_two_jobs_in_one_folder_are_refused(data, tmp_path):
    with only_one(tmp_path / "run"):
        status, err = finish(1, command(data, tmp_path / "run"))
    assert status == 2 and "is in use by another process" in err and "Traceback" not in err


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a rank is found by /proc")
def test_ranks_end_when_their_launcher_dies(data, tmp_path):
    process = start(2, command(data, tmp_path, steps=100_000))
    while process.poll() is None and len(lines(tmp_path)) < 2:
        time.sleep(0.01)
    ranks = [rank_process(tmp_path, rank) for rank in (0, 1)]
    process.kill()
    process.communicate()
    until = time.time() + 100
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.time() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    saved = max((tmp_path / "checkpoints").glob("step-*"))
    assert read_table(saved)["step"] == lines(tmp_path)[-1][0]  # they saved what they had


def test_the_log_is_cut_back_to_the_steps_that_are_done(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.write(step=step, loss=4.0 / step)
    metrics.file.write(b'{"step": 4, "lo')  # killed here; the checkpoint is of step 2
    metrics.close()
    Metrics(path, steps=2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    with pytest.raises(UserError, match="has 2 lines, and the run has done 5 steps"):
        Metrics(path, steps=5)
    path.write_bytes(b'{"step": 1}\n{"step"')
    with pytest.raises(UserError, match="restore it"):
        Metrics(path, steps=2)
    assert path.read_bytes() == b'{"step": 1}\n{"step"'


def test_when_a_checkpoint_is_due(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(launch.time, "perf_counter", lambda: now[0])
    assert [step for step in range(1, 10) if launch.Due(4).at(step)] == [4, 8]
    due = launch.Due(None)
    assert due.at(1)  # a disk without room shows at once
    due.begun()
    assert not due.at(2)
    now[0] += launch.PAUSE - 1
    due.written()  # it took 9 seconds: the next one is 30 times as far away
    assert not due.at(3)
    now[0] += 30 * (launch.PAUSE - 1)
    assert due.at(4)


def test_another_run_is_named_by_what_differs(data):
    shards, _, shares, _ = open_data(data)
    identities = []
    for steps, width in ((1, 32), (2, 32), (1, 64)):
        model = Llama(LlamaConfig(width, 1, 2, vocab_size=64))
        identities.append(launch.run_identity(model, shards, Recipe(steps, shares)))
    assert differences(identities[0], identities[1]) == "recipe steps was 1, is 2"
    assert differences(identities[0], identities[2]).startswith("model was")
    assert differences(identities[0], identities[0]) == ""
