"Text for a run and its settings: documents, what is held out, what a simpler model needs."

import gzip
import math

import numpy as np
import pytest
import torch

from llama_course.data import Document, shakespeare
from llama_course.files.run import RunFolder
from llama_course.launch.demo import plain_costs, score_run, settle
from llama_course.launch.texts import divide, even_sample, own_texts, prepared_data
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.support.shards import write_shard
from llama_course.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    "Two plays, a file in a folder, and a picture."
    folder = tmp_path_factory.mktemp("texts")
    for play, _ in zip(shakespeare(), range(2)):
        (folder / f"{play.name}.txt").write_text(play.text, encoding="utf-8")
    (folder / "deep").mkdir()
    (folder / "deep" / "note.md").write_text("\ufeffa note\n", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    return folder


def test_own_texts_are_all_of_the_text_in_pieces_that_end_with_a_line(texts):
    documents = list(own_texts([texts]))
    files = sorted(path for path in texts.rglob("*") if path.is_file() and path.suffix != ".png")
    assert "".join(d.text for d in documents) == "".join(
        path.read_text(encoding="utf-8-sig") for path in files
    )
    assert all(d.text.endswith("\n") and len(d.text) < 31_000 for d in documents)
    assert "deep/note.md#0" in {d.name for d in documents} and len(
        {d.name for d in documents}
    ) == len(documents)
    with pytest.raises(UserError, match="is not text in UTF-8"):
        list(own_texts([texts / "picture.png"]))
    with pytest.raises(UserError, match="cannot read"):
        list(own_texts([texts / "none.txt"]))


def test_each_side_has_a_document(texts):
    documents = list(own_texts([texts]))
    for few in (documents[:2], documents):
        train, held_out = divide("text", few)
        assert train and held_out and len(train) + len(held_out) == len(few)
    with pytest.raises(UserError, match="too little text"):
        divide("text", documents[:1])


def test_the_tokenizer_reads_in_the_proportions_of_the_model():
    letters = {
        "a": [Document("a", str(i), "x" * 1000) for i in range(100)],
        "b": [Document("b", str(i), "y" * 1000) for i in range(20)],
    }
    drawn = [d.source for d in even_sample(letters, {"a": 0.6, "b": 0.4})]
    assert (drawn.count("a"), drawn.count("b")) == (30, 20)


def test_a_prepared_folder_is_alone(texts, tmp_path):
    assert prepared_data([texts]) is None
    (tmp_path / "begun.json").write_text("{}")
    with pytest.raises(UserError, match="is not finished"):
        prepared_data([tmp_path])
    (tmp_path / "data.json").write_text('{"sources": {}}')
    assert prepared_data([tmp_path]) == {"sources": {}}
    with pytest.raises(UserError, match="and no other text"):
        prepared_data([tmp_path, texts])


def test_settings_may_change_until_there_is_a_result(tmp_path):
    run, defaults = RunFolder(tmp_path), {"minutes": 3.0, "seed": 0}
    assert settle(run, {"seed": 2}, defaults)["seed"] == 2
    assert settle(run, {"seed": 1, "minutes": None}, defaults) == {"minutes": 3.0, "seed": 1}
    run.note(tokenizer="...")
    assert settle(RunFolder(tmp_path), {"minutes": None, "seed": 1}, {}) == {
        "minutes": 3.0,
        "seed": 1,
    }
    with pytest.raises(UserError, match="was begun with minutes = 3.0, now it is 5.0"):
        settle(run, {"minutes": 5.0}, {})


def test_what_simpler_means_and_a_model_that_knows_nothing_need(texts, tmp_path):
    documents = list(own_texts([texts]))
    tokenizer = Tokenizer.train((d.text for d in documents), 400, tmp_path / "tokenizer.model")
    train, held_out = (
        write_shard(tmp_path / f"{i}.tokens", part, tokenizer)
        for i, part in enumerate((documents[2:], documents[:2]))
    )
    text = tokenizer.decode(held_out.tokens).encode()
    assert len(text) == held_out.text_bytes
    costs = plain_costs(train, held_out, tokenizer)
    assert costs["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text) < 8
    counts = np.bincount(train.tokens, minlength=400) + 1.0
    nats = -sum(math.log(counts[i] / counts.sum()) for i in held_out.tokens[1:])
    assert costs["token frequencies"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-9)
    run, model = RunFolder(tmp_path), Llama(LlamaConfig(32, 1, 2, vocab_size=400, max_seq_len=256))
    with torch.no_grad():
        model.output.weight.zero_()
    run.note(recipe={"steps": 1, "seq_len": 64})
    results = score_run(run, model, tokenizer, {"text": train}, {"text": held_out})
    uniform = math.log2(400) * (len(held_out) - 1) / len(text)
    assert results["held_out"]["text"]["bits_per_byte"] == pytest.approx(uniform, rel=1e-5)
    assert len(results["samples"]) == 3
    assert (
        score_run(run, None, tokenizer, {"text": train}, {"text": held_out}) == results
    )  # read, not done again
