"""The whole way in small: data, plan, torchrun, checkpoint, generate, eval, serve, finetune, export

One run goes undisturbed. The other loses a rank, then a whole node, then its launcher, and goes on
with another number of ranks; in the end both say the same.
"""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from forked import Forked, as_command, llama_course
from served import server

from llama_course.command.plan import run_plan
from llama_course.fault_tolerance import read_table
from llama_course.files.load import load
from llama_course.files.plan import read_plan, write_plan
from llama_course.files.run import RunFolder
from llama_course.generation import generate
from llama_course.model import LlamaConfig
from llama_course.planner import Planning, plan
from llama_course.tokenizer import Tokenizer

pytest.importorskip("datatrove", reason="the way begins with llama_course[data]")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="ranks are found by /proc"
)

STEPS = 160
SOURCES = {
    "counting": "one two three four five six seven eight nine ten",
    "letters": "alpha beta gamma delta epsilon zeta eta theta iota kappa",
}


def said_by(*words):
    "What a command printed, in the end."
    done = llama_course(*words, TQDM_DISABLE="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


def texts(source, number):
    words = SOURCES[source].split()
    return " ".join(words[(number + i) % 10] for i in range(60)) + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "The recipe, its files, of which one is damaged, and what `data` makes of them."
    home = tmp_path_factory.mktemp("path")
    tables = []
    for source, share in zip(SOURCES, ("0.75", "0.25")):
        (home / source).mkdir()
        for file in range(3):
            rows = [
                json.dumps({"id": f"{source} {i}", "text": texts(source, i)}) + "\n"
                for i in range(file, 120, 3)
            ]
            packed = gzip.compress("".join(rows).encode())
            is_damaged = file == 2 and source == "letters"
            (home / source / f"{file}.jsonl.gz").write_bytes(packed[: -10 if is_damaged else None])
        tables.append(
            f'[sources.{source}]\nproportion = {share}\nkind = "jsonl"\npath = "{source}"\n'
        )
    every = [texts(source, i) for source in SOURCES for i in range(40)]
    Tokenizer.train(every, 300, home / "tokenizer.model")
    top = 'tasks = 2\n[tokens]\ntokenizer = "tokenizer.model"\nheld_out = 0.2\n'
    (home / "recipe.toml").write_text(top + "".join(tables))
    said_by("data", home / "recipe.toml", "--out", home / "data")
    said_by("data", "--verify", "--out", home / "data")
    about = json.loads((home / "data" / "data.json").read_text())
    assert list(about["sources"]["letters"]["damaged"]) == ["letters/2.jsonl.gz"]
    return home


def planned(place, gpus, micro_batch):
    "The plan of a step of 8 sequences, as a file."
    shape = LlamaConfig(dim=64, n_layers=2, n_heads=4, vocab_size=300, hidden_dim=128)
    asked = Planning(shape, gpus, tokens=STEPS * 8 * 32, batch=8, seq_len=32, tensor=1)
    asked = Planning(**vars(asked) | {"micro_batch": micro_batch, "checkpointing": "none"})
    write_plan(run_plan(asked, plan(asked)), path := place / f"plan-{gpus}.json")
    made = read_plan(path)
    assert (made.batch_size, made.steps, made.data) == (8, STEPS, gpus)
    return path


def training(place, run, plan_file):
    words = {
        "data": place / "data",
        "run-folder": run,
        "plan": plan_file,
        "precision": "float32",  # of a plan for GPUs; what stands beside it counts more
        "lr": 3e-3,
        "warmup": 10,
        "save-every": 10,
        "measure-every": 40,
    }
    return ["-m", "llama_course.launch", *(str(w) for n, v in words.items() for w in (f"--{n}", v))]


class Node:
    "One torchrun, as a machine of a cluster has one, with its ranks."

    def __init__(self, words, log, nodes=1, ranks=2, port=0, restarts=0):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
        launch += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
        launch += ["--monitor-interval", "0.1", "--rdzv-conf", "last_call_timeout=1"]
        self.log = open(log, "w+")
        self.process = subprocess.Popen(
            [*launch, *words],
            stdout=self.log,
            stderr=self.log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )

    def ranks(self):
        "Its processes by their rank."
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (path / "environ").read_text()
            except (OSError, ValueError):
                continue
            rank = re.search(r"(?:^|\0)RANK=(\d+)\0", environment)
            if parent == self.process.pid and rank:
                found[int(rank[1])] = int(path.name)
        return found

    def lose(self):
        "The machine is gone: the launcher and its ranks, at once."
        pids = [self.process.pid, *self.ranks().values()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def said(self):
        self.log.seek(0)
        return self.log.read()


def steps_of(run):
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def until(happened, nodes, seconds=200):
    end = time.time() + seconds
    while not happened():
        assert time.time() < end, "\n".join(node.said() for node in nodes)
        time.sleep(0.01)


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def undisturbed(place):
    "Two ranks, from the first step to the last."
    run = place / "undisturbed"
    node = Node(training(place, run, planned(place, 2, 2)), place / "0.log")
    assert node.process.wait(timeout=250) == 0, node.said()
    return run


@pytest.fixture(scope="module")
def disturbed(place):
    "Two nodes; a rank is killed, a node is lost, the launcher is killed; one rank goes on."
    run, port = place / "disturbed", free_port()
    words = training(place, run, planned(place, 2, 2))
    nodes = [Node(words, place / f"{i}.log", 2, 1, port, restarts=3) for i in (1, 2)]
    until(lambda: steps_of(run) >= 15, nodes)
    first = {rank: pid for node in nodes for rank, pid in node.ranks().items()}
    os.kill(first[1], signal.SIGKILL)  # the first kill: a rank; both nodes start theirs again

    def again():
        now = {rank: pid for node in nodes for rank, pid in node.ranks().items()}
        return len(now) == 2 and not set(now.values()) & set(first.values())

    until(again, nodes)
    reached = steps_of(run)
    until(lambda: steps_of(run) >= reached + 25, nodes)
    host = next(node for node in nodes if 0 in node.ranks())
    other = next(node for node in nodes if node is not host)
    before = host.ranks()[0]
    other.lose()  # the rank that is left fails, and its launcher waits for a second node
    until(lambda: before not in host.ranks().values(), nodes)
    host.process.kill()  # the second kill
    host.process.wait()
    assert 40 <= steps_of(run) < STEPS and not RunFolder(run).is_done
    said_by("report", run)
    assert "It is not finished" in (run / "report.html").read_text(encoding="utf-8")
    words = training(place, run, planned(place, 1, 4))
    words += ["--micro-batch", "3"]  # 8 sequences are 3 + 3 + 2
    process = Forked(
        as_command,
        "llama_course.launch.pretrain:launch_command",
        *words[2:],
        OMP_NUM_THREADS="1",
        TQDM_DISABLE="1",
    )
    err = process.communicate(timeout=250)[1]
    assert process.returncode == 0, err
    return run


def test_the_disturbed_run_says_what_the_undisturbed_says(undisturbed, disturbed):
    said = []
    for run in (undisturbed, disturbed):
        words = ["--run", run, "--temperature", "0", "--tokens", "40", "--json"]
        said.append(json.loads(said_by("generate", *words, "three four"))["text"])
    assert said[0] == said[1] and "five six seven eight nine ten one two" in said[0]


def test_both_went_the_same_way(undisturbed, disturbed):
    "Each step once, the losses within what other sums of float32 make; held-out text by source."
    runs = [RunFolder(run) for run in (undisturbed, disturbed)]
    losses = [torch.tensor(run.metrics()["loss"]) for run in runs]
    assert len(losses[0]) == STEPS == len(losses[1])
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)
    held_out = [run.held_out() for run in runs]
    for source in SOURCES:
        at = [measured[source] for measured in held_out]
        assert list(at[0]) == [40, 80, 120, 160] == list(at[1]) and at[0][160] < at[0][40]
        assert at[1][160] == pytest.approx(at[0][160], rel=2e-3)
    assert runs[0].recipe.proportions == {"counting": 0.75, "letters": 0.25}
    page = (disturbed / "report.html").read_text(encoding="utf-8")
    for words in (
        "bits per byte, counting",
        "on 2 processes",
        "at the fullest moment",
        "75%",
        "25%",
    ):
        assert words in page
    assert page.count("<td class=n>160</td>") == len(SOURCES)
    (disturbed / "report.html").unlink()
    said_by("report", disturbed)
    assert (disturbed / "report.html").read_text(encoding="utf-8") == page
    newest = max((disturbed / "checkpoints").glob("step-*"))
    assert read_table(newest)["step"] == STEPS


def test_the_run_is_evaluated_and_served(disturbed):
    scores = json.loads(
        said_by("eval", "--model", disturbed, "--tasks", "boolq", "--limit", 2, "--json")
    )
    assert scores
    model, tokenizer = load(disturbed)
    ids = tokenizer.encode("six seven", bos=True)
    wanted = tokenizer.decode([*ids, *generate(model, ids, 12, temperature=0)])
    with server(disturbed) as (_, address):
        with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
            name = json.load(answer)["data"][0]["id"]
        body = {"model": name, "prompt": "six seven", "max_tokens": 12, "temperature": 0}
        request = urllib.request.Request(
            f"{address}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = json.load(answer)["choices"][0]["text"]
        assert "six seven" + text == wanted


def test_the_run_is_finetuned_and_exported(disturbed, place):
    rows = [{"instruction": "count", "input": "", "answer": "one two three"}] * 8
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = place / "tuned"
    words = ["--weights", disturbed, "--out", tuned, "--data", place / "answers.jsonl"]
    said_by("finetune", *words, "--steps", 4, "--batch-size", 4, "--seq-len", 32)
    assert RunFolder(tuned).is_done
    said_by("export", disturbed, "--to", "hf", "--out", place / "hf")
    words = ["--temperature", "0", "--tokens", "12", "--json", "two three"]
    texts = [
        json.loads(said_by("generate", option, path, *words))["text"]
        for option, path in (("--run", disturbed), ("--weights", place / "hf"))
    ]
    assert texts[0] == texts[1] and "four five six" in texts[0]
