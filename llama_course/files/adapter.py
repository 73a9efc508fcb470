"What LoRA has learned, in a file of its own: for those who have the model that it was trained on."

from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from llama_course.instruct import add_lora, lora_state
from llama_course.model import Llama
from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError


def is_adapter(name: str) -> bool:
    "Whether the parameter is one of LoRA's thin matrices."
    return name.endswith((".a", ".b"))


def save_adapter(
    tensors: Iterable[tuple[str, torch.Tensor]],  # of the model with LoRA; the others are left out
    path: Path,
    write: bool = True,  # only the first of many ranks writes; all must take part in the gathering
) -> None:
    "Writes the thin matrices, by the names of chapter 29."
    thin = {name: t.contiguous() for name, t in tensors if is_adapter(name)}
    if not write:
        return
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(thin))


@torch.no_grad()
def load_adapter(model: Llama, path: Path) -> Llama:
    "The model that the adapter was trained on, with it. Raises `UserError` if they do not fit."
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no adapter ({error}): choose an adapter.safetensors.") from None
    rank = max((t.size(0) for name, t in tensors.items() if name.endswith(".a")), default=1)
    own = lora_state(add_lora(model, rank))
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} is of another model: its matrices have other names or shapes.")
    for name, t in tensors.items():
        own[name].copy_(t)
    return model
