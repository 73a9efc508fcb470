"The run folder: what every kind of training leaves behind, and what every other command reads."

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_course.support.disk import read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict, option, options
from llama_course.training import Recipe

RUN_FORMAT_NUMBER = 2  # of the format that is written here; 1 is llama_course 0.1's
RUN_FORMAT = f"llama_course run {RUN_FORMAT_NUMBER}"
RENAMED = {"seconds_a_step": "seconds_per_step"}  # format 1 -> 2


@options
class RunFacts:
    "What run.json holds; an older one lacks some of it."

    format: str = option(RUN_FORMAT, "of this file")
    kind: str | None = option(None, "pretrain, train or finetune: the command that made it")
    version: str | None = option(None, "of llama_course")
    settings: dict = option(dict, "what the command was asked for")
    tokenizer: str | None = option(None, "the fingerprint of the tokenizer's file")
    template: str | None = option(None, "how a finetuned model is asked")
    weights: str | None = option(None, "what a finetuning began with")
    recipe: dict | None = option(None, "of chapter 15")
    model: dict | None = option(None, "the shape of a model that is not finished")
    identity: dict | None = option(None, "what checkpoints must agree with")
    machine: dict | None = option(None, "where it was trained")
    seconds: dict = option(dict, "that each stage took")
    seconds_per_step: float | None = option(None, "as measured before the run")
    revisions: list = option(list, "after so many steps, all steps of the run: planned anew")


class RunFolder:
    "A run folder: its facts, and where its files are."

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file = self.path / "run.json"
        self.facts = self._read() if self.file.exists() else from_dict(RunFacts, {})

    def _read(self) -> RunFacts:
        about = read_json(self.file)
        found = re.fullmatch(r"llama_course run (\d+)", str(_get(about, "format")))
        if not found:
            raise UserError(f"{self.file} is not a llama_course run: choose another folder.")
        if int(found[1]) > RUN_FORMAT_NUMBER:
            raise UserError(
                f"{self.file} was written by a later llama_course (format {found[1]}, this one"
                f" reads up to {RUN_FORMAT_NUMBER}): update, or choose another folder."
            )
        about = {RENAMED.get(name, name): value for name, value in about.items()}
        return from_dict(RunFacts, about | {"format": RUN_FORMAT}, str(self.file))

    @property
    def exists(self) -> bool:
        "Whether a run was begun here."
        return self.file.is_file()

    @property
    def is_done(self) -> bool:
        "Whether its weights are there."
        return (self.path / "model.safetensors").is_file()

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def recipe(self) -> Recipe:
        "The recipe of the run. Raises `UserError` if it has none yet."
        return from_dict(Recipe, self.facts.recipe or {}, f"{self.file}: recipe")

    def shard(self, source: str, side: str) -> Path:  # train or held_out
        "Where the tokens of a source are."
        return self.path / "data" / f"{source}.{side}.tokens"

    def note(self, **facts: Any) -> None:
        "Adds facts to run.json."
        self.facts = replace(self.facts, **facts)
        write_json(
            self.file, {k: v for k, v in asdict(self.facts).items() if v not in (None, {}, [])}
        )

    def check_free(self) -> None:
        "Raises `UserError` where the folder holds something else than a run."
        if self.exists or not self.path.is_dir():
            return
        if any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise UserError(f"{self.path} holds other files and no run: choose another folder.")

    def metrics(self) -> dict[str, np.ndarray]:  # one value for each step; nan where there is none
        "The columns of metrics.jsonl. Raises `UserError` where there is no step yet."
        lines = self._lines()
        names = [name for name in lines[0] if name not in ("skipped", "held_out")]
        return {name: np.array([line[name] for line in lines], dtype=float) for name in names}

    def held_out(self) -> dict[str, dict[int, float]]:  # source -> step -> bits per byte
        "What was measured of the held-out text while the run was under way."
        found: dict[str, dict[int, float]] = {}
        for line in self._lines():
            for source, bits in line.get("held_out", {}).items():
                found.setdefault(source, {})[line["step"]] = bits
        return found

    def _lines(self) -> list[dict]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines:
            raise UserError(f"{path} has no step yet: begin the run, or wait for its first step.")
        return [json.loads(line) for line in lines]


def _get(table: Any, name: str) -> Any:
    return table.get(name) if isinstance(table, dict) else None
