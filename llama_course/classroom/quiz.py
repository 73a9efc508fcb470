"""The questions at a chapter's end, each choice with what would follow from it.

They stand in `quizzes/NN_name.toml`, a file per chapter. What a notebook shows is HTML alone, which
opens without a script: a page of the site, an untrusted notebook and a print show the same.
"""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from llama_course.support.errors import UserError
from llama_course.support.options import from_dict, option, options, read_toml

QUIZZES = Path(__file__).with_name("quizzes")
LETTERS = "ABCDEFGH"
FORMULA = re.compile(r"\$\S[^$]*\S\$(?!\d)|\$\S\$")  # which not every reader of HTML sets
Said = TypeVar("Said")  # a question or a choice
INTRODUCTION = "Decide first, then open a choice: it says what would follow from it."


@options
class QuizChoice:
    "A possible answer."

    text: str = option()
    why: str = option()  # it is right; or what would follow if it were
    right: bool = option(False)


@options
class QuizQuestion:
    "A question with two choices or more."

    text: str = option()
    choice: tuple[QuizChoice, ...] = option()

    @property
    def right(self) -> str:
        "The letters of the right choices."
        return ", ".join(L for L, choice in zip(LETTERS, self.choice) if choice.right)


@options
class QuizFile:
    "A file of questions, each still a table."

    question: tuple[Any, ...] = option()


@dataclass(frozen=True)
class Quiz:
    "A chapter's questions, which a notebook shows with the answers folded, and a terminal below."

    questions: tuple[QuizQuestion, ...]

    def _repr_html_(self) -> str:
        items = "\n".join(
            f"<li><p>{in_html(question.text)}</p>\n{_choices_in_html(question)}</li>"
            for question in self.questions
        )
        return f'<div class="quiz"><h2>Quiz</h2>\n<p>{INTRODUCTION}</p>\n<ol>\n{items}\n</ol></div>'

    def __repr__(self) -> str:
        lines = ["Quiz"]
        for number, question in enumerate(self.questions, 1):
            lines += ["", f"{number}. {question.text}"]
            lines += [f"   {L}. {choice.text}" for L, choice in zip(LETTERS, question.choice)]
        lines += ["", "Answers"]
        for number, question in enumerate(self.questions, 1):
            lines += ["", f"{number}. {question.right}"]
            lines += [f"   {L}. {choice.why}" for L, choice in zip(LETTERS, question.choice)]
        return "\n".join(lines)


def in_html(text: str) -> str:
    "The text with its `code` as HTML."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _choices_in_html(question: QuizQuestion) -> str:
    "Each choice as a line that opens."
    return "\n".join(
        f"<details><summary>{letter}. {in_html(choice.text)}</summary>"
        f"<p><strong>{'Right' if choice.right else 'Not right'}.</strong>"
        f" {in_html(choice.why)}</p></details>"
        for letter, choice in zip(LETTERS, question.choice)
    )


def quiz(
    chapter: str,  # a notebook's name without its ending: 08_norm
) -> Quiz:
    "The chapter's questions. Raises `UserError` if it has none, or if its file is wrong."
    there = sorted(path.stem for path in QUIZZES.glob("*.toml"))
    if chapter not in there:
        raise UserError(f"no quiz for {chapter!r}; there are {', '.join(there)}.")
    return read_quiz(QUIZZES / f"{chapter}.toml")


def read_quiz(path: Path) -> Quiz:
    "The questions in a file. Raises `UserError` that names the file and the question."
    tables = read_toml(QuizFile, path).question
    if not tables:
        raise UserError(f"{path} has no question.")
    return Quiz(tuple(_question(t, f"{path}, question {n}") for n, t in enumerate(tables, 1)))


def _question(table: Any, where: str) -> QuizQuestion:
    "The question in a table of the file."
    if isinstance(table, dict) and isinstance(table.get("choice"), list):
        choices = [
            _in_one_line(from_dict(QuizChoice, choice, place), place)
            for number, choice in enumerate(table["choice"], 1)
            for place in [f"{where}, choice {number}"]
        ]
        table = table | {"choice": choices}
    asked = _in_one_line(from_dict(QuizQuestion, table, where), where)
    if not 2 <= len(asked.choice) <= len(LETTERS):
        raise UserError(f"{where}: there must be 2 to {len(LETTERS)} choices.")
    if not any(choice.right for choice in asked.choice):
        raise UserError(f"{where}: one choice must have `right = true`.")
    if all(choice.right for choice in asked.choice):
        raise UserError(f"{where}: one choice must not be right.")
    said = [choice.text for choice in asked.choice]
    if twice := next((text for text in said if said.count(text) > 1), None):
        raise UserError(f"{where}: two choices say {twice!r}.")
    return asked


def _in_one_line(part: Said, where: str) -> Said:
    "The same with its texts in one line each. Refuses one that could not be read everywhere."
    texts = {name: " ".join(v.split()) for name, v in vars(part).items() if isinstance(v, str)}
    for name, text in texts.items():
        if not text:
            raise UserError(f"{where}: {name} is empty.")
        if text.count("`") % 2:
            raise UserError(f"{where}: {name} has an opening ` that is never closed.")
        if found := FORMULA.search(re.sub("`[^`]*`", "", text)):
            raise UserError(f"{where}: {name} has {found[0]}; write it without dollars: x², √d.")
    made: Any = type(part)
    return made(**vars(part) | texts)
