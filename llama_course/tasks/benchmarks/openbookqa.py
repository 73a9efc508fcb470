"OpenBookQA: an elementary fact, to be applied. (Mihaylov et al. 2018)"

from pathlib import Path

from llama_course.likelihood import Question, against_neutral
from llama_course.tasks.kinds import choice_task


def read_obqa(row: dict) -> Question:
    "The question in a row of OpenBookQA."
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    return Question(row["question_stem"], tuple(texts), labels.index(row["answerKey"].strip()))


choice_task(
    "openbookqa",
    ("allenai/openbookqa", "main", "test"),
    read_obqa,
    Path(__file__).with_suffix(".jsonl"),
    against_neutral,
)
