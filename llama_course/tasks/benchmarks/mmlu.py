"MMLU: questions from 57 subjects (Hendrycks et al. 2021)."

from collections.abc import Sequence
from pathlib import Path

from llama_course.likelihood import Question, in_total
from llama_course.support.paper import table_16
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import label_of, text_of, texts_of
from llama_course.tasks.summary import mean_and_error


def read_mmlu(row: dict) -> Question:
    "The question in a row of MMLU."
    letters = zip("ABCD", texts_of(row, "choices"), strict=True)
    lines = [f"\n{letter}. {text}" for letter, text in letters]
    group = text_of(row, "subject")
    subject = group.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    text = text_of(row, "question").strip() + "".join(lines) + "\nAnswer:"
    return Question(text, tuple("ABCD"), label_of(row, "answer", 4), head, group)


choice_task(
    "mmlu",
    ("cais/mmlu", "all", "test"),
    read_mmlu,
    Path(__file__).with_suffix(".jsonl"),
    in_total,
    shots=5,
    shots_from="dev",
)


SUBJECTS = table_16()


def category_of(subject: str) -> str:
    "The benchmark's category: Anatomy's is Other, as Table 9 counts and Table 16 does not print."
    if subject == "anatomy":
        return "Other"
    return SUBJECTS[subject].category if subject in SUBJECTS else "unknown"


def mmlu_averages(
    records: Sequence[dict],  # the items of a result; those of other tasks are left out
) -> dict:  # category, or "All" -> {"value", "stderr", "n"}
    "The averages of Table 9: by question, with Anatomy under Other."
    found: dict[str, list[float]] = {}
    for r in (r for r in records if r["task"] == "mmlu"):
        for name in (category_of(r["group"]), "All"):
            found.setdefault(name, []).append(r["score"])
    order = ("Humanities", "STEM", "Social Science", "Other", "unknown", "All")
    return {name: mean_and_error(found[name]) for name in order if name in found}
