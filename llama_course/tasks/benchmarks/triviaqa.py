"TriviaQA, closed book: questions of trivia quizzes. (Joshi et al. 2017)"

from pathlib import Path

from llama_course.tasks.kinds import Fact, ask_fact, golds_of, score_fact
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import Row, text_of


def read_trivia(row: dict) -> Fact:
    "The question in a row of TriviaQA, and its known answers."
    plain = {name.lower(): value for name, value in row.items()}  # the authors' file: Question, ...
    row = Row(row | plain)
    return Fact(text_of(row, "question"), golds_of(row, "answer"))


register(
    Task(
        "triviaqa",
        "exact match",
        ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
        read_trivia,
        ask_fact,
        score_fact,
        own=Path(__file__).with_suffix(".jsonl"),
        shots_from="train",
    )
)
