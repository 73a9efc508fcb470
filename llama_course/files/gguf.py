"GGUF, llama.cpp's format: one file with weights, tokenizer and chat template."

import re
import struct
from pathlib import Path

import numpy as np
import torch

from llama_course.files.checkpoint import Checkpoint, config_from, named_sources
from llama_course.formats import StoredTensor, read_gguf_header
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError

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
}


def gguf_header(
    path: Path,
) -> tuple[dict, dict[str, StoredTensor]]:
    "The settings in the file and the table of its tensors. Raises `UserError` if it is damaged."
    try:
        return read_gguf_header(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except EOFError:
        raise UserError(f"{path} is truncated within its header: fetch it again.") from None
    except (KeyError, ValueError, TypeError, ZeroDivisionError, struct.error) as error:
        raise UserError(f"{path} is a damaged GGUF file ({error!r}): fetch it again.") from None


def gguf_name(
    name: str,  # Meta's
) -> str:
    "The tensor's name in a GGUF file."
    match = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name)
    assert match, name
    layer, part = match.groups(default="")
    return f"{layer.replace('layers', 'blk')}{_NAMES[part]}.weight"


def gguf_config(
    about: dict,  # the settings in the file
    table: dict[str, StoredTensor],
    path: Path,
) -> LlamaConfig:
    "The configuration in a GGUF file. Raises `UserError` for what this LLaMA does not compute."
    kind = about.get("general.architecture")
    part = {
        key.removeprefix("llama."): value
        for key, value in about.items()
        if key.startswith("llama.")
    }
    if kind != "llama":
        raise UserError(f"{path} is of the architecture {kind!r}: only 'llama' is read.")
    if about.get("split.count", 1) > 1:
        raise UserError(f"{path} is one of several: merge them (gguf-split).")
    if part.get("expert_count"):
        raise UserError(f"{path}: a mixture of experts is not supported.")
    if part.get("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in table:
        raise UserError(f"{path}: rope scaling is not supported.")
    known = {ours: part[theirs] for ours, theirs in _FIELDS.items() if theirs in part}
    if missing := {"dim", "n_layers", "n_heads", "hidden_dim", "norm_eps"} - known.keys():
        raise UserError(f"{path} does not say {', '.join(sorted(missing))}: it is incomplete.")
    if "token_embd.weight" not in table:
        raise UserError(f"{path} has no tensor token_embd.weight.")
    for key in known.keys() & {
        "norm_eps",
        "rope_theta",
    }:  # in 32 bits 1e-5 comes as 9.99999974...e-06
        if isinstance(known[key], float):
            known[key] = float(str(np.float32(known[key])))
    config = config_from(
        path,
        **known,
        vocab_size=table["token_embd.weight"].shape[0],
        tie_embeddings="output.weight" not in table,
    )
    turned = part.get("rope.dimension_count", config.head_dim)
    if turned != config.head_dim:
        raise UserError(f"{path} turns only {turned} numbers of a head: not supported.")
    return config


def read_gguf(
    path: Path,
) -> Checkpoint:
    "The model in the file. Raises `UserError` if it is damaged, or no LLaMA's."
    about, table = gguf_header(path)
    config = gguf_config(about, table, path)
    with torch.device("meta"):
        names = {name: gguf_name(name) for name in Llama(config).state_dict()}
    return named_sources(path, config, table, names)
