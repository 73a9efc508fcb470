"BPE from scratch: SentencePiece's ids from its models, its pieces from the same text."

import importlib.metadata
import io
import math
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece as spm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as protobuf

from llama_course.bpe import (
    BPE,
    BYTE,
    UNUSED,
    Pairs,
    learn,
    may_be_piece,
    merge,
    read_model,
    script,
    train_bpe,
    words_and_characters,
    write_model,
)
from llama_course.data import sample, shakespeare, standard_library
from llama_course.support.errors import UserError
from llama_course.tokenizer import META, SETTINGS, Tokenizer, training_lines

PLAYS = [d.text for d in shakespeare()]
# what a model can be trained with; the first is what the library trains
VARIANTS = {
    "llama": {},
    "llama's release": dict(add_dummy_prefix=True, character_coverage=0.99),
    "defaults": dict(
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        add_dummy_prefix=True,
        byte_fallback=False,
        split_digits=False,
        allow_whitespace_only_pieces=False,
    ),
    "nfkc, bytes": dict(
        normalization_rule_name="nfkc_cf", remove_extra_whitespaces=True, add_dummy_prefix=True
    ),
    "nfkc, spaces kept": dict(normalization_rule_name="nmt_nfkc"),
    "no characters": dict(character_coverage=0.98, byte_fallback=False, vocab_size=400),
    "symbols": dict(
        user_defined_symbols=["<sep>", "ab", "abc", " x ", "the", "▁q", "  ", "é", "9"],
        control_symbols=["<c>", "z"],
    ),
    "symbols, nfkc": dict(
        user_defined_symbols=["<sep>", "ab", "abc", " x ", "  ", "ﬁ"],
        control_symbols=["z", "hello"],
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        byte_fallback=False,
    ),
    "suffix": dict(
        treat_whitespace_as_suffix=True, add_dummy_prefix=True, remove_extra_whitespaces=True
    ),
    "suffix, spaces kept": dict(treat_whitespace_as_suffix=True, add_dummy_prefix=True),
    "over words": dict(split_by_whitespace=False, add_dummy_prefix=True, vocab_size=900),
    "other ids": dict(pad_id=0, bos_id=-1, eos_id=1, unk_id=2),
    "no escape": {},
    "unused": dict(byte_fallback=False),
    "unused, symbols": dict(user_defined_symbols=["<sep>", "ab", "abc", " x ", "the"]),
}
SPECIAL = [
    " ",
    "  ",
    "   ",
    "\n",
    "\t",
    "\r",
    "\0",
    META,
    "▅",
    "a",
    "the",
    "THE",
    "there",
    " and",
    "0",
    "9",
    "42",
    "é",
    "e\u0301",
    "ż",
    "ą",
    "字",
    "ひカー",
    "한",
    "🦙",
    "👩‍👧",
    "\u200d",
    "\u0323",
    "ﬁ",
    "½",
    "\u00a0",
    "\u3000",
    "\ufeff",
    "\ufffd",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<sep>",
    "ab",
    "abc",
    "abcd",
    " x ",
    "x",
    "z",
    "<c>",
    "hello",
    ".",
]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(
    st.sampled_from(SPECIAL), max_size=14
).map("".join)
LONG = [
    "",
    "9" * 100_000,
    " " * 5000 + "x",
    "ab" * 5000,
    "a" * 10_000,
    "🦙" * 3000,
    "e" + "\u0301" * 3000,
    "字" * 5000,
    "Zażółć gęślą jaźń. " * 200,
]


def train(lines, **changes):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        **{**SETTINGS, "vocab_size": 700, **changes},
    )
    return model.getvalue()


def altered(name, data):
    "The models that the trainer does not write."
    model, chance = protobuf.ModelProto.FromString(data), random.Random(1)
    if name == "no escape":
        model.normalizer_spec.escape_whitespaces = False
    for piece in model.pieces if "unused" in name else []:
        if piece.type == 1 and chance.random() < 0.5:
            piece.type = UNUSED
    return model.SerializeToString()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "name -> (ours, SentencePiece's)"
    folder, made = tmp_path_factory.mktemp("models"), {}
    for name, changes in VARIANTS.items():
        data = altered(name, train(PLAYS[0].split("\n"), **changes))
        (folder / f"{name}.model").write_bytes(data)
        made[name] = (
            BPE.load(folder / f"{name}.model"),
            spm.SentencePieceProcessor(model_proto=data),
        )
    return made


def shipped():
    "Models that others trained: those in the package mistral-common."
    try:
        files = importlib.metadata.files("mistral-common")
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(file.locate()) for file in files if ".model" in file.name]


# encoding


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="\0")
@example(text="▁▁ ▁")
@example(text=" \t ")
@example(text="zabcdﬁabz<c>é  ")
@example(text="\U0010ffff\ufdd0\u202e")
def test_ids_are_sentencepieces(models, name, text):
    ours, theirs = models[name]
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.normalize(text) == theirs.normalize(text)
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", VARIANTS)
def test_ids_of_long_texts_are_sentencepieces(models, name):
    ours, theirs = models[name]
    for text in [*LONG, PLAYS[1][:60_000]]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text) and ours.decode(ids) == theirs.decode(ids)


@pytest.mark.skipif(
    not shipped(), reason="mistral-common, whose models are read here, is not installed"
)
def test_models_that_others_trained():
    for path in shipped():
        ours, theirs = BPE.load(path), spm.SentencePieceProcessor(model_file=str(path))
        chance = random.Random(0)
        texts = [
            "".join(chance.choices(SPECIAL + ["[INST]", "[REF]", "[/INST]"], k=10))
            for _ in range(500)
        ]
        for text in [*texts, *LONG, PLAYS[1]]:
            assert ours.encode(text) == theirs.encode(text), (path.name, text[:50])
        ids = [[chance.randrange(ours.vocab_size) for _ in range(8)] for _ in range(500)]
        assert [ours.decode(some) for some in ids] == [theirs.decode(some) for some in ids]
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())


@settings(max_examples=300, deadline=None)
@given(TEXTS.filter(lambda text: META not in text))
def test_every_text_without_the_meta_space_comes_back(models, text):
    ours = models["llama"][0]
    assert ours.decode(ours.encode(text, bos=True, eos=True)) == text


def test_every_character_comes_back_but_one(models):
    ours = models["llama"][0]
    for first in range(0, 0x110000, 0x8000):
        text = "".join(chr(c) for c in range(first, first + 0x8000) if not 0xD800 <= c < 0xE000)
        assert ours.decode(ours.encode(text)) == text.replace(META, " ")


@pytest.mark.parametrize("name", VARIANTS)
def test_any_ids_decode_as_sentencepiece_decodes_them(models, name):
    ours, theirs = models[name]
    chance, size = random.Random(0), ours.vocab_size
    byte = [i for i, piece in enumerate(ours.file.pieces) if piece.kind == BYTE] or [ours.unknown]
    space = [i for i, piece in enumerate(ours.file.pieces) if piece.text.startswith(META)]
    for _ in range(1000):
        ids = [
            chance.choice(
                (
                    chance.randrange(size),
                    *chance.choices(byte, k=2),
                    chance.choice(space),
                    ours.unknown,
                )
            )
            for _ in range(chance.randrange(9))
        ]
        assert ours.decode(ids) == theirs.decode(ids), ids


def test_ids_are_those_of_the_library_s_tokenizer(tmp_path):
    tokenizer = Tokenizer.train(PLAYS[:2], 600, tmp_path / "tokenizer.model")
    ours = BPE.load(tokenizer.path)
    assert ours.encode(PLAYS[2], bos=True, eos=True) == tokenizer.encode(
        PLAYS[2], bos=True, eos=True
    )


# how much work it is


class Counted(dict):
    asked = 0

    def get(self, key):
        self.asked += 1
        return super().get(key)


class Compared(float):
    times = 0

    def __lt__(self, other):
        Compared.times += 1
        return float(self) < float(other)

    def __eq__(self, other):
        Compared.times += 1
        return float(self) == float(other)

    __hash__ = float.__hash__


@pytest.mark.parametrize(
    "text",
    [PLAYS[0].replace(" ", META), "ab" * 20_000, "a" * 40_000, "the▁" * 10_000],
    ids=["play", "abab", "aaaa", "the"],
)
def test_merging_is_linear_up_to_a_logarithm(models, text):
    rank = {**models["llama"][0].rank, "aa": 0.5, "aaaa": 1.5, "ab": 2.5, "abab": 3.5}
    for n in (1000, 4000, 16_000):
        counted = Counted(rank)
        merge(text[:n], counted)
        assert counted.asked < 3 * n
        Compared.times = 0
        merge(text[:n], {piece: Compared(r) for piece, r in rank.items()})
        assert Compared.times < 3 * n * math.log2(n)


def test_what_was_seen_costs_nothing_and_memory_is_bounded(models):
    ours = BPE(models["llama"][0].file)
    ours.encode(PLAYS[0])
    ours.rank = Counted(ours.rank)
    ours.encode(PLAYS[0])
    assert ours.rank.asked < 1000  # only words that are too long to be remembered
    assert max(map(len, ours.memory)) < 32
    for i in range(70_000):
        ours.encode(f"{i:b}".replace("0", "a").replace("1", "b"))
    assert len(ours.memory) <= 2**16


def test_merging_leaves_its_arguments_alone():
    symbols, rank = ["a", "b", "a", "b"], {"ab": 0, "abab": 1}
    assert merge(symbols, rank) == ["abab"] and symbols == ["a", "b", "a", "b"] and len(rank) == 2
    assert (
        merge("", rank) == [] and merge("a", rank) == ["a"] and merge("aba", {}) == ["a", "b", "a"]
    )
    assert merge("aaa", {"aa": 0}) == ["aa", "a"]  # of equals the leftmost
    assert merge("abc", {"ab": 2, "bc": 1}) == ["a", "bc"]  # the best, not the first


# training


def both(texts, vocab_size, coverage=0.99995):
    "Our pieces and SentencePiece's; None where it refuses."
    try:
        data = train(
            training_lines(texts, 10**9), vocab_size=vocab_size, character_coverage=coverage
        )
    except RuntimeError:
        return None, None
    theirs = [piece.text for piece in BPE(_read(data)).file.pieces[259:]]
    words, characters = words_and_characters(training_lines(texts, 10**9), coverage)
    learned, _ = learn(words, characters, vocab_size - 259 - len(characters))
    short = (
        vocab_size - 259 - len(learned) - len(characters)
    )  # where no pair is left it takes some that do not occur
    return learned + characters, theirs[: len(learned)] + theirs[len(learned) + short :]


def _read(data):
    from llama_course import bpe

    return bpe._parse(data)


def test_shakespeare_at_4096():
    ours, theirs = both(PLAYS, 4096)
    assert len(theirs) == 4096 - 259 and len(set(ours) & set(theirs)) >= 0.99 * len(theirs)
    assert ours == theirs  # in the same order, even


def test_code_at_2000():
    ours, theirs = both([d.text for d in sample(standard_library(), 500_000)], 2000)
    assert ours == theirs


@pytest.mark.parametrize("seed", range(60))
def test_difficult_texts_train_the_same_pieces(seed):
    chance = random.Random(seed)
    alphabet = SPECIAL + [" "] * 5 + ["م\u200cی", "ª", "µ", "１", "²", "Ⅷ", "Ω", "ж"]
    some = chance.sample(alphabet, chance.randrange(2, len(alphabet)))
    texts = [
        "".join(chance.choices(some, k=chance.randrange(1, 400)))
        for _ in range(chance.randrange(1, 6))
    ]
    ours, theirs = both(texts, 290 + chance.randrange(60), chance.choice([0.99995, 1.0]))
    assert ours == theirs


def test_our_model_is_sentencepieces(tmp_path):
    ours = train_bpe(PLAYS[:2], 900)
    data = train(training_lines(PLAYS[:2], 10**9), vocab_size=900)
    assert ours.file == _read(data)
    write_model(tmp_path / "ours.model", ours.file)
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "ours.model"))
    assert (
        ours.encode(PLAYS[3])
        == theirs.encode(PLAYS[3])
        == BPE.load(tmp_path / "ours.model").encode(PLAYS[3])
    )
    assert Tokenizer.load(tmp_path / "ours.model").encode("soft") == ours.encode("soft")


def test_every_model_is_written_as_it_was_read(models, tmp_path):
    for name, (ours, theirs) in models.items():
        write_model(tmp_path / "again.model", ours.file)
        assert read_model(tmp_path / "again.model") == ours.file, name
        again = spm.SentencePieceProcessor(model_file=str(tmp_path / "again.model"))
        assert again.encode(PLAYS[1][:3000]) == theirs.encode(PLAYS[1][:3000]), name


class CountedPairs(Pairs):
    looked = 0

    def add(self, left, right):
        self.looked += 1
        super().add(left, right)


def test_training_looks_only_at_what_has_changed():
    words, characters = words_and_characters(training_lines(PLAYS[:4], 10**9))
    at = {}
    for n in (0, 500, 1000):
        _, pairs = learn(words, characters, n, pairs=CountedPairs)
        at[n] = pairs.looked
    symbols = sum(map(len, words))
    assert at[0] <= symbols and at[1000] < 3 * symbols  # the naive way: about 500 times as many
    assert at[1000] - at[500] < (at[500] - at[0]) / 2  # rarer pairs stand in fewer places


def test_rules_for_pieces():
    assert may_be_piece("a" * 16) and not may_be_piece("a" * 17)
    assert may_be_piece("20", split_digits=False) and not may_be_piece("20")
    for text in ("▁▁", "▁a", "é", "e\u0301a", "字ひ", "-–", "\n\n"):
        assert may_be_piece(text), text
    for text in ("a▁", "▁a▁", "a1", "１x", "aж", "a.", "字a", "\0a"):
        assert not may_be_piece(text), text


def test_scripts_are_unicodes():
    tools = pytest.importorskip(
        "fontTools.unicodedata", reason="fontTools has Unicode's table of scripts"
    )
    same = {"Hira": "Hani", "Kana": "Hani", "Zinh": None}
    table, wrong = {}, []
    for c in map(chr, [*range(0xD800), *range(0xF900, 0x10000)]):
        if unicodedata.category(c)[0] == "C":
            continue
        theirs = same.get(tools.script(c), tools.script(c))
        table.setdefault(script(c), Counter())[theirs] += 1
        wrong.append((c, theirs, script(c)))
    main = {ours: counts.most_common(1)[0][0] for ours, counts in table.items()}
    share = sum(main[ours] == theirs for _, theirs, ours in wrong) / len(wrong)
    assert (
        share > 0.96 and main["LATIN"] == "Latn" and main["COMMON"] == "Zyyy" and main[None] is None
    )


# bad input


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"], 1.5])
def test_only_text_is_encoded(models, wrong):
    with pytest.raises(UserError, match=f"takes text, and got {type(wrong).__name__}"):
        models["llama"][0].encode(wrong)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(0xD800, 0xDFFF), TEXTS)
def test_surrogates_are_refused(models, before, half, after):
    with pytest.raises(UserError, match=f"character {len(before)} of the text is '.ud"):
        models["llama"][0].encode(before + chr(half) + after)


@pytest.mark.parametrize("wrong", [-1, 700, 10**6])
def test_only_tokens_are_decoded(models, wrong):
    with pytest.raises(UserError, match=f"{wrong} is no token of this model: ids go from 0 to 699"):
        models["llama"][0].decode([5, wrong])


@pytest.mark.parametrize("kind", ["unigram", "word", "char"])
def test_other_kinds_of_models_are_refused_by_name(tmp_path, kind):
    (tmp_path / "m").write_bytes(
        train(PLAYS[0].split("\n")[:400], model_type=kind, vocab_size=340, hard_vocab_limit=False)
    )
    with pytest.raises(
        UserError, match=f"m is a {kind} model: give one that was trained with model_type=bpe"
    ):
        BPE.load(tmp_path / "m")


def test_what_is_not_supported_is_refused(models, tmp_path):
    def refused(change, message):
        model = protobuf.ModelProto.FromString(train(PLAYS[0].split("\n")[:300], vocab_size=350))
        change(model)
        (tmp_path / "m").write_bytes(model.SerializePartialToString())
        with pytest.raises(UserError, match=message):
            BPE.load(tmp_path / "m")

    refused(
        lambda m: m.denormalizer_spec.MergeFrom(protobuf.NormalizerSpec(precompiled_charsmap=b"x")),
        "denormalizer",
    )
    refused(lambda m: setattr(m.pieces[0], "type", 1), "what is unknown")
    refused(lambda m: setattr(m.pieces[280], "piece", m.pieces[281].piece), "same piece twice")
    refused(lambda m: setattr(m.pieces[280], "piece", ""), "empty piece")
    refused(lambda m: setattr(m.pieces[10], "type", 1), "255 of 256")


def test_files_that_are_no_model(tmp_path):
    good, path = train(PLAYS[0].split("\n")[:300], vocab_size=350), tmp_path / "tokenizer.model"
    for content in (
        b"",
        b"remember the milk",
        good[:-1],
        good[:1000],
        b"PK\3\4" + bytes(1000),
        bytes(50),
        b"\xff" * 99,
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokenizer.model"):
            BPE.load(path)
    for missing in (tmp_path, tmp_path / "nothing.model"):
        with pytest.raises(UserError, match="cannot read the tokenizer"):
            BPE.load(missing)


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_a_damaged_model_is_refused_or_read_but_never_breaks(tmp_path, rule):
    good, chance = (
        train(PLAYS[0].split("\n")[:300], vocab_size=350, normalization_rule_name=rule),
        random.Random(0),
    )
    for _ in range(200):
        at = chance.randrange(len(good))
        (tmp_path / "m").write_bytes(
            good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        )
        try:
            BPE.load(tmp_path / "m").encode("To be 🦙 ½ ﬁ\t\u00a0x")
        except UserError:
            pass
    model = protobuf.ModelProto.FromString(good)
    for blob in (b"", b"x", bytes(3), b"\xff" * 40, bytes(40)) if rule == "nmt_nfkc" else ():
        model.normalizer_spec.precompiled_charsmap = blob
        write_raw(tmp_path / "m", model.SerializeToString())


def write_raw(path, data):
    path.write_bytes(data)
    try:
        BPE.load(path).encode("½ To be 🦙")
    except UserError as error:
        assert "damaged" in str(error)


def test_training_says_what_is_wrong():
    for texts, size, message in (
        (
            ["To be, or not to be"],
            4096,
            "too short for a vocabulary of 4,096: choose at most 278, or add text",
        ),
        (
            ["To be, or not to be"],
            200,
            "no room for the 256 bytes, 3 control tokens and the text's 9 characters",
        ),
        ([], 4096, "no text"),
        (["", "\n"], 4096, "no text"),
        (["\0"], 300, "no text"),
        ("To be", 300, "into a list"),
        (["a\ud83e"], 300, "half of a surrogate pair"),
        ([b"bytes"], 300, "takes text, and got bytes"),
    ):
        with pytest.raises(UserError, match=message):
            train_bpe(texts, size)
    assert train_bpe(["To be, or not to be"], 278).vocab_size == 278
    smallest = train_bpe(["To be, or not to be"], 268)
    assert (
        len(smallest.encode("To be")) == 5 and smallest.decode(smallest.encode("To be")) == "To be"
    )


def test_binary_and_wrongly_encoded_text_still_has_a_tokenizer():
    "What was read with errors='replace' or as Latin-1 is text, if no good one."
    noise = random.Random(0).randbytes(3000)
    for text in (noise.decode("latin-1"), noise.decode(errors="replace")):
        ours = train_bpe([text], 530)
        assert ours.decode(ours.encode(text)) == text
    with pytest.raises(UserError, match="half of a surrogate pair"):
        train_bpe([noise.decode(errors="surrogateescape")], 530)
