"GGUF, written: the one file that llama.cpp, ollama and many others run."

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_course.bpe import CONTROL, NORMAL, UNUSED, USER_DEFINED
from llama_course.files.gguf import gguf_name
from llama_course.files.pieces import pieces_of_json
from llama_course.files.tokenizer_in import splitter
from llama_course.files.tokenizer_out import added_tokens, sentencepiece_model
from llama_course.files.tokenizers import ByteLevelTokenizer
from llama_course.model import LlamaConfig
from llama_course.rope import slowed
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tokenizer import Tokenizer

SPLITS = ("gpt-2", "smollm", "llama-bpe")  # how text is split before the merges, by GGUF's name
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type
LARGEST_F16 = 65504
WRITTEN = frozenset(
    "dim n_layers n_heads n_kv_heads vocab_size hidden_dim norm_eps rope_theta max_seq_len"
    " tie_embeddings head_dim rope_scaling attention_bias mlp_bias".split()
)


def kind_of_tensor(
    name: str,  # Meta's
    shape: tuple[int, ...],
    kind: str,  # of the file
    tied: bool,  # whether the embedding is the output, too
) -> str:
    "How a tensor is written: vectors in F32, the output not below 8 bits, as llama.cpp has it."
    if len(shape) < 2:
        return "F32"
    if shape[-1] % 32 and kind in ("Q8_0", "Q4_0"):
        return "F16"  # blocks are of 32 numbers
    last = "tok_embeddings.weight" if tied else "output.weight"
    return "Q8_0" if kind == "Q4_0" and name == last else kind


def write_gguf(
    path: Path,  # a new file
    config: LlamaConfig,
    shapes: Mapping[str, tuple[int, ...]],  # of the tensors, by Meta's names
    tensors: Mapping[str, Tensor],  # by the same names; each is read when it is written
    tokenizer: Tokenizer | ByteLevelTokenizer,
    template: str | None,  # of Jinja; None: the model does not talk
    kind: str = "F16",  # of the matrices, one of `FILE_TYPES`
    title: str = "llama",  # general.name
) -> None:
    "The file, with one matrix in memory at a time. Raises `UserError` for what GGUF cannot say."
    gguf = need("gguf", "smollm")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(title)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_settings(writer, config)
    _add_tokenizer(writer, tokenizer, config.vocab_size, template)
    kinds = {
        name: gguf.GGMLQuantizationType[kind_of_tensor(name, shape, kind, config.tie_embeddings)]
        for name, shape in shapes.items()
    }
    if (divisors := _add_scaling(writer, config)) is not None:
        kind32 = gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(
            "rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes, kind32
        )
    for name, shape in shapes.items():
        numbers, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        nbytes = math.prod(shape) // numbers * size
        writer.add_tensor_info(gguf_name(name), shape, np.dtype("f4"), nbytes, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for name, form in kinds.items():
        values = np.ascontiguousarray(tensors[name].float().numpy())
        if form.name == "F16" and abs(values).max() > LARGEST_F16:
            raise UserError(f"{name} holds numbers that are too large for F16: choose BF16.")
        writer.write_tensor_data(gguf.quantize(values, form))
    writer.close()


def _add_settings(writer: Any, config: LlamaConfig) -> None:
    "The model's shape. Raises `UserError` for a field that is not LLaMA's and has no name here."
    check_fields(config, WRITTEN, "GGUF")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _add_scaling(
    writer: Any, config: LlamaConfig
) -> np.ndarray | None:  # (Q/2,), what each frequency is divided by; where that is how it is said
    "How the angles are scaled. Raises `UserError` for a way that llama.cpp does not know."
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "llama3":
        half = config.head_dim // 2  # type: ignore[operator]
        frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        slow = slowed(frequency, scaling, config.rope_theta)
        return (frequency / slow).float().numpy()
    if scaling.kind == "dynamic":
        return None  # up to the context that is written, nothing is scaled
    writer.add_rope_scaling_type(need("gguf", "smollm").RopeScalingType(scaling.kind))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        if not scaling.whole_pairs:
            raise UserError("yarn between two pairs cannot be said in GGUF: export to hf.")
        writer.add_rope_scaling_orig_ctx_len(scaling.original_len)
        writer.add_rope_scaling_yarn_beta_slow(scaling.low_turns)
        writer.add_rope_scaling_yarn_beta_fast(scaling.high_turns)
        usual = 0.1 * math.log(scaling.factor) + 1
        writer.add_rope_scaling_attn_factors(scaling.magnitude / usual)
    return None


def check_fields(
    config: LlamaConfig,
    written: frozenset[str],  # fields that the form can say
    form: str,
) -> None:
    "Raises `UserError` for a field with another value than LLaMA's that the form would lose."
    for name, field in LlamaConfig.__pydantic_fields__.items():  # type: ignore[attr-defined]
        value = getattr(config, name)
        if name not in written and value != field.default:
            raise UserError(f"{name} = {value!r} cannot be said in {form}: export to another form.")


def _add_tokenizer(
    writer: Any, tokenizer: Tokenizer | ByteLevelTokenizer, size: int, template: str | None
) -> None:
    "Pieces, types, control tokens, how a text begins; ids that no piece has are unused."
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = pieces_of_json(tokenizer) or tokenizer
    if isinstance(tokenizer, Tokenizer):
        tokens, types = _add_pieces(writer, tokenizer, size)
    else:
        tokens, types = _add_merges(writer, tokenizer)
    empty = range(len(tokens), size)
    writer.add_token_list((tokens + [f"[PAD{i}]" for i in empty])[:size])
    writer.add_token_types((types + [UNUSED for _ in empty])[:size])
    if tokenizer.bos_id >= 0:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.eos_id >= 0:
        writer.add_eos_token_id(tokenizer.eos_id)
    others = [i for i in sorted(tokenizer.stop_ids) if i != tokenizer.eos_id]
    for i, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id)):
        add(i)
    writer.add_add_bos_token(getattr(tokenizer, "add_bos", True))
    writer.add_add_eos_token(False)
    if template:
        writer.add_chat_template(template)


def _add_pieces(
    writer: Any, tokenizer: Tokenizer, size: int
) -> tuple[list[str], list[int]]:  # tokens, types
    model, added = sentencepiece_model(tokenizer), added_tokens(tokenizer)
    about = model.normalizer_spec
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    scores = [piece.score for piece in model.pieces]
    writer.add_token_scores((scores + [0.0] * (size - len(scores)))[:size])
    writer.add_unk_token_id(model.trainer_spec.unk_id)
    writer.add_add_space_prefix(about.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(about.remove_extra_whitespaces)
    tokens, types = [p.piece for p in model.pieces], [p.type for p in model.pieces]
    for i, word, special in added:
        if i != len(tokens):
            raise UserError(f"{tokenizer.path}: {word!r} is token {i}, and no token is before it.")
        tokens.append(word)
        types.append(CONTROL if special else USER_DEFINED)
    return tokens, types


def _add_merges(writer: Any, tokenizer: ByteLevelTokenizer) -> tuple[list[str], list[int]]:
    about = json.loads(tokenizer._merges.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(tokenizer))
    merges = about["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    size = tokenizer._merges.get_vocab_size()
    tokens = [tokenizer._merges.id_to_token(i) for i in range(size)]
    own = {token["id"] for token in about["added_tokens"]}
    control = set(tokenizer.controls.values())
    types = [CONTROL if i in control else USER_DEFINED if i in own else NORMAL for i in range(size)]
    return tokens, types


def split_name(tokenizer: ByteLevelTokenizer) -> str:
    "GGUF's name for how the text is split before the merges. Raises `UserError` without one."
    merges = type(tokenizer._merges)(type(tokenizer._merges.model)())

    def written(part: Any) -> Any:
        merges.pre_tokenizer = part
        return json.loads(merges.to_str())["pre_tokenizer"]

    own = json.loads(tokenizer._merges.to_str())["pre_tokenizer"]
    for name in SPLITS:
        if own == written(splitter(name, tokenizer.path)):
            return name
    raise UserError(
        f"{tokenizer.path} splits text in a way that GGUF has no name for: export to hf."
    )
