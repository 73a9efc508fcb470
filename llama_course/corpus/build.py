"""The whole way from a recipe to token shards.

A folder remembers what it was begun with: the same command goes on, and another recipe for the
same source is refused, for its documents would be mixed with those that are there. At a crawl's
size three things are to be replaced: the single task that looks for duplicates, the one process
that writes the tokens, and a language model of good text trained anew in every task.
"""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_course.corpus.executors import run_source
from llama_course.corpus.funnels import funnel_table
from llama_course.corpus.recipe import CorpusRecipe, CorpusSource, load_corpus_recipe
from llama_course.corpus.stages import cleaned, gather_counts, stages_of
from llama_course.data import is_held_out, sample
from llama_course.support.disk import atomic_write, only_one, read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, write_shard
from llama_course.tokenizer import Tokenizer

CORPUS_FORMAT = "llama_course data 1"
SOURCE_HELD_OUT = 400_000  # of each source, roughly


def build_corpus(
    path: str | Path,  # of the recipe
    out: str | Path,  # the folder for everything
) -> dict:  # what data.json holds: {"format", "done", "tokenizer", "sources": {name: ...}}
    "Reads, cleans, counts, and writes token shards. Killed at any moment, the same call goes on."
    recipe, place = load_corpus_recipe(path), Path(out)
    chosen = recipe.tokens.tokenizer
    tokenizer = Tokenizer.load(chosen) if chosen else None
    with only_one(place):
        for half in place.rglob(".*.part"):  # of a killed process
            half.unlink(missing_ok=True)
        _note_beginning(place, recipe)
        stages = {name: stages_of(s, place, recipe.tasks) for name, s in recipe.sources.items()}
        done = [run_source(recipe, name, parts) for name, parts in stages.items()]
        if not all(done):
            return {"format": CORPUS_FORMAT, "done": False, "tokenizer": None, "sources": {}}
        made = {name: _outcome(recipe.sources[name], parts) for name, parts in stages.items()}
        for name in made:
            shutil.rmtree(place / "work" / name / "parts", ignore_errors=True)
        if tokenizer:
            model = tokenizer.path.read_bytes()
            with atomic_write(place / "tokenizer.model") as file:
                file.write(model)
            for name, about in made.items():
                about["tokens"] = write_tokens(place, name, about["bytes"], tokenizer)
        mark = tokenizer and tokenizer.fingerprint
        whole = {"format": CORPUS_FORMAT, "done": True, "tokenizer": mark, "sources": made}
        write_json(place / "data.json", whole)
    return read_json(place / "data.json")


def prepared(
    folder: str | Path,
) -> dict | None:
    "What data.json says, if `build_corpus` made the folder. `UserError`: not finished."
    if not (Path(folder) / "begun.json").exists():
        return None
    if not (Path(folder) / "data.json").exists():
        raise UserError(
            f"{folder} is not finished: run `llama-course data` again with the same recipe."
        )
    return read_json(Path(folder) / "data.json")


def describe_corpus(
    made: dict,  # what `build_corpus` gives
) -> str:
    "What each filter dropped, source by source."
    if not made["done"]:
        return "The jobs are running; the same command looks again."
    parts = []
    for name, about in made["sources"].items():
        bad = "".join(f"; {reason}: {number:,}" for reason, number in about["bad"].items())
        tokens = "".join(f"; {side} {n:,} tokens" for side, n in about.get("tokens", {}).items())
        read = f"{about['documents']:,} of {about['read']:,} documents"
        head = f"{name}, {about['proportion']:.1%} of what is read: {read}{bad}{tokens}"
        parts += [head, funnel_table(about["steps"]), ""]
    return "\n".join(parts)


def write_tokens(
    place: Path,
    source: str,
    size: int,  # bytes of the cleaned source
    tokenizer: Tokenizer,
) -> dict:  # {"train": tokens, "held_out": tokens}
    "Both shards of a source, written where they are missing. Raises `UserError` for a damaged one."
    paths = {s: place / "tokens" / f"{source}.{s}.tokens" for s in ("train", "held_out")}
    if not all(path.exists() for path in paths.values()):
        documents = partial(cleaned, place / "clean" / source, source)
        share = min(0.05, 4 * SOURCE_HELD_OUT / size)
        held_out = [d for d in documents() if is_held_out(d, share)] or sample(documents(), 1)
        names = {d.name for d in held_out}
        if all(d.name in names for d in documents()):
            raise UserError(
                f"sources.{source}: too little text to hold a part of it out: add documents."
            )
        bar = tqdm(documents(), f"{source}, tokens", unit=" documents", disable=None)
        write_shard(paths["train"], (d for d in bar if d.name not in names), tokenizer)
        write_shard(paths["held_out"], sample(held_out, SOURCE_HELD_OUT), tokenizer)
    return {side: len(Shard(path, tokenizer)) for side, path in paths.items()}


def _outcome(source: CorpusSource, stages: list) -> dict:
    "What became of a source. Raises `UserError` if no document was there, or none is left."
    gathered = [gather_counts(stage) for stage in stages]
    read, steps = gathered[0][0], [count for _, counts in gathered for count in counts]
    bad = {label[4:]: n for label, n in read.items() if label.startswith("bad ")}
    where = f"sources.{source.name}"
    if not read["documents"]:
        raise UserError(f"{where}: not one document in {source.path} ({bad or 'it is empty'}).")
    if not steps[-1]["documents_out"]:
        most = max(steps, key=lambda c: c["documents_in"] - c["documents_out"])["step"]
        raise UserError(
            f"{where}: its filters left none of {read['documents']:,} documents, most went in the"
            f" step {most}: change filters."
        )
    return {
        "proportion": source.proportion,
        "documents": steps[-1]["documents_out"],
        "bytes": steps[-1]["bytes_out"],
        "read": read["documents"],
        "bad": bad,
        "steps": steps,
    }


def _beginning(source: CorpusSource, tasks: int) -> dict[str, Any]:
    "What decides which documents come out: the files as they are, the filters, the tasks."
    states = [(name, os.stat(name)) for name in source.files]
    files = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    keys = ("kind", "path", "filters", "columns", "options", "duplicates")
    chosen: dict[str, Any] = {key: getattr(source, key) for key in keys}
    return json.loads(json.dumps(chosen | {"files": len(files), "digest": digest, "tasks": tasks}))


def _note_beginning(place: Path, recipe: CorpusRecipe) -> None:
    "Notes what the sources were begun with. Raises `UserError` if one was begun in another way."
    noted = place / "begun.json"
    if not noted.exists() and any(not p.name.startswith(".") for p in place.iterdir()):
        raise UserError(f"{place} holds other files: choose another folder for --out.")
    begun = read_json(noted) if noted.exists() else {}
    for name, source in recipe.sources.items():
        now = _beginning(source, recipe.tasks)
        changed = [key for key in now if begun.get(name, now).get(key) != now[key]]
        if changed:
            files_only = set(changed) <= {"files", "digest"}
            what = "input files" if files_only else " and ".join(changed)
            raise UserError(
                f"{place} was begun with other {what} for {name}: choose another --out."
            )
        begun[name] = now
    write_json(noted, begun)
