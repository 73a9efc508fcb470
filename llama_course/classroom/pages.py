"What a class is told: a table, a CSV, a page for who teaches, and one for each student."

import csv
import io
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2

from llama_course.support.disk import atomic_write

BINS = 10  # of the distribution


@cache
def page_template(name: str) -> jinja2.Template:
    "A page; every text that is put into it is escaped."
    sources = {
        file.name: file.read_text(encoding="utf-8")
        for file in files("llama_course.classroom").joinpath("templates").iterdir()
        if file.name.endswith((".html", ".css"))
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = lambda number: f"{number:g}"
    return environment.get_template(name)


def as_csv(result: dict) -> str:
    "A row for each student, a column for each exercise; empty where it was not handed in."
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = [exercise["name"] for exercise in result["exercises"]]
    table.writerow(["student", "id", "late", "status", "points", "max_points", *columns, "reason"])
    for student in result["students"]:
        points = {row["name"]: row["points"] for row in student["exercises"]}
        facts = [student["student"], student["id"], "late" if student["late"] else ""]
        total = f"{student['points']:g}" if student["exercises"] else ""
        facts += [student["status"], total, f"{student['max_points']:g}"]
        scores = [f"{points[name]:g}" if name in points else "" for name in columns]
        table.writerow([_no_formula(cell) for cell in [*facts, *scores, student["reason"]]])
    return text.getvalue()


def _no_formula(cell: str) -> str:
    "A cell that no spreadsheet takes for a formula: names are chosen by whoever hands in."
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def as_table(result: dict) -> str:
    "The class in lines, for a terminal."
    width = max([len(student["student"]) for student in result["students"]] + [7])
    width = min(width, 32)
    lines = [f"{'student':{width}}  {'points':>9}  status"]
    for student in result["students"]:
        points = f"{student['points']:g}" if student["exercises"] else "–"
        points = f"{points}/{student['max_points']:g}"
        late = ", late" if student["late"] else ""
        reason = f": {student['reason']}" if student["reason"] else ""
        name = student["student"][:width]
        lines.append(f"{name:{width}}  {points:>9}  {student['status']}{late}{reason}"[:200])
    lines.append("")
    width = max([len(exercise["name"]) for exercise in result["exercises"]] + [8])
    for exercise in result["exercises"]:
        often = exercise["mistakes"][:1]
        mistake = f'; {often[0]["students"]} times "{often[0]["name"]}"' if often else ""
        solved = f"{exercise['passed']} of {exercise['answers']} solved"
        mean = f"mean {exercise['mean']:.1f} of {exercise['max_points']:g}"
        lines.append(f"{exercise['name']:{width}}  {solved}, {mean}{mistake}")
    for name in result["aside"]:
        lines.append(f"left aside, nobody's submission: {name}")
    for pair in result["similar"] or []:
        same = ", ".join(pair["exercises"])
        lines.append(f"same but for names: {pair['first']} and {pair['second']} in {same}")
    if result["similar"] == []:
        lines.append("no two answers are the same but for names")
    return "\n".join(lines)


def distribution(result: dict) -> list[dict]:
    "How many students have how many points, in equal steps."
    most = result["max_points"] or 1
    scored = [student["points"] for student in result["students"] if student["exercises"]]
    counts = [0] * BINS
    for points in scored:
        counts[min(BINS - 1, int(BINS * points / most))] += 1
    edges = [most * i / BINS for i in range(BINS + 1)]
    tallest = max(counts) or 1
    return [
        {"low": edges[i], "high": edges[i + 1], "count": n, "percent": 100 * n / tallest}
        for i, n in enumerate(counts)
    ]


def median(numbers: list[float]) -> float:
    "The one in the middle."
    ordered, half = sorted(numbers), len(numbers) // 2
    if not ordered:
        return 0.0
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def write_pages(result: dict, out: Path, feedback: Path) -> None:
    "Writes class.html, and a page for each student."
    scored = [student["points"] for student in result["students"] if student["exercises"]]
    states: dict[str, int] = {}
    for student in result["students"]:
        states[student["status"]] = states.get(student["status"], 0) + 1
    try:
        link = feedback.resolve().relative_to(out.resolve()).as_posix()
    except ValueError:
        link = feedback.resolve().as_uri()
    page = page_template("class.html").render(
        result | {"name": result["class"]},
        bins=distribution(result),
        states=states,
        mean=sum(scored) / len(scored) if scored else 0,
        median=median(scored),
        scored=len(scored),
        feedback=link,
    )
    with atomic_write(out / "class.html") as file:
        file.write(page.encode())
    for student in result["students"]:
        page = page_template("feedback.html").render(student, assignment=result["class"])
        with atomic_write(feedback / student["feedback"]) as file:
            file.write(page.encode())
