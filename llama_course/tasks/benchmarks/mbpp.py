"MBPP: a sentence and three assertions, a program is asked for. (Austin et al. 2021)"

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_course.tasks.kinds import Code, program_tasks
from llama_course.tasks.rows import text_of, texts_of
from llama_course.tasks.writing import Write


def read_mbpp(row: dict) -> Code:
    "The program that a row of MBPP asks for; its solution tells which names the tests mean."
    asserted = texts_of(row, "test_list")
    tests = "\n".join([text_of(row, "test_setup_code"), *asserted])
    solution = text_of(row, "code").replace("\r", "")
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    named = [
        node.name
        for node in ast.parse(solution).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    shown, asked = "\n".join(asserted[:3]), text_of(row, "text")
    prompt = (
        f"You are an expert Python programmer, and here is your task: {asked} Your code"
        f" should pass these tests:\n\n{shown}\n[BEGIN]\n"
    )
    return Code(prompt, "", "", tests, tuple(name for name in named if name in used), solution)


def ask_mbpp(code: Code, shots: Sequence[Code], **sampling: Any) -> Write:
    "The request, with solved tasks before it. (as lm-eval)"
    shown = "".join(f"{s.prompt}{s.solution}\n[DONE]\n\n" for s in shots)
    return Write(shown + code.prompt, stop=("[DONE]",), max_tokens=256, **sampling)


program_tasks(
    "mbpp",
    ("google-research-datasets/mbpp", "full", "test"),
    read_mbpp,
    ask_mbpp,
    k=80,
    own=Path(__file__).with_suffix(".jsonl"),
    shots=3,
    shots_from="prompt",
)
