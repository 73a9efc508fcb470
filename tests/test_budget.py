"A run that has so many seconds, on machines that change their mind; the clock is not real."

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama_course.data import Document
from llama_course.fault_tolerance import deterministic
from llama_course.files.run import RunFolder
from llama_course.launch.budget import Schedule, TimeBudget, warmup_of
from llama_course.launch.demo import budget_of
from llama_course.launch.run import run_identity, run_training
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import cosine_lr
from llama_course.support.shards import write_shard
from llama_course.training import Recipe, Step, make_loader, train

SECONDS = 180.0


def planned(steps):
    return Recipe(steps, {"x": 1.0}, warmup=warmup_of(steps))


class Machine:
    "A clock that steps move on, and the learning rates they were made with."

    def __init__(self, seconds_of, seconds=SECONDS, compiling=0.0):
        self.now, self.seconds_of, self.lrs = 1000.0, seconds_of, []
        self.compiling, self.seconds, self.noted = compiling, seconds, []

    def __call__(self, batch, lr):  # in place of a `Step`
        self.now += self.seconds_of(self.now - 1000.0) + self.compiling
        self.compiling = 0.0
        self.lrs.append(lr)
        return 1.0, 1.0

    def batch(self, step, rank, ranks):  # in place of a loader
        return None

    def run(self, steps):
        "From the first plan to the end: the budget."
        recipe = planned(steps)
        budget = TimeBudget(recipe, self.seconds, [], self.noted.append, lambda: self.now)
        lines = list(budget.train(None, self, recipe, self, 0, 0.0))
        assert [line["step"] for line in lines] == [*range(1, budget.steps + 1)]
        return budget


SLOW, FAST = 5.0, 0.05
MACHINES = {
    "as measured": (lambda t: FAST, FAST),
    "a little slower than measured": (lambda t: 1.3 * FAST, FAST),
    "busy while it was measured": (lambda t: FAST, SLOW),
    "busy for the first third": (lambda t: SLOW if t < 60 else FAST, SLOW),
    "busy for nine tenths": (lambda t: SLOW if t < 162 else FAST, SLOW),
    "busy from the first third on": (lambda t: FAST if t < 60 else SLOW, FAST),
    "busy at the very end": (lambda t: FAST if t < 165 else SLOW, FAST),
    "busy now and then": (lambda t: FAST if t % 40 < 20 else 6 * FAST, 3 * FAST),
    "busy all the time": (lambda t: SLOW, FAST),
    "slower and slower": (lambda t: FAST * (1 + t / 20), FAST),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("compiling", [0.0, 30.0])
def test_it_ends_near_its_time_with_its_schedule_whole(name, compiling):
    seconds_of, measured = MACHINES[name]
    machine = Machine(seconds_of, compiling=compiling)
    budget = machine.run(round(SECONDS / measured))
    took = machine.now - 1000.0
    assert 0.9 * SECONDS <= took <= 1.08 * SECONDS + SLOW * (seconds_of(took) == SLOW)
    peak, lrs = budget.schedule.recipe.lr, machine.lrs
    assert max(lrs) <= peak and max(lrs) >= 0.95 * peak
    assert lrs[-1] == pytest.approx(0.1 * peak, rel=1e-9)  # the end of the cosine
    assert machine.noted[-1:] == ([budget.revisions] if budget.revisions else [])


def test_a_plan_that_holds_is_never_revised():
    machine = Machine(lambda t: FAST)
    recipe = machine.run(3600).schedule.recipe
    assert machine.noted == []
    assert machine.lrs == [cosine_lr(n, 3600, recipe.lr, recipe.warmup) for n in range(3600)]


def test_a_busy_beginning_does_not_cost_the_model():
    "36 steps were planned; nearly all of what the rest of the time can hold are made."
    machine = Machine(lambda t: SLOW if t < 60 else FAST)
    assert machine.run(36).steps > 0.85 * 120 / FAST


def test_a_standstill_leaves_the_schedule_its_end():
    stopped = iter([True])
    machine = Machine(lambda t: 400.0 if t > 90 and next(stopped, False) else FAST)
    budget = machine.run(3600)
    after = np.array(machine.lrs[budget.revisions[-1][0] :])
    assert len(after) > 50 and (np.diff(after) <= 0).all() and machine.now < 1000 + 90 + 400 + 15


def test_slower_machines_bend_the_schedule_without_a_jump():
    machine = Machine(lambda t: FAST if t < 60 else 0.5)
    budget = machine.run(3600)
    first, steps = budget.revisions[0]
    assert steps < 3600
    assert machine.lrs[first] == pytest.approx(machine.lrs[first - 1], rel=0.02)
    assert (np.diff(machine.lrs[first:]) < 0).all()


def test_a_schedule_is_what_its_revisions_say():
    recipe, revisions = planned(36), [(12, 3000), (1500, 1600), (1550, 1551)]
    whole = Schedule(recipe, revisions)
    assert whole.steps == 1551
    assert [whole.lr(n) for n in range(12)] == [
        cosine_lr(n, 36, recipe.lr, recipe.warmup) for n in range(12)
    ]
    for n in range(12, 1500):  # longer: as if it had been planned
        assert whole.lr(n) == cosine_lr(n, 3000, recipe.lr, 150)
    grown = Schedule(recipe, [])
    for after, steps in revisions:
        grown.add(after, steps)
    assert [grown.lr(n) for n in range(1551)] == [whole.lr(n) for n in range(1551)]
    own = Schedule(recipe, revisions, lambda step, steps, lr, warmup: lr * step / steps)
    shares = np.array([11 / 36, 12 / 3000, 1499 / 3000])  # another curve, revised at the same steps
    assert [own.lr(n) for n in (11, 12, 1499)] == pytest.approx(recipe.lr * shares)


# ---- with a model, in a folder


class Bytes:
    vocab_size, fingerprint, bos_id, eos_id = 256, "0" * 16, 0, 1

    def encode(self, text, bos=False, eos=False):
        return [0] * bos + list(text.encode()) + [1] * eos


class Timed(Step):
    "A step that moves a clock, and a process that dies at some of them."

    now, dies = 0.0, ()

    def __call__(self, batch, lr):
        Timed.now += SLOW if Timed.now < 60 else 1.5 if Timed.now < 130 else 4.0
        if Timed.dies and Timed.now > Timed.dies[0]:
            Timed.dies = Timed.dies[1:]
            raise RuntimeError("killed")
        return super().__call__(batch, lr)


def tiny():
    torch.manual_seed(0)
    return Llama(LlamaConfig(dim=8, n_layers=1, n_heads=1, vocab_size=256, max_seq_len=16))


def test_after_kills_it_is_the_run_that_its_revisions_describe(tmp_path, monkeypatch):
    "To the last bit: weights and losses are those of an unbroken run with the same revisions."
    text = Document("x", "a", (tmp_path / "x").as_posix() * 99)
    shards = {"x": write_shard(tmp_path / "x.tokens", [text], Bytes())}
    recipe = replace(planned(36), batch_size=2, seq_len=8)
    clock = lambda: Timed.now
    monkeypatch.setattr(Timed, "dies", (40.0, 90.0, 120.0, 170.0))
    monkeypatch.setattr(Timed, "now", 0.0)
    monkeypatch.setattr("llama_course.launch.run.time", SimpleNamespace(perf_counter=clock))
    kills = 0
    while True:
        run, model = RunFolder(tmp_path / "run"), tiny()
        run.note(settings={"minutes": 3.0})
        budget = budget_of(run, recipe)
        budget.clock = clock
        parts = Timed(model, recipe), make_loader(shards, recipe), run.path
        identity = run_identity(model, shards, recipe)
        try:
            run_training(*parts, identity, budget=budget, save_every=7)
            break
        except RuntimeError:
            kills += 1
    revisions = [tuple(revision) for revision in RunFolder(run.path).facts.revisions]
    assert kills == 4 and len(revisions) > 1 and budget.steps > 40
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    other, schedule = tiny(), Schedule(recipe, revisions)
    long = replace(recipe, steps=schedule.steps)
    with deterministic():
        found = list(train(other, make_loader(shards, recipe), long, lr_of=schedule.lr))
    for name in ("step", "loss", "lr", "grad_norm"):
        assert [line[name] for line in lines] == [line[name] for line in found]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert lines[-1]["lr"] == pytest.approx(0.1 * recipe.lr)


def test_steps_that_were_asked_for_are_no_budget(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.note(settings={"minutes": None, "steps": 9})
    assert budget_of(run, planned(9)) is None
