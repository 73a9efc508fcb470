"A tokenizer as others read it: tokenizer.json and its settings for Hugging Face's libraries."

from importlib import import_module
from pathlib import Path
from typing import Any

from llama_course.bpe import BYTE, CONTROL, UNKNOWN
from llama_course.files.pieces import merges_of_pieces
from llama_course.files.tokenizers import ByteLevelTokenizer, PieceTokenizer, save_tokenizer
from llama_course.support.disk import atomic_write, read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tokenizer import META, Tokenizer

# A conversation as `plain_chat` of chapter 23 writes it.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' }}{% endif %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% else %}{{ eos_token }}{% endif %}"
)
PLAIN_IN_GO = (  # the same, for ollama
    '{{ range $i, $m := .Messages }}{{ if $i }}{{ "\\n" }}{{ end }}'
    '{{ if eq $m.Role "assistant" }}Answer: {{ end }}{{ $m.Content }}{{ end }}{{ "\\nAnswer:" }}'
)


def sentencepiece_model(
    tokenizer: Tokenizer,
) -> Any:  # SentencePiece's ModelProto
    "All that the tokenizer's model file holds."
    protobuf = import_module("sentencepiece.sentencepiece_model_pb2")  # slow to import
    return protobuf.ModelProto.FromString(tokenizer._model.serialized_model_proto())


def added_tokens(
    tokenizer: Tokenizer,
) -> list[tuple[int, str, bool]]:  # id, word, whether it is a control token; by id
    "The tokens that stand beside a SentencePiece model."
    if not isinstance(tokenizer, PieceTokenizer):
        return []
    controls = {i: word for word, i in tokenizer.controls.items() if i >= tokenizer.pieces}
    both = {i: (word, False) for word, i in tokenizer._words.items()}
    both |= {i: (word, True) for i, word in controls.items()}
    return [(i, *both[i]) for i in sorted(both)]


def fast_tokenizer(
    tokenizer: Tokenizer,
    template: str | None,  # of Jinja, as of `write_tokenizer`
) -> Any:  # a Tokenizer of the package `tokenizers`
    "The SentencePiece model in the form of tokenizer.json. Raises `UserError` for unigrams."
    tokenizers = need("tokenizers", "smollm")
    model, parts, decoders = (
        sentencepiece_model(tokenizer),
        tokenizers.normalizers,
        tokenizers.decoders,
    )
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UserError(f"{tokenizer.path} is no BPE model: only merges can be written.")
    pieces = model.pieces
    plain = {p.piece: p.score for p in pieces if p.type not in (UNKNOWN, CONTROL, BYTE)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={p.piece: i for i, p in enumerate(pieces)},
            merges=merges_of_pieces(plain),
            unk_token=pieces[tokenizer._model.unk_id()].piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    words = {p.piece: True for p in pieces if p.type in (UNKNOWN, CONTROL)}
    words |= {word: special for _, word, special in added_tokens(tokenizer)}
    for word, special in words.items():
        token = tokenizers.AddedToken(word, special=special, normalized=False)
        made.add_special_tokens([token]) if special else made.add_tokens([token])
    prefix = model.normalizer_spec.add_dummy_prefix
    if prefix and template and not getattr(tokenizer, "_space_everywhere", True):
        # no space after control tokens, for which a text's own first space is lost
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(META, "first", split=False)
    else:
        steps = [parts.Prepend(META)] * prefix + [parts.Replace(" ", META)]
        made.normalizer = parts.Sequence(steps)
    back = [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * prefix)
    return made


def write_tokenizer(
    tokenizer: Tokenizer | ByteLevelTokenizer,
    folder: Path,
    template: str | None,  # of Jinja: how a conversation is written; None: the model does not talk
    longest: int,  # the model's context
) -> None:
    "The tokenizer as `AutoTokenizer` reads it: the same ids as ours, BOS before each text."
    tokenizers = need("tokenizers", "smollm")
    save_tokenizer(tokenizer, folder)
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    about: dict[str, Any] = read_json(settings) if settings.is_file() else {}
    add_bos = getattr(tokenizer, "add_bos", True)
    if isinstance(tokenizer, Tokenizer):
        made = fast_tokenizer(tokenizer, template)
        prefix = bool(sentencepiece_model(tokenizer).normalizer_spec.add_dummy_prefix)
        about["add_prefix_space"] = prefix  # read by llama.cpp's converter
        about["unk_token"] = about["pad_token"] = made.id_to_token(tokenizer._model.unk_id())
    else:
        made = tokenizers.Tokenizer.from_file(str(path))
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    bos, eos = (made.id_to_token(i) if i >= 0 else None for i in ends)
    about.setdefault("pad_token", eos)
    if add_bos and bos is not None:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.bos_id)],
        )
    about |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "chat_template": template,
    }
    with atomic_write(path) as file:
        file.write(made.to_str().encode())
    write_json(settings, {name: value for name, value in about.items() if value is not None})
