"SentencePiece models that were written down in another form, made into models again."

import json
import tempfile
from collections.abc import Iterable
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from llama_course.bpe import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from llama_course.files.tokenizers import ByteLevelTokenizer, PieceTokenizer
from llama_course.support.errors import UserError
from llama_course.tokenizer import META


def merges_of_pieces(
    scores: dict[str, float],  # piece -> score, in the order of the ids
) -> list[tuple[str, str]]:
    "Every way to join two pieces into a third, the best piece first: what a score stands for."
    ids = {piece: i for i, piece in enumerate(scores)}
    found = [
        (-score, ids[piece[:cut]], ids[piece[cut:]], piece, cut)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(piece[:cut], piece[cut:]) for *_, piece, cut in sorted(found)]


def model_of_pieces(
    pieces: Iterable[tuple[str, float, int]],  # piece, score, type
    first: dict[str, int],  # the ids of unk, bos and eos
    prefix: bool,  # whether a space is put before a text
) -> Any:  # SentencePiece's ModelProto
    "A model of merges with these pieces, as LLaMA's: identity, no space lost, bytes for the rest."
    protobuf = import_module("sentencepiece.sentencepiece_model_pb2")  # slow to import
    model = protobuf.ModelProto()
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    about, form = model.trainer_spec, model.normalizer_spec
    about.model_type, about.vocab_size = about.BPE, len(model.pieces)
    about.byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    for name, i in first.items():
        setattr(about, f"{name}_id", i)
        setattr(about, f"{name}_piece", model.pieces[i].piece)
    form.name, form.add_dummy_prefix, form.remove_extra_whitespaces = "identity", prefix, False
    return model


def tokenizer_from_model(
    model: Any,  # SentencePiece's ModelProto
    path: Path | str,  # where it comes from
    *more: Any,  # of `PieceTokenizer`
) -> PieceTokenizer:
    "The tokenizer of a model that has no file of its own. Raises `UserError` with the path."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(model.SerializeToString())
        try:
            tokenizer = PieceTokenizer(file, *more)
        except UserError as error:
            raise UserError(str(error).replace(str(file), str(path))) from None
    tokenizer.path = Path(path)
    return tokenizer


def pieces_of_json(
    tokenizer: ByteLevelTokenizer,
) -> PieceTokenizer | None:  # None: these merges are of bytes
    """The SentencePiece model that a tokenizer.json was made from, such as Llama 2's.

    A merge's place in the file is the score of the piece that it makes. Raises `UserError` where
    that gives other merges than those of the file.
    """
    about = json.loads(tokenizer._merges.to_str())
    merges, vocabulary = about["model"], about["model"]["vocab"]
    if not merges.get("byte_fallback"):
        return None
    no = UserError(
        f"{tokenizer.path} is no SentencePiece model that was written as JSON: export to hf."
    )
    prefix, everywhere = _first_space(about, no)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise no
    controls = {i: word for word, i in tokenizer.controls.items()}
    words = {t["id"]: t["content"] for t in about["added_tokens"] if not t["special"]}
    kinds = [
        UNKNOWN
        if token == merges["unk_token"]
        else CONTROL
        if i in controls
        else USER_DEFINED
        if i in words
        else BYTE
        if len(token) == 6 and token.startswith("<0x")
        else NORMAL
        for i, token in enumerate(tokens)
    ]
    normal = {token for token, kind in zip(tokens, kinds) if kind == NORMAL}
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges["merges"]]
    pairs = [pair for pair in pairs if "".join(pair) in normal]
    order = [piece for piece, _ in groupby("".join(pair) for pair in pairs)]
    scores = {piece: -float(rank) for rank, piece in enumerate(order)}
    lowest = -float(len(order))
    plain = {token: scores.get(token, lowest) for token in tokens if token in normal}
    if len(scores) < len(order) or set(merges_of_pieces(plain)) != set(pairs):
        raise no
    unknown = vocabulary.get(merges["unk_token"], -1)
    first = {"unk": unknown, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if not all(0 <= i < len(tokens) for i in first.values()):
        raise no
    rows = [(t, plain.get(t, 0.0), kind) for t, kind in zip(tokens, kinds)]
    made = tokenizer_from_model(
        model_of_pieces(rows, first, prefix),
        tokenizer.path,
        {word: i for i, word in controls.items() if i >= len(tokens)},
        {word: i for i, word in words.items() if i >= len(tokens)},
        tokenizer.add_bos,
        tokenizer.chat_template,
        everywhere,
    )
    made.stop_ids, made.vocab_size = tokenizer.stop_ids, tokenizer.vocab_size
    made.generation = tokenizer.generation
    return made


def _first_space(about: dict, no: UserError) -> tuple[bool, bool]:
    "Whether a space is put before a text, and also after each control token. Raises the error."
    steps = about["normalizer"] or {"type": "Sequence", "normalizers": []}
    kinds = [step["type"] for step in steps.get("normalizers", [steps])]
    before = about["pre_tokenizer"]
    if not set(kinds) <= {"Prepend", "Replace"} or before and before["type"] != "Metaspace":
        raise no
    if before is None:
        return "Prepend" in kinds, True
    if before.get("split", True) or before["replacement"] != META:
        raise no
    return before["prepend_scheme"] != "never", before["prepend_scheme"] == "always"
