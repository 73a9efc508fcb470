"The judgement of one answer, as a table."

import html
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    "The judgement of one answer."

    name: str  # of the exercise
    looks: list[tuple]  # rows (look, points, of how many, remark)
    messages: list[str]  # what is wrong and where to look; empty where all is well
    mistake: Any = None  # the known mistake (`exercise.Mistake`) that the answer looks like
    notes: list[str] = field(default_factory=list)  # for the teacher: what it took from the judge
    next: str = ""  # where to go on, in Markdown, once it is passed
    picture: str = ""  # the result beside the target, as SVG

    @property
    def points(self) -> int:
        "What the answer is worth."
        return sum(row[1] for row in self.looks)

    @property
    def max_points(self) -> int:
        "What a right answer is worth."
        return sum(row[2] for row in self.looks)

    @property
    def passed(self) -> bool:
        "Whether it has all points."
        return self.points == self.max_points

    def __repr__(self) -> str:
        rows = [f"  {look:10} {got}/{most}  {remark}" for look, got, most, remark in self.looks]
        head = f"{self.name}: {self.points} of {self.max_points} points"
        done = [f"Right. {plain_links(self.next)}"] if self.passed and self.next else []
        return "\n".join([head, *rows, *self.messages, *done, *map(_noted, self.notes)])

    def _repr_html_(self) -> str:
        def cell(tag: str, text: object) -> str:
            return f'<{tag} style="text-align:left">{html.escape(str(text))}</{tag}>'

        last = ("all", self.points, self.max_points, "")
        rows = [("look", "points", "of", ""), *self.looks, last]
        table = "".join("<tr>" + "".join(cell("td", c) for c in row) + "</tr>" for row in rows)
        lines = "".join(
            cell("p", message) for message in [*self.messages, *map(_noted, self.notes)]
        )
        if self.passed and self.next:
            link = re.sub(r"\[([^]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', html.escape(self.next))
            lines = f"<p><b>Right.</b> {link}</p>{lines}"
        return f"<b>{html.escape(self.name)}</b><table>{table}</table>{lines}{self.picture}"


def _noted(text: str) -> str:
    return f"noted for the teacher: {text}"


def plain_links(
    markdown: str,
) -> str:
    "Markdown with links, as a terminal can show it."
    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", r"\1 in \2", markdown)
