"""The fence around strangers' code: learners' notebooks, and programs that a model has written.

A *fork server* (forkserver.py: one process, which has imported what the code will need and never
runs a line of it) forks a *monitor* for each piece of code; the monitor builds the fence and
forks the *worker* that runs the code inside. What the fence covers on Linux, each by the kernel,
and each tried in tests/test_fence.py and tests/test_programs.py by code that wants out:

- files: a root of its own (`pivot_root`), read-only: Python, libraries, what is in
  `Fence.readable`, without the folders in `Fence.hidden`
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
the limits, the monitor's counts, and root's worker becomes nobody where nobody can read what it
needs; on macOS the limits and the clock; on Windows the clock.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_course.support.seccomp import c_call, forbid

HOME = "/scratch"  # the one folder behind the fence that can be written to
DEVICES = ("null", "zero", "random", "urandom")
NAMESPACES = {
    "user": 1 << 28, "processes": 1 << 29, "network": 1 << 30, "mounts": 1 << 17,
    "messages": 1 << 27, "host name": 1 << 26, "control groups": 1 << 25,
}  # fmt: skip
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8
BIND, RECURSIVE, PRIVATE = 1 << 12, 1 << 14, 1 << 18
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@dataclass(frozen=True)
class Fence:
    "What a worker may see and use."

    readable: tuple[str, ...] = ()  # files and folders, beside Python's standard library
    hidden: tuple[str, ...] = ()  # folders in these, which are empty behind the fence
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
    for folder in fence.hidden:
        if os.path.isdir(root + folder):
            size = b"size=4k,nr_inodes=1,mode=555"
            c_call("mount", b"none", (root + folder).encode(), b"tmpfs", flags, size)
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


def memory_now() -> tuple[int, int]:
    "Bytes of address space and of memory that this process has; behind the fence nobody tells."
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return 1 << 30, 1 << 29
    space, held, *_ = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in pages.read_text().split())
    return space, held


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
