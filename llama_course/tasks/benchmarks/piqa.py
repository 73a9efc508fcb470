"PIQA: an everyday aim, and two ways to reach it. (Bisk et al. 2020)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def read_piqa(row: dict) -> Question:
    "The question in a row of PIQA."
    options = (row["sol1"], row["sol2"])
    return Question(f"Question: {row['goal']}\nAnswer:", options, int(row["label"]))


choice_task(
    "piqa",
    ("baber/piqa", None, "validation"),
    read_piqa,
    Path(__file__).with_suffix(".jsonl"),
)
