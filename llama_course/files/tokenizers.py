"Tokenizers of others: byte-level merges or SentencePiece's pieces, in GGUF or tokenizer.json."

import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from llama_course.files.chat import encode_chat
from llama_course.files.gguf import gguf_header
from llama_course.formats import byte_letter
from llama_course.support.disk import atomic_write, fingerprint, read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tokenizer import Tokenizer

_CONTROL = 3  # GGUF's type of a token that is no text


class ByteLevelTokenizer:
    "Text to token ids and back without loss, by the merges of a GGUF file or a tokenizer.json."

    def __init__(
        self,
        merges: Any,  # a Tokenizer of the package `tokenizers`
        path: Path | str,
        controls: dict[str, int],  # tokens that are no text
        bos_id: int,
        eos_id: int,
        add_bos: bool = False,  # whether the model's texts begin with BOS
        chat_template: str | None = None,
    ):
        self._merges, self.path, self.vocab_size = merges, Path(path), merges.get_vocab_size()
        self.controls, self.chat_template = controls, chat_template
        self.bos_id, self.eos_id, self.add_bos = bos_id, eos_id, add_bos
        self.missing = {
            byte for byte in range(256) if merges.token_to_id(byte_letter(byte)) is None
        }

    @classmethod
    def load(cls, path: Path | str):
        "The tokenizer in a GGUF file, or in a folder with a tokenizer.json."
        return tokenizer_of_json(path) if Path(path).is_dir() else tokenizer_of_gguf(path)

    def encode(
        self,
        text: str,
        bos: bool = False,  # begin with BOS, if the model's texts do or there is nothing else
        eos: bool = False,  # end with EOS
    ) -> list[int]:
        "The ids of the text, control tokens never. Raises `UserError` for what is no text."
        if not isinstance(text, str):
            raise UserError(f"a tokenizer takes text, not {type(text).__name__}.")
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start} is half of a surrogate pair: remove it."
            ) from None
        if lost := self.missing.intersection(content):
            raise UserError(
                f"{self.path} has no token for the byte {min(lost):#04x}: remove that character."
            )
        ids = self._merges.encode(text, add_special_tokens=False).ids
        return [self.bos_id] * (bos and (self.add_bos or not ids)) + ids + [self.eos_id] * eos

    def decode(
        self,
        ids: Iterable[int],  # control tokens leave no trace
    ) -> str:
        "The text of the ids; bytes that are not UTF-8 become U+FFFD."
        ids, hidden = [int(i) for i in ids], set(self.controls.values())
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            most = self.vocab_size - 1
            raise UserError(f"{wrong[0]} is no token of {self.path}: ids go from 0 to {most}.")
        return self._merges.decode([i for i in ids if i not in hidden], skip_special_tokens=False)

    def encode_chat(
        self,
        messages: list[dict],  # {"role": "user", "content": "..."} and so on
    ) -> list[int]:
        "The ids of a conversation, up to where the model answers, by the file's own chat template."
        return encode_chat(self, messages)


def splitter(
    name: str,  # tokenizer.ggml.pre
    path: Path | str,
):  # a pre-tokenizer of the package `tokenizers`
    "How the text is split before the merges. Raises `UserError` for a way that is not known."
    parts = need("tokenizers", "smollm").pre_tokenizers
    words = parts.ByteLevel(add_prefix_space=False)
    if name in ("gpt-2", "gpt2", "default"):
        return words
    if name == "smollm":
        return parts.Sequence([parts.Digits(individual_digits=True), words])
    raise UserError(f"{path} splits text in the way {name!r}, which is not supported.")


def merges_of_gguf(
    about: dict,  # the settings of a GGUF file
    path: Path | str,
):  # a Tokenizer of the package `tokenizers`
    "The merges of a GGUF file, with the split that stands before them."
    tokenizers = need("tokenizers", "smollm")
    vocabulary = {token: i for i, token in enumerate(about["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    try:
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # of a kind that the package does not name
        raise UserError(f"{path}: its merges are damaged ({error}).") from None
    made.pre_tokenizer = splitter(about.get("tokenizer.ggml.pre", "default"), path)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def tokenizer_of_gguf(path: Path | str) -> Tokenizer | ByteLevelTokenizer:
    "The tokenizer in a GGUF file: byte-level merges, or a SentencePiece model such as LLaMA's."
    about = gguf_header(Path(path))[0]
    start = "tokenizer.ggml."
    part = {key.removeprefix(start): value for key, value in about.items() if key.startswith(start)}
    if part.get("model") == "llama" and part.get("tokens"):
        return _sentencepiece_of_gguf(part, path)
    if part.get("model") != "gpt2" or not part.get("tokens") or not part.get("merges"):
        kind = part.get("model")
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}: 'gpt2' and 'llama' are read."
        )
    kinds = enumerate(zip(part["tokens"], part.get("token_type", [])))
    controls = {token: i for i, (token, kind) in kinds if kind == _CONTROL}
    return ByteLevelTokenizer(
        merges_of_gguf(about, path),
        path,
        controls,
        part.get("bos_token_id", -1),
        part.get("eos_token_id", -1),
        part.get("add_bos_token", False),
        about.get("tokenizer.chat_template"),
    )


def _sentencepiece_of_gguf(part: dict, path: Path | str) -> Tokenizer:
    "The SentencePiece model in a GGUF file, which keeps all that a tokenizer.model holds."
    # protobuf is slow to import
    protobuf = import_module("sentencepiece.sentencepiece_model_pb2")

    tokens, n = part["tokens"], len(part["tokens"])
    model, types, scores = (
        protobuf.ModelProto(),
        part.get("token_type", [1] * n),
        part.get("scores", [0.0] * n),
    )
    if not n == len(types) == len(scores) or not set(types) <= set(range(1, 7)):
        raise UserError(
            f"{path}: the tokenizer's pieces, scores and types do not fit: fetch it again."
        )
    for piece, score, kind in zip(tokens, scores, types):
        model.pieces.add(piece=piece, score=score, type=kind)
    about, form = model.trainer_spec, model.normalizer_spec
    about.model_type, about.vocab_size, about.byte_fallback = about.BPE, n, 6 in types  # 6: a byte
    for name, key, usual in (("unk", "unknown", 0), ("bos", "bos", 1), ("eos", "eos", 2)):
        i = part.get(f"{key}_token_id", usual)
        if not 0 <= i < n:
            raise UserError(f"{path}: {name.upper()} is token {i} of {n}: fetch it again.")
        setattr(about, f"{name}_id", i)
        setattr(about, f"{name}_piece", tokens[i])
    form.name, form.add_dummy_prefix = "identity", part.get("add_space_prefix", True)
    form.remove_extra_whitespaces = part.get("remove_extra_whitespaces", False)
    form.precompiled_charsmap = bytes(byte % 256 for byte in part.get("precompiled_charsmap", []))
    return _tokenizer_of_proto(model.SerializeToString(), path)


def _tokenizer_of_proto(content: bytes, path: Path | str) -> Tokenizer:
    "SentencePiece's tokenizer from the content of a model file, with the path that it came from."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(content)
        try:
            tokenizer = Tokenizer.load(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), str(path))) from None
    tokenizer.path = Path(path)
    return tokenizer


def tokenizer_of_json(folder: Path | str) -> ByteLevelTokenizer:
    "The tokenizer in a folder of Hugging Face: tokenizer.json and tokenizer_config.json."
    path, about = Path(folder) / "tokenizer.json", {}
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json or tokenizer.model: fetch one.")
    try:
        merges = need("tokenizers", "smollm").Tokenizer.from_file(str(path))
    except UserError:
        raise
    except Exception as error:  # of a kind that the package does not name
        raise UserError(f"{path} is no tokenizer ({error}): fetch it again.") from None
    if (settings := path.parent / "tokenizer_config.json").is_file():
        about = read_json(settings)
    if (template := path.parent / "chat_template.jinja").is_file():
        about["chat_template"] = template.read_text(encoding="utf-8")
    merges.encode_special_tokens = True  # control words in a text are text
    controls = {
        token.content: i for i, token in merges.get_added_tokens_decoder().items() if token.special
    }
    ends = [about.get(key) for key in ("bos_token", "eos_token")]
    bos, eos = (end["content"] if isinstance(end, dict) else end for end in ends)
    return ByteLevelTokenizer(
        merges,
        path,
        controls,
        controls.get(bos, -1),
        controls.get(eos, -1),
        bool(about.get("add_bos_token")),
        about.get("chat_template"),
    )


def save_tokenizer(
    tokenizer: Tokenizer | ByteLevelTokenizer,
    folder: Path | str,
) -> str:  # the fingerprint of the tokenizer's file
    "Writes the tokenizer, with its chat template; `load_tokenizer` reads the folder."
    folder = Path(folder)
    if isinstance(tokenizer, Tokenizer):
        path, content = folder / "tokenizer.model", tokenizer.path.read_bytes()
    else:
        path, content = folder / "tokenizer.json", _json_of(tokenizer)
        names = {i: word for word, i in tokenizer.controls.items()}
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": names.get(tokenizer.bos_id),
                "eos_token": names.get(tokenizer.eos_id),
                "add_bos_token": tokenizer.add_bos,
                "chat_template": tokenizer.chat_template,
            },
        )
    with atomic_write(path) as file:
        file.write(content)
    return fingerprint(path)


def _json_of(tokenizer: ByteLevelTokenizer) -> bytes:
    tokenizers = need("tokenizers", "smollm")
    merges = tokenizers.Tokenizer.from_str(tokenizer._merges.to_str())
    words = sorted(tokenizer.controls, key=lambda word: tokenizer.controls[word])
    merges.add_special_tokens(
        [tokenizers.AddedToken(w, special=True, normalized=False) for w in words]
    )
    return merges.to_str().encode()
