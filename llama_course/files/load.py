"One function for all weights: a run folder, a GGUF file, a folder of Meta's or Hugging Face's."

from functools import partial
from pathlib import Path

import torch

from llama_course.files.checkpoint import Checkpoint, named_sources, safetensors_table
from llama_course.files.gguf import read_gguf
from llama_course.files.hugging_face import read_hugging_face
from llama_course.files.meta import read_meta
from llama_course.files.quantized import quantized_model
from llama_course.files.run import RunFolder
from llama_course.files.tokenizer_in import tokenizer_at
from llama_course.files.tokenizers import ByteLevelTokenizer, fit_vocabulary
from llama_course.formats import plain_chat, tensor_shapes
from llama_course.model import Llama, read_config
from llama_course.support.disk import fingerprint, read_json
from llama_course.support.errors import UserError
from llama_course.support.weights import CONFIG_FORMAT
from llama_course.tokenizer import Tokenizer


def load(
    path: Path | str,  # a run folder, a GGUF file, or a folder of Meta's or Hugging Face's
    dtype: torch.dtype | None = None,  # None: that of the file, or float32 where it has blocks
    device: torch.device | str = "cpu",
    bits: int | None = None,  # 8 or 4: quantized; 16 or 32: plain numbers, by the same fast kernels
) -> tuple[Llama, Tokenizer | ByteLevelTokenizer]:
    "Model and tokenizer. Raises `UserError`, and has read no weights, if they do not fit together."
    checkpoint, tokenizer = read_checkpoint(path), load_tokenizer(path)
    if (run := RunFolder(path)).exists:
        _ask_as_trained(tokenizer, run)
    fit_vocabulary(tokenizer, checkpoint.config.vocab_size, path)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # of many kinds
        raise UserError(
            f"the device {device} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    model = checkpoint.load(dtype, device) if bits is None else quantized_model(checkpoint, bits)
    return model, tokenizer


def load_model(
    path: Path | str,  # as of `load`
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Llama:
    "The model alone. Raises `UserError`, and has taken no memory, if anything is wrong."
    return read_checkpoint(path).load(dtype, device)


def load_quantized(
    path: Path | str,  # as of `load`
    bits: int = 8,  # or 4; 16 and 32 keep the numbers, as bfloat16 and float32
) -> Llama:
    "The model, packed as it is read: the memory at its peak is that of the result."
    return quantized_model(read_checkpoint(path), bits)


def load_tokenizer(
    path: Path | str,  # as of `load`
) -> Tokenizer | ByteLevelTokenizer:
    "The tokenizer that belongs to the weights."
    return tokenizer_at(path)


def read_checkpoint(
    path: Path | str,  # as of `load`
) -> Checkpoint:
    "What is there, without reading a tensor. Raises `UserError` if it is none of the four."
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path.")
    if path.is_file():
        return read_gguf(path)
    if (path / "params.json").is_file() and not _has_hugging_face(path):
        return read_meta(path)
    about = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if (
        (path / "run.json").is_file()
        or isinstance(about, dict)
        and about.get("format") == CONFIG_FORMAT
    ):
        return _read_run(path)
    if about is not None:
        return read_hugging_face(path)
    raise UserError(
        f"{path} has neither params.json (Meta) nor config.json (Hugging Face): nothing to load."
    )


def _has_hugging_face(folder: Path) -> bool:
    "Whether it is a folder of Hugging Face's, which some releases put beside their own files."
    weights = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return (folder / "config.json").is_file() and bool(weights)


def _read_run(folder: Path) -> Checkpoint:
    "Where a run's tensors are. Raises `UserError` if it is not finished, or altered."
    if not RunFolder(folder).is_done:
        raise UserError(f"{folder} is not finished: go on with the command that began it.")
    config, table = read_config(folder), safetensors_table(folder / "model.safetensors")
    return named_sources(folder, config, table, {name: name for name in tensor_shapes(config)})


def _ask_as_trained(tokenizer: Tokenizer | ByteLevelTokenizer, run: RunFolder) -> None:
    "Makes a run's tokenizer ask as in training. Raises `UserError` if it is that of another run."
    if fingerprint(tokenizer.path) != run.facts.tokenizer:
        raise UserError(
            f"{tokenizer.path} is not the tokenizer that the model was trained with: restore it."
        )
    if run.facts.template == "plain":
        tokenizer.chat_template = "plain"
        tokenizer.encode_chat = partial(plain_chat, tokenizer)  # type: ignore[method-assign]
