"HellaSwag: how a scene goes on. (Zellers et al. 2019)"

import re
from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import label_of, text_of, texts_of


def without_marks(text: str) -> str:
    "Text of HellaSwag without the marks of the web pages that it comes from. (as lm-eval)"
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def read_hellaswag(row: dict) -> Question:
    "The question in a row of HellaSwag."
    head, a, b = (text_of(row, name) for name in ("activity_label", "ctx_a", "ctx_b"))
    options = tuple(map(without_marks, texts_of(row, "endings")))
    gold = label_of(row, "label", len(options))
    return Question(without_marks(f"{head}: {a} {b.capitalize()}"), options, gold)


choice_task(
    "hellaswag",
    ("Rowan/hellaswag", None, "validation"),
    read_hellaswag,
    Path(__file__).with_suffix(".jsonl"),
)
