"GGUF, llama.cpp's format: weights, tokenizer and chat template in one file, or in its parts."

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_course.files.checkpoint import Checkpoint, check_layers, config_from, named_sources
from llama_course.formats import StoredTensor, read_gguf_header
from llama_course.model import Llama, LlamaConfig
from llama_course.rope import RopeScaling, slowed
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict

_NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_FIELDS = {
    "dim": "embedding_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "hidden_dim": "feed_forward_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_seq_len": "context_length",
    "head_dim": "attention.key_length",
}
_SCALING = {
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scale_linear",  # how the factor was written until 2023
}
_OTHERS = {
    "vocab_size",
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "tensor_data_layout",
}


def gguf_header(
    path: Path,
) -> tuple[dict, dict[str, StoredTensor]]:
    """The settings in the file and the table of its tensors, and those of its other parts.

    Raises `UserError` if a part is damaged or missing.
    """
    about, table = _header(path)
    count = about.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= 1000:
        raise UserError(f"{path} is one of {count!r:.20} files: fetch it again.")
    if count < 2:
        return about, table
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not found or int(found[3]) != count:
        raise UserError(f"{path} is one of {count} files: give it the name it had in their folder.")
    parts = [path.with_name(f"{found[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(f"{path} is one of {count} files, and {missing[0]} is not there: fetch it.")
    headers = [_header(part) for part in parts]
    if [header[0].get("split.no") for header in headers] != list(range(count)):
        raise UserError(f"{path} and those beside it are not the parts of one: fetch them again.")
    return headers[0][0], {name: t for header in headers for name, t in header[1].items()}


def _header(path: Path) -> tuple[dict, dict[str, StoredTensor]]:
    "What one file holds. Raises `UserError` if it is damaged."
    try:
        return read_gguf_header(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except EOFError:
        raise UserError(f"{path} is truncated within its header: fetch it again.") from None
    except (KeyError, ValueError, TypeError, ArithmeticError, struct.error) as error:
        raise UserError(f"{path} is a damaged GGUF file ({error!r}): fetch it again.") from None


def gguf_name(
    name: str,  # Meta's
) -> str:
    "The tensor's name in a GGUF file."
    match = re.fullmatch(r"(layers\.\d+\.)?(.+)\.(weight|bias)", name)
    assert match, name
    layer, part, kind = match.groups(default="")
    return f"{layer.replace('layers', 'blk')}{_NAMES[part]}.{kind}"


def gguf_config(
    about: dict,  # the settings in the file
    table: dict[str, StoredTensor],
    path: Path,
) -> LlamaConfig:
    "The configuration in a GGUF file. Raises `UserError` for what this LLaMA does not compute."
    kind = about.get("general.architecture")
    if kind != "llama":
        raise UserError(f"{path} is of the architecture {kind!r}: only 'llama' is read.")
    part = {key[6:]: _short(about[key]) for key in about if key.startswith("llama.")}
    if part.get("expert_count"):
        raise UserError(f"{path}: a mixture of experts is not supported.")
    for name in part.keys() - {*_FIELDS.values(), *_SCALING, *_OTHERS}:
        if part[name]:
            raise UserError(
                f"{path}: llama.{name} = {part[name]!r:.40} changes what a model computes in a way"
                " that is not known here: fetch another file of this model."
            )
    known = {ours: part[theirs] for ours, theirs in _FIELDS.items() if theirs in part}
    if missing := {"dim", "n_layers", "n_heads", "hidden_dim", "norm_eps"} - known.keys():
        raise UserError(f"{path} does not say {', '.join(sorted(missing))}: it is incomplete.")
    if "token_embd.weight" not in table:
        raise UserError(f"{path} has no tensor token_embd.weight.")
    plain = config_from(
        path,
        **known,
        vocab_size=table["token_embd.weight"].shape[0],
        tie_embeddings="output.weight" not in table,
        attention_bias="blk.0.attn_q.bias" in table,
        mlp_bias="blk.0.ffn_up.bias" in table,
    )
    for name in ("rope.dimension_count", "attention.value_length"):
        if part.get(name, plain.head_dim) != plain.head_dim:
            raise UserError(
                f"{path}: {name} is {part[name]!r:.40}, and a head is {plain.head_dim} wide: a"
                " model that turns or keeps only a part of it is not supported."
            )
    window = part.get("attention.sliding_window") or plain.max_seq_len
    if type(window) is not int:
        raise UserError(f"{path}: a sliding window of {window!r:.40} is no number of tokens.")
    scaling = gguf_scaling(part, table, plain, path)
    context = min(plain.max_seq_len, window)  # up to its width a window hides nothing
    return config_from(path, **vars(plain) | {"rope_scaling": scaling, "max_seq_len": context})


def gguf_scaling(
    part: dict,  # the settings that begin with "llama.", without that
    table: dict[str, StoredTensor],
    config: LlamaConfig,  # of the same model without scaling
    path: Path,
) -> RopeScaling | None:
    "How the angles are scaled, as llama.cpp understands the file. Raises `UserError`."
    if "rope_freqs.weight" in table:
        return _scaling_of_factors(table["rope_freqs.weight"], config, path)
    factor = part.get("rope.scaling.factor") or part.get("rope.scale_linear") or 1.0
    kind = part.get("rope.scaling.type", "linear")
    if kind == "none" or factor == 1:
        return None
    if kind not in ("linear", "yarn"):
        raise UserError(f"{path}: rope scaling of the kind {kind!r:.40} is not known here.")
    where, values = f"{path}: rope.scaling", {"kind": kind, "factor": factor}
    if kind == "linear":
        return from_dict(RopeScaling, values, where)
    values["original_len"] = part.get("rope.scaling.original_context_length", config.max_seq_len)
    for ours, theirs in (("low_turns", "slow"), ("high_turns", "fast")):
        values[ours] = part.get(f"rope.scaling.yarn_beta_{theirs}")
    scaling = from_dict(RopeScaling, values, where)
    times = part.get("rope.scaling.attn_factor", 1.0)
    return from_dict(RopeScaling, vars(scaling) | {"magnitude": scaling.magnitude * times}, where)


def _scaling_of_factors(stored: StoredTensor, config: LlamaConfig, path: Path) -> RopeScaling:
    """The scaling of Llama 3.1 to 3.3, which a GGUF file holds as a divisor of each frequency.

    The old context is the power of two with which the same divisors come out.
    """
    pairs = config.head_dim // 2  # type: ignore[operator]
    if stored.shape != (pairs,) or stored.kind != "F32":
        raise UserError(f"{path}: {stored.name} is {stored.kind} {stored.shape}, not {(pairs,)}.")
    divisors = torch.cat([block.flatten() for block in stored.blocks()])
    if not divisors.isfinite().all() or divisors.min() < 0.99 or divisors.max() > 2**20:
        raise UserError(f"{path}: {stored.name} has divisors below 1, or none: fetch it again.")
    frequency = config.rope_theta ** (-torch.arange(pairs) / pairs)
    for power in range(5, 21):
        scaling = RopeScaling("llama3", max(1.0, _short(divisors.max().item())), 2**power)
        expected = frequency / slowed(frequency, scaling, config.rope_theta)
        if torch.allclose(divisors, expected, rtol=1e-3):
            return scaling
    raise UserError(
        f"{path}: {stored.name} slows the rotary angles in a way that is not that of Llama 3.1 to"
        " 3.3: not known here."
    )


def _short(value: Any) -> Any:
    "A number of 32 bits as it was meant: 1e-5 comes as 9.99999974e-06."
    return float(str(np.float32(value))) if isinstance(value, float) else value


def read_gguf(
    path: Path,
) -> Checkpoint:
    "The model in the file. Raises `UserError` if it is damaged, or no LLaMA's."
    about, table = gguf_header(path)
    config = gguf_config(about, table, path)
    check_layers(path, config, table)
    table.pop("rope_freqs.weight", None)  # the scaling, which the configuration now has
    with torch.device("meta"):
        names = {name: gguf_name(name) for name in Llama(config).state_dict()}
    return named_sources(path, config, table, names)
