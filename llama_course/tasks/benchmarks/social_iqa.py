"SIQA: what people feel, want and do next. (Sap et al. 2019)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import label_of, text_of


def read_siqa(row: dict) -> Question:
    "The question in a row of SIQA."
    options = tuple(text_of(row, name) for name in ("answerA", "answerB", "answerC"))
    text = f"Q: {text_of(row, 'context')} {text_of(row, 'question')}\nA:"
    return Question(text, options, label_of(row, "label", 3, first=1))


choice_task(
    "social_iqa",
    ("lighteval/siqa", None, "validation"),
    read_siqa,
    Path(__file__).with_suffix(".jsonl"),
)
