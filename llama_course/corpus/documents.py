"""Files as documents, whatever is in them: reading never fails and never loses a byte; steps that
count drop.

Bytes that are no UTF-8 become lone surrogates, characters that no valid text contains, one for
each byte.
"""

import re
from pathlib import Path

from llama_course.data import Document, text_bytes
from llama_course.support.errors import UserError

GIGANTIC = 20_000_000  # bytes: all of Shakespeare's plays, four times
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class DamagedFile(UserError):
    "An input file that cannot be read to its end."


def from_bytes(
    source: str,
    name: str,
    raw: bytes,
) -> Document:
    "The bytes as a Document; what is not UTF-8 becomes lone surrogates."
    return Document(
        source, name, raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    )


def read_document(
    path: str | Path,
    source: str,
    name: str | None = None,  # the path, if it is not given
    limit: int = GIGANTIC,  # of a larger file one byte more is read, to see that it is larger
) -> Document:
    "The file as a Document, whatever is in it. Raises `DamagedFile` where it cannot be read."
    try:
        with open(path, "rb") as file:
            return from_bytes(source, name or str(path), file.read(limit + 1))
    except OSError as error:
        raise DamagedFile(f"cannot read {path}: {error.strerror}; check the path.") from None


def not_empty(document: Document) -> Document | None:
    "Drops a document of nothing but white space."
    return document if document.text.strip() else None


def not_gigantic(
    document: Document,
    limit: int = GIGANTIC,  # bytes
) -> Document | None:
    "Drops a document that is larger than the limit."
    return document if text_bytes(document.text) <= limit else None


def not_binary(document: Document) -> Document | None:
    "Drops a document with a NUL character: a picture, an archive, a program."
    return None if "\0" in document.text else document


def well_encoded(document: Document) -> Document | None:
    "Drops text that was not UTF-8, or in which replacement marks are more than one in a thousand."
    marks = document.text.count("\ufffd")
    lost = marks * 1000 > len(document.text) or LONE_SURROGATE.search(document.text)
    return None if lost else document


# what every source goes through first: name -> step
SOUND = {
    "empty": not_empty,
    "gigantic": not_gigantic,
    "binary": not_binary,
    "wrongly encoded": well_encoded,
}
