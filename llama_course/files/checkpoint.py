"A checkpoint is known before it is read: where each tensor lies, and the model made from there."

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_course.formats import (
    DTYPES,
    StoredTensor,
    decode_numbers,
    kind_size,
    read_safetensors_table,
    tensor_shapes,
)
from llama_course.model import Llama, LlamaConfig, RotaryTable
from llama_course.rope import half_to_adjacent
from llama_course.support.errors import UserError
from llama_course.support.optional import need


@dataclass(frozen=True)
class Source:
    "Where a tensor of the model comes from: one piece of a file, or several."

    pieces: tuple[StoredTensor, ...]
    dim: int | None = None  # along which the pieces lie; None: each of them is the whole tensor
    heads: int = 0  # not 0: rows in Hugging Face's order, for so many heads

    @property
    def shape(self) -> tuple[int, ...]:
        whole = list(self.pieces[0].shape)
        if self.dim is not None:
            whole[self.dim] = sum(piece.shape[self.dim] for piece in self.pieces)
        return tuple(whole)

    @property
    def kind(self) -> str:  # F32, BF16, Q4_1, ...
        return self.pieces[0].kind

    @torch.no_grad()
    def read(
        self,
        out: Tensor,  # of the source's shape, in any dtype, on any device
    ) -> None:
        "Fills `out`, with one block of numbers in memory beside it."
        if self.dim is None:
            self.pieces[0].copy_to(out)
        else:
            parts = out.split([piece.shape[self.dim] for piece in self.pieces], self.dim)
            for piece, part in zip(self.pieces, parts):
                piece.copy_to(part)
        if self.heads:
            out.copy_(half_to_adjacent(out, self.heads))
        for rows in out.split(max(1, 2**20 // out.size(-1))):
            self.check_finite(rows)

    def blocks(
        self,
        n: int,  # numbers at a time, where the file has them whole and in order
    ) -> Iterator[Tensor]:  # (some rows, C)
        "The tensor's rows from first to last."
        if len(self.pieces) == 1 and not self.heads:
            for block in self.pieces[0].blocks(n):
                self.check_finite(block)
                yield block
        else:
            self.read(whole := torch.empty(self.shape))
            yield whole

    def check_finite(self, rows: Tensor) -> None:
        "Raises `UserError` that names the tensor if a number is nan or infinite."
        # one sum is the fastest look at all of them; it may overflow where no number does
        if not rows.sum(dtype=torch.float32).isfinite() and not rows.isfinite().all():
            piece, kind = self.pieces[0], str(rows.dtype).removeprefix("torch.")
            raise UserError(
                f"{piece.path}: {piece.name} holds numbers that are none, or too large for {kind}"
                " (nan, infinity): the file is damaged, or its training had diverged."
            )

    def differing_piece(self) -> StoredTensor | None:
        "A piece that should hold the same numbers as the first, and does not."
        if self.dim is not None or len(self.pieces) == 1:
            return None
        first = torch.cat(list(self.pieces[0].blocks()))
        different = (
            p for p in self.pieces[1:] if not torch.equal(torch.cat(list(p.blocks())), first)
        )
        return next(different, None)


@dataclass(frozen=True)
class Checkpoint:
    "A model on the disk: what it is, and where each tensor comes from."

    path: Path
    config: LlamaConfig
    sources: dict[str, Source]  # by Meta's names

    @property
    def dtype(self) -> torch.dtype:
        "That of the numbers in the file; float32 where it has blocks of codes."
        return DTYPES.get(self.sources["tok_embeddings.weight"].kind, torch.float32)

    def check(self) -> dict[str, torch.Size]:  # name -> shape of every tensor
        "Raises `UserError` at a tensor that is missing, unknown, cut off or of another shape."
        wanted = tensor_shapes(self.config)
        for name in sorted(wanted.keys() | self.sources.keys()):
            if name not in self.sources:
                raise UserError(f"{self.path} has no tensor {name}: it is incomplete.")
            source = self.sources[name]
            first = source.pieces[0].name
            if name not in wanted:
                raise UserError(f"{self.path} has a tensor {first} that a LLaMA has not.")
            if source.shape != tuple(wanted[name]):
                lost = " (or a file is missing)" if source.dim is not None else ""
                raise UserError(
                    f"{self.path}: {first} is {source.shape}, and its settings ask for"
                    f" {tuple(wanted[name])}: the two are of different models{lost}."
                )
            for piece in source.pieces:
                _check_piece(piece)
        for (
            source
        ) in self.sources.values():  # norms: small enough to be compared before anything is made
            if other := source.differing_piece():
                raise UserError(
                    f"{other.path}: {other.name} is not that of the other files: two models."
                )
        return wanted

    def load(
        self,
        dtype: torch.dtype | None = None,  # None: that of the file, or float32 where it has blocks
        device: torch.device | str = "cpu",
    ) -> Llama:
        "The model. Raises `UserError`, and has taken no memory, if anything is wrong."
        state = _in_one_block(self.check(), dtype or self.dtype, device)
        for name, out in state.items():
            self.sources[name].read(out)
        with torch.device("meta"):
            model = Llama(self.config)
        model.load_state_dict(state, strict=False, assign=True)
        if self.config.tie_embeddings:
            model.output.weight = model.tok_embeddings.weight
        model.rope = RotaryTable(self.config).to(device)
        return model.eval()


def named_sources(
    path: Path,
    config: LlamaConfig,
    table: dict[str, StoredTensor],  # by the file's names
    names: dict[str, str],  # Meta's name -> the file's
    turned: bool = False,  # whether wq and wk have Hugging Face's order of rows
) -> Checkpoint:
    "The checkpoint of whole tensors. Raises `UserError` for the first that is missing."
    left, sources = dict(table), {}
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads} if turned else {}
    for ours, theirs in names.items():
        if config.tie_embeddings and ours == "output.weight":
            left.pop(theirs, None)  # the embedding a second time
        elif theirs in left:
            sources[ours] = Source((left.pop(theirs),), heads=heads.get(ours.split(".")[-2], 0))
        else:
            raise UserError(f"{path} has no tensor {theirs}: it is incomplete.")
    for name, stored in left.items():
        if not name.endswith("rotary_emb.inv_freq"):
            sources[name] = Source((stored,))
    return Checkpoint(path, config, sources)


def safetensors_table(
    path: Path,
) -> dict[str, StoredTensor]:
    "The tensors of a safetensors file. Raises `UserError` if it is damaged."
    try:
        with safe_open(path, "pt"):  # looks at the table, and at the length of the file
            return read_safetensors_table(path)
    except (SafetensorError, struct.error, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({error}): fetch it again."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None


def check_layers(
    path: Path,
    config: LlamaConfig,
    table: dict[str, StoredTensor],  # by the file's names
) -> None:
    "Raises `UserError` where there are more layers than tensors, before a model is made of them."
    if config.n_layers > len(table):
        raise UserError(
            f"{path} has {len(table)} tensors, its settings ask for {config.n_layers} layers: the"
            " two are of different models (or a file is missing)."
        )


def same_numbers(a: StoredTensor, b: StoredTensor) -> bool:
    "Whether two tensors of a file hold the same. Raises `UserError` if the file is damaged."
    if (a.shape, a.kind) != (b.shape, b.kind):
        return False
    for stored in (a, b):
        _check_piece(stored)
    return all(torch.equal(x, y) for x, y in zip(a.blocks(), b.blocks()))


def config_from(
    path: Path,  # the file that the fields come from
    **fields,
) -> LlamaConfig:
    "The configuration. Raises `UserError` that names the file if it cannot be one."
    try:
        return LlamaConfig(**fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_piece(piece: StoredTensor) -> None:
    if not _is_readable(piece.kind):
        raise UserError(
            f"{piece.path}: {piece.name} is of the kind {piece.kind}, which is not read: fetch the"
            " model with numbers of 16 or 32 bits, or as GGUF."
        )
    if not piece.shape or piece.shape[-1] % kind_size(piece.kind)[0]:
        raise UserError(
            f"{piece.path}: {piece.name} {piece.shape} is not made of {piece.kind}'s blocks."
        )
    if piece.offset is not None and piece.offset + piece.nbytes > piece.path.stat().st_size:
        raise UserError(f"{piece.path} is truncated within {piece.name}: fetch it again.")


def _is_readable(kind: str) -> bool:
    "Whether numbers of this kind can be decoded."
    if kind in DTYPES:
        return True
    if kind not in need("gguf", "smollm").GGMLQuantizationType.__members__:
        return False
    numbers, size = kind_size(kind)
    try:
        return decode_numbers(np.zeros(size, np.uint8), kind, numbers).numel() == numbers
    except (NotImplementedError, KeyError):
        return False


def _in_one_block(
    shapes: dict[str, torch.Size], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Empty tensors that lie one behind the other, in the order in which a token reads them.

    Scattered as they come from a loop that also decodes, they are read more slowly.
    """
    places = [
        -(-shape.numel() // 64) * 64 for shape in shapes.values()
    ]  # each at a multiple of 64 numbers
    parts = torch.empty(sum(places), dtype=dtype, device=device).split(places)
    named = zip(shapes.items(), parts)
    return {name: part[: shape.numel()].view(shape) for (name, shape), part in named}
