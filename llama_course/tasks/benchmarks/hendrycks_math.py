"MATH: problems of competitions, whose solutions mark the answer by a box. (Hendrycks et al. 2021)"

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama_course.answers import boxed, final_formula, normalize_math
from llama_course.support.errors import UserError
from llama_course.tasks.kinds import VOTE_SAMPLING, Problem, score_problem
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import file_rows, text_of
from llama_course.tasks.writing import Write

PARTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_SOURCE = ("EleutherAI/hendrycks_math", PARTS, "test")
_OWN = Path(__file__).with_suffix(".jsonl")
WORKED_PROBLEMS = file_rows(Path(__file__).with_name("hendrycks_math_worked.jsonl"))


def read_math(row: dict) -> Problem:
    "The problem in a row of MATH."
    problem, solution = text_of(row, "problem"), text_of(row, "solution")
    if not (gold := boxed(solution)):
        raise UserError(rf"a solution of MATH has \boxed{{...}}, not so: {solution[-40:]!r}.")
    return Problem(problem, solution, normalize_math(gold))


def ask_math(problem: Problem, shots: Sequence[Problem]) -> Write:
    "lm-eval's request for hendrycks_math; a shot shows its answer alone."
    shown = "".join(f"Problem: {s.text}\nAnswer: {boxed(s.solution)}\n\n" for s in shots)
    return Write(f"{shown}Problem: {problem.text}\nAnswer:", stop=("Problem:",), max_tokens=256)


def ask_math_steps(problem: Problem, shots: Sequence, **sampling: Any) -> Write:
    "The request with four worked problems of our own before it, as in Minerva; no `shots`."
    shown = "".join(
        f"Problem: {w['problem']}\nSolution: {w['steps']}"
        f" The answer is $\\boxed{{{w['answer']}}}$.\n\n"
        for w in WORKED_PROBLEMS
    )
    prompt = f"{shown}Problem: {problem.text}\nSolution:"
    return Write(prompt, stop=("\nProblem:", "\n\n"), max_tokens=512, **sampling)


def in_dollars(text: str) -> str:
    "What stands between the first dollar sign and the last, or else all of it. (as lm-eval)"
    found = re.search(r"\$(.*)\$", text, re.DOTALL)
    return normalize_math(found[1] if found else text)


register(
    Task(
        "hendrycks_math",
        "exact match",
        _SOURCE,
        read_math,
        ask_math,
        partial(score_problem, find=in_dollars),
        own=_OWN,
        shots_from="train",
    )
)
register(
    Task(
        "math_steps",
        "exact match",
        _SOURCE,
        read_math,
        ask_math_steps,
        partial(score_problem, find=final_formula),
        own=_OWN,
    )
)
register(
    Task(
        "math_vote",
        "maj1@256",
        _SOURCE,
        read_math,
        partial(ask_math_steps, samples=256, **VOTE_SAMPLING),
        partial(score_problem, find=final_formula),
        own=_OWN,
    )
)
