"The report of a run: page.html filled with its facts. It needs no other file, no network."

import base64
import math
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np

from llama_course.files.run import RunFolder
from llama_course.model import Llama
from llama_course.report.pictures import loss_curve
from llama_course.support.disk import atomic_write
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


def sources_read(run: RunFolder) -> list[dict]:
    "Of each source: its share, its size, and how often it was read."
    recipe = run.recipe
    shards = {source: Shard(run.shard(source, "train")) for source in recipe.proportions}
    times = make_loader(shards, recipe).epochs(recipe.steps)
    return [
        {
            "name": source,
            "share": recipe.proportions[source],
            "megabytes": shard.text_bytes / 1e6,
            "tokens": len(shard),
            "times": times[source],
        }
        for source, shard in shards.items()
    ]


def bars(values: dict[str, float], ours: str) -> list[dict]:
    "Numbers as bars, the smallest first."
    longest = max(values.values())
    return [
        {"name": name, "value": value, "percent": 80 * value / longest, "is_ours": name == ours}
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]


def report_facts(
    run: RunFolder,
    model: Llama,
    results: dict,  # of results.json
    metrics: dict[str, np.ndarray],
) -> dict:
    "All that the page says, as numbers and texts."
    ours, stages = "this model", run.facts.seconds | {"training": float(metrics["seconds"][-1])}
    return {
        "title": f"{run.path}: a LLaMA",
        "folder": str(run.path),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": model.config,
        "recipe": run.recipe,
        "machine": run.facts.machine,
        "version": run.facts.version,
        "held_out": [
            score
            | {"name": name, "bars": bars({ours: score["bits_per_byte"]} | score["others"], ours)}
            for name, score in results["held_out"].items()
        ],
        "samples": results["samples"],
        "sources": sources_read(run),
        "tokens": metrics["tokens"][-1],
        "steps": len(metrics["step"]),
        "speed": float(np.median(metrics["tokens_per_second"])),
        "stages": stages,
        "ignorant": math.log(model.config.vocab_size),
    }


def fill_page(facts: dict, light: bytes, dark: bytes) -> str:
    "The page, with the picture in both colours inside it."
    pictures = {"light": light, "dark": dark}
    addresses = {
        name: "data:image/png;base64," + base64.b64encode(png).decode()
        for name, png in pictures.items()
    }
    return template().render(facts | {"picture": addresses})


def write_report(run: RunFolder, model: Llama, results: dict) -> None:
    "Writes loss.png and report.html, if they are not there."
    if (run.path / "report.html").exists():
        return
    metrics = run.metrics()
    light, dark = loss_curve(metrics), loss_curve(metrics, dark=True)
    page = fill_page(report_facts(run, model, results, metrics), light, dark)
    for name, content in (("loss.png", light), ("report.html", page.encode())):
        with atomic_write(run.path / name) as file:
            file.write(content)


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
