"The instrument: counts by hand, PyTorch's own counters, and what hooks do not see."

import gc

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from llama_course.collectives import spawn
from llama_course.support.ledger import FORMULAS, Counter, Ledger, ledger, saved_tensors, storages


class Hidden(torch.autograd.Function):
    "Keeps its exponentials where autograd does not look."

    @staticmethod
    def forward(ctx, x):
        ctx.hidden = x.exp()
        return ctx.hidden * 1

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.hidden


KEPT = []


def cases():
    yield "relu keeps its result", lambda x: F.relu(x), 0
    yield "exp, then a sum", lambda x: x.exp().sum(), 4000
    yield (
        "two views of one tensor",
        lambda x: (lambda y: y.view(10, 100) * y.view(10, 100))(x + 1),
        4000,
    )
    yield "float64 takes twice the bytes", lambda x: (x.double() ** 2).sum(), 8000
    yield "sixteen bits take half", lambda x: (x.bfloat16() + 1).square().sum(), 2000
    yield "hidden on ctx", Hidden.apply, 4000
    yield "kept in a list", lambda x: KEPT.append(x + 1) or x.sum(), 4000
    yield "a small view holds all of it", lambda x: (x + 1)[:1].square(), 4000
    yield "made and dropped", lambda x: (x.detach() + 1).sum() + x.sum(), 0
    yield "changed in place", lambda x: (x + 1).mul_(2).add_(1), 0
    again = lambda x: checkpoint(
        lambda x: x.sin().cos().tan(), x, use_reentrant=False, preserve_rng_state=False
    )
    yield "checkpointed", again, 0


@pytest.mark.parametrize(
    "function, expected", [pytest.param(*case[1:], id=case[0]) for case in cases()]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bytes_that_stay_are_counted_wherever_they_are(function, expected, device):
    KEPT.clear()
    gc.collect()
    x = torch.ones(1000, device=device, requires_grad=True)
    assert ledger(function, x).saved_bytes == expected


def test_what_python_makes_is_made():
    assert (
        ledger(
            lambda x: x * torch.tensor([2.0] * 1000), torch.ones(1000, requires_grad=True)
        ).saved_bytes
        == 4000
    )


def test_weights_are_nobodys_doing():
    layer, x = nn.Linear(30, 20), torch.randn(7, 30, requires_grad=True)
    assert (
        ledger(layer, x).saved_bytes == 0
    )  # the product keeps a view of the weight, which was there before
    assert ledger(lambda x: layer(layer(x) @ layer.weight), x).saved_bytes == 4 * (7 * 20 + 7 * 30)


def test_a_result_kept_twice_over_is_no_cost_but_an_argument_changed_is_none_either():
    x = torch.ones(10, requires_grad=True)
    held = []
    assert ledger(lambda x: held.append(x * 2) or held[0], x).saved_bytes == 0


@pytest.mark.parametrize("shapes", [(3, 5, 7), (1, 1, 1), (64, 32, 16)])
def test_products_by_hand_and_by_pytorch(shapes):
    a, b, c = shapes
    x, w = torch.randn(a, b, requires_grad=True), torch.randn(b, c, requires_grad=True)
    book = ledger(lambda x, w: x @ w, x, w)
    assert (book.flops, book.backward_flops) == (2 * a * b * c, 4 * a * b * c)
    assert book.largest_tensor == max(a * b, b * c, a * c)
    with FlopCounterMode(display=False) as theirs:
        (x @ w).sum().backward()
    assert theirs.get_total_flops() == book.flops + book.backward_flops


def test_a_whole_model_agrees_with_pytorchs_counter():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=50,
        intermediate_size=40,
        attn_implementation="eager",
    )
    model, tokens = LlamaForCausalLM(config), torch.zeros(2, 9, dtype=torch.long)
    book = ledger(lambda tokens: model(tokens, use_cache=False).logits, tokens)
    with FlopCounterMode(display=False) as theirs:
        model(tokens, use_cache=False).logits.sum().backward()
    assert theirs.get_total_flops() == book.flops + book.backward_flops
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1) - 50 * 32
    attention = 2 * 2 * 2 * 2 * 9 * 9 * 32  # layers, products, operations, sequences, scores, width
    positions = 2 * 1 * 4 * 9  # the table of angles is a product, once: (1, 4, 1) by (1, 1, 9)
    assert abs(book.flops - (2 * 18 * matrices + attention)) <= 2 * positions


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_fused_attention_is_not_free(mode):
    q, k = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 12, 8)
    with mode(), Counter(q, k) as count:
        F.scaled_dot_product_attention(q, k, k)
    assert count.flops == 2 * 2 * 2 * 3 * 10 * 12 * 8
    with mode(), Counter(q, k) as count:
        F.linear(q, k[0, 0])
    assert count.flops == 2 * q.numel() * 12


def test_fused_attention_backward():
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    book = ledger(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), q)
    assert (
        book.backward_flops == 2.5 * book.flops == 2.5 * 4 * 2 * 16 * 16 * 8
    )  # scores once more, then four products
    assert set(FORMULAS) > {torch.ops.aten.mm, torch.ops.aten.bmm}


def test_the_t_by_t_matrix_is_seen():
    q = torch.randn(1, 1, 50, 4, requires_grad=True)
    naive = ledger(lambda q: (q @ q.mT).softmax(-1) @ q, q)
    fused = ledger(lambda q: F.scaled_dot_product_attention(q, q, q), q)
    assert naive.largest_tensor == 2500 and fused.largest_tensor == 200
    assert (
        naive.saved_bytes >= 4 * 2500 > fused.saved_bytes == 4 * 50
    )  # the log-sum-exp of each row


def test_the_same_counts_every_time_and_on_the_meta_device():
    def run(device):
        torch.manual_seed(0)
        with torch.device(device):
            net, x = (
                nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
                torch.randn(4, 8, requires_grad=True),
            )
        return ledger(net, x)

    assert run("cpu") == run("cpu") == run("meta")


def test_whatever_mode_a_notebook_left_behind():
    x = torch.randn(4, 4, requires_grad=True)
    with torch.no_grad():
        assert ledger(lambda x: x.exp().sum(), x).saved_bytes == 64
    assert ledger(lambda x: x @ x, x, backward=False).backward_flops == 0
    assert ledger(lambda: None) == Ledger()


def test_keyword_arguments_are_given_too():
    assert ledger(lambda *, x: (x * x).sum(), x=torch.ones(9, requires_grad=True)).saved_bytes == 0


# ---------------------------------------------------------------- which tensor, and whose


def test_each_storage_is_listed_once_with_its_line_and_owner():
    weight = torch.randn(8, 8, requires_grad=True)

    def function(x):
        h = x @ weight
        return (h * h.view(-1, 8)).exp()  # the result is enough for exp

    rows = saved_tensors(function, torch.randn(4, 8, requires_grad=True))
    assert [(row.whose, row.bytes) for row in rows] == [
        ("given", 256),
        ("given", 128),
        ("made", 128),
        ("result", 128),
    ]
    assert rows[0].where.endswith("function: h = x @ weight")
    assert (
        rows[2].where.endswith("return (h * h.view(-1, 8)).exp()")
        and rows[2].dtype == torch.float32
    )


def test_what_hooks_miss_the_ledger_does_not():
    x = torch.ones(1000, requires_grad=True)
    assert [row for row in saved_tensors(Hidden.apply, x) if row.whose == "made"] == []
    assert ledger(Hidden.apply, x).saved_bytes == 4000


def test_storages_of_views_and_trees():
    x = torch.ones(4, 4)
    assert len(storages({"a": x, "b": [x.T, (x[0], None)]})) == 1 and storages([1, "x"]) == {}


# ---------------------------------------------------------------- messages


def counted_twice():
    "What the ledger says of some calls, and what PyTorch's own mode says."
    mesh, found = init_device_mesh("cpu", (2,)), {}

    def note(name, function):
        function(), function()  # DDP arranges its buckets after the first step
        with CommDebugMode() as theirs:
            function()
        found[name] = ledger(function).collectives, theirs.get_total_counts()

    x = torch.ones(6, 8)
    ddp = DistributedDataParallel(nn.Linear(8, 4))
    note("ddp", lambda: ddp(x).sum().backward())
    note("all_reduce", lambda: dist.all_reduce(torch.ones(10)))
    note("gather", lambda: dist.all_gather([torch.empty(10), torch.empty(10)], torch.ones(10)))
    whole = lambda: DTensor.from_local(x, mesh, [Shard(0)]).redistribute(mesh, [Replicate()])
    note("dtensor", lambda: whole().to_local().sum())
    model = fully_shard(nn.Linear(8, 4, bias=False), mesh=mesh)
    note("fsdp", lambda: model(x).sum().backward())
    note("barrier", dist.barrier)
    return found


def test_messages_between_two_processes():
    found = spawn(counted_twice, 2)[0]
    expected = {
        "ddp": {"all_reduce": (1, 4 * 36)},
        "all_reduce": {"all_reduce": (1, 40)},
        "gather": {"all_gather": (1, 80)},
        "dtensor": {"all_gather": (1, 2 * 4 * 48)},
        "fsdp": {"all_gather": (1, 4 * 32), "reduce_scatter": (1, 4 * 32)},
        "barrier": {"barrier": (1, 0)},
    }
    for name, counts in expected.items():
        assert found[name][0] == counts, (name, found[name])
        assert name == "barrier" or found[name][1] == sum(calls for calls, _ in counts.values()), (
            name,
            found[name],
        )


def test_calls_and_bytes_are_added_up():
    book = Ledger(collectives={"all_reduce": (2, 100), "all_gather": (1, 20)})
    assert book.collective_calls == 3 and book.collective_bytes == 120
