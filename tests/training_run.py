"One small run in its own process: `python training_run.py FOLDER [key=value ...]`, or `Run`."

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from forked import Forked

from llama_course.data import Document
from llama_course.launch import run as launch
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.support.shards import write_shard
from llama_course.support.signals import Stopped
from llama_course.training import Recipe


class Letters:
    "A tokenizer of 64 letters, without a file."

    vocab_size, fingerprint = 64, "00" * 32

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [3 + ord(c) % 61 for c in text] + [2] * eos


def make(folder, **changes):
    "Model, shards and recipe: always the same ones for the same changes."
    torch.manual_seed(0)
    model = Llama(
        LlamaConfig(dim=64, n_layers=2, n_heads=2, vocab_size=64, max_seq_len=64, hidden_dim=128)
    )
    shards = {}
    for source in ("a", "b"):
        path = Path(folder) / f"{source}.tokens"
        words = np.random.default_rng(ord(source)).choice(["to", "be", "or", "not"], 4000)
        shards[source] = write_shard(path, [Document(source, "1", " ".join(words))], Letters())
    recipe = dict(
        steps=40, proportions={"a": 0.25, "b": 0.75}, batch_size=8, seq_len=32, lr=3e-3, warmup=5
    )
    return model, shards, Recipe(**recipe | changes)


def fingerprint_of(model):
    "All the weights, bit for bit."
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    ).hexdigest()


def run(folder, *changes):
    "The whole run: prints the weights' fingerprint, or ends as the command does."
    changes = {k: json.loads(v) for k, v in (c.split("=") for c in changes)}
    save_every, launch.PAUSE = changes.pop("save_every", 1), changes.pop("pause", 0.0)
    torch.set_num_threads(changes.pop("threads", 1))
    model, shards, recipe = make(folder, **changes)
    try:
        launch.train_in_folder(model, shards, recipe, folder, save_every=save_every)
    except UserError as error:
        sys.exit(f"UserError: {error}")
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    print(fingerprint_of(model))


def Run(folder, *changes):
    "The same in a process of its own, used as `subprocess.Popen` is."
    return Forked(run, str(folder), *changes)


if __name__ == "__main__":
    run(*sys.argv[1:])
