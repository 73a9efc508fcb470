"""Raw formats: each reader takes one file and gives all that is in it as Documents, the bad ones
too.

What is no Document at all (a line that is not JSON, a row without text) is counted by its reason;
the empty, gigantic, binary and wrongly encoded are dropped and counted later, by `SOUND`.
"""

import bz2
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

from llama_course.corpus.documents import GIGANTIC, read_document
from llama_course.corpus.dumps import stackexchange_posts, wiki_pages
from llama_course.corpus.warc import read_warc
from llama_course.data import Document
from llama_course.sources import threads
from llama_course.support.errors import UserError
from llama_course.support.optional import need

PlacedRows = Iterable[
    tuple[str, Any]
]  # where a row stands; what it holds, a dict or something else


def row_documents(
    rows: PlacedRows,
    source: str,
    bad: Counter,  # gets the reasons why rows are no documents
    text: str = "text",  # the column of the text
    name: str = "id",  # the column of the name
) -> Iterator[Document]:
    "Each row that has a text as a Document, named by its name or else by its place."
    for place, row in rows:
        if not isinstance(row, dict):
            bad["not a JSON object"] += 1
        elif not isinstance(row.get(text), str):
            bad[f"no text under {text!r}"] += 1
        else:
            yield Document(source, str(row.get(name) or place), row[text])


def json_rows(
    path: str | Path,  # .jsonl, or .jsonl.gz
    limit: int = 4 * GIGANTIC,  # bytes; a longer line is not even parsed
) -> Iterator[tuple[str, Any]]:  # place, content; None for what is no JSON
    "The lines of a file. Raises `UserError` for a damaged one."
    unpacked: Any = gzip.open if str(path).endswith(".gz") else open
    try:
        with unpacked(path, "rb") as file:
            for number, line in enumerate(_limited_lines(file, limit), 1):
                if line.strip():
                    yield f"{Path(path).name}:{number}", _parsed(line)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from None


def dataset_rows(
    path: str,  # a name on the hub, a kind of file ("json") with data_files, or a saved folder
    options: dict,  # what datasets.load_dataset takes beside: name, split, data_files, ...
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[str, Any]]:  # place, row
    "This rank's rows of a data set, streamed. Raises `UserError` where it cannot be opened."
    datasets = need("datasets", "data")
    try:
        if (Path(path) / "state.json").exists():
            rows = datasets.load_from_disk(path).to_iterable_dataset(num_shards=world_size)
        else:
            rows = datasets.load_dataset(path, streaming=True, **({"split": "train"} | options))
    except Exception as error:  # whatever it was, the user named what cannot be opened
        raise UserError(
            f"the data set {path} cannot be opened ({type(error).__name__}: {error})."
        ) from None
    parts = min(world_size, rows.num_shards)
    if rank < parts:
        part = rows.shard(parts, rank, contiguous=True)
        yield from ((f"{rank}:{number}", row) for number, row in enumerate(part))


def _limited_lines(file, limit):
    "The lines of a file; of one that is too long only the beginning, which is no JSON then."
    while line := file.readline(limit):
        yield line
        while len(line) == limit and not line.endswith(b"\n"):
            line = file.readline(limit)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None


def _unreadable(path, error) -> UserError:
    return UserError(f"{path} cannot be read to its end ({error}): fetch it again.")


def _read_xml(path, documents):
    try:
        yield from documents
    except (ParseError, OSError, EOFError) as error:
        raise _unreadable(path, error) from None


def _warc(path, source, bad, columns):
    return read_warc(path, source, bad)


def _jsonl(path, source, bad, columns):
    return row_documents(json_rows(path), source, bad, **columns)


def _text(path, source, bad, columns):
    yield read_document(path, source)


def _wikipedia(path, source, bad, columns):
    unpacked: Any = bz2.open if str(path).endswith(".bz2") else open
    with unpacked(path, "rb") as file:
        yield from _read_xml(path, wiki_pages(file, source))


def _stackexchange(path, source, bad, columns):
    lonely: list[str] = []
    yield from _read_xml(path, threads(stackexchange_posts(path), source, lonely))
    if lonely:
        bad["answer without a question"] += len(lonely)


class RawFormat(NamedTuple):
    "A kind of file."

    patterns: tuple[str, ...]  # which files of a folder are of this kind
    read: Callable  # (path, source, bad: Counter, columns: dict) -> Documents


RAW_FORMATS = {
    "warc": RawFormat(("*.warc.gz", "*.warc", "*.wet.gz", "*.wet"), _warc),
    "jsonl": RawFormat(("*.jsonl", "*.jsonl.gz"), _jsonl),
    "text": RawFormat(("*",), _text),
    "wikipedia": RawFormat(("*.xml", "*.xml.bz2"), _wikipedia),
    "stackexchange": RawFormat(("*.xml",), _stackexchange),
}
