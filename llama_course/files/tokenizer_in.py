"Where a tokenizer comes from: a GGUF file, tokenizer.json, tokenizer.model, or Llama 3's ranks."

import base64
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_course.files.gguf import gguf_header
from llama_course.files.pieces import model_of_pieces, tokenizer_from_model
from llama_course.files.tokenizers import SAMPLING, ByteLevelTokenizer, PieceTokenizer
from llama_course.formats import byte_letter
from llama_course.support.disk import read_json_table
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tokenizer import Tokenizer

_CONTROL, _WORD = 3, 4  # GGUF's types of tokens that are no text, and of words added whole
# Llama 3's way to split text: llama.cpp calls it by these names, Hugging Face writes it down.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")  # as Hugging Face's settings name them
# Control tokens that end what a model says, where no file tells which do (as llama.cpp has it).
_ENDS = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
}


def tokenizer_at(
    path: Path | str,  # a GGUF file, or a folder
) -> Tokenizer | ByteLevelTokenizer:
    "The tokenizer there. Raises `UserError` if there is none, or it is damaged."
    path = Path(path)
    if not path.is_dir():
        return tokenizer_of_gguf(path)
    model, merges = path / "tokenizer.model", path / "tokenizer.json"
    pieces = model.is_file() and not _is_ranks(model)
    if merges.is_file() and not (pieces and find_spec("tokenizers") is None):
        return tokenizer_of_json(path)
    if model.is_file():
        return tokenizer_of_pieces(path) if pieces else tokenizer_of_ranks(path)
    others = sorted(p.name for p in path.glob("tekken*.json")) + sorted(
        p.name for p in path.glob("tokenizer.model.*")
    )
    hint = f" ({', '.join(others)} is of a kind that is not read)" if others else ""
    raise UserError(f"{path} has no tokenizer.json or tokenizer.model{hint}: fetch one.")


def tokenizer_of_json(folder: Path | str) -> ByteLevelTokenizer:
    "The tokenizer in a folder of Hugging Face: tokenizer.json and what stands beside it."
    path, about = Path(folder) / "tokenizer.json", _surroundings(Path(folder))
    merges = _merges_of_json(path)
    known = {token.content: i for i, token in merges.get_added_tokens_decoder().items()}
    for word, (i, special) in sorted(about["added"].items(), key=lambda item: item[1][0]):
        if known.get(word, i) != i or merges.token_to_id(word) not in (None, i):
            raise UserError(
                f"{path}: {word!r} is token {i} beside it and another in it: two models."
            )
        if word not in known:
            added = need("tokenizers", "smollm").AddedToken(word, special=special, normalized=False)
            merges.add_special_tokens([added]) if special else merges.add_tokens([added])
            if merges.token_to_id(word) != i:
                raise UserError(f"{path}: {word!r} would be token {i}, and others are missing.")
    for word in (about["bos_token"], about["eos_token"]):
        if word is not None and merges.token_to_id(word) is not None:
            merges.add_special_tokens([word])
    merges.encode_special_tokens = True  # control words in a text are text
    controls = {
        token.content: i for i, token in merges.get_added_tokens_decoder().items() if token.special
    }
    bos, eos = (controls.get(about[name], -1) for name in ("bos_token", "eos_token"))
    first = merges.encode("", add_special_tokens=True).ids[:1]  # by the file's TemplateProcessing
    if bos < 0 and first and first[0] in controls.values() and first[0] != eos:
        bos = first[0]
    asked = about.get("add_bos_token")
    add_bos = asked if isinstance(asked, bool) else first == [bos]
    template = about["chat_template"]
    made = ByteLevelTokenizer(merges, path, controls, bos, eos, add_bos, template)
    made.stop_ids |= _stops(Path(folder), made.vocab_size)
    made.generation = _sampling(Path(folder))
    return made


def _merges_of_json(path: Path) -> Any:
    "The Tokenizer of the package `tokenizers` in the file. Raises `UserError`."
    try:
        return need("tokenizers", "smollm").Tokenizer.from_file(str(path))
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package names no kind, and panics are none of Python's
        raise UserError(f"{path} is no tokenizer ({str(error)[:200]}): fetch it again.") from None


def tokenizer_of_pieces(folder: Path | str) -> Tokenizer:
    "The SentencePiece model in a folder, with what stands beside it."
    path, about = Path(folder) / "tokenizer.model", _surroundings(Path(folder))
    stops, sampling = _stops(Path(folder), 2**24), _sampling(Path(folder))
    if not about["found"] and not stops and not sampling:
        return Tokenizer.load(path)
    n = Tokenizer.load(path).vocab_size
    added = {word: (i, special) for word, (i, special) in about["added"].items() if i >= n}
    made = PieceTokenizer(
        path,
        {word: i for word, (i, special) in added.items() if special},
        {word: i for word, (i, special) in added.items() if not special},
        about.get("add_bos_token") is not False,
        about["chat_template"],
        about.get("legacy") is True,
    )
    if len(added) != made.vocab_size - n:
        raise UserError(f"{path}: the tokens that are added beside it leave ids without a token.")
    made.stop_ids |= {i for i in stops if i < made.vocab_size}
    made.generation = sampling
    return made


def tokenizer_of_ranks(folder: Path | str) -> ByteLevelTokenizer:
    "Llama 3's own tokenizer: bytes in base64 and their rank, a line each; control tokens follow."
    path, about = Path(folder) / "tokenizer.model", _surroundings(Path(folder))
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().split(b"\n"):
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is a damaged file of ranks ({error}): fetch it again.") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or b"" in ranks:
        raise UserError(f"{path} has not every rank from 0 on once: fetch it again.")
    names = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id"}
    names |= {6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    others = (f"reserved_special_token_{i}" for i in range(256))
    words = [f"<|{names.get(i) or next(others)}|>" for i in range(256)]
    controls = {word: len(ranks) + i for i, word in enumerate(words)}
    letters = [byte_letter(byte) for byte in range(256)]
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = [
        (rank, ranks[token[:i]], ranks[token[i:]], token[:i], token[i:])
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    merges = [(written[left], written[right]) for *_, left, right in sorted(pairs)]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    made = _byte_level(vocabulary, merges, "llama-bpe", controls, {}, path)
    bos, eos = controls["<|begin_of_text|>"], controls["<|end_of_text|>"]
    tokenizer = ByteLevelTokenizer(made, path, controls, bos, eos, True, about["chat_template"])
    tokenizer.stop_ids |= {controls[word] for word in _ENDS & controls.keys()}
    return tokenizer


def splitter(
    name: str,  # tokenizer.ggml.pre
    path: Path | str,
):  # a pre-tokenizer of the package `tokenizers`
    "How the text is split before the merges. Raises `UserError` for a way that is not known."
    tokenizers = need("tokenizers", "smollm")
    parts, words = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel(False)
    if name in ("gpt-2", "gpt2", "default"):
        return words
    if name == "smollm":
        return parts.Sequence([parts.Digits(individual_digits=True), words])
    if name in _LLAMA3:
        split = parts.Split(tokenizers.Regex(_LLAMA3_SPLIT), "isolated")
        return parts.Sequence([split, parts.ByteLevel(False, use_regex=False)])
    raise UserError(f"{path} splits text in the way {name!r:.40}, which is not supported.")


def merges_of_gguf(
    about: dict,  # the settings of a GGUF file
    path: Path | str,
):  # a Tokenizer of the package `tokenizers`
    "The merges of a GGUF file, with the split that stands before them."
    start = "tokenizer.ggml."
    tokens = _list_of(about.get(f"{start}tokens"), str, path)
    merges = [tuple(m.split(" ")) for m in _list_of(about.get(f"{start}merges"), str, path)]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{path}: a merge of the tokenizer is not of two parts: fetch it again.")
    kinds = list(zip(tokens, _list_of(about.get(f"{start}token_type", []), int, path)))
    controls = {token: i for i, (token, kind) in enumerate(kinds) if kind == _CONTROL}
    words = {token: i for i, (token, kind) in enumerate(kinds) if kind == _WORD}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{path}: two tokens of the tokenizer are the same: fetch it again.")
    pre = about.get(f"{start}pre", "default")
    return _byte_level(vocabulary, merges, pre, controls, words, path)


def _byte_level(
    vocabulary: dict[str, int],
    merges: list,
    pre: str,
    controls: dict[str, int],
    words: dict[str, int],
    path: Path | str,
) -> Any:
    "A Tokenizer of the package `tokenizers` over letters that stand for bytes."
    tokenizers = need("tokenizers", "smollm")
    # Llama 3 takes a piece of text that is a token whole, even if no merges lead there
    whole = pre in _LLAMA3
    try:
        bpe = tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole)
    except Exception as error:  # of a kind that the package does not name
        raise UserError(f"{path}: its merges are damaged ({str(error)[:200]}).") from None
    made = tokenizers.Tokenizer(bpe)
    made.pre_tokenizer = splitter(pre, path)
    made.decoder = tokenizers.decoders.ByteLevel()
    token = tokenizers.AddedToken
    made.add_special_tokens([token(word, normalized=False) for word in controls])
    made.add_tokens([token(word, normalized=False, special=False) for word in words])
    made.encode_special_tokens = True  # control words in a text are text
    return made


def tokenizer_of_gguf(path: Path | str) -> Tokenizer | ByteLevelTokenizer:
    "The tokenizer in a GGUF file: byte-level merges, or a SentencePiece model such as LLaMA's."
    about = gguf_header(Path(path))[0]
    start = "tokenizer.ggml."
    part = {key.removeprefix(start): value for key, value in about.items() if key.startswith(start)}
    kind, template = part.get("model"), about.get("tokenizer.chat_template")
    if kind not in ("gpt2", "llama") or not part.get("tokens"):
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r:.40}: 'gpt2' and 'llama' are read."
        )
    if template is not None and not isinstance(template, str):
        raise UserError(f"{path}: its chat template is no text: fetch it again.")
    n = len(part["tokens"]) if isinstance(part["tokens"], list) else 0
    named = {name: part.get(f"{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    for name, i in named.items():
        if i is not None and (type(i) is not int or not 0 <= i < n):
            raise UserError(f"{path}: {name.upper()} is token {i!r:.20} of {n}: fetch it again.")
    made: Tokenizer | ByteLevelTokenizer
    if kind == "llama":
        made = _sentencepiece_of_gguf(part, path, template)
    else:
        merges = merges_of_gguf(about, path)
        controls = {t.content: i for i, t in merges.get_added_tokens_decoder().items() if t.special}
        bos, eos = (-1 if (i := named[name]) is None else int(i) for name in ("bos", "eos"))
        add_bos = bool(part.get("add_bos_token", part.get("pre") in _LLAMA3))
        made = ByteLevelTokenizer(merges, path, controls, bos, eos, add_bos, template)
    controls = made.controls  # type: ignore[union-attr]
    ends = {controls[word] for word in _ENDS & controls.keys()}
    made.stop_ids |= ends | {i for name in ("eos", "eot", "eom") if (i := named[name]) is not None}
    return made


def _sentencepiece_of_gguf(part: dict, path: Path | str, template: str | None) -> PieceTokenizer:
    "The SentencePiece model in a GGUF file, which keeps all that a tokenizer.model holds."
    tokens = _list_of(part["tokens"], str, path)
    n = len(tokens)
    types = _list_of(part.get("token_type", [1] * n), int, path)
    scores = _list_of(part.get("scores", [0.0] * n), float, path)
    if not n == len(types) == len(scores) or not set(types) <= set(range(1, 7)):
        raise UserError(
            f"{path}: the tokenizer's pieces, scores and types do not fit: fetch it again."
        )
    first = {}
    for name, key, usual in (("unk", "unknown", 0), ("bos", "bos", 1), ("eos", "eos", 2)):
        i = first[name] = part.get(f"{key}_token_id", usual)
        if type(i) is not int or not 0 <= i < n:
            raise UserError(f"{path}: {name.upper()} is token {i!r:.20} of {n}: fetch it again.")
    prefix = bool(part.get("add_space_prefix", True))
    model = model_of_pieces(zip(tokens, scores, types), first, prefix)
    form = model.normalizer_spec
    form.remove_extra_whitespaces = bool(part.get("remove_extra_whitespaces", False))
    charsmap = _list_of(part.get("precompiled_charsmap", []), int, path)
    form.precompiled_charsmap = bytes(byte % 256 for byte in charsmap)
    # llama.cpp puts the first space after every control token
    return tokenizer_from_model(
        model, path, {}, {}, part.get("add_bos_token") is not False, template
    )


def _surroundings(folder: Path) -> dict:
    """tokenizer_config.json and what else a folder says of its tokenizer.

    `added`: word -> (id, whether it is a control token); `found`: whether there is anything.
    """
    file = folder / "tokenizer_config.json"
    about = read_json_table(file) if file.is_file() else {}
    special = folder / "special_tokens_map.json"
    named = (read_json_table(special) if special.is_file() else {}) | about
    template = about.get("chat_template")
    if isinstance(template, list):  # several, by name
        named_templates = [t for t in template if isinstance(t, dict) and "template" in t]
        template = next(
            (t["template"] for t in named_templates if t.get("name") == "default"), None
        )
    if (beside := folder / "chat_template.jinja").is_file():
        try:
            template = beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{beside} cannot be read ({error}): fetch it again.") from None
    if template is not None and not isinstance(template, str):
        raise UserError(f"{file}: its chat_template is {template!r:.40}, no text: fetch it again.")
    words = {name: _word(named.get(name), file) for name in ("bos_token", "eos_token")}
    controls = {_word(named.get(f"{name}_token"), file) for name in _NAMED}
    extra = named.get("additional_special_tokens")
    controls |= {_word(value, file) for value in (extra if isinstance(extra, list) else [])}
    about["chat_template"], about["added"] = template, _added(folder, about, controls)
    about["found"] = bool(template or about["added"] or file.is_file())
    return about | words


def _added(folder: Path, about: dict, controls: set) -> dict[str, tuple[int, bool]]:
    "The tokens that were added to a tokenizer, by their words."
    path, decoder = folder / "added_tokens.json", about.get("added_tokens_decoder") or {}
    older = read_json_table(path) if path.is_file() else {}
    added: dict[str, tuple[int, bool]] = {}
    try:
        for word, i in older.items():
            added[word] = int(i), word in controls
        for key, token in decoder.items():
            added[token["content"]] = int(key), bool(token.get("special"))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{folder}: its added tokens are damaged ({error}): fetch them.") from None
    ids = [i for i, _ in added.values()]
    if len(set(ids)) != len(ids) or not all(isinstance(w, str) and w for w in added):
        raise UserError(f"{folder}: two added tokens have one id, or one has no word.")
    if ids and not 0 <= min(ids) <= max(ids) < 2**24:
        raise UserError(f"{folder}: token {max(ids)} is more than any vocabulary has.")
    return added


def _stops(folder: Path, size: int) -> set[int]:
    "The ids that end a text, by generation_config.json and config.json."
    stops: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        given = read_json_table(folder / name).get("eos_token_id")
        for i in given if isinstance(given, list) else [] if given is None else [given]:
            if type(i) is not int or not 0 <= i < size:
                if type(i) is int:
                    continue  # of another vocabulary: nothing that is generated
                raise UserError(f"{folder / name}: eos_token_id is {i!r:.40}, no token's number.")
            stops.add(i)
    return stops


def _sampling(folder: Path) -> dict[str, Any]:
    "How generation_config.json recommends to draw tokens."
    path = folder / "generation_config.json"
    given = read_json_table(path) if path.is_file() else {}
    numbers = {name: given[name] for name in SAMPLING.split() if given.get(name) is not None}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not -(2**53) < value < 2**53:
            raise UserError(f"{path}: {name} is {value!r:.40}, no number: restore the file.")
    return numbers


def _word(value: Any, path: Path) -> str | None:
    "A token as a settings file writes it: a text, or a table with its content."
    word = value.get("content") if isinstance(value, dict) else value
    if word is not None and not isinstance(word, str):
        raise UserError(f"{path}: {value!r:.60} is no token: fetch it again.")
    return word


def _list_of(value: Any, kind: type, path: Path | str) -> list:
    "The list, if it is one of that kind. Raises `UserError`."
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise UserError(f"{path}: a list of the tokenizer is damaged: fetch it again.")
    return value


def _is_ranks(path: Path) -> bool:
    "Whether the file has lines of base64 and a number."
    with open(path, "rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\s", file.read(400)) is not None
