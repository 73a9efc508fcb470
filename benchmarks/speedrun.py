"""The same seconds on the same text: which model reads held-out text best?

    python benchmarks/speedrun.py [--minutes 3] [--seed 0] [--grid] [--json]

- ours: the demo's model, recipe and training step.
- GPT-2 style: as many parameters, learned positions, LayerNorm, GELU, biases, tied embeddings,
  GPT-2's first weights; the same training step and schedule as ours, so that model and first
  weights alone differ.
- transformers: `LlamaForCausalLM` of our shape in the loop that its `Trainer` runs when it is told
  nothing: float32, AdamW 0.9/0.999 without decay, a learning rate that falls in a straight line to
  0, gradients clipped at 1.

All have the same tokenizer, the same batches and the same held-out documents. They train in turns
of a few seconds, and only the seconds of their own steps count (loading the batch too; compiling
and the first two steps do not). Ours has the recipe's peak learning rate, the others that of RATES;
--grid gives every contestant each rate of GRID.
"""

import json
import math
import sys
import tempfile
import time
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
import typer
from _shared import Logits, machine, markdown
from torch import nn

from llama_course.attention import attend
from llama_course.data import shakespeare, standard_library
from llama_course.files.run import RunFolder
from llama_course.launch.budget import WARMUP
from llama_course.launch.demo import DEMO, make_shards, make_tokenizer
from llama_course.launch.machine import can_compile, has_bfloat16
from llama_course.launch.texts import divide
from llama_course.model import Llama, LlamaConfig, hugging_face_settings
from llama_course.optimizer import cosine_lr
from llama_course.training import Recipe, Step, bits_per_byte, make_loader

warnings.filterwarnings("ignore", message=".*complex operators.*")
GRID = (1e-3, 2e-3, 4e-3)
RATES = {"GPT-2 style": 2e-3, "transformers": 1e-3}  # the best of GRID, by --grid
TURN = 5.0  # seconds


class Gpt2Block(nn.Module):
    "LayerNorm before each part, biases everywhere, GELU of width 4D (Radford 2019, sec. 2.3)."

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):  # (B, T, D)
        q, k, v = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attend(q, k, v, "rows").transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    "GPT-2 with its first weights: normal, 0.02, by sqrt(2L) less where a block adds to the stream."

    def __init__(self, dim, n_layers, n_heads, vocab_size, seq_len):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(seq_len, dim)
        self.blocks = nn.ModuleList(Gpt2Block(dim, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                adds = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layers) if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def gpt2_of_size(config, seq_len, wanted):
    "GPT-2 with the config's depth and heads, as wide as about `wanted` parameters need."
    c = config
    make = lambda dim: Gpt2(dim, c.n_layers, c.n_heads, c.vocab_size, seq_len)
    with torch.device("meta"):
        dim = min(
            range(c.n_heads * 16, 2 * c.dim, c.n_heads * 8),
            key=lambda d: abs(count(make(d)) - wanted),
        )
    return make(dim)


def count(model):
    return sum(p.numel() for p in model.parameters())


class Contestant:
    "A model, its training step and its schedule; counts the seconds that it uses."

    def __init__(self, name, lr, config, recipe):
        torch.manual_seed(recipe.seed)
        self.name, self.lr, self.steps, self.seconds = name, lr, 0, 0.0
        if name == "transformers":
            from transformers import LlamaConfig as HfConfig
            from transformers import LlamaForCausalLM

            self.model = Logits(LlamaForCausalLM(HfConfig(**hugging_face_settings(config))))
            self.step = TrainerStep(self.model)
            self.schedule = lambda share: lr * (1 - share)
            return
        ours = Llama(config)
        self.model = ours if name == "ours" else gpt2_of_size(config, recipe.seq_len, count(ours))
        self.step = Step(
            self.model, recipe if name == "ours" else replace(recipe, attention=None)
        )  # GPT-2 has its own
        self.schedule = lambda share: cosine_lr(
            int(share * 10_000), 10_000, lr, int(WARMUP * 10_000)
        )

    def warm_up(self, batch):
        "Compiles; leaves weights and optimizer as they were."
        for _ in range(2):
            self.step(batch, 0.0)
        self.step.optimizer.state.clear()

    def train(self, loader, until, budget):
        "Goes on until it has used so many seconds."
        while self.seconds < until:
            began = time.perf_counter()
            self.last = self.step(loader.batch(self.steps), self.schedule(self.seconds / budget))[0]
            self.steps, self.seconds = self.steps + 1, self.seconds + time.perf_counter() - began


class TrainerStep:
    "One step as `transformers.Trainer` makes it by default, but without its own overhead."

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)

    def __call__(self, batch, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        hf = self.model.model
        loss = hf(
            batch[:, :-1],
            labels=batch[:, :-1],
            shift_labels=batch[:, 1:].contiguous(),
            use_cache=False,
        ).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


def prepare(folder, **changed):
    "The demo's tokenizer, its shards to train on, and those that are held out."
    run = RunFolder(folder)
    run.note(settings={**DEMO, **changed})
    sources = {"shakespeare": shakespeare, "python": standard_library}
    texts = {name: divide(name, documents()) for name, documents in sources.items()}
    tokenizer = make_tokenizer(run, lambda: texts)
    return tokenizer, *make_shards(run, sources, lambda: texts, tokenizer)


def main(
    minutes: float = 3.0,
    seed: int = 0,
    grid: bool = typer.Option(False, "--grid", help="every contestant with every learning rate"),
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, shards, held_out = prepare(folder)
        config = LlamaConfig.from_name(DEMO["model"], vocab_size=tokenizer.vocab_size)
        recipe = Recipe(
            1,
            DEMO["proportions"],
            seed=seed,
            compile=can_compile(),
            precision="bfloat16" if has_bfloat16() else "float32",
            attention="rows",
        )
        rates = {"ours": recipe.lr, **RATES}
        chosen = [(name, lr) for name in rates for lr in (GRID if grid else [rates[name]])]
        runs = [Contestant(name, lr, config, recipe) for name, lr in chosen]
        loader = make_loader(shards, recipe)
        for one in runs:
            one.warm_up(loader.batch(0))
        budget = 60 * minutes
        for turn in range(math.ceil(budget / TURN)):
            for one in runs[turn % len(runs) :] + runs[: turn % len(runs)]:
                one.train(loader, min(budget, TURN * (turn + 1)), budget)
            print(
                f"{runs[0].seconds:.0f} of {budget:.0f} s: "
                + ", ".join(f"{one.name} {one.last:.2f}" for one in runs),
                file=sys.stderr,
                flush=True,
            )
        table = [judge(one, recipe, held_out) for one in runs]
    result = {"machine": machine(), "minutes": minutes, "seed": seed, "contestants": table}
    print(json.dumps(result, indent=1) if as_json else in_words(result))


def judge(run, recipe, held_out):
    "What a contestant did in its seconds."
    bits = {
        source: bits_per_byte(run.model, shard.tokens, shard.text_bytes, recipe.seq_len)
        for source, shard in held_out.items()
    }
    tokens = run.steps * recipe.batch_size * recipe.seq_len
    return {
        "name": run.name,
        "parameters": count(run.model),
        "lr": run.lr,
        "steps": run.steps,
        "tokens": tokens,
        "seconds": run.seconds,
        "bits_per_byte": bits,
        "mean": sum(bits.values()) / len(bits),
    }


def in_words(result):
    "The result as Markdown."
    sources = list(result["contestants"][0]["bits_per_byte"])
    rows = [
        [
            c["name"],
            f"{c['parameters']:,}",
            f"{c['lr']:g}",
            f"{c['tokens'] / 1e6:.2f}",
            f"{c['seconds']:.1f}",
            *(f"{c['bits_per_byte'][s]:.3f}" for s in sources),
            f"**{c['mean']:.3f}**",
        ]
        for c in result["contestants"]
    ]
    heads = [
        "",
        "parameters",
        "peak rate",
        "million tokens",
        "seconds",
        *sources,
        "mean bits a byte",
    ]
    return (
        f"{result['machine']}\n\n{result['minutes']:g} minutes each, seed {result['seed']}\n\n"
        f"{markdown(heads, rows)}"
    )


if __name__ == "__main__":
    typer.run(main)
