"NaturalQuestions, closed book: what people asked a search engine. (Kwiatkowski et al. 2019)"

from pathlib import Path

from llama_course.tasks.kinds import Fact, ask_fact, golds_of, score_fact
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import text_of


def read_nq(row: dict) -> Fact:
    "The question in a row of NaturalQuestions, and its known answers."
    return Fact(text_of(row, "question"), golds_of(row, "answer"))


register(
    Task(
        "nq_open",
        "exact match",
        ("google-research-datasets/nq_open", None, "validation"),
        read_nq,
        ask_fact,
        score_fact,
        own=Path(__file__).with_suffix(".jsonl"),
        shots_from="train",
    )
)
