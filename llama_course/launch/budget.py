"A run that has so many seconds: its number of steps is revised while it learns how fast it is."

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from llama_course.optimizer import cosine_lr
from llama_course.training import Recipe, Step, train

LOOK = 0.02  # of the budget, or of the steps that are left: between two looks at the clock
INTERVALS = 3  # the rate is the median between so many: a standstill is no rate
TOLERANCE = 0.02  # of the budget: a plan that ends so near to it stays
OVERTIME = 0.05  # of the budget: so much more, for the end of the schedule after a standstill
WARMUP = 0.05  # of all steps

Revision = tuple[int, int]  # after so many steps, all steps of the run
Curve = Callable[[Any, int, float, int], float]  # step, steps, lr, warmup: the rate of a step


def warmup_of(steps: int) -> int:
    "Steps until the peak of the learning rate."
    return max(1, round(WARMUP * steps))


class Schedule:
    """The learning rate of each step of a run whose number of steps was revised.

    It depends on the recipe and the revisions alone, and so it is the same after a kill. More steps
    than planned: the rate is that of the longer run at this step, as if it had been planned. Fewer:
    it goes on from where it is, and falls faster.
    """

    def __init__(self, recipe: Recipe, revisions: list[Revision], curve: Curve = cosine_lr) -> None:
        self.recipe, self.curve = recipe, curve
        self.parts: list[tuple[int, float, int]] = [(0, 0.0, recipe.steps)]
        for after, steps in revisions:
            self.add(after, steps)

    @property
    def steps(self) -> int:
        "All steps of the run, as planned now."
        return self.parts[-1][2]

    def add(self, after: int, steps: int) -> None:
        "After so many steps, the run is planned anew."
        reached = self._place(self.parts[-1], after) / self.steps  # as a share of the schedule
        self.parts.append((after, min(float(after), reached * steps), steps))

    def lr(self, step: int) -> float:  # from 0
        "The learning rate of one step."
        part = next(part for part in reversed(self.parts) if part[0] <= step)
        steps = part[2]
        planned = self.recipe.warmup if part is self.parts[0] else warmup_of(steps)
        place: Any = self._place(part, step + 1)
        return self.curve(place - 1, steps, self.recipe.lr, planned)

    @staticmethod
    def _place(part: tuple[int, float, int], done: int) -> float:
        "Where in a schedule of that length the run is after so many steps."
        after, place, steps = part
        return place + (done - after) * (steps - place) / max(steps - after, 1)


class TimeBudget:
    "Trains until the time is up, along one whole schedule."

    def __init__(
        self,
        recipe: Recipe,  # with the number of steps that was planned first
        seconds: float,
        revisions: list[Revision],  # of the run so far
        note: Callable[[list[Revision]], None],  # writes them down, before one takes effect
        clock: Callable[[], float] = time.perf_counter,
        curve: Curve = cosine_lr,
    ) -> None:
        self.seconds, self.clock, self.note = seconds, clock, note
        self.revisions = list(revisions)
        self.schedule = Schedule(recipe, self.revisions, curve)
        self._began = 0.0
        self._looks: deque[tuple[float, int]] = deque(maxlen=INTERVALS + 1)  # seconds, steps done

    @property
    def steps(self) -> int:
        "All steps of the run, as planned now."
        return self.schedule.steps

    def train(
        self,
        model: nn.Module,
        loader: Any,
        recipe: Recipe,
        step_of: Step,
        done: int,  # steps
        seconds: float,  # that they took
    ) -> Iterator[dict]:
        "The lines of chapter 15's loop, to the last step of the last revision."
        self._began = self.clock() - seconds
        self._looks.clear()  # the first step may compile: the rate is measured after it
        while done < self.steps:
            steps = self.steps
            planned = replace(recipe, steps=steps)
            for line in train(model, loader, planned, step_of, done, lr_of=self.schedule.lr):
                done = line["step"]
                yield line
                self._look(done)
                if self.steps != steps:
                    break

    def _look(self, done: int) -> None:
        "Plans anew, where the run would end too early or too late."
        now = self.clock() - self._began
        if self._looks:
            before, step = self._looks[-1]
            few = done - step < LOOK * (self.steps - done)
            if few and now - before < LOOK * self.seconds:
                return
        self._looks.append((now, done))
        if len(self._looks) < 2 or self.revisions and done <= self.revisions[-1][0]:
            return  # what was decided before a kill is not decided again
        left, pairs = self.seconds - now, itertools.pairwise(self._looks)
        rate = statistics.median((b - a) / (n - m) for (a, m), (b, n) in pairs)  # seconds per step
        off = (self.steps - done) * rate - left
        if done < self.steps and abs(off) > TOLERANCE * self.seconds:
            least = max(1, min(math.ceil(done / 20), int(OVERTIME * self.seconds / rate)))
            steps = done + max(least, round(left / rate))
            if steps < self.steps or steps > self.steps and left > 0:  # in overtime only fewer
                self.note([*self.revisions, (done, steps)])
                self.revisions.append((done, steps))
                self.schedule.add(done, steps)
