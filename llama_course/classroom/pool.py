"""Judges side by side: a process for each core, each with workers of its own.

A judge that a submission has brought down, or that does not come to an end, is replaced; the
submission has its row all the same. They speak in lines of JSON.
"""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from llama_course.classroom.grade import FENCED_OFF, Verdict, grade_files, seconds_in_all
from llama_course.classroom.submissions import File
from llama_course.classroom.supervisor import Limits

Todo = TypeVar("Todo")
Result = TypeVar("Result")
JUDGING_SECONDS = 180.0  # for the judge's own work, on a busy machine
STARTING_SECONDS = 180.0  # for a judge to import what it needs, on a busy machine
MEMORY_PER_JUDGE = 2 << 30  # bytes, with its workers
START = (
    "import sys; sys.path[:] = {path!r}; from llama_course.classroom.pool import serve_judge;"
    " serve_judge()"
)


def how_many(jobs: int) -> int:
    "Judges for so many submissions: as many as there are cores, and as the memory bears."
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with contextlib.suppress(OSError, ValueError):  # a container's own limit
            memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        count = min(count, memory // MEMORY_PER_JUDGE)
    return max(1, min(count, jobs))


# ------------------------------------------------------------------- in the judge's process


def serve_judge() -> None:
    "A judge's life: a line of JSON for each student, one back; it ends when nobody listens."
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anything prints is no answer
    asked: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        os._exit(0)  # the one who asks is gone: its workers end with this process

    threading.Thread(target=listen, daemon=True).start()
    torch.set_num_threads(1)
    print("ready", file=out, flush=True)
    while True:
        request = json.loads(asked.get())
        files = [file_from(fields) for fields in request["files"]]
        outcome = grade_files(files, Limits(**request["limits"]), request["seed"])
        print(json.dumps(asdict(outcome)), file=out, flush=True)


def file_from(fields: dict[str, Any]) -> File:
    "A `File` as it came over in JSON."
    newness = tuple(fields["newness"])
    return File(fields["shown"], Path(fields["path"]), newness, fields["refused"])


# ------------------------------------------------------------------- in the process of the command


class JudgeLost(Exception):
    "A judge's process has ended, or has not answered in time; the text says which."


class JudgeProcess:
    "A judge, begun when it is first needed, and anew when it is lost."

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.rest = b""

    def start(self) -> None:
        "Starts the process. Raises `JudgeLost` if it does not come up."
        root = str(Path(sys.modules["llama_course"].__path__[0]).parent)
        path = [root, *(folder for folder in sys.path if os.path.exists(folder))]
        self.rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.format(path=path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the command, which ends its judges
        )
        self._line(STARTING_SECONDS)

    def grade(
        self,
        files: list[File],  # of one student
        limits: Limits,
        seed: int,
    ) -> Verdict:
        "What became of the files. It always comes, whatever they do to the judge."
        if not self.process:
            self.start()
        assert self.process and self.process.stdin
        fields = [vars(file) | {"path": str(file.path)} for file in files]
        request = {"files": fields, "limits": asdict(limits), "seed": seed}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            return Verdict(
                **json.loads(self._line(2 * seconds_in_all(files, limits) + JUDGING_SECONDS))
            )
        except (JudgeLost, OSError) as error:
            self.end()
            lost = Verdict()
            for file in files:
                lost.add(file, FENCED_OFF, f"the judge was lost: {error}")
            return lost

    def _line(self, seconds: float) -> bytes:
        "The next line. Raises `JudgeLost`."
        assert self.process and self.process.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise JudgeLost(f"it took longer than {seconds:.0f} s in all")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise JudgeLost(f"its process ended with status {self.process.wait()}")
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def end(self) -> None:
        "Ends the process, and with it its workers."
        if self.process:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self.process = None


def side_by_side(
    jobs: Iterable[Todo],
    work: Callable[[JudgeProcess, Todo], Result],  # one job with one judge
    judges: int,
) -> Iterator[Result]:  # as they are done, in no order
    "What comes of the jobs. Raises what `work` raises; all judges end when the last is done."
    todo: queue.SimpleQueue[Todo] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    count = 0
    for job in jobs:
        todo.put(job)
        count += 1
    processes = [JudgeProcess() for _ in range(judges)]
    stopped = threading.Event()

    def take(judge: JudgeProcess) -> None:
        while not stopped.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((work(judge, job), None))
            except BaseException as error:
                done.put((None, error))

    threads = [threading.Thread(target=take, args=(judge,), daemon=True) for judge in processes]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            result, error = done.get()
            if error:
                raise error
            yield result  # type: ignore[misc]
    finally:
        stopped.set()
        for judge in processes:
            judge.end()
