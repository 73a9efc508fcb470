"""Serving SmolLM2-135M to 1, 2, 4, 8, 16 clients at once: our server and llama.cpp's.

    python benchmarks/serving.py [--bits 32] [--clients 1,2,4,8,16] [--requests 16] [--tokens 48]
                                 [--rounds 3] [--json]

Each server runs in a process of its own, with the same weights (32 bits: F32; 16: BF16; 8: Q8_0)
and as many rows as there are clients at most; the same program asks both over HTTP, in turns. A
client asks one question after the other, greedily and streamed, for answers of a fixed length: no
token ends them. Prompts have 32 tokens, and none is asked twice: nobody answers from memory.
What is written is compared: with what the other writes, and with what ours writes for one client.
llama.cpp's server is the program that LLAMA_SERVER names (`llama-server`, built from source for
this processor), or the one inside xllamacpp, which comes compiled for any x86; each says how it was
built. A server that ends is named, and the table goes on without it.
"""

import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

import httpx
import torch
import typer
from _shared import machine, markdown, ratio
from quantized import smollm

from llama_course.data import shakespeare
from llama_course.files.export import Export, export
from llama_course.files.load import load, load_tokenizer
from llama_course.server.process import Serving, serve
from llama_course.support.errors import UserError

KINDS = {32: "F32", 16: "BF16", 8: "Q8_0"}
PROMPT = 32  # tokens
OURS, THEIRS = "ours", "llama.cpp"


def serve_ours(path: Path, bits: int, rows: int, port: int, threads: int) -> None:
    "Our server, until it is ended; no token ends an answer."
    torch.set_num_threads(threads)
    model, tokenizer = load(path, bits=bits)
    tokenizer.stop_ids = frozenset()
    serve(model, tokenizer, "model", Serving(port=port, rows=rows, waiting=64))


def serve_theirs(path: Path, bits: int, rows: int, port: int, threads: int) -> None:
    "llama.cpp's server, until it is ended."
    if program := os.environ.get("LLAMA_SERVER"):
        flags = {"-m": path, "--port": port, "-np": rows, "-c": 512 * rows, "-t": threads}
        words = [str(word) for pair in flags.items() for word in pair]
        os.execv(program, [program, *words, "-tb", str(threads), "--log-disable"])
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.verbosity = str(path), port, -1
    settings.n_parallel, settings.n_ctx = rows, 512 * rows
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    while server:
        time.sleep(3600)


class Peer:
    "A server in a process of its own."

    def __init__(self, start, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = multiprocessing.get_context("spawn").Process(
            target=start, args=(*arguments, self.port, torch.get_num_threads()), daemon=True
        )
        self.process.start()

    def is_ready(self) -> bool:
        "Waits until it answers; False if it has ended before."
        while self.process.is_alive():
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/v1/models").raise_for_status()
                return True
            except httpx.HTTPError:
                time.sleep(0.2)
        return False

    async def ask(self, client, prompt: list[int], tokens: int) -> tuple[str, list[float]]:
        "The answer; when it was asked for, and when each piece came."
        body = dict(model="model", prompt=prompt, max_tokens=tokens, temperature=0, stream=True)
        if self.is_theirs:
            body |= dict(ignore_eos=True, cache_prompt=False)
        text, times = "", [time.perf_counter()]
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        async with client.stream("POST", url, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                times.append(time.perf_counter())
                if choices := json.loads(line[6:])["choices"]:
                    text += choices[0]["text"]
        return text, times

    is_theirs = False

    async def load(self, prompts: list[list[int]], clients: int, tokens: int) -> dict:
        "What so many clients see, who ask the prompts one after the other."
        waiting, answers = list(enumerate(prompts)), {}

        async def ask_on(client):
            while waiting:
                n, prompt = waiting.pop(0)
                answers[n] = await self.ask(client, prompt, tokens)

        began = time.perf_counter()
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            await asyncio.gather(*(ask_on(client) for _ in range(clients)))
        seconds = time.perf_counter() - began
        times = [t for _, t in answers.values()]
        return {
            "seconds": seconds,
            "first": [t[1] - t[0] for t in times],
            "between": [b - a for t in times for a, b in zip(t[1:-1], t[2:])],
            "texts": [answers[n][0] for n in range(len(prompts))],
        }


def their_build() -> str:
    "How llama.cpp was built; ImportError where there is none."
    if program := os.environ.get("LLAMA_SERVER"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True)
        about = " ".join((said.stdout + said.stderr).split())
        return f"llama.cpp, {Path(program).name} built from source: {about}"
    import xllamacpp

    built = xllamacpp.BUILD_INFO if isinstance(xllamacpp.BUILD_INFO, str) else ""
    features = xllamacpp.get_system_info().strip()
    return f"llama.cpp by xllamacpp {metadata.version('xllamacpp')} {built}: {features}"


def prompts_of(path: Path, n: int) -> list[list[int]]:
    "Passages of Shakespeare, as tokens."
    text = next(iter(shakespeare())).text[5000:]
    ids = load_tokenizer(path).encode(text[: n * PROMPT * 8])
    return [ids[i * PROMPT : (i + 1) * PROMPT] for i in range(n)]


def percentile(values: list[float], share: float) -> float:
    "In milliseconds."
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, clients: int, rounds: list[dict], tokens: int, asked: int) -> dict:
    "A line of the table, of all rounds together."
    seconds = statistics.median(r["seconds"] for r in rounds)
    first, between = (sum((r[what] for r in rounds), []) for what in ("first", "between"))
    return {
        "server": name,
        "clients": clients,
        "requests_per_second": asked / seconds,
        "tokens_per_second": asked * tokens / seconds,
        "first_median_ms": percentile(first, 0.5),
        "first_p95_ms": percentile(first, 0.95),
        "between_median_ms": percentile(between, 0.5),
        "between_p95_ms": percentile(between, 0.95),
    }


def main(
    bits: int = 32,
    clients: str = "1,2,4,8,16",
    requests: int = 16,
    tokens: int = 48,
    rounds: int = 3,
    as_json: bool = typer.Option(False, "--json"),
):
    if bits not in KINDS:
        raise UserError("--bits 32, 16 or 8.")
    path, counts = smollm(), [int(n) for n in clients.split(",")]
    prompts = prompts_of(path, 1 + requests * rounds * len(counts))
    notes, alike, compared = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        peers = {OURS: Peer(serve_ours, path, bits, max(counts))}
        try:
            notes.append(their_build())
            out = Path(folder) / "gguf"
            export(Export(run=path, to="gguf", out=out, kind=KINDS[bits]))
            peers[THEIRS] = Peer(serve_theirs, out / "model.gguf", bits, max(counts))
            peers[THEIRS].is_theirs = True
        except ImportError:
            notes.append("neither LLAMA_SERVER nor xllamacpp: no comparison with llama.cpp.")
        found: dict = {}
        for name in list(peers):
            if peers[name].is_ready():
                asyncio.run(peers[name].load(prompts[:1], 1, 4))  # compiles as well
            else:
                notes.append(f"{name} ended before it answered.")
                del peers[name]
        again = []  # of ours, to be asked once more
        for n in counts:
            for turn in range(rounds):
                asked, prompts = prompts[:requests], prompts[requests:]
                results = {}
                for name in sorted(peers, reverse=turn % 2 == 1):
                    try:
                        results[name] = asyncio.run(peers[name].load(asked, n, tokens))
                    except httpx.HTTPError as error:
                        notes.append(f"{name} ended with {n} clients: {error!r}.")
                        del peers[name]
                        continue
                    found.setdefault((n, name), []).append(results[name])
                if len(results) == 2:
                    pairs = list(zip(*(r["texts"] for r in results.values())))
                    alike, compared = alike + sum(a == b for a, b in pairs), compared + len(pairs)
                if OURS in results and not turn:
                    again += zip(asked[:2], results[OURS]["texts"])
        if OURS in peers:
            alone = asyncio.run(peers[OURS].load([p for p, _ in again], 1, tokens))["texts"]
            same = sum(a == b for a, (_, b) in zip(alone, again))
            notes.append(f"Ours, asked again alone: {same} of {len(again)} texts as before.")
        for peer in peers.values():
            peer.process.terminate()
            peer.process.join()
    rows, ratios = [], {}
    for (n, name), results in found.items():
        rows.append(row(name, n, results, tokens, requests))
        theirs = found.get((n, THEIRS), [])
        if name == OURS and len(theirs) == len(results):
            ratios[n] = ratio([r["seconds"] for r in theirs], [r["seconds"] for r in results])
    if as_json:
        print(json.dumps({"machine": machine(), "notes": notes, "rows": rows, "ratios": ratios}))
        return
    print(f"{machine()}\n")
    print(
        f"SmolLM2-135M, {KINDS[bits]}; {requests} requests of {PROMPT} tokens for {tokens} each,"
        f" {rounds} rounds in turns\n"
    )
    heads = ["clients", "server", "requests/s", "tokens/s", "first token, ms: median", "p95"]
    heads += ["between tokens, ms: median", "p95"]
    table = [
        [
            f"{r['clients']}",
            r["server"],
            f"{r['requests_per_second']:.2f}",
            f"{r['tokens_per_second']:.0f}",
            *(
                f"{r[f'{what}_{part}_ms']:.0f}"
                for what in ("first", "between")
                for part in ("median", "p95")
            ),
        ]
        for r in rows
    ]
    print(markdown(heads, table))
    if ratios:
        told = ", ".join(f"{r:.2f} ({n})" for n, r in ratios.items())
        print(f"\nTokens per second, ours to llama.cpp's (clients): {told}")
    if compared:
        print(f"Texts as llama.cpp's: {alike} of {compared}.")
    print("\n".join(notes))


if __name__ == "__main__":
    typer.run(main)
