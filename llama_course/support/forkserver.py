"""Workers behind the fence: a fork server starts them, a monitor for each counts and ends them."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from llama_course.support.fence import (
    HOME,
    Fence,
    enclose,
    limit,
    memory_now,
    python_folders,
    trial,
)
from llama_course.support.seccomp import c_call, forbid

NOBODY = 65534
LOOK_EVERY = 0.1  # seconds between two counts of the monitor


# ------------------------------------------------------------------- the monitor and its worker


def monitor(
    life: Callable[[], None],  # what the worker does
    keep: list[int],  # the files that stay open in it
    control: socket.socket,  # to the caller: when it closes, the worker is ended
    fence: Fence,
    why: str = "",  # no fence can be built here
) -> NoReturn:
    "The life of the monitor: builds the fence, forks the worker, counts, and ends it."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _close_all_but([*keep, control.fileno()])
    proc = os.open("/proc", os.O_RDONLY) if sys.platform == "linux" else -1
    (space, held), home = memory_now(), HOME
    if not why:
        try:
            enclose(fence)
        except OSError as error:
            why = str(error)
    if why and fence.required:
        control.sendall(json.dumps({"refused": why}).encode() + b"\n")
        os._exit(0)
    if why:
        home = tempfile.mkdtemp(prefix="llama_course_")
        with contextlib.suppress(OSError, AttributeError):
            c_call("prctl", 36, 1, 0, 0, 0)  # orphans among its descendants become its children
    worker = os.fork()
    if not worker:
        try:
            _close_all_but(keep)
            _become_worker(fence, home, space, fenced=not why)
            life()
        finally:
            os._exit(0)
    for fd in keep:
        os.close(fd)
    hello = {"home": home, "not_fenced": why, "pid": worker}
    control.sendall(json.dumps(hello).encode() + b"\n")
    with contextlib.suppress(OSError):
        control.sendall(_watch(worker, control, fence, proc, held).encode())
    if why:
        _end_descendants(proc)
        shutil.rmtree(home, ignore_errors=True)
    else:
        os.kill(worker, signal.SIGKILL)  # the first in its namespace: the kernel ends the rest
        os.waitpid(worker, 0)
    os._exit(0)


def _become_worker(fence: Fence, home: str, used: int, fenced: bool) -> None:
    os.setsid()
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), home))
    tempfile.tempdir = home
    os.chdir(home)
    limit(fence, used)
    if not fenced:
        _give_up_root(fence, home)
    if sys.platform != "linux":
        return
    c_call("prctl", 1, int(signal.SIGKILL), 0, 0, 0)  # it ends with the monitor
    try:
        forbid(may_start=fence.processes > 1)
    except OSError:
        if fenced:
            os._exit(1)


def _give_up_root(fence: Fence, home: str) -> None:
    """Where no fence can be built, as in most containers, a worker of root's becomes nobody: it
    changes no file of root's. Not where nobody could not read what the worker needs."""
    if sys.platform == "win32" or os.getuid() != 0:
        return

    def open_to_all(path: Path) -> bool:
        mode = path.stat().st_mode
        need = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
        above = (folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
        return mode & need == need and all(above)

    needed = [Path(path) for path in (*python_folders(), *fence.readable) if os.path.exists(path)]
    if all(map(open_to_all, needed)):
        os.chown(home, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _watch(worker: int, control: socket.socket, fence: Fence, proc: int, before: int) -> str:
    "Waits until the worker ends, the caller lets go, or a limit is broken: which one, in words."
    end = time.monotonic() + fence.seconds
    ended = os.pidfd_open(worker) if hasattr(os, "pidfd_open") else None
    wait_for = [control.fileno()] if ended is None else [control.fileno(), ended]
    while True:
        if select.select(wait_for, [], [], LOOK_EVERY)[0]:
            return ""
        if ended is None and os.waitpid(worker, os.WNOHANG)[0]:
            return ""
        if time.monotonic() > end:
            return f"it took longer than {fence.seconds:g} s"
        count, held = _count(proc)
        if count > fence.processes:
            return f"it started more than {fence.processes} processes"
        if held > fence.memory + count * before:
            return "its processes used too much memory"


def _end_descendants(proc: int) -> None:
    "Ends the worker and all that it has started."
    for _ in range(1000):
        children = _descendants(_processes(proc))
        if not children:
            return
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def _processes(proc: int) -> dict[int, tuple[int, int]]:
    "Number of a process -> that of its parent, and the bytes that it holds in memory."
    found = {}
    if proc < 0:
        table = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,rss="], capture_output=True, text=True
        )
        for line in table.stdout.splitlines():
            pid, parent, size = map(int, line.split())
            found[pid] = parent, 1024 * size
        return found
    page = os.sysconf("SC_PAGE_SIZE")
    for name in filter(str.isdigit, os.listdir(proc)):
        with contextlib.suppress(OSError):
            file = os.open(f"{name}/stat", os.O_RDONLY, dir_fd=proc)
            try:
                fields = os.read(file, 4096).rpartition(b")")[2].split()
            finally:
                os.close(file)
            found[int(name)] = int(fields[1]), int(fields[21]) * page
    return found


def _descendants(table: dict[int, tuple[int, int]]) -> list[int]:
    "The processes that this one has started, and those that they have started."
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, todo = [], [os.getpid()]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


def _count(proc: int) -> tuple[int, int]:
    "How many descendants this process has, and the bytes that they hold."
    table = _processes(proc)
    own = _descendants(table)
    return len(own), sum(table[pid][1] for pid in own)


def _close_all_but(keep: Iterable[int]) -> None:
    low = 3
    for fd in sorted(set(keep)):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


# ------------------------------------------------------------------- the fork server


@dataclass(frozen=True)
class Lives:
    "What the workers of a fork server may do."

    by_name: dict[str, Callable[..., None]]  # life(fds, **arguments)
    import_early: Callable[[], None] = lambda: None  # what the server imports before it forks


def serve_forks(
    control: socket.socket,  # to the one who wants workers
    lives: Lives,
) -> None:
    "Starts a monitor for each request until the socket closes."
    early = (
        sys.platform == "linux"
    )  # elsewhere a process that has imported PyTorch cannot fork well
    if early:
        lives.import_early()
    why = trial()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the monitors
    while (message := socket.recv_fds(control, 1 << 16, 8))[0]:
        request, (answers, *fds) = json.loads(message[0]), message[1]
        if os.fork() == 0:
            control.close()

            def life(request: dict = request, fds: list[int] = fds) -> None:
                if not early:
                    lives.import_early()
                lives.by_name[request["life"]](fds, **request["arguments"])

            try:
                lists = {name: tuple(request["fence"][name]) for name in ("readable", "hidden")}
                fence = Fence(**request["fence"] | lists)
                monitor(life, fds, socket.socket(fileno=answers), fence, why)
            finally:
                os._exit(1)
        for fd in message[1]:
            os.close(fd)


class Worker:
    "A worker, seen from the one who wanted it."

    def __init__(self, control: socket.socket, hello: dict):
        self.control = control
        self.refused: str = hello.get("refused", "")  # why there is none
        self.not_fenced: str = hello.get("not_fenced", "")  # why it has no fence
        self.home: str = hello.get("home", "")
        self.pid: int = hello.get("pid", 0)

    def waited(self) -> float:
        "Seconds that it was ready to run and others had the processor; 0 where nobody counts them."
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def let_go(self) -> None:
        "Has it ended, and does not wait."
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def end(self) -> str:
        "Ends it, with all that it has started; says which limit it broke, if it did."
        said = b""
        self.let_go()
        with contextlib.suppress(OSError):
            self.control.settimeout(30)
            while more := self.control.recv(4096):
                said += more
        self.control.close()
        if self.not_fenced and sys.platform == "linux":
            _end_leftovers(self.home)  # somebody may have ended the monitor
            shutil.rmtree(self.home, ignore_errors=True)
        return said.decode()


def _end_leftovers(home: str) -> None:
    "Ends whatever still works in an unfenced worker's folder, in whatever session."
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(cwd).startswith(home):
                os.kill(int(cwd.parent.name), signal.SIGKILL)


class ForkServer:
    "A process that starts workers; it knows nothing of this one. A context manager."

    def __init__(
        self,
        lives: str,  # what its workers may do: "package.module:NAME" of a `Lives`
        packages: bool = True,  # whether the workers can import installed packages
        environment: dict[str, str] | None = None,
    ):
        self.lives, self.packages, self.environment = lives, packages, environment or {}
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()

    def command(self, sock: int) -> list[str]:
        "The fork server's command line; `sock` is the socket that it listens to."
        root = str(Path(sys.modules["llama_course"].__path__[0]).parent)
        paths = [path for path in sys.path if os.path.isdir(path)] if self.packages else []
        module, name = self.lives.split(":")
        start = (
            f"import sys, socket, importlib; sys.path[:] = [*sys.path, {root!r}, *{paths!r}]; "
            f"lives = importlib.import_module({module!r}).{name}; "
            "from llama_course.support import fence, forkserver, seccomp; "
            f"forkserver.serve_forks(socket.socket(fileno={sock}), lives)"
        )
        alone = ["-I", "-B"] if self.packages else ["-I", "-B", "-S"]
        return [sys.executable, *alone, "-X", "utf8", "-c", start]

    def __enter__(self) -> "ForkServer":
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                self.command(theirs.fileno()),
                env=self.environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.control.close()
            self.process.wait()
            self.process = None

    def start(
        self,
        life: str,  # its name
        fds: list[int],  # that the worker gets
        fence: Fence,
        **arguments: Any,  # of the life, as JSON can hold them
    ) -> Worker:
        "A new worker; see its `refused`. Raises `OSError` if the server does not answer."
        ours, theirs = socket.socketpair()
        request = {"life": life, "fence": asdict(fence), "arguments": arguments}
        body, line = json.dumps(request).encode(), b""
        with self.lock, theirs:  # one request at a time
            socket.send_fds(self.control, [body], [theirs.fileno(), *fds])
            theirs.close()
            ours.settimeout(120)
            while not line.endswith(b"\n"):
                more = ours.recv(1)
                if not more:
                    ours.close()
                    raise OSError("the fork server does not start a worker")
                line += more
        return Worker(ours, json.loads(line))
