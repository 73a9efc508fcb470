"""The course's own right answers on many seeds: `python tools/seeds.py 08`, or `make seeds N=08`.

Each right answer of each exercise must have full points on every seed, whatever the notebook has
set: the settings take turns from seed to seed. The exit status is 1 if one of them is refused.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.learner import check
from llama_course.classroom.surroundings import neutral

SETTINGS: dict[str, Callable] = {
    "nothing set": lambda: None,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "inference mode": lambda: torch.inference_mode().__enter__(),
    "seeds": lambda: (torch.manual_seed(7), random.seed(7), np.random.seed(7)),
    "threads": lambda: torch.set_num_threads(3),
    "bfloat16 products": lambda: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    "device": lambda: torch.set_default_device("meta"),
    "errors of NumPy": lambda: np.seterr(all="raise"),
}


def main() -> int:
    "A line for each exercise; 1 if a right answer is refused."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="chapters (08) or exercises (rms_norm); none: all")
    parser.add_argument("--seeds", type=int, default=50, help="how many, from 0 on")
    options = parser.parse_args()
    refused = tried = 0
    for name, task in sorted(load_exercises().items(), key=lambda item: item[1].chapter):
        if options.which and not {task.chapter[:2], task.chapter, name} & set(options.which):
            continue
        began, wrong = time.monotonic(), []
        for seed in range(options.seeds):
            setting = list(SETTINGS)[seed % len(SETTINGS)]
            for answer in task.rights:
                with neutral():  # which puts everything back
                    SETTINGS[setting]()
                    report = check(answer, name, seed)
                tried += 1
                if not report.passed or report.messages:
                    wrong.append(f"seed {seed}, {setting}, {answer}: {report.messages[:1]}")
        refused += len(wrong)
        print(f"{task.chapter:20} {name:24} {time.monotonic() - began:5.0f} s", flush=True)
        for line in wrong[:5]:
            print(f"    {line}", flush=True)
    print(f"{refused} of {tried} right answers are refused")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
