"""What a served token costs, by size of model: seconds of one core per million tokens.

    python benchmarks/miniseries_life.py [--folder runs/miniseries] [--results FILE.csv]
                                         [--sizes 0,3,7] [--tokens 2000] [--rounds 3]

Every shape of the miniseries is served by `llama-course serve` with one thread and asked by one
client, and by eight at a time: prompts of the held-out text, answers of 96 tokens. What counts is
the processor time of the server's process, HTTP and all, per token that is read or written, so
that other work on the machine does not. `--bits 32,8` asks for 8 bits as well. A token costs the
same before and after training; where a trained model lies in the folder, it is served, otherwise
one with its first weights. The numbers of clients take turns; the median of the rounds is written.
"""

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import torch
import typer
from miniseries import RESULTS, SHAPES, Run

from llama_course.files.run import RunFolder
from llama_course.model import Llama
from llama_course.support.disk import atomic_write, fingerprint

SERVE = [sys.executable, "-m", "llama_course", "serve"]
PROMPT = "def mean(values):\n    "
ANSWER = 96  # tokens
CLIENTS = (1, 8)  # that ask at the same time


def weights(run: Run, folder: Path, scratch: Path) -> Path:
    "A run folder with a model of this shape and the tokenizer."
    made, trained = scratch / run.name, list((folder / run.name).glob("at-*"))
    if trained:
        shutil.copytree(max(trained, key=lambda path: float(path.name[3:])), made)
    else:
        torch.manual_seed(0)
        Llama(run.config).save(made)
        shutil.copy(folder / "texts" / "tokenizer.model", made)
    RunFolder(made).note(tokenizer=fingerprint(made / "tokenizer.model"))
    return made


def processor_seconds(process: int) -> float:
    "What the process has used so far, in all its threads."
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(folder: Path, bits: int):
    "The server's process, its address, and the model's name."
    flags = ["--run", str(folder), "--port", "0", "--rows", "8"]
    flags += ["--bits", str(bits)] if bits < 32 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        SERVE + flags, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"(\S+) at (http://\S+)", line):
                yield process.pid, found[2], found[1]
                return
        sys.exit(f"the server did not start: {said}")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask(address: str, model: str, seed: int) -> int:  # tokens read and written
    "One answer."
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": ANSWER,
        "temperature": 1.0,
        "seed": seed,
    }
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["usage"]["total_tokens"]


def costs(folder: Path, bits: int, tokens: int, rounds: int) -> dict[int, list[float]]:
    "Clients -> processor seconds of the server per million tokens, in each round."
    found: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    answer_to = lambda seed: ask(address, model, seed)  # one answer
    with (
        server(folder, bits) as (process, address, model),
        ThreadPoolExecutor(max(CLIENTS)) as pool,
    ):
        list(pool.map(answer_to, range(max(CLIENTS))))  # to warm up
        for number in range(rounds):
            for clients in CLIENTS:
                before, done, seed = processor_seconds(process), 0, 1000 * number
                while done < tokens:
                    done += sum(pool.map(answer_to, range(seed, seed + clients)))
                    seed += clients
                found[clients].append(1e6 * (processor_seconds(process) - before) / done)
    return found


def main(
    folder: Path = Path("runs/miniseries"),
    results: Path = RESULTS.with_name("miniseries_serving.csv"),
    sizes: str = typer.Option(",".join(map(str, range(len(SHAPES)))), help="numbers of shapes"),
    bits: str = typer.Option("32", help="of the weights: 32,8 where `serve` has --bits"),
    tokens: int = typer.Option(2000, help="of each measurement"),
    rounds: int = 3,
):
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    heads = ("layers", "dim", "parameters", "bits", "clients", "seconds", "lowest", "highest")
    writer.writerow(heads)
    with tempfile.TemporaryDirectory() as scratch:
        for layers, dim in (SHAPES[int(number)] for number in sizes.split(",")):
            run = Run(layers, dim)
            place = weights(run, folder, Path(scratch))
            for width in map(int, bits.split(",")):
                for clients, found in costs(place, width, tokens, rounds).items():
                    three = (statistics.median(found), min(found), max(found))
                    row = [
                        layers,
                        dim,
                        run.parameters,
                        width,
                        clients,
                        *(round(s, 2) for s in three),
                    ]
                    writer.writerow(row)
                    print(*row, file=sys.stderr, flush=True)
    about = (
        "# Written by benchmarks/miniseries_life.py. seconds: of one core, per million tokens\n"
        f"# that the server reads or writes (median of {rounds} rounds; lowest; highest).\n"
    )
    with atomic_write(results) as file:
        file.write((about + table.getvalue()).encode())


if __name__ == "__main__":
    typer.run(main)
