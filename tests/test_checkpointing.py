"What layers keep, counted; three modes; and the same gradients in all of them."

import copy
import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from forked import llama_course
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from training_run import make

from llama_course import attention
from llama_course.checkpointing import (
    MODES,
    Attended,
    apply_checkpointing,
    by_hand,
    by_policy,
    layer_bytes,
    linear_backward,
    rms_norm_backward,
    swiglu_backward,
)
from llama_course.generation import generate
from llama_course.launch.run import train_in_folder
from llama_course.model import Block, Llama, LlamaConfig, Parts
from llama_course.rope import rotary_table
from llama_course.support.errors import UserError
from llama_course.support.ledger import ledger, saved_tensors
from llama_course.training import Recipe, Step

WAYS = {"full": ("full",), "by hand": ("selective", "hand"), "by policy": ("selective", "policy")}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def small_block(n_kv_heads=2, dtype=torch.float64, backend="sdpa"):
    torch.manual_seed(1)
    block = Block(LlamaConfig(32, 1, 4, n_kv_heads=n_kv_heads, vocab_size=10, hidden_dim=48)).to(
        dtype
    )
    for norm in (block.attention_norm, block.ffn_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    block.attention.backend = backend
    return block, torch.randn(2, 9, 32, dtype=dtype), rotary_table(8, 9)


def gradients(run, block, x, table):
    x = x.clone().requires_grad_()
    y = run(x, table)
    arriving = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, *torch.autograd.grad(y, [x, *block.parameters()], arriving)


# ---------------------------------------------------------------- the same gradients


@pytest.mark.parametrize("backend", ["sdpa", "blockwise", "naive"])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@ways
def test_gradients_are_those_of_plain_autograd(way, n_kv_heads, backend):
    block, x, table = small_block(n_kv_heads, backend=backend)
    plain = gradients(block, block, x, table)
    again = gradients(apply_checkpointing(block, *way), block, x, table)
    for a, b in zip(again, plain):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    if way != WAYS["by hand"]:
        assert all(torch.equal(a, b) for a, b in zip(again, plain))


def test_gradcheck_by_differences_of_values():
    block, x, table = small_block()
    x = x[:1, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: by_hand(block, x, table[:5]), x)
    weight = block.feed_forward.w1.weight
    assert torch.autograd.gradcheck(
        lambda w: by_hand(block, x, table[:5]), weight, atol=1e-4, fast_mode=True
    )


def test_a_second_derivative_is_refused_by_hand():
    block, x, table = small_block()
    x.requires_grad_()
    (first,) = torch.autograd.grad(by_hand(block, x, table).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), x)


def test_the_pieces_against_autograd():
    x, g, w = torch.randn(3, 4, 6, 10, dtype=torch.float64).unbind(0)

    def truth(function, *args):
        args = [t.detach().requires_grad_() for t in args]
        return torch.autograd.grad(function(*args), args, g[..., : function(*args).size(-1)])

    norm = lambda x, w: F.rms_norm(x, w.shape, w, 1e-3)
    torch.testing.assert_close(rms_norm_backward(g, x, w[0, 0], 1e-3), truth(norm, x, w[0, 0]))
    torch.testing.assert_close(swiglu_backward(g, x, w), truth(lambda a, b: F.silu(a) * b, x, w))
    matrix = w[0]
    torch.testing.assert_close(
        linear_backward(g[..., :6], x, matrix), truth(lambda x, w: x @ w.T, x, matrix)
    )


@pytest.mark.parametrize("cast", [False, True], ids=["16-bit weights", "mixed precision"])
@ways
def test_sixteen_bits_are_as_accurate_as_autograds(way, cast):
    block, x, table = small_block(dtype=torch.float32 if cast else torch.bfloat16)
    double = copy.deepcopy(block).double()
    truth = gradients(double, double, x.double(), table)

    def errors():
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = block(leaf, table)
        arriving = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found = y, *torch.autograd.grad(y, [leaf, *block.parameters()], arriving)
        assert all(f.dtype == x.dtype for f in found)
        return [((f.double() - t).norm() / t.norm()).item() for f, t in zip(found, truth)]

    plain = errors()
    apply_checkpointing(block, *way)
    assert all(ours < 1.2 * theirs + 1e-4 for ours, theirs in zip(errors(), plain))


@ways
def test_compiled_as_one_graph(way):
    block, x, table = small_block()
    plain = gradients(block, block, x, table)
    compiled = torch.compile(apply_checkpointing(block, *way), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, block, x, table), plain)
    torch._dynamo.reset()


# ---------------------------------------------------------------- what is kept, and what it costs


def meta_block(name, parts=Parts(), T=2048):
    config = LlamaConfig.from_name(name)
    with torch.device("meta"):
        block = Block(config, parts).bfloat16()
        x = torch.empty(1, T, config.dim, dtype=torch.bfloat16).requires_grad_()
        table = rotary_table(config.head_dim, T).to("meta")
    block.attention.backend = "fused"
    return config, block, x, table


@pytest.fixture(autouse=True)
def fused_kernel(monkeypatch):
    "On the meta device PyTorch's attention is the formula with a T x T matrix; this is the kernel."
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.setitem(attention.BACKENDS, "fused", lambda q, k, v: kernel(q, k, v, 0.0, True)[0])


@pytest.mark.parametrize("name, gib", [("7B", 0.50), ("13B", 0.78), ("33B", 1.52), ("65B", 2.50)])
def test_bytes_of_the_papers_sizes(name, gib):
    config, block, x, table = meta_block(name)
    counted = {}
    for mode in MODES:
        apply_checkpointing(block, mode)
        counted[mode] = ledger(lambda x: block(x * 1, table), x, backward=False).saved_bytes
        assert math.isclose(counted[mode], layer_bytes(config, 2048, mode), rel_tol=1e-3), mode
    assert round(config.n_layers * counted["full"] / 2**30, 2) == gib
    f = config.hidden_dim / config.dim
    for mode, factor in {
        "none": 24 + 8 * f,
        "selective": 12 + 4 * f,
        "needed": 16 + 6 * f,
        "full": 2,
    }.items():
        assert math.isclose(layer_bytes(config, 2048, mode), factor * x.numel(), rel_tol=0.02), mode


def test_what_is_needed_is_the_published_table():
    "Eight, 12.6, 24.5 and 40.2 GiB for a text of 2,048 tokens, log-sum-exp left out."
    for name, gib in {"7B": 8.0, "13B": 12.6, "33B": 24.5, "65B": 40.2}.items():
        config = LlamaConfig.from_name(name)
        per_layer = layer_bytes(config, 2048, "needed") - 2048 * 4 * config.n_heads
        assert round(config.n_layers * per_layer / 2**30, 1) == gib


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_list_names_what_the_ledger_counts(dtype):
    block, x, table = small_block(dtype=dtype)
    x.requires_grad_()
    rows = saved_tensors(block, x, table)
    assert (
        sum(row.bytes for row in rows if row.whose == "made") == ledger(block, x, table).saved_bytes
    )
    assert any("RMSNorm.forward" in row.where for row in rows) and any(
        "FeedForward" in row.where for row in rows
    )


def flops(run, *args):
    book = ledger(run, *args)
    return book.flops + book.backward_flops


def test_flops_of_a_layer_of_7b():
    _, block, x, table = meta_block("7B")
    none = flops(block, x, table)
    assert flops(apply_checkpointing(block, "selective", "hand"), x, table) == none
    assert flops(apply_checkpointing(block, "selective", "policy"), x, table) == none
    apply_checkpointing(block, "none")
    assert 1 < flops(functools.partial(by_policy, block, attention=False), x, table) / none < 1.03
    apply_checkpointing(block, "full")
    assert 1.2 < flops(block, x, table) / none < 4 / 3
    with set_checkpoint_early_stop(False):
        assert 1.32 < flops(block, x, table) / none < 4 / 3


def test_by_hand_and_by_policy_keep_the_same():
    block, x, table = small_block(4, torch.bfloat16)
    x.requires_grad_()
    kept = [
        ledger(apply_checkpointing(block, "selective", by), x, table).saved_bytes
        for by in ("hand", "policy")
    ]
    assert (
        kept[0] == kept[1] + 4
        and kept[0] < 0.6 * ledger(apply_checkpointing(block, "none"), x, table).saved_bytes
    )


def test_nothing_stays_behind_after_the_way_back():
    "By hand: what was kept is given back by the backward pass, though the result is still there."
    block, x, table = small_block(dtype=torch.float32)
    x.requires_grad_()
    y = by_hand(block, x, table)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_the_graph_of_attention_holds_no_tensor():
    q, k, v = (torch.randn(1, 2, 50, 8) for _ in range(3))

    def run(q, k, v):
        attended = Attended(q * 1, k * 1, v * 1, "sdpa")
        out, attended.out, attended.kept = attended.out, None, None
        KEPT.append(attended)
        return out

    KEPT = []
    assert ledger(run, q, k, v).saved_bytes <= 8  # the anchor


# ---------------------------------------------------------------- a whole model


def model_of(**changes):
    torch.manual_seed(0)
    return Llama(LlamaConfig(32, 3, 4, vocab_size=50, hidden_dim=48, max_seq_len=32, **changes))


@pytest.mark.parametrize("tied", [False, True])
@ways
def test_a_model_from_outside(way, tied):
    model, tokens = model_of(tie_embeddings=tied).double(), torch.randint(50, (2, 16))
    names = list(model.state_dict())

    def grads():
        model.zero_grad()
        model(tokens).log_softmax(-1)[..., 0].mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain, before = grads(), list(generate(model.eval(), [1, 2, 3], 8, temperature=0))
    assert apply_checkpointing(model, *way) is model
    for a, b in zip(grads(), plain):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    assert list(model.state_dict()) == names
    assert list(generate(model, [1, 2, 3], 8, temperature=0)) == before
    twin = copy.deepcopy(model)
    twin.layers[0].attention.wq.weight.data.zero_()
    assert not torch.equal(twin(tokens), model(tokens))  # a copy runs its own weights
    for mode in MODES:
        apply_checkpointing(model, mode)
    apply_checkpointing(model, "none")
    assert {type(layer) for layer in model.layers} == {Block}


def test_without_gradients_and_with_a_cache_nothing_changes():
    block, x, table = small_block()
    plain = block(x, table)
    apply_checkpointing(block, "selective")
    with torch.no_grad():
        assert torch.equal(block(x, table), plain)

    class Seen:
        def update(self, k, v):
            self.shape = k.shape
            return k, v

    cache = Seen()
    torch.testing.assert_close(block(x, table, cache=cache), plain)
    assert cache.shape == (2, 2, 9, 8)


def test_a_bias_or_another_map_gets_the_policy():
    "The hand-written pass knows nine weights: a tenth would silently have no gradient."

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for new in (nn.Linear(32, 32), Doubled(32, 32, bias=False)):
        model = Llama(LlamaConfig(32, 1, 4, vocab_size=50, hidden_dim=48)).double()
        model.layers[0].attention.wq = new.double()
        tokens = torch.randint(50, (2, 16))
        plain = torch.autograd.grad(model(tokens).logsumexp(-1).mean(), list(model.parameters()))
        assert type(apply_checkpointing(model, "selective").layers[0]).__name__ == "ByPolicyBlock"
        again = torch.autograd.grad(model(tokens).logsumexp(-1).mean(), list(model.parameters()))
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("mode", [("full",), ("selective", "hand"), ("selective", "policy")])
def test_positions_and_masks_go_through(mode):
    model = Llama(LlamaConfig(32, 2, 4, 2, vocab_size=50, hidden_dim=48)).double()
    tokens, positions = torch.randint(50, (2, 2, 9))
    mask = torch.eye(9, dtype=torch.bool) | (torch.rand(2, 9, 9) < 0.5)
    run = lambda: torch.autograd.grad(
        model(tokens, positions, mask).logsumexp(-1).mean(), list(model.parameters())
    )
    plain = run()
    apply_checkpointing(model, *mode)
    torch.testing.assert_close(run(), plain)


def test_parts_of_your_own_get_the_policy():
    class OwnFeedForward(nn.Module):
        def __init__(self, dim, hidden_dim):
            super().__init__()
            self.up, self.down = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

        def forward(self, x):
            return self.down(F.gelu(self.up(x)))

    for parts in (Parts(norm=nn.LayerNorm), Parts(feed_forward=OwnFeedForward)):
        model = Llama(LlamaConfig(32, 1, 4, vocab_size=50, hidden_dim=48), parts).double()
        tokens = torch.randint(50, (2, 16))
        plain = torch.autograd.grad(model(tokens).logsumexp(-1).mean(), list(model.parameters()))
        assert type(apply_checkpointing(model, "selective").layers[0]).__name__ == "ByPolicyBlock"
        again = torch.autograd.grad(model(tokens).logsumexp(-1).mean(), list(model.parameters()))
        assert all(map(torch.equal, plain, again))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: apply_checkpointing(model_of(), "half"), "none, full, selective"),
        (lambda: apply_checkpointing(model_of(), "selective", "foot"), "by hand or by policy"),
        (lambda: apply_checkpointing(nn.Linear(2, 2), "full"), "no Block"),
    ],
)
def test_mistakes_are_told_in_one_line(call, text):
    with pytest.raises(UserError) as error:
        call()
    assert text in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- training


def test_training_with_each_mode_gives_the_same_losses(tmp_path):
    losses = {}
    for mode in MODES:
        model, shards, recipe = make(tmp_path, steps=4, checkpointing=mode)
        train_in_folder(model, shards, recipe, tmp_path / mode)
        assert (
            type(model.layers[0]).__name__
            == {"none": "Block", "full": "FullBlock", "selective": "ByHandBlock"}[mode]
        )
        lines = (tmp_path / mode / "metrics.jsonl").read_text().splitlines()
        losses[mode] = [json.loads(line)["loss"] for line in lines]
    assert losses["full"] == losses["none"]
    assert all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(losses["selective"], losses["none"])
    )


def test_a_recipe_without_a_mode_leaves_the_model_as_it_is():
    model = apply_checkpointing(model_of(), "full")
    Step(model, Recipe(1, {}))
    assert type(model.layers[0]).__name__ == "FullBlock"


def test_the_command_names_a_wrong_mode(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 50)
    words = ["--run", tmp_path / "run", "--steps", 1, "--checkpointing", "half"]
    done = llama_course("train", tmp_path / "a.txt", *words)
    assert (
        done.returncode == 2
        and "none, full, selective" in done.stderr
        and done.stderr.count("\n") == 1
    ), done.stderr


# ---------------------------------------------------------------- the method, on published numbers


@pytest.mark.parametrize(
    "h, a, t, tensor_parallel",
    [
        (6144, 64, 8, 26.333),
        (12288, 96, 8, 23.0),
        (20480, 128, 8, 21.0),
        (25600, 160, 8, 21.0),
        (6144, 64, 1, 140.667),
    ],
)
def test_korthikantis_table(h, a, t, tensor_parallel):
    "One GPU's share of a GPT layer: sbh (10 + 24/t + 5as/(ht)) (Korthikanti 2022, Table 2)."

    def dropout(x):
        return torch.native_dropout(x, 0.1, True)[0]

    def core(q, k, v):
        return dropout((q @ k.mT / 8).softmax(-1)) @ v

    def layer(x, recompute):
        run = (
            functools.partial(checkpoint, core, use_reentrant=False, preserve_rng_state=False)
            if recompute
            else core
        )
        n = F.layer_norm(x * 1, (h,))
        q, k, v = ((n @ w).unflatten(-1, (-1, h // a)).transpose(1, 2) for w in (wq, wk, wv))
        x = x + dropout(run(q, k, v).transpose(1, 2).flatten(-2) @ wo)
        return x + dropout(F.gelu(F.layer_norm(x * 1, (h,)) @ up) @ down)

    shapes = [(h, h // t)] * 3 + [(h // t, h), (h, 4 * h // t), (4 * h // t, h)]
    wq, wk, wv, wo, up, down = (
        torch.empty(s, dtype=torch.bfloat16, device="meta", requires_grad=True) for s in shapes
    )
    x = torch.empty(1, 2048, h, dtype=torch.bfloat16, device="meta", requires_grad=True)
    for recompute, want in ((False, tensor_parallel), (True, 10 + 24 / t)):
        measured = ledger(layer, x, recompute, backward=False).saved_bytes / x.numel()
        assert math.isclose(measured, want, rel_tol=0.02)
