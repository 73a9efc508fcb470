"A run in its folder: the loop of chapter 15, checkpoints of chapter 18, log, signals, lock."

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from llama_course.fault_tolerance import Checkpoints, Ranks, check_finite, deterministic
from llama_course.launch.budget import TimeBudget
from llama_course.launch.held_out import HeldOut
from llama_course.launch.log import Log
from llama_course.launch.measures import Measures, traced
from llama_course.support.disk import only_one
from llama_course.support.errors import UserError
from llama_course.support.shards import PAYLOAD
from llama_course.support.signals import Stopped, stop_signals
from llama_course.training import Recipe, Step, make_loader, train

FREE = ("micro_batch", "checkpointing")  # like the number of ranks: other memory, the same sums
PAUSE = 10.0  # seconds between checkpoints, where no number of steps is given


def run_identity(
    model: nn.Module,
    shards: dict,  # source -> Shard; the head of a shard holds the checksum of all of it
    recipe: Recipe,
) -> dict:
    "What the checkpoints of a run must agree with: recipe, shapes, text."
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    text = hashlib.sha256()
    for _, shard in sorted(shards.items()):
        with open(shard.path, "rb") as file:
            text.update(file.read(PAYLOAD))
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
    told = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    return {"recipe": told, "model": digest[:16], "text": text.hexdigest()[:16]}


def train_in_folder(
    model: nn.Module,  # is trained in place
    shards: dict,  # source -> Shard
    recipe: Recipe,
    folder: Path | str,
    **choices: Any,  # of `run_training`
) -> None:
    "A run of this process alone, on token shards. Raises what `run_training` raises."
    step_of, loader = Step(model, recipe), make_loader(shards, recipe)
    run_training(step_of, loader, folder, run_identity(model, shards, recipe), **choices)


class Due:
    "When the next checkpoint is due: after every so many steps, or by the clock."

    def __init__(self, every: int | None):
        self.every, self.next, self.began = every, 0.0, 0.0

    def at(self, step: int) -> bool:
        "Whether one is due after this step; by the clock, the first is due at once."
        return time.perf_counter() >= self.next if self.every is None else step % self.every == 0

    def begun(self) -> None:
        "One is being written; until it is known how long that takes, no other is due."
        self.began = time.perf_counter()
        self.next = self.began + PAUSE

    def written(self) -> None:
        "It is there. Writing takes at most a thirtieth of the time: to a slow disk it is seldom."
        if self.began:
            now = time.perf_counter()
            self.next, self.began = max(self.next, now + 30 * (now - self.began)), 0.0


def run_training(
    step_of: Step,  # model, optimizer, recipe
    loader: Any,  # loader.batch(step, rank, ranks)
    folder: Path | str,  # for metrics.jsonl and checkpoints/; all ranks see it
    identity: dict,  # what its checkpoints must agree with, see `run_identity`
    *,
    ranks: Ranks | None = None,  # None: this process alone
    first_weights: Callable[[], None] | None = None,  # sets them, where there is no checkpoint
    save_every: int | None = None,  # steps; None: after the first one, then by the clock
    non_finite: str = "stop",  # or skip: what to do with a step whose loss is no number
    boards: tuple[str, ...] = (),  # tensorboard, wandb, mlflow: where else the log goes
    held_out: HeldOut | None = None,  # is measured
    measure_every: int = 1000,  # steps, and after the last one
    profile: bool = False,  # whether to leave a trace of two steps in trace/
    budget: TimeBudget | None = None,  # of time: the recipe's steps are then its first plan
    locked: bool = False,  # whether the caller holds the folder already
) -> None:
    """Trains to the last step, from the newest whole checkpoint if there is one.

    Raises `Stopped` at a signal, after a checkpoint; `UserError` if the folder is another run's or
    in use.
    """
    folder, ranks = Path(folder), ranks or Ranks()
    with only_one(folder) if ranks.is_first and not locked else nullcontext():
        checkpoints = Checkpoints(
            folder / "checkpoints", step_of.model, step_of.optimizer, identity
        )
        found = checkpoints.load()
        if found is None and first_weights:
            first_weights()
        done, seconds = (found["step"], found["seconds"]) if found else (0, 0.0)
        recipe = step_of.recipe
        steps = budget.steps if budget else recipe.steps
        log = Log(folder, done, steps, boards, asdict(recipe)) if ranks.is_first else None
        measures = Measures(step_of.model, recipe, ranks, held_out, measure_every)
        trace = traced(folder / "trace", ranks) if profile else nullcontext(lambda: None)
        with closing(log) if log else nullcontext(), trace as next_step:
            try:
                _steps(
                    step_of,
                    loader,
                    ranks,
                    checkpoints,
                    log,
                    measures,
                    next_step,
                    Due(save_every),
                    done,
                    seconds,
                    non_finite,
                    budget,
                )
            except UserError:
                checkpoints.finish()  # what is under way has been paid for
                raise


def _steps(
    step_of: Step,
    loader: Any,
    ranks: Ranks,
    checkpoints: Checkpoints,
    log: Log | None,  # of the first rank
    measures: Measures,
    next_step: Callable[[], None],  # tells the profiler
    due: Due,
    done: int,  # steps
    seconds: float,  # that they took
    non_finite: str,
    budget: TimeBudget | None,
) -> None:
    "The steps that are left. Raises `Stopped` after the one in which a rank was asked to stop."
    recipe, parent = step_of.recipe, os.getppid()
    is_torchruns = "TORCHELASTIC_RUN_ID" in os.environ
    start = time.perf_counter() - seconds
    with stop_signals() as asked, deterministic():
        if budget:
            lines = budget.train(step_of.model, loader, recipe, step_of, done, seconds)
        else:
            lines = train(step_of.model, loader, recipe, step_of, done, ranks.rank, ranks.size)
        for line in lines:
            step, seconds = line["step"], round(time.perf_counter() - start, 3)
            if not asked and is_torchruns and os.getppid() != parent:
                asked.append(signal.SIGTERM)  # torchrun is dead, and nobody watches this rank
            line["loss"], stop, save = ranks.agree(line["loss"], bool(asked), due.at(step))
            line = check_finite(line | measures.of(line) | {"seconds": seconds}, non_finite)
            line |= measures.held_out_of(step)
            next_step()
            steps = budget.steps if budget else recipe.steps
            if log:
                log.write(line, steps)
            checkpoints.finish(wait=False)
            if checkpoints.future is None:
                due.written()
            last = step == steps
            if save or stop or last:
                if log:
                    log.metrics.sync()  # first: a checkpoint without its lines could not go on
                checkpoints.save(step, seconds)
                due.begun()
            if stop and not last:
                checkpoints.finish()
                number = asked[0] if asked else signal.SIGTERM
                raise Stopped(number, f"stopped after step {step}, which is saved")
        checkpoints.finish()
