"What LoRA has learned, in a file of its own: for those who have the model that it was trained on."

from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from llama_course.files.hugging_face import save_tensors
from llama_course.instruct import add_lora, lora_state
from llama_course.model import HUGGING_FACE, Llama, LlamaConfig
from llama_course.rope import adjacent_to_half
from llama_course.support.disk import atomic_write, write_json
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


def read_thin(path: Path) -> dict[str, torch.Tensor]:
    "The thin matrices in the file, by name. Raises `UserError` if they are none."
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no adapter ({error}): choose an adapter.safetensors.") from None
    if not tensors or not all(map(is_adapter, tensors)):
        raise UserError(f"{path} is no adapter of this course: choose an adapter.safetensors.")
    return tensors


@torch.no_grad()
def load_adapter(model: Llama, path: Path) -> Llama:
    "The model that the adapter was trained on, with it. Raises `UserError` if they do not fit."
    tensors = read_thin(path)
    rank = max((t.size(0) for name, t in tensors.items() if name.endswith(".a")), default=1)
    own = lora_state(add_lora(model, rank))
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} is of another model: its matrices have other names or shapes.")
    for name, t in tensors.items():
        own[name].copy_(t)
    return model


def write_peft(
    thin: Path,  # what `save_adapter` wrote
    config: LlamaConfig,  # of the model
    folder: Path,
    base: str,  # where the model that it was trained on is
    alpha: float = 16.0,  # `add_lora`'s
) -> None:
    "The adapter as `peft` reads it: rows of wq and wk in Hugging Face's order. Raises `UserError`."
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}
    renamed, parts, rank = {}, set(), 1
    for name, t in read_thin(thin).items():
        owner, _, which = name.rpartition(".")
        _, number, part = owner.split(".", 2)
        if which == "a":
            rank = len(t)
        elif (last := part.split(".")[-1]) in heads:
            t = adjacent_to_half(t, heads[last])
        inside = f"base_model.model.model.layers.{number}.{HUGGING_FACE[part]}"
        renamed[f"{inside}.lora_{which.upper()}.weight"] = t
        parts.add(HUGGING_FACE[part].split(".")[-1])
    save_tensors(renamed, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(parts),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", about)
