"WinoGrande: which of two names a blank stands for. (Sakaguchi et al. 2019)"

from pathlib import Path

from llama_course.likelihood import Question, in_total
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import label_of, text_of


def read_winogrande(row: dict) -> Question:
    "The question in a row of WinoGrande: a context for each name. (Trinh and Le 2018)"
    before, blank, after = text_of(row, "sentence").partition("_")
    if not blank or "_" in after:
        raise ValueError("'sentence' has not one blank (_)")
    texts = tuple(before + text_of(row, name) for name in ("option1", "option2"))
    return Question(texts, (after.strip(),) * 2, label_of(row, "answer", 2, first=1))


choice_task(
    "winogrande",
    ("allenai/winogrande", "winogrande_xl", "validation"),
    read_winogrande,
    Path(__file__).with_suffix(".jsonl"),
    in_total,
)
