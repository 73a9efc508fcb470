"""Token shards: the tokens of many documents in one file that can say what it is.

In front of the tokens stand 128 bytes: a magic word, the version, the bytes per token, the number
of tokens, the vocabulary, the bytes of text that they stand for, the tokenizer's fingerprint, and
a SHA-256 over all of this and the tokens. Opening a shard reads these 128 bytes, whatever its size;
`verify` reads all of it. Chapter 3 has the idea: tokens are an array on disk that
is mapped into memory.

SHA-256 runs through a file from its beginning to its end, on one core. A shard of more than one
piece (64 MiB) therefore has format 2: behind the tokens stands the SHA-256 of each piece, and the
one in front is over these and the fields. Its pieces can be read in any order, on all cores.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError

MAGIC = b"LLAMATOK"
WHOLE, IN_PIECES = 1, 2  # formats
PIECE = 2**26  # bytes of tokens with a checksum of their own
# magic word, version, bytes per token, tokens, vocabulary, bytes of text, tokenizer's fingerprint
FIELDS = struct.Struct("<8sIIQQQ32s24x")
PAYLOAD = FIELDS.size + 32  # the tokens begin after the fields and their checksum
_CHUNK = 2**24  # bytes that are read at a time


class ShardHeader(NamedTuple):
    "What stands in front of the tokens."

    width: int  # bytes per token
    tokens: int
    vocab_size: int
    text_bytes: int  # of the text in UTF-8
    tokenizer: str  # fingerprint, 64 hexadecimal digits
    version: int  # of the format


class Shard:
    "The tokens of one file, mapped into memory. Opening it reads the header alone."

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any = None,  # if given, the shard must have been written with it
    ):
        self.path = Path(path)
        header, self.digest = _header(self.path)
        self.vocab_size, self.text_bytes, self.tokenizer = header[2:5]
        self.in_pieces = header.version == IN_PIECES
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
        workers: int = 1,  # threads
    ) -> "Shard":  # itself
        "Reads all of it once. Raises `UserError` if one bit is not as it was written."
        verify_shards([self], read, workers)
        return self

    def parts(self) -> list[Callable[[Callable[[int], Any]], None]]:
        """What has to be done to verify it: calls that may run at once, each told who counts bytes.

        Each raises `UserError` if its part is not as it was written.
        """
        size, fields = self.tokens.nbytes, self._bytes(0, FIELDS.size)
        if not self.in_pieces:
            return [lambda read: self._compare(0, size, fields, bytes.fromhex(self.digest), read)]
        sums = self._bytes(PAYLOAD + size, None)
        if hashlib.sha256(sums + fields).hexdigest() != self.digest:
            raise UserError(f"{self.path} is damaged, its checksum is wrong: write it anew.")

        def of(i: int) -> Callable[[Callable[[int], Any]], None]:
            begin, end, told = i * PIECE, min((i + 1) * PIECE, size), sums[32 * i : 32 * i + 32]
            return lambda read: self._compare(begin, end, b"", told, read)

        return [of(i) for i in range(-(-size // PIECE))]

    def _compare(
        self, begin: int, end: int, after: bytes, told: bytes, read: Callable[[int], Any]
    ) -> None:
        "Raises `UserError` if these bytes of tokens, and what comes after, have another checksum."
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            file.seek(PAYLOAD + begin)
            for at in range(begin, end, _CHUNK):
                part = file.read(min(_CHUNK, end - at))
                digest.update(part)
                read(len(part))
        digest.update(after)
        if digest.digest() != told:
            raise UserError(
                f"{self.path} is damaged, the checksum of its bytes {PAYLOAD + begin:,} to"
                f" {PAYLOAD + end:,} is wrong: write it anew."
                if end - begin < self.tokens.nbytes
                else f"{self.path} is damaged, its checksum is wrong: write it anew."
            )

    def _bytes(self, begin: int, size: int | None) -> bytes:
        "From a place on; to the end where no size is given."
        with open(self.path, "rb") as file:
            file.seek(begin)
            return file.read(size)


def verify_shards(
    shards: Iterable[Shard],
    read: Callable[[int], Any] = lambda n: None,  # is called after every so many bytes
    workers: int = 1,  # threads; SHA-256 holds none of them up
) -> None:
    "Reads all of them once, several pieces at a time. Raises `UserError` at the first bad one."
    parts, lock = [part for shard in shards for part in shard.parts()], Lock()

    def counted(size: int) -> None:
        with lock:
            read(size)

    with ThreadPoolExecutor(workers) as pool:
        found = [pool.submit(part, counted) for part in parts]
        try:
            for future in found:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def write_shard(
    path: str | Path,
    documents: Iterable,  # Documents, gone through once
    tokenizer: Any,  # has encode(text, bos, eos), vocab_size and fingerprint
) -> Shard:  # opened
    "Writes BOS, tokens, EOS of each document, whole or not at all. Raises `UserError`."
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    count = text_bytes = 0
    pieces = _Pieces()
    with atomic_write(path) as file:
        file.write(bytes(PAYLOAD))  # the fields are known only at the end
        for document in documents:
            ids = encode_document(document, tokenizer).astype(dtype)
            file.write(ids.tobytes())
            pieces.update(ids.tobytes())
            count, text_bytes = count + len(ids), text_bytes + len(document.text.encode())
        if not count:
            raise UserError(
                f"{path}: there is not one document to write: check the source and the split."
            )
        fields = FIELDS.pack(
            MAGIC,
            IN_PIECES if count * dtype.itemsize > PIECE else WHOLE,
            dtype.itemsize,
            count,
            tokenizer.vocab_size,
            text_bytes,
            bytes.fromhex(tokenizer.fingerprint),
        )
        sums, digest = pieces.close()
        file.write(sums)
        digest.update(fields)
        file.seek(0)
        file.write(fields + digest.digest())
    return Shard(path)


class _Pieces:
    "The checksum of each piece of what is written, and the one over all of it."

    def __init__(self) -> None:
        self.sums, self.digest, self.room = b"", hashlib.sha256(), PIECE

    def update(self, data: bytes) -> None:
        "Some bytes more."
        for part in self._cut(memoryview(data)):
            if not self.room:
                self.sums += self.digest.digest()
                self.digest, self.room = hashlib.sha256(), PIECE
            self.digest.update(part)
            self.room -= len(part)

    def _cut(self, data: memoryview) -> Iterator[memoryview]:
        while data:
            size = self.room or PIECE
            yield data[:size]
            data = data[size:]

    def close(self) -> tuple[bytes, Any]:  # what stands behind the tokens; the digest to go on with
        "All is written. One piece has no checksum of its own."
        if not self.sums:
            return b"", self.digest
        sums = self.sums + self.digest.digest()
        return sums, hashlib.sha256(sums)


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
    if version not in (WHOLE, IN_PIECES):
        raise UserError(
            f"{path} has format {version}, and this library reads formats {WHOLE} and {IN_PIECES}:"
            " write it anew."
        )
    whole = PAYLOAD + width * count
    if version == IN_PIECES:
        whole += 32 * -(-width * count // PIECE)
    if size < whole:
        raise UserError(f"{path} is cut off after {size:,} of {whole:,} bytes: write it anew.")
    if size > whole or width not in (2, 4):
        raise UserError(f"{path} is damaged, it has not the length of its tokens: write it anew.")
    header = ShardHeader(width, count, vocab_size, text_bytes, tokenizer.hex(), version)
    return header, head[FIELDS.size :].hex()
