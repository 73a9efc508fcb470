"One small run in its own process, for test_training: `python training_run.py FOLDER [key=value ...]`, or `Run`."
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from llama_course.data import Document
from llama_course.support.shards import write_shard
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.training import Recipe, Stopped, train


class Letters:
    "A tokenizer of 64 letters, without a file."
    vocab_size, fingerprint = 64, "00" * 32

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [3 + ord(c) % 61 for c in text] + [2] * eos


def make(folder, **changes):
    "Model, shards and recipe: always the same ones for the same changes."
    torch.manual_seed(0)
    model = Llama(LlamaConfig(dim=64, n_layers=2, n_heads=2, vocab_size=64, max_seq_len=64, hidden_dim=128))
    shards = {}
    for source in ("a", "b"):
        path = Path(folder) / f"{source}.tokens"
        words = np.random.default_rng(ord(source)).choice(["to", "be", "or", "not"], 4000)
        shards[source] = write_shard(path, [Document(source, "1", " ".join(words))], Letters())
    recipe = dict(steps=40, proportions={"a": 0.25, "b": 0.75}, batch_size=8, seq_len=32, lr=3e-3, warmup=5)
    return model, shards, Recipe(**recipe | changes)


def fingerprint_of(model):
    "All the weights, bit for bit."
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def run(folder, *changes):
    "The run from its first line to its last: prints the weights' fingerprint, or ends as the command does."
    changes = {k: json.loads(v) for k, v in (c.split("=") for c in changes)}
    save_every = changes.pop("save_every", 0.0)
    torch.set_num_threads(changes.pop("threads", 1))
    model, shards, recipe = make(folder, **changes)
    try:
        train(model, shards, recipe, folder, save_every=save_every)
    except UserError as error:
        sys.exit(f"UserError: {error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    print(fingerprint_of(model))


def told(out, err, *words):
    "The run, with its two streams in files."
    for stream, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY), stream)
    run(*words)


class Run:
    "The run in a new process, used as `subprocess.Popen` is: a fork of one that has PyTorch in memory and did nothing."

    def __init__(self, folder, *changes):
        context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
        if hasattr(os, "fork"): context.set_forkserver_preload(["llama_course.training"])
        self.files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]
        self.process = context.Process(target=told, args=(*(file.name for file in self.files), str(folder), *changes))
        self.process.start()

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None: os.kill(self.process.pid, number)

    def communicate(self, timeout=None):
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it does not end"
        return tuple(file.read() for file in self.files)


if __name__ == "__main__": run(*sys.argv[1:])
