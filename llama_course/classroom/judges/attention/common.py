"What the judges of this chapter's exercises share."

import torch
from torch import Tensor


def _merged(out1, lse1, out2, lse2, shares=None, lse=None):
    "The right answer, with a place for each mistake."
    both = torch.logaddexp(lse1, lse2)
    a, b = shares or ((lse1 - both).exp(), (lse2 - both).exp())
    return a[..., None] * out1 + b[..., None] * out2, both if lse is None else lse


def visible_tiles(T: int, S: int, block: int) -> list:
    "Pairs (first query, first key) of the tiles that the causal mask leaves something of."
    corners = [(i, j) for i in range(0, T, block) for j in range(0, S, block)]
    return [(i, j) for i, j in corners if j < S - T + min(i + block, T)]


def tile_flops(q: Tensor, k: Tensor, block: int, products: int = 2) -> int:
    """FLOPs of so many products of matrices in every visible tile; tiles may be cut at the last
    seen key."""
    (T, Q), S = q.shape[2:], k.shape[2]
    sizes = [(min(block, T - i), min(block, S - j)) for i, j in visible_tiles(T, S, block)]
    return 2 * products * Q * q[:, :, 0, 0].numel() * sum(n * m for n, m in sizes)


def _height(q, k, v, block) -> float:
    "The higher the scores, the more their rounding moves the weights."
    return max(1.0, (q.double() @ k.double().mT).abs().max().item() / 16)


def _tile(q, k, v, first: int, start: int, masked: bool = True):
    "Attention of queries at `first`... over keys at `start`..., alone: output and log-sum-exp."
    scores = q @ k.mT * q.shape[-1] ** -0.5
    later = torch.arange(k.shape[2]) + start > torch.arange(q.shape[2])[:, None] + first
    if masked:
        scores = scores.masked_fill(later, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (
        scores - lse[..., None].nan_to_num(neginf=0.0)
    ).exp()  # a query that sees nothing: zeros
    return weights @ v, lse


def _walk(q, k, v, block, past=None, stop=None, masked=True, diagonal=True, wide=1, merge=None):
    "The walk over the tiles, with a place for each mistake."
    (T, S), outs = (q.shape[2], k.shape[2]), []
    past = S - T if past is None else past
    for i in range(0, T, block):
        rows = q[:, :, i : i + block]
        out, lse = torch.zeros_like(rows), torch.full_like(rows[..., 0], -torch.inf)
        end = past + i + rows.shape[2] if stop is None else stop(i, T, S)
        for j in range(0, min(end, S), block * wide):
            if not diagonal and j + block > past + i + 1 and j:
                continue
            tile = _tile(
                rows, *(t[:, :, j : j + block * wide] for t in (k, v)), past + i, j, masked
            )
            out, lse = (merge or _merged)(out, lse, *tile)
        outs.append(out)
    return torch.cat(outs, 2)


def _whole(q, k, v):
    "Attention with all scores at once."
    T, S = q.shape[-2], k.shape[-2]
    hidden = torch.full((T, S), -torch.inf, dtype=q.dtype).triu(S - T + 1)
    return (q * q.shape[-1] ** -0.5 @ k.mT + hidden).softmax(-1) @ v


def _by_sums(q, k, v, block):
    "Sums of exponentials without a maximum, tile by tile."
    (T, Q), S, outs = q.shape[2:], k.shape[2], []
    for i in range(0, T, block):
        rows, total, mean = q[:, :, i : i + block], 0, 0
        for j in range(0, S - T + i + rows.shape[2], block):
            scores = rows @ k[:, :, j : j + block].mT / Q**0.5
            n, m = scores.shape[-2:]
            later = torch.arange(j, j + m) > torch.arange(n)[:, None] + S - T + i
            weights = scores.exp().masked_fill(later, 0)
            total, mean = total + weights.sum(-1, True), mean + weights @ v[:, :, j : j + block]
        outs.append(mean / total)
    return torch.cat(outs, 2)
