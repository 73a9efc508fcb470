"Gradescope's results.json, from a learner's scores."

from typing import Any

LONGEST_OUTPUT = 20_000  # characters that are shown of one test


def gradescope(
    result: dict,  # from `grade`
) -> dict[str, Any]:
    """The scores as Gradescope's results.json wants them: a test per exercise, with its points.

    What the notebook itself prints is never shown (`stdout_visibility`), as it may be anything.
    """
    tests = [
        {
            "name": row["name"],
            "number": str(number),
            "score": row["points"],
            "max_score": row["max_points"],
            "status": "passed" if row["passed"] else "failed",
            "output": _text(row)[:LONGEST_OUTPUT],
            "output_format": "text",
            "visibility": "visible",
            "tags": [row["chapter"]],
        }
        for number, row in enumerate(result["exercises"], 1)
    ]
    return {
        "score": sum(row["points"] for row in result["exercises"]),
        "tests": tests,
        "output": "\n".join(result["notes"])[:LONGEST_OUTPUT],
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {"files": result["files"]},
    }


def _text(row: dict) -> str:
    "One exercise in lines: what each look found, and what is wrong."
    looks = [f"{look}: {got:g} of {most:g}  {remark}" for look, got, most, remark in row["looks"]]
    return "\n".join(looks + row["messages"])
