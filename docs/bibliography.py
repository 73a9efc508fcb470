"The bibliography: references.bib as a page, and the links of all who cite it."

import re
import unicodedata
from pathlib import Path

from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

ROOT = Path(__file__).resolve().parent.parent
CITED = re.compile(
    r"(?P<name>[A-ZÀ-Ž][\w'-]+)(?: and (?!others)[A-Z][\w'-]+| et al\.| and others)?,?"
    r" \(?(?P<year>\d{4})(?!\d)"
)


def read_references() -> dict[str, Entry]:
    "Each work by its key, the first author's name and the year; also by its other keys."
    works = parse_file(str(ROOT / "docs" / "references.bib")).entries
    found = {}
    for key, work in works.items():
        found |= {
            name.strip(): work for name in [key, *work.fields.get("ids", "").split(",")] if name
        }
    return found


def references_page(works: dict[str, Entry]) -> str:
    "The page, in the order of the authors' names."
    lines = [
        "# Bibliography",
        "",
        "Everything that the course cites. A citation in a chapter leads here.",
        "",
    ]
    unique = {id(work): work for work in works.values()}.values()
    for work in sorted(unique, key=lambda work: (plain(authors(work)), work.fields["year"])):
        title = str(Text.from_latex(work.fields["title"]))  # without BibTeX's braces and accents
        paper = work.fields.get("eprint")
        link = (
            f"[arXiv {paper}](https://arxiv.org/abs/{paper})"
            if paper
            else f"<{work.fields['url']}>"
        )
        text = f"{authors(work)} ({work.fields['year']}). *{title}*. {link}"
        lines += [f"({work.key})=", "", text, ""]
    return "\n".join(lines)


def authors(work: Entry) -> str:
    "The last names; of many authors the first one's."
    people = [" ".join(map(str, person.rich_last_names)) for person in work.persons["author"]]
    if people[-1] == "others":
        return f"{people[0]} et al."
    return people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"


def plain(name: str) -> str:
    "The name as it is sorted, without accents."
    return unicodedata.normalize("NFD", name).encode("ascii", "ignore").decode()


def link_citations(text: str, works: dict[str, Entry]) -> str:
    "Prose in which a citation leads to the bibliography."

    def linked(match):
        work = works.get(f"{match['name'].lower()}{match['year']}")
        closing = ")" if "(" in match[0] else ""
        return (
            f"[{match[0]}{closing}](#{work.key}){NOTHING if closing else ''}" if work else match[0]
        )

    text = CITED.sub(linked, text)
    return text.replace(f"{NOTHING})", "").replace(NOTHING, "")


NOTHING = "\ue000"  # stands where a bracket was taken into the link
