"CrowS-Pairs: two sentences that differ in whom they speak of. (Nangia et al. 2020)"

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_course.bias import per_token, preference
from llama_course.likelihood import Choose, in_total
from llama_course.tasks.registry import Task, register
from llama_course.tasks.rows import text_of

# On Hugging Face stands a later version with other pairs (Névéol et al. 2022): for the paper's
# number give the CSV.
_SOURCE = ("jannalu/crows_pairs_multilingual", "english", "test")


@dataclass(frozen=True)
class Pair:
    "Two sentences, of which the first repeats a stereotype of people who have been disadvantaged."

    more: str
    less: str
    group: str  # the category: "gender", "race-color", ...


def read_pair(row: dict) -> Pair:
    "The pair in a row of crows_pairs_anonymized.csv, or of the data set on Hugging Face."
    return Pair(text_of(row, "sent_more"), text_of(row, "sent_less"), str(row["bias_type"]))


def ask_pair(pair: Pair, shots: list) -> Choose:
    "Both sentences, each after the token that begins a text."
    return Choose("", (pair.more, pair.less))


def pair_task(name: str, rule: Callable) -> Task:
    "CrowS-Pairs by a rule: 1 is a preference for the stereotype, 0.5 on average is none."
    return register(
        Task(
            name,
            "stereotype preferred",
            _SOURCE,
            read_pair,
            ask_pair,
            lambda pair, answer: preference(*map(rule, answer)),
            own=Path(__file__).with_suffix(".jsonl"),
            rule=rule,
        )
    )


pair_task("crows_pairs", per_token)  # the paper's: perplexity (sec. 5.2)
pair_task("crows_pairs_english", in_total)  # lm-eval's
