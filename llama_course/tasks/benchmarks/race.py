"RACE: English examinations of middle and high schools. (Lai et al. 2017)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def read_race(row: dict) -> Question:
    "The question in a row of RACE, behind its article."
    text = f"Article: {row['article']}\n\nQuestion: {row['question']}\nAnswer:"
    return Question(text, tuple(row["options"]), "ABCD".index(row["answer"]))


# Brown et al. (2020, sec. 2.4) divide by a neutral context for RACE as well. LLaMA says of RACE
# that it follows their setup, but names OpenBookQA and BoolQ as the only exceptions from the
# likelihood per character.
for _part in ("middle", "high"):
    _own = Path(__file__).with_name(f"race_{_part}.jsonl")
    choice_task(f"race_{_part}", ("ehovy/race", _part, "test"), read_race, _own)
