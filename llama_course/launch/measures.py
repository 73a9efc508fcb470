"What is measured of a run's steps: memory, MFU, held-out text, and a trace for a profiler."

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule

from llama_course.fault_tolerance import Ranks
from llama_course.launch.held_out import HeldOut
from llama_course.launch.log import own_gpu, peak_memory_gib
from llama_course.planner import mfu
from llama_course.support.disk import atomic_write
from llama_course.training import Recipe

WAIT, WARM, ACTIVE = 2, 1, 2  # steps: what is compiled or allocated first is not typical


class Measures:
    "Memory, model FLOPs utilization and held-out bits per byte of a step."

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        ranks: Ranks,
        held_out: HeldOut | None = None,
        every: int = 1000,  # steps between measurements of held-out text
    ):
        self.model, self.recipe, self.ranks, self.gpu = model, recipe, ranks.world, own_gpu()
        self.held_out, self.every = held_out, every

    def of(self, line: dict) -> dict:
        "`mfu` and `memory_gib` of a step; None where this machine cannot tell."
        share, memory = None, peak_memory_gib()
        config = getattr(self.model, "config", None)
        if self.gpu and config:
            speed = line["tokens_per_second"] / self.ranks
            share = mfu(config, speed, self.gpu, self.recipe.seq_len)
        return {"mfu": share, "memory_gib": memory and round(memory, 3)}

    def held_out_of(self, step: int) -> dict:  # {"held_out": {source: bits per byte}}, or nothing
        "The measurement that is due after this step; all ranks come to the same answer."
        is_due = step % self.every == 0 or step == self.recipe.steps
        if self.held_out is None or not self.held_out.texts or not is_due:
            return {}
        return {"held_out": self.held_out.measure(self.model)}


@contextmanager
def traced(
    folder: Path,  # gets rank-0.json, for chrome://tracing or Perfetto
    ranks: Ranks,
) -> Iterator[Callable[[], None]]:  # to be called after each step
    "Records the fourth and fifth step of this process on the first rank."
    if not ranks.is_first:
        yield lambda: None
        return

    def leave(done: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(beside := folder / ".rank-0.json.part"))
        with atomic_write(folder / "rank-0.json") as file:
            file.write(beside.read_bytes())
        beside.unlink()

    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    when = schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1)
    with profile(activities=kinds, schedule=when, on_trace_ready=leave) as running:
        yield running.step
