"""What a served token costs, by size of model: seconds of one core per million tokens.

    python benchmarks/miniseries_life.py [--folder runs/miniseries] [--results FILE.csv]
                                         [--sizes 0,3,7] [--tokens 2000] [--rounds 3]

Every shape of the miniseries is served by `llama-course serve` with one thread and asked by one
client, and by eight at a time: prompts of the held-out text, answers of 96 tokens. What counts is
the processor time of the server's process, HTTP and all, per token that is read or written, so
that other work on the machine does not. In 8 bits too, if `serve` has the option. A token costs the
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

from llama_course.model import Llama
from llama_course.support.disk import atomic_write

SERVE = [sys.executable, "-m", "llama_course", "serve"]
PROMPT = "def mean(values):\n    "
ANSWER = 96  # tokens
CLIENTS = (1, 8)  # that ask at the same time


def weights(run: Run, folder: Path, scratch: Path) -> Path:
    "A folder with a model of this shape and the tokenizer."
    if trained := sorted((folder / run.name).glob("at-*")):
        return trained[-1]
    made = scratch / run.name
    if not made.exists():
        torch.manual_seed(0)
        Llama(run.config).save(made)
        shutil.copy(folder / "texts" / "tokenizer.model", made)
    return made


def processor_seconds(process: int) -> float:
    "What the process has used so far, in all its threads."
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(folder: Path, bits: int):
    "The server's process, and its address."
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
            if found := re.search(r"http://\S+", line):
                yield process.pid, found[0]
                return
        sys.exit(f"the server did not start: {said}")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask(address: str, seed: int) -> int:  # tokens read and written
    "One answer."
    body = {"prompt": PROMPT, "max_tokens": ANSWER, "temperature": 1.0, "seed": seed}
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
    with server(folder, bits) as (process, address), ThreadPoolExecutor(max(CLIENTS)) as pool:
        list(pool.map(lambda seed: ask(address, seed), range(max(CLIENTS))))  # to warm up
        for number in range(rounds):
            for clients in CLIENTS:
                before, done, seed = processor_seconds(process), 0, 1000 * number
                while done < tokens:
                    done += sum(pool.map(lambda s: ask(address, s), range(seed, seed + clients)))
                    seed += clients
                found[clients].append(1e6 * (processor_seconds(process) - before) / done)
    return found


def has_bits() -> bool:
    "Whether `serve` can quantize."
    return "--bits" in subprocess.run([*SERVE, "--help"], capture_output=True, text=True).stdout


def main(
    folder: Path = Path("runs/miniseries"),
    results: Path = RESULTS.with_name("miniseries_serving.csv"),
    sizes: str = typer.Option(",".join(map(str, range(len(SHAPES)))), help="numbers of shapes"),
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
            for bits in (32, 8) if has_bits() else (32,):
                for clients, found in costs(place, bits, tokens, rounds).items():
                    three = (statistics.median(found), min(found), max(found))
                    row = [
                        layers,
                        dim,
                        run.parameters,
                        bits,
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
