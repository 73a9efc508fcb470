"The paper's tables of results, as data: one CSV file for each in this folder."

import csv
from importlib.resources import files
from typing import NamedTuple

from llama_course.support.errors import UserError

TABLES = {
    3: "common sense",
    4: "NaturalQuestions",
    5: "TriviaQA",
    6: "RACE",
    7: "mathematics",
    8: "code",
    9: "MMLU",
}


def results(
    number: int,  # one of `TABLES`
) -> dict[str, dict[str, float]]:  # {model: {task: percent}}; what the paper leaves out is missing
    "One of the paper's tables of results. Raises `UserError` for another table."
    if number not in TABLES:
        raise UserError(f"table {number}: the results are in Tables 3 to 9.")
    text = files(__name__).joinpath(f"table{number}.csv").read_text(encoding="utf-8")
    _, head, *rows = text.splitlines()  # the first line says what it is
    tasks = next(csv.reader([head]))[1:]
    return {
        name: {task: float(cell) for task, cell in zip(tasks, cells) if cell}
        for name, *cells in csv.reader(rows)
    }


class Subject(NamedTuple):
    "A row of Table 16."

    category: str  # as printed there
    questions: int
    scores: dict[str, float]  # model -> percent


def table_16() -> dict[str, Subject]:
    "MMLU subject by subject, five shots."
    text = files(__name__).joinpath("table16.csv").read_text(encoding="utf-8")
    _, head, *rows = csv.reader(text.splitlines())
    return {
        name: Subject(category, int(questions), dict(zip(head[3:], map(float, scores))))
        for name, category, questions, *scores in rows
    }
