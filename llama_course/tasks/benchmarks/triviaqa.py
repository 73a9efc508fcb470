"TriviaQA, closed book: questions of trivia quizzes. (Joshi et al. 2017)"

from pathlib import Path

from llama_course.tasks.kinds import Fact, ask_fact, score_fact
from llama_course.tasks.registry import Task, register


def read_trivia(row: dict) -> Fact:
    "The question in a row of TriviaQA, and its known answers."
    return Fact(row["question"], tuple(row["answer"]["aliases"]))


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
