"""Held-out text, measured while a run is under way: bits per byte of each source, on all ranks."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from llama_course.fault_tolerance import Ranks
from llama_course.support.shards import Shard
from llama_course.training import loss_of

MOST = 2**18  # tokens of each source: for the paper's batch, a sixteenth of it in all of a source


def held_out_windows(
    shard: Shard,
    tokenizer: Any,  # with decode(ids), or None
    seq_len: int,  # T
    most: int = MOST,  # tokens
) -> tuple[Tensor, float]:  # (W, T + 1), neighbours share a token; bytes of text they stand for
    "The first windows of a shard. Without a tokenizer the bytes are in proportion."
    n = min(most, len(shard) - 1)
    T = min(seq_len, n)
    n -= n % T
    ids = np.asarray(shard.tokens[: n + 1], dtype=np.int64)
    if n + 1 == len(shard):
        size = float(shard.text_bytes)
    elif tokenizer is None:
        size = shard.text_bytes * n / len(shard)
    else:
        size = float(len(tokenizer.decode(ids).encode()))
    return torch.from_numpy(ids).unfold(0, T + 1, T), size


class HeldOut:
    "The held-out windows of all sources."

    def __init__(
        self,
        shards: Mapping[str, Shard],  # source -> its held-out shard
        tokenizer: Any,  # or None
        seq_len: int,  # T
        rows: int,  # windows at a time on each rank
        ranks: Ranks,
        precision: str = "float32",
    ):
        self.rows, self.ranks, self.precision = rows, ranks, precision
        self.texts = {
            source: held_out_windows(shard, tokenizer, seq_len)
            for source, shard in sorted(shards.items())
            if len(shard) > 1
        }

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:  # source -> bits per byte
        """Every data rank takes its rows of each batch; all must call this at the same step.

        It changes nothing of the run: no weight, no random state.
        """
        nats = []
        for windows, _ in self.texts.values():
            here = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
            for batch in windows.split(self.rows * self.ranks.size):
                own = batch[self.ranks.rank * self.rows :][: self.rows]
                # a rank without rows goes through the model, too: sharded parameters need all ranks
                loss = loss_of(
                    model, (own if len(own) else batch[:1]).to(here.device), self.precision
                )
                here += loss.double() * own[:, 1:].numel()
            nats.append(here)
        if isinstance(model, FSDPModule):
            model.reshard()  # the outer unit, which waits for a backward pass
        total = torch.stack(nats) if nats else torch.zeros(0)
        if self.ranks.mesh is not None and nats:
            dist.all_reduce(total)
            total /= self.ranks.world // self.ranks.size  # tensor-parallel ranks know the same
        sizes = [size for _, size in self.texts.values()]
        bits = (n / math.log(2) / size for n, size in zip(total.tolist(), sizes))
        return dict(zip(self.texts, bits))
