"The judge's side of the workers: how long they may take, and which of them are begun again."

import atexit
import contextlib
import math
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judge import AnswerLost
from llama_course.classroom.notebooks import Notebook, Unreadable
from llama_course.classroom.observation import Observation, tidy
from llama_course.classroom.protocol import (
    AnyReply,
    CellReply,
    ForeignMessage,
    NamesReply,
    ObservationReply,
    ReadReply,
    receive_reply,
    send,
)
from llama_course.support.errors import UserError
from llama_course.support.fence import Fence, installed_packages
from llama_course.support.forkserver import ForkServer, Worker

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
SET_VARIABLES = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg", "USER": "learner",
    "MALLOC_ARENA_MAX": "2",  # else each thread reserves 64 MB of the memory that it may use
}  # fmt: skip
FOREIGN = "it wrote to the judge's own channel"
TIME_IS_UP = "the notebook's time is up"
SHARE_IS_UP = "its share of the notebook's time is up"
MOST_PATIENCE = 4  # times a limit, if others have the processor: code can make itself wait, too
READ_SECONDS = 30.0  # for reading a notebook's file
MOST_NOTES = 100  # about the cells of a notebook
ENDED = "it ended its process (os._exit, a crash, or a limit of memory)"


@dataclass(frozen=True)
class Limits:
    "What a notebook may use."

    memory: int = 1 << 30  # bytes, beyond what Python and PyTorch need
    cell_seconds: float = 30.0  # for one cell
    call_seconds: float = 10.0  # for one call of an answer
    total_seconds: float = 120.0  # for the whole notebook; its cells may take half of them
    processes: int = 64  # at the same time


@dataclass
class Budget:
    "Seconds that a notebook's own code may still take. What the judge computes is not its time."

    left: float
    share: float = math.inf  # of one of several answers


def readable_folders(
    folder: Path,  # the notebook's
) -> list[str]:
    "What a notebook may read: Python, this library, and what lies beside it; never a whole home."
    library = str(Path(sys.modules["llama_course"].__path__[0]))
    folder, home = folder.resolve(), Path.home().resolve()
    beside = [str(folder)]
    if home.is_relative_to(folder):  # it lies in the home itself, beside keys and tokens
        files = [path for path in folder.iterdir() if path.is_file()]
        beside = [str(path) for path in files if not path.name.startswith(".")]
    return [*installed_packages(), library, os.path.realpath(library), *beside]


def hidden_folders(
    folder: Path,  # the notebook's
) -> list[str]:
    "What a notebook may not read even there: the judges, and the course's own solutions."
    library = Path(sys.modules["llama_course"].__path__[0])
    folders = {
        way / name
        for way in (library, library.resolve())
        for name in (Path("classroom/judges"), Path("../solutions"))
    }
    own = {folder.resolve(), *folder.resolve().parents}
    return sorted(os.path.abspath(path) for path in folders if path.resolve() not in own)


# ------------------------------------------------------------------- where workers come from

SERVERS: list[ForkServer] = []  # none, or the one that all notebooks share


def fork_server() -> ForkServer:
    "The process that starts workers; a new one, if the last has ended."
    if SERVERS and SERVERS[0].process and SERVERS[0].process.poll() is not None:
        close_fork_server()
    if not SERVERS:
        environment = {
            name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ
        } | SET_VARIABLES
        server = ForkServer("llama_course.classroom.worker:NOTEBOOKS", environment=environment)
        SERVERS.append(server.__enter__())
    return SERVERS[0]


@atexit.register
def close_fork_server() -> None:
    "Ends the process that starts workers."
    while SERVERS:
        SERVERS.pop().__exit__()


class Alone:
    "A worker without a fork server, as on Windows: a fresh Python, which ends when it is killed."

    def __init__(self, sock: socket.socket, folder: str):
        library = str(Path(sys.modules["llama_course"].__path__[0]).parent)
        ours = "fromshare(sys.stdin.buffer.read())"
        if sys.platform != "win32":
            ours = f"socket(fileno={sock.fileno()})"
        start = (
            f"import sys, socket; sys.path[:0] = {[library, *filter(os.path.isdir, sys.path)]!r}; "
            "from llama_course.classroom import worker; worker.import_early(); print(flush=True); "
            f"worker.answers([socket.{ours}.detach()], {folder!r})"
        )
        environment = {
            name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ
        } | SET_VARIABLES
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", start],
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=() if sys.platform == "win32" else (sock.fileno(),),
        )
        if sys.platform == "win32" and self.process.stdin:
            self.process.stdin.write(sock.share(self.process.pid))
        if self.process.stdin:
            self.process.stdin.close()
        self.refused, self.not_fenced = "", f"{sys.platform} cannot fork"
        assert self.process.stdout
        ready = self.process.stdout.readline()  # what it imports is not the notebook's time
        self.process.stdout.close()
        if not ready:
            raise OSError("a fresh Python does not start")

    def end(self) -> str:
        "Ends it."
        self.process.kill()
        self.process.wait()
        return ""

    def waited(self) -> float:
        "As of a `Worker`: nobody counts it here."
        return 0.0


class AnswerProcess:
    "A process that runs a learner's code, seen from the judge."

    def __init__(
        self,
        limits: Limits,
        budget: Budget,  # of the notebook, for all its workers
        folder: Path,  # of the notebook
    ):
        self.limits, self.budget = limits, budget
        fence = Fence(
            readable=tuple(readable_folders(folder)),
            hidden=tuple(hidden_folders(folder)),
            seconds=(1 + MOST_PATIENCE) * max(budget.left, 0.0)
            + 60,  # the judge's own clock comes first
            memory=limits.memory,
            processes=limits.processes,
            open_files=256,
            disk=64 << 20,
            required=False,
        )
        for _ in range(3):  # the fork server may just have been ended by the last learner
            self.sock, theirs = socket.socketpair()
            with theirs, contextlib.suppress(OSError):
                self.worker: Worker | Alone = start_worker(theirs, fence, str(folder))
                return
            self.sock.close()
        raise UserError(
            "no worker process starts; does `import llama_course.classroom.judges.norm` work?"
        )

    @property
    def not_fenced(self) -> str:
        "Why it has no fence; empty if it has one."
        return self.worker.not_fenced

    def ask(
        self, kind: type[AnyReply], seconds: float, message: dict, tree: Any = None
    ) -> tuple[AnyReply, Any]:
        "The reply. Raises `AnswerLost` if it takes too long, breaks a limit, ends, talks nonsense."
        since, waited, budget = time.monotonic(), self.worker.waited(), self.budget

        others = 0.0  # seconds

        def own_time() -> float:
            "Seconds since the question; on a busy machine without those that others took."
            nonlocal others
            others = max(others, self.worker.waited() - waited)  # when it has ended: as before
            wall = time.monotonic() - since
            return max(wall - others, wall / MOST_PATIENCE)

        def watch() -> None:
            if time.monotonic() - since < min(budget.left, budget.share, seconds):
                return
            taken = own_time()
            if taken > min(budget.left, budget.share):
                raise AnswerLost(TIME_IS_UP if taken > budget.left else SHARE_IS_UP)
            if taken > seconds:
                raise AnswerLost(f"it took longer than {seconds:.3g} s")

        turn = secrets.randbits(60)  # a message that lies there already does not know it
        try:
            self.sock.settimeout(seconds)
            send(self.sock, message | {"turn": turn}, tree)
            self.sock.settimeout(0.1)
            reply, values = receive_reply(self.sock, kind, watch)
            if reply.turn != turn:
                raise ForeignMessage("an answer to something else")
            return reply, values
        except AnswerLost:
            self.close()
            raise
        except ForeignMessage:
            self.close()
            raise AnswerLost(FOREIGN) from None
        except (EOFError, OSError):
            raise AnswerLost(self.close() or ENDED) from None
        finally:
            taken = own_time()
            budget.left, budget.share = budget.left - taken, budget.share - taken

    def observe(
        self,
        exercise: Exercise,
        *args: Any,
        wrt: tuple = (),
        cotangent: Any = None,
    ) -> Observation:
        "What `observe` sees of one call of the answer. Nothing of it is taken on trust."
        ask = {"do": "observe", "name": exercise.name, "wrt": list(wrt)}
        tree = (list(args), cotangent)
        reply, values = self.ask(ObservationReply, self.limits.call_seconds, ask, tree)
        try:
            return observation(reply, values, len(args), len(wrt))
        except ForeignMessage:
            self.close()
            raise AnswerLost(FOREIGN) from None

    def close(self) -> str:
        "Ends the worker and all that it started; says which limit it broke, if it did."
        self.sock.close()
        return self.worker.end()


def start_worker(sock: socket.socket, fence: Fence, folder: str) -> Worker | Alone:
    "A worker that has this end of a socket. Raises `OSError`."
    if os.name == "nt":
        return Alone(sock, folder)
    return fork_server().start("answers", [sock.fileno()], fence, folder=folder)


def observation(reply: ObservationReply, values: Any, n_args: int, n_grads: int) -> Observation:
    "What a worker reported of one call. Raises `ForeignMessage` where it cannot be."
    if not isinstance(values, dict) or values.keys() != {"value", "grads"}:
        raise ForeignMessage("no value and gradients")
    grads = values["grads"]
    if grads is not None and not (isinstance(grads, list) and len(grads) == n_grads):
        raise ForeignMessage("other gradients than were asked for")
    if any(i >= n_args for i in reply.modified):
        raise ForeignMessage("no such argument")
    error = tidy(reply.error, 400)
    if reply.replaced:
        error = f"the call replaces {tidy(reply.replaced[0])}, which the judge counts with"
    counts = reply.model_dump(exclude={"replaced", "error", "turn"})
    return Observation(value=values["value"], grads=grads, error=error, **counts)


def read_behind_fence(
    path: Path,  # of a notebook, whoever wrote it
    limits: Limits,
) -> Notebook:
    "The notebook, read where nothing can come of it. Raises `Unreadable`."
    process = AnswerProcess(limits, Budget(READ_SECONDS), path.resolve().parent)
    try:
        ask = {"do": "read", "path": str(path.resolve())}
        reply, _ = process.ask(ReadReply, READ_SECONDS, ask)
    except AnswerLost as lost:
        raise Unreadable(path, "too large", f"reading it was ended: {lost}") from None
    finally:
        process.close()
    if reply.status:
        raise Unreadable(path, reply.status, tidy(reply.reason))
    return Notebook(path, reply.sources, reply.claims, reply.blank, reply.prints)


class NotebookRun:
    "A notebook in a worker, begun again whenever a worker is lost."

    def __init__(
        self,
        notebook: Notebook,  # its folder is where it may import from
        limits: Limits,
    ):
        self.path, self.sources, self.limits = notebook.path, notebook.sources, limits
        self.budget = Budget(limits.total_seconds)
        self.cells_left = limits.total_seconds / 2  # seconds for the cells, all runs together
        self.definitions_left = limits.total_seconds / 4  # and for those of which no more is run
        self.last_run = 0.0  # seconds that the cells took
        self.how = {number: "whole" for number, _ in self.sources}
        self.notes: dict[tuple, str] = {}
        self.limits_met: list[str] = []  # which cell or answer, which limit
        self.worker: AnswerProcess | None = None

    def start(
        self,
        bare: bool = False,  # run the definitions of the cells alone
    ) -> AnswerProcess:
        "A worker that has run the cells. Raises `AnswerLost` if no time is left."
        self.bare = bare or self.last_run > self.cells_left
        for _ in range(2 * len(self.how) + 2):
            self.stop()
            worker = AnswerProcess(self.limits, self.budget, self.path.resolve().parent)
            self.worker = worker
            if worker.not_fenced:
                text = (
                    f"run without a fence ({worker.not_fenced}): its code was not kept from files"
                )
                self.notes[0, ""] = text
            before = self.budget.left
            whole = self.run_cells(worker)
            self.last_run = before - self.budget.left
            if whole:
                return worker
        raise AnswerLost("no worker survived the cells of this notebook")

    def stop(self) -> None:
        "Ends the worker."
        if self.worker:
            self.worker.close()
            self.worker = None

    def found(self, names: list[str]) -> list[str]:
        "Those of the names that are functions."
        assert self.worker
        return self.worker.ask(NamesReply, 5, {"do": "names", "names": names})[0].found

    def note(self, number: int, text: str) -> None:
        "Notes something about a cell, once."
        if text and len(self.notes) < MOST_NOTES:
            self.notes.setdefault((number, text), f"cell {number}: {text}")

    def run_cells(self, worker: AnswerProcess) -> bool:
        "Runs the cells; False where one of them broke the worker. Then it is cut down."
        for number, source in self.sources:
            if self.how[number] == "nothing" or not source.strip():
                continue
            if self.definitions_left < 0:
                self.note(number, "no time is left for this cell and the next ones")
                return True
            whole = self.how[number] == "whole" and not self.bare and self.cells_left > 0
            ask = {"do": "cell", "number": number, "source": source, "whole": whole}
            before = self.budget.left
            # the definitions alone take no time, unless somebody wants them to
            seconds = min(self.limits.cell_seconds, max(self.cells_left, 1.0) if whole else 10.0)
            try:
                reply, _ = worker.ask(CellReply, seconds, ask)
            except AnswerLost as lost:
                if self.budget.left < 0:
                    raise
                self.cut_down(number, whole, str(lost))
                return False
            finally:
                if whole:
                    self.cells_left -= before - self.budget.left
                else:
                    self.definitions_left -= before - self.budget.left
            if whole and self.cells_left <= 0:
                self.out_of_time(number)
            self.note(number, tidy(reply.note))
            if reply.replaced:
                names = tidy(", ".join(reply.replaced))
                self.note(number, f"it replaced {names}; the originals were put back")
        return True

    def out_of_time(self, number: int) -> None:
        "The cells have used their time: of those that follow only the definitions are run."
        half = f"the cells have used their {self.limits.total_seconds / 2:g} s"
        self.note(number, f"{half}; of the next ones only the definitions count")
        self.limits_met.append(f"after cell {number} {half}")

    def cut_down(self, number: int, whole: bool, reason: str) -> None:
        "Less of a cell that broke its worker is run the next time."
        if self.bare:
            self.how[number] = "nothing"
        elif whole and len(self.limits_met) < 5:
            self.how[number] = "definitions"
        else:
            self.bare = True  # perhaps what an earlier cell has started: none is run as a whole
        left_out = self.how[number] == "nothing"
        consequence = "it is left out" if left_out else "only its definitions count"
        self.note(number, f"{reason}; {consequence}")
        self.limits_met.append(f"cell {number}: {reason}")
