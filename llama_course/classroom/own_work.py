"""What an answer may not call, since it is what the task builds: PyTorch's own function or
optimizer, a finished model, and what the course's library has from the exercise's chapter on."""

import contextlib
import functools
import inspect
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from llama_course.classroom.ready_made import (
    POINT,
    functions_elsewhere,
    functions_of_torch,
    ready_made,
)

PACKAGE = "llama_course"


class LibraryShortcut(Exception):
    "The answer calls what it was to build."


def _refuse(*args: Any, **kwargs: Any) -> None:  # runs among the names of another module
    __import__("llama_course.classroom.own_work", fromlist=["refuse"]).refuse()


def refuse() -> None:
    "Raises `LibraryShortcut`, which names the function that was called in place of another."
    name = sys._getframe(1).f_code.co_name
    raise LibraryShortcut(f"`{name}` is the library's own: here you build it yourself")


class _Refusing(TorchFunctionMode):
    "Within it a function of PyTorch with one of the names raises `LibraryShortcut`."

    def __init__(self, names: frozenset[str]):
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").removeprefix("special_").strip("_")
        if name in self.names:
            raise LibraryShortcut(f"`{name}` is the library's own: here you build it yourself")
        return func(*args, **(kwargs or {}))


def _no_optimizer(optimizer: Any, *_: Any) -> None:
    name = type(optimizer).__name__
    raise LibraryShortcut(f"`{name}` is the library's own: here you build it yourself")


def _no_model(module: Any, *_: Any) -> None:
    if type(module).__module__.partition(".")[0] in (PACKAGE, "transformers"):
        _no_optimizer(module)


def on_its_own(
    answer: Callable,
    exercise: str,  # its name
    chapter: str,  # of the exercise, such as "08_norm"
    allowed: tuple[str, ...] = (),  # functions and classes of that chapter that the task gives
) -> Callable:
    """The answer, for which the library ends where the exercise's chapter begins, and which finds
    nothing ready-made. Code that the judge calls itself is not concerned."""

    @functools.wraps(answer, updated=())
    def use(*args: Any, **kwargs: Any) -> Any:
        if name := ready_made(answer, exercise):
            raise LibraryShortcut(f"`{name}` is ready-made: here you build it yourself")
        with _closed(chapter, allowed, exercise), _without(exercise):
            return answer(*args, **kwargs)

    return use


@contextlib.contextmanager
def _without(exercise: str) -> Iterator[None]:
    "Within it neither PyTorch's functions nor finished optimizers and models do the exercise."
    if exercise not in POINT:
        yield
        return
    hooks = (
        register_optimizer_step_pre_hook(_no_optimizer),
        register_module_forward_pre_hook(_no_model),
    )
    try:
        with _Refusing(functions_of_torch(exercise)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


HELD: dict[types.FunctionType, list] = {}  # closed now -> its own code, how many closed it
LOCK = threading.Lock()  # ranks that are rehearsed run in threads


@contextlib.contextmanager
def _closed(chapter: str, allowed: tuple[str, ...], exercise: str) -> Iterator[None]:
    """Within it the functions of this chapter and of later ones raise `LibraryShortcut`, and so do
    functions of others that are the point of the exercise."""
    loaded = (name for name in chapters_from(chapter) if f"{PACKAGE}.{name}" in sys.modules)
    functions = list(_functions_of(tuple(loaded), allowed))
    others = [inspect.unwrap(f) for f in functions_elsewhere(exercise).values() if callable(f)]
    functions += [f for f in others if _replaceable(f)]
    with LOCK:
        for function in functions:
            held = HELD.setdefault(function, [function.__code__, 0])
            held[1] += 1
            if held[1] == 1:
                function.__code__ = _refuse.__code__.replace(co_name=held[0].co_name)
    try:
        yield
    finally:
        with LOCK:
            for function in functions:
                HELD[function][1] -= 1
                if not HELD[function][1]:
                    function.__code__ = HELD.pop(function)[0]


@functools.cache
def chapters_from(
    chapter: str,  # such as "08_norm"
) -> tuple[str, ...]:  # names of modules
    "The modules of a chapter and of those that follow it; none where it is no chapter."
    found = {}
    for path in Path(__file__).parents[1].glob("*.py"):
        match = re.search(r"File to edit: \S*?(\d\d_\w+)\.ipynb", path.read_text("utf-8")[:2000])
        if match:
            found[match[1]] = path.stem
    return tuple(found[name] for name in sorted(found) if chapter in found and name >= chapter)


@functools.cache
def _functions_of(modules: tuple[str, ...], allowed: tuple[str, ...]) -> list[types.FunctionType]:
    "The functions and methods that were written in these modules."
    found: list[types.FunctionType] = []
    for module in modules:
        full = f"{PACKAGE}.{module}"
        for name, thing in vars(sys.modules[full]).items():
            if name in allowed or getattr(thing, "__module__", "") != full:
                continue
            parts = list(vars(thing).values()) if isinstance(thing, type) else [thing]
            parts = [getattr(part, "__func__", getattr(part, "fget", part)) for part in parts]
            found += [f for f in map(inspect.unwrap, parts) if isinstance(f, types.FunctionType)]
    ours = [f for f in dict.fromkeys(found) if f.__module__.startswith(PACKAGE + ".")]
    return [f for f in ours if _replaceable(f)]


def _replaceable(function: Any) -> bool:
    "Whether it can be given the code of another, which has no free variables."
    return isinstance(function, types.FunctionType) and not function.__code__.co_freevars
