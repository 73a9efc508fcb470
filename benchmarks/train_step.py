"""One training step, side by side: ours, transformers' LlamaForCausalLM, litgpt's GPT.

    python benchmarks/train_step.py [--rounds 15] [--model pocket] [--precision bfloat16] [--json]

The same weights, the same batch, the same clipping and fused AdamW. `eager` and `compiled` are each
library as it is ordinarily used: transformers computes its own loss inside its compiled model,
litgpt its own outside, ours compiles loss and model together. `compiled, our loss`: their models in
our way, so that the model's code alone differs. If the losses differ, there is no table.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings

import torch
import typer
from _shared import in_turns, litgpt_twin, machine, markdown, ratio, transformers_twin

from llama_course.launch.machine import can_compile
from llama_course.model import Llama, LlamaConfig
from llama_course.training import Recipe, Step

warnings.filterwarnings("ignore", message=".*complex operators.*")
MAKERS = {
    "llama_course": lambda model: model,
    "transformers": transformers_twin,
    "litgpt": litgpt_twin,
}
OUR_LOSS = "compiled, our loss"


def contestant(name, way, config, recipe):
    "A training step of the named library, from the same first weights as all others."
    torch.manual_seed(0)
    model = MAKERS[name](Llama(config)).train()
    if name == "llama_course" or way == OUR_LOSS:
        fastest = (
            "rows" if name == "llama_course" else None
        )  # their models have their own attention
        return Step(model, Recipe(**recipe, compile=way != "eager", attention=fastest))
    step = Step(model, Recipe(**recipe))
    step.loss_of = LOSSES[name](model, way == "compiled")
    return step


def transformers_loss(model, compiled):
    "The loss that `LlamaForCausalLM` computes when it is given labels."
    forward = torch.compile(model.model, dynamic=False) if compiled else model.model

    def loss_of(_, batch, precision):
        narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        tokens, targets = batch[:, :-1], batch[:, 1:].contiguous()
        with narrow:
            return forward(tokens, labels=tokens, shift_labels=targets, use_cache=False).loss

    return loss_of


def litgpt_loss(model, compiled):
    "The loss that litgpt's pretraining computes from the model's logits."
    from litgpt.utils import chunked_cross_entropy

    forward = torch.compile(model, dynamic=False) if compiled else model

    def loss_of(_, batch, precision):
        narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with narrow:
            return chunked_cross_entropy(forward(batch[:, :-1]), batch[:, 1:], chunk_size=0)

    return loss_of


LOSSES = {"transformers": transformers_loss, "litgpt": litgpt_loss}


def products(config, tokens, dtype):
    "A function that does the matrix products of one step alone, and the number of their FLOPs."
    c = config
    shapes = [(c.dim, c.dim)] * 2 + [(c.n_kv_heads * c.head_dim, c.dim)] * 2
    shapes = (shapes + [(c.hidden_dim, c.dim)] * 2 + [(c.dim, c.hidden_dim)]) * c.n_layers + [
        (c.vocab_size, c.dim)
    ]
    made = {}
    for out, inner in set(shapes):
        size = dict(x=(tokens, inner), w=(out, inner), y=(tokens, out))
        made[out, inner] = {n: torch.randn(s, dtype=dtype) for n, s in size.items()}
        made[out, inner] |= {f"d{n}": torch.empty(s, dtype=dtype) for n, s in size.items()}

    def run():
        for shape in shapes:
            m = made[shape]
            torch.mm(m["x"], m["w"].T, out=m["dy"])  # forward
            torch.mm(m["y"], m["w"], out=m["dx"])  # the input's gradient
            torch.mm(m["y"].T, m["x"], out=m["dw"])  # the weight's gradient

    return run, sum(6 * tokens * out * inner for out, inner in shapes)


def peak_memory(name, way, config, recipe, batch):
    "MiB of a step at its peak beyond what the imports hold; called in a process of its own."
    before = memory("VmRSS")
    step = contestant(name, way, config, recipe)
    for i in range(4):
        if i == 2:  # compiled and warm: from here on the peak is the step's own
            open("/proc/self/clear_refs", "w").write("5")
        step(batch, 1e-4)
    return memory("VmHWM") - before


def memory(field):
    "MiB, as Linux counts them for this process."
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_elsewhere(name, way, options):
    "`peak_memory` in a fresh process; None where the system does not tell."
    if sys.platform != "linux":
        return None
    command = [sys.executable, __file__, "--only", f"{name}|{way}", *options]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def main(
    rounds: int = 15,
    model: str = "pocket",
    batch_size: int = 16,
    seq_len: int = 256,
    precision: str = "float32",
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
    only: str = typer.Option("", hidden=True),
):
    config = LlamaConfig.from_name(model)
    recipe = dict(
        steps=1, proportions={}, batch_size=batch_size, seq_len=seq_len, precision=precision
    )
    batch = torch.randint(
        config.vocab_size, (batch_size, seq_len + 1), generator=torch.Generator().manual_seed(1)
    )
    if only:
        print(json.dumps(peak_memory(*only.split("|"), config, recipe, batch)))
        return
    options = [
        "--model",
        model,
        "--batch-size",
        str(batch_size),
        "--seq-len",
        str(seq_len),
        "--precision",
        precision,
    ]
    ways = ["eager"] + ["compiled", OUR_LOSS] * can_compile()
    names = [
        (name, way) for way in ways for name in MAKERS if (name, way) != ("llama_course", OUR_LOSS)
    ]
    say = lambda text: print(text, file=sys.stderr, flush=True)
    peaks = {}
    for name in names:
        say(f"peak memory: {' '.join(name)}")
        peaks[name] = peak_elsewhere(*name, options)
    steps, warm, losses = {}, {}, {}
    for name in names:
        say(f"first steps: {' '.join(name)}")
        steps[name] = contestant(*name, config, recipe)
        began = time.perf_counter()
        losses[name] = [steps[name](batch, 1e-3)[0] for _ in range(3)]
        warm[name] = time.perf_counter() - began
    compare(losses, precision)

    tokens = batch_size * seq_len
    multiply, product_flops = products(config, tokens, getattr(torch, precision))
    multiply()
    actions = {name: lambda step=step: step(batch, 1e-4) for name, step in steps.items()} | {
        "products": multiply
    }
    say(f"{rounds} rounds in turns")
    seconds = in_turns(actions, rounds)
    flops = product_flops + 6 * config.n_layers * config.dim * seq_len * tokens
    rate = product_flops / statistics.median(seconds["products"])
    table = []
    for name, way in names:
        own = seconds[name, way]
        table.append(
            {
                "library": name,
                "way": way,
                "tokens_per_second": tokens / statistics.median(own),
                "share_of_product_rate": flops / product_flops * ratio(seconds["products"], own),
                "speed_against_transformers": ratio(seconds["transformers", way], own),
                "peak_mib": peaks[name, way],
                "first_steps_seconds": warm[name, way],
                "losses": losses[name, way],
            }
        )
    result = {
        "machine": machine(),
        "model": model,
        "precision": precision,
        "batch": [batch_size, seq_len],
        "rounds": rounds,
        "product_gflops": rate / 1e9,
        "contestants": table,
    }
    print(json.dumps(result, indent=1) if as_json else in_words(result))


def compare(losses, precision):
    "Ends the program if one contestant computes something else."
    bound = 1e-4 if precision == "float32" else 1e-2
    first = next(iter(losses.values()))
    for name, own in losses.items():
        if any(not abs(a - b) <= bound * b for a, b in zip(own, first, strict=True)):
            sys.exit(f"the losses differ: {' '.join(name)} has {own}, the first {first}.")


def in_words(result):
    "The result as Markdown."
    r, (B, T) = result, result["batch"]
    rows = [
        [
            f"{c['library']}, {c['way']}",
            f"{c['tokens_per_second']:,.0f}",
            f"{c['share_of_product_rate']:.0%}",
            f"{c['speed_against_transformers']:.2f}",
            f"{c['peak_mib']:,.0f}" if c["peak_mib"] else "-",
            f"{c['first_steps_seconds']:.0f}",
        ]
        for c in r["contestants"]
    ]
    heads = [
        "",
        "tokens/s",
        "share of the product rate",
        "times transformers",
        "peak MiB",
        "first 3 steps, s",
    ]
    return (
        f"{r['machine']}\n\nModel {r['model']}, batch {B} × {T}, {r['precision']},"
        f" {r['rounds']} rounds in turns; the step's own matrix products alone:"
        f" {r['product_gflops']:.0f} GFLOP/s.\n\n{markdown(heads, rows)}"
    )


if __name__ == "__main__":
    typer.run(main)
