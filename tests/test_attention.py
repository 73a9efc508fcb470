"""Attention in blocks: values, gradients, errors against float64, costs, and the choice of four."""

import inspect
import json
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from forked import as_program, ran
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llama_course import attention
from llama_course.attention import (
    BACKENDS,
    Attention,
    attend,
    blockwise_attention,
    causal_attention,
    check_backend,
    fused_attention,
    tiles,
    use_attention,
    xformers_attention,
)
from llama_course.data import Document
from llama_course.launch.run import train_in_folder
from llama_course.model import Llama, LlamaConfig, Parts
from llama_course.rope import rotary_table
from llama_course.support.errors import UserError
from llama_course.support.ledger import ledger
from llama_course.support.shards import Shard, write_shard
from llama_course.training import Recipe, Step

many = settings(max_examples=25, deadline=None, derandomize=True, database=None)
shapes = dict(
    B=st.integers(1, 2),
    K=st.integers(1, 3),
    group=st.integers(1, 3),
    T=st.integers(1, 40),
    past=st.sampled_from([0, 0, 1, 5, 17]),
    Q=st.sampled_from([2, 8, 24]),
    block=st.integers(1, 50),
    seed=st.integers(0, 2**31),
)
HERE = ("naive", "rows", "blockwise", "sdpa")  # what runs without a GPU


def drawn(B, H, K, T, S, Q, dtype=torch.float64):
    return [
        torch.randn(B, heads, n, Q, dtype=torch.float64).to(dtype).requires_grad_()
        for heads, n in ((H, T), (K, S), (K, S))
    ]


def by_mask(q, k, v):
    "PyTorch's own attention in float64 with an explicit mask and explicit copies: nothing of ours."
    T, S, group = q.size(2), k.size(2), q.size(1) // k.size(1)
    seen = torch.arange(S) <= torch.arange(S - T, S)[:, None]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q.double(), k, v, attn_mask=seen)


# --- values and gradients


@many
@given(**shapes)
def test_blockwise_is_attention(B, K, group, T, past, Q, block, seed):
    torch.manual_seed(seed)
    args = drawn(B, K * group, K, T, past + T, Q)
    out, expected, grad = (
        blockwise_attention(*args, block),
        by_mask(*args),
        torch.randn(B, K * group, T, Q).double(),
    )
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    ours, theirs = (torch.autograd.grad(o, args, grad) for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "H, K, T, S, block", [(2, 2, 7, 7, 3), (4, 2, 3, 8, 2), (3, 1, 1, 5, 4), (2, 1, 5, 5, 128)]
)
def test_gradcheck(H, K, T, S, block):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(
        lambda *args: blockwise_attention(*args, block), drawn(2, H, K, T, S, 4)
    )


def test_scores_that_overflow_exp():
    torch.manual_seed(1)
    q, k, v = drawn(1, 2, 2, 30, 30, 8)
    q, k = 60 * q.detach(), 60 * k.detach()  # scores of ten thousand, in every order
    torch.testing.assert_close(blockwise_attention(q, k, v, 7), by_mask(q, k, v))
    rising = torch.arange(30.0).double().view(1, 1, 30, 1).expand(1, 2, 30, 8) * 30
    for k in (rising, -rising):  # the maximum climbs at each tile, or never
        torch.testing.assert_close(
            blockwise_attention(torch.ones_like(k), k, v, 7), by_mask(torch.ones_like(k), k, v)
        )


def test_a_second_derivative_is_refused():
    q, k, v = drawn(1, 1, 1, 4, 4, 2)
    (first,) = torch.autograd.grad(
        blockwise_attention(q, k, v).square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_some_need_a_gradient():
    q, k, v = drawn(1, 2, 1, 9, 9, 4)
    full = torch.autograd.grad(blockwise_attention(q, k, v, 4).sum(), (q, k, v))
    (only,) = torch.autograd.grad(blockwise_attention(q.detach(), k.detach(), v, 4).sum(), v)
    torch.testing.assert_close(only, full[2])
    with torch.no_grad():
        assert not blockwise_attention(q, k, v).requires_grad


def test_strided_arguments_and_gradients():
    torch.manual_seed(2)
    q, k, v = (
        torch.randn(2, 9, heads, 8, requires_grad=True) for heads in (4, 2, 2)
    )  # (B, T, H, Q), as in the layer
    turn = lambda f: f(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    grad = torch.randn(8, 2, 9, 4).permute(1, 2, 3, 0)
    ours, theirs = (
        torch.autograd.grad(turn(f), (q, k, v), grad)
        for f in (lambda *a: blockwise_attention(*a, 4), causal_attention)
    )
    torch.testing.assert_close(ours, theirs)


# --- how exact it is


def moments(attention, T, dtype, H=1, Q=32):
    "Mean and root mean square of the errors of result and gradients, in eps; how many numbers."
    torch.manual_seed(T)
    args = drawn(1, H, H, T, T, Q, dtype)
    exact = [t.detach().double().requires_grad_() for t in args]
    grad, out, truth = torch.randn(1, H, T, Q).to(dtype), attention(*args), causal_attention(*exact)
    assert out.dtype == dtype
    pairs = list(
        zip(torch.autograd.grad(out, args, grad), torch.autograd.grad(truth, exact, grad.double()))
    )
    size = max(
        b.square().mean().sqrt() for _, b in pairs
    )  # the first query's score has no gradient at all
    for ours, true, scale in (
        (out, truth, truth.square().mean().sqrt()),
        *((a, b, size) for a, b in pairs),
    ):
        error = (ours.double() - true) / (scale * torch.finfo(dtype).eps)
        yield error.mean().item(), error.square().mean().sqrt().item(), error.numel()


@pytest.mark.parametrize("dtype, noise", [(torch.float32, 5.0), (torch.bfloat16, 0.6)])
@pytest.mark.parametrize("T", [1, 2, 3, 31, 127, 128, 129, 255, 1000, 2049, 4096])
def test_moments_of_the_error(T, dtype, noise):
    for mean, rms, n in moments(blockwise_attention, T, dtype):
        assert rms < noise and abs(mean) < 0.15 + 4 * rms / n**0.5


def test_the_moments_see_a_loss_of_precision():
    "Products in 16 bits, as mixed precision would make them, break the bound of the measure."
    rough = lambda q, k, v: (
        (
            q.bfloat16() @ k.bfloat16().mT / q.size(-1) ** 0.5
            + torch.full((q.size(2), q.size(2)), -torch.inf).triu(1)
        )
        .softmax(-1)
        .to(v.dtype)
        @ v
    )
    assert max(rms for _, rms, _ in moments(rough, 127, torch.float32)) > 5


@pytest.mark.parametrize("T", [1, 100, 130])
def test_mixed_precision_does_not_reach_inside(T):
    torch.manual_seed(3)
    q, k, v = drawn(1, 2, 2, T, T, 16, torch.bfloat16)
    plain = blockwise_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = blockwise_attention(q, k, v)
        inside = torch.autograd.grad(mixed.sum(), (q, k, v))
    assert torch.equal(plain, mixed)
    for a, b in zip(inside, torch.autograd.grad(plain.sum(), (q, k, v))):
        assert torch.equal(a, b)


# --- what it costs


def counted(attention, T, S=None, H=2, K=None, Q=16, dtype=torch.float32, device="cpu"):
    q, k, v = (
        torch.randn(1, heads, n, Q, dtype=dtype, device=device, requires_grad=True)
        for heads, n in ((H, T), (K or H, S or T), (K or H, S or T))
    )
    return ledger(attention, q, k, v)


@pytest.mark.parametrize("T", [512, 700, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_is_ever_made(T, dtype):
    seen = counted(blockwise_attention, T, dtype=dtype, Q=64)
    assert seen.largest_tensor == 2 * T * 64 < T * T  # the queries themselves
    assert seen.saved_bytes == 2 * T * 4  # one float32 a query and head
    one_head = counted(blockwise_attention, T, H=1, Q=8, dtype=dtype)
    assert one_head.largest_tensor == max(128 * 128, 8 * T) < T * T
    assert counted(causal_attention, T, dtype=dtype, Q=64).largest_tensor >= 2 * T * T


def test_saved_bytes_grow_with_the_text():
    saved = [counted(blockwise_attention, T).saved_bytes for T in (100, 200, 400, 800)]
    assert saved == [2 * T * 4 for T in (100, 200, 400, 800)]
    with_cache = counted(blockwise_attention, 64, S=1000, K=1)
    assert with_cache.saved_bytes == 2 * 64 * 4 and with_cache.largest_tensor <= 2 * 128 * 128


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_skip_halves_the_flops(n):
    lean, square = (
        counted(lambda *a: blockwise_attention(*a, block), 32 * n) for block in (32, 32 * n)
    )
    for count in ("flops", "backward_flops"):
        assert getattr(lean, count) / getattr(square, count) == (n + 1) / (2 * n)
    assert square.flops == counted(causal_attention, 32 * n).flops == 4 * 2 * (32 * n) ** 2 * 16
    assert square.backward_flops == 2.5 * square.flops  # the scores once more


@many
@given(T=st.integers(1, 60), past=st.integers(0, 30), block=st.integers(1, 70))
def test_tiles(T, past, block):
    S, visits = past + T, torch.zeros(T, past + T)
    for rows, columns in tiles(T, S, block):
        for c in columns:
            assert c.stop - c.start <= block and rows.stop - rows.start <= block
            assert c.start <= past + rows.stop - 1, "a tile that nobody in it may see"
            visits[rows, c] += 1
    assert (visits.tril(past) == torch.ones(T, S).tril(past)).all() and visits.max() <= 1


def test_counting_needs_no_memory():
    seen = counted(
        lambda *a: blockwise_attention(*a, 1024),
        4096,
        H=32,
        Q=128,
        dtype=torch.bfloat16,
        device="meta",
    )
    assert (
        seen.saved_bytes == 32 * 4096 * 4
        and seen.largest_tensor == 32 * 1024 * 1024 < 32 * 4096 * 4096
    )


# --- one argument


@pytest.mark.parametrize("backend", HERE)
def test_the_layer_by_each_backend(backend):
    torch.manual_seed(4)
    layer, x = Attention(64, 4, 2).double(), torch.randn(2, 19, 64).double()
    table, results = rotary_table(16, 19), []
    for name in ("naive", backend):
        layer.zero_grad()
        y = use_attention(layer, name)(x, table)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(*results)


def small_model(**how):
    torch.manual_seed(5)
    return Llama(LlamaConfig(32, 2, 4, 2, vocab_size=50, hidden_dim=48, max_seq_len=64), **how)


@pytest.mark.parametrize("backend", HERE)
def test_the_model_and_one_step_by_each_backend(backend, monkeypatch):
    calls = []
    for name in HERE:
        run = BACKENDS[name]
        monkeypatch.setitem(
            BACKENDS, name, lambda *a, name=name, run=run: calls.append(name) or run(*a)
        )
    batch = torch.randint(50, (2, 41), generator=torch.Generator().manual_seed(6))
    plain, chosen = small_model(), small_model(attention=backend)
    torch.testing.assert_close(chosen(batch), plain(batch))
    recipe = dict(steps=1, proportions={}, batch_size=2, seq_len=40)
    other = small_model()
    calls.clear()
    results = [
        Step(model, Recipe(**recipe, **more))(batch, 1e-3)
        for model, more in ((plain, {}), (chosen, {}), (other, {"attention": backend}))
    ]
    assert calls == ["sdpa"] * 2 + [backend] * 4  # two layers each
    for loss, norm in results:
        assert abs(loss - results[0][0]) < 1e-6 and abs(norm - results[0][1]) < 1e-4
    for a, b, c in zip(plain.parameters(), chosen.parameters(), other.parameters()):
        torch.testing.assert_close(b, c, rtol=0, atol=0)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_cache_by_each_backend():
    from llama_course.generation import generate

    said = [
        list(generate(small_model(attention=backend).eval(), [3, 1, 4, 1, 5], 12, temperature=0))
        for backend in HERE
    ]
    assert said[0] == said[1] == said[2]


def test_own_parts_keep_their_attention():
    class Mine(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, x, *_):
            return x

    small_model(parts=Parts(attention=Mine))  # nothing is asked for
    with pytest.raises(UserError, match="its own"):
        small_model(parts=Parts(attention=Mine), attention="naive")


def test_compiled_in_one_graph():
    torch.manual_seed(7)
    args = [t.float().detach().requires_grad_() for t in drawn(1, 2, 1, 20, 20, 8)]
    compiled = torch.compile(
        lambda *a: blockwise_attention(*a, 12), backend="aot_eager", fullgraph=True
    )
    out, expected = compiled(*args), by_mask(*args).float()
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(o.square().sum(), args) for o in (out, expected))
    torch.testing.assert_close(ours, theirs)


# --- a run


def one_shard(folder):
    class Bytes:  # as little as a shard needs
        vocab_size, fingerprint = 256, "ab" * 32

        def encode(self, text, bos=False, eos=False):
            return list(text.encode())

    path = folder / "text.tokens"
    write_shard(path, [Document("text", "a", inspect.getsource(attention))], Bytes())
    return {"text": Shard(path)}


def test_a_run_notes_its_attention_and_goes_on_only_with_it(tmp_path):
    shards = one_shard(tmp_path)
    config = LlamaConfig(32, 1, 2, vocab_size=256, hidden_dim=48, max_seq_len=32)
    losses = {}
    for backend in (None, *HERE):
        torch.manual_seed(8)
        recipe = Recipe(3, {"text": 1.0}, batch_size=2, seq_len=16, warmup=1, attention=backend)
        train_in_folder(Llama(config), shards, recipe, tmp_path / str(backend))
        lines = (tmp_path / str(backend) / "metrics.jsonl").read_text().splitlines()
        losses[backend] = [json.loads(line)["loss"] for line in lines]
    assert losses[None] == losses["sdpa"]
    for backend in HERE:
        assert losses[backend] == pytest.approx(losses["sdpa"], rel=1e-4)
    with pytest.raises(UserError, match="attention was naive, is blockwise"):
        other = Recipe(3, {"text": 1.0}, batch_size=2, seq_len=16, warmup=1, attention="blockwise")
        train_in_folder(Llama(config), shards, other, tmp_path / "naive")


def test_the_command_refuses_before_anything_is_made(tmp_path):
    from llama_course.command.cli import app

    (tmp_path / "a.txt").write_text("to be or not to be\n" * 100)
    for name, text in (
        ("flash", "no attention is called 'flash'"),
        ("xformers", "attention 'xformers'"),
    ):
        if name == "xformers" and torch.cuda.is_available():
            continue
        result = CliRunner().invoke(
            app,
            [
                "train",
                str(tmp_path / "a.txt"),
                "--run",
                str(tmp_path / "run"),
                "--steps",
                "1",
                "--attention",
                name,
            ],
        )
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and text in result.stderr, (
            result.stderr
        )
        assert not (tmp_path / "run").exists()


# --- xformers


class Aligned:
    "In the place of LowerTriangularMask."


class BottomRight:
    "In the place of LowerTriangularFromBottomRightMask."


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
    "What its documentation says it takes and computes: (B, M, H, K), equal heads, a kind of mask."
    assert query.ndim == key.ndim == value.ndim == 4 and p == 0.0 and scale is None and op is None
    (B, Mq, H, K), Mk = query.shape, key.shape[1]
    assert key.shape == value.shape == (B, Mk, H, K), "xformers does not broadcast"
    assert query.dtype == key.dtype == value.dtype and all(
        t.stride(-1) == 1 for t in (query, key, value)
    )
    if query.dtype == torch.float64:
        raise NotImplementedError("No operator found for ...")
    assert type(attn_bias) in (Aligned, BottomRight), "an instance of the mask, not the class"
    past = Mk - Mq if isinstance(attn_bias, BottomRight) else 0
    scores = torch.einsum("bmhk,bnhk->bhmn", query, key) / K**0.5
    scores = scores.masked_fill(torch.arange(Mk) > torch.arange(Mq)[:, None] + past, -torch.inf)
    return torch.einsum("bhmn,bnhk->bmhk", scores.softmax(-1), value)


@pytest.fixture
def xformers(monkeypatch):
    "A machine with a GPU and xformers, as far as the library can tell."
    names = "xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias"
    modules = {name: ModuleType(name) for name in names}
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    modules["xformers.ops"].LowerTriangularMask = Aligned
    modules["xformers.ops.fmha.attn_bias"].LowerTriangularFromBottomRightMask = BottomRight
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    "H, K, T, S", [(4, 4, 9, 9), (4, 2, 9, 9), (6, 1, 5, 12), (4, 4, 1, 12), (4, 2, 1, 1)]
)
def test_xformers_gets_what_it_takes(xformers, H, K, T, S):
    torch.manual_seed(9)
    args = drawn(2, H, K, T, S, 8, torch.float32)
    out, expected = attend(*args, "xformers"), attend(*args, "naive")
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(o, args, grad) for o in (out, expected)))


def test_a_model_by_xformers(xformers):
    batch = torch.randint(50, (2, 21), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(small_model(attention="xformers")(batch), small_model()(batch))


def test_xformers_without_a_kernel(xformers):
    with pytest.raises(
        UserError, match="no kernel for heads of width 8 in torch.float64 on cpu: choose sdpa"
    ):
        xformers_attention(*drawn(1, 2, 2, 4, 4, 8))


def test_xformers_where_it_cannot_run(monkeypatch):
    q, k, v = drawn(1, 2, 2, 4, 4, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ask in (
        lambda: attend(q, k, v, "xformers"),
        lambda: check_backend("xformers"),
        lambda: small_model(attention="xformers"),
        lambda: use_attention(Attention(32, 4), "xformers"),
    ):
        with pytest.raises(UserError, match="needs an NVIDIA GPU") as caught:
            ask()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers", None)  # importing it fails
    with pytest.raises(UserError, match="pip install xformers"):
        check_backend("xformers")


def test_xformers_is_not_imported_unasked():
    code = (
        "import sys, llama_course.training, llama_course.command.cli;"
        " assert 'xformers' not in sys.modules"
    )
    assert ran(as_program, code).returncode == 0


def test_unknown_names():
    with pytest.raises(UserError, match="choose one of naive, rows, blockwise, sdpa, xformers"):
        check_backend("flash")
    assert list(BACKENDS) == ["naive", "rows", "blockwise", "sdpa", "xformers"]
    assert inspect.signature(attend).parameters["backend"].default == Attention.backend == "sdpa"
    assert BACKENDS["sdpa"] is fused_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("B", "H", "K", "T", "S"), [(3, 6, 2, 1, 50), (1, 4, 4, 1, 7), (2, 4, 1, 5, 9)]
)
def test_a_mask_of_ones_own_is_obeyed_in_every_dtype(dtype, B, H, K, T, S):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, n, m, 16).to(dtype) for n, m in ((H, T), (K, S), (K, S)))
    mask = torch.rand(B, T, S) > 0.5
    mask[..., 0] = True  # a query that sees nothing has no mean
    wide = [t.double() for t in (q, k, v)]
    want = F.scaled_dot_product_attention(*wide, attn_mask=mask[:, None], enable_gqa=True)
    found = attention.masked_attention(q, k, v, mask)
    assert found.dtype == dtype and found.shape == q.shape
    torch.testing.assert_close(found.double(), want, rtol=0, atol=4 * torch.finfo(dtype).eps)
