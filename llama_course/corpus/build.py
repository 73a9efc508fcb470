"""The whole way from a recipe to token shards.

A folder remembers what it was begun with: the same command goes on, and another recipe for the
same source is refused, for its documents would be mixed with those that are there. At a crawl's
size three things are to be replaced: the single task that looks for duplicates, the one process
that writes the tokens, and a language model of good text trained anew in every task.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from llama_course.corpus.executors import run_source
from llama_course.corpus.funnels import funnel_table
from llama_course.corpus.inputs import (
    damaged_ranks,
    file_states,
    noted_damage,
    relative,
    replaced_files,
)
from llama_course.corpus.recipe import CorpusRecipe, CorpusSource, load_corpus_recipe
from llama_course.corpus.stages import cleaned, gather_counts, stages_of
from llama_course.data import Document, is_held_out
from llama_course.support.disk import atomic_write, only_one, read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, verify_shards, write_shard
from llama_course.tokenizer import Tokenizer

CORPUS_FORMAT = "llama_course data 2"
SIDES = ("train", "held_out")


def build_corpus(
    path: str | Path,  # of the recipe
    out: str | Path,  # the folder for everything
) -> dict:  # what data.json holds: {"format", "done", "tokenizer", "held_out", "sources"}
    "Reads, cleans, counts, and writes token shards. Killed at any moment, the same call goes on."
    recipe, place = load_corpus_recipe(path), Path(out)
    chosen = recipe.tokens.tokenizer
    tokenizer = Tokenizer.load(chosen) if chosen else None
    with only_one(place):
        if recipe.executor == "local":  # elsewhere jobs may be writing them just now
            for half in place.rglob(".*.part"):  # of a killed process
                half.unlink(missing_ok=True)
        recipe = _note_beginning(place, recipe)
        stages = {name: stages_of(s, place, recipe.tasks) for name, s in recipe.sources.items()}
        done = [run_source(recipe, name, parts) for name, parts in stages.items()]
        if not all(done):
            return {"format": CORPUS_FORMAT, "done": False, "tokenizer": None, "sources": {}}
        made = {name: _outcome(recipe.sources[name], parts) for name, parts in stages.items()}
        for name, about in made.items():
            about["damaged"] = noted_damage(place / "work" / name / "damaged")
            if not about["damaged"]:  # else they are wanted when it is replaced
                shutil.rmtree(place / "work" / name / "parts", ignore_errors=True)
        if tokenizer:
            model = tokenizer.path.read_bytes()
            with atomic_write(place / "tokenizer.model") as file:
                file.write(model)
            for name, about in made.items():
                shards = write_tokens(place, name, recipe.tokens.held_out, tokenizer)
                about["tokens"] = {side: shards[side]["tokens"] for side in shards}
                about["shards"] = {shard.pop("file"): shard for shard in shards.values()}
        whole = {
            "format": CORPUS_FORMAT,
            "done": True,
            "tokenizer": tokenizer and tokenizer.fingerprint,
            "held_out": recipe.tokens.held_out,
            "sources": made,
        }
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
        for file, reason in about["damaged"].items():
            head += f"\n  left out: {file} ({reason})"
        parts += [head, funnel_table(about["steps"]), ""]
    return "\n".join(parts)


def write_tokens(
    place: Path,
    source: str,
    share: float,  # of the documents that are held out
    tokenizer: Tokenizer,
) -> dict[str, dict]:  # side -> {"file", "tokens", "bytes" of text, "sha256" of the shard}
    """Both shards of a source, written where they are missing.

    Which side a document is on is decided by its name alone. A small source may have nothing on the
    other side: then that shard is not there. Raises `UserError` if nothing is left to train on.
    """

    def documents(side: str) -> Iterator[Document]:
        for d in cleaned(place / "clean" / source, source):
            if is_held_out(d, share) == (side == "held_out"):
                yield d

    made = {}
    for side in SIDES:
        path = place / "tokens" / f"{source}.{side}.tokens"
        if not path.exists():
            if next(documents(side), None) is None:
                if side == "held_out":
                    continue
                raise UserError(
                    f"sources.{source}: too little text to hold a part of it out: add documents,"
                    f" or choose a smaller held_out than {share:g}."
                )
            title = f"{source}, {side} tokens"
            bar = tqdm(documents(side), title, unit=" documents", disable=None)
            write_shard(path, bar, tokenizer)
        shard = Shard(path, tokenizer)
        made[side] = {
            "file": f"tokens/{path.name}",
            "tokens": len(shard),
            "bytes": shard.text_bytes,
            "sha256": shard.digest,
        }
    return made


def verify_corpus(
    folder: str | Path,  # what `build_corpus` made, or any folder of *.tokens
) -> int:  # bytes that were read
    """Reads all token shards once, on all cores. Raises `UserError` at one that is not as it was
    written, or as data.json says."""
    about = prepared(folder)
    named = [source.get("shards", {}) for source in about["sources"].values()] if about else []
    digests = {file: facts["sha256"] for source in named for file, facts in source.items()}
    if not about:
        digests = {path.name: None for path in sorted(Path(folder).glob("*.tokens"))}
    if not digests:
        raise UserError(f"{folder} has no token shards to verify: choose the folder of the data.")
    shards = [Shard(Path(folder) / file) for file in digests]
    for shard, digest in zip(shards, digests.values()):
        if digest and shard.digest != digest:
            raise UserError(f"{shard.path} is not the shard that data.json names: restore it.")
    size = sum(shard.path.stat().st_size for shard in shards)
    with tqdm(total=size, unit="B", unit_scale=True, desc="verifying", disable=None) as bar:
        verify_shards(shards, bar.update, os.cpu_count() or 1)
    return size


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


def _note_beginning(place: Path, recipe: CorpusRecipe) -> CorpusRecipe:
    """Notes what the sources were begun with; the recipe, each source with the files of then.

    Raises `UserError` if a source was begun in another way.
    """
    noted = place / "begun.json"
    if not noted.exists() and any(not p.name.startswith(".") for p in place.iterdir()):
        raise UserError(f"{place} holds other files: choose another folder for --out.")
    begun: dict = read_json(noted) if noted.exists() else {"format": CORPUS_FORMAT, "sources": {}}
    if begun.get("format") != CORPUS_FORMAT:
        raise UserError(f"{place} was begun by another version: choose another --out.")
    share = recipe.tokens.held_out
    if begun.setdefault("held_out", share) != share and (place / "tokens").exists():
        raise UserError(f"{place} was begun with held_out = {begun['held_out']}: leave it so.")
    begun["held_out"] = share
    kept = {}
    for name, source in recipe.sources.items():
        now = source.asked | {"tasks": recipe.tasks}
        old = begun["sources"].get(name, {"asked": now, "files": None})
        if changed := [key for key in now if old["asked"].get(key) != now[key]]:
            raise UserError(
                f"{place} was begun with other {' and '.join(changed)} for {name}:"
                " choose another --out."
            )
        files = _current_files(place, source, old["files"], recipe.tasks)
        begun["sources"][name] = {"asked": now, "files": files}
        if source.files:  # a file that has gone keeps its task
            kept[name] = replace(source, files=_in_order(source, files))
    write_json(noted, begun)
    return replace(recipe, sources=recipe.sources | kept)


def _in_order(source: CorpusSource, files: dict[str, list]) -> list[str]:
    "The input files as they were listed at the beginning, so that each stays in its task."
    examples = {relative(f, source.root) for f in source.inputs} - {
        relative(f, source.root) for f in source.files
    }
    return [str(Path(source.root) / name) for name in sorted(files) if name not in examples]


def _check_there(
    place: Path, source: CorpusSource, old: dict, new: dict, ranks: list[int], tasks: int
) -> None:
    "Raises `UserError` if a whole file of these tasks, which are to be done again, has gone."
    files = _in_order(source, old)
    damaged = noted_damage(place / "work" / source.name / "damaged")
    for rank in ranks if source.files else ():
        for file in files[rank * len(files) // tasks : (rank + 1) * len(files) // tasks]:
            name = relative(file, source.root)
            if name not in new and name not in damaged:
                raise UserError(f"{file} is needed again, and is not there: restore it.")


def _current_files(
    place: Path, source: CorpusSource, old: dict[str, list] | None, tasks: int
) -> dict[str, list]:
    "The state of each file; where a damaged one was replaced, its task and what follows is undone."
    new = file_states(source.inputs, source.root, old or {})
    if old is None:
        return new
    work = place / "work" / source.name
    replaced = replaced_files(source, place, old, new, noted_damage(work / "damaged"))
    if replaced:
        _check_there(place, source, old, new, damaged_ranks(work / "damaged", replaced), tasks)
        (place / "data.json").unlink(missing_ok=True)
        for shard in (place / "tokens").glob(f"{source.name}.*.tokens"):
            shard.unlink()
        ranks = damaged_ranks(work / "damaged", replaced)
        markers = [work / "1" / "completions" / f"{rank:05d}" for rank in ranks]
        for marker in [*work.glob("2/completions/*"), *markers, work / "submitted"]:
            marker.unlink(missing_ok=True)
    return old | new
