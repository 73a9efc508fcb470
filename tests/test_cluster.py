"Real clusters of one machine (Slurm, Ray) and real boards (Weights & Biases, MLflow)."

import json
import os
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from slurm import Cluster, missing
from training_run import Letters

from llama_course.corpus.build import build_corpus, cleaned
from llama_course.data import Document
from llama_course.files.run import RunFolder
from llama_course.launch.boards import open_boards
from llama_course.launch.log import Log
from llama_course.support.disk import read_json
from llama_course.support.errors import UserError
from llama_course.support.shards import write_shard

SCRIPT = Path(__file__).parents[1] / "docs" / "slurm.sh"
NEEDS_DATA = pytest.mark.skipif(not find_spec("datatrove"), reason="needs llama_course[data]")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if sys.platform != "linux" or missing():
        pytest.skip(f"Slurm is not installed ({missing()}): apt-get install slurm-wlm munge")
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def lines(run):
    path = Path(run) / "metrics.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def test_the_job_of_slurm_goes_on_after_a_requeue(cluster, tmp_path):
    "docs/slurm.sh itself: the ranks of the allocation, cores, one log of both lives."
    words = np.random.default_rng(0).choice(["to", "be", "or", "not"], 4000)
    write_shard(tmp_path / "data/a.tokens", [Document("a", "1", " ".join(words))], Letters())
    run, log = tmp_path / "run", tmp_path / "job.log"
    log.touch()
    settings = "--model demo --steps 40 --batch-size 4 --seq-len 32 --lr 1e-3 --warmup 4"
    settings += " --precision float32 --no-compile --tensor-parallel 1 --checkpointing none"
    settings += " --micro-batch 1 --save-every 4"
    asked = ["--nodes", 1, "--gpus-per-node", 2, "--cpus-per-task", 6, "--time", 10]
    job = cluster.run(
        *("sbatch", "--parsable", *asked, "--output", log, SCRIPT, *settings.split()),
        DATA=str(tmp_path / "data"),
        RUN=str(run),
        PYTHON=sys.executable,
    )
    cluster.until(
        lambda: (
            len(lines(run)) >= 6 or "Error" in log.read_text() or cluster.state(job) == "FAILED"
        ),
        200,
    )
    assert "Error" not in log.read_text() and cluster.state(job) == "RUNNING", log.read_text()
    ranks = [process for process in processes(str(run)) if "\0RANK=" in process]
    assert len(ranks) == 2 and all("\0OMP_NUM_THREADS=3\0" in process for process in ranks)
    cluster.run("scontrol", "requeue", job)
    cluster.until(lambda: cluster.state(job) == "PENDING")
    seen = len(lines(run))
    assert seen < 40
    at = time.strftime("%Y-%m-%dT%H:%M:%S")
    cluster.run("scontrol", "update", f"JobId={job}", f"StartTime={at}")  # not in two minutes
    cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), 250)
    said = log.read_text()
    assert "REQUEUE" in said and "40/40" in said, said  # of the first life, of the second
    assert [row["step"] for row in lines(run)] == list(range(1, 41)) and RunFolder(run).is_done
    assert RunFolder(run).recipe.micro_batch == 1


def processes(words):
    "The environment of every process whose command line has these words."
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if words in (path / "cmdline").read_text():
                found.append("\0" + (path / "environ").read_text())
        except OSError:
            continue
    return found


def corpus(place, executor):
    (place / "in").mkdir(parents=True)
    for file in range(4):
        rows = [
            json.dumps({"id": f"{file} {i}", "text": f"line {i % 7} of {file}\n" * 9}) + "\n"
            for i in range(20)
        ]
        (place / "in" / f"{file}.jsonl").write_text("".join(rows))
    (place / "in" / "4.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    (place / "recipe.toml").write_text(
        f'tasks = 2\nworkers = 2\n{executor}\n[sources.s]\nproportion = 1\nkind = "jsonl"\n'
        'path = "in"\nfilters = ["short_lines", "exact_duplicates"]\n'
    )
    return place / "recipe.toml"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The same corpus, made by this process."
    place = tmp_path_factory.mktemp("alone")
    return build_corpus(corpus(place, ""), place / "out"), texts(place)


def texts(place):
    return [(d.name, d.text) for d in cleaned(place / "out" / "clean" / "s", "s")]


OPTIONS = 'partition = "main"\ntime = "0:10:00"\ncpus_per_task = 1\nmem_per_cpu_gb = 1\n'


@pytest.fixture
def user(cluster, tmp_path, monkeypatch):
    "Somebody on the cluster who has activated no environment."
    scripts = os.path.dirname(sys.executable)
    own = [place for place in cluster.env["PATH"].split(":") if place != scripts]
    monkeypatch.setenv("PATH", ":".join(own))
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)


@NEEDS_DATA
def test_failed_jobs_are_one_line(cluster, user, tmp_path):
    "The first job fails; those that depend on it would wait for ever."
    path = corpus(tmp_path, f'executor = "slurm"\n[slurm]\nenv_command = "exit 3"\n{OPTIONS}')
    assert not build_corpus(path, tmp_path / "out")["done"]
    with pytest.raises(UserError, match="0 of 3 tasks are done, and no job .* goes on") as error:
        cluster.until(lambda: build_corpus(path, tmp_path / "out")["done"], 60)
    name = str(error.value).split("--name ")[1].split("`")[0]
    cluster.run("scancel", "--name", name)
    assert "\n" not in str(error.value) and not cluster.run("squeue", "--noheader")


@NEEDS_DATA
def test_the_pipeline_on_slurm(cluster, user, alone, tmp_path):
    path = corpus(tmp_path, f'executor = "slurm"\n[slurm]\n{OPTIONS}')
    assert not build_corpus(path, tmp_path / "out")["done"]  # submitted
    cluster.until(lambda: build_corpus(path, tmp_path / "out")["done"], 200)
    assert build_corpus(path, tmp_path / "out") == alone[0] and texts(tmp_path) == alone[1]


RAY = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
from llama_course.corpus.build import build_corpus
build_corpus(sys.argv[1], sys.argv[2])
"""


@NEEDS_DATA
@pytest.mark.skipif(not find_spec("ray"), reason="needs llama_course[cluster]: Ray")
def test_the_pipeline_on_ray(alone, tmp_path):
    path = corpus(tmp_path, 'executor = "ray"')
    ran = subprocess.run(
        [sys.executable, "-c", RAY, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=900,  # Ray's workers are nice: on a busy machine they would wait for everybody
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"},
    )
    assert ran.returncode == 0, ran.stderr
    assert read_json(tmp_path / "out" / "data.json") == alone[0] and texts(tmp_path) == alone[1]


def write_log(run, board):
    "Two lives of a run of four steps."
    names = ("lr", "grad_norm", "tokens_per_second", "mfu", "memory_gib")
    for first, last in ((0, 2), (2, 4)):
        log = Log(run, first, 4, (board,), {"lr": 0.1})
        for step in range(first + 1, last + 1):
            line = {"step": step, "loss": 4.0 / step} | dict.fromkeys(names, 1.0) | {"mfu": None}
            log.write(line | ({"held_out": {"web": 1.5}} if step == 4 else {}))
        log.close()


@pytest.mark.skipif(not find_spec("mlflow"), reason="needs llama_course[cluster]: MLflow")
def test_a_run_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    write_log(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("llama_course")
    (run,) = client.search_runs([experiment.experiment_id])  # one entry for both lives
    found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert found == {step: 4.0 / step for step in range(1, 5)}
    assert run.data.metrics["held_out/web"] == 1.5 and run.data.params["lr"] == "0.1"


def log_records(raw, block=2**15):
    "The records of a W&B file: LevelDB's log format behind seven bytes."
    at, whole = 7, b""
    while at + 7 <= len(raw):
        left = block - at % block
        size, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        if left < 7 or not kind:
            at += left
            continue
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of it, or its last part
            yield whole
            whole = b""


@pytest.mark.skipif(not find_spec("wandb"), reason="needs llama_course[cluster]: wandb")
def test_a_run_in_weights_and_biases(tmp_path, monkeypatch):
    "Offline: what would be sent, read by its own reader."
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    from wandb.proto import wandb_internal_pb2

    write_log(tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.stem for file in files}) == 1  # two lives, one name
    losses, end = {}, time.time() + 60
    while len(losses) < 4 and time.time() < end:  # another process writes them
        losses = {}
        for data in (data for file in files for data in log_records(file.read_bytes())):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {
                i.key or "/".join(i.nested_key): json.loads(i.value_json)
                for i in record.history.item
            }
            if "loss" in row:
                losses[record.history.step.num] = row["loss"]
        time.sleep(0.05)
    assert losses == {step: 4.0 / step for step in range(1, 5)}


def test_an_unknown_board_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no board 'paper': choose of tensorboard, wandb, mlflow"):
        open_boards(("paper",), tmp_path, 0, {})
