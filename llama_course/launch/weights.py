"The result of many ranks as one file: no rank holds more than its share and one matrix."

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama_course.model import Llama, LlamaConfig
from llama_course.support.disk import atomic_write, write_json
from llama_course.support.weights import CONFIG_FORMAT

KINDS_OF_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    "Each parameter by its name, gathered on all ranks, one at a time."
    for name, p in model.named_parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        yield name, whole.detach().cpu()


def safetensors_head(config: LlamaConfig, dtype: torch.dtype) -> bytes:
    "How a safetensors file of such a model begins: where each tensor lies."
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Llama(config).named_parameters()}
    table, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        kind = KINDS_OF_SAFETENSORS[dtype]
        table[name] = {"dtype": kind, "shape": [*shape], "data_offsets": [begin, end]}
    content = json.dumps(table).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def save_whole(
    tensors: Iterable[tuple[str, Tensor]],  # in the model's order; all ranks must take part
    config: LlamaConfig,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    "The first rank writes what `Llama.load` reads, one matrix after the other."
    contents = (t.to(dtype).contiguous().view(torch.uint8).numpy().data for _, t in tensors)
    if dist.is_initialized() and dist.get_rank():
        for _ in contents:
            pass  # the gathering needs all ranks
        return
    head = safetensors_head(config, dtype)
    digest = hashlib.sha256(head)
    with atomic_write(Path(folder) / "model.safetensors") as file:
        file.write(head)
        for content in contents:
            file.write(content)
            digest.update(content)
        settings = {"format": CONFIG_FORMAT, **asdict(config), "sha256": digest.hexdigest()}
        write_json(Path(folder) / "config.json", settings)
