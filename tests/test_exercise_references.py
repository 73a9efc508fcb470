"References of the exercises, against what others wrote."

import json

import pytest
import torch
from scipy import stats
from transformers.models.llama import modeling_llama

from llama_course.classroom.exercise import find_exercise
from llama_course.classroom.judges.formats.read_gguf import _write_gguf


def truth(name):
    return find_exercise(name).truth


def cases(name, seed=11):
    return list(find_exercise(name).make_cases(seed))


@pytest.mark.parametrize("right, n", [(0, 1), (3, 8), (20, 20), (700, 14042)])
def test_wilson_is_scipys(right, n):
    for level in (0.8, 0.95):
        theirs = stats.binomtest(right, n).proportion_ci(level, method="wilson")
        ours = truth("wilson_interval")(right, n, level).tolist()
        assert ours == pytest.approx([theirs.low, theirs.high], rel=1e-9, abs=1e-12)


def test_the_test_for_pairs_is_scipys():
    for ours, theirs in cases("paired_p_value"):
        more = sum(a and not b for a, b in zip(ours, theirs))
        m = sum(a != b for a, b in zip(ours, theirs))
        want = stats.binomtest(more, m).pvalue if m else 1.0
        assert truth("paired_p_value")(ours, theirs) == pytest.approx(want, rel=1e-9)


def test_the_error_by_groups_is_that_of_a_mean_where_groups_are_single():
    ours, theirs = torch.rand(2, 30, dtype=torch.float64).tolist()
    want = stats.sem([a - b for a, b in zip(ours, theirs)], ddof=0)
    found = truth("clustered_error")(ours, theirs, list(range(30)))
    assert found[1].item() == pytest.approx(want, rel=1e-12)


def test_steps_are_those_of_torchs_optimizers():
    "The reference has formulas; here are PyTorch's own classes, which the answers use as well."
    for args in cases("train_steps"):
        losses, *weights = truth("train_steps")(*args)
        exercise = find_exercise("train_steps")
        found = exercise.call(exercise.rights[0], *args)
        torch.testing.assert_close(found[0], losses, rtol=1e-6, atol=0, equal_nan=True)
        for ours, theirs in zip(found[1:], weights):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_parallel_block_is_that_of_transformers():
    config = modeling_llama.LlamaConfig(hidden_size=8, intermediate_size=24, num_attention_heads=2)
    block = modeling_llama.LlamaMLP(config).double()
    x, grad = torch.randn(2, 2, 3, 8, dtype=torch.float64)
    x.requires_grad_()
    weights = [getattr(block, f"{name}_proj").weight for name in ("gate", "down", "up")]
    y = block(x)
    y.backward(grad)
    w1, w2, w3 = (w.detach() for w in weights)
    for n in (1, 2, 4):
        parts = truth("parallel_swiglu")(x.detach(), w1, w2, w3, grad, n)
        for rank, (ours, dx, d1, d2, d3) in enumerate(parts):
            torch.testing.assert_close(ours, y.detach())
            torch.testing.assert_close(dx, x.grad)
            wanted = [w.grad.chunk(n, dim)[rank] for w, dim in zip(weights, (0, 1, 0))]
            for found, want in zip((d1, d2, d3), wanted):
                torch.testing.assert_close(found, want)


def test_gguf_as_it_is_written_is_read_by_gguf(tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf comes with the extra `smollm`")
    metadata = {
        "general.alignment": (4, 64),
        "general.architecture": (8, "llama"),
        "tokens": ((8,), ["<s>", "▁the"]),
        "eps": (6, 0.5),
    }
    tensors = {"a.weight": ((2, 3), 0, 0), "b.weight": ((4,), 0, 64)}
    file, (settings, table) = _write_gguf(metadata, tensors)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file)
    reader = gguf.GGUFReader(path)
    found = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert found == settings
    for t in reader.tensors:
        shape, kind, place = table[t.name]
        assert tuple(map(int, t.shape[::-1])) == shape and int(t.tensor_type) == kind
        assert t.data_offset == place
    json.dumps(table)
