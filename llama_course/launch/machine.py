"What this computer can do: facts for the recipe of a run, its report and `llama-course doctor`."

import os
import platform
import shutil
import time

import torch
from torch import nn

from llama_course.fault_tolerance import deterministic, trained_tensors
from llama_course.support.signals import Stopped, stop_signals
from llama_course.training import Recipe, Step, make_loader


def has_bfloat16() -> bool:
    "Whether the processor (or the GPU) multiplies bfloat16 itself; elsewhere float32 is faster."
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def can_compile() -> bool:
    "Whether torch.compile works here, found out by using it."
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if not any(map(shutil.which, compilers)):
        return False
    with stop_signals() as asked:
        try:
            works = bool(torch.compile(lambda x: (x + 1).sum())(torch.zeros(2)) == 2)
        except Exception:  # the compiler may fail in any way
            works = False
    if asked:
        raise Stopped(asked[0])  # it was perhaps Ctrl-C that ended the compiler
    return works


def memory_gib() -> float | None:
    "Main memory, where Python can tell."
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def machine(try_compiler: bool = True) -> dict:
    "What this computer has that matters to a run."
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory, threads = memory_gib(), torch.get_num_threads()
    size = f", {memory:.0f} GiB" if memory else ""
    return {
        "place": gpu or f"{threads} CPU thread{'s' * (threads > 1)} ({platform.machine()}{size})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": memory,
        "gpu": gpu,
        "bfloat16": has_bfloat16(),
        "compiler": can_compile() if try_compiler else None,
    }


def seconds_per_step(
    model: nn.Module,  # gets its weights back afterwards
    shards: dict,  # source -> Shard
    recipe: Recipe,  # its number of steps does not matter
    seconds: float = 6.0,  # so long is measured, after two steps to warm up
) -> float:
    "What a step of this recipe takes here: the median. Raises `Stopped` at a signal."
    loader = make_loader(shards, recipe)
    before = {name: t.clone() for name, t in trained_tensors(model).items()}
    step_of = Step(model, recipe)
    taken: list[float] = []
    with stop_signals() as asked, deterministic():
        while not asked and (len(taken) < 5 or sum(taken[2:]) < seconds):
            began = time.perf_counter()
            step_of(loader.batch(len(taken)), recipe.lr / 100)
            taken.append(time.perf_counter() - began)
    if asked:
        raise Stopped(asked[0])
    for name, tensor in trained_tensors(model).items():
        tensor.copy_(before[name])
    return sorted(taken[2:])[len(taken[2:]) // 2]
