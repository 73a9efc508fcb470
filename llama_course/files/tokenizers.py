"Tokenizers of others: SentencePiece's pieces, or merges of bytes, with what surrounds them."

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_course.files.chat import encode_chat
from llama_course.formats import byte_letter
from llama_course.support.disk import atomic_write, fingerprint, write_json
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tokenizer import GUARD, META, Tokenizer, check_text

# What generation_config.json may recommend, beside the ids that end a text.
SAMPLING = "do_sample temperature top_k top_p min_p repetition_penalty max_length max_new_tokens"


class PieceTokenizer(Tokenizer):
    "LLaMA's tokenizer with what a model's folder adds: words of its own, a chat template."

    def __init__(
        self,
        path: Path | str,  # a SentencePiece model
        controls: dict[str, int],  # tokens that are no text, beside BOS and EOS
        words: dict[str, int],  # tokens that are text and no pieces
        add_bos: bool = True,  # whether the model's texts begin with BOS
        chat_template: str | None = None,
        space_everywhere: bool = True,  # whether a text after a control token has the first space
    ):
        self.generation: dict[str, Any] = {}  # of `SAMPLING`, as the model's makers recommend it
        self._words: dict[str, int] = {}
        self._added: dict[int, str] = {}
        self.add_bos, self.pieces = True, 2**31
        self._space_everywhere = True  # so far, for the test that nothing is lost
        super().__init__(path)
        self.content = self.path.read_bytes()
        model = self._model
        ends = {model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_control(i)}
        self.controls, self._added = ends | controls, {i: word for word, i in words.items()}
        self.add_bos, self.chat_template = add_bos, chat_template
        self._space_everywhere, self._words = space_everywhere, words
        self.pieces = model.vocab_size()
        self.vocab_size: int = 1 + max([self.pieces - 1, *self.controls.values(), *words.values()])

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        "As `Tokenizer.encode`; BOS if the model's texts begin with it or there is nothing else."
        ids: list[int] = []
        for part, word in _cut(check_text(text), self._words):
            ids += self.encode_after(part) if ids else super().encode(part)
            ids += [self._words[word]] if word else []
        return [self.bos_id] * (bos and (self.add_bos or not ids)) + ids + [self.eos_id] * eos

    def encode_after(self, text: str) -> list[int]:
        "The ids of a text that follows a control token or a word."
        if self._space_everywhere:
            return super().encode(text)
        ids: list[int] = []
        for i, part in enumerate(text.split(META)):
            inner = self._model.encode(GUARD + part)[len(self._guard_ids) :]
            ids += (self._meta_ids if i else []) + inner
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        "The text of the ids; control tokens leave no trace."
        text, run = "", []
        for i in [*_checked(ids, self.vocab_size, self.path), -1]:
            if i >= 0 and i not in self._added:
                run += [i] if i < self.pieces else []
                continue
            if text and not self._space_everywhere:  # its first space is its own
                text += self._model.decode(self._guard_ids + run)[len(GUARD) :]
            else:
                text += self._model.decode(run)
            text, run = text + self._added.get(i, ""), []
        return text

    def encode_chat(self, messages: list[dict]) -> list[int]:
        "The ids of a conversation, up to where the model answers, by the model's chat template."
        return encode_chat(self, messages)


class ByteLevelTokenizer:
    "Text to token ids and back, by merges of letters with bytes for all that has none."

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
        self.generation: dict[str, Any] = {}  # as of `PieceTokenizer`
        self._whole: Any = None  # the same, for texts whose control words count
        self._after: Any = None  # the same, for texts that follow a control token
        self.controls, self.chat_template = controls, chat_template
        self.bos_id, self.eos_id, self.add_bos = bos_id, eos_id, add_bos
        self.stop_ids = frozenset({eos_id} - {-1})
        pieces = all(merges.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
        letters = [] if pieces else range(256)
        self.missing = {b for b in letters if merges.token_to_id(byte_letter(b)) is None}
        if len(self.missing) > 128:
            raise UserError(
                f"{path} has no tokens for most bytes: it is no tokenizer of a LLaMA's kind."
            )

    def encode(
        self,
        text: str,
        bos: bool = False,  # begin with BOS, if the model's texts do or there is nothing else
        eos: bool = False,  # end with EOS
    ) -> list[int]:
        "The ids of the text, control tokens never. Raises `UserError` for what is no text."
        if lost := self.missing.intersection(check_text(text).encode()):
            raise UserError(
                f"{self.path} has no token for the byte {min(lost):#04x}: remove that character."
            )
        ids = self._merges.encode(text, add_special_tokens=False).ids
        starts = bos and self.bos_id >= 0 and (self.add_bos or not ids)
        return [self.bos_id] * starts + ids + [self.eos_id] * eos

    def encode_after(self, text: str) -> list[int]:
        "The ids of a text that follows a control token."
        if self._after is None:
            about = json.loads(self._merges.to_str())
            steps = about["pre_tokenizer"] or {}
            for step in steps.get("pretokenizers", [steps]):
                if step.get("prepend_scheme") == "first":  # and this text is not the first
                    step["prepend_scheme"] = "never"
            self._after = need("tokenizers", "smollm").Tokenizer.from_str(json.dumps(about))
            self._after.encode_special_tokens = True
        return self._after.encode(text, add_special_tokens=False).ids

    def encode_rendered(self, text: str) -> list[int]:
        "The ids of a rendered chat, whose control words are control tokens."
        if self._whole is None:
            self._whole = need("tokenizers", "smollm").Tokenizer.from_str(self._merges.to_str())
            self._whole.encode_special_tokens = False
        return self._whole.encode(text, add_special_tokens=False).ids

    def decode(
        self,
        ids: Iterable[int],  # control tokens leave no trace
    ) -> str:
        "The text of the ids; bytes that are not UTF-8 become U+FFFD."
        hidden = set(self.controls.values())
        shown = [i for i in _checked(ids, self.vocab_size, self.path) if i not in hidden]
        return self._merges.decode(shown, skip_special_tokens=False)

    def encode_chat(
        self,
        messages: list[dict],  # {"role": "user", "content": "..."} and so on
    ) -> list[int]:
        "The ids of a conversation, up to where the model answers, by the file's own chat template."
        return encode_chat(self, messages)


def fit_vocabulary(
    tokenizer: Tokenizer | ByteLevelTokenizer,
    size: int,  # of the model's vocabulary
    path: Path | str,  # of the model
) -> None:
    """Gives the tokenizer the model's number of ids. Raises `UserError` where they do not fit.

    A model may have some rows more than its tokenizer has tokens: they pad its matrices to a round
    number, or wait for tokens. And a tokenizer may name some control tokens that the model lacks.
    """
    found, tokenizer_path = tokenizer.vocab_size, tokenizer.path
    controls = getattr(tokenizer, "controls", {})
    surplus = set(range(size, found))
    if found < size <= found + max(8, found // 50):
        tokenizer.vocab_size = size
    elif surplus and surplus <= {*controls.values()} - {tokenizer.bos_id, tokenizer.eos_id}:
        tokenizer.controls = {w: i for w, i in controls.items() if i < size}  # type: ignore
        tokenizer.vocab_size = size
    elif found != size:
        raise UserError(
            f"{tokenizer_path} is not the tokenizer of this model: it has {found} tokens, the"
            f" vocabulary of {path} {size}. Tokens that were added to it stand in added_tokens.json"
            " or tokenizer_config.json beside it: fetch the tokenizer's files of the same model."
        )


def save_tokenizer(
    tokenizer: Tokenizer | ByteLevelTokenizer,
    folder: Path | str,
) -> str:  # the fingerprint of the tokenizer's file
    "Writes the tokenizer, with its chat template; `load_tokenizer` reads the folder."
    folder = Path(folder)
    if isinstance(tokenizer, Tokenizer):
        path = folder / "tokenizer.model"
        content = getattr(tokenizer, "content", None) or tokenizer.path.read_bytes()
    else:
        path, content = folder / "tokenizer.json", _json_of(tokenizer)
    if not isinstance(tokenizer, Tokenizer) or isinstance(tokenizer, PieceTokenizer):
        write_json(folder / "tokenizer_config.json", _settings_of(tokenizer))
        several = len(tokenizer.stop_ids) > 1
        stops = {"eos_token_id": sorted(tokenizer.stop_ids)} if several else {}
        if about := tokenizer.generation | stops:
            write_json(folder / "generation_config.json", about)
    with atomic_write(path) as file:
        file.write(content)
    return fingerprint(path)


def _settings_of(tokenizer: Any) -> dict:
    "What tokenizer_config.json says of the tokenizer."
    names = {i: word for word, i in tokenizer.controls.items()}
    pieces = isinstance(tokenizer, PieceTokenizer)
    added = {i: {"content": word, "special": True} for i, word in names.items()}
    if pieces:
        words = {i: {"content": w, "special": False} for w, i in tokenizer._words.items()}
        added = {i: token for i, token in added.items() if i >= tokenizer.pieces} | words
    return {
        "tokenizer_class": "LlamaTokenizer" if pieces else "PreTrainedTokenizerFast",
        "bos_token": names.get(tokenizer.bos_id),
        "eos_token": names.get(tokenizer.eos_id),
        "add_bos_token": tokenizer.add_bos,
        "chat_template": tokenizer.chat_template,
        "added_tokens_decoder": {str(i): token for i, token in sorted(added.items())},
    } | ({"legacy": tokenizer._space_everywhere} if pieces else {})


def _json_of(tokenizer: ByteLevelTokenizer) -> bytes:
    tokenizers = need("tokenizers", "smollm")
    merges = tokenizers.Tokenizer.from_str(tokenizer._merges.to_str())
    words = sorted(tokenizer.controls, key=lambda word: tokenizer.controls[word])
    merges.add_special_tokens(
        [tokenizers.AddedToken(w, special=True, normalized=False) for w in words]
    )
    return merges.to_str().encode()


def _cut(text: str, words: dict[str, int]) -> Iterator[tuple[str, str | None]]:
    "The parts of a text and the word after each; none after the last."
    if not words:
        yield text, None
        return
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    parts = re.split(f"({'|'.join(longest_first)})", text)
    yield from zip(parts[::2], [*parts[1::2], None])


def _checked(ids: Iterable[int], size: int, path: Path) -> list[int]:
    "The ids as integers. Raises `UserError` for one that is no token."
    numbers = [int(i) for i in ids]
    if wrong := [i for i in numbers if not 0 <= i < size]:
        raise UserError(f"{wrong[0]} is no token of {path}: ids go from 0 to {size - 1}.")
    return numbers
