"The report of a run: page.html filled with its facts. It needs no other file, no network."

import base64
import math
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np

from llama_course.files.run import RunFolder
from llama_course.model import LlamaConfig, read_config
from llama_course.planner import parameters
from llama_course.report.pictures import loss_curve
from llama_course.support.disk import atomic_write, read_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict
from llama_course.support.shards import Shard
from llama_course.training import make_loader


def clock(seconds: float) -> str:
    "Seconds in words."
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min {rest:02d} s"


@cache
def template() -> jinja2.Template:
    "The page; every text that is put into it is escaped."
    source = files("llama_course.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"clock": clock, "number": lambda n: f"{n:,.0f}"}
    return environment.from_string(source)


def sources_read(run: RunFolder, steps: int) -> list[dict]:
    "Of each source: its share, and, where its shard is still there, its size and times read."
    recipe = run.recipe
    paths = {source: run.shard(source, "train") for source in recipe.proportions}
    data = run.facts.settings.get("data")
    if isinstance(data, str):  # of a cluster: the shards stay where they are
        paths = {source: _shard_in(Path(data), source) for source in paths}
    rows = [{"name": name, "share": recipe.proportions[name]} for name in paths]
    if not all(path.is_file() for path in paths.values()):
        return [row | {"megabytes": None, "tokens": None, "times": None} for row in rows]
    shards = {source: Shard(path) for source, path in paths.items()}
    times = make_loader(shards, recipe).epochs(steps)
    return [
        row
        | {
            "megabytes": shards[row["name"]].text_bytes / 1e6,
            "tokens": len(shards[row["name"]]),
            "times": times[row["name"]],
        }
        for row in rows
    ]


def _shard_in(folder: Path, source: str) -> Path:
    "Where `llama-course data`, or who else made the folder, has the training shard of a source."
    names = (f"tokens/{source}.train.tokens", f"{source}.train.tokens", f"{source}.tokens")
    found = [folder / name for name in names if (folder / name).is_file()]
    return found[0] if found else folder / names[0]


def bars(values: dict[str, float], ours: str) -> list[dict]:
    "Numbers as bars, the smallest first."
    longest = max(values.values())
    return [
        {"name": name, "value": value, "percent": 80 * value / longest, "is_ours": name == ours}
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]


def report_facts(
    run: RunFolder,
    config: LlamaConfig,
    results: dict,  # of results.json; empty where nothing was priced in the end
    metrics: dict[str, np.ndarray],
) -> dict:
    "All that the page says, as numbers and texts."
    ours, stages = "this model", run.facts.seconds | {"training": float(metrics["seconds"][-1])}
    steps = len(metrics["step"])
    return {
        "title": f"{run.path}: a LLaMA",
        "folder": str(run.path),
        "parameters": parameters(config),
        "config": config,
        "recipe": run.recipe,
        "machine": run.facts.machine,
        "version": run.facts.version,
        "kind": run.facts.kind,
        "held_out": [
            score
            | {"name": name, "bars": bars({ours: score["bits_per_byte"]} | score["others"], ours)}
            for name, score in results.get("held_out", {}).items()
        ],
        "measured": {name: _spread_out(at) for name, at in run.held_out().items()},
        "samples": results.get("samples", []),
        "sources": sources_read(run, steps),
        "tokens": metrics["tokens"][-1],
        "steps": steps,
        "skipped": int(np.isnan(metrics["loss"]).sum()),
        "speed": float(np.median(metrics["tokens_per_second"])),
        "mfu": _median(metrics.get("mfu", np.empty(0))),
        "memory": _median(metrics.get("memory_gib", np.empty(0))),
        "ranks": run.facts.settings.get("ranks"),
        "tensor": run.facts.settings.get("tensor_parallel"),
        "is_done": run.is_done,
        "stages": stages,
        "ignorant": math.log(config.vocab_size),
    }


def _spread_out(at: dict[int, float], most: int = 12) -> list[dict]:
    "About so many of the measurements, the last one among them."
    steps = sorted(at)[:: -max(1, len(at) // most)][::-1]
    return [{"step": step, "bits": at[step]} for step in steps]


def _median(values: np.ndarray) -> float | None:
    "None where nothing was measured."
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def fill_page(facts: dict, light: bytes, dark: bytes) -> str:
    "The page, with the picture in both colours inside it."
    pictures = {"light": light, "dark": dark}
    addresses = {
        name: "data:image/png;base64," + base64.b64encode(png).decode()
        for name, png in pictures.items()
    }
    return template().render(facts | {"picture": addresses})


def write_report(run: RunFolder, config: LlamaConfig, results: dict) -> None:
    "Writes loss.png and report.html."
    metrics, held_out = run.metrics(), run.held_out()
    light, dark = loss_curve(metrics, held_out), loss_curve(metrics, held_out, dark=True)
    page = fill_page(report_facts(run, config, results, metrics), light, dark)
    for name, content in (("loss.png", light), ("report.html", page.encode())):
        with atomic_write(run.path / name) as file:
            file.write(content)


def report_of_run(
    folder: Path | str,  # of any run, also while it is under way
) -> Path:  # of the page
    "Writes the page of what is there. Raises `UserError` where no step is done yet."
    run = RunFolder(folder)
    if not run.exists:
        raise UserError(f"{run.path} is no run folder: choose another.")
    shape = run.facts.model
    if shape is None and (run.path / "config.json").is_file():
        config = read_config(run.path)
    elif shape is None:
        raise UserError(f"{run.path} is not finished, and does not say its model's shape.")
    else:
        config = from_dict(LlamaConfig, shape, str(run.file))
    results = run.path / "results.json"
    write_report(run, config, read_json(results) if results.is_file() else {})
    return run.path / "report.html"


def in_short(folder: Path | str, results: dict) -> str:
    "What to look at now, and what to try."
    run = RunFolder(folder)
    held_out = results["held_out"].items()
    scores = ", ".join(f"{score['bits_per_byte']:.2f} on {name}" for name, score in held_out)
    prompt = results["samples"][0]["prompt"] or "Once"
    return (
        f"{run.path} is done, {clock(sum(run.facts.seconds.values()))} with all stages."
        f" Held-out bits per byte: {scores}.\n"
        f"Open {run.path / 'report.html'}, or try: llama-course generate --run {run.path}"
        f' "{prompt}"'
    )
