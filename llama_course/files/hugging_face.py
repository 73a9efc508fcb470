"Hugging Face's folders, read and written: config.json, and safetensors or pickled tensors."

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from llama_course.files.checkpoint import (
    Checkpoint,
    check_layers,
    config_from,
    named_sources,
    safetensors_table,
    same_numbers,
)
from llama_course.files.meta import pth_table
from llama_course.formats import StoredTensor, tensor_shapes
from llama_course.model import (
    HUGGING_FACE_FIELDS,
    HUGGING_FACE_SCALING,
    HUGGING_FACE_TURNS,
    Llama,
    LlamaConfig,
    hugging_face_settings,
    own_tensors,
    to_hugging_face,
)
from llama_course.rope import RopeScaling
from llama_course.support.disk import new_folder, read_json_table, write_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict

# Fields of a config.json whose names tell that they change the arithmetic, and the model has not.
_ARITHMETIC = re.compile(
    "scal|multipl|softcap|clip|clamp|window|expert|moe|quant|layer_types|partial|qk_|norm|rotary|rope"
    "|alibi|bias|residual|logit|latent|lora_|sparse|sink"
)
_KNOWN = {*HUGGING_FACE_FIELDS.values(), "rope_scaling", "rope_parameters", "sliding_window"}
_KNOWN |= {"original_max_position_embeddings", "max_window_layers", "use_sliding_window"}
_DEFAULTS = {"norm_eps": 1e-6, "max_seq_len": 2048}  # of transformers' LlamaConfig
_MISTRAL = {"norm_eps": 1e-6, "max_seq_len": 131072, "n_kv_heads": 8}


def hugging_face_config(
    settings: dict,  # of config.json
    path: Path,
) -> LlamaConfig:
    "The configuration in a config.json. Raises `UserError` for what this LLaMA does not compute."
    kind = settings.get("model_type")
    if kind not in ("llama", "mistral"):
        raise UserError(
            f"{path} is of the architecture {kind!r}: 'llama' is read, and 'mistral', which"
            " computes the same."
        )
    _refuse_unknown(settings, path)
    rope = _rope_settings(settings, path)
    known = {
        ours: settings[theirs]
        for ours, theirs in HUGGING_FACE_FIELDS.items()
        if settings.get(theirs) is not None
    }
    if "rope_theta" not in known:
        known["rope_theta"] = rope.get("rope_theta", 10000.0)
    if missing := {"dim", "n_layers", "n_heads", "vocab_size", "hidden_dim"} - known.keys():
        raise UserError(f"{path} does not say {', '.join(sorted(missing))}: it is incomplete.")
    known = (_DEFAULTS if kind == "llama" else _MISTRAL) | known
    return config_from(path, **known | _context(settings, rope, known["max_seq_len"], path))


def _refuse_unknown(settings: dict, path: Path) -> None:
    "Raises `UserError` at a field that changes what is computed, and is not computed here."
    if settings.get("quantization_config"):
        raise UserError(
            f"{path} is of a quantized model (quantization_config): fetch the model in 16 bits, or"
            " as GGUF."
        )
    if (act := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"{path}: its activation is {act!r}, not silu: not supported.")
    for name, value in settings.items():
        if name in _KNOWN or value in (None, False, 0, 1, [], {}) or not _ARITHMETIC.search(name):
            continue
        if name == "layer_types" and set(map(str, value)) == {"full_attention"}:
            continue
        raise UserError(
            f"{path}: {name} = {value!r:.60} changes what a model computes in a way that is not"
            " known here. If this model does not use it, take the line out of a copy of the file."
        )


def _rope_settings(settings: dict, path: Path) -> dict:
    "What the file says about rotary angles, by either of the two names."
    rope: dict = {}
    for name in ("rope_parameters", "rope_scaling"):
        part = settings.get(name) or {}
        if not isinstance(part, dict):
            raise UserError(f"{path}: {name} is {part!r:.40}, not a table: restore the file.")
        rope |= {key: value for key, value in part.items() if value is not None}
    return rope


def _context(settings: dict, rope: dict, written: int, path: Path) -> dict:
    "The context, and how the angles are scaled for it."
    for value in (written, window := settings.get("sliding_window")):
        if value is not None and type(value) is not int:
            raise UserError(f"{path}: a context of {value!r:.40} is no number of tokens.")
    if settings.get("model_type") == "mistral" and "sliding_window" not in settings:
        window = 4096  # what transformers' MistralConfig says
    longest = max(written, settings.get("max_sequence_length") or 0)  # Vicuna's name for it
    scaling = hugging_face_scaling(rope, written, path)
    if scaling is not None and scaling.kind == "yarn":
        longest = max(longest, round(scaling.original_len * scaling.factor))  # type: ignore[operator]
    if scaling is not None and scaling.kind == "dynamic":
        longest = written
    # up to the window's width a sliding window hides nothing
    return {"max_seq_len": min(longest, window or longest), "rope_scaling": scaling}


def hugging_face_scaling(
    rope: dict,  # rope_scaling, or rope_parameters
    context: int,  # max_position_embeddings
    path: Path,
) -> RopeScaling | None:
    "How the angles are scaled. Raises `UserError` for a way that is not known."
    kind = rope.get("rope_type", rope.get("type"))
    if kind in (None, "default"):
        if "factor" in rope and kind is None:
            raise UserError(f"{path}: rope_scaling has a factor and no type: restore the file.")
        kind = "default"
    names = {theirs: ours for ours, theirs in HUGGING_FACE_SCALING.items()}
    names |= dict(zip(HUGGING_FACE_TURNS.get(kind, ()), ("low_turns", "high_turns")))
    usual = {"rope_theta", "type", "finetuned", *names}
    same = {"partial_rotary_factor": 1, "extrapolation_factor": 1, "attn_factor": 1}
    for name, value in rope.items():
        if name not in usual and same.get(name) != value:
            raise UserError(
                f"{path}: rope_scaling of {kind!r} has {name} = {value!r:.40}, which is not known"
                " here: only models without it are read."
            )
    if kind == "default":
        return None
    values = {names[name]: value for name, value in rope.items() if name in names}
    if kind in HUGGING_FACE_TURNS:
        values.setdefault("original_len", context)
        values.setdefault("factor", context / max(1, int(values["original_len"])))
    return from_dict(RopeScaling, values | {"kind": kind}, f"{path}: rope_scaling")


def read_hugging_face(
    folder: Path,
) -> Checkpoint:
    "The model in the folder. Raises `UserError` if a file is missing, damaged, or no LLaMA's."
    config = hugging_face_config(read_json_table(folder / "config.json"), folder / "config.json")
    table: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        table |= safetensors_table(file) if file.suffix == ".safetensors" else pth_table(file)
    check_layers(folder, config, table)
    config = _tied_as_written(config, table)
    with torch.device("meta"):
        state = Llama(config).state_dict()
    names = dict(zip(state, to_hugging_face(state, config)))
    return named_sources(folder, config, table, names, turned=True)


def _weight_files(folder: Path) -> list[Path]:
    "model.safetensors, or pytorch_model.bin, or the parts that an index names."
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index, file = folder / f"{whole}.index.json", folder / whole
        if index.is_file():
            parts = read_json_table(index).get("weight_map")
            if not isinstance(parts, dict) or not all(isinstance(p, str) for p in parts.values()):
                raise UserError(f"{index} has no weight_map from tensors to files: fetch it again.")
            return [_beside(index, name) for name in sorted(set(parts.values()))]
        if file.is_file():
            return [file]
    there = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth"))
    raise UserError(
        f"{folder} has no model.safetensors or pytorch_model.bin, and no index of their parts"
        f" (but {', '.join(there)[:200] or 'no weights at all'}): fetch them."
    )


def _beside(index: Path, name: str) -> Path:
    "The file that an index names. Raises `UserError` if it is elsewhere, or missing."
    if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
        raise UserError(f"{index} leads out of its folder, to {name:.60}: not read.")
    if not (index.parent / name).is_file():
        raise UserError(f"{index.parent} has no {name}: fetch it.")
    return index.parent / name


def _tied_as_written(config: LlamaConfig, table: dict[str, StoredTensor]) -> LlamaConfig:
    "A model that is said to be tied, and brings an output matrix of its own, is not."
    head, embedding = table.get("lm_head.weight"), table.get("model.embed_tokens.weight")
    if not config.tie_embeddings or head is None or embedding is None:
        return config
    return config if same_numbers(head, embedding) else replace(config, tie_embeddings=False)


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
