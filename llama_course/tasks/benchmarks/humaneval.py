"HumanEval: the head of a function is given, and tests that call it. (Chen et al. 2021)"

from pathlib import Path
from typing import Any

from llama_course.tasks.kinds import Code, program_tasks
from llama_course.tasks.rows import text_of
from llama_course.tasks.writing import Write


def read_humaneval(row: dict) -> Code:
    "The program that a row of HumanEval asks for."
    columns = ("entry_point", "prompt", "test", "canonical_solution")
    name, head, test, solution = (text_of(row, column) for column in columns)
    return Code(head, head, head, f"{test}\ncheck({name})\n", (name,), solution)


def ask_humaneval(code: Code, shots: list, **sampling: Any) -> Write:
    "The head of the function; what follows it ends where another thing begins. (as lm-eval)"
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    return Write(code.prompt, stop=stop, max_tokens=1024, **sampling)


program_tasks(
    "humaneval",
    ("openai/openai_humaneval", None, "test"),
    read_humaneval,
    ask_humaneval,
    k=100,
    own=Path(__file__).with_suffix(".jsonl"),
)
