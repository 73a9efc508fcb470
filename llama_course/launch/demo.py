"""From raw text to a model and a report: `llama-course demo` and `llama-course train`.

Every file of a run is whole or absent, so a stage needs no record of whether it is done: its file
is there. `run.json` keeps what is not a file. Killed at any moment, the same call goes on.
"""

import gzip
import lzma
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from llama_course import __version__
from llama_course.attention import check_backend
from llama_course.checkpointing import check_mode
from llama_course.data import Document, sample, shakespeare, standard_library
from llama_course.files.load import load
from llama_course.files.run import RunFolder
from llama_course.generation import end_ids, generate, stream_text
from llama_course.launch.budget import Curve, TimeBudget, warmup_of
from llama_course.launch.machine import can_compile, has_bfloat16, machine, seconds_per_step
from llama_course.launch.run import train_in_folder
from llama_course.launch.texts import (
    Sources,
    divide,
    even_sample,
    own_texts,
    prepared_data,
    prepared_sources,
)
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import cosine_lr
from llama_course.report.page import in_short, write_report
from llama_course.support.disk import (
    atomic_write,
    fingerprint,
    only_one,
    read_json,
    write_json,
)
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, write_shard
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, bits_per_byte

DEMO = {"model": "demo", "vocab_size": 4096, "proportions": {"shakespeare": 0.5, "python": 0.5}}
HELD_OUT_BYTES = 400_000  # of each source, roughly, are priced in the end
PROMPTS = {"shakespeare": "ROMEO:", "python": "def "}
Texts = Callable[[], dict[str, tuple[list[Document], list[Document]]]]  # source -> train, held out


@contextmanager
def stage(run: RunFolder, name: str) -> Iterator[None]:
    "Says what begins, and notes the seconds that it took."
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    yield
    spent = run.facts.seconds
    run.note(seconds=spent | {name: round(spent.get(name, 0) + time.perf_counter() - began, 2)})


def settle(
    run: RunFolder,
    wanted: dict,  # what was asked for now; None: not asked
    defaults: dict,
) -> dict:
    "The run's settings; once it has a result they stay. Raises `UserError` if others are wanted."
    wanted = {name: value for name, value in wanted.items() if value is not None}
    run.check_free()
    if not run.facts.tokenizer:  # the first result of a run
        run.note(kind="train", settings=defaults | wanted, version=__version__)
    for name, value in wanted.items():
        if (old := run.facts.settings.get(name)) != value:
            raise UserError(
                f"{run.path} was begun with {name} = {old}, now it is {value}: go on as it was"
                " begun, or choose another folder."
            )
    return run.facts.settings


def make_tokenizer(run: RunFolder, texts: Texts) -> Tokenizer:
    "The run's tokenizer, trained if there is none. Raises `UserError` if it was exchanged."
    settings = run.facts.settings
    if not run.facts.tokenizer:
        read = {source: train for source, (train, _) in texts().items()}
        with stage(run, "training the tokenizer"):
            documents = even_sample(read, settings["proportions"])
            Tokenizer.train((d.text for d in documents), settings["vocab_size"], run.tokenizer)
        run.note(tokenizer=fingerprint(run.tokenizer))
    if not run.tokenizer.exists() or fingerprint(run.tokenizer) != run.facts.tokenizer:
        raise UserError(
            f"{run.tokenizer} is not the tokenizer of this run: restore it, or remove {run.path}."
        )
    return Tokenizer.load(run.tokenizer)


def make_shards(
    run: RunFolder, sources: list[str], texts: Texts, tokenizer: Tokenizer
) -> tuple[dict[str, Shard], dict[str, Shard]]:  # to train on; held out
    "The run's shards, written where they are missing. Raises `UserError` if one was altered."
    sides = ("train", "held_out")
    missing = [s for s in sources if not all(run.shard(s, side).exists() for side in sides)]
    if missing:
        with stage(run, "writing token shards"):
            for source in missing:
                train, held_out = texts()[source]
                write_shard(run.shard(source, "train"), train, tokenizer)
                held_out = sample(held_out, HELD_OUT_BYTES)
                write_shard(run.shard(source, "held_out"), held_out, tokenizer)
    try:
        opened = [
            {source: Shard(run.shard(source, side), tokenizer).verify() for source in sources}
            for side in sides
        ]
        return opened[0], opened[1]
    except UserError as error:
        again = "remove the file, and the same command makes it again"
        raise UserError(f"{str(error).rstrip('.')} ({again}).") from None


def choose_recipe(run: RunFolder, model: Llama, shards: dict[str, Shard]) -> Recipe:
    """The run's recipe, chosen once.

    A number of minutes becomes a number of steps by measuring: the first plan, see `TimeBudget`.
    """
    if run.facts.recipe:
        return run.recipe
    settings = run.facts.settings
    minutes, steps = settings["minutes"], settings["steps"]
    is_long = steps >= 200 if steps else minutes >= 1  # compiling takes half a minute by itself
    recipe = Recipe(
        steps or 1,
        settings["proportions"],
        seed=settings["seed"],
        precision="bfloat16" if has_bfloat16() else "float32",
        compile=is_long and can_compile(),
        attention=settings.get("attention") or "rows",  # fastest on a CPU
        checkpointing=settings.get("checkpointing"),
    )
    if not steps:
        with stage(run, "measuring"):
            seconds = seconds_per_step(model, shards, recipe)
        run.note(seconds_per_step=round(seconds, 5))
        steps = max(1, round(60 * minutes / seconds))
    recipe = replace(recipe, steps=steps, warmup=warmup_of(steps))
    run.note(recipe=asdict(recipe), machine=machine(try_compiler=is_long))
    return recipe


def budget_of(run: RunFolder, recipe: Recipe, curve: Curve = cosine_lr) -> TimeBudget | None:
    "The time that the run has, where it was asked for minutes; what it plans is kept in run.json."
    minutes = run.facts.settings["minutes"]
    if minutes is None:
        return None

    def note(revisions: list[tuple[int, int]]) -> None:
        run.note(revisions=[list(revision) for revision in revisions])

    revisions = [(after, steps) for after, steps in run.facts.revisions]
    return TimeBudget(recipe, 60 * minutes, revisions, note, curve=curve)


def plain_costs(
    train: Shard, held_out: Shard, tokenizer: Tokenizer
) -> dict[str, float]:  # name -> bits per byte of the held-out text
    "What simpler means need for the same text."
    text = tokenizer.decode(held_out.tokens).encode()
    counts = np.bincount(train.tokens, minlength=tokenizer.vocab_size) + 1.0
    bits = -np.log2(counts / counts.sum())[held_out.tokens[1:]].sum()
    return {
        "token frequencies": float(bits) / len(text),
        "gzip": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
    }


def speak(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: str,  # empty: the model begins a new text
    tokens: int = 200,
    show: Callable[[str], None] = lambda piece: None,  # gets the text as it comes, prompt first
    **choices,  # temperature, top_k, top_p, seed: see `generate`
) -> dict:  # {"prompt", "text", "tokens"}
    "What the model says after the prompt."
    ids = tokenizer.encode(prompt, bos=True)
    said: list[int] = []
    text: list[str] = []

    def noted() -> Iterator[int]:
        for i in generate(model, ids, tokens, stop_id=end_ids(tokenizer), **choices):
            said.append(i)
            yield i

    for piece in stream_text(noted(), tokenizer, ids):
        show(piece if text else prompt + piece)  # the prompt only now: nothing was found wrong
        text.append(piece)
    return {"prompt": prompt, "text": "".join(text), "tokens": len(said)}


def score_run(
    run: RunFolder,
    model: Llama,
    tokenizer: Tokenizer,
    train: dict[str, Shard],
    held_out: dict[str, Shard],
) -> dict:
    "What results.json holds: bits per byte, beside those of simpler means, and three samples."
    path, scores = run.path / "results.json", {}
    if path.exists():
        return read_json(path)
    recipe = run.recipe
    with stage(run, "pricing the held-out text"):
        for source, shard in held_out.items():
            scores[source] = {
                "bits_per_byte": bits_per_byte(
                    model, shard.tokens, shard.text_bytes, recipe.seq_len
                ),
                "others": plain_costs(train[source], shard, tokenizer),
                "bytes": shard.text_bytes,
                "tokens": len(shard),
            }
    with stage(run, "speaking"):
        prompts = [PROMPTS[source] for source in train if source in PROMPTS] + [""] * 3
        choices: dict = {"temperature": 0.8, "top_p": 0.95}
        samples = [
            speak(model, tokenizer, prompt, 200, seed=recipe.seed + i, **choices)
            for i, prompt in enumerate(prompts[:3])
        ]
    write_json(path, {"held_out": scores, "samples": samples})
    return read_json(path)


def run_stages(run: RunFolder, sources: Sources) -> dict:  # what results.json holds
    "All stages of a run whose settings are there; those that are done are passed over."
    read: dict = {}

    def texts():  # only if some stage needs the text
        if not read:
            with stage(run, "reading the text"):
                read.update({name: divide(name, give()) for name, give in sources.items()})
        return read

    settings = run.facts.settings
    tokenizer = make_tokenizer(run, texts)
    shards, held_out = make_shards(run, list(sources), texts, tokenizer)
    if not run.is_done:
        torch.manual_seed(settings["seed"])
        config = LlamaConfig.from_name(settings["model"], vocab_size=settings["vocab_size"])
        model = Llama(config)
        recipe = choose_recipe(run, model, shards)
        with stage(run, "training"):
            budget = budget_of(run, recipe)
            train_in_folder(model, shards, recipe, run.path, locked=True, budget=budget)
        model.save(run.path)
    model, tokenizer = load(run.path)
    results = score_run(run, model.eval(), tokenizer, shards, held_out)
    if not (run.path / "report.html").exists():
        write_report(run, model.config, results)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return results


def run_texts(
    folder: Path | str,  # of the run
    sources: Sources,
    origin: str,  # where the text comes from, in words
    wanted: dict,  # minutes or steps, seed, model, vocab_size, proportions; None: not asked for
    prepare: Callable[[RunFolder], None] = lambda run: None,  # before the first stage
) -> dict:  # what results.json holds
    "From text to report. Raises `UserError`, `Stopped`."
    check_wanted(wanted)
    defaults = DEMO | {"minutes": None if wanted["steps"] else 3.0, "steps": None, "seed": 0}
    with only_one(folder):
        for half in Path(folder).rglob(".*.part"):
            half.unlink()  # of a killed process
        run = RunFolder(folder)
        settle(run, wanted | {"origin": origin}, defaults)
        prepare(run)
        return run_stages(run, sources)


def check_wanted(wanted: dict) -> None:
    "Raises `UserError` for a budget that is none or an unknown name, before anything is made."
    minutes, steps, seed = (wanted[name] for name in ("minutes", "steps", "seed"))
    if minutes is not None and steps is not None:
        raise UserError("give minutes or steps, not both.")
    if minutes is not None and not 0 < minutes < math.inf or steps is not None and steps < 1:
        budget = minutes if steps is None else steps
        raise UserError(f"minutes and steps must be above 0, not {budget}.")
    if not 0 <= (seed or 0) < 2**63:
        raise UserError(f"seed {seed}: it must be at least 0 and below 2**63.")
    LlamaConfig.from_name(wanted.get("model") or DEMO["model"])
    check_backend(wanted.get("attention") or "rows")
    check_mode(wanted.get("checkpointing") or "none")


def run_demo(
    run: Path | str = "runs/demo",  # the folder
    minutes: float | None = None,  # of training; 3 if neither this nor steps is given
    steps: int | None = None,
    seed: int | None = None,
) -> dict:  # what results.json holds
    "Trains a small LLaMA on Shakespeare's plays and Python's standard library."
    sources: Sources = {"shakespeare": shakespeare, "python": standard_library}
    wanted = {"minutes": minutes, "steps": steps, "seed": seed}
    return run_texts(run, sources, "the demo's", wanted)


def run_own(
    paths: Sequence[Path],  # text files, or folders of them; or what `llama-course data` wrote
    run: Path | str,  # the folder
    minutes: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    model: str | None = None,  # a name of LlamaConfig.names()
    vocab_size: int | None = None,
    attention: str | None = None,  # naive, rows, blockwise, sdpa or xformers
    checkpointing: str | None = None,  # none, full or selective
) -> dict:  # what results.json holds
    "The same as the demo, on your own text."
    wanted: dict = {
        "minutes": minutes,
        "steps": steps,
        "seed": seed,
        "model": model,
        "vocab_size": vocab_size,
        "attention": attention,
        "checkpointing": checkpointing,
    }
    origin = ", ".join(str(Path(path).resolve()) for path in paths)
    about = prepared_data(paths)
    if about is None:
        own: Sources = {"text": lambda: own_texts(paths)}
        return run_texts(run, own, origin, wanted | {"proportions": {"text": 1.0}})
    folder = Path(paths[0])
    sources = prepared_sources(folder, about)
    wanted["proportions"] = {name: s["proportion"] for name, s in about["sources"].items()}
    if not about["tokenizer"]:
        return run_texts(run, sources, origin, wanted)
    size = Tokenizer.load(folder / "tokenizer.model").vocab_size
    if vocab_size not in (None, size):
        raise UserError(f"the tokenizer of {folder} has {size:,} pieces: leave --vocab-size out.")
    wanted["vocab_size"] = size
    return run_texts(run, sources, origin, wanted, lambda run: take_over(run, folder, about))


def take_over(run: RunFolder, folder: Path, about: dict) -> None:
    "Copies tokenizer and token shards of a folder that `llama-course data` wrote."
    if run.facts.tokenizer:
        return
    moves = [(f, run.path / "data" / f.name) for f in (folder / "tokens").glob("*.tokens")]
    for old, new in [*moves, (folder / "tokenizer.model", run.tokenizer)]:
        with open(old, "rb") as source, atomic_write(new) as file:
            shutil.copyfileobj(source, file)
    run.note(tokenizer=about["tokenizer"])


def closing(run: Path | str, results: dict) -> str:
    "What to look at now, and what to try."
    return in_short(run, results)
