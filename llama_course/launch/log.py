"The log of a run: a line of JSON for every step, the boards that are wanted, the progress bar."

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llama_course.launch.boards import open_boards
from llama_course.planner import GPU, GPUS
from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError, disk_errors


def first_lines(
    path: Path,
    steps: int,  # so many lines, one for each step
) -> bytes:
    "The lines of the steps that are done. Raises `UserError` if there are fewer."
    lines = path.read_bytes().splitlines(keepends=True)[:steps] if steps and path.exists() else []
    if len(lines) < steps or lines and not lines[-1].endswith(b"\n"):
        raise UserError(
            f"{path} has {len(lines)} lines, and the run has done {steps} steps: restore it, or"
            " remove the folder to begin anew."
        )
    return b"".join(lines)


class Metrics:
    "The file metrics.jsonl, a line for each step; it begins with those of the steps that are done."

    def __init__(self, path: str | Path, steps: int = 0):
        self.path = Path(path)
        kept = first_lines(self.path, steps)
        with atomic_write(self.path) as file:
            file.write(kept)
        self.file = open(self.path, "ab")

    def write(self, **line: Any) -> None:
        "Adds one line, which the operating system has at once."
        with disk_errors(self.path):
            self.file.write((json.dumps(line) + "\n").encode())
            self.file.flush()

    def sync(self) -> None:
        "Brings all lines to the disk."
        with disk_errors(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class Log:
    "The log of the first rank; the others have none."

    shown = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gib")

    def __init__(
        self,
        folder: Path,
        first: int,  # steps that are done
        steps: int,
        boards: tuple[str, ...] = (),  # tensorboard, wandb, mlflow
        settings: dict | None = None,  # what a board shows beside the curves
    ):
        self.boards = open_boards(boards, folder, first, settings or {})
        self.metrics = Metrics(folder / "metrics.jsonl", first)
        self.bar = tqdm(
            total=steps,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def write(self, line: dict, steps: int | None = None) -> None:  # all, where that has changed
        "One step: into the file, on the bar, to the boards."
        self.bar.total = steps or self.bar.total
        self.metrics.write(**line)
        loss = math.nan if line["loss"] is None else line["loss"]
        speed = f"{line['tokens_per_second']:,.0f} tokens/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {line['lr']:.1e}, {speed}", refresh=False)
        self.bar.update()
        values = {name: line[name] for name in self.shown if line[name] is not None}
        values |= {f"held_out/{name}": bits for name, bits in line.get("held_out", {}).items()}
        for board in self.boards:
            board.write(line["step"], values)

    def close(self) -> None:
        for part in (self.bar, self.metrics, *self.boards):
            part.close()


def gpu_called(name: str) -> GPU | None:
    "The entry of the planner's list for a GPU that calls itself so; None where it is not known."
    found: dict[str, GPU] = {}
    for gpu in GPUS.values():
        short = re.sub(r"-\d+GB$", "", gpu.name).replace("-", " ")
        if re.search(rf"\b{short}\b", name.replace("-", " ")):
            found.setdefault(short, gpu)
    short = max(found, key=len, default="")
    if short == "H100" and re.search("H100 (PCIe|NVL)", name):
        return None  # a smaller chip than the H100 of the list
    return found.get(short)


def own_gpu() -> GPU | None:
    "The same of this process's GPU."
    return gpu_called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_memory_gib() -> float | None:
    "The most memory that this rank has had, in GiB: of the GPU, or of the process."
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
