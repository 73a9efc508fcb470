"Meta's release: params.json and consolidated.00.pth, ..., each with a slice of every matrix."

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from llama_course.files.checkpoint import Checkpoint, Source, config_from
from llama_course.formats import DTYPES, StoredTensor, cut_dimension
from llama_course.model import LlamaConfig
from llama_course.support.disk import read_json
from llama_course.support.errors import UserError


def read_meta(
    folder: Path,
) -> Checkpoint:
    "The release in the folder. Raises `UserError` if a file is missing or damaged."
    files, settings = sorted(folder.glob("consolidated.*.pth")), read_json(folder / "params.json")
    numbers = [file.suffixes[-2][1:] for file in files]
    if len(files) not in (1, 2, 4, 8) or numbers != [f"{i:02}" for i in range(len(files))]:
        raise UserError(
            f"{folder} has the parts {', '.join(numbers) or 'none'} of consolidated.*.pth,"
            " not all of 1, 2, 4 or 8: fetch what is missing."
        )
    tables = [_table(file) for file in files]
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


def params_config(
    settings: dict,  # of params.json
    vocab_size: int,  # height of the embedding
    path: Path,
) -> LlamaConfig:
    "The configuration in a params.json. Raises `UserError` if it is not a LLaMA's."
    if settings.get("use_scaled_rope"):
        raise UserError(f"{path}: scaled rotary angles are not supported.")
    for key in ("dim", "n_layers", "n_heads"):
        if type(settings.get(key)) is not int or settings[key] < 1:
            raise UserError(f"{path} does not say {key}: not a LLaMA's.")
    if settings.get("vocab_size", -1) not in (-1, vocab_size):  # -1: what the tokenizer has
        raise UserError(
            f"{path} is for {settings['vocab_size']} tokens, the embedding has {vocab_size}:"
            " it is of another vocabulary."
        )
    inside = int(2 * (4 * settings["dim"]) / 3 * settings.get("ffn_dim_multiplier", 1))
    multiple = settings.get("multiple_of", 256)
    same = ("dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps")
    known = {key: settings[key] for key in same if key in settings}
    return config_from(
        path,
        **known,
        vocab_size=vocab_size,
        hidden_dim=multiple * -(-inside // multiple),
        rope_theta=settings.get("rope_theta", 10000.0),
    )


def _is_plain(t: object) -> bool:
    return isinstance(t, Tensor) and t.layout == torch.strided and t.dim() in (1, 2)


def _table(file: Path) -> dict[str, StoredTensor]:
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
    if not isinstance(settings, dict) or embedding is None or len(embedding.shape) != 2:
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
    return Checkpoint(folder, params_config(settings, vocab_size, folder / "params.json"), sources)
