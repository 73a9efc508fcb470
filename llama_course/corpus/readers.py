"""Raw formats: each reader takes one file and gives all that is in it as Documents, the bad ones
too.

A file that cannot be read to its end is a `DamagedFile`, whatever was read of it. What is no
Document at all (a line that is not JSON, a row without text) is counted by its reason; the empty,
gigantic, binary and wrongly encoded are dropped and counted later, by `SOUND`.
"""

import bz2
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

from llama_course.corpus.documents import GIGANTIC, DamagedFile, read_document
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
    """Each row that has a text as a Document, named by its name or else by its place.

    Rows without a place are named by a hash of their text: so a document keeps its name whatever
    else the data set holds, and however many tasks read it.
    """
    for place, row in rows:
        if not isinstance(row, dict):
            bad["not a JSON object"] += 1
        elif not isinstance(row.get(text), str):
            bad[f"no text under {text!r}"] += 1
        else:
            own = row.get(name)
            named = place or hash_of(row[text]) if own is None or own == "" else own
            yield Document(source, str(named), row[text])


def hash_of(text: str) -> str:
    "A name for a text that has none."
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def json_rows(
    path: str | Path,  # .jsonl, or .jsonl.gz
    limit: int = 4 * GIGANTIC,  # bytes; a longer line is not even parsed
) -> Iterator[tuple[str, Any]]:  # place, content; None for what is no JSON
    "The lines of a file. Raises `DamagedFile`."
    unpacked: Any = gzip.open if str(path).endswith(".gz") else open
    try:
        with unpacked(path, "rb") as file:
            for number, line in enumerate(_limited_lines(file, limit), 1):
                if line.strip():
                    yield f"{Path(path).name}:{number}", _parsed(line)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def dataset_parts(
    path: str,  # a name on the hub, a kind of file ("json") with data_files, or a saved folder
    options: dict,  # what datasets.load_dataset takes beside: name, split, data_files, ...
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Iterator[tuple[str, Any]]]:  # which part -> its rows, with no place
    """This rank's parts of a data set, streamed; most often a part is a file.

    Raises `UserError` where the data set cannot be opened, and in reading a part `DamagedFile`.
    """
    datasets = need("datasets", "data")
    try:
        if (Path(path) / "state.json").exists():
            rows = datasets.load_from_disk(path).to_iterable_dataset(num_shards=world_size)
        else:
            rows = _streamed(path, {"split": "train"} | options)
        number = rows.num_shards
    except Exception as error:  # whatever it was, the user named what cannot be opened
        raise UserError(
            f"the data set {path} cannot be opened ({type(error).__name__}: {_brief(error)})."
        ) from None
    own = range(rank * number // world_size, (rank + 1) * number // world_size)
    return {f"part {i} of {number}": _rows_of(rows, number, i) for i in own}


def _streamed(path: str, options: dict):
    "What `datasets.load_dataset` does for a stream, but a table may begin with no row."
    split = options.pop("split")
    for name in ("keep_in_memory", "save_infos", "trust_remote_code", "verification_mode"):
        options.pop(name, None)  # are of no account for a stream
    builder = need("datasets", "data").load_dataset_builder(path, **options)
    if getattr(builder.config, "batch_size", 0) is None:
        builder.config.batch_size = 1000  # else as many as the first group has, and 0 is refused
    return builder.as_streaming_dataset(split)


def _rows_of(rows, number: int, part: int) -> Iterator[tuple[str, Any]]:
    try:
        yield from (("", row) for row in rows.shard(number, part, contiguous=True))
    except Exception as error:  # of a reader that is not ours
        message = f"part {part} of {number} of the data set cannot be read ({_brief(error)})"
        raise DamagedFile(f"{message}: fetch it again.") from None


def _brief(error: BaseException) -> str:
    "The first line of what it says."
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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


def _unreadable(path, error) -> DamagedFile:
    return DamagedFile(f"{path} cannot be read to its end ({error}): fetch it again.")


def _read_xml(path, documents):
    try:
        yield from documents
    except (ExpatError, OSError, EOFError) as error:
        raise _unreadable(path, error) from None


def _warc(path, source, bad, columns):
    return read_warc(path, source, bad)


def _jsonl(path, source, bad, columns):
    return row_documents(json_rows(path), source, bad, **columns)


def _text(path, source, bad, columns):
    yield read_document(path, source)


def _wikipedia(path, source, bad, columns):
    unpacked: Any = bz2.open if str(path).endswith(".bz2") else open

    def pages():
        with unpacked(path, "rb") as file:
            yield from wiki_pages(file, source)

    yield from _read_xml(path, pages())


def _stackexchange(path, source, bad, columns):
    def rows():
        for row in stackexchange_posts(path):
            numbers = [row.get("Id"), row.get("Score", "0")]
            if all(n and n.removeprefix("-").isdecimal() for n in numbers):
                yield row
            else:
                bad["post without a number"] += 1

    lonely: list[str] = []
    yield from _read_xml(path, threads(rows(), source, lonely))
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
