"The plan file: a run as `llama-course plan --out` writes it and the trainer takes it."

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from llama_course.model import LlamaConfig
from llama_course.planner import Layout
from llama_course.support.disk import read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict, option, options

PLAN_FORMAT_NUMBER = 1
PLAN_FORMAT = f"llama_course plan {PLAN_FORMAT_NUMBER}"


@options
class RunPlan:
    "One run: its model, how a step is spread over the ranks, and what is expected of it."

    model: LlamaConfig = option(help="the model's shape")
    gpus: int = option(help="ranks; data * tensor", ge=1)
    data: int = option(help="ranks that see different sequences (FSDP)", ge=1)
    tensor: int = option(help="ranks that share each matrix", ge=1)
    sequence: bool = option(help="sequence parallelism, where there is tensor parallelism")
    micro_batch: int = option(help="sequences at a time in each data rank", ge=1)
    accumulate: int = option(help="micro-batches that are added up for a step", ge=1)
    seq_len: int = option(help="T, tokens per sequence", ge=1)
    checkpointing: Literal["none", "selective", "full"] = option(help="of activations")
    steps: int = option(help="training steps", ge=1)
    precision: Literal["float32", "bfloat16"] = option("bfloat16", "of matrix products")
    compile: bool = option(False, "each block by torch.compile")
    gpu: str | None = option(None, "the accelerator that was planned for")
    expected_memory_gib: dict[str, float] = option(dict, "part -> GiB of one GPU at its fullest")
    expected_seconds: dict[str, float] = option(dict, "part -> seconds of a step")
    format: str = option(PLAN_FORMAT, "of this file")

    def __post_init__(self):
        if self.data * self.tensor != self.gpus:
            raise UserError(
                f"a plan of {self.gpus} ranks cannot be {self.data} data x {self.tensor} tensor:"
                " make gpus their product."
            )

    @property
    def batch_size(self) -> int:
        "Sequences per step, of all ranks together."
        return self.data * self.micro_batch * self.accumulate

    @property
    def layout(self) -> Layout:
        "How a step is spread, as the planner knows it."
        return Layout(
            self.data,
            self.tensor,
            self.sequence,
            self.micro_batch,
            self.checkpointing,
            self.accumulate,
        )


def write_plan(plan: RunPlan, path: str | Path) -> None:
    "Writes the plan, whole or not at all."
    write_json(path, {"format": PLAN_FORMAT} | asdict(plan))


def read_plan(path: str | Path) -> RunPlan:
    "The plan of a file. Raises `UserError` if it is missing, no plan, or has a field unknown here."
    values: Any = read_json(path)
    written = values.get("format") if isinstance(values, dict) else None
    found = re.fullmatch(r"llama_course plan (\d+)", str(written))
    if not found:
        raise UserError(f"{path} is no plan: `llama-course plan --out` makes one.")
    if int(found[1]) > PLAN_FORMAT_NUMBER:
        raise UserError(
            f"{path} was written by a later llama_course (format {found[1]}, this one reads up to"
            f" {PLAN_FORMAT_NUMBER}): update, or plan again."
        )
    return from_dict(RunPlan, values | {"format": PLAN_FORMAT}, str(path))
