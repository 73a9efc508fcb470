"""A saved model: `model.safetensors` and `config.json` with settings, a format and a checksum.

Whoever writes both swaps them in as late as possible; a stop in between is noticed by the checksum.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from llama_course.support.disk import atomic_write, fingerprint, read_json, write_json
from llama_course.support.errors import UserError

CONFIG_FORMAT = (
    "llama_course 1"  # in every config.json; the number rises when older readers would go wrong
)


def write_weights(
    folder: str | Path,  # made if it is missing
    tensors: Mapping[str, Tensor],
    settings: dict,  # what JSON can hold
) -> None:
    "Writes both files, each whole or not at all."
    content = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})
    checksum = hashlib.sha256(content).hexdigest()
    with atomic_write(Path(folder) / "model.safetensors") as file:
        file.write(content)
        write_json(
            Path(folder) / "config.json", {"format": CONFIG_FORMAT, **settings, "sha256": checksum}
        )


def read_settings(folder: str | Path) -> dict:
    "The settings, once the weights fit the checksum. Raises `UserError` if anything is wrong."
    path, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    for file in (path, weights):
        if not file.is_file():
            raise UserError(f"{folder} is not a run folder: it has no {file.name}.")
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.pop("format", None) != CONFIG_FORMAT:
        raise UserError(
            f"{path} is not of the format {CONFIG_FORMAT!r}: save the model with this llama_course."
        )
    if "sha256" not in settings:
        raise UserError(f"{path} has no checksum (sha256) of its weights: save the model again.")
    if fingerprint(weights) != settings.pop("sha256"):
        raise UserError(
            f"{weights} is truncated or altered, its checksum tells: restore it, or save again."
        )
    return settings


def read_tensors(
    path: str | Path,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    "The tensors of a safetensors file, on the CPU mapped from it page by page. Raises `UserError`."
    try:
        return safetensors.torch.load_file(path, device=str(device))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}.") from None


def check_tensors(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size],  # name -> shape
    path: str | Path,  # where they are from
) -> None:
    "Raises `UserError` at the first tensor that is missing, unknown, misshapen or integer."
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name}: it is of another model.")
        if name not in wanted:
            raise UserError(f"{path} has a tensor {name} that the model has not.")
        found, shape = tensors[name], tuple(wanted[name])
        if found.shape != shape or not found.is_floating_point():
            kind = f"{found.dtype} {tuple(found.shape)}"
            raise UserError(
                f"{path}: {name} is {kind}, not {shape}: its config.json is of another model."
            )
