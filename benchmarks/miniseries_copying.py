"""Whether the models of the miniseries copy: the loss on tokens that stand there a second time.

    python benchmarks/miniseries_copying.py [--folder runs/miniseries] [--results FILE.csv]

Each trained model of the folder reads sequences of 64 random tokens, twice each. Nothing but the
first half tells what the second will be: a model whose loss is lower there has learned to look for
what followed the same token before (an induction head: Olsson and others, 2022).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from miniseries import RESULTS, SHAPES, Run

from llama_course.files.load import load_model
from llama_course.support.disk import atomic_write

LENGTH, ROWS = 64, 128  # tokens that are repeated; sequences
HEAD = f"""\
# Written by benchmarks/miniseries_copying.py, from {ROWS} sequences of {LENGTH} random tokens,
# twice each. Nats per token of the first reading, and of the second.
layers,dim,parameters,tokens_per_parameter,first,second
"""


@torch.no_grad()
def losses(folder: Path) -> tuple[float, float]:  # nats per token
    "Of the first reading, and of the second."
    model, chance = load_model(folder).eval(), torch.Generator().manual_seed(0)
    once = torch.randint(3, model.config.vocab_size, (ROWS, LENGTH), generator=chance)
    tokens = torch.cat([once, once], 1)
    logits = model(tokens[:, :-1]).float()
    each = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return each[:, : LENGTH - 1].mean().item(), each[:, LENGTH:].mean().item()


def main(
    folder: Path = Path("runs/miniseries"),
    results: Path = RESULTS.with_name("miniseries_copying.csv"),
) -> None:
    "Reads every model that lies in the folder."
    lines = []
    for shape in SHAPES:
        run = Run(*shape)
        found = sorted((folder / run.name).glob("at-*"), key=lambda path: float(path.name[3:]))
        for path in found:
            first, second = losses(path)
            lines.append(
                f"{run.layers},{run.dim},{run.parameters},{path.name[3:]},{first:.3f},{second:.3f}"
            )
            print(lines[-1], flush=True)
    with atomic_write(results) as file:
        file.write((HEAD + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
