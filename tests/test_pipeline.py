"The pipeline: the same documents however it runs, nothing lost, the same end after a kill."

import bz2
import gzip
import json
import os
import re
import shutil
import signal
import sys
import time
import tomllib
from collections import Counter
from xml.parsers.expat import ExpatError

import numpy as np
import pytest
from forked import COMMAND, Forked, as_program, in_own_group, llama_course, ran

pytest.importorskip("datatrove", reason="the pipeline needs llama_course[data]")

from llama_course.command.cli import main  # noqa: E402
from llama_course.corpus.build import (  # noqa: E402
    build_corpus,
    cleaned,
    describe_corpus,
    prepared,
    verify_corpus,
)
from llama_course.corpus.documents import GIGANTIC, SOUND, not_gigantic  # noqa: E402
from llama_course.corpus.dumps import stackexchange_posts, wiki_pages  # noqa: E402
from llama_course.corpus.filters import make_steps  # noqa: E402
from llama_course.corpus.readers import RAW_FORMATS, dataset_parts, json_rows  # noqa: E402
from llama_course.corpus.recipe import EXAMPLE_RECIPE, load_corpus_recipe  # noqa: E402
from llama_course.corpus.stages import stages_of  # noqa: E402
from llama_course.data import Document, Funnel, Loader, standard_library  # noqa: E402
from llama_course.support.errors import UserError  # noqa: E402
from llama_course.support.shards import Shard  # noqa: E402
from llama_course.tokenizer import Tokenizer  # noqa: E402

WORDS = """the quick brown fox jumps over a lazy dog while rain falls on seven quiet hills
by day and night""".split()


def prose(i, length=60):
    words = [WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(length)]
    return (
        "".join(" ".join(words[j : j + 12]) + "\n" for j in range(0, length, 12)) + f"number {i}.\n"
    )


def lay_out(folder, texts, files, prefix="d"):
    folder.mkdir(parents=True, exist_ok=True)
    for f in range(files):
        rows = [
            json.dumps({"id": f"{prefix}{i}", "text": texts[i]})
            for i in range(f, len(texts), files)
        ]
        (folder / f"{f:03d}.jsonl").write_text(
            "".join(row + "\n" for row in rows), encoding="utf-8"
        )


def recipe(folder, filters=(), kind="jsonl", path="in", top="", more="", name="recipe.toml"):
    chosen = json.dumps(list(filters))
    (folder / name).write_text(
        f'{top}\n[sources.s]\nproportion = 1\nkind = "{kind}"\npath = "{path}"\n'
        f"filters = {chosen}\n{more}",
        encoding="utf-8",
    )
    return folder / name


def texts_of(out, source="s"):
    return [(d.name, d.text) for d in cleaned(out / "clean" / source, source)]


@pytest.fixture(scope="module")
def code():
    return [d for d in standard_library() if len(d.text) < 20_000][:120]


# readers


def read(path, kind="jsonl", **options):
    bad = Counter()
    return list(RAW_FORMATS[kind].read(str(path), "s", bad, options)), bad


def test_json_lines_packed_or_not(tmp_path):
    lines = b'{"id": "a", "text": "x"}\n\n{"text": "y"}\n[1]\nno\n{"id": "c"}\n{"text": 5}\n'
    lines += b'{"text": "\xff"}\n{"text": ""}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("a.jsonl", "a.jsonl.gz"):
        found, bad = read(tmp_path / name)
        wanted = [("a", "x"), (f"{name}:3", "y"), (f"{name}:8", "\udcff"), (f"{name}:9", "")]
        assert [(d.name, d.text) for d in found] == wanted
        assert bad == {"not a JSON object": 2, "no text under 'text'": 2}
    (tmp_path / "b.jsonl").write_text('{"body": "x", "url": "u"}\n')
    assert read(tmp_path / "b.jsonl", text="body", name="url")[0] == [Document("s", "u", "x")]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 5000)[:-20])
    with pytest.raises(UserError, match="a.jsonl.gz cannot be read to its end"):
        read(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.xml").write_text("<posts><row Id='1' ")
    with pytest.raises(UserError, match="a.xml cannot be read to its end"):
        read(tmp_path / "a.xml", "stackexchange")
    with pytest.raises(UserError, match="a.xml cannot be read to its end"):
        read(tmp_path / "a.xml", "wikipedia")


def test_a_line_without_end_is_not_held_in_memory(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * 5000 + b'"}\n{"text": "y"}\n')
    rows = list(json_rows(tmp_path / "a.jsonl", limit=1000))
    assert rows == [("a.jsonl:1", None), ("a.jsonl:2", {"text": "y"})]


def test_bad_documents_are_counted_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    files = {
        "empty": b"",
        "blank": b" \n",
        "binary": b"\x7fELF\0\0",
        "latin": "schön".encode("latin-1") * 9,
        "utf16": "text".encode("utf-16"),
        "good": b"good text",
        "bom": b"\xef\xbb\xbfwith a mark",
        "huge": b"x" * 5000,
    }
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    monkeypatch.setitem(SOUND, "gigantic", lambda d: not_gigantic(d, 1000))
    made = build_corpus(recipe(tmp_path, kind="text"), tmp_path / "out")["sources"]["s"]
    gone = {c["step"]: c["documents_in"] - c["documents_out"] for c in made["steps"]}
    assert made["read"] == 8 == made["documents"] + sum(gone.values())
    assert gone == {
        "empty": 2,
        "gigantic": 1,
        "binary": 2,
        "wrongly encoded": 1,
    }  # UTF-16 is full of NUL
    assert [text for _, text in texts_of(tmp_path / "out")] == ["with a mark", "good text"]


# the same documents

FILTERS = [
    "short_lines",
    "mostly_alphanumeric",
    "without_header",
    "exact_duplicates",
    "near_duplicates",
]


def test_tasks_and_workers_change_nothing(tmp_path, code):
    texts = [d.text for d in code]
    lay_out(tmp_path / "in", texts + texts[:20], 7)
    steps = {name: step for f in FILTERS for name, step in make_steps(f, {}).items()}
    funnel, files = Funnel(SOUND | steps), sorted((tmp_path / "in").iterdir())
    loop = [(d.name, d.text) for d in funnel(d for file in files for d in read(file)[0])]
    for tasks, workers in ((1, 1), (3, 1), (10, 2)):
        top = f"tasks = {tasks}\nworkers = {workers}"
        made = build_corpus(recipe(tmp_path, FILTERS, top=top), tmp_path / f"{tasks}")["sources"][
            "s"
        ]
        assert texts_of(tmp_path / f"{tasks}") == loop, (tasks, workers)
        assert [list(c.values()) for c in made["steps"]] == [
            list(c.values()) for c in funnel.counts
        ]
    assert len(loop) < 140 and made["bad"] == {}


def test_a_step_that_must_see_everything_makes_a_second_stage(tmp_path):
    lay_out(tmp_path / "in", [prose(0)], 1)
    read = load_corpus_recipe(
        recipe(tmp_path, ["short_lines", "exact_duplicates", "without_header"], top="tasks = 4")
    )
    shown = [
        (stage.tasks, [str(b) for b in stage.blocks])
        for stage in stages_of(read.sources["s"], tmp_path, read.tasks)
    ]
    assert shown == [
        (4, ["read", *SOUND, "short_lines", "write"]),
        (1, ["read", "exact_duplicates", "without_header", "write"]),
    ]


def test_data_files_are_found_beside_the_recipe(tmp_path):
    lay_out(tmp_path / "in", [prose(0)], 1)
    for files in ("in/*.jsonl", f"{tmp_path}/in/*.jsonl"):
        path = recipe(
            tmp_path, kind="dataset", path="json", more=f'options = {{ data_files = "{files}" }}'
        )
        assert load_corpus_recipe(path).sources["s"].options == {
            "data_files": f"{tmp_path}/in/*.jsonl"
        }


def test_duplicates_within_a_task_only(tmp_path):
    lay_out(tmp_path / "in", [prose(0)] * 4, 4)
    task = recipe(tmp_path, ["exact_duplicates"], top="tasks = 2", more='duplicates = "task"')
    assert build_corpus(task, tmp_path / "task")["sources"]["s"]["documents"] == 2
    whole = recipe(tmp_path, ["exact_duplicates"], top="tasks = 2")
    assert build_corpus(whole, tmp_path / "all")["sources"]["s"]["documents"] == 1


def test_a_filter_may_stand_twice(tmp_path):
    lay_out(tmp_path / "in", ["a" * 90, "a" * 50, "a"], 1)
    short = '{{ name = "short_lines", longest = {} }}'
    filters = f'[{short.format(60)}, "exact_duplicates", {short.format(20)}]'
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("filters = []", f"filters = {filters}"))
    made = build_corpus(path, tmp_path / "out")["sources"]["s"]
    assert [c["documents_out"] for c in made["steps"][-3:]] == [2, 2, 1] and texts_of(
        tmp_path / "out"
    ) == [("d2", "a")]


def test_data_sets_are_streamed(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": str(i), "text": prose(i)} for i in range(40)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    made = build_corpus(
        recipe(tmp_path, kind="dataset", path="set", top="tasks = 3"), tmp_path / "out"
    )
    assert made["sources"]["s"]["read"] == 40 and [
        name for name, _ in texts_of(tmp_path / "out")
    ] == [r["id"] for r in rows]
    lay_out(tmp_path / "in", [r["text"] for r in rows], 5)
    more = f'options = {{ data_files = "{tmp_path}/in/*.jsonl" }}'
    for tasks in (1, 8):
        path = recipe(tmp_path, kind="dataset", path="json", top=f"tasks = {tasks}", more=more)
        assert build_corpus(path, tmp_path / f"json{tasks}")["sources"]["s"]["documents"] == 40
    with pytest.raises(UserError, match="data set no/such-set cannot be opened"):
        os.environ["HF_HUB_OFFLINE"] = "1"
        list(dataset_parts("no/such-set", {}))


# the recipe


def test_the_example_runs_as_it_stands(tmp_path):
    (
        pytest.importorskip("mwparserfromhell"),
        pytest.importorskip("warcio"),
        pytest.importorskip("py3langid"),
    )
    from llama_course.corpus.warc import write_warc

    english = "This is a sentence about the weather in England, and it has many words. " * 3
    page = lambda i: f"<p>{english}{prose(i)}</p><p>{prose(i + 50)}</p>".encode()
    pages = [(f"http://a.b/{i}", "text/html", page(i)) for i in range(6)]
    (tmp_path / "commoncrawl").mkdir()
    write_warc(tmp_path / "commoncrawl" / "a.warc.gz", pages)
    line = lambda i, j: f"Here the {WORDS[i + j]} of {WORDS[9 + i]} ends with a full stop."
    lay_out(tmp_path / "c4", ["\n".join(line(i, j) for j in range(5)) for i in range(4)], 2)
    lay_out(tmp_path / "github", ["# Copyright X\nx = 1\n", "y = 1\n", "y = 1\n", "z" * 2000], 1)
    for name in ("wikipedia", "books", "arxiv/one", "stackexchange"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "wikipedia" / "w.xml").write_text(
        "<mediawiki xmlns='http://x/'><page><title>Tea</title><ns>0</ns>"
        "<revision><text>'''Tea''' is [[hot]].</text></revision></page></mediawiki>"
    )
    for i in range(3):
        (tmp_path / "books" / f"{i}.txt").write_text(prose(1 if i else 0, 500))
    (tmp_path / "arxiv" / "one" / "a.tex").write_text(r"\def\a{b}\begin{document}\section{S}\a % c")
    (tmp_path / "stackexchange" / "Posts.xml").write_text(
        '<posts><row Id="1" PostTypeId="1" Title="Q" Body="&lt;p&gt;q&lt;/p&gt;" /></posts>'
    )
    (tmp_path / "recipe.toml").write_text(EXAMPLE_RECIPE.replace("workers = 2", "workers = 1"))
    made = build_corpus(tmp_path / "recipe.toml", tmp_path / "out")
    documents = {name: about["documents"] for name, about in made["sources"].items()}
    assert documents == {
        "CommonCrawl": 6,
        "C4": 4,
        "GitHub": 2,
        "Wikipedia": 1,
        "Books": 2,
        "ArXiv": 1,
        "StackExchange": 1,
    }
    assert texts_of(tmp_path / "out", "ArXiv")[0][1] == "\\section{S}b\n"
    assert texts_of(tmp_path / "out", "Wikipedia")[0] == ("Tea", "Tea\n\nTea is hot.\n")


def test_filters_that_learn_from_examples(tmp_path):
    for name, texts in (
        ("good", [prose(i) for i in range(40)]),
        ("odd", [f"zzz{i} qq{i} 7{i}7 " * 20 for i in range(40)]),
    ):
        (tmp_path / name).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / name / f"{i}.txt").write_text(text)
    (tmp_path / "in").mkdir()
    (
        (tmp_path / "in" / "prose").write_text(prose(99)),
        (tmp_path / "in" / "noise").write_text("zzz3 qq5 777 zzz9 qq9"),
    )
    for entry in (
        '{ name = "perplexity", good = "good", limit = 60 }',
        '{ name = "cited", yes = "good", no = "odd" }',
    ):
        path = recipe(tmp_path, kind="text")
        path.write_text(path.read_text().replace("filters = []", f"filters = [{entry}]"))
        out = tmp_path / re.search("perplexity|cited", entry)[0]
        build_corpus(path, out)
        assert [text for _, text in texts_of(out)] == [prose(99)], entry


GOOD = '[sources.s]\nproportion = 1\nkind = "jsonl"\npath = "in"\nfilters = ["short_lines"]\n'
WRONG = {  # what is changed -> what the line must name
    ('"short_lines"', '"short_line"'): [
        "sources.s.filters[0]",
        "short_line",
        "did you mean short_lines",
    ],
    ('"short_lines"', '{ name = "short_lines", mean = 1, longer = 2 }'): [
        "filters[0]",
        "longer is not an option",
        "did you mean longest",
    ],
    ('"short_lines"', '{ name = "perplexity" }'): ["filters[0]", "perplexity: good is missing"],
    ('"short_lines"', "7"): ["filters[0]", "no filter"],
    ('"short_lines"', '{ name = "short_lines", mean = "a" }'): [
        "filters[0]",
        "mean must be a number, not 'a'",
    ],
    ('"short_lines"', '{ name = "language", at_least = true }'): [
        "filters[0]",
        "at_least",
        "a number",
    ],
    ('"short_lines"', '{ name = "spans", size = 0 }'): [
        "filters[0]",
        "size must be 1 or more, not 0",
    ],
    ('"short_lines"', '{ name = "bad_words", words = "none.txt" }'): [
        "bad_words",
        "none.txt",
        "does not exist",
    ],
    ('"short_lines"', '{ name = "paper_body", least = 2 }'): [
        "filters[0]",
        "paper_body takes no 'least'",
    ],
    ("= 1", "= 0.5"): ["proportions sum to 0.5", "must sum to 1"],
    ("= 1", "= 0"): ["sources.s.proportion"],
    ("= 1", "= true"): ["sources.s.proportion", "a number"],
    ("= 1", "= nan"): ["sources.s.proportion"],
    ('"in"', '"out of reach"'): ["sources.s.path", "does not exist"],
    ('"jsonl"', '"warc"'): ["sources.s.path", "has no such files"],
    ('"jsonl"', '"jason"'): ["sources.s.kind", "jsonl, text"],
    ("kind", "kin"): ["sources.s.kin", "did you mean kind"],
    ('kind = "jsonl"\n', ""): ["sources.s.kind is missing"],
    ("[sources.s]", "[sources]"): ["sources.proportion"],
    ("[sources.s]", '[sources."../s"]'): ["letters, digits"],
    ("[sources.s]", "tasks = 0\n[sources.s]"): ["tasks must be 1 or more, not 0"],
    ("[sources.s]", 'tasks = "4"\n[sources.s]'): ["tasks", "whole number"],
    ("[sources.s]", 'executor = "cloud"\n[sources.s]'): ["executor", "local, slurm or ray"],
    ("[sources.s]", "task = 4\n[sources.s]"): ["task is not", "did you mean tasks"],
    ("[sources.s]", '[tokens]\ntokenizer = "none.model"\n[sources.s]'): ["none.model"],
    ("[sources.s]", "[tokens]\nvocab = 3\n[sources.s]"): ["tokens: vocab"],
    ('filters = ["short_lines"]', 'duplicates = "some"'): ["sources.s.duplicates"],
    ("[sources.s]", "[sources.s"): ["is no TOML", "line 1"],
    (GOOD, ""): ["sources: there is none"],
    (GOOD, "\udcff"): ["is no TOML"],
}


@pytest.mark.parametrize("change, words", WRONG.items(), ids=lambda value: str(value)[:40])
def test_a_bad_recipe_gets_one_line_with_the_key(tmp_path, change, words):
    lay_out(tmp_path / "in", [prose(0)], 1)
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    (tmp_path / "r.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        build_corpus(tmp_path / "r.toml", tmp_path / "out")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_source_without_documents_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("no\n\n")
    with pytest.raises(UserError, match=r"sources.s: not one document in .*not a JSON object"):
        build_corpus(recipe(tmp_path), tmp_path / "none")
    lay_out(tmp_path / "in", ["a" * 2000] * 3, 1)
    with pytest.raises(
        UserError, match="sources.s: its filters left none of 3 documents.*short_lines"
    ):
        build_corpus(recipe(tmp_path, ["short_lines"]), tmp_path / "all gone")


# going on


def test_the_folder_remembers_what_it_was_begun_with(tmp_path):
    lay_out(tmp_path / "in", [prose(i) for i in range(9)], 3)
    out = tmp_path / "out"
    first = build_corpus(recipe(tmp_path, ["short_lines"], top="tasks = 2"), out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("clean/s/*")}
    assert (
        build_corpus(recipe(tmp_path, ["short_lines"], top="tasks = 2\nworkers = 2"), out) == first
    )
    assert {
        p: p.stat().st_mtime_ns for p in out.rglob("clean/s/*")
    } == stamps  # nothing was done again
    for filters, top in ((["without_header"], "tasks = 2"), (["short_lines"], "tasks = 3")):
        with pytest.raises(UserError, match="was begun with other (filters|tasks) for s"):
            build_corpus(recipe(tmp_path, filters, top=top), out)
    (tmp_path / "in" / "000.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(UserError, match="other input files for s"):
        build_corpus(recipe(tmp_path, ["short_lines"], top="tasks = 2"), out)
    with pytest.raises(UserError, match="holds other files"):
        build_corpus(recipe(tmp_path), tmp_path / "in")


def break_off(path):
    "The file, cut short; what it was."
    good = path.read_bytes()
    path.write_bytes(good[: len(good) * 2 // 3])
    return good


def crawl(path, numbers):
    from llama_course.corpus.warc import write_warc

    write_warc(path, [(f"http://a.b/{i}", "text/plain", prose(i).encode()) for i in numbers])


def json_lines(path, numbers):
    rows = [json.dumps({"id": f"http://a.b/{i}", "text": prose(i)}) + "\n" for i in numbers]
    path.write_bytes(gzip.compress("".join(rows).encode()))


def dump(path, numbers):
    page = "<page><title>http://a.b/{}</title><ns>0</ns><revision><text>{}</text></revision></page>"
    pages = "".join(page.format(i, prose(i)) for i in numbers)
    path.write_bytes(bz2.compress(f"<mediawiki>{pages}</mediawiki>".encode()))


def table(path, numbers):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"id": [f"http://a.b/{i}" for i in numbers], "text": [prose(i) for i in numbers]}
    pq.write_table(pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), path)


@pytest.mark.parametrize("filters", [[], ["exact_duplicates"]])
@pytest.mark.parametrize(
    "kind, name, write",
    [
        ("warc", "{}.warc.gz", crawl),
        ("jsonl", "{}.jsonl.gz", json_lines),
        ("wikipedia", "{}.xml.bz2", dump),
        ("dataset", "{}.parquet", table),
    ],
)
def test_a_damaged_file_is_left_out_and_may_be_replaced(kind, name, write, filters, tmp_path):
    "The outcome without it is that of the good files alone; with the whole one, that of all."
    if kind == "warc":
        pytest.importorskip("warcio")
    files = [tmp_path / "in" / name.format(i) for i in range(3)]
    (tmp_path / "in").mkdir()
    for i, file in enumerate(files):
        write(file, range(10 * i, 10 * i + 10))
    is_table = kind == "dataset"
    path = recipe(
        tmp_path,
        filters,
        kind,
        "parquet" if is_table else "in",
        top="tasks = 2",
        more='options = { data_files = "in/*.parquet" }' if is_table else "",
    )
    whole = build_corpus(path, tmp_path / "whole")
    bad = files[1]
    good = break_off(bad)
    made = build_corpus(path, tmp_path / "out")["sources"]["s"]
    (named,) = made["damaged"]
    assert made["bad"] == {"damaged file": 1} and made["documents"] == 20
    assert named == ("part 1 of 3" if is_table else f"in/{bad.name}")
    assert {text for _, text in texts_of(tmp_path / "out")} == {
        prose(i) for i in (*range(10), *range(20, 30))
    }
    assert f"left out: {named}" in describe_corpus({"done": True, "sources": {"s": made}})
    bad.unlink()
    kept = files[0].stat().st_mtime_ns
    again = build_corpus(path, tmp_path / "out")["sources"]["s"]
    assert again == made  # a damaged file may go
    bad.write_bytes(good)
    if not is_table:
        moved = files[2].read_bytes()
        files[2].write_bytes(moved[:-1] + b"!")
        with pytest.raises(UserError, match=f"other input files for s: in/{files[2].name}"):
            build_corpus(path, tmp_path / "out")
        files[2].write_bytes(moved)  # the same file with another date
    healed = build_corpus(path, tmp_path / "out")
    assert healed == whole and texts_of(tmp_path / "out") == texts_of(tmp_path / "whole")
    assert files[0].stat().st_mtime_ns == kept
    write(files[0].with_name(name.format("new")), [99])
    with pytest.raises(UserError, match="is new"):
        build_corpus(path, tmp_path / "out")


def test_a_folder_may_move_with_its_recipe(tmp_path):
    (tmp_path / "a").mkdir()
    lay_out(tmp_path / "a" / "in", [prose(i) for i in range(9)], 3)
    first = build_corpus(recipe(tmp_path / "a"), tmp_path / "a" / "out")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert build_corpus(tmp_path / "b" / "recipe.toml", tmp_path / "b" / "out") == first


def test_every_kind_of_source_remembers_its_files(tmp_path):
    "Also what a data set reads, and the examples that a filter learns from."
    pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    table(tmp_path / "in" / "a.parquet", range(5))
    (tmp_path / "good.txt").write_text(prose(1))
    path = recipe(
        tmp_path,
        ["PERPLEXITY"],
        "dataset",
        "parquet",
        more='options = { data_files = ["in/a.parquet"] }',
    )
    learned = '{ name = "perplexity", good = "good.txt", limit = 1e9 }'
    path.write_text(path.read_text().replace('"PERPLEXITY"', learned))
    build_corpus(path, tmp_path / "out")
    for file, change in (
        ("good.txt", lambda p: p.write_text("other words")),
        ("in/a.parquet", lambda p: table(p, range(6))),
    ):
        before = (tmp_path / file).read_bytes()
        change(tmp_path / file)
        with pytest.raises(UserError, match=f"other input files for s: {file} has changed"):
            build_corpus(path, tmp_path / "out")
        (tmp_path / file).write_bytes(before)
    path.write_text(path.read_text().replace("in/a", "in/b"))
    with pytest.raises(UserError, match="in/b.parquet does not exist: paths are relative"):
        build_corpus(path, tmp_path / "out")


def test_an_empty_table_is_no_accident(tmp_path):
    "No byte at all is damage; no row is no document."
    pytest.importorskip("datasets")
    (tmp_path / "in").mkdir()
    table(tmp_path / "in" / "a.parquet", range(5))
    table(tmp_path / "in" / "b.parquet", [])
    (tmp_path / "in" / "c.parquet").write_bytes(b"")
    path = recipe(
        tmp_path, [], "dataset", "parquet", more='options = { data_files = "in/*.parquet" }'
    )
    made = build_corpus(path, tmp_path / "out")["sources"]["s"]
    assert made["documents"] == 5 and list(made["damaged"]) == ["part 2 of 3"]


def test_bombs_and_giants_are_dropped(tmp_path):
    "A page without end, tags within tags, a tag that does not close, entities of entities."
    big, deep = "x" * (GIGANTIC + 10), "<div>" * 100_000
    page = "<page><title>{}</title><ns>0</ns><text>{}</text></page>"
    (tmp_path / "a.xml").write_text(
        "<m>" + page.format("big", big) + page.format("small", "text") + "</m>"
    )
    found = list(wiki_pages(tmp_path / "a.xml"))
    assert [(d.name, len(d.text)) for d in found] == [("big", GIGANTIC + 1), ("small", 4)]
    (tmp_path / "b.xml").write_text("<posts><row Id='1' Body='" + "x" * 300_000)
    with pytest.raises(ExpatError, match="a tag of more than 200,000"):
        list(stackexchange_posts(tmp_path / "b.xml", limit=200_000))
    lol = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 12))
    (tmp_path / "c.xml").write_text(
        f"<!DOCTYPE m [<!ENTITY l0 'lol'>{lol}]><m>" + page.format("lol", "&l11;") + "</m>"
    )
    with pytest.raises(UserError, match="cannot be read to its end"):
        read(tmp_path / "c.xml", "wikipedia")
    pytest.importorskip("warcio")
    from llama_course.corpus.warc import write_warc

    pages = [("http://deep", "text/html", deep.encode()), ("http://good", "text/html", b"<p>good")]
    write_warc(tmp_path / "d.warc.gz", pages)
    assert "good" in [d.text for d in read(tmp_path / "d.warc.gz", "warc")[0]]


def test_a_document_keeps_its_side_and_held_out_text_is_whole(tmp_path):
    "Whatever else the source holds; all of it is in one shard or the other."
    texts = [prose(i, 200) for i in range(400)]
    tokenizer = Tokenizer.train(texts[:50], 300, tmp_path / "t.model")
    sides = []
    for count in (100, 400):
        home = tmp_path / str(count)
        lay_out(home / "in", texts[:count], 1)
        (home / "t.model").write_bytes((tmp_path / "t.model").read_bytes())
        path = recipe(home, top='[tokens]\ntokenizer = "t.model"\nheld_out = 0.1')
        made = build_corpus(path, home / "out")
        about = made["sources"]["s"]
        both = {}
        for side in ("train", "held_out"):
            shard = Shard(home / "out" / "tokens" / f"s.{side}.tokens", tokenizer).verify()
            said = about["shards"][f"tokens/s.{side}.tokens"]
            assert said == {
                "tokens": len(shard),
                "bytes": shard.text_bytes,
                "sha256": shard.digest,
            }
            ends = np.flatnonzero(shard.tokens == tokenizer.eos_id)
            both[side] = {tokenizer.decode(d) for d in np.split(shard.tokens, ends + 1)[:-1]}
        assert both["train"] | both["held_out"] == {t.strip("\n") for t in texts[:count]} or (
            len(both["train"]) + len(both["held_out"]) == count
        )
        assert abs(len(both["held_out"]) / count - 0.1) < 0.1
        sides.append(both["held_out"])
    assert sides[0] <= sides[1]
    assert verify_corpus(tmp_path / "400" / "out") > 0
    shard = tmp_path / "400" / "out" / "tokens" / "s.train.tokens"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="s.train.tokens is damaged"):
        verify_corpus(tmp_path / "400" / "out")


@pytest.mark.parametrize("filters", [["short_lines"], ["exact_duplicates"]])
def test_a_lost_part_is_made_again(tmp_path, filters):
    lay_out(tmp_path / "in", [prose(i) for i in range(9)], 3)
    path, out = recipe(tmp_path, filters, top="tasks = 3"), tmp_path / "out"
    first, before = build_corpus(path, out), texts_of(tmp_path / "out")
    sorted((out / "clean" / "s").iterdir())[-1].unlink()
    assert build_corpus(path, out) == first and texts_of(out) == before


def gone(group, seconds=30):
    "Whether all processes of the group end by themselves."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_killed_and_resumed_equals_undisturbed(tmp_path, code):
    texts = [d.text for d in code]
    lay_out(tmp_path / "in", texts, 40)
    path = recipe(
        tmp_path,
        ["short_lines", "without_header", "near_duplicates"],
        top="tasks = 40\nworkers = 2",
    )
    out, markers = tmp_path / "out", tmp_path / "out" / "work" / "s" / "1" / "completions"
    process = Forked(in_own_group, *COMMAND, "data", path, "--out", out)
    while process.poll() is None and len(list(markers.glob("*"))) < 4:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in markers.glob("*")}
    assert (
        process.returncode == -signal.SIGKILL
        and 4 <= len(done) < 40
        and not (out / "data.json").exists()
    )
    assert gone(process.process.pid), "a worker outlived the command"
    again = build_corpus(
        recipe(tmp_path, ["short_lines", "without_header", "near_duplicates"], top="tasks = 40"),
        out,
    )
    assert again == build_corpus(tmp_path / "recipe.toml", tmp_path / "whole")
    assert texts_of(out) == texts_of(tmp_path / "whole")
    assert {name: (markers / name).stat().st_mtime_ns for name in done} == done
    assert not list(out.rglob("*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_worker_is_said(tmp_path, code):
    psutil = pytest.importorskip("psutil")
    lay_out(tmp_path / "in", [d.text for d in code] * 3, 40)
    path = recipe(
        tmp_path, ["without_header", "without_tex_comments"], top="tasks = 40\nworkers = 2"
    )
    process = Forked(in_own_group, *COMMAND, "data", path, "--out", tmp_path / "out")
    pid = process.process.pid
    markers = tmp_path / "out" / "work" / "s" / "1" / "completions"
    while process.poll() is None and len(list(markers.glob("*"))) < 2:
        time.sleep(0.01)
    workers = [c for c in psutil.Process(pid).children() if "spawn_main" in " ".join(c.cmdline())]
    workers[0].kill()
    out, err = process.communicate(timeout=120)
    assert (
        process.returncode == 2
        and out == ""
        and "a worker process was killed" in err.splitlines()[-1]
    ), err
    assert gone(pid)


# the command


def test_the_command(tmp_path):
    lay_out(tmp_path / "in", [prose(i) for i in range(9)] + ["a" * 2000, ""], 3)
    path = recipe(tmp_path, ["short_lines"])
    done = llama_course("data", path, "--out", tmp_path / "out", "--json")
    made = json.loads(done.stdout)
    assert (
        done.returncode == 0
        and done.stderr == ""
        and made == json.loads((tmp_path / "out" / "data.json").read_text())
    )
    gone = {
        c["step"]: c["documents_in"] - c["documents_out"] for c in made["sources"]["s"]["steps"]
    }
    assert gone["empty"] == gone["short_lines"] == 1 and made["sources"]["s"]["documents"] == 9
    words = describe_corpus(made)
    assert "9 of 11 documents" in words and "short_lines" in words and "90.0%" in words


@pytest.fixture
def command(monkeypatch, capsys):
    "Runs `llama-course data` in this process: (exit code, standard output, standard error)."
    before = signal.getsignal(signal.SIGTERM)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["llama-course", "data", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def test_the_example_is_printed(command):
    assert command("--example") == (0, EXAMPLE_RECIPE, "")
    assert [s["proportion"] for s in tomllib.loads(EXAMPLE_RECIPE)["sources"].values()] == [
        0.67,
        0.15,
        0.045,
        0.045,
        0.045,
        0.025,
        0.02,
    ]


def test_a_mistake_ends_the_command_with_one_line(command, tmp_path):
    (tmp_path / "r.toml").write_text(EXAMPLE_RECIPE)
    code, out, err = command(tmp_path / "r.toml", "--out", tmp_path / "out")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "sources.CommonCrawl.path" in err and not (tmp_path / "out").exists()


# tokens, and training on them


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_train_takes_the_folder(tmp_path, with_tokenizer):
    from llama_course.files.run import RunFolder
    from llama_course.launch.demo import run_own

    texts = [prose(i, 300) for i in range(60)]
    lay_out(tmp_path / "in", texts, 3)
    lay_out(tmp_path / "other", [text.upper() for text in texts[:30]], 2)
    Tokenizer.train(texts, 300, tmp_path / "t.model")
    path = recipe(
        tmp_path,
        ["exact_duplicates"],
        top='[tokens]\ntokenizer = "t.model"' if with_tokenizer else "",
        more='[sources.b]\nproportion = 0.25\nkind = "jsonl"\npath = "other"\n',
    )
    path.write_text(path.read_text().replace("proportion = 1\n", "proportion = 0.75\n"))
    made, out = build_corpus(path, tmp_path / "out"), tmp_path / "out"
    assert prepared(out) == made and prepared(tmp_path / "in") is None
    assert build_corpus(path, out) == made  # nothing is done again, the shards are verified
    if with_tokenizer:
        shares = {name: about["proportion"] for name, about in made["sources"].items()}
        shards = {name: Shard(out / "tokens" / f"{name}.train.tokens") for name in shares}
        assert Loader(shards, shares, seq_len=16, batch_size=4).batch(0).shape == (4, 17)
        tokenizer = Tokenizer.load(tmp_path / "t.model")
        assert made["tokenizer"] == tokenizer.fingerprint
        for name in ("s", "b"):
            sides = [
                Shard(out / "tokens" / f"{name}.{side}.tokens") for side in ("train", "held_out")
            ]
            assert (
                list(map(len, sides)) == list(made["sources"][name]["tokens"].values())
                and min(map(len, sides)) > 0
            )
            total = sum(len(tokenizer.encode(text)) + 2 for _, text in texts_of(out, name))
            assert (
                sum(map(len, sides)) == total
            )  # with BOS and EOS of each document, and none on both sides
    run_own([out], tmp_path / "run", steps=2, vocab_size=None if with_tokenizer else 340)
    run = RunFolder(tmp_path / "run")
    assert run.recipe.proportions == {"s": 0.75, "b": 0.25}
    assert run.facts.settings["vocab_size"] == (300 if with_tokenizer else 340)
    assert (run.facts.tokenizer == made["tokenizer"]) == with_tokenizer
    if with_tokenizer:
        assert (tmp_path / "run/data/s.train.tokens").read_bytes() == (
            out / "tokens/s.train.tokens"
        ).read_bytes()
        with pytest.raises(UserError, match="leave --vocab-size out"):
            run_own([out], tmp_path / "run 2", steps=2, vocab_size=500)
    (out / "data.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        run_own([out], tmp_path / "run 3", steps=2)


# a cluster

SBATCH = """#!{python}
import os, re, subprocess, sys, threading
script = open(sys.argv[-1]).read()
open(os.environ["SLURM_SEEN"], "a").write(script)
array = re.search("array=0-(\\\\d+)", script)
if "merge_stats" not in script:
    for i in range(int(array[1]) + 1):
        here = {{"SLURM_ARRAY_TASK_ID": str(i), "SLURM_NODELIST": "here"}}
        subprocess.run(["bash", sys.argv[-1]], env=os.environ | here,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm")
def test_the_same_pipeline_on_slurm(tmp_path, monkeypatch):
    "sbatch, srun and scontrol are stand-ins; script, packed pipeline and tasks are datatrove's."
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "sbatch": SBATCH.format(python=sys.executable),
        "scontrol": "#!/bin/sh\necho here\n",
        "srun": '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_SEEN", str(tmp_path / "seen"))
    lay_out(tmp_path / "in", [prose(i) for i in range(8)] * 2, 2)
    slurm = 'tasks = 2\nexecutor = "slurm"\n[slurm]\npartition = "cpu"\ntime = "1:00:00"\n'
    path = recipe(tmp_path, ["short_lines", "exact_duplicates"], top=slurm)
    made = build_corpus(path, tmp_path / "out")
    assert made["done"] and "--partition=cpu" in (tmp_path / "seen").read_text()
    local = build_corpus(
        recipe(tmp_path, ["short_lines", "exact_duplicates"], top="tasks = 2"), tmp_path / "local"
    )
    assert made == local and texts_of(tmp_path / "out") == texts_of(tmp_path / "local")


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm")
def test_jobs_are_submitted_once(tmp_path, monkeypatch, capsys):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(
        '#!/bin/sh\necho x >> "$SLURM_SEEN"\necho Submitted batch job 7\n'
    )
    (tools / "squeue").write_text("#!/bin/sh\necho Priority\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_SEEN", str(tmp_path / "seen"))
    lay_out(tmp_path / "in", [prose(i) for i in range(8)], 2)
    slurm = 'tasks = 2\nexecutor = "slurm"\n[slurm]\npartition = "cpu"\ntime = "1:00:00"\n'
    path = recipe(tmp_path, ["short_lines"], top=slurm)
    for _ in range(2):
        made = build_corpus(path, tmp_path / "out")
        assert not made["done"] and "0 of 2 tasks are done" in capsys.readouterr().err
        assert "looks again" in describe_corpus(made)
    (tools / "squeue").write_text("#!/bin/sh\necho DependencyNeverSatisfied\n")
    with pytest.raises(UserError, match="no job of Slurm goes on"):
        build_corpus(path, tmp_path / "out")
    assert (
        tmp_path / "seen"
    ).read_text() == "x\nx\n"  # the array, and the job that merges its stats
    path = recipe(tmp_path, ["short_lines"], top=slurm.replace("partition", "partitions"))
    with pytest.raises(UserError, match="datatrove refuses these options"):
        build_corpus(path, tmp_path / "wrong")


def test_without_the_extra_one_line_says_so(tmp_path):
    lay_out(tmp_path / "in", [prose(0)], 1)
    program = (
        "import sys; sys.modules['datatrove'] = None\n"
        "from llama_course.support.errors import UserError\n"
        "from llama_course.corpus.build import build_corpus\n"
        f"try: build_corpus({str(recipe(tmp_path))!r}, {str(tmp_path / 'out')!r})\n"
        "except UserError as e: print(e)"
    )
    done = ran(as_program, program)
    assert "llama_course[data]" in done.stdout and done.stderr == ""
