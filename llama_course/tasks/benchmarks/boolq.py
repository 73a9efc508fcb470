"BoolQ: a passage, and a question with yes or no. (Clark et al. 2019)"

from pathlib import Path

from llama_course.likelihood import Question, against_neutral
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import text_of, truth_of


def read_boolq(row: dict) -> Question:
    "The question in a row of BoolQ, as SuperGLUE (`label`) or as its authors (`answer`) have it."
    label = truth_of(row, "answer" if "answer" in row else "label")
    text = f"{text_of(row, 'passage')}\nQuestion: {text_of(row, 'question')}?\nAnswer:"
    return Question(text, ("no", "yes"), int(label))


choice_task(
    "boolq",
    ("aps/super_glue", "boolq", "validation"),
    read_boolq,
    Path(__file__).with_suffix(".jsonl"),
    against_neutral,
)
