"The records of an evaluation in a folder, so that an interrupted one goes on where it stood."

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from llama_course.model import Llama
from llama_course.support.disk import read_json, write_json
from llama_course.support.errors import UserError, disk_errors


class Journal:
    "The records in a folder, one per line; a broken last line is dropped."

    def __init__(
        self,
        folder: str | Path,
        plan: dict,  # what must be the same when the evaluation goes on
    ):
        self.path, place = Path(folder) / "items.jsonl", Path(folder) / "plan.json"
        if place.exists():
            self._same_plan(place, plan)
        else:
            write_json(place, plan)
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with disk_errors(self.path):
                os.truncate(self.path, len(whole))
        try:
            self.records = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise UserError(f"{self.path} is damaged: remove the folder and begin again.") from None

    @staticmethod
    def _same_plan(place: Path, plan: dict) -> None:
        other = read_json(place)
        if not isinstance(other, dict):
            raise UserError(f"{place} is damaged: choose another folder.")
        if wrong := [name for name in plan if other.get(name) != plan[name]]:
            raise UserError(
                f"{place.parent} holds another evaluation, with other {' and '.join(wrong)}:"
                " choose another folder."
            )

    def add(self, records: Sequence[dict]) -> None:
        "Appends the records, so that they survive the process."
        with disk_errors(self.path), open(self.path, "ab") as file:
            file.write("".join(json.dumps(r) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())


def plan_of(
    model: Llama,
    work: Iterable,  # of what is asked; its text stands for it
    settings: dict,
) -> dict:
    "What must be the same when an evaluation goes on: settings, items and weights, as checksums."
    weights = hashlib.sha256()
    for name, t in model.state_dict().items():
        sample = t.detach().flatten()[:: max(1, t.numel() // 64)].to(torch.float64).cpu()
        weights.update(f"{name} {tuple(t.shape)}".encode() + sample.numpy().tobytes())
    items = hashlib.sha256(repr(list(work)).encode())
    return settings | {"items": items.hexdigest(), "model": weights.hexdigest()}
