"""A source as stages of a datatrove pipeline: readers, filters and writers, cut into tasks.

A pipeline of datatrove is a list of blocks. Each is called with the documents of the block before,
a *rank* and the *world size*: which task this is, of how many. A step that looks for duplicates
must see all documents of a source, and a rank sees only its own; so a source with such a step has
two stages: the steps before it in many tasks, then this step and what follows in a single one. A
rank's files are neighbours, so that one reads all documents in their first order, however many
tasks there were before.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

from llama_course.corpus.documents import SOUND, DamagedFile
from llama_course.corpus.filters import WHOLE_SOURCE, make_steps
from llama_course.corpus.inputs import relative
from llama_course.corpus.readers import RAW_FORMATS, dataset_parts, json_rows, row_documents
from llama_course.corpus.recipe import CorpusSource
from llama_course.data import Document, Funnel, text_bytes
from llama_course.support.disk import atomic_write, read_json, write_json
from llama_course.support.optional import need

on_document: list = []  # functions that are called whenever a document was read: progress bars


class CorpusStage(NamedTuple):
    "Blocks that every rank goes through."

    blocks: list
    tasks: int
    logs: Path  # completion markers, stats and logs
    out: Path  # what the last block writes


def to_trove(document: Document) -> Any:
    "The document as datatrove knows it, so that its own blocks may stand between ours."
    made = need("datatrove.data", "data").Document
    return made(text=document.text, id=document.name, metadata={"source": document.source})


def from_trove(document: Any) -> Document:
    "And back."
    return Document(document.metadata["source"], document.id, document.text)


class _Block:
    "What datatrove asks of a block: a name, stats, and a call with documents, rank and world size."

    def __init__(self, name: str):
        self.name = name
        self.begin()

    def begin(self) -> None:
        "Counts anew: one process may do several ranks."
        self.stats = need("datatrove.utils.stats", "data").Stats(self.name)

    def count(self, **numbers) -> None:
        for label, number in numbers.items():
            self.stats[label].update(number)

    def __repr__(self) -> str:
        return self.name


class ReadSource(_Block):
    "The documents of a rank's part of a source: whole files, neighbours of each other."

    def __init__(self, source: CorpusSource):
        super().__init__("read")
        self.source = source

    def units(self, rank: int, world_size: int) -> Iterator[tuple[str, Callable]]:
        "What is read whole or not at all: its name, and documents(bad), which reads it."
        source, files = self.source, self.source.files
        if source.kind == "dataset":
            rows = dataset_parts(source.path, source.options, rank, world_size)
            for part, own in rows.items():
                yield part, partial(row_documents, own, source.name, **source.columns)
            return
        read = RAW_FORMATS[source.kind].read
        for file in files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]:
            yield relative(file, source.root), partial(_of_file, read, file, source)

    def documents(self, rank: int, world_size: int, bad: Counter) -> Iterator[Document]:
        "All documents but those of damaged files, which are counted, and noted by name."
        damaged = []
        for part, read in self.units(rank, world_size):
            counts: Counter = Counter()
            try:
                yield from whole_or_none(read(counts))
                bad.update(counts)
            except DamagedFile as error:
                reason = str(error).replace(f"{self.source.root.rstrip('/')}/", "")
                damaged.append({"file": part, "reason": reason})
                bad["damaged file"] += 1
        write_json(Path(self.source.damaged) / f"{rank:05d}.json", damaged)

    def __call__(self, documents, rank, world_size):
        self.begin()
        bad: Counter = Counter()
        for document in self.documents(rank, world_size, bad):
            self.count(documents=1, bytes=text_bytes(document.text))
            for move in on_document:
                move()
            yield to_trove(document)
        self.count(**{f"bad {reason}": number for reason, number in bad.items()})


def _of_file(read: Callable, file: str, source: CorpusSource, bad: Counter) -> Iterator[Document]:
    return read(file, source.name, bad, source.columns)


def whole_or_none(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, once all of them were read; they wait on the disk if they are many.

    So a file that is damaged in its middle leaves nothing, and the outcome does not depend on where
    the damage is.
    """
    with SpooledTemporaryFile(max_size=2**26) as waiting:
        for d in documents:
            waiting.write(json.dumps([d.source, d.name, d.text]).encode() + b"\n")
        waiting.seek(0)
        for line in waiting:
            yield Document(*json.loads(line))


class ReadAgain(ReadSource):
    "What the first stage wrote."

    def __init__(self, source: CorpusSource, parts: Path):
        super().__init__(source)
        self.parts = parts

    def documents(self, rank, world_size, bad):
        return cleaned(self.parts, self.source.name)


class FunnelStep(_Block):
    "One step of a funnel, counted as a funnel counts."

    def __init__(self, made_by: str, options: dict, step: str):
        super().__init__(step)
        self.made_by, self.options, self.step = made_by, options, step

    def __call__(self, documents, rank, world_size):
        self.begin()
        steps = SOUND if self.made_by == "SOUND" else make_steps(self.made_by, self.options)
        funnel = Funnel({self.step: steps[self.step]}, examples=0)
        yield from map(to_trove, funnel(map(from_trove, documents)))
        self.count(**{key: value for key, value in funnel.counts[0].items() if key != "step"})


class WriteRank(_Block):
    "Writes a rank's documents as JSON lines, whole or not at all."

    def __init__(self, folder: Path):
        super().__init__("write")
        self.folder = Path(folder)

    def __call__(self, documents, rank, world_size):
        with atomic_write(self.folder / f"{rank:05d}.jsonl") as file:
            for document in documents:
                source = document.metadata["source"]
                row = {"id": document.id, "text": document.text, "source": source}
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                yield document


def cleaned(
    folder: str | Path,  # what `WriteRank` wrote to
    source: str,
) -> Iterator[Document]:
    "The documents that were written there, in the order of the ranks."
    for file in sorted(Path(folder).glob("*.jsonl")):
        yield from row_documents(json_rows(file, limit=-1), source, Counter())


def stages_of(
    source: CorpusSource,
    place: Path,  # where everything is written
    tasks: int,
) -> list[CorpusStage]:
    "The stages of a source: one, or two if a step must see all documents."
    chosen, work = source.filters, Path(place) / "work" / source.name
    source = replace(source, damaged=str((work / "damaged").resolve()))
    whole = [i for i, (name, _) in enumerate(chosen) if name in WHOLE_SOURCE]
    whole = whole if source.duplicates == "all" else []
    cut = whole[0] if whole else len(chosen)
    parts, clean = work / "parts", Path(place) / "clean" / source.name
    early = [FunnelStep("SOUND", {}, step) for step in SOUND] + _blocks(chosen[:cut])
    first = [ReadSource(source), *early, WriteRank(parts if whole else clean)]
    if not whole:
        return [CorpusStage(first, tasks, work / "1", clean)]
    again = [ReadAgain(source, parts), *_blocks(chosen[cut:]), WriteRank(clean)]
    return [CorpusStage(first, tasks, work / "1", parts), CorpusStage(again, 1, work / "2", clean)]


def _blocks(filters: Iterable[tuple[str, dict]]) -> list[FunnelStep]:
    "A block for each step; the rules of C4 are several."
    names = {name: make_steps(name, {}) if name == "c4_rules" else [name] for name, _ in filters}
    return [FunnelStep(name, chosen, step) for name, chosen in filters for step in names[name]]


def gather_counts(
    stage: CorpusStage,
) -> tuple[Counter, list[dict]]:  # the reader's numbers, the counts of each filter
    "What all ranks together counted, from the stats that each one wrote."
    total: list[Counter] = [Counter() for _ in stage.blocks]
    for file in sorted((stage.logs / "stats").glob("[0-9]*.json")):
        for numbers, block in zip(total, read_json(file)):
            for label, value in block["stats"].items():
                numbers[label] += int(value["total"] if isinstance(value, dict) else value)
    columns = ("documents_in", "documents_out", "bytes_in", "bytes_out")
    counts = [
        {"step": block.name} | {column: numbers[column] for column in columns}
        for block, numbers in zip(stage.blocks, total)
        if isinstance(block, FunnelStep)
    ]
    return total[0], counts
