"SIQA: what people feel, want and do next. (Sap et al. 2019)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def read_siqa(row: dict) -> Question:
    "The question in a row of SIQA."
    options = (row["answerA"], row["answerB"], row["answerC"])
    return Question(f"Q: {row['context']} {row['question']}\nA:", options, int(row["label"]) - 1)


choice_task(
    "social_iqa",
    ("lighteval/siqa", None, "validation"),
    read_siqa,
    Path(__file__).with_suffix(".jsonl"),
)
