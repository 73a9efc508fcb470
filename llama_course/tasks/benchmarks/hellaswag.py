"HellaSwag: how a scene goes on. (Zellers et al. 2019)"

import re
from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def without_marks(text: str) -> str:
    "Text of HellaSwag without the marks of the web pages that it comes from. (as lm-eval)"
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def read_hellaswag(row: dict) -> Question:
    "The question in a row of HellaSwag."
    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    options = tuple(map(without_marks, row["endings"]))
    return Question(without_marks(text), options, int(row["label"]))


choice_task(
    "hellaswag",
    ("Rowan/hellaswag", None, "validation"),
    read_hellaswag,
    Path(__file__).with_suffix(".jsonl"),
)
