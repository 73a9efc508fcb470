"""The demo's recipe, and others with one thing changed: which reads held-out text best?

    python benchmarks/recipe.py [--seconds 100] [--only base,wider] [--seed 0] [--json]

Each variant gets the same seconds of one core, counted by the processor and not by the clock, so
that other work on the machine does not decide. They train in turns. The demo's three minutes on two
cores are about 330 such seconds: at 100, larger models look worse than they are.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import typer
from _shared import machine, markdown
from speedrun import prepare

from llama_course.launch.budget import WARMUP
from llama_course.launch.demo import DEMO
from llama_course.launch.machine import can_compile, has_bfloat16
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import cosine_lr
from llama_course.training import Recipe, Step, bits_per_byte, make_loader

VARIANTS = {  # name -> what differs from the demo
    "base": {},
    "more warmup": {"warmup": 0.2},
    "higher rate": {"lr": 5e-3},
    "smaller batch": {"batch_size": 4},
    "wo and w2 begin at 0": {"from_zero": True},
    "fewer tokens": {"vocab_size": 2048},
    "deeper": {"n_layers": 6},
    "wider": {"dim": 256, "n_heads": 4, "hidden_dim": 704},
}


class Variant:
    "A model and its training step; counts the processor's seconds."

    def __init__(self, name, data, seed):
        self.name, change = name, dict(VARIANTS[name])
        self.tokenizer, shards, self.held_out = data
        shape = {
            key: change.pop(key)
            for key in ("dim", "n_layers", "n_heads", "hidden_dim")
            if key in change
        }
        config = LlamaConfig.from_name(DEMO["model"], vocab_size=self.tokenizer.vocab_size)
        self.warmup, zero = change.pop("warmup", WARMUP), change.pop("from_zero", False)
        change.pop("vocab_size", None)
        torch.manual_seed(seed)
        self.model = Llama(
            replace(config, **({"n_kv_heads": None} if "n_heads" in shape else {}), **shape)
        )
        for name, parameter in self.model.named_parameters():
            if zero and name.endswith(("wo.weight", "w2.weight")):
                torch.nn.init.zeros_(parameter)
        self.recipe = Recipe(
            1,
            DEMO["proportions"],
            seed=seed,
            compile=can_compile(),
            attention="rows",
            precision="bfloat16" if has_bfloat16() else "float32",
            **change,
        )
        self.step, self.loader = Step(self.model, self.recipe), make_loader(shards, self.recipe)
        self.steps, self.seconds = 0, 0.0
        for _ in range(2):  # compiles, and leaves weights and optimizer as they were
            self.step(self.loader.batch(0), 0.0)
        self.step.optimizer.state.clear()

    def train(self, until, budget):
        "Goes on until it has used so many seconds."
        while self.seconds < until:
            began, share = time.process_time(), self.seconds / budget
            lr = cosine_lr(int(share * 10_000), 10_000, self.recipe.lr, int(self.warmup * 10_000))
            self.step(self.loader.batch(self.steps), lr)
            self.steps, self.seconds = self.steps + 1, self.seconds + time.process_time() - began

    def judge(self):
        "What it did in its seconds."
        bits = {
            source: bits_per_byte(self.model, shard.tokens, shard.text_bytes, self.recipe.seq_len)
            for source, shard in self.held_out.items()
        }
        return {
            "name": self.name,
            "change": VARIANTS[self.name],
            "bits_per_byte": bits,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens": self.steps * self.recipe.batch_size * self.recipe.seq_len,
            "mean": sum(bits.values()) / len(bits),
        }


def main(
    seconds: float = 100.0,
    only: str = typer.Option(",".join(VARIANTS), help="names of variants, with commas"),
    seed: int = 0,
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
):
    torch.set_num_threads(1)
    names = only.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        sys.exit(f"no variant is called {unknown[0]!r}: choose from {', '.join(VARIANTS)}.")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {VARIANTS[name].get("vocab_size", DEMO["vocab_size"]) for name in names}
        data = {size: prepare(Path(folder) / str(size), vocab_size=size) for size in sizes}
        runs = [
            Variant(n, data[VARIANTS[n].get("vocab_size", DEMO["vocab_size"])], seed) for n in names
        ]
        for turn in range(1, 11):
            for run in runs:
                run.train(seconds * turn / 10, seconds)
            print(f"{turn} of 10 turns", file=sys.stderr, flush=True)
        table = [run.judge() for run in runs]
    result = {"machine": machine(), "seconds": seconds, "seed": seed, "variants": table}
    print(json.dumps(result, indent=1) if as_json else in_words(result))


def in_words(result):
    "The result as Markdown."
    sources = list(result["variants"][0]["bits_per_byte"])
    rows = [
        [
            v["name"],
            f"{v['parameters'] / 1e6:.1f}",
            f"{v['tokens'] / 1e6:.2f}",
            *(f"{v['bits_per_byte'][s]:.3f}" for s in sources),
            f"**{v['mean']:.3f}**",
        ]
        for v in result["variants"]
    ]
    heads = ["", "million parameters", "million tokens", *sources, "mean bits a byte"]
    return (
        f"{result['machine']}\n\n{result['seconds']:g} seconds of one core each,"
        f" seed {result['seed']}\n\n"
        f"{markdown(heads, rows)}"
    )


if __name__ == "__main__":
    typer.run(main)
