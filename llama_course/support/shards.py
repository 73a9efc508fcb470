"""Token shards: the tokens of many documents in one file that can say what it is.

In front of the tokens stand 128 bytes: a magic word, the version, the bytes per token, the number
of tokens, the vocabulary, the bytes of text that they stand for, the tokenizer's fingerprint, and
a SHA-256 over all of this and the tokens. Opening a shard reads these 128 bytes, whatever its size;
`verify` reads all of it. Chapter 3 has the idea: tokens are an array on disk that
is mapped into memory.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError

MAGIC = b"LLAMATOK"
VERSION = 1
# magic word, version, bytes per token, tokens, vocabulary, bytes of text, tokenizer's fingerprint
FIELDS = struct.Struct("<8sIIQQQ32s24x")
PAYLOAD = FIELDS.size + 32  # the tokens begin after the fields and their checksum


class ShardHeader(NamedTuple):
    "What stands in front of the tokens."

    width: int  # bytes per token
    tokens: int
    vocab_size: int
    text_bytes: int  # of the text in UTF-8
    tokenizer: str  # fingerprint, 64 hexadecimal digits


class Shard:
    "The tokens of one file, mapped into memory. Opening it reads the header alone."

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any = None,  # if given, the shard must have been written with it
    ):
        self.path = Path(path)
        header, self.digest = _header(self.path)
        self.vocab_size, self.text_bytes, self.tokenizer = header[2:]
        if tokenizer is not None and tokenizer.fingerprint != self.tokenizer:
            theirs, yours = self.tokenizer[:8], tokenizer.fingerprint[:8]
            raise UserError(
                f"{path} was written with another tokenizer (fingerprint {theirs}, yours"
                f" {yours}): load that one, or write the shard anew."
            )
        dtype, shape = f"<u{header.width}", (header.tokens,)
        mapped = np.memmap(self.path, dtype, mode="r", offset=PAYLOAD, shape=shape)
        self.tokens = np.asarray(mapped)  # the same memory as a plain array: faster to cut from

    def __len__(self) -> int:
        return len(self.tokens)

    def verify(
        self,
        read: Callable[[int], Any] = lambda n: None,  # is called after every so many bytes
    ) -> "Shard":  # itself
        "Reads all of it once. Raises `UserError` if one bit is not as it was written."
        with open(self.path, "rb") as file:
            head = file.read(PAYLOAD)
            digest = hashlib.sha256()
            while part := file.read(2**24):
                digest.update(part)
                read(len(part))
        digest.update(head[: FIELDS.size])
        if digest.digest() != head[FIELDS.size :]:
            raise UserError(f"{self.path} is damaged, its checksum is wrong: write it anew.")
        return self


def write_shard(
    path: str | Path,
    documents: Iterable,  # Documents, gone through once
    tokenizer: Any,  # has encode(text, bos, eos), vocab_size and fingerprint
) -> Shard:  # opened
    "Writes BOS, tokens, EOS of each document, whole or not at all. Raises `UserError`."
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    count = text_bytes = 0
    digest = hashlib.sha256()
    with atomic_write(path) as file:
        file.write(bytes(PAYLOAD))  # the fields are known only at the end
        for document in documents:
            ids = encode_document(document, tokenizer).astype(dtype)
            file.write(ids.tobytes())
            digest.update(ids.tobytes())
            count, text_bytes = count + len(ids), text_bytes + len(document.text.encode())
        if not count:
            raise UserError(
                f"{path}: there is not one document to write: check the source and the split."
            )
        fields = FIELDS.pack(
            MAGIC,
            VERSION,
            dtype.itemsize,
            count,
            tokenizer.vocab_size,
            text_bytes,
            bytes.fromhex(tokenizer.fingerprint),
        )
        digest.update(fields)
        file.seek(0)
        file.write(fields + digest.digest())
    return Shard(path)


def encode_document(
    document: Any,  # has source, name and text
    tokenizer: Any,
) -> np.ndarray:  # (n,) ids, with BOS in front and EOS behind
    "The document's tokens. Raises `UserError`, with its name, for text that has no tokens."
    try:
        ids = np.array(tokenizer.encode(document.text, bos=True, eos=True))
    except UserError as error:
        raise UserError(f"{document.source}/{document.name}: {error}") from None
    assert 0 <= ids.min() and ids.max() < tokenizer.vocab_size, "the tokenizer left its vocabulary"
    return ids


def _header(path: Path) -> tuple[ShardHeader, str]:  # what it says; the checksum of all
    "The header of a file that has its length. Raises `UserError`."
    try:
        with open(path, "rb") as file:
            head = file.read(PAYLOAD)
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(
            f"cannot read the shard {path}: {error.strerror}; check the path."
        ) from None
    if len(head) < PAYLOAD or not head.startswith(MAGIC):
        raise UserError(
            f"{path} is not a token shard of this library: give another path, or write it anew."
        )
    _, version, width, count, vocab_size, text_bytes, tokenizer = FIELDS.unpack_from(head)
    if version != VERSION:
        raise UserError(
            f"{path} has format {version}, and this library reads format {VERSION}: write it anew."
        )
    whole = PAYLOAD + width * count
    if size < whole:
        raise UserError(f"{path} is cut off after {size:,} of {whole:,} bytes: write it anew.")
    if size > whole or width not in (2, 4):
        raise UserError(f"{path} is damaged, it has not the length of its tokens: write it anew.")
    return ShardHeader(width, count, vocab_size, text_bytes, tokenizer.hex()), head[
        FIELDS.size :
    ].hex()
