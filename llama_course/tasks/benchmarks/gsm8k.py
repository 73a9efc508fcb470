"GSM8k: word problems of primary school, whose solutions end in `#### number`. (Cobbe et al. 2021)"

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from llama_course.answers import to_number
from llama_course.support.errors import UserError
from llama_course.tasks.kinds import VOTE_SAMPLING, Problem, score_problem
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import file_rows, text_of
from llama_course.tasks.writing import Write

_SOURCE = ("openai/gsm8k", "main", "test")
_OWN = Path(__file__).with_suffix(".jsonl")
WORKED_SUMS = file_rows(Path(__file__).with_name("gsm8k_worked.jsonl"))  # question, steps, answer


def read_gsm8k(row: dict) -> Problem:
    "The problem in a row of GSM8k."
    question, answer = text_of(row, "question"), text_of(row, "answer")
    steps, mark, gold = answer.partition("####")
    if not mark:
        raise UserError(f"an answer of GSM8k ends in '#### number', not so: {steps[-40:]!r}.")
    return Problem(question, answer, to_number(gold.strip()))


def ask_gsm8k(problem: Problem, shots: Sequence[Problem]) -> Write:
    "lm-eval's request for gsm8k: the shots are solutions of the training split."
    shown = "".join(f"Question: {s.text}\nAnswer: {s.solution}\n\n" for s in shots)
    prompt = f"{shown}Question: {problem.text}\nAnswer:"
    return Write(prompt, stop=("Question:",), max_tokens=256)


def ask_gsm8k_steps(problem: Problem, shots: Sequence, **sampling: Any) -> Write:
    "The request with eight worked problems of our own before it, as in Minerva; no `shots`."
    shown = "".join(
        f"Q: {w['question']}\nA: {w['steps']} The answer is {w['answer']}.\n\n" for w in WORKED_SUMS
    )
    prompt = f"{shown}Q: {problem.text}\nA:"
    return Write(prompt, stop=("\nQ:", "\n\n"), max_tokens=256, **sampling)


def strict_number(text: str) -> Fraction | None:
    "The number after the first `####`, as lm-eval's strict rule finds it."
    found = re.search(r"#### (-?[0-9.,]+)", text)
    try:
        return to_number(found[1].rstrip(".")) if found else None
    except ValueError:
        return None


register(
    Task(
        "gsm8k",
        "exact match",
        _SOURCE,
        read_gsm8k,
        ask_gsm8k,
        partial(score_problem, find=strict_number),
        own=_OWN,
        shots=5,
        shots_from="train",
    )
)
register(
    Task(
        "gsm8k_steps",
        "exact match",
        _SOURCE,
        read_gsm8k,
        ask_gsm8k_steps,
        score_problem,
        own=_OWN,
    )
)
register(
    Task(
        "gsm8k_vote",
        "maj1@100",
        _SOURCE,
        read_gsm8k,
        partial(ask_gsm8k_steps, samples=100, **VOTE_SAMPLING),
        score_problem,
        own=_OWN,
    )
)
