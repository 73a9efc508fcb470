"""One readable file says what to read and how to clean it, on one machine or on a cluster."""

import difflib
import gzip
import hashlib
import inspect
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
import tomllib
from bz2 import open as bz2_open
from collections import Counter
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from functools import partial
from glob import glob
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

from tqdm import tqdm

from llama_course import data, sources, web
from llama_course.data import Document, Shard, from_bytes, funnel_table, is_held_out, read_document, sample
from llama_course.data import text_bytes, write_shard
from llama_course.support.errors import UserError
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json, write_json
from llama_course.tokenizer import Tokenizer

def read_rows(
    rows,  # (where it stands, a dict or None if it was none) of each row
    source: str,
    bad: Counter,  # gets the reasons why rows are no documents
    text: str = "text",  # the column of the text
    name: str = "id",  # the column of the name
):
    "Each row that has a text as a Document, named by its name or else by its place."
    for place, row in rows:
        if not isinstance(row, dict):
            bad["not a JSON object"] += 1
        elif not isinstance(row.get(text), str):
            bad[f"no text under {text!r}"] += 1
        else:
            yield Document(source, str(row.get(name) or place), row[text])

def json_rows(
    path,  # .jsonl, or .jsonl.gz
    limit: int = 4 * data.GIGANTIC,  # bytes; a longer line is not even parsed
):
    "The place and the content of each line; None for what is no JSON. Raises `UserError` for a damaged file."
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(_lines(file, limit)):
                try:
                    row = json.loads(line.decode("utf-8", "surrogateescape")) if line.strip() else ""
                except (ValueError, RecursionError):
                    row = None
                if row != "": yield f"{Path(path).name}:{number + 1}", row
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read to its end ({error}): fetch it again.") from None


def _lines(file, limit):
    "The lines of a file; of one that is too long only the beginning, which is no JSON then."
    while line := file.readline(limit):
        yield line
        while len(line) == limit and not line.endswith(b"\n"): line = file.readline(limit)

def _warc(path, source, bad, options): return web.read_warc(path, source, bad)


def _jsonl(path, source, bad, options): return read_rows(json_rows(path), source, bad, **options)


def _text(path, source, bad, options): yield read_document(path, source)


def _wikipedia(path, source, bad, options):
    with (bz2_open if str(path).endswith(".bz2") else open)(path, "rb") as file:
        yield from _xml(path, sources.wiki_pages(file, source))


def _stackexchange(path, source, bad, options):
    lonely = []
    yield from _xml(path, sources.threads(sources.posts(path), source, lonely))
    if lonely: bad["answer without a question"] += len(lonely)


def _xml(path, documents):
    try: yield from documents
    except (sources.ElementTree.ParseError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read to its end ({error}): fetch it again.") from None


# kind -> (the files of it in a folder, file -> Documents)
KINDS = {"warc": (("*.warc.gz", "*.warc", "*.wet.gz", "*.wet"), _warc),
         "jsonl": (("*.jsonl", "*.jsonl.gz"), _jsonl), "text": (("*",), _text),
         "wikipedia": (("*.xml", "*.xml.bz2"), _wikipedia), "stackexchange": (("*.xml",), _stackexchange)}

def dataset_rows(
    path: str,  # a name on the hub, a kind of file such as "json" with data_files, a folder of save_to_disk
    options: dict,  # what datasets.load_dataset takes beside: name, split, data_files, ...
    rank: int = 0,
    world_size: int = 1,
):
    "This rank's rows of a data set and their places, streamed. Raises `UserError` where it cannot be opened."
    try:
        import datasets
    except ImportError:
        raise UserError("data sets need the package datasets: pip install 'llama_course[data]'.") from None
    try:
        if (Path(path) / "state.json").exists():
            rows = datasets.load_from_disk(path).to_iterable_dataset(num_shards=world_size)
        else:
            rows = datasets.load_dataset(path, streaming=True, **({"split": "train"} | options))
    except Exception as error:  # whatever it was, the user named what cannot be opened
        raise UserError(f"the data set {path} cannot be opened ({type(error).__name__}: {error}).") from None
    parts = min(world_size, rows.num_shards)
    if rank < parts:
        part = rows.shard(parts, rank, contiguous=True)
        yield from ((f"{rank}:{number}", row) for number, row in enumerate(part))

EXAMPLE = """\
# LLaMA's Table 1: what is read, how it is cleaned, and its share of what the model reads.
# Paths are relative to this file. `llama-course data THIS_FILE --out DIR` does it; killed, it goes on.

tasks = 8             # each source is cut into so many tasks; a finished task is never done again
workers = 2           # so many tasks run side by side
executor = "local"    # or "slurm" (then fill in [slurm]), or "ray"

# [tokens]                         # with a tokenizer, token shards are written as well
# tokenizer = "tokenizer.model"

# [slurm]                          # whatever datatrove's SlurmPipelineExecutor takes
# partition = "cpu"
# time = "24:00:00"

[sources.CommonCrawl]
proportion = 0.67
kind = "warc"                      # WARC or WET files
path = "commoncrawl"               # a file, a folder, or a pattern such as "crawl/*.warc.gz"
duplicates = "all"                 # looked for in "all" of the source, or within each "task"
filters = [
    "paragraphs",                              # CCNet: paragraphs seen before
    { name = "language", label = "en" },       # at least 0.5 likely English
    # { name = "perplexity", good = "wikipedia-text", limit = 500 },   # an n-gram model of good text
    # { name = "cited", yes = "cited-pages", no = "random-pages" },    # looks like what Wikipedia cites
]

"""

EXAMPLE += """\
[sources.C4]
proportion = 0.15
kind = "jsonl"                     # JSON lines, .jsonl or .jsonl.gz
path = "c4"
filters = ["c4_rules", "spans", { name = "language", label = "en", at_least = 0.99 }]

[sources.GitHub]
proportion = 0.045
kind = "jsonl"
path = "github"
filters = ["short_lines", "mostly_alphanumeric", "without_header", "exact_duplicates"]

[sources.Wikipedia]
proportion = 0.045
kind = "wikipedia"                 # dumps in XML, also .bz2
path = "wikipedia"
filters = ["plain_wikitext"]

"""

EXAMPLE += """\
[sources.Books]
proportion = 0.045
kind = "text"                      # a folder of text files
path = "books"
filters = [{ name = "near_duplicates", threshold = 0.9 }]

[sources.ArXiv]
proportion = 0.025
kind = "text"
path = "arxiv/**/*.tex"
filters = ["without_tex_comments", "with_macros_expanded", "paper_body"]

[sources.StackExchange]
proportion = 0.02
kind = "stackexchange"             # Posts.xml of the public dump
path = "stackexchange"
filters = ["without_html"]

# A data set of Hugging Face, streamed, is a source like any other:
# kind = "dataset"
# path = "allenai/c4"
# options = { name = "en", split = "train" }
"""

def language(label: str = "en", at_least: float = 0.5):
    "A step that keeps what is probably in this language. (CCNet; LLaMA, sec. 2.1)"
    return web.Classified(web.Langid(), label, at_least)


def perplexity(good: str, limit: float, order: int = 5):
    "A step that drops what surprises an n-gram model of good text by more than the limit. (CCNet, sec. 3.4)"
    texts = [paragraph for text in _texts(good) for paragraph in text.splitlines() if paragraph.strip()]
    pieces = lambda text: re.findall(r"\w+|[^\w\s]", text.lower())
    vocabulary = len({piece for text in texts for piece in pieces(text)}) + 1
    return web.NotSurprising(web.NGramModel(pieces, order, vocab_size=vocabulary).fit(texts), limit)


def cited(yes: str, no: str, at_least: float = 0.5):
    "A step that keeps pages that look more like the first examples than like the second. (LLaMA, sec. 2.1)"
    good, other = _texts(yes), _texts(no)
    labels = ["cited"] * len(good) + ["random"] * len(other)
    return web.Classified(web.LinearClassifier(web.word_ngrams).fit(good + other, labels), "cited", at_least)


def bad_words(words: str):
    "A step that drops a page with any word of a file, one word a line. (C4)"
    return web.NoBadWords([word.strip().lower() for word in _texts(words)[0].splitlines() if word.strip()])


def _texts(path):
    "The text of every file there."
    return [read_document(file, "examples").text for file in input_files(path, ("*",))]

# name -> what makes the step (or several) from the recipe's options
FILTERS = {name: getattr(sources, name) for name in """short_lines mostly_alphanumeric without_header
plain_wikitext without_tex_comments with_macros_expanded paper_body without_html""".split()}
FILTERS |= {"exact_duplicates": sources.ExactDuplicates, "near_duplicates": sources.NearDuplicates,
            "paragraphs": web.ParagraphDedup, "spans": web.SpanDedup, "c4_rules": web.c4_rules,
            "language": language, "perplexity": perplexity, "cited": cited, "bad_words": bad_words}
TEXT_FILES = {"good", "yes", "no", "words"}  # options that are files, or folders of them
WHOLE = {"exact_duplicates", "near_duplicates", "paragraphs", "spans"}  # must see all documents of a source


def make_steps(
    name: str,  # of FILTERS
    options: dict,
) -> dict:  # name -> step
    "The step of that name, or the steps."
    made = FILTERS[name]
    if list(inspect.signature(made).parameters)[:1] == ["document"]:  # the function is the step
        return {name: partial(made, **options)}
    made = made(**options)
    return made if isinstance(made, dict) else {name: made}

TOP = {"tasks": int, "workers": int, "executor": str, "tokens": dict, "slurm": dict, "ray": dict,
       "sources": dict}
KEYS = {"proportion": (int, float), "kind": str, "path": str, "filters": list, "duplicates": str,
        "options": dict, "text": str, "name": str}
WORDS = {int: "a whole number", str: "text", dict: "a table", list: "a list", (int, float): "a number"}


def _check_keys(table, known, where):
    "Raises `UserError` for a key that is not known or holds a value of another kind."
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"{where}{key}: there is no such key; {hint}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise UserError(f"{where}{key} = {value!r}: {WORDS[known[key]]} is wanted here.")

def _check_filter(entry, where):
    "The name and the options of a filter. Raises `UserError` if there is none such."
    options = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
    name = options.pop("name", None)
    if name not in FILTERS:
        near = difflib.get_close_matches(str(name), FILTERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(FILTERS))}."
        raise UserError(f"{where}: there is no filter {name!r}; {hint}")
    known = {k: p.default for k, p in inspect.signature(FILTERS[name]).parameters.items() if k != "document"}
    if wrong := [key for key in options if key not in known]:
        raise UserError(f"{where}: {name} takes no {wrong[0]!r}, but {', '.join(known) or 'nothing'}.")
    if missing := [key for key, default in known.items() if default is inspect._empty and key not in options]:
        raise UserError(f"{where}: {name} needs {' and '.join(missing)}:"
                        f" write {{ name = \"{name}\", {missing[0]} = ... }}.")
    _check_options(FILTERS[name], options, f"{where}: {name}'s ")
    return name, options

def _check_options(made, options, where):
    "Raises `UserError` for an option whose value is not of the kind that the filter's own signature says."
    for key, value in options.items():
        parameter = inspect.signature(made).parameters[key]
        unsaid = parameter.annotation is inspect._empty
        kind = type(parameter.default) if unsaid else parameter.annotation
        kind = {float: (int, float), tuple: list}.get(kind, kind)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{where}{key} = {value!r}: {WORDS[kind]} is wanted here.")
        if not isinstance(value, (str, list)) and value < (kind is int):
            raise UserError(f"{where}{key} = {value}: at least {int(kind is int)}.")

def input_files(
    path,  # a file, a folder, or a pattern
    patterns=("*",),  # which files of a folder
) -> list[str]:
    "The files, in the order of their names; none is hidden."
    place = Path(path)
    found = [path] if place.is_file() else glob(str(path), recursive=True)
    if place.is_dir():
        found = [file for pattern in patterns for file in place.rglob(pattern)]
    return sorted({str(f) for f in found if Path(f).is_file() and not Path(f).name.startswith(".")})


def _check_table(name, about, where):
    "Raises `UserError` for what can be seen to be wrong in a source without looking at its files."
    if not isinstance(about, dict): raise UserError(f"sources.{name}: a table [sources.{name}] is wanted.")
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise UserError(f"{where[:-1]}: letters, digits, - and _ make a name.")
    _check_keys(about, KEYS, where)
    for key in ("proportion", "kind", "path"):
        if key not in about: raise UserError(f"{where}{key} is missing: add it.")
    if not 0 < about["proportion"] <= 1: raise UserError(f"{where}proportion must be above 0 and at most 1.")
    for key, choices in (("kind", [*KINDS, "dataset"]), ("duplicates", ["all", "task"])):
        if about.get(key, choices[0]) not in choices:
            raise UserError(f"{where}{key} = {about[key]!r}: choose one of {', '.join(choices)}.")

def _check_source(name, about, root):
    "A source as the pipeline wants it: with its input files and its filters. Raises `UserError`."
    where = f"sources.{name}."
    _check_table(name, about, where)
    absolute = lambda key, value: str(root / value) if key in TEXT_FILES else value
    filters = [_check_filter(e, f"{where}filters[{i}]") for i, e in enumerate(about.get("filters", []))]
    filters = [(name, {key: absolute(key, v) for key, v in options.items()}) for name, options in filters]
    for name, options in filters:
        for key in TEXT_FILES & options.keys():
            if not input_files(options[key]):
                raise UserError(f"{where}filters: {name}: {options[key]} does not exist: give files of text.")
    files, path, kind = [], str(root / about["path"]), about["kind"]
    if kind == "dataset":
        path = path if Path(path).exists() else about["path"]
    elif not (files := input_files(path, KINDS[kind][0])):
        there = "has no such files" if Path(path).exists() else "does not exist"
        raise UserError(f"{where}path: {path} {there}: a {kind} source needs a file, folder or pattern.")
    return {"kind": kind, "path": path, "files": files, "filters": filters,
            "columns": {key: about[key] for key in ("text", "name") if key in about},
            "options": about.get("options", {}), "proportion": about["proportion"],
            "duplicates": about.get("duplicates", "all")}

def load_recipe(
    path,  # a TOML file
) -> dict:  # tasks, workers, executor, slurm, ray, tokenizer, sources: name -> {...}
    "The recipe, checked. Raises `UserError` for whatever is wrong with it, with the key."
    try:
        return _check_recipe(tomllib.loads(Path(path).read_text(encoding="utf-8")), Path(path).parent)
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror};"
                        " `llama-course data --example` prints one.") from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {error}.") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

def _check_recipe(recipe, root):
    "The recipe with all that it leaves out. Raises `UserError`."
    _check_keys(recipe, TOP, "")
    _check_keys(recipe.get("tokens", {}), {"tokenizer": str}, "tokens.")
    left_out = {"tasks": 1, "workers": 1, "executor": "local", "slurm": {}, "ray": {}, "sources": {}}
    recipe = left_out | recipe
    for key in ("tasks", "workers"):
        if recipe[key] < 1: raise UserError(f"{key} = {recipe[key]}: at least 1.")
    if recipe["executor"] not in ("local", "slurm", "ray"):
        raise UserError(f"executor = {recipe['executor']!r}: choose local, slurm or ray.")
    if not recipe["sources"]: raise UserError("sources: there is none: add a table [sources.NAME].")
    checked = {name: _check_source(name, about, root) for name, about in recipe["sources"].items()}
    if abs((total := sum(s["proportion"] for s in checked.values())) - 1) > 1e-6:
        raise UserError(f"sources: the proportions sum to {total:g}, they must sum to 1: change one of them.")
    tokenizer = recipe.pop("tokens", {}).get("tokenizer")
    return recipe | {"sources": checked, "tokenizer": tokenizer and str(root / tokenizer)}

def _trove():
    "The package datatrove, or one line that says how to get it."
    try:
        import datatrove.executor.local
        import datatrove.utils.stats
    except ImportError:
        raise UserError("the pipeline runs on datatrove: pip install 'llama_course[data]'.") from None
    return datatrove


def to_trove(document: Document):
    "The document as datatrove knows it, so that its own blocks may stand between ours."
    from datatrove.data import Document as Trove

    return Trove(text=document.text, id=document.name, metadata={"source": document.source})


def from_trove(document):
    "And back."
    return Document(document.metadata["source"], document.id, document.text)


_moved = []  # what moves the progress bar in this process


def tick():
    "Says that one more document was read."
    for move in _moved: move()

class _Block:
    "What datatrove asks of a step: a name, stats, and a call with documents, rank and world size."

    def __init__(self, name):
        self.name = name
        self.begin()

    def begin(self):
        "Counts anew: one process may do several ranks."
        self.stats = _trove().utils.stats.Stats(self.name)

    def count(self, **numbers):
        for label, number in numbers.items(): self.stats[label].update(number)

    def __repr__(self): return self.name

class Reader(_Block):
    "The documents of a rank's part of a source: whole files, those of all ranks one after the other."

    def __init__(self, source: str, about: dict):
        super().__init__("read")
        self.source, self.about = source, about

    def documents(self, rank, world_size, bad):
        about, files = self.about, self.about["files"]
        if about["kind"] == "dataset":
            rows = dataset_rows(about["path"], about["options"], rank, world_size)
            yield from read_rows(rows, self.source, bad, **about["columns"])
        for file in files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]:
            yield from KINDS[about["kind"]][1](file, self.source, bad, about["columns"])

    def __call__(self, documents, rank, world_size):
        self.begin()
        bad = Counter()
        for document in self.documents(rank, world_size, bad):
            self.count(documents=1, bytes=text_bytes(document.text))
            tick()
            yield to_trove(document)
        self.count(**{f"bad {reason}": number for reason, number in bad.items()})

class Filter(_Block):
    "One step of a funnel."

    def __init__(self, made_by: str, options: dict, step: str):
        super().__init__(step)
        self.made_by, self.options, self.step = made_by, options, step

    def __call__(self, documents, rank, world_size):
        self.begin()
        steps = data.SOUND if self.made_by == "SOUND" else make_steps(self.made_by, self.options)
        funnel = data.Funnel({self.step: steps[self.step]}, examples=0)
        yield from map(to_trove, funnel(map(from_trove, documents)))
        self.count(**{key: value for key, value in funnel.counts[0].items() if key != "step"})


class Writer(_Block):
    "Writes a rank's documents as JSON lines, whole or not at all."

    def __init__(self, folder):
        super().__init__("write")
        self.folder = Path(folder)

    def __call__(self, documents, rank, world_size):
        with atomic_write(self.folder / f"{rank:05d}.jsonl") as file:
            for document in documents:
                row = {"id": document.id, "text": document.text, "source": document.metadata["source"]}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                yield document

def cleaned(
    folder,  # what a `Writer` wrote to
    source: str,
):
    "The documents that were written there, in the order of the ranks."
    for file in sorted(Path(folder).glob("*.jsonl")):
        yield from read_rows(json_rows(file, limit=-1), source, Counter())

class Again(Reader):
    "What the first stage wrote."

    def documents(self, rank, world_size, bad):
        return cleaned(self.about["parts"], self.source)


def plan(
    source: str,
    about: dict,  # as `load_recipe` gives it
    place: Path,  # where everything is written
    tasks: int,
) -> list:  # (blocks of the pipeline, tasks, folder of its logs, folder of its output) of each stage
    "The stages of a source: one, or two if a step must see all documents."
    chosen, work = about["filters"], Path(place) / "work" / source
    whole = [i for i, (name, _) in enumerate(chosen) if name in WHOLE and about["duplicates"] == "all"]
    cut = whole[0] if whole else len(chosen)
    names = lambda name, options: web.c4_rules(**options) if name == "c4_rules" else [name]
    blocks = lambda part: [Filter(*entry, step) for entry in part for step in names(*entry)]
    early = [Filter("SOUND", {}, step) for step in data.SOUND] + blocks(chosen[:cut])
    parts, clean = work / "parts", Path(place) / "clean" / source
    first = [Reader(source, about), *early, Writer(parts if whole else clean)]
    again = [Again(source, {"parts": parts}), *blocks(chosen[cut:]), Writer(clean)]
    stages = [(first, tasks, work / "1", parts), (again, 1, work / "2", clean)]
    return stages if whole else [(first, tasks, work / "1", clean)]

def make_executor(
    recipe: dict,
    blocks: list,
    tasks: int,
    logs: Path,  # markers, stats and logs
    depends=None,  # the executor of the stage before
):
    "The executor that the recipe names. Raises `UserError` if its options are not datatrove's."
    _trove()
    common = {"pipeline": blocks, "tasks": tasks, "logging_dir": str(logs.resolve()), "depends": depends}
    kind, options = recipe["executor"], recipe.get(recipe["executor"], {})
    try:
        if kind == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor
            return SlurmPipelineExecutor(job_name=f"data-{logs.parent.name}", **options, **common)
        if kind == "ray":
            from datatrove.executor.ray import RayPipelineExecutor
            return RayPipelineExecutor(workers=recipe["workers"], **options, **common)
    except TypeError as error:
        raise UserError(f"[{kind}] in the recipe: datatrove refuses these options ({error}).") from None
    except ImportError as error:
        raise UserError(f"executor = {kind!r}: {error}; install it first.") from None
    from datatrove.executor.local import LocalPipelineExecutor
    return LocalPipelineExecutor(workers=recipe["workers"], **common)

class _Quiet:
    "A place for messages that are in the log file anyway."
    def write(self, text): return len(text)
    def flush(self): pass


QUIET = _Quiet()
def _begin(counter):
    "Prepares a worker process: it counts documents in shared memory, and ends when its parent does."
    def move():
        with counter.get_lock(): counter.value += 1

    def end():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    _moved[:] = [move]
    sys.stderr = QUIET
    threading.Thread(target=end, daemon=True).start()

def run_ranks(
    executor,
    ranks: list[int],
    workers: int,  # processes; 1: this one
    bar,  # has update(n)
):
    "Runs these ranks of a pipeline. Raises what a rank raised, or `UserError` if a process was killed."
    if min(workers, len(ranks)) > 1: return _run_in_processes(executor, ranks, min(workers, len(ranks)), bar)
    _moved[:] = [bar.update]
    with redirect_stderr(QUIET):
        for rank in ranks: executor._run_for_rank(rank)

def _run_in_processes(executor, ranks, workers, bar):
    context = multiprocessing.get_context("spawn")
    counter, seen = context.Value("q", 0), 0
    with ProcessPoolExecutor(workers, context, _begin, (counter,)) as pool:
        try:
            waiting = {pool.submit(executor._run_for_rank, rank) for rank in ranks}
            while waiting:
                done, waiting = futures.wait(waiting, 0.2, futures.FIRST_COMPLETED)
                now = counter.value
                bar.update(now - seen)
                seen = now
                for future in done: future.result()
        except BaseException as error:
            for process in multiprocessing.active_children(): process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, BrokenProcessPool): raise
            raise UserError("a worker process was killed, perhaps for want of memory: the same command goes"
                            " on; with fewer workers it needs less.") from None

def to_do(
    executor,
    folder: Path,  # of the output
) -> list[int]:
    "The ranks that are still to be done; a marker whose output has gone is taken back."
    for rank in range(executor.world_size):
        marker = Path(executor.logging_dir.resolve_paths(f"completions/{rank:05d}"))
        if marker.exists() and not (folder / f"{rank:05d}.jsonl").exists(): marker.unlink()
    return executor.get_incomplete_ranks()


def gather(
    logs: Path,
    blocks: list,
) -> tuple[Counter, list[dict]]:  # the reader's numbers, the counts of each filter
    "What all ranks together counted, from the stats that each one wrote."
    total = [Counter() for _ in blocks]
    for file in sorted((logs / "stats").glob("[0-9]*.json")):
        for numbers, block in zip(total, read_json(file)):
            for label, value in block["stats"].items():
                numbers[label] += int(value["total"] if isinstance(value, dict) else value)
    columns = ("documents_in", "documents_out", "bytes_in", "bytes_out")
    counts = [{"step": block.name} | {column: numbers[column] for column in columns}
              for block, numbers in zip(blocks, total) if isinstance(block, Filter)]
    return total[0], counts

FORMAT = "llama_course data 1"


def _settings(about, tasks):
    "What decides which documents come out: the files as they are, the filters, the tasks."
    files = [[name, os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in about["files"]]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    chosen = {key: about[key] for key in ("kind", "path", "filters", "columns", "options", "duplicates")}
    return json.loads(json.dumps(chosen | {"files": len(files), "digest": digest, "tasks": tasks}))


def _settle(place, recipe):
    "Notes what the sources were begun with. Raises `UserError` if one was begun in another way."
    noted = place / "begun.json"
    if not noted.exists() and any(not p.name.startswith(".") for p in place.iterdir()):
        raise UserError(f"{place} holds other files: choose another folder for --out.")
    begun = read_json(noted) if noted.exists() else {}
    for name, about in recipe["sources"].items():
        now = _settings(about, recipe["tasks"])
        changed = [key for key in now if begun.get(name, now).get(key) != now[key]]
        if changed:
            what = "input files" if set(changed) <= {"files", "digest"} else " and ".join(changed)
            raise UserError(f"{place} was begun with other {what} for {name}: choose another --out.")
        begun[name] = now
    write_json(noted, begun)

def run_source(
    recipe: dict,
    source: str,
    place: Path,
) -> bool:  # whether all is done; on a cluster it may not be yet
    "Cleans one source, as far as it is not done."
    stages = plan(source, recipe["sources"][source], place, recipe["tasks"])
    executors = []
    for blocks, tasks, logs, out in stages:
        executors.append(make_executor(recipe, blocks, tasks, logs, executors[-1] if executors else None))
    if not to_do(executors[-1], stages[-1][3]): return True
    if recipe["executor"] == "slurm": return _submit(executors[-1], stages)
    for executor, (blocks, tasks, logs, out) in zip(executors, stages):
        executor.depends, ranks = None, to_do(executor, out)
        with tqdm(desc=f"{source}, {len(ranks)} of {tasks} tasks", unit=" documents", disable=None) as bar:
            if recipe["executor"] == "ray" and ranks: executor.run()
            else: run_ranks(executor, ranks, recipe["workers"], bar)
    return True

def _submit(executor, stages):
    "Submits the jobs once; afterwards looks how far they are."
    submitted = stages[0][2].parent / "submitted"
    if not submitted.exists():
        with redirect_stderr(QUIET): executor.run()  # submits the stage before as well
        submitted.touch()
    done = [len(list((logs / "completions").glob("*"))) for _, _, logs, _ in stages]
    of = sum(tasks for _, tasks, _, _ in stages)
    print(f"{submitted.parent.name}: {sum(done)} of {of} tasks are done; if the jobs were lost, remove"
          f" {submitted}", file=sys.stderr)
    return not to_do(executor, stages[-1][3])

def report(
    recipe: dict,
    source: str,
    place: Path,
) -> dict:  # {"proportion", "documents", "bytes", "read", "bad", "steps"}
    "What became of a source. Raises `UserError` if no document was there, or none is left."
    about, stages = recipe["sources"][source], plan(source, recipe["sources"][source], place, recipe["tasks"])
    gathered = [gather(logs, blocks) for blocks, _, logs, _ in stages]
    read, steps = gathered[0][0], [count for _, counts in gathered for count in counts]
    bad = {label[4:]: number for label, number in read.items() if label.startswith("bad ")}
    if not read["documents"]:
        raise UserError(f"sources.{source}: not one document in {about['path']} ({bad or 'it is empty'}).")
    if not steps[-1]["documents_out"]:
        most = max(steps, key=lambda c: c["documents_in"] - c["documents_out"])["step"]
        raise UserError(f"sources.{source}: its filters left none of {read['documents']:,} documents, most"
                        f" went in the step {most}: change filters.")
    return {"proportion": about["proportion"], "documents": steps[-1]["documents_out"],
            "bytes": steps[-1]["bytes_out"], "read": read["documents"], "bad": bad, "steps": steps}

HELD_OUT = 400_000  # bytes of each source, roughly


def write_tokens(
    place: Path,
    source: str,
    size: int,  # bytes of the cleaned source
    tokenizer: Tokenizer,
) -> dict:  # {"train": tokens, "held_out": tokens}
    "Both shards of a source, written where they are missing. Raises `UserError` for a damaged one."
    paths = {side: place / "tokens" / f"{source}.{side}.tokens" for side in ("train", "held_out")}
    if not all(path.exists() for path in paths.values()):
        documents = partial(cleaned, place / "clean" / source, source)
        share = min(0.05, 4 * HELD_OUT / size)
        held_out = [d for d in documents() if is_held_out(d, share)] or sample(documents(), 1)
        names = {d.name for d in held_out}
        if all(d.name in names for d in documents()):
            raise UserError(f"sources.{source}: too little text to hold a part of it out: add documents.")
        bar = tqdm(documents(), f"{source}, tokens", unit=" documents", disable=None)
        write_shard(paths["train"], (d for d in bar if d.name not in names), tokenizer)
        write_shard(paths["held_out"], sample(held_out, HELD_OUT), tokenizer)
    return {side: len(Shard(path, tokenizer)) for side, path in paths.items()}

def run_recipe(
    path,  # of the recipe
    out,  # the folder for everything
) -> dict:  # what data.json holds: {"format", "done", "tokenizer", "sources": {name: see `report`}}
    "Reads, cleans, counts, and writes token shards. Killed at any moment, the same call goes on."
    recipe, place = load_recipe(path), Path(out)
    tokenizer = Tokenizer.load(recipe["tokenizer"]) if recipe["tokenizer"] else None
    with only_one(place):
        for half in place.rglob(".*.part"): half.unlink(missing_ok=True)  # of a killed process
        _settle(place, recipe)
        done = [run_source(recipe, source, place) for source in recipe["sources"]]
        if not all(done): return {"format": FORMAT, "done": False, "tokenizer": None, "sources": {}}
        about = {source: report(recipe, source, place) for source in recipe["sources"]}
        for source in about: shutil.rmtree(place / "work" / source / "parts", ignore_errors=True)
        if tokenizer:
            model = Path(recipe["tokenizer"]).read_bytes()
            with atomic_write(place / "tokenizer.model") as file: file.write(model)
            for source, a in about.items(): a["tokens"] = write_tokens(place, source, a["bytes"], tokenizer)
        made = tokenizer and tokenizer.fingerprint
        write_json(place / "data.json", {"format": FORMAT, "done": True, "tokenizer": made, "sources": about})
    return read_json(place / "data.json")

def in_words(
    made: dict,  # what `run_recipe` gives
) -> str:
    "What each filter dropped, source by source."
    parts = []
    for name, about in made["sources"].items():
        bad = "".join(f"; {reason}: {number:,}" for reason, number in about["bad"].items())
        tokens = "".join(f"; {side} {n:,} tokens" for side, n in about.get("tokens", {}).items())
        parts += [f"{name}, {about['proportion']:.1%} of what is read: {about['documents']:,} of"
                  f" {about['read']:,} documents{bad}{tokens}", funnel_table(about["steps"]), ""]
    return "\n".join(parts) if made["done"] else "The jobs are running; the same command looks again."

def prepared(
    folder,
) -> dict | None:
    "What data.json says, if `run_recipe` made the folder. Raises `UserError` if it is not finished."
    if not (Path(folder) / "begun.json").exists(): return None
    if not (Path(folder) / "data.json").exists():
        raise UserError(f"{folder} is not finished: run `llama-course data` again with the same recipe.")
    return read_json(Path(folder) / "data.json")
