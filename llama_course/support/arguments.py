"What the model is called with, checked: a wrong shape is one line, not a kernel's traceback."

import torch
from torch import Tensor

from llama_course.support.errors import UserError


def check_tokens(
    tokens: Tensor,  # (B, T)
    positions: Tensor | None,  # (B or 1, T)
    context: int,  # positions that the model knows
) -> None:
    "Raises `UserError` for tokens or positions that the model cannot read. Compilers skip it."
    if torch.compiler.is_compiling():
        return
    if tokens.dim() != 2:
        raise UserError(f"tokens are (B, T), a row for each text, not {tuple(tokens.shape)}.")
    if positions is None:
        return
    if positions.shape not in (tokens.shape, (1, tokens.size(1))):
        raise UserError(
            f"positions {tuple(positions.shape)} are not those of tokens {tuple(tokens.shape)}."
        )
    if positions.numel() and not positions.is_meta:
        first, last = positions.min().item(), positions.max().item()
        if first < 0 or last >= context:
            raise UserError(f"positions {first} to {last} are not all in the context of {context}.")


def check_mask(
    mask: Tensor | None,  # (B or 1, T, S)
    tokens: Tensor,  # (B, T)
    keys: int,  # S, tokens that there are to look at
) -> None:
    "Raises `UserError` for a mask of another shape, or not of booleans."
    if mask is None or torch.compiler.is_compiling():
        return
    B, T = tokens.shape
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((B, T, keys), (1, T, keys)):
        kind = f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
        raise UserError(f"the mask is {kind}, not bool ({B} or 1, {T}, {keys}).")
