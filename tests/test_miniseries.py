"The miniseries: the plan, a run that is stopped and goes on, the committed results."

import sys
from pathlib import Path

import numpy as np
import pytest

from llama_course.data import Document
from llama_course.support.shards import write_shard
from llama_course.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import _package_texts as package_texts  # noqa: E402
import miniseries  # noqa: E402
from miniseries import POINTS, SHAPES, Run, Series, plan, rows  # noqa: E402

TINY = Run(1, 32)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    "A folder with small texts in the places of the packages'."
    lines = [f"def f{i}(x):\n    return x + {i}\n\n" for i in range(9000)]
    documents = [Document("p", str(i), "".join(lines[i::40])) for i in range(40)]
    tokenizer = Tokenizer.train((d.text for d in documents), 300, tmp_path / "tokenizer.model")
    shard = write_shard(tmp_path / "train.tokens", documents[2:], tokenizer)
    held = {"networkx": write_shard(tmp_path / "held.tokens", documents[:1], tokenizer)}
    monkeypatch.setattr(miniseries, "prepare", lambda folder: (tokenizer, shard, held))
    monkeypatch.setattr(miniseries, "HELD_OUT", ["networkx"])
    columns = [c for c in miniseries.COLUMNS if not c.startswith("loss_")]
    monkeypatch.setattr(miniseries, "COLUMNS", [*columns, "loss_networkx"])
    monkeypatch.setattr(miniseries, "can_compile", lambda: False)
    monkeypatch.setattr(miniseries, "WARMUP", 4)
    return tmp_path


def losses(path):
    return {float(row["tokens_per_parameter"]): float(row["loss"]) for row in rows(path)}


def test_stopped_in_trunk_and_branch_it_ends_with_the_same_losses(texts, monkeypatch):
    whole, parts = texts / "whole.csv", texts / "parts.csv"
    Series(texts, texts / "a", whole, [], float("inf")).work(TINY, (1, 2, 4))
    expected = losses(whole)
    assert list(expected) == [1, 2, 4] and expected[4] < expected[2] < expected[1]
    alone = texts / "alone.csv"  # no branch leaves a trace in the trunk
    Series(texts, texts / "alone", alone, [], float("inf")).work(TINY, (4,))
    assert losses(alone)[4] == expected[4]

    counted, step = [], miniseries.Step.__call__

    def counting(self, batch, lr):
        counted.append(lr)
        if len(counted) in stops:
            asked.append(2)
        return step(self, batch, lr)

    monkeypatch.setattr(miniseries.Step, "__call__", counting)
    stops = (3, 8, 20)  # in the trunk; in a branch; in a later trunk
    for _ in range(4):
        asked = []
        Series(texts, texts / "b", parts, asked, float("inf")).work(TINY, (1, 2, 4))
    assert losses(parts) == expected
    branches = sum(TINY.steps(p) - round(0.8 * TINY.steps(p)) for p in (1, 2, 4))
    needed = round(0.8 * TINY.steps(4)) + branches
    assert needed <= len(counted) <= needed + 5  # what is saved is not trained again


def test_the_rate_is_constant_and_then_falls_to_zero(texts, monkeypatch):
    rates, step = [], miniseries.Step.__call__
    monkeypatch.setattr(
        miniseries.Step,
        "__call__",
        lambda self, batch, lr: (rates.append(lr), step(self, batch, lr))[1],
    )
    Series(texts, texts / "c", texts / "c.csv", [], float("inf")).work(TINY, (4,))
    steps = TINY.steps(4)
    assert len(rates) == steps
    turn = round(0.8 * steps)
    assert rates[4:turn] == [TINY.lr] * (turn - 4)
    fall = np.diff([*rates[turn:], 0.0])
    assert np.allclose(fall, -TINY.lr / (steps - turn))


def test_each_pass_brings_all_sizes_to_one_budget():
    runs = list(plan(320, list(range(len(SHAPES)))))
    assert {(r.layers, r.dim) for r, _ in runs if r.role == "series"} == set(SHAPES)
    last = {(r.layers, r.dim): points for r, points in runs if (r.role, r.seed) == ("series", 0)}
    assert set(last.values()) == {POINTS}  # in the end every size has them all
    first = [r for r, _ in runs].index(Run(2, 64, seed=1))
    reached = [6 * r.parameters**2 * p[-1] for r, p in runs[:first] if r.role == "series"]
    assert max(reached) / min(reached) < 2
    sizes = [Run(*shape).parameters for shape in SHAPES]
    assert sizes == sorted(sizes) and sizes[0] < 1.1e5 and 12e6 < sizes[-1] < 13e6


def test_parameters_are_those_of_the_model():
    from llama_course.model import Llama

    for shape in SHAPES[:3]:
        run = Run(*shape)
        model = Llama(run.config)
        outside = model.tok_embeddings.weight.numel() + model.output.weight.numel()
        assert run.parameters == sum(p.numel() for p in model.parameters()) - outside


def test_held_out_packages_come_first_and_are_not_trained_on(monkeypatch):
    text = "import os\n\n\ndef cut(names):\n    return [name.strip() for name in names]\n" * 9
    given = [Document("werkzeug", "a.py", text), Document("zlib", "copy.py", text)]
    given += [Document("zlib", "b.py", text.replace("name", "line").replace("cut", "trim"))]
    monkeypatch.setattr(package_texts, "sources", lambda: iter(given))
    train, held, counts = package_texts.cleaned()
    assert [d.name for d in held["werkzeug"]] == ["a.py"]
    assert "copy.py" not in [d.name for d in train]  # what is held out is nowhere else
    assert counts[0]["documents_in"] == 3


def test_the_committed_results_agree_with_their_recipe():
    table = rows(miniseries.RESULTS)
    assert table and len({row["texts"] for row in table}) == 1
    for row in table:
        run = Run(int(row["layers"]), int(row["dim"]))
        ratio = float(row["tokens_per_parameter"])
        assert int(row["parameters"]) == run.parameters
        assert int(row["tokens"]) == run.steps(ratio) * 2048
        if row["role"] != "repeat":
            assert float(row["epochs"]) <= miniseries.EPOCHS
        parts = [float(row[f"loss_{name}"]) for name in package_texts.HELD_OUT]
        assert min(parts) < float(row["loss"]) < max(parts)
