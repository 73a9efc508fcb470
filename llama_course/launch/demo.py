"""From raw text to a model that speaks and a page that says how good it is: one command, which may be killed at any moment."""

import base64
import gzip
import html
import io
import json
import lzma
import math
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llama_course import __version__

from llama_course.attention import check_backend
from llama_course.checkpointing import check_mode
from llama_course.corpus.build import cleaned, prepared
from llama_course.data import Document, sample, shakespeare, split, standard_library
from llama_course.support.shards import Shard, write_shard
from llama_course.generation import generate, stream_text
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json, write_json
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, bits_per_byte, machine, make_loader, measure, train
from llama_course.training import can_compile, has_bfloat16

FORMAT = "llama_course run 1"


class Run:
    "A run folder and what its run.json says."

    def __init__(self, folder):
        self.folder, self.path = Path(folder), Path(folder) / "run.json"
        self.about = read_json(self.path) if self.path.exists() else {"format": FORMAT}
        if not isinstance(self.about, dict) or self.about.get("format") != FORMAT:
            raise UserError(f"{self.path} is not of the format {FORMAT!r}: choose another folder.")

    def __getitem__(self, key): return self.about[key]

    def __contains__(self, key): return key in self.about

    def note(self, **facts):
        "Adds facts to run.json."
        self.about |= facts
        write_json(self.path, self.about)

    def shard(self, source, side): return self.folder / "data" / f"{source}.{side}.tokens"

@contextmanager
def stage(run: Run, name: str):
    "Says what begins, and notes the seconds that it took."
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    yield
    spent = run.about.get("seconds", {})
    run.note(seconds=spent | {name: round(spent.get(name, 0) + time.perf_counter() - began, 2)})

def settle(
    run: Run,
    wanted: dict,  # what was asked for now; None: not asked
    defaults: dict,
) -> dict:
    "The run's settings; once it has a result they stay. Raises `UserError` if others are wanted now."
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if not run.path.exists() and any(not p.name.startswith(".") for p in run.folder.iterdir()):
        raise UserError(f"{run.folder} holds other files and no run: choose another folder.")
    if "tokenizer" not in run:  # the first result of a run
        run.note(settings=defaults | wanted, version=__version__)
    for name, value in wanted.items():
        if (old := run["settings"].get(name)) != value:
            raise UserError(f"{run.folder} was begun with {name} = {old}, now it is {value}: go on as it was"
                            " begun, or choose another folder.")
    return run["settings"]

def pieces(text: str, size: int):
    "The text in parts of about that size, each ending with a line."
    start = 0
    while start < len(text):
        end = text.find("\n", start + size) + 1 or len(text)
        yield text[start:end]
        start = end


def own_texts(
    paths,  # text files, or folders of them
    size: int = 30_000,  # characters, roughly, of one document
):
    "The documents of your own text. In a folder, what is not text is left out."
    for path in map(Path, paths):
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            try: text = file.read_text(encoding="utf-8-sig")
            except OSError as error: raise UserError(f"cannot read {file}: {error.strerror}.") from None
            except UnicodeDecodeError:
                if path.is_dir(): continue  # a picture, an archive
                raise UserError(f"{file} is not text in UTF-8: convert it, or leave it out.") from None
            yield from (Document("text", f"{name}#{i}", part) for i, part in enumerate(pieces(text, size)))

HELD_OUT = 0.1  # of the documents: three plays, and some 180 files of Python


def divide(source: str, documents) -> tuple[list[Document], list[Document]]:
    "`split`, with at least one document on either side."
    train, held_out = split(documents, HELD_OUT)
    if not held_out: held_out = sample(train, 1)  # the first in the order of their hashes
    train = [d for d in train if d not in held_out]
    if train: return train, held_out
    raise UserError(f"{source}: there is too little text to learn from one part and to be judged by another.")

def even_sample(
    texts: dict,  # source -> its documents
    proportions: dict,  # source -> share
) -> list[Document]:
    "As much text as there is in these proportions."
    size = {source: sum(len(d.text.encode()) for d in documents) for source, documents in texts.items()}
    total = min(size[source] / share for source, share in proportions.items() if share)
    return [d for source, share in proportions.items() for d in sample(texts[source], share * total)]

def make_tokenizer(run: Run, texts) -> Tokenizer:
    "The run's tokenizer, trained if there is none. Raises `UserError` if it was exchanged."
    path, settings = run.folder / "tokenizer.model", run["settings"]
    if "tokenizer" not in run:
        read = {source: train for source, (train, _) in texts().items()}
        with stage(run, "training the tokenizer"):
            documents = even_sample(read, settings["proportions"])
            Tokenizer.train((d.text for d in documents), settings["vocab_size"], path)
        run.note(tokenizer=fingerprint(path))
    if not path.exists() or fingerprint(path) != run["tokenizer"]:
        raise UserError(f"{path} is not the tokenizer of this run: restore it, or remove {run.folder}.")
    return Tokenizer.load(path)

HELD_OUT_BYTES = 400_000  # of each source, roughly, are priced in the end


def make_shards(run: Run, sources, texts, tokenizer: Tokenizer) -> tuple[dict, dict]:  # to train on; held out
    "The run's shards, written where they are missing. Raises `UserError` if one was altered."
    sides = ("train", "held_out")
    if missing := [s for s in sources if not all(run.shard(s, side).exists() for side in sides)]:
        with stage(run, "writing token shards"):
            for source in missing:
                train, held_out = texts()[source]
                write_shard(run.shard(source, "train"), train, tokenizer)
                write_shard(run.shard(source, "held_out"), sample(held_out, HELD_OUT_BYTES), tokenizer)
    try: return tuple({s: Shard(run.shard(s, side), tokenizer) for s in sources} for side in sides)
    except UserError as error:
        again = "remove the file, and the same command makes it again"
        raise UserError(f"{str(error).rstrip('.')} ({again}).") from None

DEMO = {"model": "demo", "vocab_size": 4096, "proportions": {"shakespeare": 0.5, "python": 0.5}}
WARMUP = 0.05  # of all steps


def choose_recipe(run: Run, model: Llama, shards: dict) -> Recipe:
    "The run's recipe, chosen once; a number of minutes becomes a number of steps by measuring."
    if "recipe" in run: return Recipe(**run["recipe"])
    minutes, steps, seed = (run["settings"][name] for name in ("minutes", "steps", "seed"))
    long = steps >= 200 if steps else minutes >= 1
    recipe = Recipe(steps or 1, run["settings"]["proportions"], seed=seed,
                    precision="bfloat16" if has_bfloat16() else "float32", compile=long and can_compile(),
                    attention=run["settings"].get("attention") or "rows",  # fastest on a CPU
                    checkpointing=run["settings"].get("checkpointing"))
    if not steps:
        with stage(run, "measuring"): seconds = measure(model, shards, recipe)
        run.note(seconds_a_step=round(seconds, 5))
        steps = max(1, round(60 * minutes / seconds))
    recipe = replace(recipe, steps=steps, warmup=max(1, round(WARMUP * steps)))
    run.note(recipe=asdict(recipe), machine=machine())
    return recipe

def plain_costs(
    train: Shard,
    held_out: Shard,
    tokenizer: Tokenizer,
) -> dict:  # name -> bits per byte of the held-out text
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
    show=lambda piece: None,  # gets the text as it comes, the prompt first
    **choices,  # temperature, top_k, top_p, seed: see `generate`
) -> dict:  # {"prompt", "text", "tokens"}
    "What the model says after the prompt."
    ids, said, text = tokenizer.encode(prompt, bos=True), [], []
    new = generate(model, ids, tokens, stop_id=tokenizer.eos_id, **choices)
    for piece in stream_text((said.append(i) or i for i in new), tokenizer, ids):
        show(piece if text else prompt + piece)  # the prompt only now, when nothing was found wrong with it
        text.append(piece)
    return {"prompt": prompt, "text": "".join(text), "tokens": len(said)}

PROMPTS = {"shakespeare": "ROMEO:", "python": "def "}


def judge(run: Run, model: Llama, tokenizer: Tokenizer, train: dict, held_out: dict) -> dict:
    "What results.json holds: bits per byte of each source, beside those of simpler means, and three samples."
    path, recipe, scores = run.folder / "results.json", Recipe(**run["recipe"]), {}
    if path.exists(): return read_json(path)
    with stage(run, "pricing the held-out text"):
        for source, shard in held_out.items():
            bits = bits_per_byte(model, shard.tokens, shard.text_bytes, recipe.seq_len)
            scores[source] = {"bits_per_byte": bits, "others": plain_costs(train[source], shard, tokenizer),
                              "bytes": shard.text_bytes, "tokens": len(shard)}
    with stage(run, "speaking"):
        prompts = [PROMPTS[source] for source in train if source in PROMPTS] + [""] * 3
        samples = [speak(model, tokenizer, prompt, 200, temperature=0.8, top_p=0.95, seed=recipe.seed + i)
                   for i, prompt in enumerate(prompts[:3])]
    write_json(path, {"held_out": scores, "samples": samples})
    return read_json(path)

def load_run(folder) -> tuple[Llama, Tokenizer]:
    "The model of a finished run and its tokenizer. Raises `UserError` if it is none or they do not fit."
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run folder, it has no run.json: `llama-course demo` makes one.")
    run, path = Run(folder), folder / "tokenizer.model"
    if not (folder / "model.safetensors").exists():
        raise UserError(f"{folder} is not finished: go on with the command that began it.")
    model, tokenizer = Llama.load(folder), Tokenizer.load(path)
    if tokenizer.fingerprint != run.about.get("tokenizer") or tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path} is not the tokenizer that the model was trained with: restore it.")
    return model.eval(), tokenizer

def read_metrics(folder) -> dict:  # name -> array, one value a step
    "The columns of metrics.jsonl."
    with open(Path(folder) / "metrics.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def running_mean(values, share: float = 0.02) -> np.ndarray:  # as many
    "Each value with its neighbours, over a share of all of them."
    width = max(1, round(share * len(values)))
    padded = np.pad(values, (width // 2, width - 1 - width // 2), "edge")
    return np.convolve(padded, np.ones(width) / width, "valid")

def loss_curve(metrics: dict, dark: bool = False) -> bytes:  # a PNG
    "The picture of a run: the loss of every step, their running mean, the learning rate below."
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink, line, blue, red = (("#e8e6e1", "#3a3d42", "#7db1f0", "#f0a06a") if dark
                            else ("#222222", "#e4e4e4", "#1f5aa6", "#d1602a"))
    inked = "text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"
    style = dict.fromkeys(inked, ink) | dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    style |= {"axes.grid": True, "grid.color": line, "axes.axisbelow": True, "axes.facecolor": "none",
              "savefig.facecolor": "none" if dark else "white"}
    with rc_context(style):
        figure = Figure(figsize=(7.6, 4.4), dpi=160, layout="constrained")
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        millions, loss, mean = metrics["tokens"] / 1e6, metrics["loss"], running_mean(metrics["loss"])
        top.plot(millions, loss, color=blue, lw=0.6, alpha=0.4)
        top.plot(millions, mean, color=blue, lw=2)
        top.set(ylabel="loss (nats a token)", ylim=(max(0, loss.min() - 0.1), loss.max() + 0.2))
        below.plot(millions, metrics["lr"], color=red, lw=1.6)
        below.set(xlabel="tokens read (millions)", ylabel="rate", ylim=(0, None))
        figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()

COLOURS = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #626b77; --line: #e2e5ea; --card: #f6f7f9;
  --back: #fff; --main: #1f5aa6; --bar: #c3cad4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #9aa3ae; --line: #30353c;
  --card: #1e2228; --back: #15181c; --main: #7db1f0; --bar: #4a525d } }
"""
BARS = """
.bars { display: grid; grid-template-columns: 10rem 1fr; gap: .3rem .8rem; margin: .4rem 0 1.4rem }
.bars .bar { display: flex; align-items: center; gap: .6rem; font-variant-numeric: tabular-nums }
.bars i { display: block; height: 1.05rem; border-radius: .2rem; background: var(--bar) }
.bars i.ours { background: var(--main) }
"""

PAGE = """
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem }
p { margin: .5rem 0 } .soft { color: var(--soft) } img { width: 100%; height: auto; display: block }
.tiles { display: grid; gap: .75rem; margin: 1.6rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)) }
.tile { background: var(--card); border-radius: .6rem; padding: .8rem 1rem }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left }
td { vertical-align: top }
th { color: var(--soft); font-weight: 500 }
td.n, th.n { text-align: right }
pre { background: var(--card); border-radius: .6rem; padding: 1rem 1.1rem; margin: .4rem 0 1.2rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .88rem/1.5 ui-monospace, Menlo, Consolas, monospace }
pre b { color: var(--main) }
"""

def table(rows, head=()) -> str:
    "An HTML table, all its texts escaped; under a head, numbers stand at the right."
    number = [bool(head) and str(value)[:1].isdigit() for value in rows[0]]

    def line(tag, values):
        cells = (f"<{tag}{' class=n' * n}>{html.escape(str(v))}</{tag}>" for v, n in zip(values, number))
        return f"<tr>{''.join(cells)}</tr>"

    lines = [line("th", head)] if head else []
    return f"<div class=scroll><table>{''.join(lines + [line('td', row) for row in rows])}</table></div>"


def bars(values: dict, ours: str) -> str:
    "Numbers as bars, the smallest first; the one with the name `ours` stands out."
    longest, lines = max(values.values()), []
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        bar = f"<i {'class=ours ' * (name == ours)}style='width:{80 * value / longest:.1f}%'></i>{value:.3f}"
        lines.append(f"<span>{html.escape(name)}</span><span class=bar>{bar}</span>")
    return f"<div class=bars>{''.join(lines)}</div>"

def picture(light: bytes, dark: bytes, words: str) -> str:
    "One picture, in the reader's colours, inside the page."
    light, dark = ("data:image/png;base64," + base64.b64encode(png).decode() for png in (light, dark))
    return (f"<picture><source srcset='{dark}' media='(prefers-color-scheme: dark)'>"
            f"<img src='{light}' alt='{html.escape(words)}'></picture>")


def sample_box(sample: dict) -> str:
    "A sample, escaped; the prompt stands out."
    return f"<pre><b>{html.escape(sample['prompt'])}</b>{html.escape(sample['text'])}</pre>"


def clock(seconds: float) -> str:
    "Seconds in words."
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min {rest:02d} s"

def tiles(results: dict, metrics: dict) -> str:
    "The numbers that one asks for first."
    held_out = results["held_out"].items()
    shown = [(f"{s['bits_per_byte']:.3f}", f"bits per byte, {name}") for name, s in held_out]
    shown += [(f"{metrics['tokens'][-1] / 1e6:.2f} M", "tokens read"), (f"{len(metrics['step']):,}", "steps"),
              (f"{np.median(metrics['tokens_per_second']):,.0f}", "tokens a second")]
    cards = (f"<b>{value}</b><span class=soft>{html.escape(name)}</span>" for value, name in shown)
    return f"<div class=tiles>{''.join(f'<div class=tile>{card}</div>' for card in cards)}</div>"


def read_table(run: Run, recipe: Recipe) -> str:
    "One row a source: its share, its size, and how often it was read."
    shards = {source: Shard(run.shard(source, "train")) for source in recipe.proportions}
    times = make_loader(shards, recipe).epochs(recipe.steps)
    rows = [[source, f"{recipe.proportions[source]:.0%}", f"{shard.text_bytes / 1e6:.1f}", f"{len(shard):,}",
             f"{times[source]:.2f}"] for source, shard in shards.items()]
    return table(rows, ["source", "share", "MB", "tokens", "times read"])

def recipe_table(config: LlamaConfig, recipe: Recipe) -> str:
    "Model and training, in words."
    return table([
        ["model", f"{config.n_layers} layers, width {config.dim}, {config.n_heads} heads, feed-forward"
                  f" {config.hidden_dim}"],
        ["vocabulary", f"{config.vocab_size:,} pieces (SentencePiece BPE, digits split, byte fallback)"],
        ["batch", f"{recipe.batch_size} sequences of {recipe.seq_len} tokens"],
        ["optimizer", f"AdamW 0.9 / 0.95, weight decay {recipe.weight_decay:g}, clipped at {recipe.clip:g}"],
        ["learning rate", f"{recipe.lr:g} after {recipe.warmup} steps of warmup, along a cosine to 10 %"],
        ["precision", recipe.precision + (", compiled" if recipe.compile else ", not compiled")],
        ["attention", recipe.attention or "sdpa"],
        ["checkpointing", recipe.checkpointing or "none"],
        ["seed", recipe.seed]])


def time_table(run: Run, metrics: dict) -> str:
    "The machine, and the time of each stage."
    m, stages = run["machine"], run["seconds"] | {"training": float(metrics["seconds"][-1])}
    return table([["machine", m["place"]],
                  ["software", f"Python {m['python']}, torch {m['torch']}, llama_course {run['version']}"],
                  *([name, clock(seconds)] for name, seconds in stages.items()),
                  ["together", clock(sum(stages.values()))]])

def first_part(run: Run, model: Llama, metrics: dict, results: dict) -> list:
    "What came out: the numbers, the loss, the price of held-out text."
    size, V = sum(p.numel() for p in model.parameters()) / 1e6, model.config.vocab_size
    curve = picture(loss_curve(metrics), loss_curve(metrics, dark=True), "loss over tokens read")
    prices = (f"<p><b>{html.escape(name)}</b>, {s['bytes']:,} bytes</p>"
              + bars({"this model": s["bits_per_byte"]} | s["others"], "this model")
              for name, s in results["held_out"].items())
    return [
        f"<h1>A LLaMA of {size:.1f} million parameters</h1>",
        f"<p class=soft>Trained from raw text for {clock(metrics['seconds'][-1])} on"
        f" {html.escape(run['machine']['place'])}.</p>", tiles(results, metrics), "<h2>The loss</h2>", curve,
        "<p class=soft>Of each step, and its running mean. Who knows nothing and believes in all"
        f" {V:,} tokens alike pays {math.log(V):.2f} nats.</p><h2>Held-out text: bits per byte</h2>",
        "<p class=soft>What a byte of text costs that the model has never seen. Less is better; plain text"
        " costs 8. The compressors see the held-out text alone.</p>", *prices]


def second_part(run: Run, model: Llama, metrics: dict, results: dict) -> list:
    "What it says, and how it was made."
    recipe, prompt = Recipe(**run["recipe"]), results["samples"][0]["prompt"] or "Once"
    command = html.escape(f'llama-course generate --run {run.folder} "{prompt}"')
    return ["<h2>What it says</h2>", *map(sample_box, results["samples"]),
            f"<p class=soft>Another one:</p><pre>{command}</pre>",
            "<h2>What it has read</h2>", read_table(run, recipe),
            "<h2>The recipe</h2>", recipe_table(model.config, recipe),
            "<h2>Machine and time</h2>", time_table(run, metrics)]

def write_report(run: Run, model: Llama, results: dict):
    "loss.png and report.html, which needs no other file and no network."
    if (run.folder / "report.html").exists(): return
    metrics, title = read_metrics(run.folder), html.escape(f"{run.folder}: a LLaMA")
    parts = first_part(run, model, metrics, results) + second_part(run, model, metrics, results)
    head = ("<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<title>{title}</title><style>{COLOURS}{BARS}{PAGE}</style>")
    page = f"{head}<main>{''.join(parts)}</main></html>\n"
    for name, content in (("loss.png", loss_curve(metrics)), ("report.html", page.encode())):
        with atomic_write(run.folder / name) as file: file.write(content)

def run_stages(run: Run, sources: dict) -> dict:  # what results.json holds
    "All stages of a run whose settings are there; those that are done are passed over."
    read = {}

    def texts():  # only if some stage needs the text
        if not read:
            with stage(run, "reading the text"):
                read.update({name: divide(name, documents()) for name, documents in sources.items()})
        return read

    settings = run["settings"]
    tokenizer = make_tokenizer(run, texts)
    shards, held_out = make_shards(run, sources, texts, tokenizer)
    if not (run.folder / "model.safetensors").exists():
        torch.manual_seed(settings["seed"])
        model = Llama(LlamaConfig.from_name(settings["model"], vocab_size=settings["vocab_size"]))
        recipe = choose_recipe(run, model, shards)
        with stage(run, "training"): train(model, shards, recipe, run.folder)
        model.save(run.folder)
    model, tokenizer = load_run(run.folder)
    results = judge(run, model, tokenizer, shards, held_out)
    write_report(run, model, results)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return results

def run_texts(
    folder,  # of the run
    sources: dict,  # name -> a function that gives the documents
    origin: str,  # where the text comes from, in words
    wanted: dict,  # minutes or steps, seed, model, vocab_size, proportions; None: not asked for
    prepare=lambda run: None,  # gets the run before its first stage
) -> dict:  # what results.json holds
    "From text to report. Killed at any moment, the same call goes on. Raises `UserError`, `Stopped`."
    check(wanted)
    defaults = DEMO | {"minutes": None if wanted["steps"] else 3.0, "steps": None, "seed": 0}
    with only_one(folder):
        for half in Path(folder).rglob(".*.part"): half.unlink()  # of a killed process
        run = Run(folder)
        settle(run, wanted | {"origin": origin}, defaults)
        prepare(run)
        return run_stages(run, sources)

def check(wanted: dict):
    "Raises `UserError` for a budget that is none or a name that nobody knows, before anything is made."
    minutes, steps, seed = (wanted[name] for name in ("minutes", "steps", "seed"))
    if minutes is not None and steps is not None: raise UserError("give minutes or steps, not both.")
    if minutes is not None and not 0 < minutes < math.inf or steps is not None and steps < 1:
        raise UserError(f"minutes and steps must be above 0, not {minutes if steps is None else steps}.")
    if not 0 <= (seed or 0) < 2**63: raise UserError(f"seed {seed}: it must be at least 0 and below 2**63.")
    LlamaConfig.from_name(wanted.get("model") or DEMO["model"])
    check_backend(wanted.get("attention") or "rows")
    check_mode(wanted.get("checkpointing") or "none")

def run_demo(
    run="runs/demo",  # the folder
    minutes: float | None = None,  # of training; 3 if neither this nor steps is given
    steps: int | None = None,
    seed: int | None = None,
) -> dict:  # what results.json holds
    "Trains a small LLaMA on Shakespeare's plays and Python's standard library."
    sources = {"shakespeare": shakespeare, "python": standard_library}
    return run_texts(run, sources, "the demo's", {"minutes": minutes, "steps": steps, "seed": seed})

def run_own(
    paths,  # text files, or folders of them
    run,  # the folder
    minutes: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    model: str | None = None,  # a name of LlamaConfig.names()
    vocab_size: int | None = None,
    attention: str | None = None,  # naive, rows, blockwise, sdpa or xformers
    checkpointing: str | None = None,  # none, full or selective
) -> dict:  # what results.json holds
    "The same as the demo, on your own text."
    wanted = {"minutes": minutes, "steps": steps, "seed": seed, "model": model, "vocab_size": vocab_size,
              "attention": attention, "checkpointing": checkpointing}
    origin = ", ".join(str(Path(path).resolve()) for path in paths)
    if about := prepared_data(paths):
        return run_texts(run, *from_data(Path(paths[0]), about, origin, wanted))
    return run_texts(run, {"text": lambda: own_texts(paths)}, origin, wanted | {"proportions": {"text": 1.0}})

def prepared_data(paths) -> dict | None:
    "What data.json says, if the text is such a folder. Raises `UserError` if there is other text beside it."
    found = [about for path in paths if (about := prepared(path))]
    if found and len(paths) > 1:
        raise UserError("give one folder made by `llama-course data`, and no other text.")
    return found[0] if found else None


def from_data(folder: Path, about: dict, origin: str, wanted: dict) -> tuple:  # what `run_texts` takes
    "The sources of the folder, what is wanted of the run, and the step that takes over the shards."
    sources = {name: partial(cleaned, folder / "clean" / name, name) for name in about["sources"]}
    wanted = wanted | {"proportions": {name: s["proportion"] for name, s in about["sources"].items()}}
    if not about["tokenizer"]: return sources, origin, wanted
    size = Tokenizer.load(folder / "tokenizer.model").vocab_size
    if wanted["vocab_size"] not in (None, size):
        raise UserError(f"the tokenizer of {folder} has {size:,} pieces: leave --vocab-size out.")

    def take_over(run):
        if "tokenizer" in run: return
        moves = [(file, run.folder / "data" / file.name) for file in (folder / "tokens").glob("*.tokens")]
        for old, new in [*moves, (folder / "tokenizer.model", run.folder / "tokenizer.model")]:
            with open(old, "rb") as source, atomic_write(new) as file: shutil.copyfileobj(source, file)
        run.note(tokenizer=about["tokenizer"])

    return sources, origin, wanted | {"vocab_size": size}, take_over

def closing(run, results: dict) -> str:
    "What to look at now, and what to try."
    scores = ", ".join(f"{s['bits_per_byte']:.2f} on {name}" for name, s in results["held_out"].items())
    seconds, prompt = sum(Run(run)["seconds"].values()), results["samples"][0]["prompt"] or "Once"
    return (f"{run} is done, {clock(seconds)} with all stages. Held-out bits per byte: {scores}.\n"
            f"Open {Path(run) / 'report.html'}, or try: llama-course generate --run {run} \"{prompt}\"")
