"""What a GPU is asked: attention, checkpointing, a step of a 7B-wide slice with its MFU, overlap.

    python benchmarks/gpu.py [--out gpu.json]       # one GPU, under ten minutes
    torchrun --nproc-per-node 2 benchmarks/gpu.py   # several GPUs: the overlap is measured, too
    python benchmarks/gpu.py --tiny                 # on any processor: that the script runs

Times are medians of synchronised calls after warming up; memory is the allocator's peak. A slice of
7B is 4 of its 32 layers at full width, with the embedding and the output in proportion to the
layers: its share of FLOPs is that of 7B. The tables are those of docs/benchmarks.md.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from _shared import machine, markdown
from torch.profiler import ProfilerActivity, profile

from llama_course.attention import causal_attention, fused_attention, xformers_attention
from llama_course.launch.log import own_gpu
from llama_course.launch.ranks import join
from llama_course.model import Llama, LlamaConfig
from llama_course.parallel import gpu_intervals, hidden_share, make_mesh, parallelize
from llama_course.planner import flops_per_token, mfu
from llama_course.support.errors import UserError
from llama_course.training import Recipe, Step

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def settle() -> None:
    "Waits until the GPU has done what it was given."
    if GPU:
        torch.cuda.synchronize()


def measure(work: Callable[[], object], times: int) -> tuple[float, float]:
    "The median of the seconds that a call takes, and the peak of the memory in GiB."
    for _ in range(2):
        work()
    settle()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        settle()
        taken.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else float("nan")
    return statistics.median(taken), peak


def attention_rows(tiny: bool) -> list[dict]:
    "Forward and backward of a layer's attention in bfloat16, 7B's heads."
    heads, width = (2, 16) if tiny else (32, 128)
    rows = []
    kinds = {"naive": causal_attention, "sdpa": fused_attention, "xformers": xformers_attention}
    for T in (64, 128) if tiny else (2048, 8192, 32768):
        shape = (1 if T > 8192 else 8192 // T if not tiny else 1, heads, T, width)
        flops = 3.5 * 4 * shape[0] * heads * T * T * width / 2  # forward, 2.5 times as much back
        for name, attend in kinds.items():
            if name == "naive" and T > 8192:
                continue  # its scores alone are 64 GiB
            q, k, v = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
            inputs, above = [t.requires_grad_() for t in (q, k, v)], torch.randn_like(q)

            def work(attend=attend, inputs=inputs, above=above):
                torch.autograd.grad(attend(*inputs), inputs, above)

            try:
                seconds, peak = measure(work, 3 if tiny else 10)
            except (UserError, RuntimeError) as error:  # no kernel, or no memory
                rows.append({"T": T, "kind": name, "why": str(error).splitlines()[0][:90]})
                continue
            rows.append(
                {
                    "T": T,
                    "kind": name,
                    "ms": 1e3 * seconds,
                    "tflops": flops / seconds / 1e12,
                    "gib": peak,
                }
            )
    return rows


def sliced(tiny: bool) -> LlamaConfig:
    "Four layers of 7B, with an eighth of its vocabulary; or a model for a processor."
    if tiny:
        return LlamaConfig.from_name("demo", vocab_size=512)
    return replace(LlamaConfig.from_name("7B"), n_layers=4, vocab_size=4000)


def step_of(config: LlamaConfig, mesh, recipe: Recipe) -> Step:
    "A training step in bfloat16, the state in float32, as the trainer makes it."
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Llama(config)
    model = parallelize(
        model,
        mesh,
        checkpointing=recipe.checkpointing or "none",
        compile=recipe.compile,
        precision="bfloat16",
    )
    return Step(model, replace(recipe, checkpointing=None, compile=False))


def one_step(config: LlamaConfig, mesh, recipe: Recipe, B: int, times: int) -> dict:
    "What a step of each rank's B sequences takes; nothing of it is left in memory."
    run, T, gpu = step_of(config, mesh, recipe), recipe.seq_len, own_gpu()
    batch = torch.randint(config.vocab_size, (B, T + 1), device=DEVICE)
    seconds, peak = measure(partial(run, batch, 1e-4), times)
    speed = B * T / seconds  # tokens per second of this rank
    return {
        "ms": 1e3 * seconds,
        "tokens_per_second": speed,
        "tflops": speed * flops_per_token(config, T) / 1e12,
        "mfu": gpu and mfu(config, speed, gpu, T),
        "gib": peak,
    }


def step_rows(tiny: bool, mesh) -> list[dict]:
    "A step of the slice: eager and compiled, every kind of checkpointing."
    config, T = sliced(tiny), 64 if tiny else 2048
    rows = []
    for compiled in (False, True):
        for kind in ("none", "selective", "full"):
            if tiny and compiled and kind != "none":
                continue
            B = 2 if tiny else 8
            recipe = Recipe(
                1, {}, seq_len=T, precision="bfloat16", compile=compiled, checkpointing=kind
            )
            row: dict = {"compiled": compiled, "checkpointing": kind}
            try:
                row |= one_step(config, mesh, recipe, B, 3 if tiny else 8)
            except torch.OutOfMemoryError:
                row["why"] = "out of memory"
            rows.append(row)
            torch._dynamo.reset()
            if GPU:
                torch.cuda.empty_cache()  # the model of `one_step` is gone
    return rows


def overlap(tiny: bool, mesh, folder: Path) -> dict:
    "The share of NCCL's time that computation hides, from a trace of two steps; the trace's file."
    config, T = sliced(tiny), 64 if tiny else 2048
    recipe = Recipe(1, {}, seq_len=T, precision="bfloat16", checkpointing="selective")
    run = step_of(config, mesh, recipe)
    batch = torch.randint(config.vocab_size, (2 if tiny else 8, T + 1), device=DEVICE)
    run(batch, 1e-4)
    settle()
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * GPU]
    with profile(activities=kinds) as seen:
        for _ in range(2):
            run(batch, 1e-4)
        settle()
    path = folder / f"trace-{dist.get_rank()}.json"
    seen.export_chrome_trace(str(path))
    messages, work = gpu_intervals(seen) if GPU else ([], [])
    return {
        "ranks": dist.get_world_size(),
        "hidden": hidden_share(messages, work) if messages else None,
        "messages": len(messages),
        "trace": str(path),
    }


def table(rows: list[dict], texts: tuple[str, ...], numbers: tuple[str, ...]) -> str:
    "Rows as a table; what could not be measured says why."
    shown = []
    for row in rows:
        cells = [", ".join(str(row[name]) for name in texts)]
        cells += [f"{row[name]:.3g}" if row.get(name) is not None else "" for name in numbers]
        if "why" in row:
            cells[1] = row["why"]
        shown.append(cells)
    return markdown([", ".join(texts), *numbers], shown)


def main(
    tiny: Annotated[bool, typer.Option("--tiny", help="On any processor, in seconds.")] = False,
    out: Annotated[Path | None, typer.Option(help="A file for the numbers.")] = None,
) -> None:
    "Measures, and prints tables."
    if not GPU and not tiny:
        print("no GPU is here: nothing is measured. --tiny shows that the script runs.")
        return
    join()
    mesh, first = make_mesh(), dist.get_rank() == 0
    where = torch.cuda.get_device_name() if GPU else machine()
    found: dict = {"where": where, "torch": torch.__version__}
    if first:
        print(f"{where}, torch {torch.__version__}, {dist.get_world_size()} ranks\n", flush=True)
        found["attention"] = attention_rows(tiny)
        print(table(found["attention"], ("kind", "T"), ("ms", "tflops", "gib")), "\n", flush=True)
    dist.barrier()
    found["step"] = step_rows(tiny, mesh)
    found["overlap"] = overlap(tiny, mesh, Path(os.environ.get("OUT") or mkdtemp()))
    if first:
        numbers = ("ms", "tokens_per_second", "tflops", "mfu", "gib")
        print(table(found["step"], ("checkpointing", "compiled"), numbers), "\n")
        print(found["overlap"])
        if out:
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
