"PIQA: an everyday aim, and two ways to reach it. (Bisk et al. 2020)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import label_of, text_of


def read_piqa(row: dict) -> Question:
    "The question in a row of PIQA."
    options = (text_of(row, "sol1"), text_of(row, "sol2"))
    text = f"Question: {text_of(row, 'goal')}\nAnswer:"
    return Question(text, options, label_of(row, "label", 2))


choice_task(
    "piqa",
    ("baber/piqa", None, "validation"),
    read_piqa,
    Path(__file__).with_suffix(".jsonl"),
)
