"""The miniseries' texts: the Python sources of the packages that requirements.lock names.

Every machine that made `.venv` from the lock has them, and the same ones: hundreds of megabytes.
They are cleaned as chapter 5 cleans GitHub (line lengths, share of letters, opening comments on
rights, exact duplicates) and near duplicates go, too. Whole packages are held out, not lines or
files. These are read first, so that a copy elsewhere goes and the held-out original stays.
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from llama_course.corpus.installed import canonical
from llama_course.data import Document, Funnel, sample
from llama_course.sources import (
    ExactDuplicates,
    NearDuplicates,
    mostly_alphanumeric,
    short_lines,
    without_header,
)
from llama_course.support.disk import read_json, write_json
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, write_shard
from llama_course.tokenizer import Tokenizer

LOCK = Path(__file__).parents[1] / "requirements.lock"
HELD_OUT = ("networkx", "sqlalchemy", "docutils", "werkzeug", "mpmath")
HELD_OUT_BYTES = 160_000  # of each, roughly, are priced
VOCABULARY = 1024


def locked() -> dict[str, str]:  # canonical name -> version
    "What requirements.lock names."
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(), flags=re.M)
    return {canonical(name): version for name, version in lines}


def sources() -> Iterator[Document]:
    "Every Python file of the locked packages, held-out packages first. Raises `UserError`."
    wanted = locked()
    found = {canonical(p.name): p for p in importlib.metadata.distributions()}
    other = [n for n in wanted if n in found and found[n].version.split("+")[0] != wanted[n]]
    if other:
        raise UserError(f"{other[0]} is installed in another version than {LOCK} says.")
    if missing := [name for name in HELD_OUT if name not in found]:
        raise UserError(f"{missing[0]} is not installed: make .venv from {LOCK}.")
    for name in sorted(set(wanted) & set(found), key=lambda name: (name not in HELD_OUT, name)):
        for file in sorted(found[name].files or [], key=str):
            path = Path(found[name].locate_file(file))
            if file.suffix != ".py" or ".." in file.parts:
                continue
            try:
                yield Document(name, file.as_posix(), path.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, OSError):
                continue  # test data that is wrong on purpose; files that were removed


def cleaned() -> tuple[list[Document], dict[str, list[Document]], list[dict]]:
    "To train on; held out, by package; what each step of cleaning left."
    funnel = Funnel(
        {
            "short lines": short_lines,
            "mostly alphanumeric": mostly_alphanumeric,
            "without header": without_header,
            "not empty": lambda document: document if document.text.strip() else None,
            "exact duplicates": ExactDuplicates(),
            "near duplicates": NearDuplicates(count=64),
        },
        examples=0,
    )
    train, held_out = [], {name: [] for name in HELD_OUT}
    for number, document in enumerate(funnel(sources())):
        held_out.get(document.source, train).append(document)
        if number % 1000 == 0:
            print(f"{number} documents", file=sys.stderr, flush=True)
    return train, held_out, funnel.counts


def prepare(
    folder: Path,  # gets the tokenizer, the shards and texts.json
) -> tuple[Tokenizer, Shard, dict[str, Shard]]:  # and what to train on; held out, by package
    "The texts as tokens, made once. The documents stand in the order of a hash of their names."
    path, about = folder / "tokenizer.model", folder / "texts.json"
    if not about.exists():
        train, held_out, counts = cleaned()
        size = sum(len(d.text.encode()) for d in train)
        train = sample(train, size)  # in the order of the hash: a prefix is a random sample
        # of 1,024 pieces 259 are bytes and control tokens: other alphabets than ASCII are bytes
        read = (d.text for d in train[:3000] if d.text.isascii())
        tokenizer = Tokenizer.train(read, VOCABULARY, path)
        for name, documents in held_out.items():
            write_shard(folder / f"{name}.tokens", sample(documents, HELD_OUT_BYTES), tokenizer)
        shard = write_shard(folder / "train.tokens", train, tokenizer)
        write_json(
            about,
            {
                "packages": len({d.source for d in train}),
                "documents": len(train),
                "bytes": size,
                "tokens": len(shard),
                "cleaning": counts,
            },
        )
    tokenizer = Tokenizer.load(path)
    held = {name: Shard(folder / f"{name}.tokens", tokenizer) for name in HELD_OUT}
    return tokenizer, Shard(folder / "train.tokens", tokenizer), held


def texts(folder: Path) -> dict:
    "What texts.json says."
    return read_json(folder / "texts.json")
