"Hugging Face's folders, read and written: config.json, and model.safetensors or several files."

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_course.files.checkpoint import Checkpoint, config_from, named_sources
from llama_course.formats import StoredTensor, read_safetensors_table, tensor_shapes
from llama_course.model import (
    HUGGING_FACE_FIELDS,
    Llama,
    LlamaConfig,
    hugging_face_settings,
    own_tensors,
    to_hugging_face,
)
from llama_course.support.disk import new_folder, read_json, write_json
from llama_course.support.errors import UserError


def safetensors_table(
    path: Path,
) -> dict[str, StoredTensor]:
    "The tensors of a safetensors file. Raises `UserError` if it is damaged."
    try:
        with safe_open(path, "pt"):  # looks at the table, and at the length of the file
            return read_safetensors_table(path)
    except (SafetensorError, struct.error) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({error}): fetch it again."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None


def hugging_face_config(
    settings: dict,  # of config.json
    path: Path,
) -> LlamaConfig:
    "The configuration in a config.json. Raises `UserError` for what this LLaMA does not compute."
    kind = settings.get("model_type")
    if kind != "llama":
        raise UserError(f"{path} is of the architecture {kind!r}: only 'llama' is read.")
    rope = (settings.get("rope_parameters") or {}) | (settings.get("rope_scaling") or {})
    odd = {
        "rope scaling is": rope.get("rope_type", rope.get("type", "default")) != "default",
        "biases are": settings.get("attention_bias") or settings.get("mlp_bias"),
        "its activation is": settings.get("hidden_act", "silu") != "silu",
    }
    for what, is_odd in odd.items():
        if is_odd:
            raise UserError(f"{path}: {what} not supported.")
    known = {
        ours: settings[theirs]
        for ours, theirs in HUGGING_FACE_FIELDS.items()
        if settings.get(theirs) is not None
    }
    known.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    if missing := {"dim", "n_layers", "n_heads", "vocab_size", "hidden_dim"} - known.keys():
        raise UserError(f"{path} does not say {', '.join(sorted(missing))}: it is incomplete.")
    config = config_from(path, **known)
    if settings.get("head_dim") not in (None, config.head_dim):
        width = settings["head_dim"]
        raise UserError(f"{path}: heads of {width}, not {config.head_dim}, are not supported.")
    return config


def read_hugging_face(
    folder: Path,
) -> Checkpoint:
    "The model in the folder. Raises `UserError` if a file is missing, damaged, or no LLaMA's."
    index = folder / "model.safetensors.index.json"
    config = hugging_face_config(read_json(folder / "config.json"), folder / "config.json")
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
    table: dict[str, StoredTensor] = {}
    for file in files:
        if Path(file).name != file:
            raise UserError(f"{index} leads out of its folder, to {file}: not read.")
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: fetch it.")
        table |= safetensors_table(folder / file)
    with torch.device("meta"):
        state = Llama(config).state_dict()
    names = dict(zip(state, to_hugging_face(state, config)))
    return named_sources(folder, config, table, names, turned=True)


def save_hugging_face(
    model: Llama,
    folder: Path | str,  # must not exist, or be empty
    max_file_bytes: float = 5e9,  # more goes into several files with an index
) -> None:
    "The weights as `LlamaForCausalLM.from_pretrained` reads them, whole or not at all."
    with new_folder(folder) as beside:
        tensors = {name: t.detach() for name, t in own_tensors(model).items()}
        write_hugging_face(tensors, model.config, beside, max_file_bytes)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    "A safetensors file as `transformers` wants it, for everybody to read."
    contiguous = {name: t.contiguous() for name, t in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # what the umask allows; the library would leave 600
    safetensors.torch.save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)


def write_hugging_face(
    tensors: Mapping[str, Tensor],  # by Meta's names; each is read when it is written
    config: LlamaConfig,
    folder: Path,
    max_file_bytes: float = 5e9,
    dtype: torch.dtype | None = None,  # of the tensors, if they are not in memory
    **more: Any,  # of config.json
) -> None:
    "config.json, and the tensors in files of at most so many bytes, with an index of several."
    dtype = dtype or tensors["norm.weight"].dtype
    about = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "dtype": str(dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", about | hugging_face_settings(config) | more)
    sizes = {name: s.numel() * dtype.itemsize for name, s in tensor_shapes(config).items()}
    groups: list[list[str]] = [[]]
    size = 0
    for name, nbytes in sizes.items():
        if groups[-1] and size + nbytes > max_file_bytes:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
        size += nbytes
    weight_map: dict[str, str] = {}
    for i, names in enumerate(groups, 1):
        file = (
            f"model-{i:05}-of-{len(groups):05}.safetensors"
            if len(groups) > 1
            else "model.safetensors"
        )
        renamed = to_hugging_face({name: tensors[name] for name in names}, config)
        save_tensors(renamed, folder / file)
        weight_map |= dict.fromkeys(renamed, file)
    if len(groups) > 1:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
        )
