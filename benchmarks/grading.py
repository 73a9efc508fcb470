"""Four hundred submissions, twenty of them hostile: scores, time, memory of all processes.

`python benchmarks/grading.py [STUDENTS]`; the hostile ones are a twentieth.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from hostile import BLOCK, CENTRED, HOSTILE, NORM, OTHER, RENAMED, hostile, notebook  # noqa: E402

RIGHT = [10, 0, 10]
MOST = 4 << 30  # bytes


def large(megabytes: int) -> bytes:
    "A right notebook whose output is long."
    whole = json.loads(notebook(NORM, BLOCK))
    output = {"output_type": "stream", "name": "stdout", "text": "y" * (megabytes << 20)}
    whole["cells"][0]["outputs"] = [output]
    return json.dumps(whole).encode()


def papers(count: int) -> dict[str, tuple[bytes, list | None]]:
    "Name of a file -> its content, and the points that it is worth; None: no score is right."
    attacks: list[tuple[bytes, list | None]] = [(hostile(name), RIGHT) for name in HOSTILE]
    attacks += [
        (notebook(NORM, *(f"x = {i}" for i in range(10_000)), BLOCK), RIGHT),
        (large(100), RIGHT),
        (b'{"cells": [' + b"[]," * (33 << 20) + b"[]]}", None),
    ]
    rights = [(notebook(text, BLOCK), RIGHT) for text in (NORM, OTHER, RENAMED)]
    wrong = (notebook(CENTRED, BLOCK), [0, 0, 10])
    found = {}
    for i in range(count):
        content = attacks[i // 20 % len(attacks)] if i % 20 == 7 else [*rights, wrong][i % 4]
        found[f"student{i:04}_{1000 + i}_{50_000 + i}_08_norm.ipynb"] = content
    return found


def watch(process: psutil.Process, seen: list[int], done: threading.Event) -> None:
    "Bytes that the process and all below it hold, shared pages counted once, every second."
    while not done.wait(1.0):
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except (psutil.Error, OSError):
                continue
        seen.append(total)


def main(count: int = typer.Argument(400, help="submissions")) -> None:
    "Grades them, and compares every row with what it should be."
    expected = papers(count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "course")
        folder.mkdir()
        for name, (data, _) in expected.items():
            (folder / name).write_bytes(data)
        since, seen, done = time.monotonic(), list[int](), threading.Event()
        line = [sys.executable, "-m", "llama_course", "grade", str(folder), "--json"]
        process = subprocess.Popen(line, stdout=subprocess.PIPE)
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), seen, done))
        watcher.start()
        out, _ = process.communicate()
        done.set()
        watcher.join()
        seconds = time.monotonic() - since
    students = json.loads(out)["students"]
    wrong = []
    for student, (_, points) in zip(students, expected.values()):
        found = [row["points"] for row in student["exercises"]] or None
        if found != points:
            wrong.append((student["student"], found, points, student["status"], student["reason"]))
    peak = max(seen)
    print("| submissions | hostile | right rows | seconds | per submission | memory, most |")
    print("|---|---|---|---|---|---|")
    hostiles = len(range(7, count, 20))
    print(
        f"| {count} | {hostiles} | {len(students) - len(wrong)} | {seconds:.0f} "
        f"| {seconds / count:.2f} s | {peak / 2**30:.2f} GiB |"
    )
    for row in wrong:
        print(*row)
    raise typer.Exit(bool(wrong) or peak > MOST)


if __name__ == "__main__":
    typer.run(main)
