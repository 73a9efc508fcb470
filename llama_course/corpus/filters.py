"""The filters that a recipe can name: the steps of chapters 4 and 5, each with its options.

A filter is an options class; `steps()` makes the step, or several by name. Some learn from
examples first: from a language model of good text, or from pages that are cited.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from llama_course import sources, web
from llama_course.corpus.documents import read_document
from llama_course.support.errors import UserError
from llama_course.support.options import OptionError, from_dict, option, options


@options
class ShortLinesFilter:
    "Drops a program whose lines are too long. (sec. 2.1; the numbers: arXiv 2401.14196)"

    mean: float = option(100.0, "characters of a line on average, at most", ge=0)
    longest: int = option(1000, "characters of the longest line, at most", ge=1)

    def steps(self):
        return partial(sources.short_lines, mean=self.mean, longest=self.longest)


@options
class MostlyAlphanumericFilter:
    "Drops a program with too few letters and digits. (sec. 2.1)"

    least: float = option(0.25, "share of the characters", ge=0, le=1)

    def steps(self):
        return partial(sources.mostly_alphanumeric, least=self.least)


@options
class NearDuplicatesFilter:
    "Drops a document that overlaps with an earlier one. (sec. 2.1)"

    threshold: float = option(0.9, "of the Jaccard index", gt=0, le=1)
    count: int = option(256, "numbers of a signature", ge=32)
    size: int = option(5, "words of a shingle", ge=1)

    def steps(self):
        return sources.NearDuplicates(self.threshold, self.count, self.size)


@options
class SpansFilter:
    "Drops sentences in spans that were seen before. (C4)"

    size: int = option(3, "sentences in a span", ge=1)

    def steps(self):
        return web.SpanDedup(self.size)


@options
class LanguageFilter:
    "Keeps what is probably in this language. (CCNet; LLaMA, sec. 2.1)"

    label: str = option("en", "as py3langid names it")
    at_least: float = option(0.5, "probability", ge=0, le=1)

    def steps(self):
        return web.Classified(web.Langid(), self.label, self.at_least)


@options
class PerplexityFilter:
    "Drops what surprises an n-gram model of good text. (CCNet, sec. 3.4)"

    good: Path = option(help="a file of good text, or a folder of them")
    limit: float = option(help="perplexity, at most", gt=0)
    order: int = option(5, "pieces of an n-gram", ge=1)

    def steps(self):
        texts = [line for text in _texts(self.good) for line in text.splitlines() if line.strip()]
        vocabulary = len({piece for text in texts for piece in _words(text)}) + 1
        model = web.NGramModel(_words, self.order, vocab_size=vocabulary).fit(texts)
        return web.NotSurprising(model, self.limit)


@options
class CitedFilter:
    "Keeps pages that look more like the first examples than like the second. (LLaMA, sec. 2.1)"

    yes: Path = option(help="pages that are cited: a folder of files")
    no: Path = option(help="random pages: a folder of files")
    at_least: float = option(0.5, "probability", ge=0, le=1)

    def steps(self):
        good, other = _texts(self.yes), _texts(self.no)
        labels = ["cited"] * len(good) + ["random"] * len(other)
        classifier = web.LinearClassifier(web.word_ngrams).fit(good + other, labels)
        return web.Classified(classifier, "cited", self.at_least)


@options
class BadWordsFilter:
    "Drops a page with any word of a list. (C4)"

    words: Path = option(help="a file, one word on a line")

    def steps(self):
        lines = _texts(self.words)[0].splitlines()
        return web.NoBadWords([word.strip().lower() for word in lines if word.strip()])


# name -> its options; what makes the step where there are no options
FILTERS: dict[str, type] = {
    "short_lines": ShortLinesFilter,
    "mostly_alphanumeric": MostlyAlphanumericFilter,
    "near_duplicates": NearDuplicatesFilter,
    "spans": SpansFilter,
    "language": LanguageFilter,
    "perplexity": PerplexityFilter,
    "cited": CitedFilter,
    "bad_words": BadWordsFilter,
}
PLAIN_FILTERS: dict[str, Callable[[], Any]] = {
    "without_header": lambda: sources.without_header,
    "exact_duplicates": sources.ExactDuplicates,
    "plain_wikitext": lambda: sources.plain_wikitext,
    "without_tex_comments": lambda: sources.without_tex_comments,
    "with_macros_expanded": lambda: sources.with_macros_expanded,
    "paper_body": lambda: sources.paper_body,
    "without_html": lambda: sources.without_html,
    "paragraphs": web.ParagraphDedup,
    "c4_rules": web.c4_rules,
}
# these must see all documents of a source
WHOLE_SOURCE = {"exact_duplicates", "near_duplicates", "paragraphs", "spans"}


def make_steps(
    name: str,  # of FILTERS or PLAIN_FILTERS
    chosen: dict,  # its options
) -> dict[str, Callable]:  # name -> step
    "The step of that name, or the steps. Raises `UserError` for wrong options."
    made = (
        PLAIN_FILTERS[name]() if name in PLAIN_FILTERS else from_dict(FILTERS[name], chosen).steps()
    )
    return made if isinstance(made, dict) else {name: made}


def chosen_filter(
    entry: Any,  # of a recipe: a name, or a table with a name and options
    root: Path,  # where relative paths begin
) -> tuple[str, dict]:  # the name, the options that were given; paths are absolute
    "A filter as the recipe names it. Raises `UserError` for an unknown one or a wrong option."
    given = dict(entry) if isinstance(entry, dict) else {"name": entry}
    name = given.pop("name", None)
    known = [*FILTERS, *PLAIN_FILTERS]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
        raise UserError(f": there is no filter {name!r}; {hint}")
    if name in PLAIN_FILTERS and given:
        raise UserError(f": {name} takes no {next(iter(given))!r}: it has no options.")
    if name in PLAIN_FILTERS:
        return name, given
    kind = FILTERS[name]
    try:
        from_dict(kind, given)
    except OptionError as error:
        raise UserError(f": {name}: {error}") from None
    for key in (field.name for field in dataclasses.fields(kind) if field.name in given):
        if typing.get_type_hints(kind)[key] is Path:
            given[key] = str(root / given[key])
            if not files_there(given[key]):
                raise UserError(f": {name}: {given[key]} does not exist: give files of text.")
    return name, given


def files_there(
    path: str | Path,  # a file, a folder, or a pattern
    patterns: tuple[str, ...] = ("*",),  # which files of a folder
) -> list[str]:
    "The files, in the order of their names; none is hidden."
    place = Path(path)
    found: list = [path] if place.is_file() else glob(str(path), recursive=True)
    if place.is_dir():
        found = [file for pattern in patterns for file in place.rglob(pattern)]
    return sorted({str(f) for f in found if Path(f).is_file() and not Path(f).name.startswith(".")})


def example_files(
    given: dict,  # options of a filter, as `chosen_filter` has them
) -> list[str]:
    "The files that the filter learns from."
    paths = [value for value in given.values() if isinstance(value, str) and Path(value).exists()]
    return [file for path in paths for file in files_there(Path(path).absolute())]


def _texts(path) -> list[str]:
    "The text of every file there."
    return [read_document(file, "examples").text for file in files_there(path)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
