"What the judges of this chapter's exercises share."

import torch
from torch import Tensor


def _table(positions: Tensor, Q: int, theta: float, dtype=torch.float32) -> tuple:
    "Cosines and sines, (T, 1, Q/2) each."
    angle = torch.outer(positions.to(dtype), theta ** (-torch.arange(0, Q, 2).to(dtype) / Q))
    return angle.cos()[:, None], angle.sin()[:, None]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    "Neighbours in the last dimension, turned."
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


def _one_row(shift, Q: int, theta: float, dtype=torch.float32) -> tuple:
    "Cosine and sine of one position, (Q/2,) each."
    angle = shift * theta ** (-torch.arange(0, Q, 2).to(dtype) / Q)
    return angle.cos(), angle.sin()
