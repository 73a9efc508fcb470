"""Crawls: the pages of WARC and WET files, written and read with warcio.

Of a file that was cut off in the middle, warcio reads what is there and ends without a word. So
the file is unpacked with Python's gzip, which complains, and each record's length and digest are
checked.
"""

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_course.corpus.documents import GIGANTIC, DamagedFile
from llama_course.data import Document
from llama_course.support.disk import atomic_write
from llama_course.support.optional import need
from llama_course.web import html_text

CHARSET = re.compile(rb"""charset=["']?([\w.:-]+)""", re.IGNORECASE)
LATIN = dict.fromkeys(
    ("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii"), "cp1252"
)  # as browsers do
READABLE = ("text/html", "application/xhtml", "text/plain")


def write_warc(
    path: str | Path,  # .warc.gz
    pages: Iterable[tuple[str, str, bytes]],  # address, content type, content
) -> None:
    "Writes the pages as the answers of a server, whole or not at all."
    headers = _warcio("statusandheaders").StatusAndHeaders
    with atomic_write(path) as file:
        writer = _warcio("warcwriter").WARCWriter(file, gzip=True)
        for address, kind, raw in pages:
            answer = headers("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                address, "response", payload=io.BytesIO(raw), http_headers=answer
            )
            writer.write_record(record)


def write_wet(
    path: str | Path,  # .warc.wet.gz
    documents: Iterable[Document],  # their names are addresses
) -> None:
    "Writes the texts as records of a WET file, whole or not at all."
    with atomic_write(path) as file:
        writer = _warcio("warcwriter").WARCWriter(file, gzip=True)
        for document in documents:
            raw = io.BytesIO(document.text.encode("utf-8", "surrogateescape"))
            record = writer.create_warc_record(
                document.name, "conversion", payload=raw, warc_content_type="text/plain"
            )
            writer.write_record(record)


def read_warc(
    path: str | Path,  # .warc.gz, .warc.wet.gz, or the same unpacked
    source: str = "commoncrawl",
    skipped: Counter | None = None,  # gets the reasons why records are no pages
    limit: int = GIGANTIC,  # bytes of one page; one more is read, for `not_gigantic`
) -> Iterator[Document]:
    "The pages of a crawl, named by their addresses. Raises `DamagedFile`."
    skipped = Counter() if skipped is None else skipped
    failed = _warcio("exceptions").ArchiveLoadFailed
    count = 0
    try:
        for record in _records(path):
            text, reason = _page_text(record, limit)
            if text is None:
                skipped[reason] += 1
                continue
            count += 1
            address = record.rec_headers.get_header("WARC-Target-URI")
            yield Document(source, address or f"page {count}", text)
    except FileNotFoundError:
        raise DamagedFile(f"{path} does not exist: check the path.") from None
    except (OSError, ValueError, AttributeError, failed) as error:
        raise DamagedFile(
            f"{path} is damaged or no WARC file, after {count:,} pages ({error}): fetch it again."
        ) from None


def decode_page(
    raw: bytes,
    content_type: str = "",  # what the server said
) -> str:
    "The page as text, by the encoding that the server or else the page declares; UTF-8 otherwise."
    declared = CHARSET.search(content_type.encode("utf-8", "replace")) or CHARSET.search(raw[:2048])
    name = declared[1].decode().lower() if declared else "utf-8"
    try:
        return raw.decode("cp1252" if name in LATIN else name, "surrogateescape").removeprefix(
            "\ufeff"
        )
    except (LookupError, UnicodeDecodeError):  # no such encoding, or no such text
        return raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _warcio(module: str) -> Any:
    return need(f"warcio.{module}", "data")


def _page_text(record, limit) -> tuple[str | None, str | None]:
    "(text, None) of a record, or (None, why there is none)."
    if record.rec_type == "conversion":  # a WET file's
        return record.content_stream().read(limit + 1).decode("utf-8", "surrogateescape"), None
    if record.rec_type != "response" or record.http_headers is None:
        return None, record.rec_type
    if record.http_headers.get_statuscode() != "200":
        return None, f"status {record.http_headers.get_statuscode()}"
    kind = (record.http_headers.get_header("Content-Type") or "").lower()
    if not kind.startswith(READABLE):
        return None, kind.split(";")[0] or "no content type"
    text = decode_page(record.content_stream().read(limit + 1), kind)
    if kind.startswith("text/plain"):
        return text, None
    try:
        return html_text(text), None
    except (RecursionError, ValueError, AssertionError):  # tags within tags, and the like
        return None, "not to be parsed"


class _CheckedFile:
    "A file; what is wrong with it is a ValueError, which warcio lets through."

    def __init__(self, file):
        self.file, self.tail = file, b""

    def read(self, size=-1):
        try:
            data = self.file.read(size)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(str(error)) from None
        self.tail = (self.tail + data)[-4:]
        return data


def _records(path):
    "The records of a WARC or WET file; each is checked when the next is asked for."
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path) if packed else open(path, "rb")
    with opened as file:
        whole = _CheckedFile(file)
        for record in _warcio("archiveiterator").ArchiveIterator(whole, check_digests=True):
            yield record
            while record.raw_stream.read(1 << 20):  # what the reader left
                pass
            if record.raw_stream.limit or record.digest_checker.passed is False:
                raise ValueError(f"at {record.rec_headers.get_header('WARC-Target-URI')}")
        if whole.tail != b"\r\n\r\n":  # so every record ends
            raise ValueError("its last record is cut off")
