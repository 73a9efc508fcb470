"How far a learner is: one line in a local file for each `check`, and what comes next."

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_course.classroom.exercise import EXERCISES, Exercise, load_exercises
from llama_course.classroom.report import plain_links
from llama_course.support.errors import UserError

PROGRESS = "progress.jsonl"  # in a workspace; a folder that has it is one
HARD = {1: "easy", 2: "medium", 3: "hard"}


@dataclass
class Standing:
    "What a learner has reached in one exercise."

    exercise: Exercise
    points: int = 0  # the best so far
    attempts: int = 0
    passed: str = ""  # the day on which it was right for the first time

    @property
    def place(self) -> str:
        "Its notebook."
        return f"{self.exercise.chapter}.ipynb"


@dataclass
class Progress:
    "All exercises of the course, in order."

    folder: Path
    standings: list[Standing] = field(default_factory=list)

    @property
    def following(self) -> Standing | None:
        "The first that is not passed."
        return next((standing for standing in self.standings if not standing.passed), None)

    def chapters(self) -> dict[str, list[Standing]]:
        "The exercises of each chapter."
        found: dict[str, list[Standing]] = {}
        for standing in self.standings:
            found.setdefault(standing.exercise.chapter, []).append(standing)
        return found

    def as_dict(self) -> dict[str, Any]:
        "As JSON can hold it."
        following = self.following
        return {
            "folder": str(self.folder),
            "points": sum(standing.points for standing in self.standings),
            "max_points": sum(s.exercise.max_points for s in self.standings),
            "passed": sum(bool(standing.passed) for standing in self.standings),
            "next": following.exercise.name if following else None,
            "exercises": [
                {
                    "name": standing.exercise.name,
                    "chapter": standing.exercise.chapter,
                    "kind": standing.exercise.kind,
                    "minutes": (told := as_told(standing.exercise, self.folder))[0],
                    "difficulty": told[1],
                    "points": standing.points,
                    "max_points": standing.exercise.max_points,
                    "attempts": standing.attempts,
                    "passed": standing.passed or None,
                }
                for standing in self.standings
            ],
        }

    @property
    def in_one_line(self) -> str:
        "Exercises and points."
        got = self.as_dict()
        passed = f"{got['passed']} of {len(self.standings)} exercises passed"
        return f"{passed}, {got['points']} of {got['max_points']} points."

    def as_markdown(self) -> str:
        "A table with a row for each chapter, and a link to what comes next."
        rows = ["| chapter | exercises | points | attempts |", "|---|---|---|---|"]
        for chapter, standings in self.chapters().items():
            marks = ", ".join(f"{'✓ ' if s.passed else ''}{s.exercise.name}" for s in standings)
            points = sum(s.points for s in standings)
            most = sum(s.exercise.max_points for s in standings)
            tries = sum(s.attempts for s in standings)
            rows.append(f"| [{chapter}]({chapter}.ipynb) | {marks} | {points}/{most} | {tries} |")
        return "\n\n".join(
            [self.in_one_line, next_step(self.following, self.folder), "\n".join(rows)]
        )

    def as_text(self) -> str:
        "The same for a terminal."
        lines = []
        for chapter, standings in self.chapters().items():
            points = sum(s.points for s in standings)
            most = sum(s.exercise.max_points for s in standings)
            lines.append(f"{points:3}/{most:<3} {chapter}")
            for s in standings:
                state = f"passed {s.passed}" if s.passed else ""
                state = state or (f"{s.attempts} attempts" if s.attempts else "")
                most = s.exercise.max_points
                lines.append(f"   {s.points:2}/{most}  {s.exercise.name:24} {state}")
        lines.append(self.in_one_line)
        return "\n".join([*lines, plain_links(next_step(self.following, self.folder))])

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_markdown_(self) -> str:
        return self.as_markdown()


def next_step(
    standing: Standing | None,  # None: all is done
    folder: Path | None = None,  # the workspace, whose texts say how long it takes
) -> str:
    "A sentence that leads on."
    if standing is None:
        return "All exercises are passed. Next: `llama-course assemble`, a LLaMA of your parts."
    minutes, level = as_told(standing.exercise, folder)
    place = f"[{standing.exercise.name}]({standing.place})"
    return f"Next: {place}, {standing.exercise.kind}, {level}, about {minutes} minutes."


TOLD = re.compile(r"About (\d+) minutes?; (easy|medium|hard)")


def as_told(
    exercise: Exercise,
    folder: Path | None,  # of exercises
) -> tuple[int, str]:  # minutes; easy, medium or hard
    "How long a task takes and how hard it is, as its text says; else as the judge has it."
    told = exercise.minutes, HARD[exercise.difficulty]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = (folder or Path()) / f"{exercise.chapter}.ipynb"
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            marks = cell["metadata"].get("nbgrader", {}).get("grade_id") == f"{exercise.name}_task"
            if marks and (found := TOLD.search(text)):
                return int(found[1]), found[2]
    return told


def find_workspace(
    start: Path | None = None,  # None: the current folder
) -> Path | None:
    "The workspace that a folder lies in, or None."
    try:
        here = (start or Path.cwd()).resolve()
        return next((f for f in [here, *here.parents][:4] if (f / PROGRESS).is_file()), None)
    except OSError:
        return None


def note_attempt(
    folder: Path,  # a workspace
    name: str,  # of the exercise
    points: int,
) -> None:
    "Adds one line to the file. A file that cannot be written is nobody's loss here."
    line = json.dumps({"exercise": name, "points": points, "at": time.strftime("%Y-%m-%d %H:%M")})
    try:
        with open(folder / PROGRESS, "a", encoding="utf-8") as file:
            file.write(line + "\n")  # one write: two notebooks do not mix their lines
    except OSError:
        return


def progress(
    folder: str | os.PathLike | None = None,  # a workspace; None: the one around this folder
) -> Progress:
    "Points, attempts and what comes next. Raises `UserError` where there is no workspace."
    place = find_workspace(Path(folder) if folder else None)
    if place is None and folder is None:
        place = find_workspace(Path("my"))
    if place is None:
        where = f"{folder or 'this folder'}"
        raise UserError(f"no workspace in {where}: make one with `llama-course start`")
    best: dict[str, Standing] = {e.name: Standing(e) for e in in_order(load_exercises().values())}
    for line in (place / PROGRESS).read_text(encoding="utf-8", errors="replace").splitlines():
        _add(best, line)
    return Progress(place, list(best.values()))


def in_order(exercises: Iterable[Exercise]) -> list[Exercise]:
    "By chapter, and within it as the judges' files have them."
    return sorted(exercises, key=lambda exercise: exercise.chapter)


def _add(best: dict[str, Standing], line: str) -> None:
    "Takes one line of the file; a damaged one, or one of an exercise that is gone, is left out."
    try:
        row = json.loads(line)
        standing, points = best[row["exercise"]], int(row["points"])
        day = str(row["at"])[:10]
    except (ValueError, KeyError, TypeError):
        return
    standing.attempts += 1
    standing.points = max(standing.points, min(points, standing.exercise.max_points))
    if points >= standing.exercise.max_points and not standing.passed:
        standing.passed = day


def after(
    exercise: Exercise,  # that was just passed
    folder: Path | None,  # the workspace, if there is one
) -> Standing | None:
    "What comes next: in the workspace, the first after it that is not passed; else the next."
    standings = progress(folder).standings if folder else []
    if not standings:
        standings = [Standing(e) for e in in_order(EXERCISES.values()) if e.chapter != "none"]
    names = [standing.exercise.name for standing in standings]
    place = names.index(exercise.name) + 1 if exercise.name in names else 0
    ahead = standings[place:] + standings[:place]
    return next((s for s in ahead if not s.passed and s.exercise.name != exercise.name), None)
