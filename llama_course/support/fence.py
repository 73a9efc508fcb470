"""The fence around strangers' code: learners' notebooks, and programs that a model has written.

A *fork server* (one process, which has imported what the code will need and never runs a line of
it) forks a *monitor* for each piece of code; the monitor builds the fence and forks the *worker*
that runs the code inside. What the fence covers on Linux, each by the kernel, and each tried in
tests/test_fence.py and tests/test_programs.py by code that wants out:

- files: a root of its own (`pivot_root`), read-only: Python, libraries, what is in
  `Fence.readable`
- writing: one folder in memory, `Fence.disk` bytes, gone with the worker
- devices: null, zero, random, urandom and no others; no node can be made
- network: a namespace without an interface, and no sockets but pairs: no server, no Unix socket
- processes: a pid namespace; none but its own is seen or ended; its end is that of all it started
- number of processes: the monitor counts all descendants, whatever session they are in
- memory: address space of each process, shared memory too; the monitor adds up what all of them
  hold
- memory without a file: no memfd, no System V or POSIX queues and segments
- time: the clock, by the monitor; processor time, by a limit
- open files, size of files: limits that cannot be raised
- rights: a user that is nobody, no capability, no new one (`no_new_privs`), no further namespace
- output: standard input, output and error lead nowhere; all that is said goes over given sockets

What it does not cover: a fault of the kernel itself; what processes do between two counts of the
monitor (a tenth of a second; each within its own limits); processor time and memory bandwidth
that others on the machine miss; what the code learns from the processor and from what it may
read.

Where the system cannot build it (macOS, Windows, containers that refuse namespaces), the worker
says so and the caller decides, by `Fence.required`: programs are not run, notebooks are graded
with a note. What holds without it: on Linux all that seccomp refuses (sockets, tracing, memfd),
the limits, and the monitor's counts; on macOS the limits and the clock; on Windows the clock.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from llama_course.support.seccomp import c_call, forbid

HOME = "/scratch"  # the one folder behind the fence that can be written to
DEVICES = ("null", "zero", "random", "urandom")
NAMESPACES = {
    "user": 1 << 28, "processes": 1 << 29, "network": 1 << 30, "mounts": 1 << 17,
    "messages": 1 << 27, "host name": 1 << 26, "control groups": 1 << 25,
}  # fmt: skip
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8
BIND, RECURSIVE, PRIVATE = 1 << 12, 1 << 14, 1 << 18
LOOK_EVERY = 0.1  # seconds between two counts of the monitor
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@dataclass(frozen=True)
class Fence:
    "What a worker may see and use."

    readable: tuple[str, ...] = ()  # files and folders, beside Python's standard library
    seconds: float = 10.0  # by the clock on the wall
    memory: int = 256 << 20  # bytes, beyond what it has when it starts; for all processes together
    processes: int = 1  # at the same time; 1: it may start no process, and no thread
    open_files: int = 32
    disk: int = 4 << 20  # bytes, of all files together
    required: bool = True  # where no fence can be built, no worker is started


# ------------------------------------------------------------------- building it


def python_folders() -> list[str]:
    "The folders that Python needs to import its standard library."
    folders = [os.path.dirname(os.__file__), *SYSTEM]
    return [folder for folder in folders if os.path.isdir(folder)]


def installed_packages() -> list[str]:
    "The folders that Python, its packages and the programs of the system are in."
    folders = [sys.prefix, sys.base_prefix, "/usr", "/bin", "/etc/ld.so.cache", "/etc/localtime"]
    for folder in sys.path:
        name = os.path.basename(folder)
        if name in ("site-packages", "dist-packages") or os.path.isdir(f"{folder}/torch"):
            folders.append(folder)
    both = {*folders, *map(os.path.realpath, folders)}
    return sorted(folder for folder in both if os.path.exists(folder) and folder != "/")


def make_root(fence: Fence) -> None:
    "A new file system for this process, which is alone in its namespace of mounts."
    flags = NO_SUID | NO_DEV
    root = "/proc"  # of all folders the one that nothing here needs: the new root is put over it
    c_call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    c_call("mount", b"none", root.encode(), b"tmpfs", flags, b"size=4m,mode=755")
    _bind(root, [*python_folders(), *fence.readable])
    for folder in (HOME, "/dev"):
        os.makedirs(root + folder, exist_ok=True)
    for device in DEVICES:
        Path(root, "dev", device).touch()
    for link in ("/tmp", "/dev/shm"):
        if not os.path.lexists(root + link):
            os.symlink(HOME, root + link)
    _set_flags(root, READ_ONLY | flags, 0x8000)  # and of all mounts below it
    for device in filter(os.path.exists, (f"/dev/{name}" for name in DEVICES)):
        c_call("mount", device.encode(), (root + device).encode(), None, BIND, None)
        _set_flags(root + device, READ_ONLY | NO_SUID | NO_EXEC)
    size = f"size={fence.disk},nr_inodes={max(256, fence.disk >> 14)},mode=700".encode()
    flags |= 0 if fence.processes > 1 else NO_EXEC
    c_call("mount", b"none", (root + HOME).encode(), b"tmpfs", flags, size)
    os.chdir(root)
    c_call("pivot_root", b".", b".")
    c_call("umount2", b".", 2)  # the old root is gone, once nobody uses it
    os.chdir(HOME)


def _bind(root: str, paths: Iterable[str]) -> None:
    "The files and folders, in the new root where they are in the old one."
    bound: list[str] = []
    for path in sorted({path for path in paths if os.path.exists(path)}):
        if any(path.startswith(f"{folder}/") for folder in bound):
            continue
        if os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            Path(root + path).touch()
        c_call("mount", path.encode(), (root + path).encode(), None, BIND | RECURSIVE, None)
        bound.append(path)


def _set_flags(path: str, flags: int, recursive: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    c_call("syscall", 442, -100, path.encode(), recursive, attributes, 32)  # mount_setattr


def enclose(fence: Fence) -> None:
    """The next child of this process lives in namespaces of its own, with no rights. Raises
    `OSError`."""
    if sys.platform != "linux":
        raise OSError(0, f"{sys.platform} has no namespaces")
    user, group = f"65534 {os.getuid()} 1", f"65534 {os.getgid()} 1"
    c_call("unshare", sum(NAMESPACES.values()))
    for name, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
        Path(f"/proc/self/{name}").write_text(text)
    make_root(fence)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    c_call("capset", header, nothing)


def address_space() -> int:  # bytes of address space
    "What this process has now; behind the fence there is no `/proc` to ask."
    pages = Path("/proc/self/statm")
    return (
        int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if pages.exists()
        else 1 << 30
    )


def limit(fence: Fence, used: int) -> None:
    "Limits on this process and each that it starts, which they cannot raise again."
    import resource

    rows = [
        (resource.RLIMIT_AS, used + fence.memory), (resource.RLIMIT_FSIZE, fence.disk),
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, fence.open_files),
        (resource.RLIMIT_CPU, int(fence.seconds) + 2),
    ]  # fmt: skip
    for kind, value in rows:
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        with contextlib.suppress(ValueError, OSError):  # macOS has not all of them
            resource.setrlimit(kind, (value, value))


def trial() -> str:  # empty: it stands; else why not
    "Builds a fence in a child, to see whether this system lets it."
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        why = ""
        try:
            enclose(Fence())
            forbid()
        except Exception as error:
            why = str(error) or type(error).__name__
        os.write(theirs, why.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        why = file.read()
    os.waitpid(child, 0)
    return why


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
    used, home = address_space(), HOME
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
            _become_worker(fence, home, used, fenced=not why)
            life()
        finally:
            os._exit(0)
    for fd in keep:
        os.close(fd)
    hello = {"home": home, "not_fenced": why}
    control.sendall(json.dumps(hello).encode() + b"\n")
    with contextlib.suppress(OSError):
        control.sendall(_watch(worker, control, fence, proc).encode())
    _end(proc)
    if why:
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def _become_worker(fence: Fence, home: str, used: int, fenced: bool) -> None:
    os.setsid()
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), home))
    tempfile.tempdir = home
    os.chdir(home)
    limit(fence, used)
    if sys.platform != "linux":
        return
    c_call("prctl", 1, int(signal.SIGKILL), 0, 0, 0)  # it ends with the monitor
    try:
        forbid(may_start=fence.processes > 1)
    except OSError:
        if fenced:
            os._exit(1)


def _watch(worker: int, control: socket.socket, fence: Fence, proc: int) -> str:
    "Waits until the worker ends, the caller lets go, or a limit is broken: which one, in words."
    end, before = time.monotonic() + fence.seconds, _count(proc)[1]
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


def _end(proc: int) -> None:
    "Ends the worker and all that it has started: in a namespace the kernel does the rest."
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
                fence = Fence(
                    **request["fence"] | {"readable": tuple(request["fence"]["readable"])}
                )
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

    def end(self) -> str:
        "Ends it, with all that it has started; says which limit it broke, if it did."
        said = b""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
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
            "from llama_course.support import fence, seccomp; "
            f"fence.serve_forks(socket.socket(fileno={sock}), lives)"
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
