"""The recipe: one readable TOML file says what to read, how to clean it, and its share of what the
model reads.

`example.toml` beside this file is the paper's Table 1 as a recipe.
"""

import json
import re
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llama_course.corpus.filters import chosen_filter, example_files, files_there
from llama_course.corpus.readers import RAW_FORMATS
from llama_course.support.errors import UserError
from llama_course.support.options import OptionError, from_dict, option, options

DATASET_KINDS = ("arrow", "csv", "json", "parquet", "text", "webdataset", "xml")  # of load_dataset
EXAMPLE_RECIPE = Path(__file__).with_name("example.toml").read_text(encoding="utf-8")


@options
class SourceOptions:
    "A table [sources.NAME]."

    proportion: float = option(help="of all tokens that the model reads", gt=0, le=1)
    kind: Literal["warc", "jsonl", "text", "wikipedia", "stackexchange", "dataset"] = option(
        help="of its files; dataset: a data set of Hugging Face"
    )
    path: str = option(
        help="a file, a folder or a pattern, relative to the recipe; a data set's name"
    )
    filters: list = option(list, "names, or tables with a name and options")
    duplicates: Literal["all", "task"] = option(
        "all", "are looked for in the source, or in each task"
    )
    options: dict = option(dict, "of datasets.load_dataset")
    text: str = option("text", "the column of the text")
    name: str = option("id", "the column of the name")


@options
class TokenOptions:
    "The table [tokens]."

    tokenizer: Path | None = option(None, "with a tokenizer, token shards are written as well")
    held_out: float = option(
        0.05, "share of the documents of each source that nobody trains on", gt=0, lt=1
    )


@options
class CorpusRecipe:
    "The whole file."

    tasks: int = option(
        1, "each source is cut into so many; a finished one is never done again", ge=1
    )
    workers: int = option(1, "so many tasks run side by side", ge=1)
    executor: Literal["local", "slurm", "ray"] = option("local", "what runs the tasks")
    tokens: TokenOptions = option(TokenOptions, "the tokenizer")
    slurm: dict = option(dict, "options of datatrove's SlurmPipelineExecutor")
    ray: dict = option(dict, "options of datatrove's RayPipelineExecutor")
    sources: dict = option(
        dict, "name -> SourceOptions; `load_corpus_recipe` makes each a CorpusSource"
    )


@dataclass(frozen=True)
class CorpusSource:
    "A source with its input files and its filters."

    name: str
    proportion: float
    kind: str
    path: str
    files: list[str]  # none where it is a data set
    filters: list[tuple[str, dict]]  # name, the options that were given
    columns: dict  # "text" and "name", where they were given
    options: dict  # of load_dataset
    duplicates: str
    asked: dict  # what the recipe says, but for the proportion
    inputs: list[str]  # all local files that decide what comes out
    root: str  # the recipe's folder
    damaged: str = ""  # where tasks note the files that they could not read


def load_corpus_recipe(
    path: str | Path,  # a TOML file
) -> CorpusRecipe:
    "The recipe, checked; its paths are absolute. Raises `UserError` that names the key."
    place = Path(path)
    try:
        values = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the recipe {path}: {error.strerror};"
            " `llama-course data --example` prints one."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {error}.") from None
    try:
        return _complete(from_dict(CorpusRecipe, values), place.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _complete(recipe: CorpusRecipe, root: Path) -> CorpusRecipe:
    "The recipe with its sources read and its paths resolved. Raises `UserError`."
    if not recipe.sources:
        raise UserError("sources: there is none: add a table [sources.NAME].")
    found = {name: _source(name, about, root) for name, about in recipe.sources.items()}
    if abs((total := sum(source.proportion for source in found.values())) - 1) > 1e-6:
        raise UserError(
            f"sources: the proportions sum to {total:g}, they must sum to 1: change one of them."
        )
    tokenizer = recipe.tokens.tokenizer
    tokens = replace(recipe.tokens, tokenizer=tokenizer and root / tokenizer)
    return replace(recipe, sources=found, tokens=tokens)


def _source(name: str, about: Any, root: Path) -> CorpusSource:
    "What the table of a source says, with the files that are there. Raises `UserError`."
    where = f"sources.{name}"
    if not isinstance(about, dict):
        raise UserError(f"{where}: a table [{where}] is wanted.")
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise UserError(f"{where}: letters, digits, - and _ make a name.")
    try:
        read = from_dict(SourceOptions, about)
    except OptionError as error:
        raise UserError(f"{where}.{error}") from None
    filters = []
    for i, entry in enumerate(read.filters):
        try:
            filters.append(chosen_filter(entry, root))
        except UserError as error:
            raise UserError(f"{where}.filters[{i}]{error}") from None
    path, files = str(root / read.path), []
    chosen = read.options
    if read.kind == "dataset":
        is_kind = read.path in DATASET_KINDS
        path = path if Path(path).exists() and not is_kind else read.path
        try:
            chosen, inputs = _data_files(read.options, root, is_kind)
        except UserError as error:
            raise UserError(f"{where}.options.data_files: {error}") from None
        inputs += files_there(path) if Path(path).exists() and not is_kind else []
    elif not (files := files_there(path, RAW_FORMATS[read.kind].patterns)):
        there = "has no such files" if Path(path).exists() else "does not exist"
        wanted = f"a {read.kind} source needs a file, folder or pattern"
        raise UserError(f"{where}.path: {path} {there}: {wanted}.")
    else:
        inputs = list(files)
    columns = {key: about[key] for key in ("text", "name") if key in about}
    asked = asdict(read)
    del asked["proportion"]
    inputs += [file for _, given in filters for file in example_files(given)]
    return CorpusSource(
        name,
        read.proportion,
        read.kind,
        path,
        files,
        filters,
        columns,
        chosen,
        read.duplicates,
        json.loads(json.dumps(asked)),
        sorted(set(inputs)),
        str(root),
    )


def _data_files(chosen: dict, root: Path, is_kind: bool) -> tuple[dict, list[str]]:
    """The options with local `data_files` relative to the recipe, and these files.

    Of a data set on the hub, files that are not beside the recipe are the hub's. Raises
    `UserError`.
    """
    found: list[str] = []

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [resolved(one) for one in value]
        if not isinstance(value, str) or "://" in value:
            return value
        files = files_there(root / value)
        if is_kind and not files:
            raise UserError(f"{root / value} does not exist: paths are relative to the recipe.")
        found.extend(files)
        return str((root / value).absolute()) if files else value

    if "data_files" not in chosen:
        return dict(chosen), found
    return chosen | {"data_files": resolved(chosen["data_files"])}, found
