"""Where a stranger's code runs: in a process of its own, which can lose nothing but itself."""

import ast
import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import linecache
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from llama_course.support import ledger as counting
from llama_course.support.ledger import Counter, Ledger
from llama_course.support.errors import UserError

class WorkerDied(Exception):
    "The process in which somebody's code ran broke a limit or ended; the text says how."

LARGEST_MESSAGE = 1 << 28  # bytes

def _pack(tree, tensors: dict):
    "A tree of plain values as JSON; its tensors go to `tensors`."
    if isinstance(tree, Tensor):
        order = sorted(range(tree.dim()), key=lambda i: -tree.stride(i))  # what is transposed stays so
        key, plain = str(len(tensors)), tree.detach().as_subclass(Tensor)
        tensors[key] = plain.permute(order).contiguous().clone()
        return {"tensor": key, "order": order}
    if tree is None or type(tree) in (bool, int, float, str):
        return {"is": tree}
    if isinstance(tree, (list, tuple)):
        return {"tuple" if isinstance(tree, tuple) else "list": [_pack(t, tensors) for t in tree]}
    if isinstance(tree, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in tree.items()]}
    return {"bytes": tree.hex()} if isinstance(tree, bytes) else {"other": type(tree).__name__}

def _unpack(packed: dict, tensors: dict):
    "The tree again."
    (kind, thing), *rest = packed.items()
    if kind == "tensor":
        order = rest[0][1]
        return tensors[thing].permute([order.index(i) for i in range(len(order))])
    if kind == "list": return [_unpack(t, tensors) for t in thing]
    if kind == "tuple": return tuple(_unpack(t, tensors) for t in thing)
    if kind == "dict": return {_unpack(k, tensors): _unpack(v, tensors) for k, v in thing}
    return bytes.fromhex(thing) if kind == "bytes" else thing if kind == "is" else type(thing, (), {})()

def _send(sock, message: dict, tree=None):
    "One message: two lengths, the JSON, the tensors."
    tensors = {}
    body = json.dumps({**message, "tree": _pack(tree, tensors)}).encode()
    blob = safetensors.torch.save(tensors) if tensors else b""
    if len(body) + len(blob) > LARGEST_MESSAGE:
        raise ValueError(f"{len(body) + len(blob):,} bytes are more than a message may have")
    sock.sendall(struct.pack(">QQ", len(body), len(blob)) + body + blob)

def _receive(sock, watch: Callable = lambda: None) -> tuple:
    "The next message and its tree; `watch` is called again and again meanwhile, and raises to give up."
    def read(size):
        data = bytearray()
        while len(data) < size:
            watch()
            with contextlib.suppress(TimeoutError):
                piece = sock.recv(min(size - len(data), 1 << 20))
                if not piece: raise EOFError("the other side is gone")
                data += piece
        return bytes(data)

    sizes = struct.unpack(">QQ", read(16))
    if sum(sizes) > LARGEST_MESSAGE: raise ValueError("this is no message")
    message, blob = json.loads(read(sizes[0])), read(sizes[1])
    return message, _unpack(message.pop("tree"), safetensors.torch.load(blob) if blob else {})

def _python_only(source: str) -> tuple:
    "A cell without IPython's magics and shell lines, and a note if there were any."
    try:
        ast.parse(source)
        return source, ""
    except SyntaxError:
        if re.match(r"\s*%%(?!time\b|timeit\b|capture\b)", source): return "", "a cell magic was left out"
        kept = re.sub(r"^(\s*)([%!?]|[\w.]+\?+\s*$).*$", r"\1pass", source, flags=re.MULTILINE)
        return kept, "" if kept == source else "lines for IPython or the shell were left out"

def _definitions_only(source: str) -> str:
    "The imports, functions and classes of a cell, and its assignments that call nothing."
    def harmless(node):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            return not any(isinstance(part, ast.Call) for part in ast.walk(node))
        return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
    return ast.unparse(ast.Module([node for node in ast.parse(source).body if harmless(node)], []))

def tidy(
    text,  # anything; its text is taken
    length: int = 300,  # characters, at most
) -> str:
    "One line of printable characters."
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:length]

def one_line(
    error: BaseException,
    answer=None,  # the function that was called, if one was: lines of its file count as places, too
) -> str:
    "Type, text and place of an exception, in one line."
    code = getattr(inspect.unwrap(answer), "__code__", None) if callable(answer) else None
    home, place, trace = getattr(code, "co_filename", "<cell"), "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith("<cell") or file == home:
            where = "the cell" if "ipykernel" in file else Path(file).name.strip("<>")
            place = f" (line {trace.tb_lineno} of {where})"
        trace = trace.tb_next
    text = "the memory limit was reached" if "alloc_cpu" in str(error) else tidy(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"

def _run_cell(module, number: int, source: str, whole: bool = True) -> str:
    "Runs one cell; a note where something is to be said."
    try:
        source, note = _python_only(source)
        source = source if whole else _definitions_only(source)
        file = f"<cell {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile(source, file, "exec"), module.__dict__)
        return note
    except BaseException as error:  # SystemExit and KeyboardInterrupt as well: the next cell shall run
        return one_line(error)

def _import_late_parts():
    "What autograd and checkpoint policies import at their first use: some of it replaces names in torch."
    for name in ("torch.fx.experimental.symbolic_shapes", "torch._dynamo"): importlib.import_module(name)

def _guarded_spaces() -> list:
    "The modules and classes that counting relies on."
    return [sys.modules[__name__], counting, Counter, Ledger, Counter.__base__,
            counting.StorageWeakRef, torch.UntypedStorage, torch, torch.Tensor, torch.Storage,
            torch.nn.functional, torch.autograd, torch.autograd.graph, torch.autograd.Function,
            torch.utils._pytree, torch.utils._python_dispatch,
            safetensors.torch, socket.socket, json, struct, gc]

def _guard(spaces: list) -> Callable:
    "A function that puts everything back as it is now, and names what had changed."
    def worth(space): return {k: v for k, v in vars(space).items() if isinstance(space, type) or callable(v)}
    kept = [(space, worth(space)) for space in spaces]
    functions = [f for _, names in kept for f in names.values() if isinstance(f, types.FunctionType)]
    codes, look, put, drop = [(f, f.__code__) for f in functions], vars, setattr, delattr
    formulas = dict(counting.FORMULAS)

    def put_back() -> list:
        changed = []
        for space, names in kept:
            now = dict(look(space))
            changed += [(space, name) for name, value in names.items() if now.get(name) is not value]
            if isinstance(space, type):  # a new name on a class may hide one that it inherits
                changed += [(space, name) for name in now if name not in names]
        for space, name in changed:
            names = next(names for s, names in kept if s is space)
            put(space, name, names[name]) if name in names else drop(space, name)
        replaced = [f for f, code in codes if f.__code__ is not code]
        for f, code in codes: f.__code__ = code
        if counting.FORMULAS != formulas: counting.FORMULAS.clear(), counting.FORMULAS.update(formulas)
        return [f"{space.__name__}.{name}" for space, name in changed] + [f.__qualname__ for f in replaced]

    return put_back

class Served(NamedTuple):
    "What a worker can be asked besides running cells."
    watch: Callable  # watch(answer, *args, wrt=, cotangent=, call=) -> something with `value` and `grads`
    calls: dict  # name of a function -> how it is used: call(answer, *args)
    guarded: list  # modules and classes of the asker's that cells must not change

def _observed(main, message: dict, tree, call: Callable, watch: Callable) -> tuple:
    "One observation, as numbers and as a tree of values."
    args, cotangent = tree
    answer = main.__dict__[message["name"]]
    seen = vars(watch(answer, *args, wrt=tuple(message["wrt"]), cotangent=cotangent, call=call))
    values = {"value": seen.pop("value"), "grads": seen.pop("grads")}
    return seen, values

def _serve(sock, served: Served):
    "A worker's life: cells and calls, one message each, until the judge hangs up."
    put_back = _guard(_guarded_spaces() + served.guarded)
    receive, send, run, seen_by, (watch, calls, _) = _receive, _send, _run_cell, _observed, served
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    while True:
        message, tree = receive(sock)
        reply, values = {}, None
        if message["do"] == "cell":
            reply["note"] = run(main, message["number"], message["source"], message["whole"])
        elif message["do"] == "names":
            reply["found"] = [name for name in message["names"] if callable(main.__dict__.get(name))]
        else:
            reply, values = seen_by(main, message, tree, calls[message["name"]], watch)
        reply["replaced"] = put_back()
        try: send(sock, reply, values)
        except ValueError as error: send(sock, {**reply, "error": str(error)}, {"value": None, "grads": None})

@dataclass
class Limits:
    "What a notebook may use."
    memory: int = 4 << 30  # bytes, beyond what Python and PyTorch need
    cell_seconds: float = 30.0  # for one cell
    call_seconds: float = 10.0  # for one call of an answer
    total_seconds: float = 300.0  # for the whole notebook, all runs together
    processes: int = 64  # at the same time

def _fence(home: bytes) -> bool:
    "Linux: the next child has users, processes, mounts of its own, one writable folder. False if refused."
    libc, users, processes, mounts = ctypes.CDLL(None), 0x10000000, 0x20000000, 0x20000
    if libc.unshare(users | processes | mounts):
        return False
    def flags(path, recursive, put, take):  # the system call mount_setattr; the C library may not know it yet
        libc.syscall(442, -100, path, recursive, ctypes.byref((ctypes.c_uint64 * 4)(put, take, 0, 0)), 32)
    libc.mount(home, home, None, 0x1000, None)  # bound to itself, so that it has flags of its own
    flags(b"/", 0x8000, 1, 0)  # read-only, and all below
    flags(home, 0, 0, 1)
    return True

def _give_up_rights():
    "Linux: no capabilities from here on, not even inside the namespace; and an end when the parent ends."
    libc = ctypes.CDLL(None)
    libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)
    libc.capset(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), ctypes.byref((ctypes.c_uint32 * 6)()))

def _bound(limits: dict):
    "Limits that this process cannot raise again; on Windows there are none."
    try: import resource
    except ImportError: return
    def at_most(kind, value):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError): resource.setrlimit(kind, (value, value))

    pages = Path("/proc/self/statm")
    if pages.exists():
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        at_most(resource.RLIMIT_AS, used + limits["memory"])
    at_most(resource.RLIMIT_FSIZE, 64 << 20)
    at_most(resource.RLIMIT_CORE, 0)
    at_most(resource.RLIMIT_CPU, int(limits["total_seconds"]) + 10)

def _census(group: int) -> tuple:
    "How many processes a session (on Linux) or process group has, and the bytes that they hold in memory."
    rows = []
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                rows.append((int(fields[3]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")))
    elif os.name == "posix":
        table = subprocess.run(["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True).stdout
        rows = [(int(owner), 1024 * int(size)) for owner, size in map(str.split, table.splitlines())]
    held = [size for owner, size in rows if owner == group]
    return len(held), sum(held)

def _settle(sock, served: Served):
    "Turns this process into a worker."
    _import_late_parts()  # before it says that it is ready: this is not the notebook's time
    limits, _ = _receive(sock)
    linux, silence = sys.platform == "linux", os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2): os.dup2(silence, stream)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), limits["home"]))
    tempfile.tempdir = limits["home"]
    with contextlib.suppress(OSError, AttributeError): os.setsid()  # its own session, to be ended as a whole
    fenced = linux and _fence(limits["home"].encode())
    if fenced and (child := os.fork()):  # a namespace of processes begins with the next child
        _send(sock, {"session": child, "fenced": True})
        sock.close()
        _give_up_rights()
        os.waitpid(child, 0)
        os._exit(0)
    if fenced: os.setsid()
    else: _send(sock, {"session": os.getpid(), "fenced": False})
    if linux: _give_up_rights()
    os.chdir(limits["home"])  # only now: before, this name meant the folder without its writable mount
    torch.set_num_threads(1)
    sys.path.append(limits["folder"])  # a notebook may import a file that lies beside it
    _bound(limits)
    _serve(sock, served)

def _nurse(control, served: Served):
    "Linux: waits for sockets, and forks a worker for each."
    _import_late_parts()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    while handed := socket.recv_fds(control, 1, 1)[1]:
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try: _settle(socket.socket(fileno=handed[0]), served)
            finally: os._exit(0)
        os.close(handed[0])

_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")
_SET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg",
        "USER": "learner"}
_START = """import sys, socket
sys.path[:] = [{package!r}] + sys.path + [p for p in {paths!r} if p not in sys.path]
from llama_course.classroom import grading, worker
worker.{task}(socket.{sock}, grading.served())"""
_NURSERY = []  # the process and our end of its socket

def _spawn(sock, task: str) -> subprocess.Popen:
    "A fresh Python, apart from this one in everything, that does `task` with the socket."
    windows = sys.platform == "win32"
    package = str(Path(sys.modules["llama_course"].__path__[0]).parent)
    paths = [path for path in sys.path if os.path.isdir(path)]
    ours = "fromshare(sys.stdin.buffer.read())" if windows else f"socket(fileno={sock.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", _START.format(package=package, paths=paths, task=task, sock=ours)],
        env={name: os.environ[name] for name in _KEPT if name in os.environ} | _SET, start_new_session=True,
        stdin=subprocess.PIPE if windows else subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, pass_fds=() if windows else (sock.fileno(),))
    if windows:
        process.stdin.write(sock.share(process.pid))
        process.stdin.close()
    return process

def _hand_over(sock) -> subprocess.Popen | None:
    "Gives one end of a socket to a new worker; its process, where the nursery does not look after it."
    if sys.platform != "linux": return _spawn(sock, "_settle")
    if _NURSERY and _NURSERY[0].poll() is not None: _close_nursery()
    if not _NURSERY:
        ours, theirs = socket.socketpair()
        _NURSERY[:] = _spawn(theirs, "_nurse"), ours
        theirs.close()
    socket.send_fds(_NURSERY[1], [b"w"], [sock.fileno()])

@atexit.register
def _close_nursery():
    "The nursery ends when its socket closes."
    if _NURSERY:
        _NURSERY[1].close()
        _NURSERY[0].wait()
        _NURSERY.clear()

def _ask(self, seconds: float, message: dict, tree=None) -> tuple:
    "The worker's reply. `WorkerDied` where it takes too long, breaks a limit, ends or talks nonsense."
    self.seconds, self.since, self.next_look = seconds, time.monotonic(), time.monotonic() + 0.2
    try:
        self.sock.settimeout(seconds)
        _send(self.sock, message, tree)
        self.sock.settimeout(0.2)
        return _receive(self.sock, self.watch)
    except WorkerDied as died: reason = str(died)
    except (EOFError, OSError): reason = "it ended its process (os._exit, a crash, or a limit of memory)"
    except Exception: reason = "what came back is no message: it wrote to the judge's own channel"
    self.close()
    raise WorkerDied(reason)

def _watch(self):
    "Called while the judge waits: raises where a limit is broken."
    now = time.monotonic()
    if self.session and now > self.deadline: raise WorkerDied("the notebook's time is up")
    if now > self.since + self.seconds: raise WorkerDied(f"it took longer than {self.seconds:g} s")
    if now > self.next_look and self.session:
        self.next_look = now + 0.2
        count, held = _census(self.session)
        if count > self.limits.processes:
            raise WorkerDied(f"it started more than {self.limits.processes} processes")
        if held > self.limits.memory + count * (1 << 29):  # each of them has PyTorch in memory
            raise WorkerDied("its processes used too much memory")

def _end_leftovers(home: str):
    "Linux without namespaces: ends whatever still works in the worker's folder, in whatever session."
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(cwd).startswith(home): os.kill(int(cwd.parent.name), signal.SIGKILL)

def _close(self):
    "Ends the worker and all that it started."
    with contextlib.suppress(OSError, AttributeError):
        if self.handle is not None:
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)  # the kernel ends the rest of its namespace
        elif self.session:
            os.killpg(self.session, signal.SIGKILL)
    if self.handle is not None: os.close(self.handle)
    elif self.session: _end_leftovers(self.home)
    if self.process: self.process.kill(), self.process.wait()
    self.session, self.handle = 0, None
    self.sock.close()
    shutil.rmtree(self.home, ignore_errors=True)

class Worker:
    "A process that runs a learner's code, seen from the judge."
    ask, watch, close = _ask, _watch, _close

    def __init__(
        self,
        limits: Limits,
        deadline: float,  # on `time.monotonic`: no reply after it
        folder: Path,  # from which it may import
    ):
        self.limits, self.deadline, self.session = limits, deadline, 0
        self.process = self.handle = None
        for attempt in range(3):  # the nursery may just have been ended by the last learner
            self.home = tempfile.mkdtemp(prefix="llama_course_")
            self.sock, other = socket.socketpair()
            with other, contextlib.suppress(WorkerDied, OSError):
                self.process = _hand_over(other)
                other.close()
                hello, _ = self.ask(60, {**asdict(limits), "home": self.home, "folder": str(folder)})
                self.session = hello["session"]
                with contextlib.suppress(OSError, AttributeError):
                    if hello["fenced"]: self.handle = os.pidfd_open(self.session)
                return
        raise UserError("no worker process starts; does `import llama_course.classroom.judges.norm` work?")

class Run:
    "A notebook in a worker, begun again whenever a worker is lost."

    def __init__(
        self,
        path: Path,  # of the notebook: its folder is where it may import from
        sources: list,  # (number, source) of its code cells
        limits: Limits,
    ):
        self.path, self.sources, self.limits, self.worker, self.notes = path, sources, limits, None, {}
        self.deadline = time.monotonic() + limits.total_seconds
        self.how = {number: "whole" for number, _ in sources}

    def start(self, bare: bool = False) -> Worker:
        "A worker that has run the cells; if bare, their definitions alone. `WorkerDied` if no time is left."
        self.bare = bare
        for _ in range(2 * len(self.how) + 2):
            self.stop()
            self.worker = Worker(self.limits, self.deadline, self.path.resolve().parent)
            if self.run_cells(): return self.worker
        raise WorkerDied("no worker survived the cells of this notebook")

    def stop(self):
        if self.worker: self.worker.close()

    def note(self, number: int, text: str):
        if text: self.notes.setdefault((number, text), f"cell {number}: {text}")

def _run_cells(self) -> bool:
    "Runs the cells; False where one of them broke the worker. Then it is cut down."
    for number, source in self.sources:
        if self.how[number] == "nothing": continue
        whole = self.how[number] == "whole" and not self.bare
        message = {"do": "cell", "number": number, "source": source, "whole": whole}
        try:
            reply, _ = self.worker.ask(self.limits.cell_seconds, message)
        except WorkerDied as died:
            if time.monotonic() > self.deadline: raise
            if self.bare: self.how[number] = "nothing"
            elif whole and len(self.notes) < 5: self.how[number] = "definitions"
            else: self.bare = True  # perhaps what an earlier cell has started: no cell is run as a whole
            left_out = self.how[number] == "nothing"
            self.note(number, f"{died}; {'it is left out' if left_out else 'only its definitions count'}")
            return False
        self.note(number, tidy(reply.get("note", "")))
        if reply.get("replaced"):
            names = tidy(", ".join(reply["replaced"]))
            self.note(number, f"it replaced {names}; the originals were put back")
    return True

Run.run_cells = _run_cells
