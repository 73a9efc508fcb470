"Weights from a file onto many ranks and back, with LoRA if wanted, one matrix at a time."

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llama_course.fault_tolerance import build, set_parameter
from llama_course.files.checkpoint import Checkpoint
from llama_course.instruct import add_lora
from llama_course.launch.weights import whole_tensors
from llama_course.model import Llama
from llama_course.parallel import parallelize
from llama_course.support.errors import UserError


def place_model(
    checkpoint: Checkpoint,  # whose configuration the model gets
    mesh: Any,
    device: torch.device,
    lora: int = 0,  # the rank of its matrices; 0: none
    **spread: Any,  # of `parallelize`
) -> Llama:
    "The model on the mesh, without its weights. Raises `UserError` for what does not go together."
    if lora and mesh["tensor"].size() > 1:
        raise UserError(
            "--lora and --tensor-parallel do not go together: leave out the second, since FSDP"
            " shards the frozen weights, too."
        )

    def spread_out(model: Llama) -> Llama:
        if lora:
            add_lora(model, lora)
        return parallelize(model, mesh, **spread)

    return build(checkpoint.config, spread_out, device)


def fill_weights(model: Llama, checkpoint: Checkpoint, seed: int = 0) -> None:
    """Reads the weights: every rank reads all of them, a matrix at a time, and keeps its share.

    LoRA's own are drawn, the same on any number of ranks: `a` at random, `b` zero.
    """
    random = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        whole = torch.zeros(p.shape)
        if name.endswith(".a"):
            whole.normal_(std=p.shape[1] ** -0.5, generator=random)
        elif not name.endswith(".b"):
            checkpoint.sources[name.replace(".linear.", ".")].read(whole)
        set_parameter(model, name, whole)


def merged_tensors(model: Llama) -> Iterator[tuple[str, Tensor]]:
    "The parameters under a Llama's names, each LoRA folded in; all ranks must take part."
    thin: dict[str, Tensor] = {}
    for name, whole in whole_tensors(model):
        owner, _, last = name.rpartition(".")
        if last in ("a", "b"):
            thin[last] = whole  # they come before their matrix
        elif owner.endswith(".linear"):
            owner = owner.removesuffix(".linear")
            scale = model.get_submodule(owner).scale
            yield f"{owner}.weight", whole + scale * thin["b"] @ thin["a"]
        else:
            yield name, whole
