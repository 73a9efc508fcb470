"""What checkpointing costs and saves: one forward and backward pass in each mode, side by side.

    python benchmarks/checkpointing.py [--rounds 15] [--model pocket] [--layers 8]
                                       [--batch-size 16] [--seq-len 256] [--json]

On a CPU the pocket model in float32; where there is a GPU, two layers of 7B at 2,048 tokens in 16
bits. Bytes kept and FLOPs are counted, seconds and peak memory measured; if the gradients differ,
there is no table.
"""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
import typer
from _shared import in_turns, machine, markdown, ratio

from llama_course.checkpointing import apply_checkpointing
from llama_course.model import Llama, LlamaConfig
from llama_course.support.ledger import ledger

WAYS = {
    "none": ("none",),
    "selective, by hand": ("selective", "hand"),
    "selective, by policy": ("selective", "policy"),
    "full": ("full",),
}


class Pass:
    "Forward and backward of a model in one mode, always from the same weights and the same batch."

    def __init__(self, way, model, layers, batch_size, seq_len):
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        config = LlamaConfig.from_name(model, **({"n_layers": layers} if layers else {}))
        with torch.device(self.device):
            self.model = Llama(config)
        if self.device == "cuda":
            self.model.bfloat16()
        apply_checkpointing(self.model, *WAYS[way])
        tokens = torch.randint(
            config.vocab_size, (batch_size, seq_len + 1), generator=torch.Generator().manual_seed(1)
        )
        self.tokens = tokens.to(self.device)

    def __call__(self):
        self.model.zero_grad()
        loss = F.cross_entropy(
            self.model(self.tokens[:, :-1]).float().flatten(0, 1), self.tokens[:, 1:].flatten()
        )
        loss.backward()
        return loss.item()  # on a GPU this waits for the result

    def layers(self):
        "What the ledger says of the layers alone, the embedding and the logits left out."
        x = self.model.tok_embeddings(self.tokens[:, :-1]).detach().requires_grad_()

        def through(x):
            table = self.model.rope(range(x.size(1)))
            x = x * 1
            for layer in self.model.layers:
                x = layer(x, table)
            return x

        return ledger(through, x)


def peak_memory(*which):
    "MiB of a pass at its peak beyond weights and gradients; called in a process of its own."
    run = Pass(*which)
    run()  # the gradients are there, and the kernels warm
    if run.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what the first pass has given back to the C library, the system gets back
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    run()
    return memory("VmHWM") - before


def memory(field):
    "MiB, as Linux counts them for this process."
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(
    rounds: int = 15,
    model: str = "",
    layers: int = 0,
    batch_size: int = 0,
    seq_len: int = 0,
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
    only: str = typer.Option("", hidden=True),
):
    gpu = torch.cuda.is_available()
    shape = [
        model or ("7B" if gpu else "pocket"),
        layers or (2 if gpu and not model else 0),
        batch_size or (4 if gpu else 16),
        seq_len or (2048 if gpu else 256),
    ]
    if only:
        print(json.dumps(peak_memory(only, *shape)))
        return
    say = lambda text: print(text, file=sys.stderr, flush=True)
    peaks = dict.fromkeys(WAYS)
    if gpu or sys.platform == "linux":
        for way in WAYS:
            say(f"peak memory: {way}")
            options = [
                f"--{n}={v}" for n, v in zip(("model", "layers", "batch-size", "seq-len"), shape)
            ]
            ran = subprocess.run(
                [sys.executable, __file__, f"--only={way}", *options],
                check=True,
                capture_output=True,
            )
            peaks[way] = json.loads(ran.stdout.splitlines()[-1])
    passes = {way: Pass(way, *shape) for way in WAYS}
    books = {way: run.layers() for way, run in passes.items()}
    compare(passes)
    say(f"{rounds} rounds in turns")
    began = time.perf_counter()
    seconds = in_turns(passes, rounds)
    say(f"{time.perf_counter() - began:.0f} s")
    table = [
        {
            "mode": way,
            "kept_mib": book.saved_bytes / 2**20,
            "flops": book.flops + book.backward_flops,
            "seconds": statistics.median(seconds[way]),
            "times_none": ratio(seconds[way], seconds["none"]),
            "peak_mib": peaks[way],
        }
        for way, book in books.items()
    ]
    place = f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if gpu else machine()
    result = {
        "machine": place,
        "model": shape[0],
        "layers": len(passes["none"].model.layers),
        "batch": shape[2:],
        "rounds": rounds,
        "modes": table,
    }
    print(json.dumps(result, indent=1) if as_json else in_words(result))


def compare(passes):
    "Ends the program if one mode computes something else."
    found = {}
    for way, run in passes.items():
        loss = run()
        found[way] = (
            loss,
            torch.cat([p.grad.flatten().float() for p in run.model.parameters()]).norm().item(),
        )
    for way, (loss, norm) in found.items():
        bound = 1e-2 if passes[way].device == "cuda" else 1e-4
        if not (
            abs(loss / found["none"][0] - 1) < bound and abs(norm / found["none"][1] - 1) < bound
        ):
            sys.exit(
                f"{way} computes something else: loss and gradient's norm {found[way]},"
                f" none {found['none']}."
            )


def in_words(result):
    "The result as Markdown."
    r, none = result, result["modes"][0]
    rows = [
        [
            m["mode"],
            f"{m['kept_mib']:,.0f}",
            f"{m['flops'] / none['flops']:.3f}",
            f"{m['seconds']:.3f}",
            f"{m['times_none']:.2f}",
            f"{m['peak_mib']:,.0f}" if m["peak_mib"] else "-",
        ]
        for m in r["modes"]
    ]
    heads = [
        "",
        "layers keep, MiB",
        "their FLOPs, times none",
        "seconds a pass",
        "times none",
        "peak MiB",
    ]
    B, T = r["batch"]
    return (
        f"{r['machine']}\n\nModel {r['model']}, {r['layers']} layers, batch {B} × {T},"
        f" {r['rounds']} rounds in turns; peak beyond weights and gradients.\n\n"
        f"{markdown(heads, rows)}"
    )


if __name__ == "__main__":
    typer.run(main)
