"OpenBookQA: an elementary fact, to be applied. (Mihaylov et al. 2018)"

from pathlib import Path

from llama_course.likelihood import Question, against_neutral
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import table_of, text_of, texts_of


def read_obqa(row: dict) -> Question:
    "The question in a row of OpenBookQA."
    choices = table_of(row, "choices")
    gold = texts_of(choices, "label").index(text_of(row, "answerKey").strip())
    return Question(text_of(row, "question_stem"), texts_of(choices, "text"), gold)


choice_task(
    "openbookqa",
    ("allenai/openbookqa", "main", "test"),
    read_obqa,
    Path(__file__).with_suffix(".jsonl"),
    against_neutral,
)
