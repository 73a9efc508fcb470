"""Where a learner's code runs: in a process of its own behind the fence.

Judgement stays outside: the worker is sent arguments and sends back values, as data. What they are
compared with, it never sees: of the judges it keeps how answers are called, and forgets the rest.
Between two messages everything that the judge counts with is put back as it was.
"""

import ast
import gc
import importlib
import json
import linecache
import socket
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llama_course.classroom import compare, hidden, observation, protocol, surroundings, values
from llama_course.classroom.exercise import forget_truths, load_exercises
from llama_course.classroom.notebooks import Unreadable, python_only, read_notebook
from llama_course.classroom.observation import Observation, one_line
from llama_course.support import ledger
from llama_course.support.forkserver import Lives
from llama_course.support.ledger import Counter, Ledger


def definitions_only(source: str) -> str:
    "The imports, functions and classes of a cell, and its assignments that call nothing."

    def harmless(node: ast.stmt) -> bool:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            return not any(isinstance(part, ast.Call) for part in ast.walk(node))
        return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))

    return ast.unparse(ast.Module([node for node in ast.parse(source).body if harmless(node)], []))


def run_cell(
    module: types.ModuleType,
    number: int,
    source: str,
    whole: bool = True,  # or only its definitions
) -> str:  # empty, or what is to be said of it
    "Runs one cell of a notebook in the module."
    try:
        source, note = python_only(source)
        source = source if whole else definitions_only(source)
        file = f"<cell {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile(source, file, "exec"), module.__dict__)
        return note
    except BaseException as error:  # SystemExit and KeyboardInterrupt, too: the next cell shall run
        return one_line(error)


def counted_with() -> list:
    "The modules and classes that counting and talking rely on."
    return [
        sys.modules[__name__], protocol, observation, compare, hidden, surroundings, values,
        Observation, ledger, Counter, Ledger,
        Counter.__base__, ledger.StorageWeakRef, torch.UntypedStorage, torch, torch.Tensor,
        torch.Storage,  # type: ignore[attr-defined]
        torch.nn.functional, torch.autograd, torch.autograd.graph,
        torch.autograd.Function, torch.utils._pytree, torch.utils._python_dispatch,
        safetensors.torch, socket.socket, json, struct, gc,
    ]  # fmt: skip


def guard(
    spaces: list,  # modules and classes
) -> Callable[[], list[str]]:
    "A function that puts everything back as it is now, and names what had changed."

    def worth(space: Any) -> dict:
        return {k: v for k, v in vars(space).items() if isinstance(space, type) or callable(v)}

    kept = [(space, isinstance(space, type), worth(space)) for space in spaces]
    functions = [
        f for _, _, names in kept for f in names.values() if isinstance(f, types.FunctionType)
    ]
    codes = [(f, f.__code__) for f in functions]
    # a cell can replace the builtins as well: these are kept by other names
    look, put, drop = vars, setattr, delattr
    formulas = dict(ledger.FORMULAS)

    def put_back() -> list[str]:
        changed = []
        for space, is_class, names in kept:
            now = dict(look(space))
            changed += [(space, name) for name, old in names.items() if now.get(name) is not old]
            if is_class:  # a new name on a class may hide one that it inherits
                changed += [(space, name) for name in now if name not in names]
        for space, name in changed:
            names = next(names for s, _, names in kept if s is space)
            if name in names:
                put(space, name, names[name])
            else:
                drop(space, name)
        replaced = [f for f, code in codes if f.__code__ is not code]
        for f, code in codes:
            f.__code__ = code
        if formulas != ledger.FORMULAS:
            ledger.FORMULAS.clear()
            ledger.FORMULAS.update(formulas)
        names_of = [f"{space.__name__}.{name}" for space, name in changed]
        return names_of + [f.__qualname__ for f in replaced]

    return put_back


def import_early() -> None:
    "What the fork server imports and looks up, as far as this happens at its first use otherwise."
    forget_truths()
    torch.set_num_threads(1)
    torch.ones(2, dtype=torch.float16).float()  # asks /proc for the processor: not behind the fence
    for name in ("torch.fx.experimental.symbolic_shapes", "torch._dynamo"):
        importlib.import_module(name)  # some of it replaces names in torch


def reading(path: str) -> dict:
    "A notebook file as a reply: whoever wrote it may have meant to break its reader."
    reply = {"status": "", "reason": "", "sources": [], "claims": [], "blank": [], "prints": {}}
    try:
        notebook = vars(read_notebook(Path(path)))
        return reply | {name: notebook[name] for name in reply.keys() & notebook.keys()}
    except Unreadable as error:
        return reply | {"status": error.status, "reason": error.reason}
    except MemoryError:
        return reply | {"status": "too large", "reason": "to be read in the memory that it has"}


def answers(
    fds: list[int],  # a socket to the judge
    folder: str,  # the notebook's, from which it may import
) -> None:
    "A worker's life: cells and calls, one message each, until the judge hangs up."
    sock = socket.socket(fileno=fds[0])
    torch.set_num_threads(1)
    sys.path.append(folder)
    calls = {name: exercise.call for name, exercise in load_exercises().items()}
    put_back = guard(counted_with())
    receive, send, run, watch = protocol.receive, protocol.send, run_cell, observation.observe
    nothing = {"value": None, "grads": None}
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    while True:
        ask, tree = receive(sock)
        reply: dict = {}
        values = None
        if ask["do"] == "cell":
            reply["note"] = run(main, ask["number"], ask["source"], ask["whole"])
        elif ask["do"] == "read":
            reply = reading(ask["path"])
        elif ask["do"] == "names":
            reply["found"] = [n for n in ask["names"] if callable(main.__dict__.get(n))]
        else:
            name, (args, cotangent) = ask["name"], tree
            answer, how = main.__dict__[name], {"wrt": tuple(ask["wrt"]), "cotangent": cotangent}
            reply = vars(watch(answer, *args, **how, call=calls[name]))
            values = {"value": reply.pop("value"), "grads": reply.pop("grads")}
        reply |= {"replaced": put_back(), "turn": ask["turn"]}
        try:
            send(sock, reply, values)
        except ValueError as error:
            send(sock, {**reply, "error": str(error)}, nothing)


NOTEBOOKS = Lives({"answers": answers}, import_early)
