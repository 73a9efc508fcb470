"A quantized model from any checkpoint, packed row by row as it is read."

import torch

from llama_course.files.checkpoint import Checkpoint
from llama_course.quantization import QuantizedLlama

_BLOCK = 2**18  # weights that exist unpacked at a time


@torch.no_grad()
def quantized_model(
    checkpoint: Checkpoint,
    bits: int = 8,  # or 4; 16 and 32 keep the numbers, as bfloat16 and float32
) -> QuantizedLlama:
    "The model with packed layers; the memory at its peak is that of the result."
    names = checkpoint.check()
    model = QuantizedLlama(
        checkpoint.config, bits
    )  # takes its memory before reading leaves gaps in it
    for name in names:
        model.fill(name, checkpoint.sources[name].blocks(_BLOCK))
    return model.eval()
