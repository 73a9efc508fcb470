"WinoGrande: which of two names a blank stands for. (Sakaguchi et al. 2019)"

from pathlib import Path

from llama_course.likelihood import Question, in_total
from llama_course.tasks.kinds import choice_task


def read_winogrande(row: dict) -> Question:
    "The question in a row of WinoGrande: a context for each name. (Trinh and Le 2018)"
    before, after = row["sentence"].split("_")
    texts = tuple(before + row[name] for name in ("option1", "option2"))
    return Question(texts, (after.strip(),) * 2, int(row["answer"]) - 1)


choice_task(
    "winogrande",
    ("allenai/winogrande", "winogrande_xl", "validation"),
    read_winogrande,
    Path(__file__).with_suffix(".jsonl"),
    in_total,
)
