"What tasks have in common: options to choose from, facts, problems with steps, programs."

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from llama_course.answers import exact_match, final_number, majority_score, pass_at_k
from llama_course.likelihood import (
    Question,
    against_neutral,
    ask_question,
    best_option,
    per_character,
)
from llama_course.support.programs import Sandbox
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import table_of, text_of, texts_of
from llama_course.tasks.writing import Write


def choice_task(
    name: str,
    dataset: tuple,  # on Hugging Face: path, part, split
    read: Callable[[dict], Question],
    own: Path,
    rule: Callable = per_character,
    shots: int = 0,
    shots_from: str = "train",
) -> Task:
    "A registered multiple-choice task, scored by whether the rule puts the right option first."
    neutral = "Answer:" if rule is against_neutral else None
    return register(
        Task(
            name,
            "accuracy",
            dataset,
            read,
            partial(ask_question, neutral=neutral),
            lambda question, answer: float(best_option(answer, rule) == question.gold),
            own=own,
            shots=shots,
            shots_from=shots_from,
            rule=rule,
        )
    )


@dataclass(frozen=True)
class Fact:
    "A question and all that is right."

    question: str
    golds: tuple[str, ...]


def golds_of(row: dict, name: str) -> tuple[str, ...]:
    """The known answers in a column: a list of them, one text, or an object with `aliases` and
    `value`, as JSON has them or written out in a cell of a table. Raises `ValueError`."""
    value = row[name]
    start = value.strip()[:1] if isinstance(value, str) else ""
    if isinstance(value, dict) or start == "{":
        inside = {key.lower(): v for key, v in table_of(row, name).items()}
        found = texts_of(inside, "aliases") if inside.get("aliases") else ()
        if inside.get("value") is not None:
            found += (text_of(inside, "value"),)
    else:
        found = (value,) if isinstance(value, str) and start != "[" else texts_of(row, name)
    found = tuple(dict.fromkeys(text for text in found if text.strip()))
    if not found:
        raise ValueError(f"{name!r} has no known answer")
    return found


def ask_fact(fact: Fact, shots: Sequence[Fact]) -> Write:
    "The request for a closed-book question. (LLaMA, App. A)"

    def marked(question: str) -> str:
        return question if question.rstrip()[-1:] in "?.!" else question.rstrip() + "?"

    shown = "".join(f"Q: {marked(s.question)}\nA: {s.golds[0]}\n" for s in shots)
    prompt = f"Answer these questions:\n{shown}Q: {marked(fact.question)}\nA:"
    return Write(prompt, stop=("\n",), max_tokens=32)


def score_fact(fact: Fact, texts: Sequence[str]) -> float:
    "1 if the first text is a known answer."
    return float(exact_match(texts[0], fact.golds))


@dataclass(frozen=True)
class Problem:
    "A problem, its solution in steps, and the answer in one spelling."

    text: str
    solution: str
    gold: str | Fraction


def score_problem(problem: Problem, texts: Sequence[str], find: Callable = final_number) -> float:
    "maj1@k of the texts; with one text, whether it is right."
    return majority_score([find(text) for text in texts], problem.gold)


# How solutions are drawn for a vote: as reports of Minerva have it.
VOTE_SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95}


@dataclass(frozen=True)
class Code:
    "A program that is asked for, and how it is tested."

    prompt: str  # what the model reads
    start: str  # what stands before the model's text in the program
    before: str  # what the tests need beside the program
    tests: str
    names: tuple[str, ...]  # what the program defines for them
    solution: str


def score_code(code: Code, texts: Sequence[str], k: int = 1) -> float:
    "pass@k of the texts. Raises `UserError` where programs cannot be isolated."
    with Sandbox() as box:

        def passes(text: str) -> bool:
            return box.run(code.start + text, code.tests, list(code.names), code.before).passed

        passed = {text: passes(text) for text in dict.fromkeys(texts)}
    return pass_at_k(len(texts), sum(passed[text] for text in texts), k)


def program_tasks(
    name: str,
    dataset: tuple,
    read: Callable[[dict], Code],
    ask: Callable[..., Write],
    k: int,  # of the paper's second column
    own: Path,
    **more: Any,  # shots, shots_from
) -> None:
    "Three registered tasks: greedy as in lm-eval, and drawn as in the paper for pass@1 and pass@k."
    more |= {"own": own, "runs_programs": True}
    once = partial(ask, temperature=0.1)
    often = partial(ask, samples=2 * k, temperature=0.8)
    best = partial(score_code, k=k)
    register(Task(name, "pass@1", dataset, read, ask, score_code, **more))
    register(Task(f"{name}_1", "pass@1", dataset, read, once, score_code, **more))
    register(Task(f"{name}_{k}", f"pass@{k}", dataset, read, often, best, **more))
