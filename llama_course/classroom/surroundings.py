"""What an answer finds around it, and what it leaves behind: the same for every call.

A notebook may have left gradients off, another default dtype or a seed; an answer may leave the
same. `neutral` puts PyTorch's defaults in place and the notebook's own settings back afterwards.
"""

import contextlib
import ctypes
import decimal
import itertools
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import _pop_mode
from torch.utils import _python_dispatch as python_dispatch

MOST_CHARACTERS, MOST_LINES = 4000, 60  # of what an answer prints in one check


class OutOfTime(BaseException):
    "The call took too long. No `except Exception` in an answer catches it."


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    "PyTorch's own settings, one thread and a fixed seed; what was set before is put back."
    with contextlib.ExitStack() as stack:
        # it follows the default dtype
        stack.callback(setattr, torch, "Storage", torch.Storage)  # type: ignore[attr-defined]
        defaults: tuple[tuple[Callable, Callable, Any], ...] = (
            (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
            (torch.get_num_threads, torch.set_num_threads, 1),
            (_determinism, lambda now: torch.use_deterministic_algorithms(*now), (False,)),
            (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
            (
                torch.get_float32_matmul_precision,
                torch.set_float32_matmul_precision,
                "highest",
            ),
        )
        for read, write, value in defaults:
            stack.callback(_put_back, read, write, read())
            _put_back(read, write, value)
        depths = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
        stack.callback(_pop_modes, *depths)
        stack.callback(_leave_autocast, _autocast_depth())
        others: tuple[tuple[Callable, Callable], ...] = (
            (sys.getrecursionlimit, sys.setrecursionlimit),
            (os.getcwd, os.chdir),
            (sys.gettrace, sys.settrace),
            (sys.getprofile, sys.setprofile),
            (torch.get_default_device, _set_device),
        )
        for read, write in others:
            if (now := _read(read)) is not None or write is not os.chdir:
                stack.callback(_put_back, read, write, now)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(np.errstate(all="warn"))
        stack.enter_context(decimal.localcontext(decimal.DefaultContext))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        yield


def _determinism() -> tuple[bool, bool]:
    on = torch.are_deterministic_algorithms_enabled()
    return on, torch.is_deterministic_algorithms_warn_only_enabled()


def _put_back(read: Callable, write: Callable, value: Any) -> None:
    "Writes only what has changed: some of the setters are slow, or touch more than the value."
    with contextlib.suppress(OSError, RecursionError):
        if _read(read) != value:
            write(value)


def _read(read: Callable) -> Any:
    try:
        return read()
    except OSError:  # the current folder is gone
        return None


def _pop_modes(functions: int, operations: int) -> None:
    "Takes away the modes of PyTorch that an answer has entered and not left."
    while torch._C._len_torch_function_stack() > functions:
        _pop_mode()
    while torch._C._len_torch_dispatch_stack() > operations:
        python_dispatch._pop_mode()


def _autocast_depth() -> int:
    "How many autocasts have been entered and not left."
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _leave_autocast(depth: int) -> None:
    """Forgets autocasts that an answer has not left.

    Weights in 16 bits are kept until the outermost one is left; else a model that trains later
    would compute with its first weights at every step.
    """
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    if depth == 0:
        torch.clear_autocast_cache()


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


@contextlib.contextmanager
def time_limit(
    seconds: float | None,  # None: no limit
) -> Iterator[None]:
    """Raises `OutOfTime` in the code within, at the line where it is then.

    Code that never comes back to Python, as one huge operation, cannot be stopped from here; the
    workers of `grade` are ended in that case too.
    """
    text = f"it takes longer than {seconds:g} s" if seconds else ""
    if seconds is None:
        yield
    elif threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        rings = itertools.count()

        def ring(number: int, frame: Any) -> None:
            if (again := next(rings)) < 3:
                raise OutOfTime(text)
            frame.f_trace = _raise_at(again % 7, text)  # a bare `except` has caught the others
            sys.settrace(frame.f_trace)

        tracing = sys.gettrace()
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.01)  # again, if a bare `except` catches it
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            sys.settrace(tracing)
    else:
        stop = threading.Event()

        def strike(thread: int | None) -> None:
            wait = seconds
            while not stop.wait(wait):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread or 0), ctypes.py_object(OutOfTime)
                )
                wait = 0.05

        watcher = threading.Thread(
            target=strike, args=(threading.current_thread().ident,), daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            stop.set()


def _raise_at(lines: int, text: str) -> Callable:
    "For `sys.settrace`: raises after so many lines, sooner or later outside of a `try`."
    left = itertools.count(lines, -1)

    def trace(frame: Any, event: str, arg: Any) -> Callable:
        if event == "line" and next(left) <= 0:
            raise OutOfTime(text)
        return trace

    return trace


class Curbed:
    "A stream for what an answer prints: the beginning is shown, the rest is counted."

    def __init__(self, stream: Any):
        self.stream, self.left, self.lines, self.dropped = stream, MOST_CHARACTERS, MOST_LINES, 0
        self.encoding = getattr(stream, "encoding", "utf-8")

    def write(self, text: str) -> int:
        "As a stream's."
        kept = "".join(text[: self.left].splitlines(True)[: self.lines])
        self.left -= len(kept)
        self.lines -= kept.count("\n")
        self.dropped += len(text) - len(kept)
        if kept:
            self.stream.write(kept)
        return len(text)

    def flush(self) -> None:
        "As a stream's."
        self.stream.flush()

    def isatty(self) -> bool:
        "As a stream's."
        return False

    def finish(self) -> None:
        "Says how much was left out."
        if self.dropped:
            self.stream.write(f"\n[{self.dropped:,} more characters were printed]\n")


@contextlib.contextmanager
def curbed_output() -> Iterator[None]:
    "What is printed within goes to standard output, as far as `MOST_CHARACTERS` and `MOST_LINES`."
    curbed = Curbed(sys.stdout)
    # nbgrader takes anything on standard error for a failure
    with contextlib.redirect_stdout(curbed), contextlib.redirect_stderr(curbed):  # type: ignore
        yield
    curbed.finish()
