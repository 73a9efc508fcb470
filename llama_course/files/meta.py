"""Meta's releases: params.json and consolidated.00.pth, ..., each with a slice of every matrix.

Llama 1 to 3.3 and CodeLlama have come like this; Mistral's own files are consolidated.safetensors.
"""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from llama_course.files.checkpoint import (
    Checkpoint,
    Source,
    check_layers,
    config_from,
    safetensors_table,
)
from llama_course.formats import DTYPES, StoredTensor, cut_dimension
from llama_course.model import LlamaConfig
from llama_course.rope import RopeScaling
from llama_course.support.disk import read_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict, option, options


def read_meta(
    folder: Path,
) -> Checkpoint:
    "The release in the folder. Raises `UserError` if a file is missing or damaged."
    settings = read_json(folder / "params.json")
    if (single := folder / "consolidated.safetensors").is_file():
        return _merged(folder, settings, [safetensors_table(single)])
    files = sorted(folder.glob("consolidated.*.pth"))
    numbers = [file.suffixes[-2][1:] for file in files]
    if len(files) not in (1, 2, 4, 8, 16) or numbers != [f"{i:02}" for i in range(len(files))]:
        raise UserError(
            f"{folder} has the parts {', '.join(numbers) or 'none'} of consolidated.*.pth, not all"
            " of 1, 2, 4, 8 or 16, and no consolidated.safetensors: fetch what is missing."
        )
    tables = [pth_table(file) for file in files]
    for table in tables:
        if odd := table.keys() ^ tables[0].keys():
            raise UserError(f"{folder}: {min(odd)} is not in every file: they are of two models.")
    return _merged(folder, settings, tables)


def open_pth(
    path: Path,
) -> dict[str, Tensor]:  # numbers stay on the disk until they are used
    "What the file holds. Raises `UserError` for what is no dictionary of tensors; runs nothing."
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it would run {culprit[1]}" if culprit else "it holds more than numbers"
        raise UserError(
            f"{path} is a pickle that is not only weights ({what}): it was not opened."
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except Exception:  # torch.load raises whatever its parser stumbles over
        raise UserError(
            f"{path} is truncated, or not a file of torch.save: fetch it again."
        ) from None
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
        raise UserError(
            f"{path} does not hold a dictionary of vectors and matrices: it is no LLaMA."
        )
    return tensors


@options
class ParamsFile:
    "What a params.json holds; the defaults are those of the code that came with it."

    dim: int = option(help="D", ge=1, le=2**20)
    n_layers: int = option(help="L", ge=1, le=2**12)
    n_heads: int = option(help="H", ge=1, le=2**12)
    n_kv_heads: int | None = option(None, "K", ge=1, le=2**12)
    vocab_size: int | None = option(-1, "V; -1: what the tokenizer has")
    multiple_of: int = option(256, "what the feed-forward width is rounded up to", ge=1, le=2**20)
    ffn_dim_multiplier: float | None = option(None, "of the feed-forward width", gt=0, le=64)
    hidden_dim: int | None = option(None, "F, in Mistral's files", ge=1, le=2**22)
    head_dim: int | None = option(None, "Q, in Mistral's files", ge=2, le=2**12)
    norm_eps: float = option(1e-5, "under the root of every RMSNorm", gt=0)
    rope_theta: float | None = option(None, "base of the rotary frequencies", gt=0)
    use_scaled_rope: bool = option(False, "angles as since Llama 3.1")
    rope_scaling_factor: float | None = option(None, "how much slower the slow ones are", ge=1)
    rope_high_freq_factor: float | None = option(None, "turns from which on they are not", gt=0)
    max_seq_len: int | None = option(None, "the context", ge=1, le=2**20)
    max_batch_size: int | None = option(None, "nothing that the model depends on")
    sliding_window: int | None = option(None, "tokens that a query sees, in Mistral's files", ge=1)


def params_config(
    settings: dict,  # of params.json
    vocab_size: int,  # height of the embedding
    path: Path,
) -> LlamaConfig:
    "The configuration in a params.json. Raises `UserError` if it is not a LLaMA's."
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds {settings!r:.40}, no table of settings: not a LLaMA's.")
    for name, value in settings.items():
        if name not in ParamsFile.__dataclass_fields__:  # type: ignore[attr-defined]
            raise UserError(
                f"{path}: {name} = {value!r:.60} is not known here, and may change what the model"
                " computes. If it does not, take the line out of a copy of the file."
            )
    params = from_dict(ParamsFile, settings, str(path))
    if params.vocab_size not in (None, -1, vocab_size):
        raise UserError(
            f"{path} is for {params.vocab_size} tokens, the embedding has {vocab_size}:"
            " it is of another vocabulary."
        )
    inside = int(int(2 * (4 * params.dim) / 3) * (params.ffn_dim_multiplier or 1))
    rounded = params.multiple_of * -(-inside // params.multiple_of)
    context = params.max_seq_len or context_of_release(params)
    return config_from(
        path,
        dim=params.dim,
        n_layers=params.n_layers,
        n_heads=params.n_heads,
        n_kv_heads=params.n_kv_heads,
        norm_eps=params.norm_eps,
        vocab_size=vocab_size,
        hidden_dim=params.hidden_dim or rounded,
        head_dim=params.head_dim,
        rope_theta=params.rope_theta or 10000.0,
        rope_scaling=_scaling(params),
        max_seq_len=min(context, params.sliding_window or context),
    )


def context_of_release(params: ParamsFile) -> int:
    """The context of the release that has these settings, which do not tell it.

    A fine-tuning of another kind may have any: `max_seq_len` in params.json says it.
    """
    if params.hidden_dim:  # Mistral's: only these give it
        return 32768
    if params.use_scaled_rope:
        return 131072  # Llama 3.1, 3.2, 3.3
    if params.rope_theta == 5e5:
        return 8192  # Llama 3
    if params.rope_theta == 1e6:
        return 16384  # CodeLlama
    llama1 = params.norm_eps != 1e-5 or params.dim == 8192 and not params.n_kv_heads  # 7B-33B; 65B
    return 2048 if llama1 else 4096


def _scaling(params: ParamsFile) -> RopeScaling | None:
    "Since Llama 3.1 the angles are scaled by 8, and by 32 in the small models of 3.2."
    if not params.use_scaled_rope:
        return None
    factor = params.rope_scaling_factor or (32.0 if params.dim < 4096 else 8.0)
    return RopeScaling("llama3", factor, 8192, high_turns=params.rope_high_freq_factor)


def _is_plain(t: object) -> bool:
    return isinstance(t, Tensor) and t.layout == torch.strided and t.dim() in (1, 2)


def pth_table(file: Path) -> dict[str, StoredTensor]:
    "The tensors of a file of torch.save. Raises `UserError`."
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    return {
        name: StoredTensor(file, name, kinds.get(t.dtype, str(t.dtype)), tuple(t.shape))
        for name, t in open_pth(file).items()
        if name != "rope.freqs"
    }


def _merged(folder: Path, settings: dict, tables: list[dict[str, StoredTensor]]) -> Checkpoint:
    "One source for each tensor, with a piece in each file."
    dims = {name: cut_dimension(name) for name in tables[0]}
    embedding = tables[0].get("tok_embeddings.weight")
    if not isinstance(settings, dict):
        raise UserError(f"{folder}: params.json holds no table of settings: it is not a LLaMA's.")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(
            f"{folder} has no tensor tok_embeddings.weight: it is not a LLaMA of Meta's."
        )
    if embedding.shape[1] == settings.get("dim"):
        dims["tok_embeddings.weight"] = 0  # cut by rows, as since Llama 3
    sources = {}
    for name, first in tables[0].items():
        pieces = tuple(table[name] for table in tables)
        if any(piece.shape != first.shape for piece in pieces):
            raise UserError(
                f"{folder}: the pieces of {name} differ in shape: the files are of two models."
            )
        sources[name] = Source(pieces, dims[name] if len(first.shape) > 1 else None)
    vocab_size = sources["tok_embeddings.weight"].shape[0]
    config = params_config(settings, vocab_size, folder / "params.json")
    check_layers(folder, config, tables[0])
    return Checkpoint(folder, config, sources)
