"The public dumps of Wikipedia and StackExchange, read one page or post at a time."

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from llama_course.data import Document


def wiki_pages(
    file: Any,  # a dump in XML: a path, or an open file
    source: str = "wikipedia",
) -> Iterator[Document]:
    "The articles of a dump as they were typed; redirections and talk pages are left out."
    for _, page in ElementTree.iterparse(file):
        if page.tag.rpartition("}")[2] != "page":
            continue
        namespace, title = page.findtext(".//{*}ns"), page.findtext(".//{*}title")
        if namespace == "0" and page.find(".//{*}redirect") is None:
            yield Document(source, title or "", page.findtext(".//{*}text") or "")
        page.clear()  # a dump is larger than memory


def stackexchange_posts(
    file: Any,  # Posts.xml: a path, or an open file
) -> Iterator[dict]:
    "The attributes of each post of a StackExchange dump."
    for _, row in ElementTree.iterparse(file):
        if row.tag == "row":
            yield dict(row.attrib)
        row.clear()
