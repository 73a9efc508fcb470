"""What an answer does out of the judge's sight: work that the ledger cannot count, and help from
the judge's own truth. Both are noted."""

import _thread
import contextlib
import functools
import os
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch as dispatch

OURS = "llama_course.classroom"
TRUTH = (f"{OURS}.judges", f"{OURS}.exercise", f"{OURS}.judge")  # modules that know right answers
NOT_A_LEARNERS = tuple(
    {
        str(way) + os.sep
        for folder in (
            Path(__file__).parents[1],
            Path(torch.__file__).parents[1],
            Path(sysconfig.get_path("stdlib")),
        )
        for way in (folder, folder.resolve())
    }
) + ("<frozen",)
LEAVES = {"numpy", "__array__", "__dlpack__", "tolist"}  # ways of a tensor's numbers out of PyTorch


class Notes:
    "What was seen of one call."

    def __init__(self) -> None:
        self.hidden: list[str] = []  # work that the ledger has not counted
        self.borrowed: list[str] = []  # from the judge's truth

    def add(self, kind: str, text: str) -> None:
        "Notes something once."
        place = getattr(self, kind)
        if text not in place and len(place) < 10:
            place.append(text)


WATCHED: list[Notes] = []  # of the calls that run now
_hook_is_set = False


def _audit(event: str, args: tuple) -> None:
    "Python calls it at every event; there is no way to take it away again."
    if not WATCHED:
        return
    if event == "open" and isinstance(args[0], str):
        path = args[0].replace(os.sep, "/")
        of_truth = "/classroom/judges/" in path and "r" in str(args[1] or "r")
        if of_truth and _learners_frame() or "solutions/" in path and path.endswith(".ipynb"):
            WATCHED[-1].add("borrowed", f"it reads {'/'.join(path.split('/')[-2:])}")


def _learners_frame(only_caller: bool = False) -> bool:
    "Whether a learner's code is running: a file that is neither Python's, a package's nor ours."
    frame = sys._getframe(2)
    while frame:
        file = frame.f_code.co_filename
        if not file.startswith(NOT_A_LEARNERS):
            return True
        if only_caller or frame.f_globals.get("__name__") == f"{OURS}.observation":
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Leaving(TorchFunctionMode):
    "Notes where floating-point numbers leave PyTorch."

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in LEAVES and args and isinstance(args[0], torch.Tensor) and WATCHED:
            if args[0].dtype.is_floating_point and args[0].numel() > 1 and _learners_frame():
                how = "NumPy or another library" if name != "tolist" else "lists"
                text = f"it takes numbers out of PyTorch (.{name}()): work in {how} is not counted"
                WATCHED[-1].add("hidden", text)
        return func(*args, **(kwargs or {}))


def _telling(function: Callable) -> Callable:
    "The function, which notes that a learner's code has called it."

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        of_a_learner = not caller.f_code.co_filename.startswith(NOT_A_LEARNERS)
        if WATCHED and (of_a_learner or caller.f_code.co_name == "_disable_current_modes"):
            WATCHED[-1].add("hidden", "it turns off the mode that counts")
        return function(*args, **kwargs)

    return call


def _starting(function: Callable) -> Callable:
    "The function, which notes that a learner's code starts a thread by it."

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if WATCHED and _learners_frame():
            WATCHED[-1].add("hidden", "it starts a thread, whose work the ledger does not see")
        return function(*args, **kwargs)

    return call


STARTERS = [
    (space, name)
    for space in (threading, _thread)
    for name in ("_start_new_thread", "_start_joinable_thread", "start_new_thread")
    if callable(getattr(space, name, None))
]
SWITCHES = [
    (space, name)
    for space, names in (
        (torch._C, ("_DisableTorchDispatch", "_ExcludeDispatchKeyGuard", "_unset_dispatch_mode",
                    "_pop_torch_dispatch_stack", "_dispatch_tls_set_dispatch_key_excluded",
                    "DisableTorchFunction", "DisableTorchFunctionSubclass")),
        (dispatch, ("_disable_current_modes", "_pop_mode")),
    )
    for name in names
    if callable(getattr(space, name, None))
]  # fmt: skip
TELLING = [(space, name, _telling(getattr(space, name))) for space, name in SWITCHES]
TELLING += [(space, name, _starting(getattr(space, name))) for space, name in STARTERS]


@contextlib.contextmanager
def watched() -> Iterator[Notes]:
    "Notes of what the code within does out of sight."
    global _hook_is_set
    if not _hook_is_set:
        sys.addaudithook(_audit)
        _hook_is_set = True
    notes, before = Notes(), [(space, name, getattr(space, name)) for space, name, _ in TELLING]
    WATCHED.append(notes)
    for space, name, telling in TELLING:
        setattr(space, name, telling)
    try:
        with _Leaving():
            yield notes
    finally:
        WATCHED.remove(notes)
        for space, name, function in before:
            setattr(space, name, function)


def reached(
    answer: Any,  # a learner's function
) -> Iterator[Any]:
    "The answer, and what its code and the learner's functions that it calls use; each once."
    seen, queue = set[int](), [answer]
    while queue and len(seen) < 200:
        thing = queue.pop()
        while isinstance(thing, (functools.partial, types.MethodType)):
            thing = thing.func if isinstance(thing, functools.partial) else thing.__func__
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        if module_of(thing).startswith(TRUTH):
            continue
        if isinstance(thing, types.FunctionType):
            kinds = (types.FunctionType, types.ModuleType, types.MethodType, type,
                     functools.partial)  # fmt: skip
            held = used_by(thing)[1]
            ours = [h for h in held if str(getattr(type(h), "__module__", "")).startswith(OURS)]
            queue += [h for h in held if isinstance(h, kinds)] + ours
        elif isinstance(thing, type):
            queue += [part for part in vars(thing).values() if callable(part)]
        elif not isinstance(thing, (types.ModuleType, torch.Tensor)):
            queue += [part for part in vars(type(thing)).values() if callable(part)]


def module_of(
    thing: Any,  # a module, or what was defined in one
) -> str:
    "The name of its module."
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    module = getattr(thing, "__module__", None)
    return module if isinstance(module, str) else ""


def codes_of(
    function: types.FunctionType,
) -> list[types.CodeType]:
    "Its code, and that of the functions within it."
    codes = [function.__code__]
    for code in codes:
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return codes


def used_by(
    function: types.FunctionType,
) -> tuple[set[str], list]:  # the names in its code; their values, none if it is no learner's
    "What a function of the learner's uses."
    names = {name for code in codes_of(function) for name in code.co_names}
    if function.__code__.co_filename.startswith(NOT_A_LEARNERS):
        return names, []
    held = [function.__globals__.get(name) for name in names]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # still empty
            held.append(cell.cell_contents)
    return names, held


def borrowed(
    answer: Any,  # a learner's function
) -> list[str]:
    "What the answer's code, and the learner's functions that it calls, take from the judge."
    notes = Notes()
    for thing in reached(answer):
        module = module_of(thing)
        if module.startswith(TRUTH):
            name = getattr(thing, "__name__", type(thing).__name__)
            notes.add("borrowed", f"it uses the judge's own {module.removeprefix(OURS)[1:]}.{name}")
        elif isinstance(thing, types.FunctionType):
            _note_names(thing, notes)
    return notes.borrowed


def _note_names(function: types.FunctionType, notes: Notes) -> None:
    "Notes the judge's names in a function's code."
    for constant in (constant for code in codes_of(function) for constant in code.co_consts):
        of_judge = isinstance(constant, str) and (
            "solutions/" in constant or constant.startswith(TRUTH)
        )
        if of_judge:
            notes.add("borrowed", f"its code names {constant[:80]!r}")
    names = used_by(function)[0]
    for name in names:
        if name.startswith(TRUTH):
            notes.add("borrowed", f"it imports {name}")
    if "judges" in names and "llama_course" in names:
        notes.add("borrowed", f"it uses {OURS}.judges")
