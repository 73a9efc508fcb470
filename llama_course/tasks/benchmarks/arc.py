"ARC, easy and challenge: questions from school science. (Clark et al. 2018)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def read_arc(row: dict) -> Question:
    "The question in a row of ARC, whose options are named by letters or by digits."
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    gold = labels.index(row["answerKey"])
    return Question(f"Question: {row['question']}\nAnswer:", tuple(texts), gold)


for _name, _part in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")):
    _own = Path(__file__).with_name(f"{_name}.jsonl")
    choice_task(_name, ("allenai/ai2_arc", _part, "test"), read_arc, _own)
