"The glossary: one table, from which its page, links from chapters and the search are made."

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Term:
    "A term of the field."

    name: str
    polish: str
    meaning: str
    chapter: str = ""  # two digits: where it is built
    also: tuple[str, ...] = ()  # other words for it: plural, abbreviation

    @property
    def page(self) -> str:
        "The chapter's page, without the ending; empty if there is none."
        found = list((ROOT / "nbs").glob(f"{self.chapter}_*.ipynb")) if self.chapter else []
        return f"nbs/{found[0].stem}" if found else ""


def read_glossary() -> list[Term]:
    "The terms in the order of their names."
    path = ROOT / "docs" / "glossary.toml"
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["term"]
    terms = [Term(**row | {"also": tuple(row.get("also", ()))}) for row in rows]
    return sorted(terms, key=lambda term: term.name.lower())


def glossary_page(terms: list[Term]) -> str:
    "The page, with the Polish words: in the text and as a table by their own alphabet."
    lines = ["# Glossary", "", "Terms of the field as the course uses them, with the chapter that"
             " builds each, and in Polish.", "", "`````{glossary}"]  # fmt: skip
    for term in terms:
        where = f" [Chapter {int(term.chapter)}](../{term.page}.ipynb)." if term.page else ""
        lines += [term.name, f"  {term.meaning}{where} Polish: *{term.polish}*.", ""]
    lines += ["`````", "", "## Polski – English", "", "| polski | English |", "|---|---|"]
    for term in sorted(terms, key=lambda term: term.polish.lower().translate(ALPHABET)):
        lines.append(f"| {term.polish} | {{term}}`{term.name}` |")
    return "\n".join(lines) + "\n"


ALPHABET = str.maketrans({"ą": "a~", "ć": "c~", "ę": "e~", "ł": "l~", "ń": "n~", "ó": "o~",
                          "ś": "s~", "ż": "z~~", "ź": "z~"})  # fmt: skip


def link_terms(text: str, terms: list[Term], seen: set[str]) -> str:
    "Prose in which the first use of each term on the page leads to the glossary."
    words = {word: term for term in terms for word in (term.name, *term.also)}
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    known = {word.lower(): term for word, term in words.items()}

    def linked(match):
        if match["code"]:
            return match[0]
        term = known[match["word"].lower()]
        if term.name in seen:
            return match[0]
        seen.add(term.name)
        return f"{{term}}`{match['word']} <{term.name}>`"

    whole = rf"(?P<code>`+[^`]*`+)|(?<![\w/-])(?P<word>{pattern})(?![\w/-])"
    return re.sub(whole, linked, text, flags=re.IGNORECASE)
