"""The public dumps of Wikipedia and StackExchange, read one page or post at a time.

A dump is larger than memory, and so may one element of a damaged or hostile one be. expat gives the
text of an element in pieces, of which no more are kept than a document may have; an element's own
tag, attributes included, it holds whole, and a tag that does not end ends the reading.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from llama_course.corpus.documents import GIGANTIC
from llama_course.data import Document

XML_CHUNK = 2**16  # bytes that are read at a time
PAGE_FIELDS = ("ns", "title", "text")


class _Elements:
    "The elements of a file in their order, as far as they were read."

    def __init__(self, limit: int):
        self.limit, self.is_moving = limit, False
        self.done: list[Any] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.begin
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text

    def begin(self, tag: str, attributes: dict) -> None:
        self.is_moving = True

    def end(self, tag: str) -> None:
        self.is_moving = True

    def text(self, text: str) -> None:
        self.is_moving = True

    def read(self, file: Any) -> Iterator[Any]:
        "What the handlers put into `done`. Raises `ExpatError`, also at a tag without end."
        waiting = 0
        while chunk := file.read(XML_CHUNK):
            self.is_moving = False
            self.parser.Parse(chunk)
            waiting = 0 if self.is_moving else waiting + len(chunk)
            if waiting > self.limit:
                raise expat.ExpatError(f"a tag of more than {self.limit:,} bytes")
            yield from self.done
            self.done.clear()
        self.parser.Parse(b"", True)
        yield from self.done


class _Pages(_Elements):
    "Pages as {ns, title, text, redirect}."

    def __init__(self, limit: int):
        super().__init__(limit)
        self.page: dict[str, list[str]] | None = None  # the pieces of each field
        self.field, self.size = "", 0

    def begin(self, tag, attributes):
        super().begin(tag, attributes)
        if tag == "page":
            self.page = {}
        elif self.page is not None and tag not in self.page:  # of several revisions the first
            self.page[tag], self.field, self.size = [], tag, 0

    def text(self, text):
        super().text(text)
        if self.page is not None and self.field in PAGE_FIELDS and self.size <= self.limit:
            self.page[self.field].append(text[: self.limit + 1 - self.size])
            self.size += len(text)

    def end(self, tag):
        super().end(tag)
        self.field = ""
        if tag == "page" and self.page is not None:
            fields = {name: "".join(self.page.get(name, [])) for name in PAGE_FIELDS}
            self.done.append(fields | {"redirect": "redirect" in self.page})
            self.page = None


class _Rows(_Elements):
    "The attributes of each row."

    def begin(self, tag, attributes):
        super().begin(tag, attributes)
        if tag == "row":
            self.done.append(attributes)


def wiki_pages(
    file: Any,  # a dump in XML: a path, or an open file
    source: str = "wikipedia",
    limit: int = GIGANTIC,  # characters of one page; one more is kept, for `not_gigantic`
) -> Iterator[Document]:
    "The articles of a dump as they were typed; redirections and talk pages are left out."
    for page in _opened(_Pages(limit), file):
        if page["ns"] == "0" and not page["redirect"]:
            yield Document(source, page["title"], page["text"])


def stackexchange_posts(
    file: Any,  # Posts.xml: a path, or an open file
    limit: int = 4 * GIGANTIC,  # bytes of one post
) -> Iterator[dict]:
    "The attributes of each post of a StackExchange dump."
    yield from _opened(_Rows(limit), file)


def _opened(elements: _Elements, file: Any) -> Iterator[Any]:
    if hasattr(file, "read"):
        yield from elements.read(file)
        return
    with open(Path(file), "rb") as opened:
        yield from elements.read(opened)
