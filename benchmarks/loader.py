"""How fast the loader reads, on one core and warm, and what share of a training step that is.

    python benchmarks/loader.py [--millions 64] [--rounds 9] [--step] [--json]

Seven shards in the proportions of Table 1 in memory-mapped files, read in batches as training
reads them. Beside it the floor: the same bytes copied by NumPy with the same conversion, from
places that cost nothing to work out. `--step` also times a training step of the pocket model on
one thread, and gives the loader's share of it.
"""

import hashlib
import json
import statistics
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import torch
import typer
from _shared import in_turns, machine, markdown, ratio

from llama_course.data import TABLE_1, Document, Loader
from llama_course.support.shards import write_shard


class Numbers:
    "Stands in for a tokenizer: tokens that look random, a million for each document."

    vocab_size, fingerprint = 32_000, hashlib.sha256(b"numbers").hexdigest()

    def encode(self, text, bos=False, eos=False):
        return np.random.default_rng(int(text)).integers(0, self.vocab_size, 1_000_000)


def make_shards(folder: Path, millions: int) -> dict:
    "Seven shards of about `millions` million tokens together, at least one million each."
    sizes = {name: max(1, round(millions * row.proportion)) for name, row in TABLE_1.items()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])))
    return {
        name: write_shard(
            folder / f"{name}.bin",
            (Document(name, str(i), str(starts[name] + i)) for i in range(n)),
            Numbers(),
        )
        for name, n in sizes.items()
    }


def training_step(batch: torch.Tensor):
    "A function that does one step of the pocket model with this batch."
    from llama_course.model import Llama, LlamaConfig
    from llama_course.training import Recipe, Step

    torch.manual_seed(0)
    config = LlamaConfig.from_name("pocket")
    step = Step(
        Llama(config).train(),
        Recipe(steps=1, batch_size=len(batch), seq_len=batch.shape[1] - 1),
    )
    return lambda: step(batch % config.vocab_size, 1e-4)


def race(shards: dict, batch_size: int, seq_len: int, rounds: int, step: bool) -> dict:
    "The loader beside the floor, in turns: a row of the table."
    proportions = {name: row.proportion for name, row in TABLE_1.items()}
    loader = Loader(shards, proportions, seq_len, batch_size)
    steps = max(8, 4_000_000 // (batch_size * seq_len))
    place = iter(range(0, 10**9, steps))

    def read():
        start = next(place)
        for number in range(start, start + steps):
            loader.batch(number)

    def floor():
        "The same number of rows, cut one after the other from one shard."
        tokens = shards["CommonCrawl"].tokens
        for number in range(steps):
            out = np.empty((batch_size, seq_len + 1), dtype=np.int64)
            for row in range(batch_size):
                at = (number * batch_size + row) * seq_len % (len(tokens) - seq_len - 1)
                out[row] = tokens[at : at + seq_len + 1]

    read(), floor()  # warm: the pages are in memory
    seconds = in_turns({"loader": read, "floor": floor}, rounds)
    tokens = steps * batch_size * seq_len
    row = {
        "batch_size": batch_size,
        "seq_len": seq_len,
        "million_tokens_per_second": round(tokens / statistics.median(seconds["loader"]) / 1e6, 1),
        "best": round(tokens / min(seconds["loader"]) / 1e6, 1),
        "times_the_floor": round(ratio(seconds["loader"], seconds["floor"]), 2),
    }
    if step and batch_size * seq_len <= 4096:
        train = training_step(loader.batch(0))
        train()
        one = count()
        both = in_turns(
            {"batch": lambda: loader.batch(next(one)), "step": train}, max(3, rounds // 3)
        )
        row["share_of_a_step"] = f"{ratio(both['batch'], both['step']):.5%}"
    return row


def main(
    millions: int = typer.Option(64, help="tokens on disk, in millions"),
    rounds: int = typer.Option(9, min=2),
    step: bool = typer.Option(False, "--step", help="time a training step as well"),
    as_json: bool = typer.Option(False, "--json"),
):
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), millions)
        for batch_size, seq_len in ((16, 256), (32, 512), (64, 1024), (16, 2048)):
            rows.append(race(shards, batch_size, seq_len, rounds, step))
    report = {"machine": machine(), "million_tokens_on_disk": millions, "rows": rows}
    if as_json:
        print(json.dumps(report))
        return
    heads = [
        "batch x tokens",
        "million tokens/s (median)",
        "(best)",
        "time, floor = 1",
        "share of a training step",
    ]
    print(
        f"{report['machine']}\n\n"
        + markdown(
            heads,
            [
                [
                    f"{r['batch_size']} x {r['seq_len']}",
                    r["million_tokens_per_second"],
                    r["best"],
                    r["times_the_floor"],
                    r.get("share_of_a_step", ""),
                ]
                for r in rows
            ],
        )
    )


if __name__ == "__main__":
    typer.run(main)
