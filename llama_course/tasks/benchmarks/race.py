"RACE: English examinations of middle and high schools. (Lai et al. 2017)"

from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task
from llama_course.tasks.rows import text_of, texts_of


def read_race(row: dict) -> Question:
    "The question in a row of RACE, behind its article."
    article, question, letter = (text_of(row, name) for name in ("article", "question", "answer"))
    if letter not in tuple("ABCD"):
        raise ValueError(f"'answer' is {letter!r:.60}, and no letter from A to D")
    text = f"Article: {article}\n\nQuestion: {question}\nAnswer:"
    return Question(text, texts_of(row, "options"), "ABCD".index(letter))


# Brown et al. (2020, sec. 2.4) divide by a neutral context for RACE as well. LLaMA says of RACE
# that it follows their setup, but names OpenBookQA and BoolQ as the only exceptions from the
# likelihood per character.
for _part in ("middle", "high"):
    _own = Path(__file__).with_name(f"race_{_part}.jsonl")
    choice_task(f"race_{_part}", ("ehovy/race", _part, "test"), read_race, _own)
