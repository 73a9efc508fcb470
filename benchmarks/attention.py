"""The ways to compute causal attention: time and peak memory, forward and backward, by length.

    python benchmarks/attention.py [--lengths 1024,2048,...] [--heads 4] [--width 64]
                                   [--dtype float32] [--json]

On a GPU all of them, 1k to 32k tokens, in 16 bits, at the heads of LLaMA-7B; peak memory is the
allocator's. On a CPU all but xformers, up to 4k; peak memory is counted: the most bytes alive at
once of all tensors that operations return. What needs more memory than there is gets a dash. If
the results differ, there is no table.
"""

import gc
import json
import statistics
import sys
from functools import partial

import torch
import typer
from _shared import in_turns, machine, markdown, ratio

from llama_course.attention import BACKENDS, attend, check_backend
from llama_course.support.errors import UserError
from llama_course.support.ledger import Counter

GPU = dict(lengths="1024,2048,4096,8192,16384,32768", heads=32, width=128, dtype="bfloat16")
CPU = dict(lengths="512,1024,2048,4096", heads=4, width=64, dtype="float32")


class Peak(Counter):
    "The most bytes alive at once, of all that was made within it."

    peak = 0

    def note(self, *operation):
        super().note(*operation)
        self.made = {ref: size for ref, size in self.made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.made.values()))


def there_and_back(backend, q, k, v, grad):
    "Forward and backward pass; on a GPU it waits for the end."
    torch.autograd.grad(attend(q, k, v, backend), (q, k, v), grad)
    if q.is_cuda:
        torch.cuda.synchronize()


def peak_bytes(backend, args):
    "Beyond what the arguments need."
    if not args[0].is_cuda:
        with Peak(args) as count:
            there_and_back(backend, *args)
        return count.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    there_and_back(backend, *args)
    return torch.cuda.max_memory_allocated() - before


def draw(T, shape):
    "Queries, keys, values and the gradient that arrives."
    random = torch.Generator().manual_seed(T)
    made = [torch.randn(1, shape["heads"], T, shape["width"], generator=random) for _ in range(4)]
    made = [t.to(shape["device"], getattr(torch, shape["dtype"])) for t in made]
    return *(t.requires_grad_() for t in made[:3]), made[3]


def compare(shape, backends):
    "Ends the program if one of them computes something else."
    args, bound = draw(300, shape), 4 * torch.finfo(getattr(torch, shape["dtype"])).eps
    results = {
        b: (out, *torch.autograd.grad(out, args[:3], args[3]))
        for b in backends
        for out in [attend(*args[:3], b)]
    }
    for b, own in results.items():
        for ours, first in zip(own, results[backends[0]], strict=True):
            if (
                not ((ours - first).float().square().mean() / first.float().square().mean()).sqrt()
                < bound
            ):
                sys.exit(f"the results differ: {b} and {backends[0]}.")


def measured(T, shape, backends, rounds):
    "One row a backend."
    args, able, peaks = draw(T, shape), [], {}
    for b in backends:
        try:
            there_and_back(b, *args)  # warm
            peaks[b] = peak_bytes(b, args)
            able.append(b)
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            if "memory" not in str(error) and "alloc" not in str(error):
                raise
        gc.collect()
        if shape["device"] == "cuda":
            torch.cuda.empty_cache()
    seconds = in_turns({b: partial(there_and_back, b, *args) for b in able}, rounds)
    for b in backends:
        own = seconds.get(b)
        yield {
            "tokens": T,
            "backend": b,
            "seconds": statistics.median(own) if own else None,
            "times_sdpa": ratio(own, seconds["sdpa"]) if own else None,
            "peak_bytes": peaks.get(b),
        }


def main(
    lengths: str = "",
    heads: int = 0,
    width: int = 0,
    dtype: str = "",
    rounds: int = 5,
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = {
        name: value
        for name, value in dict(lengths=lengths, heads=heads, width=width, dtype=dtype).items()
        if value
    }
    shape = (GPU if device == "cuda" else CPU) | given | {"device": device}
    backends = []
    for b in BACKENDS:
        try:
            check_backend(b)
            backends.append(b)
        except UserError as error:
            print(error, file=sys.stderr)
    compare(shape, backends)
    table = []
    for T in map(int, shape["lengths"].split(",")):
        print(f"{T} tokens", file=sys.stderr, flush=True)
        table += measured(T, shape, backends, rounds)
    where = f"{machine()}{', ' + torch.cuda.get_device_name() if device == 'cuda' else ''}"
    result = {"machine": where, "shape": shape, "rounds": rounds, "table": table}
    print(json.dumps(result, indent=1) if as_json else in_words(result, backends))


def in_words(result, backends):
    "The result as Markdown."
    shape, rows, others = result["shape"], [], [b for b in backends if b != "sdpa"]
    show = lambda value, form: form.format(value) if value is not None else "-"
    for T in dict.fromkeys(row["tokens"] for row in result["table"]):
        own = {row["backend"]: row for row in result["table"] if row["tokens"] == T}
        rows.append(
            [
                f"{T:,}",
                f"{own['sdpa']['seconds'] * 1e3:,.1f}",
                *(show(own[b]["times_sdpa"], "{:.2f}") for b in others),
                *(
                    show(own[b]["peak_bytes"] and own[b]["peak_bytes"] / 2**20, "{:,.0f}")
                    for b in backends
                ),
            ]
        )
    heads = [
        "tokens",
        "sdpa, ms",
        *(f"{b}, times sdpa" for b in others),
        *(f"{b}, MiB" for b in backends),
    ]
    words = "the allocator's peak" if shape["device"] == "cuda" else "peak of live tensors, counted"
    return (
        f"{result['machine']}\n\nForward and backward, 1 text, {shape['heads']} heads of"
        f" {shape['width']}, {shape['dtype']}, median of {result['rounds']} rounds in turns;"
        f" {words}.\n\n{markdown(heads, rows)}"
    )


if __name__ == "__main__":
    typer.run(main)
