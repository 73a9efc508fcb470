"What the course trained or finetuned, taken away: in the forms that other programs read."

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llama_course.feedforward import hidden_dim
from llama_course.files.adapter import write_peft
from llama_course.files.checkpoint import Checkpoint
from llama_course.files.gguf_out import FILE_TYPES, check_fields, write_gguf
from llama_course.files.hugging_face import write_hugging_face
from llama_course.files.load import load_tokenizer, read_checkpoint
from llama_course.files.pieces import pieces_of_json
from llama_course.files.run import RunFolder
from llama_course.files.tokenizer_out import PLAIN_IN_GO, PLAIN_TEMPLATE, write_tokenizer
from llama_course.files.tokenizers import fit_vocabulary, save_tokenizer
from llama_course.formats import DTYPES, tensor_shapes
from llama_course.model import LlamaConfig
from llama_course.support.disk import atomic_write, new_folder, write_json
from llama_course.support.errors import UserError
from llama_course.support.options import option, options
from llama_course.tokenizer import Tokenizer


@options
class Export:
    "What is taken away, and in which form."

    run: Path = option(
        help="A run folder; or a GGUF file, or a folder of Meta's or Hugging Face's.", argument=True
    )
    to: Literal["hf", "gguf", "meta", "peft"] = option(
        help="hf: a folder for transformers and vLLM; gguf: a file for llama.cpp and ollama;"
        " meta: consolidated.00.pth; peft: what LoRA has learned."
    )
    out: Path = option(help="A new folder.")
    kind: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"] | None = option(
        None, "Of the numbers: F32, F16, BF16; in gguf also Q8_0, Q4_0. As stored if left out."
    )


class StoredTensors(Mapping[str, Tensor]):
    "The tensors of a checkpoint, each read when it is asked for."

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        self.checkpoint, self.dtype = checkpoint, dtype

    def __getitem__(self, name: str) -> Tensor:
        source = self.checkpoint.sources[name]
        source.read(out := torch.empty(source.shape, dtype=self.dtype))
        if not out.isfinite().all():
            raise UserError(
                f"{self.checkpoint.path}: {name} holds numbers that are none, or too large for"
                f" {str(self.dtype).removeprefix('torch.')}: nothing was written."
            )
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(tensor_shapes(self.checkpoint.config))

    def __len__(self) -> int:
        return len(tensor_shapes(self.checkpoint.config))


@dataclass(frozen=True)
class Parcel:
    "All that belongs to a model, whatever it is written as."

    path: Path
    checkpoint: Checkpoint
    tokenizer: Any
    template: str | None  # of Jinja; None: the model does not talk

    @property
    def config(self) -> LlamaConfig:
        return self.checkpoint.config

    @cached_property
    def stop_ids(self) -> list[int]:
        "Every token that ends a text, the tokenizer's end of text first."
        others = getattr(self.tokenizer, "stop_ids", None) or ()
        return [i for i in dict.fromkeys((self.tokenizer.eos_id, *others)) if i >= 0]

    @property
    def sampling(self) -> dict[str, Any]:
        "How its makers recommend to draw tokens, in transformers' words."
        return getattr(self.tokenizer, "generation", {})

    def tensors(self, kind: str | None) -> tuple[StoredTensors, torch.dtype]:
        "The tensors in a dtype, and that dtype. Raises `UserError` for blocks of codes."
        if kind and kind not in DTYPES:
            raise UserError(f"{kind} is a kind of gguf's alone: choose F32, F16 or BF16.")
        dtype = DTYPES[kind] if kind else self.checkpoint.dtype
        return StoredTensors(self.checkpoint, dtype), dtype


def parcel_of(path: Path) -> Parcel:
    "The model at the path with its tokenizer. Raises `UserError` if they do not fit together."
    checkpoint, tokenizer, run = read_checkpoint(path), load_tokenizer(path), RunFolder(path)
    checkpoint.check()
    fit_vocabulary(tokenizer, checkpoint.config.vocab_size, path)
    template = getattr(tokenizer, "chat_template", None)
    plain = run.exists and run.facts.template == "plain"
    return Parcel(path, checkpoint, tokenizer, PLAIN_TEMPLATE if plain else template)


def export(how: Export) -> dict[str, Any]:  # {"to", "out", "files", "try"}
    "Writes the folder, whole or not at all. Raises `UserError` for what the form cannot hold."
    writers = {"hf": to_hugging_face_folder, "gguf": to_gguf, "meta": to_meta, "peft": to_peft}
    parcel = parcel_of(how.run)
    with new_folder(how.out) as folder:
        writers[how.to](parcel, folder, how.kind)
        files = sorted(path.name for path in folder.iterdir())
    return {"to": how.to, "out": str(how.out), "files": files, "try": ways_to_run(how, parcel)}


def to_hugging_face_folder(parcel: Parcel, folder: Path, kind: str | None) -> None:
    "A folder for `AutoModelForCausalLM` and `AutoTokenizer`, transformers' or vLLM's."
    tensors, dtype = parcel.tensors(kind)
    ends = parcel.stop_ids
    ids: dict[str, Any] = {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}
    if parcel.tokenizer.bos_id >= 0:
        ids["bos_token_id"] = parcel.tokenizer.bos_id
    write_hugging_face(tensors, parcel.config, folder, dtype=dtype, **ids)
    write_tokenizer(parcel.tokenizer, folder, parcel.template, parcel.config.max_seq_len)
    write_json(folder / "generation_config.json", parcel.sampling | ids)


def to_gguf(parcel: Parcel, folder: Path, kind: str | None) -> None:
    "model.gguf, with weights, tokenizer and template; and the Modelfile that ollama asks for."
    stored = {dtype: name for name, dtype in DTYPES.items()}[parcel.checkpoint.dtype]
    shapes = {name: tuple(shape) for name, shape in tensor_shapes(parcel.config).items()}
    write_gguf(
        folder / "model.gguf",
        parcel.config,
        shapes,
        StoredTensors(parcel.checkpoint, torch.float32),
        parcel.tokenizer,
        parcel.template,
        kind or (stored if stored in FILE_TYPES else "F32"),
        parcel.path.resolve().stem,
    )
    with atomic_write(folder / "Modelfile") as file:
        file.write(modelfile(parcel).encode())


def modelfile(parcel: Parcel) -> str:
    """What `ollama create` reads beside model.gguf.

    Ollama knows the usual Jinja templates by sight and has Go's in their place; for the course's
    own, and for a model that does not talk, it is written here.
    """
    names = {"repetition_penalty": "repeat_penalty", "max_new_tokens": "num_predict"}
    names |= {name: name for name in ("temperature", "top_k", "top_p", "min_p")}
    lines = ["FROM ./model.gguf"]
    settings = parcel.sampling
    if settings.get("do_sample", True):
        lines += [f"PARAMETER {names[k]} {v}" for k, v in sorted(settings.items()) if k in names]
    if parcel.template is None:
        lines.append("TEMPLATE {{ .Prompt }}")
    elif parcel.template == PLAIN_TEMPLATE:
        lines.append(f'TEMPLATE """{PLAIN_IN_GO}"""')
    return "\n".join([*lines, ""])


def to_meta(parcel: Parcel, folder: Path, kind: str | None) -> None:
    "consolidated.00.pth, params.json and tokenizer.model, as Meta's release has them."
    tokenizer = parcel.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = pieces_of_json(tokenizer)
    if tokenizer is None:
        raise UserError(
            f"{parcel.tokenizer.path} is no SentencePiece model, and Meta's form wants one:"
            " export to hf or gguf."
        )
    tensors, _ = parcel.tensors(kind)
    state = {name: tensors[name] for name in tensors}
    if parcel.config.tie_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"].clone()
    write_json(folder / "params.json", params_of(parcel.config))
    torch.save(state, folder / "consolidated.00.pth")
    save_tokenizer(tokenizer, folder)


def params_of(
    config: LlamaConfig,
) -> dict[str, Any]:
    "The model's shape as params.json says it, in which F is a rule. Raises `UserError`."
    known = "dim n_layers n_heads n_kv_heads vocab_size norm_eps rope_theta".split()
    kept = {*known, "hidden_dim", "max_seq_len", "tie_embeddings", "head_dim"}
    params: dict[str, Any] = {name: getattr(config, name) for name in known}
    scaling = config.rope_scaling
    if scaling and (scaling.kind, scaling.original_len, scaling.low_turns) == ("llama3", 8192, 1):
        kept.add("rope_scaling")
        params["use_scaled_rope"] = True
        params["rope_scaling_factor"] = scaling.factor
        params["rope_high_freq_factor"] = scaling.high_turns
    check_fields(config, frozenset(kept), "Meta's params.json")
    if config.head_dim * config.n_heads != config.dim:  # type: ignore[operator]
        params["head_dim"] = config.head_dim
    F, whole = config.hidden_dim, int(8 * config.dim / 3)
    for multiple in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        if hidden_dim(config.dim, multiple) == F:
            return params | {"multiple_of": multiple}
    multiple = next(m for m in (256, 128, 64, 32, 16, 8, 4, 2, 1) if F % m == 0)
    inside = F - multiple // 2 + 0.5  # far from both ends of what is rounded up to F
    return params | {"multiple_of": multiple, "ffn_dim_multiplier": inside / whole}


def to_peft(parcel: Parcel, folder: Path, kind: str | None) -> None:
    "adapter_model.safetensors and adapter_config.json, with the tokenizer. Raises `UserError`."
    run = RunFolder(parcel.path)
    thin = run.path / "adapter.safetensors"
    if not thin.is_file():
        raise UserError(f"{run.path} was not finetuned with --lora: export the whole model to hf.")
    if kind:
        raise UserError("an adapter is written as it was learned: leave out --kind.")
    write_peft(thin, parcel.config, folder, run.facts.weights or "")
    write_tokenizer(parcel.tokenizer, folder, parcel.template, parcel.config.max_seq_len)


def ways_to_run(how: Export, parcel: Parcel) -> list[str]:
    "The lines that run it there."
    out = how.out
    if how.to == "hf":
        return [
            f"vllm serve {out}",
            'python -c "from transformers import pipeline;'
            f" print(pipeline('text-generation', '{out}')('Once'))\"",
        ]
    if how.to == "gguf":
        talk = "-cnv" if parcel.template else '-no-cnv -p "Once"'
        return [
            f"llama-cli -m {out / 'model.gguf'} {talk}",
            f"ollama create mine -f {out / 'Modelfile'} && ollama run mine",
        ]
    if how.to == "peft":
        base = RunFolder(parcel.path).facts.weights
        return [
            f"llama-course export {base} --to hf --out BASE",
            'python -c "from peft import PeftModel; from transformers import AutoModelForCausalLM;'
            f" PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('BASE'), '{out}')\"",
        ]
    return [f"llama-course generate --weights {out}"]


def in_words(result: dict[str, Any]) -> str:
    "What was written, and what to try."
    return "\n".join([f"{result['out']}: {', '.join(result['files'])}", "Try:", *result["try"]])
