"""Programs that a model has written, and their tests: HumanEval and MBPP ask for them.

The program runs in one worker behind the fence, its tests in another. What the program defines
never comes over, only plain data does: what the tests compare is their own, so no program can lie
to them, and none can see them.
"""

import json
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from llama_course.support.errors import UserError
from llama_course.support.fence import Fence
from llama_course.support.forkserver import ForkServer, Lives


def to_plain(
    value: Any,
    keep: Callable[[Any], int] | None,  # gets what is no plain data; its number goes instead
) -> Any:
    "A tree that JSON can hold, from which `from_plain` makes the value again."
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"int": int.__format__(value, "x")}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[to_plain(k, keep), to_plain(v, keep)] for k, v in value.items()]}
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for kind in kinds:
        if isinstance(value, kind):
            return {kind.__name__: [to_plain(part, keep) for part in kind.__iter__(value)]}
    if keep is None:
        raise TypeError(f"a {type(value).__name__} is no plain data")
    return {"kept": keep(value)}


def from_plain(
    tree: Any,
    kept: Callable[[int], Any] | None,  # gets the number of a thing that was kept
) -> Any:
    "The value that `to_plain` was given."
    if not isinstance(tree, dict):
        return tree
    ((kind, inside),) = tree.items()
    if kind == "int":
        return int(inside, 16)
    if kind == "float":
        return float.fromhex(inside)
    if kind == "complex":
        return complex(*map(float.fromhex, inside))
    if kind == "bytes":
        return bytes.fromhex(inside)
    if kind == "dict":
        return {from_plain(k, kept): from_plain(v, kept) for k, v in inside}
    if kind == "kept" and kept:
        return kept(inside)
    sequences: dict[str, Any] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
    }
    sequence = sequences[kind]
    return sequence(from_plain(part, kept) for part in inside)


class JsonLines:
    "Messages over a socket, one line of JSON each."

    def __init__(self, sock: socket.socket):
        self.file = sock.makefile("rwb")

    def say(self, **message: Any) -> None:
        "Sends one message."
        self.file.write(json.dumps(message).encode() + b"\n")
        self.file.flush()

    def hear(self) -> dict:
        "The next message. Raises `EOFError` when there is none."
        line = self.file.readline(1 << 24)
        if not line.endswith(b"\n"):
            raise EOFError("the program ended its process")
        return json.loads(line)


def perform(
    ask: dict,  # "do", and what that needs
    names: dict,  # what the program has defined
    kept: list,  # things that the other side knows by number
) -> Any:
    "The value that was asked for."
    see = lambda tree: from_plain(tree, kept.__getitem__)
    if ask["do"] == "find":
        return names[ask["name"]]
    thing = see(ask["thing"])
    if ask["do"] == "call":
        return thing(*see(ask["args"]), **see(ask["named"]))
    if ask["do"] == "get":
        return getattr(thing, ask["name"])
    if ask["do"] == "set":
        return setattr(thing, ask["name"], see(ask["value"]))
    return list(thing)


def answer_calls(
    sock: socket.socket,  # to the tests
    program: str,
) -> None:
    "The life of the program's worker: it runs the program, then does what the tests ask."
    wire, module = JsonLines(sock), type(sys)("program")
    kept: list = []

    def keep(thing: Any) -> int:
        kept.append(thing)
        return len(kept) - 1

    sys.modules["program"], done = module, "it ran"
    try:
        exec(compile(program, "program", "exec"), module.__dict__)
    except BaseException as error:
        done = f"{type(error).__name__}: {error}"
    wire.say(done=done[:200])
    while True:
        try:
            reply: dict = {"value": to_plain(perform(wire.hear(), module.__dict__, kept), keep)}
        except EOFError:
            return
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        wire.say(**reply)


class Kept:
    "A thing in the program's worker, as the tests see it."

    def __init__(self, ask: Callable, number: int):
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args, **named):
        return self._ask("call", self, args=args, named=named)

    def __iter__(self):
        return iter(self._ask("iterate", self))

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self, name=name)

    def __setattr__(self, name, value):
        self._ask("set", self, name=name, value=value)


def asker(wire: JsonLines) -> Callable:
    "A function that asks the program's worker for something and gives the value that comes back."

    def number(thing: Any) -> int:
        if isinstance(thing, Kept):
            return thing._number
        raise TypeError(f"a {type(thing).__name__} cannot be sent to the program")

    def ask(do, thing=None, **more):
        tree = {key: more[key] if key == "name" else to_plain(more[key], number) for key in more}
        wire.say(do=do, thing=to_plain(thing, number), **tree)
        reply = wire.hear()
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return from_plain(reply["value"], lambda n: Kept(ask, n))

    return ask


def run_tests(
    sock: socket.socket,  # to the program
    job: dict,  # "before", "names", "tests"
) -> str:  # empty: passed; else why not
    "Runs the tests, with the program's names standing for what is in the other worker."
    wire, space = JsonLines(sock), dict[str, Any](__name__="tests")
    try:
        exec(job["before"], space)
        if (done := wire.hear()["done"]) != "it ran":
            return done
        ask = asker(wire)
        space |= {name: ask("find", name=name) for name in job["names"]}
        exec(job["tests"], space)
        return ""
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]


def run_program(fds: list[int]) -> None:
    "The life of the program's worker."
    file, sock = fds
    with os.fdopen(file) as text:
        program = text.read()
    answer_calls(socket.socket(fileno=sock), program)


def run_judge(fds: list[int]) -> None:
    "The life of the worker with the tests."
    file, sock, verdict = fds
    with os.fdopen(file) as text:
        job = json.load(text)
    reason = run_tests(socket.socket(fileno=sock), job)
    os.write(verdict, json.dumps({"passed": not reason, "reason": reason}).encode())


PROGRAMS = Lives(
    {
        "program": run_program,
        "tests": run_judge,
        "nothing": lambda fds: None,
    }
)
ANYWAY = "LLAMA_COURSE_RUN_PROGRAMS_WITHOUT_ISOLATION"


class Outcome(NamedTuple):
    "Whether a program passes its tests."

    passed: bool
    reason: str  # why not


class Sandbox:
    """A place to run programs in: `with Sandbox() as box: box.run(...)`.

    Raises `UserError` where no fence can be built, unless `ANYWAY` is set to 1 in the environment.
    """

    def __init__(
        self,
        without_isolation: bool = False,  # run programs even where they cannot be fenced in
        fence: Fence = Fence(seconds=5.0),  # seconds: for the program and its tests together
    ):
        if os.name == "nt":
            raise UserError("programs are not run on Windows: use its Linux, WSL.")
        anyway = without_isolation or os.environ.get(ANYWAY) == "1"
        self.fence = replace(fence, required=not anyway)
        self.server = ForkServer(f"{__name__}:PROGRAMS", packages=False)

    def __enter__(self) -> "Sandbox":
        self.server.__enter__()
        try:
            worker = self.server.start("nothing", [], self.fence)
            why = worker.refused
            worker.end()
        except OSError as error:
            why = str(error)
        if why:
            self.__exit__()
            raise UserError(
                f"programs cannot be isolated here ({why}), so none is run; if you accept what they"
                f" may do, set {ANYWAY}=1."
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def run(
        self,
        program: str,  # nobody has read it
        tests: str,  # assertions
        names: list[str],  # what the program defines and the tests use
        before: str = "",  # runs before the tests, beside them: definitions that they need
    ) -> Outcome:
        "Whether the tests pass."
        job = json.dumps({"before": before, "tests": tests, "names": list(names)})
        fence = replace(
            self.fence, seconds=self.fence.seconds + 10
        )  # here the clock is watched, too
        ours, theirs = socket.socketpair()
        verdict, writer = os.pipe()
        workers, end = [], time.monotonic() + self.fence.seconds
        try:
            with as_file(program) as code, as_file(job) as asserts, ours, theirs:
                one, other = (
                    [code.fileno(), theirs.fileno()],
                    [asserts.fileno(), ours.fileno(), writer],
                )
                workers.append(self.server.start("program", one, fence))
                workers.append(self.server.start("tests", other, fence))
            os.close(writer)
            writer = -1
            if refused := next((w.refused for w in workers if w.refused), ""):
                return Outcome(False, f"the fence fell: {refused}")
            said = hear_verdict(verdict, end)
        finally:
            os.close(verdict)
            if writer >= 0:
                os.close(writer)
            for worker in workers:
                worker.let_go()
            for worker in workers:
                worker.end()
        return said or Outcome(False, f"no end in {self.fence.seconds:g} s")


def as_file(text: str) -> Any:
    "An open file without a name that holds the text."
    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    file.write(text)
    file.seek(0)
    return file


def hear_verdict(pipe: int, deadline: float) -> Outcome | None:
    "What the tests say; nothing if they say it too late."
    said = b""
    while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
        if not (more := os.read(pipe, 4096)):
            return Outcome(**json.loads(said)) if said else Outcome(False, "its worker broke")
        said += more
    return None
