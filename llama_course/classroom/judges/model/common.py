"What the judges of this chapter's exercises share."

import functools

import torch
import torch.nn.functional as F


def make_weights(draw, layers, dim, heads, kv_heads, inside, vocab):
    "Weights of a small LLaMA under Meta's names."
    mat = lambda *shape: torch.randn(shape, generator=draw) / shape[-1] ** 0.5
    gain = lambda: 1 + 0.3 * torch.randn(dim, generator=draw)
    width = dim // heads
    weights = {"tok_embeddings.weight": torch.randn(vocab, dim, generator=draw)}
    for i in range(layers):
        weights |= {
            f"layers.{i}.attention_norm.weight": gain(),
            f"layers.{i}.attention.wq.weight": 2 * mat(dim, dim),
            f"layers.{i}.attention.wk.weight": 2 * mat(kv_heads * width, dim),
            f"layers.{i}.attention.wv.weight": mat(kv_heads * width, dim),
            f"layers.{i}.attention.wo.weight": mat(dim, dim),
            f"layers.{i}.ffn_norm.weight": gain(),
            f"layers.{i}.feed_forward.w1.weight": mat(inside, dim),
            f"layers.{i}.feed_forward.w2.weight": mat(dim, inside),
            f"layers.{i}.feed_forward.w3.weight": mat(inside, dim),
        }
    return weights | {"norm.weight": gain(), "output.weight": mat(vocab, dim)}


def _norm(x, gain, eps):
    wide = x.float() if x.itemsize < 4 else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * gain


def _turned(x, theta, first=0, halves=False):
    "RoPE for (B, T, H, Q)."
    width = x.shape[-1]
    rate = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(first, first + x.shape[1], dtype=torch.float64)[:, None] * rate
    cos, sin = (t[:, None].to(x.dtype) for t in (angle.cos(), angle.sin()))
    if halves:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def _attend(
    x, part, heads, theta, *, causal=True, alone=False, rotate=None, repeat=None, scale=None
):
    q, k, v = (
        (x @ part(f"attention.w{name}").T).unflatten(-1, (-1, x.shape[-1] // heads))
        for name in "qkv"
    )
    rotate = rotate or _turned
    q, k = rotate(q, theta), rotate(k, theta)
    share = heads // k.shape[2]
    repeat = repeat or (lambda t: t.repeat_interleave(share, 2))
    q, k, v = (t.transpose(1, 2) for t in (q, repeat(k), repeat(v)))
    scores = q @ k.mT / (scale or q.shape[-1] ** 0.5)
    if causal:
        hidden = torch.ones_like(scores).triu(1).bool()
        scores = scores.masked_fill(hidden | hidden.mT if alone else hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ part("attention.wo").T


def _layer(x, part, heads, eps, theta, post=False, parallel=False, shared=False, **how):
    "One layer; `part(name)` is a weight of it."
    gains = part("attention_norm"), part("attention_norm" if shared else "ffn_norm")
    attend = lambda t: _attend(t, part, heads, theta, **how)

    def feed(t):
        gate = F.silu(t @ part("feed_forward.w1").T)
        return (gate * (t @ part("feed_forward.w3").T)) @ part("feed_forward.w2").T

    if post:
        x = _norm(x + attend(x), gains[0], eps)
        return _norm(x + feed(x), gains[1], eps)
    between = x + attend(_norm(x, gains[0], eps))
    return between + feed(_norm(x if parallel else between, gains[1], eps))


def _logits(tokens, weights, heads, eps, theta, last=True, count=None, tied=False, **how):
    "The right answer, with a switch for each mistake."
    x = weights["tok_embeddings.weight"][tokens]
    layers = sum(name.endswith("attention_norm.weight") for name in weights)
    for i in range(layers if count is None else min(count, layers)):
        part = functools.partial(lambda i, name: weights[f"layers.{i}.{name}.weight"], i)
        x = _layer(x, part, heads, eps, theta, **how)
    if last:
        x = _norm(x, weights["norm.weight"], eps)
    return x @ weights["tok_embeddings.weight" if tied else "output.weight"].T
