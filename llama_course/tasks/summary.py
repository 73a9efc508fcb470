"The result of an evaluation: means, their standard errors, and a table."

import math
import sys
from collections.abc import Sequence
from typing import Any

from llama_course.certainty import standard_error

FROM_TEST = "its shots are other items of the same test: no score to compare with others"


def mean_and_error(scores: Sequence[float]) -> dict:  # {"value", "stderr", "n"}
    "The mean of the scores and its standard error; None for fewer than two."
    error = standard_error(scores)
    mean = sum(scores) / len(scores)
    return {"value": mean, "stderr": None if math.isnan(error) else error, "n": len(scores)}


def summary(
    work: Sequence[Any],  # of `Work`, in order
    records: Sequence[dict],
) -> dict:  # {"tasks": {name: {...}}, "items": [...]}
    "The result: means for each task, and the records in the order of the items."
    found = {(r["task"], r["index"]): r for r in records}
    items = [found[w.key] for w in work]
    tasks = {}
    for task in {w.task.name: w.task for w in work}.values():
        mine = [r for r in items if r["task"] == task.name]
        shots = min(w.shots for w in work if w.task.name == task.name)
        about = {"metric": task.metric} | mean_and_error([r["score"] for r in mine])
        tasks[task.name] = about | {"shots": shots}
        if any(w.from_test for w in work if w.task.name == task.name):
            tasks[task.name]["warning"] = FROM_TEST
        if cut := [r["cut"] for r in mine if "cut" in r]:
            tasks[task.name]["cut"] = len(cut)
            print(
                f"{task.name}: {len(cut)} of {len(mine)} items are longer than the model's context"
                f" and lost up to {max(cut)} tokens on the left.",
                file=sys.stderr,
            )
    return {"tasks": tasks, "items": items}


def score_table(
    result: dict,  # as `evaluate` gives it
) -> str:
    "The scores as a table, with their standard errors."
    rows = [("task", "metric", "value", "stderr", "n", "shots")]
    for name, t in result["tasks"].items():
        error = "-" if t["stderr"] is None else f"{t['stderr']:.3f}"
        rows.append((name, t["metric"], f"{t['value']:.3f}", error, str(t["n"]), str(t["shots"])))
    wide = [max(map(len, column)) for column in zip(*rows)]
    texts, numbers = wide[:2], wide[2:]
    lines = [
        "  ".join(
            [c.ljust(w) for c, w in zip(row, texts)]
            + [c.rjust(w) for c, w in zip(row[2:], numbers)]
        )
        for row in rows
    ]
    warned = {name: t["warning"] for name, t in result["tasks"].items() if "warning" in t}
    return "\n".join([*lines, *(f"{name}: {warning}" for name, warning in warned.items())])
