"""Where else the log of a run goes: TensorBoard, Weights & Biases or MLflow, by one small hook.

metrics.jsonl is the record; a board is a view of it. A run that goes on goes on in the same entry
of its board, whose name is kept in the run folder.
"""

import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError
from llama_course.support.optional import need


class Board(Protocol):
    "What a log writes to beside its file."

    def write(self, step: int, values: dict[str, float]) -> None:
        "The numbers of a step."

    def close(self) -> None:
        "Everything is sent."


class TensorBoard:
    "Event files in RUN/tensorboard."

    def __init__(self, folder: Path, first: int, settings: dict):
        need("tensorboard", "log")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    "A run of Weights & Biases; project, entity and mode by its own variables (WANDB_...)."

    def __init__(self, folder: Path, first: int, settings: dict):
        wandb: Any = need("wandb", "cluster")
        self.run = wandb.init(
            id=_kept(folder / ".wandb_run"),
            name=folder.name,
            dir=str(folder),
            config=settings,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "llama_course"),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    "A run of MLflow; server and experiment by its own variables (MLFLOW_...)."

    def __init__(self, folder: Path, first: int, settings: dict):
        mlflow: Any = need("mlflow", "cluster")
        self.client = mlflow.MlflowClient()
        path = folder / ".mlflow_run"
        if path.exists():
            self.run = path.read_text(encoding="utf-8")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "llama_course")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.run = self.client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in settings.items():
            self.client.log_param(self.run, key, str(value)[:500])
        with atomic_write(path) as file:
            file.write(self.run.encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name.replace(" ", "_"), value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


BOARDS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def open_boards(
    names: tuple[str, ...],  # of BOARDS
    folder: Path,  # of the run
    first: int,  # steps that are done
    settings: dict,  # what is shown beside the curves
) -> list[Board]:
    "The boards. Raises `UserError` for an unknown name, or where its package is missing."
    if unknown := [name for name in names if name not in BOARDS]:
        raise UserError(f"there is no board {unknown[0]!r}: choose of {', '.join(BOARDS)}.")
    return [BOARDS[name](folder.resolve(), first, settings) for name in names]


def _kept(path: Path) -> str:
    "The name in the file; a new one, which is written, if there is no file."
    if not path.exists():
        with atomic_write(path) as file:
            file.write(uuid.uuid4().hex[:12].encode())
    return path.read_text(encoding="utf-8")
