"""The tokenizer: nothing is lost, SentencePiece and transformers agree, and mistakes are named."""

import io
import random
import subprocess
import sys

import pytest
import sentencepiece as spm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_course.data import Document, sample, shakespeare, split, standard_library
from llama_course.support.disk import fingerprint
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard, write_shard
from llama_course.tokenizer import GUARD, META, SETTINGS, Tokenizer, training_lines

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)  # any Unicode text without surrogates
# and text in which the difficult characters meet each other often
SPECIAL = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\0",
    META,
    GUARD,
    "▅",
    "a",
    "the",
    "THE",
    "0",
    "42",
    "é",
    "e\u0301",
    "ż",
    "字",
    "🦙",
    "\u200d",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "\ufeff",
    ".",
]
KNOTS = st.lists(st.sampled_from(SPECIAL), max_size=20).map("".join)


@pytest.fixture(scope="module")
def texts():
    plays, held_out = split(shakespeare())
    return [d.text for d in plays[:8] + sample(standard_library(), 800_000)], held_out[0].text


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    return Tokenizer.train(texts[0], 2000, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def prefixed(texts, tmp_path_factory):
    "A model made elsewhere, with the space that SentencePiece puts before every text by default."
    model = io.BytesIO()
    lines = iter(training_lines(texts[0], 300_000))
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=800,
        **{**SETTINGS, "add_dummy_prefix": True},
    )
    path = tmp_path_factory.mktemp("prefixed") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)


# nothing is lost


@settings(max_examples=500, deadline=None)
@given(TEXTS | KNOTS)
@example("")
@example("\0")
@example(META)
@example(GUARD + META + GUARD)
@example("\U0010fffe\ufdd0\u202e\u0300")
@example("1" * 5000)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and 0 not in ids
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode(text, bos=True, eos=True) == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS | KNOTS)
def test_round_trip_of_a_model_with_dummy_prefix(prefixed, text):
    assert prefixed.decode(prefixed.encode(text, bos=True)) == text


@settings(max_examples=200, deadline=None)
@given(TEXTS | KNOTS, TEXTS | KNOTS)
def test_pieces_of_texts_join(tokenizer, one, two):
    "Without the dummy prefix the ids of two texts, one after the other, are a spelling of both."
    assert tokenizer.decode(tokenizer.encode(one) + tokenizer.encode(two)) == one + two


def test_unseen_text_comes_back(tokenizer, texts):
    assert tokenizer.decode(tokenizer.encode(texts[1])) == texts[1]
    long = texts[1] + "7" * 100_000 + " " * 50_000 + "\n" * 50_000
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer):
    ids = tokenizer.encode("字")
    assert len(ids) == 3 and tokenizer.decode(ids) == "字" and tokenizer.decode([]) == ""
    assert "\ufffd" in tokenizer.decode(ids[:2])
    # as soon as the last byte is there, the character is
    assert tokenizer.decode(tokenizer.encode("a字")[:-1]).startswith("a")


# as LLaMA's


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789 +=.abx\n", max_size=40))
def test_digits_stand_alone(tokenizer, text):
    pieces = [tokenizer.piece(i) for i in tokenizer.encode(text)]
    assert all(
        len(p) == 1 for p in pieces if any(c.isdigit() for c in p) and not p.startswith("<0x")
    )
    assert sum(p.isdigit() for p in pieces) == sum(c.isdigit() for c in text)


def test_ids_are_arranged_as_in_the_release(tokenizer):
    assert [tokenizer.piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert [tokenizer.piece(3 + b) for b in range(256)] == [f"<0x{b:02X}>" for b in range(256)]
    assert tokenizer.vocab_size == 2000


def test_no_piece_reaches_over_the_end_of_a_line(tokenizer):
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert "\n\n" in pieces and not [p for p in pieces if "\n" in p.lstrip("\n")]
    for prompt in ("ROMEO:", "def f(x):", "O, good my lord,"):
        ids = tokenizer.encode(prompt)
        assert tokenizer.encode(prompt + "\nAy.")[: len(ids)] == ids


def test_indentation_is_short(tokenizer):
    assert [tokenizer.piece(i) for i in tokenizer.encode("        ")] == ["▁" * 8]


@settings(max_examples=300, deadline=None)
@given((TEXTS | KNOTS).filter(lambda text: META not in text))
def test_ids_are_sentencepieces(tokenizer, text):
    model = spm.SentencePieceProcessor(model_file=str(tokenizer.path))
    ids = tokenizer.encode(text)
    assert ids == model.encode(text) and tokenizer.decode(ids) == model.decode(ids)


@pytest.fixture(scope="module")
def theirs(tokenizer):
    "transformers' own BPE with its own byte fallback, given our pieces."
    transformers = pytest.importorskip("transformers")
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    merges = generate_merges(vocabulary)
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=False)


@settings(max_examples=300, deadline=None)
@given((TEXTS | KNOTS).filter(lambda text: META not in text and "<" not in text))
def test_ids_are_those_of_transformers(tokenizer, theirs, text):
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_long_texts_agree_with_transformers(tokenizer, theirs, texts):
    for text in (texts[1], texts[0][-1].replace("<", "").replace(META, "")):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


# training


def test_the_same_texts_give_the_same_file(texts, tmp_path):
    some = texts[0][:2]
    models = [
        Tokenizer.train(some, 500, tmp_path / name / "tokenizer.model") for name in ("a", "b")
    ]
    code = (
        "import sys; from llama_course.tokenizer import Tokenizer; from llama_course.data import *;"
        "texts = [d.text for d in split(shakespeare())[0][:2]];"
        "print(Tokenizer.train(texts, 500, sys.argv[1]).fingerprint)"
    )
    command = [sys.executable, "-c", code, tmp_path / "c.model"]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        len({m.fingerprint for m in models} | {other.stdout.strip(), fingerprint(models[0].path)})
        == 1
    )
    assert other.stderr == ""  # SentencePiece keeps quiet
    assert Tokenizer.train(some[:1], 500, tmp_path / "d.model").fingerprint != models[0].fingerprint


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n", max_size=50), max_size=5), st.integers(1, 200))
def test_training_lines(texts, max_bytes):
    assert "".join(training_lines(texts, 10**6)) == "".join(texts)
    total = len("".join(texts))
    lines = training_lines(texts, max_bytes)
    assert all("\n" not in line.lstrip("\n") for line in lines)
    assert len(lines) == int(
        len(training_lines(texts, 10**6)) * min(1, max_bytes / max(1, total)) + 1e-9
    )


def test_very_long_lines_are_learnt_from():
    lines = training_lines(["字" * 10**5], 10**9)
    assert "".join(lines) == "字" * 10**5
    assert max(len(line.encode()) for line in lines) < SETTINGS["max_sentence_length"]


def test_training_leaves_nothing_behind_when_it_fails(tmp_path):
    mistakes = [
        (["To be, or not to be"], 4096, "choose at most 2[0-9]+, or add text"),
        (["To be, or not to be"], 100, "choose more than 2[0-9]+"),
        ("To be, or not to be", 300, "put it into a list"),
        (["a", "b\ud800"], 300, "half of a surrogate pair"),
        ([], 4096, "no text"),
        ([""], 4096, "no text"),
        (["x"], -1, "cannot make"),
        ([b"bytes"], 300, "takes text, and got bytes"),
        (["a", None], 300, "takes text, and got NoneType"),
        (["\0\0"], 300, "no text"),
        (["\n\n"], 300, "no text"),
    ]
    for texts, size, message in mistakes:
        with pytest.raises(UserError, match=message):
            Tokenizer.train(texts, size, tmp_path / "tokenizer.model")
    assert list(tmp_path.iterdir()) == []


def test_the_advice_on_the_size_is_right(tmp_path):
    text = ["To be, or not to be, that is the question: Whether 'tis nobler in the mind"]
    with pytest.raises(UserError) as error:
        Tokenizer.train(text, 4096, tmp_path / "a.model")
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.train(text, most, tmp_path / "a.model").vocab_size == most


def test_binary_and_wrongly_encoded_text_comes_back(tmp_path):
    "Text read as Latin-1 or with errors='replace' is text; half surrogates are refused."
    noise = random.Random(0).randbytes(4000)
    for text in (
        noise.decode("latin-1"),
        noise.decode(errors="replace"),
        "Zażółć".encode().decode("latin-1") * 50,
    ):
        size = 540 if len(text) > 3000 else 290
        tokenizer = Tokenizer.train([text, "to be or not to be " * 20], size, tmp_path / "t.model")
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(UserError, match="half of a surrogate pair"):
        Tokenizer.train([noise.decode(errors="surrogateescape")], 540, tmp_path / "t.model")


def test_numbers_are_cut_at_the_same_places_only_if_digits_are_split(texts, tokenizer):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines(texts[0], 10**9)),
        model_writer=model,
        vocab_size=2000,
        **{**SETTINGS, "split_digits": False},
    )
    together = spm.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = [str(n) for n in range(1000, 10_000, 7)]
    places = lambda pieces: tuple(map(len, pieces))
    assert {places([tokenizer.piece(i) for i in tokenizer.encode(n)]) for n in numbers} == {
        (1, 1, 1, 1)
    }
    assert len({places(together.encode(n, out_type=str)) for n in numbers}) > 2


# bad input


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a", "b"], 1.5])
def test_only_text_is_encoded(tokenizer, wrong):
    with pytest.raises(UserError, match=f"takes text, and got {type(wrong).__name__}"):
        tokenizer.encode(wrong)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(0xD800, 0xDFFF), TEXTS)
def test_surrogates_are_refused(tokenizer, before, half, after):
    with pytest.raises(UserError, match=f"character {len(before)} of the text is '.ud"):
        tokenizer.encode(before + chr(half) + after)


def test_a_document_with_a_surrogate_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="web/page 7: character 1"):
        write_shard(tmp_path / "a.bin", [Document("web", "page 7", "x\ud800")], tokenizer)


@pytest.mark.parametrize("wrong", [-1, 2000, 10**6])
def test_only_tokens_are_decoded(tokenizer, wrong):
    with pytest.raises(UserError, match=f"{wrong} is no token of .*from 0 to 1999"):
        tokenizer.decode([5, wrong])


def test_files_that_are_no_tokenizer(tokenizer, tmp_path):
    good = tokenizer.path.read_bytes()
    path = tmp_path / "tokenizer.model"
    for content in (b"", b"remember the milk", good[:-1], good[:1000], b"PK\3\4" + bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokenizer.model"):
            Tokenizer.load(path)
    for missing in (tmp_path, tmp_path / "nothing.model"):
        with pytest.raises(UserError, match="cannot read the tokenizer"):
            Tokenizer.load(missing)


def test_a_damaged_model_is_refused_or_noticed_by_its_fingerprint(tokenizer, tmp_path):
    good, chance = tokenizer.path.read_bytes(), random.Random(0)
    for _ in range(150):
        at = chance.randrange(len(good))
        flipped = bytes([good[at] ^ 1 << chance.randrange(8)])
        (tmp_path / "m").write_bytes(good[:at] + flipped + good[at + 1 :])
        try:
            assert Tokenizer.load(tmp_path / "m").fingerprint != tokenizer.fingerprint
        except UserError:
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"bos_id": -1},
    ],
)
def test_models_that_lose_something_are_refused(texts, tmp_path, change):
    model = io.BytesIO()
    lines = iter(training_lines(texts[0], 100_000))
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=600, **{**SETTINGS, **change}
    )
    (tmp_path / "lossy.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="lossy.model loses characters or has no BOS"):
        Tokenizer.load(tmp_path / "lossy.model")


def test_shards_know_their_tokenizer(tokenizer, prefixed, tmp_path):
    documents = [Document("web", "one", "zażółć\n"), Document("web", "two", "")]
    shard = write_shard(tmp_path / "a.bin", documents, tokenizer)
    assert tokenizer.decode(shard.tokens) == "zażółć\n" and shard.tokens.tolist()[-2:] == [1, 2]
    assert Shard(shard.path, tokenizer).vocab_size == 2000
    with pytest.raises(UserError, match="another tokenizer"):
        Shard(shard.path, prefixed)
