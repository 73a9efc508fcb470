"""HumanEval and MBPP ask a model for programs, and run them. This is how to run them without harm, and"""

import ctypes
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama_course.support.errors import UserError

def pack(
    value,
    keep,  # called with what is no plain data; its number goes instead
):
    "A tree that JSON can hold, from which `unpack` makes the value again."
    if value is None or isinstance(value, bool): return value
    if isinstance(value, int): return {"int": int.__format__(value, "x")}
    if isinstance(value, float): return {"float": float.hex(value)}
    if isinstance(value, complex): return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, str): return str.__str__(value)
    if isinstance(value, bytes): return {"bytes": value.hex()}
    if isinstance(value, dict): return {"dict": [[pack(k, keep), pack(v, keep)] for k, v in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(part, keep) for part in kind.__iter__(value)]}
    return {"kept": keep(value)}

def unpack(
    tree,
    kept,  # called with the number of a thing that was kept
):
    "The value that `pack` was given."
    if not isinstance(tree, dict): return tree
    (kind, inside), = tree.items()
    if kind == "int": return int(inside, 16)
    if kind == "float": return float.fromhex(inside)
    if kind == "complex": return complex(*map(float.fromhex, inside))
    if kind == "bytes": return bytes.fromhex(inside)
    if kind == "dict": return {unpack(k, kept): unpack(v, kept) for k, v in inside}
    if kind == "kept": return kept(inside)
    sequence = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return sequence(unpack(part, kept) for part in inside)

class Wire:
    "Messages over a socket, one line of JSON each."

    def __init__(self, sock):
        self.file = sock.makefile("rwb")

    def say(self, **message):
        self.file.write(json.dumps(message).encode() + b"\n")
        self.file.flush()

    def hear(self) -> dict:
        line = self.file.readline(1 << 24)
        if not line.endswith(b"\n"): raise EOFError("the program ended its process")
        return json.loads(line)

def perform(
    ask: dict,  # "do", and what that needs
    names: dict,  # what the program has defined
    kept: list,  # things that the other side knows by number
):
    "The value that was asked for."
    see = lambda tree: unpack(tree, kept.__getitem__)
    if ask["do"] == "find": return names[ask["name"]]
    thing = see(ask["thing"])
    if ask["do"] == "call": return thing(*see(ask["args"]), **see(ask["named"]))
    if ask["do"] == "get": return getattr(thing, ask["name"])
    if ask["do"] == "set": return setattr(thing, ask["name"], see(ask["value"]))
    return list(thing)

def answer_calls(
    sock,  # to the tests
    program: str,
):
    "The life of the program's cell: it runs the program, then does what the tests ask."
    wire, kept, module = Wire(sock), [], type(sys)("program")
    keep = lambda thing: kept.append(thing) or len(kept) - 1
    sys.modules["program"], done = module, "it ran"
    try: exec(compile(program, "program", "exec"), module.__dict__)
    except BaseException as error: done = f"{type(error).__name__}: {error}"
    wire.say(done=done[:200])
    while True:
        try: reply = {"value": pack(perform(wire.hear(), module.__dict__, kept), keep)}
        except EOFError: return
        except BaseException as error: reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        wire.say(**reply)

class Kept:
    "A thing in the program's cell, as the tests see it."

    def __init__(self, ask, number):
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args, **named): return self._ask("call", self, args=args, named=named)

    def __iter__(self): return iter(self._ask("iterate", self))

    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return self._ask("get", self, name=name)

    def __setattr__(self, name, value): self._ask("set", self, name=name, value=value)

def asker(wire: Wire):
    "A function that asks the program's cell for something and gives the value that comes back."
    def number(thing):
        if isinstance(thing, Kept): return thing._number
        raise TypeError(f"a {type(thing).__name__} cannot be sent to the program")
    def ask(do, thing=None, **more):
        tree = {key: more[key] if key == "name" else pack(more[key], number) for key in more}
        wire.say(do=do, thing=pack(thing, number), **tree)
        reply = wire.hear()
        if "error" in reply: raise RuntimeError(reply["error"])
        return unpack(reply["value"], lambda n: Kept(ask, n))
    return ask

def run_tests(
    sock,  # to the program
    job: dict,  # "before", "names", "tests"
) -> str:  # empty: passed; else why not
    "Runs the tests, with the program's names standing for what is in the other cell."
    wire, space = Wire(sock), {"__name__": "tests"}
    try:
        exec(job["before"], space)
        if (done := wire.hear()["done"]) != "it ran": return done
        ask = asker(wire)
        space |= {name: ask("find", name=name) for name in job["names"]}
        exec(job["tests"], space)
        return ""
    except BaseException as error: return f"{type(error).__name__}: {error}"[:200]

NAMESPACES = {"user": 1 << 28, "processes": 1 << 29, "network": 1 << 30, "mounts": 1 << 17,
              "messages": 1 << 27, "host name": 1 << 26, "control groups": 1 << 25}
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
HOME = "/scratch"  # the one folder of a cell that can be written to


def c_call(
    name: str,  # of a function of the C library
    *args,
):
    "What the function returns; raises `OSError` where that is -1."
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := getattr(libc, name)(*args)) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def libraries() -> list[str]:
    "The folders that Python needs to import its standard library."
    folders = [os.path.dirname(os.__file__), *("/lib /lib64 /usr/lib /usr/lib64".split())]
    return [folder for folder in folders if os.path.isdir(folder)]

def make_root():
    "A new file system for this process, which is alone in its namespace of mounts; it stands in `HOME`."
    flags = NO_SUID | NO_DEV
    root = "/proc"  # of all folders the one that nothing here needs: the new root is put over it
    c_call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    c_call("mount", b"none", root.encode(), b"tmpfs", flags, b"size=1m,mode=755")
    for folder in libraries():
        os.makedirs(root + folder, exist_ok=True)
        c_call("mount", folder.encode(), (root + folder).encode(), None, BIND | RECURSIVE, None)
    os.mkdir(root + HOME)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY | flags, 0, 0, 0)
    c_call("syscall", 442, -100, root.encode(), 0x8000, attributes, 32)  # mount_setattr, for all below
    home = (root + HOME).encode()
    c_call("mount", b"none", home, b"tmpfs", flags | NO_EXEC, b"size=8m,nr_inodes=256,mode=700")
    os.chdir(root)
    c_call("pivot_root", b".", b".")
    c_call("umount2", b".", 2)  # the old root is gone, once nobody uses it
    os.chdir(HOME)

def fence():
    "The next child of this process lives in namespaces of its own, without any right. Raises `OSError`."
    user, group = f"65534 {os.getuid()} 1", f"65534 {os.getgid()} 1"
    c_call("unshare", sum(NAMESPACES.values()))
    for name, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
        Path(f"/proc/self/{name}").write_text(text)
    make_root()
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    c_call("capset", header, nothing)

FORBIDDEN = {  # call: its number on x86_64 and on aarch64
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "mknodat": (259, 33), "mknod": (133, None), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "fanotify_init": (300, 262),
    "personality": (135, 92),
}
PROCESSORS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # which column, and the kernel's name

def forbid():
    "From here on, the calls in `FORBIDDEN` are refused to this process, for good. Raises `OSError`."
    if platform.machine() not in PROCESSORS: raise OSError(0, f"no list of calls for {platform.machine()}")
    column, name = PROCESSORS[platform.machine()]
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    numbers = [n for pair in FORBIDDEN.values() if (n := pair[column]) is not None]
    steps = [(load, 0, 0, 4), (equal, 1, 0, name), (leave, 0, 0, kill),  # another processor's call
             (load, 0, 0, 0), (at_least, 0, 1, 1 << 30), (leave, 0, 0, kill)]  # numbers that x86 has twice
    for number in numbers: steps += [(equal, 0, 1, number), (leave, 0, 0, refuse)]
    steps.append((leave, 0, 0, allow))
    code = b"".join(a.to_bytes(2, "little") + bytes([t, f]) + k.to_bytes(4, "little") for a, t, f, k in steps)
    class Filter(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
    c_call("prctl", 38, 1, 0, 0, 0)  # no program that it starts may have more rights
    c_call("prctl", 22, 2, ctypes.byref(Filter(len(steps), code)), 0, 0)

@dataclass(frozen=True)
class Bounds:
    "What a program may use."
    seconds: float = 5.0  # for the program and its tests together, by the clock on the wall
    memory: int = 256 << 20  # bytes, beyond what Python itself needs
    file_size: int = 4 << 20  # bytes


def memory_in_use() -> int:  # bytes of address space
    "What this process has now; inside the fence there is no `/proc` to ask."
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 1 << 30


def bound(
    bounds: Bounds,
    used: int,  # bytes of address space, before the program
):
    "Limits on memory, files and processor time for this process."
    import resource
    for kind, value in ((resource.RLIMIT_AS, used + bounds.memory), (resource.RLIMIT_FSIZE, bounds.file_size),
                        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 32),
                        (resource.RLIMIT_CPU, int(bounds.seconds) + 2)):
        most = resource.getrlimit(kind)[1]
        try: resource.setrlimit(kind, (value, value) if most < 0 else (min(value, most),) * 2)
        except (ValueError, OSError): pass  # macOS has no limit of this kind

def start_cell(
    life,  # what the cell does
    keep: list[int],  # the files that stay open
    bounds: Bounds,
    isolated: bool,
) -> tuple[int, int]:  # the warden's number, and the end of the string
    "A process that does `life()` behind the fence; close the string to end it."
    string, end = os.pipe()
    if warden := os.fork():
        os.close(string)
        return warden, end
    try:
        os.setsid()
        low = 3
        for fd in sorted({*keep, string}):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 1 << 16)
        home, used = None if isolated else tempfile.mkdtemp(), memory_in_use()
        fence() if isolated else os.chdir(home)
        live(life, keep, string, isolated, home, lambda: bound(bounds, used))
    finally: os._exit(1)

def live(life, keep, string, isolated, home, limit):
    "In the warden: forks the cell, and ends it when the string is let go."
    if cell := os.fork():
        for fd in keep: os.close(fd)
        os.read(string, 1)
        os.kill(cell, signal.SIGKILL)
        os.waitpid(cell, 0)
        if home: shutil.rmtree(home, ignore_errors=True)
        os._exit(0)
    os.close(string)
    os.setsid()
    limit()
    try: forbid()
    except OSError:
        if isolated: os._exit(1)
    life()
    os._exit(0)

def run_program(file: int, sock):
    "The life of the program's cell."
    text = os.fdopen(file).read()
    answer_calls(sock, text)

def run_judge(file: int, verdict: int, sock):
    "The life of the tests' cell."
    reason = run_tests(sock, json.load(os.fdopen(file)))
    os.write(verdict, json.dumps({"passed": not reason, "reason": reason}).encode())

def can_isolate() -> str:  # empty: yes; else why not
    "Builds a fence in a child, to see whether it stands."
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        why = ""
        try: fence(), forbid()
        except Exception as error: why = str(error) or type(error).__name__
        os.write(theirs, why.encode())
        os._exit(0)
    os.close(theirs)
    why = os.fdopen(ours).read()
    os.waitpid(child, 0)
    return why

def gate(
    control,  # a socket to the one who wants programs run
    isolated: bool,
):
    "Starts and ends cells until the socket closes."
    why = can_isolate() if isolated and sys.platform == "linux" else "Linux only" if isolated else ""
    control.sendall(json.dumps(why).encode())
    while (message := socket.recv_fds(control, 4096, 3))[0]:
        bounds, (program, tests, verdict) = Bounds(**json.loads(message[0])), message[1]
        ours, theirs = socket.socketpair()
        lives = ((lambda: run_program(program, theirs), [program, theirs.fileno()]),
                 (lambda: run_judge(tests, verdict, ours), [tests, verdict, ours.fileno()]))
        cells = [start_cell(life, keep, bounds, isolated) for life, keep in lives]
        for fd in message[1]: os.close(fd)
        ours.close(), theirs.close()
        control.recv(16)  # "end", or nothing: nobody is there any more
        for _, string in cells: os.close(string)
        for warden, _ in cells: os.waitpid(warden, 0)
        control.sendall(b"ended")

ANYWAY = "LLAMA_COURSE_RUN_PROGRAMS_WITHOUT_ISOLATION"


class Verdict(NamedTuple):
    passed: bool
    reason: str  # why not


def start_gate(sock, isolated: bool) -> subprocess.Popen:
    "The gate, as a process that knows nothing of this one."
    package = str(Path(sys.modules["llama_course"].__path__[0]).parent)
    start = f"import sys, socket; sys.path.append({package!r}); from llama_course import sandbox; " \
            f"sandbox.gate(socket.socket(fileno={sock.fileno()}), {isolated})"
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", start]
    return subprocess.Popen(command, env={}, cwd="/", pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

class Sandbox:
    "A place to run programs in: `with Sandbox() as box: box.run(...)`. `UserError` where none can be built."

    def __init__(
        self,
        without_isolation: bool = False,  # run programs even where they cannot be fenced in
        bounds: Bounds = Bounds(),
    ):
        self.isolated = not (without_isolation or os.environ.get(ANYWAY) == "1")
        self.bounds, self.process = bounds, None
        if os.name == "nt": raise UserError("programs are not run on Windows: use its Linux, WSL.")

    def __enter__(self):
        self.control, theirs = socket.socketpair()
        self.process = start_gate(theirs, self.isolated)
        theirs.close()
        if why := json.loads(self.control.recv(4096) or '"it does not start"'):
            self.__exit__()
            raise UserError(f"programs cannot be isolated here ({why}), so none is run; if you accept what"
                            f" they may do, set {ANYWAY}=1.")
        return self

    def __exit__(self, *_):
        self.control.close()
        self.process.wait()

def run(
    self,
    program: str,  # nobody has read it
    tests: str,  # assertions
    names: list[str],  # what the program defines and the tests use
    before: str = "",  # runs before the tests, beside them: definitions that they need
) -> Verdict:
    "Whether the tests pass."
    job = json.dumps({"before": before, "tests": tests, "names": list(names)})
    files, (verdict, theirs) = [as_file(program), as_file(job)], os.pipe()
    message = json.dumps(asdict(self.bounds)).encode()
    socket.send_fds(self.control, [message], [*(file.fileno() for file in files), theirs])
    os.close(theirs)
    try: said = hear_verdict(verdict, time.monotonic() + self.bounds.seconds)
    finally:
        for file in (os.fdopen(verdict), *files): file.close()
        self.control.sendall(b"end")
        self.control.recv(16)
    return Verdict(**json.loads(said)) if said else Verdict(False, f"no end in {self.bounds.seconds:g} s")

Sandbox.run = run

def as_file(text: str):
    "An open file without a name that holds the text."
    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    file.write(text)
    file.seek(0)
    return file


def hear_verdict(pipe, deadline) -> bytes:
    "What comes until the pipe closes; nothing if that is too late."
    said = b""
    while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
        if not (more := os.read(pipe, 4096)): return said or b'{"passed": false, "reason": "its cell broke"}'
        said += more
    return b""
