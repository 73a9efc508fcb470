"""A series of small LLaMAs, trained to the same law: loss against parameters and tokens.

    python benchmarks/miniseries.py [--folder runs/miniseries] [--until 320] [--sizes 0-3]
                                    [--minutes 50] [--results nbs/data/miniseries.csv] [--quick]

Eight shapes from 0.1 to 12 million parameters (embeddings and output layer not counted) read the
Python sources of the packages of requirements.lock, 5, 10, 20, ... 320 tokens per parameter. Each
held-out loss is a value at the end of a decay: the learning rate is constant up to four fifths of a
point's tokens and falls in a straight line to zero in the last fifth; then the run goes on from
where the decay began (warmup, stable, decay). Beside the series stand its checks: a grid of
learning rates, separate runs with a cosine, and runs that read few texts many times.

The same command goes on with what is not yet there: each finished point is a row of the CSV at
once, the rest lies in checkpoints. Losses depend on the seed alone; several processes may share the
work, one run each at a time, with one thread. `--quick` repeats the smallest corner in about ten
minutes and compares it with the rows that are committed.
"""

import csv
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path

import numpy as np
import torch
import typer
from _package_texts import HELD_OUT, prepare
from _shared import markdown

from llama_course.fault_tolerance import Checkpoints, deterministic
from llama_course.launch.machine import can_compile, has_bfloat16
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import cosine_lr
from llama_course.support.disk import only_one
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard
from llama_course.support.signals import stop_signals
from llama_course.training import Recipe, Step, bits_per_byte, make_loader

RESULTS = Path(__file__).parents[1] / "nbs" / "data" / "miniseries.csv"
# layers, width; heads have 32, the feed-forward part 8/3 of the width, rounded up to 32
SHAPES = ((2, 64), (2, 96), (4, 96), (4, 128), (5, 160), (5, 224), (6, 288), (7, 384))
POINTS = (5, 10, 20, 40, 80, 160, 320)  # tokens per parameter
CONTEXT, BATCH, WARMUP = 128, 16, 64  # tokens; sequences per step; steps
BUDGETS = [6e12 * 4**k for k in range(10)]  # FLOPs, by 6ND; the last holds all points
GRIDS = (0, 1, 3)  # the sizes whose learning rate is searched
DECAY = 0.2  # of a point's steps
PAIR = 12.0  # tokens per parameter after which the third size is as good as the first after 320
EPOCHS = 4  # no run reads a document more often, but for those that measure what that does
SAVED = 60.0  # seconds between checkpoints


@dataclass(frozen=True)
class Run:
    "One run of the plan; its points are on its way."

    layers: int
    dim: int
    seed: int = 0
    rate: float = 1.0  # times that of `peak`
    role: str = "series"  # or "grid", "cosine", "repeat", "pair"
    limit: int = 0  # tokens of the texts that it reads again and again; 0: all texts

    @property
    def config(self) -> LlamaConfig:
        wide = -(-8 * self.dim // 3 // 32) * 32
        return LlamaConfig(
            self.dim,
            self.layers,
            self.dim // 32,
            vocab_size=1024,
            hidden_dim=wide,
            max_seq_len=4 * CONTEXT,
        )

    @property
    def parameters(self) -> int:
        "Without embeddings and output layer."
        c = self.config
        each = 4 * c.dim**2 + 3 * c.dim * c.hidden_dim + 2 * c.dim
        return c.n_layers * each + c.dim

    @property
    def lr(self) -> float:
        return round(self.rate * peak(self.dim), 7)

    @property
    def name(self) -> str:
        rest = f"-limit{self.limit}" if self.limit else ""
        return f"{self.role}-{self.layers}x{self.dim}-lr{self.lr:g}-seed{self.seed}{rest}"

    def steps(self, point: float) -> int:
        return round(point * self.parameters / (BATCH * CONTEXT))


def peak(dim: int) -> float:
    "The learning rate of a width: in inverse proportion, as the grid of three sizes says."
    return 0.64 / dim


def plan(until: float, sizes: list[int]) -> Iterator[tuple[Run, tuple]]:  # a run, its points
    """What is to be done, in the order of its use.

    Each pass takes all sizes to one budget of FLOPs, four times the last: tokens per parameter then
    go down as fast as budgets go up, and after any pass sizes can be compared at equal budgets.
    Other seeds follow one pass later.
    """
    shapes = [(number, *shape) for number, shape in enumerate(SHAPES) if number in sizes]
    for budget in BUDGETS:
        passed = [
            (number, layers, dim, points)
            for number, layers, dim in shapes
            if (points := points_within(budget, Run(layers, dim), until))
        ]
        for _, layers, dim, points in passed:
            yield Run(layers, dim), points
        for number, layers, dim, points in passed:
            for factor in (0.5, 2.0, 0.25) if number in GRIDS else ():
                yield Run(layers, dim, rate=factor, role="grid"), points[: 2 - (number > 0)]
            if number == 0 and 40 in points:
                yield from checks(layers, dim)
            if number == 2 and 20 in points:
                yield Run(layers, dim, role="pair"), (PAIR,)
            early = points_within(budget / 4, Run(layers, dim), until)
            for seed in (1, 2) if number < 4 and early else ():
                yield Run(layers, dim, seed), early


def points_within(budget: float, run: Run, until: float) -> tuple:
    "The points whose training takes no more FLOPs than the budget."
    return tuple(p for p in POINTS if p <= until and 6 * p * run.parameters**2 <= budget)


def checks(layers: int, dim: int) -> Iterator[tuple[Run, tuple]]:
    "Runs of their own with a cosine; runs that read the same texts again and again."
    for point in (10, 40):
        yield Run(layers, dim, role="cosine"), (point,)
    for epochs in (4, 16, 64):  # in what a point of 40 reads
        limit = round(40 * Run(layers, dim).parameters / epochs)
        yield Run(layers, dim, role="repeat", limit=limit), (40,)


COLUMNS = [
    *("role", "layers", "dim", "parameters", "all_parameters", "seed", "lr"),
    *("tokens_per_parameter", "tokens", "unique_tokens", "epochs", "loss", "bits_per_byte"),
    *(f"loss_{name}" for name in HELD_OUT),
    *("cpu_seconds", "precision", "compiled", "texts", "tokenizer", "torch"),
]
HEAD = f"""# Written by benchmarks/miniseries.py; how, is said there. A row is the end of one decay.
# Batches of {BATCH} sequences of {CONTEXT} tokens, vocabulary 1024, AdamW 0.9/0.95, weight decay
# 0.1, clipping at 1, {WARMUP} steps of warmup. parameters: without embeddings and output layer.
# loss: nats per token of the held-out packages together, and of each. cpu_seconds: of training,
# the median step times their number. texts, tokenizer: fingerprints.
"""


def rows(path: Path) -> list[dict]:
    "The rows that are there."
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def append(path: Path, row: dict) -> None:
    "One line more, by a single write: another process may do the same."
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "" if path.exists() else HEAD + ",".join(COLUMNS) + "\n"
    line = ",".join(str(row[name]) for name in COLUMNS) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (head + line).encode())
        os.fsync(file)
    finally:
        os.close(file)


class Series:
    "The texts, the results so far, and what one run of the plan does."

    def __init__(self, kept: Path, folder: Path, results: Path, asked: list, ends: float):
        self.folder, self.results, self.asked, self.ends = folder, results, asked, ends
        texts = kept / "texts"
        with nullcontext() if (texts / "texts.json").exists() else only_one(texts):
            self.tokenizer, self.train, self.held_out = prepare(texts)

    @property
    def stopped(self) -> bool:
        return bool(self.asked) or time.monotonic() > self.ends

    def missing(self, run: Run, points: tuple) -> list[float]:
        "The points of the run that the results do not have, in rising order."
        there = {
            float(row["tokens_per_parameter"])
            for row in rows(self.results)
            if (row["role"], int(row["layers"]), int(row["dim"])) == (run.role, run.layers, run.dim)
            and (int(row["seed"]), float(row["lr"])) == (run.seed, run.lr)
            and (not run.limit or int(row["unique_tokens"]) == run.limit)
        }
        return sorted(set(points) - there)

    def texts(self, run: Run) -> Shard:
        "What the run reads: all, or the first tokens, which are a random sample of the documents."
        if not run.limit:
            return self.train
        part = Shard(self.train.path, self.tokenizer)
        part.tokens = part.tokens[: run.limit + 1]
        return part

    def work(self, run: Run, points: tuple) -> None:
        "Goes through the points that are missing, unless another process is at this run."
        if self.stopped or not self.missing(run, points):
            return
        try:
            with only_one(self.folder / run.name):
                self.train_to(run, self.missing(run, points))
        except UserError as error:
            if "in use" not in str(error):
                raise

    def train_to(self, run: Run, points: list[float]) -> None:
        "The run to the end of each point's decay, and back to where that decay began."
        recipe = Recipe(
            run.steps(points[-1]),
            {"packages": 1.0},
            batch_size=BATCH,
            seq_len=CONTEXT,
            lr=run.lr,
            warmup=WARMUP,
            seed=run.seed,
            precision="bfloat16" if has_bfloat16() else "float32",
            compile=can_compile(),
            attention="rows",
        )
        torch.compiler.reset()
        torch.manual_seed(run.seed)
        model = Llama(run.config)
        step_of = Step(model, recipe)
        loader = make_loader({"packages": self.texts(run)}, recipe)
        epochs = loader.epochs(recipe.steps)["packages"]
        if epochs > EPOCHS and run.role != "repeat":
            raise UserError(
                f"{run.name} would read the texts {epochs:.1f} times: {EPOCHS} at most."
            )
        same = replace(recipe, steps=1)  # of all parts of a run
        identity = {"recipe": asdict(same), "run": asdict(run), "text": self.train.digest}
        saved = Checkpoints(self.folder / run.name / "trunk", model, step_of.optimizer, identity)
        first = (saved.load() or {"step": 0})["step"]
        clock, taken = time.monotonic(), []

        def one_step(step: int, lr: float) -> None:
            began = time.process_time()
            step_of(loader.batch(step), lr)
            taken.append(time.process_time() - began)

        for point in points:
            steps = run.steps(point)
            turn = round((1 - DECAY) * steps) if run.role != "cosine" else 0
            if first > turn:
                raise UserError(f"{saved.folder} is beyond {turn} steps: remove the folder.")
            for step in range(first, turn):  # the trunk
                one_step(step, run.lr * min(1, (step + 1) / WARMUP))
                first = step + 1
                if self.stopped:
                    break
                if time.monotonic() > clock + SAVED:
                    saved.save(first)
                    clock = time.monotonic()
            saved.save(first)
            saved.finish()
            if self.stopped:
                return
            for step in range(turn, steps):  # the branch
                if run.role == "cosine":
                    lr = cosine_lr(step, steps, run.lr, WARMUP)
                else:
                    lr = run.lr * (steps - step) / (steps - turn)
                one_step(step, lr)
                if self.stopped:
                    return
            seconds = steps * float(np.median(taken))
            self.note(run, recipe, model, point, loader.epochs(steps)["packages"], seconds)
            saved.load()

    def note(self, run, recipe, model, point, epochs, seconds) -> None:
        "Prices the held-out packages and writes the row."
        model.eval()
        bits = {
            name: bits_per_byte(model, shard.tokens, shard.text_bytes, CONTEXT)
            for name, shard in self.held_out.items()
        }
        model.train()
        nats = {n: log(2) * bits[n] * s.text_bytes for n, s in self.held_out.items()}
        count = {n: len(s) - 1 for n, s in self.held_out.items()}
        tokens = run.steps(point) * BATCH * CONTEXT
        size = sum(s.text_bytes for s in self.held_out.values())
        row = {
            **asdict(run),
            "parameters": run.parameters,
            "all_parameters": sum(p.numel() for p in model.parameters()),
            "lr": run.lr,
            "tokens_per_parameter": point,
            "tokens": tokens,
            "unique_tokens": min(tokens, run.limit or len(self.train)),
            "epochs": round(epochs, 4),
            "loss": round(sum(nats.values()) / sum(count.values()), 5),
            "bits_per_byte": round(sum(nats.values()) / log(2) / size, 5),
            **{f"loss_{n}": round(nats[n] / count[n], 5) for n in nats},
            "cpu_seconds": round(seconds, 1),
            "precision": recipe.precision,
            "compiled": int(recipe.compile),
            "texts": self.train.digest[:12],
            "tokenizer": self.tokenizer.fingerprint[:12],
            "torch": torch.__version__.split("+")[0],
        }
        if run.role in ("series", "pair") and run.seed == 0:  # what `miniseries_life.py` serves
            folder = self.folder / run.name / f"at-{point:g}"
            model.save(folder)
            shutil.copy(self.tokenizer.path, folder / "tokenizer.model")
        append(self.results, row)
        print(f"{run.name} {point:g}: {row['loss']} ({seconds:.0f} s)", file=sys.stderr, flush=True)


QUICK = ((Run(2, 64), (5, 10, 20)), (Run(2, 96), (5,)))
NEAR = 0.02  # nats: several times what a seed changes, and less than half of a step of the series


def compare(committed: Path, here: Path) -> bool:
    "Prints the losses of both, side by side; whether they agree."
    known = {
        tuple(row[name] for name in ("role", "layers", "dim", "seed", "tokens_per_parameter")): row
        for row in rows(committed)
    }
    table, agree = [], True
    for row in rows(here):
        key = tuple(row[n] for n in ("role", "layers", "dim", "seed", "tokens_per_parameter"))
        if key not in known:
            continue
        then, now = float(known[key]["loss"]), float(row["loss"])
        texts = "the same" if known[key]["texts"] == row["texts"] else "other"
        agree = agree and abs(now - then) <= NEAR
        name = f"{row['layers']} layers of {row['dim']}"
        table.append([name, row["tokens_per_parameter"], then, now, f"{now - then:+.4f}", texts])
    heads = ["", "tokens per parameter", "committed", "here", "difference", "texts"]
    print(markdown(heads, table))
    return agree and bool(table)


def main(
    folder: Path = Path("runs/miniseries"),
    results: Path = RESULTS,
    until: float = typer.Option(POINTS[-1], help="tokens per parameter"),
    sizes: str = typer.Option(f"0-{len(SHAPES) - 1}", help="numbers of shapes, from 0: 0-3"),
    minutes: float = typer.Option(float("inf"), help="after which it stops; it can go on later"),
    quick: bool = typer.Option(False, "--quick", help="the smallest corner again, compared"),
):
    torch.set_num_threads(1)
    low, _, high = sizes.partition("-")
    wanted = list(range(int(low), int(high or low) + 1))
    with stop_signals() as asked, deterministic(), tempfile.TemporaryDirectory() as scratch:
        ends = time.monotonic() + 60 * minutes
        if not quick:
            series = Series(folder, folder, results, asked, ends)
            for run, points in plan(until, wanted):
                series.work(run, points)
            return
        again = Path(scratch) / "quick.csv"
        series = Series(folder, Path(scratch), again, asked, ends)
        for run, points in QUICK:
            series.work(run, points)
        if not compare(results, again):
            sys.exit(f"the losses differ by more than {NEAR} nats.")


if __name__ == "__main__":
    typer.run(main)
