"""Norm, feed-forward part, rotary positions, attention against references, over random shapes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as hf

from llama_course.attention import Attention, attend, causal_attention
from llama_course.feedforward import FeedForward, hidden_dim
from llama_course.norm import RMSNorm
from llama_course.rope import (
    adjacent_to_half,
    apply_rotary,
    apply_rotary_half,
    half_to_adjacent,
    pairs_written_out,
    rotary_table,
)

many = settings(max_examples=30, deadline=None, derandomize=True, database=None)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
seeds = st.integers(0, 2**31)


def assert_near(ours, expected, eps, times=8):
    "`ours` has the values of the float64 `expected`, up to a few `eps` of its largest."
    assert ours.shape == expected.shape
    error = (ours.double() - expected).abs().max() / expected.abs().max()
    assert error <= times * eps, f"error {error:.2e} is {error / eps:.1f} eps"


def eps_of(dtype):
    return torch.finfo(dtype).eps


# --- norm


@many
@given(
    dtype=dtypes,
    shape=st.lists(st.integers(1, 5), max_size=3),
    dim=st.integers(1, 300),
    seed=seeds,
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    eps=st.sampled_from([1e-5, 1e-6, 1e-2]),
)
def test_norm_values(dtype, shape, dim, seed, size, eps):
    torch.manual_seed(seed)
    norm = RMSNorm(dim, eps).to(dtype)
    norm.weight.data = torch.rand(dim).to(dtype) + 0.5
    x = (size * torch.randn(*shape, dim)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    expected = x.double().numpy() / np.sqrt((x.double().numpy() ** 2).mean(-1, keepdims=True) + eps)
    assert_near(y, torch.from_numpy(expected) * norm.weight.double(), eps_of(dtype))


def test_norm_against_transformers():
    theirs, ours = hf.LlamaRMSNorm(48, eps=1e-6), RMSNorm(48, eps=1e-6)
    theirs.weight.data = ours.weight.data = torch.rand(48)
    x = torch.randn(3, 7, 48)
    torch.testing.assert_close(ours(x), theirs(x))


def test_norm_gradients_and_scale():
    norm = RMSNorm(12).double()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)

    def call(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, x)

    assert torch.autograd.gradcheck(call, (x, norm.weight))
    torch.testing.assert_close(
        RMSNorm(12, eps=0.0).double()(1000 * x), RMSNorm(12, eps=0.0).double()(x)
    )
    zero = torch.zeros(2, 12, requires_grad=True)
    RMSNorm(12)(zero).sum().backward()
    assert zero.grad.isfinite().all()


# --- feed-forward


def test_hidden_dim():
    assert [hidden_dim(d) for d in (4096, 5120, 6656, 8192)] == [
        11008,
        13824,
        17920,
        22016,
    ]  # 7B 13B 33B 65B
    for dim in range(1, 3000, 7):
        for multiple_of in (1, 64, 256):
            release = multiple_of * ((int(2 * (4 * dim) / 3) + multiple_of - 1) // multiple_of)
            assert hidden_dim(dim, multiple_of) == release


@many
@given(
    dtype=dtypes,
    shape=st.lists(st.integers(1, 5), max_size=3),
    dim=st.integers(1, 100),
    hidden=st.integers(1, 300),
    seed=seeds,
)
def test_feed_forward_values(dtype, shape, dim, hidden, seed):
    torch.manual_seed(seed)
    ff, x = FeedForward(dim, hidden).to(dtype), torch.randn(*shape, dim).to(dtype)
    y = ff(x)
    assert y.dtype == dtype
    w1, w2, w3 = (w.weight.double() for w in (ff.w1, ff.w2, ff.w3))
    gate, value, exact = x.double() @ w1.T, x.double() @ w3.T, x.double()
    hidden_units = gate / (1 + torch.exp(-gate)) * value
    # what the sums are made of, so that sums which cancel are not judged by what is left of them
    scale = ((exact.abs() @ w1.T.abs()) * (exact.abs() @ w3.T.abs()) @ w2.T.abs()).max()
    assert ((y.double() - hidden_units @ w2.T).abs().max() / scale).item() < 2 * eps_of(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_feed_forward_against_transformers(dtype):
    torch.manual_seed(0)
    ours = FeedForward(32, 96).to(dtype)
    theirs = hf.LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=96)).to(dtype)
    names = {"gate_proj": ours.w1, "down_proj": ours.w2, "up_proj": ours.w3}
    theirs.load_state_dict({f"{name}.weight": w.weight for name, w in names.items()})
    x = torch.randn(2, 5, 32, dtype=dtype)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name, w in names.items():
        torch.testing.assert_close(w.weight.grad, getattr(theirs, name).weight.grad)


def test_feed_forward_gradients_and_tokens():
    ff, x = (
        FeedForward(6, 16).double(),
        torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(ff, x)
    assert [name for name, _ in ff.named_parameters()] == ["w1.weight", "w2.weight", "w3.weight"]
    for t in range(4):
        torch.testing.assert_close(ff(x)[:, t], ff(x[:, t]))


# --- rotary positions


def complex_rotation(x, positions, theta):
    "Adjacent pairs as complex numbers, in complex128."
    Q, x = x.size(-1), x.double().numpy()
    angle = np.outer(positions.numpy(), theta ** (-np.arange(0, Q, 2) / Q))[:, None]
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return torch.from_numpy(np.stack([z.real, z.imag], -1).reshape(x.shape))


def halves(x):
    "Adjacent layout to halves, along the last dimension."
    return torch.cat([x[..., 0::2], x[..., 1::2]], -1)


rope_shapes = dict(
    dtype=dtypes,
    B=st.integers(1, 3),
    H=st.integers(1, 4),
    pairs=st.integers(1, 40),
    seed=seeds,
    positions=st.lists(st.integers(0, 2047), min_size=1, max_size=9),
    theta=st.sampled_from([10000.0, 500000.0, 100.0]),
)


@many
@given(**rope_shapes)
def test_rotary_values(dtype, B, H, pairs, seed, positions, theta):
    torch.manual_seed(seed)
    positions = torch.tensor(positions)
    x = torch.randn(B, len(positions), H, 2 * pairs).to(dtype)
    table = rotary_table(2 * pairs, 2048, theta)[positions]
    y, half = apply_rotary(x, table), apply_rotary_half(halves(x), table)
    expected = complex_rotation(x, positions, theta)
    # the angle is float32: of a position of 2047 radians its epsilon times 2047 is known
    eps = max(eps_of(dtype), (1 + positions.max().item()) * eps_of(torch.float32) / 8)
    assert y.dtype == half.dtype == dtype
    assert_near(y, expected, eps)
    assert_near(half, halves(expected), eps)


@many
@given(**rope_shapes)
def test_rotary_against_transformers(dtype, B, H, pairs, seed, positions, theta):
    torch.manual_seed(seed)
    positions = torch.tensor(positions)
    q, k = torch.randn(2, B, len(positions), H, 2 * pairs).to(dtype)
    config = LlamaConfig(
        hidden_size=2 * pairs * H,
        num_attention_heads=H,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    cos, sin = hf.LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])  # float32
    table = rotary_table(2 * pairs, 2048, theta)[positions]
    theirs = hf.apply_rotary_pos_emb(
        halves(q).double(), halves(k).double(), cos, sin, unsqueeze_dim=2
    )
    for x, expected in zip((q, k), theirs):
        assert_near(apply_rotary_half(halves(x), table), expected, eps_of(dtype))
        assert_near(halves(apply_rotary(x, table)), expected, eps_of(dtype))


@many
@given(
    H=st.integers(1, 4),
    pairs=st.integers(1, 8),
    distance=st.integers(0, 500),
    shift=st.integers(0, 1500),
    seed=seeds,
)
def test_rotary_scores_depend_on_distance(H, pairs, distance, shift, seed):
    torch.manual_seed(seed)
    q, k = torch.randn(2, 1, 1, H, 2 * pairs, dtype=torch.float64)
    table = rotary_table(2 * pairs, 2048)
    for rotate in (apply_rotary, apply_rotary_half):

        def score(m, n):
            return (rotate(q, table[m : m + 1]) * rotate(k, table[n : n + 1])).sum(-1)

        assert torch.equal(rotate(q, table[:1]), q)
        size = q.norm() * k.norm()
        error = (score(distance + shift, shift) - score(distance, 0)).abs().max() / size
        assert error < 2048 * eps_of(torch.float32)


def test_rotary_moves_with_position():
    x, table = torch.ones(1, 50, 1, 8), rotary_table(8, 50)
    for rotate in (apply_rotary, apply_rotary_half):
        y = rotate(x, table)[0, :, 0]
        assert (torch.cdist(y, y) + 9 * torch.eye(50)).min() > 0.1  # no two positions alike
        torch.testing.assert_close(y.norm(dim=-1), x[0, :, 0].norm(dim=-1))  # and no length changed


@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_half, pairs_written_out])
def test_each_text_can_have_positions_of_its_own(rotate):
    x, positions, table = torch.randn(3, 7, 2, 8), torch.randint(50, (3, 7)), rotary_table(8, 50)
    together = rotate(x, table[positions])
    alone = torch.cat([rotate(x[i : i + 1], table[positions[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_half])
def test_rotary_gradients(rotate):
    table = rotary_table(6, 40)[torch.tensor([0, 3, 39])]
    x = torch.randn(2, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, table), x)


def test_rotary_table_is_float32():
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert rotary_table(8, 4).dtype == torch.float32
            table = rotary_table(128, 2048)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(table, rotary_table(128, 2048))


@many
@given(heads=st.integers(1, 6), pairs=st.integers(1, 6), dim=st.integers(1, 5), seed=seeds)
def test_permutation(heads, pairs, dim, seed):
    torch.manual_seed(seed)
    w, x = torch.randn(heads * 2 * pairs, dim), torch.randn(3, dim)
    permuted = adjacent_to_half(w, heads)
    assert torch.equal(half_to_adjacent(permuted, heads), w)
    assert torch.equal(adjacent_to_half(half_to_adjacent(w, heads), heads), w)
    by_head = (x @ w.T).unflatten(-1, (heads, -1))
    torch.testing.assert_close((x @ permuted.T).unflatten(-1, (heads, -1)), halves(by_head))


# --- attention


def attention_by_query(q, k, v):
    "One query after the other, over the keys that it may see: no mask, float64."
    (H, T, Q), (K, S) = q.shape[1:], k.shape[1:3]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty_like(q)
    for h in range(H):
        for t in range(T):
            keys, values = (x[:, h * K // H, : S - T + t + 1] for x in (k, v))
            weights = (keys @ q[:, h, t, :, None] / math.sqrt(Q)).softmax(1)
            out[:, h, t] = (weights * values).sum(1)
    return out


shapes = dict(
    B=st.integers(1, 2),
    K=st.integers(1, 3),
    group=st.integers(1, 3),
    T=st.integers(1, 40),
    past=st.sampled_from([0, 0, 1, 17]),
    Q=st.sampled_from([2, 8, 24, 64]),
    seed=seeds,
)


@pytest.mark.parametrize("attention", [causal_attention, attend])
@many
@given(dtype=dtypes, size=st.sampled_from([0.1, 1.0, 4.0]), **shapes)
def test_attention_values(attention, dtype, size, B, K, group, T, past, Q, seed):
    torch.manual_seed(seed)
    q = (size * torch.randn(B, K * group, T, Q)).to(dtype)
    k, v = (torch.randn(B, K, past + T, Q).to(dtype) for _ in range(2))
    out = attention(q, k, v)
    assert out.dtype == dtype
    # a score is off by its own size times epsilon, and the weight of a key by as much
    largest = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() / math.sqrt(Q)).item()
    expected = attention_by_query(q, k, v)
    error = (out.double() - expected).abs().max() / v.double().abs().max()
    assert error < (2 + largest) * eps_of(dtype)


@pytest.mark.parametrize("attention", [causal_attention, attend])
@many
@given(**shapes)
def test_attention_future(attention, B, K, group, T, past, Q, seed):
    torch.manual_seed(seed)
    q = torch.randn(B, K * group, T, Q, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(B, K, past + T, Q, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    t = int(torch.randint(T, ()))  # the last query that is looked at
    seen = attention(q, k, v)[:, :, : t + 1]
    later = torch.arange(past + T)[:, None] > past + t
    k2, v2 = (torch.where(later, 100 * torch.randn_like(x), x) for x in (k, v))
    torch.testing.assert_close(attention(q, k2, v2)[:, :, : t + 1], seen, rtol=1e-12, atol=1e-12)
    for grad in torch.autograd.grad(seen.square().sum(), (k, v)):
        assert not grad[:, :, past + t + 1 :].any()
    (present,) = torch.autograd.grad(attention(q, k, v)[:, :, t].square().sum(), v)
    assert present[:, :, past + t].any(), "a query must see its own position"


@pytest.mark.parametrize("attention", [causal_attention, attend])
@pytest.mark.parametrize("H, K, T, S", [(2, 2, 4, 4), (4, 2, 3, 5), (2, 1, 1, 4)])
def test_attention_gradients(attention, H, K, T, S):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, length, 4, dtype=torch.float64, requires_grad=True)
        for heads, length in ((H, T), (K, S), (K, S))
    )
    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_attention_against_torch_and_transformers():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    mask = torch.zeros(5, 9).masked_fill(torch.arange(9) > torch.arange(4, 9)[:, None], -torch.inf)

    class Layer:
        num_key_value_groups, training = 2, False

    theirs, _ = hf.eager_attention_forward(Layer, q, k, v, mask, 0.25)
    torchs = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    for attention in (causal_attention, attend):
        torch.testing.assert_close(attention(q, k, v), theirs.transpose(1, 2))
        torch.testing.assert_close(attention(q, k, v), torchs)


@pytest.mark.parametrize("H, K", [(4, 4), (4, 2)])
def test_attend_keeps_no_square(H, K):
    def kept(attention, T):
        sizes = {}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        q, k, v = (torch.randn(1, heads, T, 16, requires_grad=True) for heads in (H, K, K))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = attention(q, k, v)  # held, so that no storage is used twice
        assert out.shape == q.shape
        return sum(sizes.values())

    assert kept(attend, 1024) < 2.1 * kept(attend, 512)
    assert kept(causal_attention, 1024) > 3.5 * kept(causal_attention, 512)


@many
@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 4), (4, 2), (6, 2), (4, 1)]),
    pairs=st.integers(1, 12),
    B=st.integers(1, 2),
    T=st.integers(1, 30),
    seed=seeds,
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_layer_against_transformers(heads, pairs, B, T, dtype, seed):
    torch.manual_seed(seed)
    (H, K), Q = heads, 2 * pairs
    ours, x = Attention(H * Q, H, K).to(dtype), torch.randn(B, T, H * Q, dtype=dtype)
    config = LlamaConfig(hidden_size=H * Q, num_attention_heads=H, num_key_value_heads=K)
    config._attn_implementation = "sdpa"
    theirs = hf.LlamaAttention(config, layer_idx=0).to(dtype)

    def in_their_order(q, k, v, o):
        return {
            "q_proj": adjacent_to_half(q, H),
            "k_proj": adjacent_to_half(k, K),
            "v_proj": v,
            "o_proj": o,
        }

    layers = ours.wq, ours.wk, ours.wv, ours.wo
    weights = in_their_order(*(layer.weight.data for layer in layers))
    theirs.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()})
    y = ours(x, rotary_table(Q, T))
    expected, _ = theirs(x, hf.LlamaRotaryEmbedding(config)(x, torch.arange(T)[None]))
    assert_near(y, expected.double(), eps_of(dtype), 50)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    for name, ours_grad in in_their_order(*(layer.weight.grad for layer in layers)).items():
        theirs_grad = getattr(theirs, name).weight.grad
        scale = max(theirs_grad.abs().max().item(), 1e-2)  # a single key: no gradient in its score
        assert (ours_grad - theirs_grad).abs().max().item() / scale < 200 * eps_of(dtype)


class GrowingCache:
    k = v = None

    def update(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v if self.v is None else torch.cat([self.v, v], 2)
        return self.k, self.v


@many
@given(
    K=st.sampled_from([1, 2, 4]),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=seeds,
)
def test_layer_in_pieces(K, sizes, seed):
    torch.manual_seed(seed)
    T = sum(sizes)
    layer, table = Attention(32, 4, K).double(), rotary_table(8, T)
    x = torch.randn(2, T, 32, dtype=torch.float64)
    cache, pieces, start = GrowingCache(), [], 0
    for size in sizes:
        pieces.append(layer(x[:, start : start + size], table[start : start + size], cache=cache))
        start += size
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, table), rtol=1e-12, atol=1e-12)
    assert cache.k.shape == (2, K, T, 8)


def test_layer_names_and_default():
    layer = Attention(32, 4)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {f"w{letter}.weight": (32, 32) for letter in "qkvo"}
    assert Attention(32, 4, 2).wk.weight.shape == (16, 32)
    assert all(isinstance(module, nn.Linear) and module.bias is None for module in layer.children())


def test_rotary_refuses_a_rounded_table():
    with pytest.raises(RuntimeError, match="BFloat16"):
        apply_rotary(torch.ones(1, 3, 1, 4), rotary_table(4, 3).bfloat16())
