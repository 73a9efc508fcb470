"ARC, easy and challenge: questions from school science. (Clark et al. 2018)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import table_of, text_of, texts_of


def read_arc(row: dict) -> Question:
    "The question in a row of ARC, whose options are named by letters or by digits."
    choices = table_of(row, "choices")
    gold = texts_of(choices, "label").index(text_of(row, "answerKey").strip())
    text = f"Question: {text_of(row, 'question')}\nAnswer:"
    return Question(text, texts_of(choices, "text"), gold)


for _name, _part in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")):
    _own = Path(__file__).with_name(f"{_name}.jsonl")
    choice_task(_name, ("allenai/ai2_arc", _part, "test"), read_arc, _own)
