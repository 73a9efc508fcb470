"Many processes: messages, sharding; every arrangement of ranks computes what one process does."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from llama_course.collectives import (
    Deadlock,
    ProcessWire,
    RankFailed,
    padded_parts,
    rehearse,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    spawn,
)
from llama_course.instruct import Packed, PackedLoader, packed_loss, text_rows
from llama_course.model import Llama, LlamaConfig
from llama_course.parallel import (
    check_division,
    gpu_intervals,
    hidden_share,
    make_mesh,
    parallelize,
)
from llama_course.support.errors import UserError
from llama_course.support.ledger import Counter
from llama_course.training import Recipe, Step, loss_of

# ---------------------------------------------------------------- processes


def hello(greeting):
    return greeting, dist.get_rank(), dist.get_world_size()


def crash():
    if dist.get_rank() == 2:
        return {}["no such key"]
    dist.all_reduce(torch.zeros(1))


def kill_oneself():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hang():
    time.sleep(60)


def test_every_rank_returns():
    assert spawn(hello, 3, "hi") == [("hi", rank, 3) for rank in range(3)]
    secret = 41
    assert spawn(lambda: secret + dist.get_rank(), 2) == [
        41,
        42,
    ]  # a function without a name, with what it uses


def test_a_crash_names_the_rank_and_shows_its_own_traceback():
    began = time.monotonic()
    with pytest.raises(RankFailed) as error:
        spawn(crash, 4, timeout=120)
    assert error.value.rank == 2 and "KeyError: 'no such key'" in str(error.value)
    assert str(error.value).count("Traceback") == 1 and time.monotonic() - began < 100
    with pytest.raises(RankFailed, match="rank 1 was ended by SIGKILL"):
        spawn(kill_oneself, 3, timeout=120)
    with pytest.raises(RankFailed, match="did not return within 2 s"):
        spawn(hang, 2, timeout=2)


SLEEPERS = """
import os, pathlib, sys, time
from llama_course.collectives import spawn
def sleep(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(600)
if __name__ == "__main__": spawn(sleep, 3, sys.argv[1])
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        not Path(f"/proc/{pid}/stat").exists()
        or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    )


@pytest.mark.skipif(os.name != "posix", reason="processes are looked up the POSIX way")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_no_orphan_is_left(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(SLEEPERS)
    (folder := tmp_path / "ranks").mkdir()
    parent = subprocess.Popen([sys.executable, script, folder], stderr=subprocess.DEVNULL)
    until = time.time() + 100
    while len(list(folder.iterdir())) < 3 and time.time() < until:
        time.sleep(0.05)
    ranks = [int(path.name) for path in folder.iterdir()]
    assert len(ranks) == 3 and all(map(alive, ranks))
    parent.send_signal(number)
    parent.wait(60)
    while any(map(alive, ranks)) and time.time() < until:
        time.sleep(0.05)
    assert not any(map(alive, ranks))


# ---------------------------------------------------------------- collectives


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_ring_adds_up_and_sends_what_theory_says(n, size, seed):
    tensors = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    results, wires = rehearse(ring_all_reduce, [(t,) for t in tensors])
    torch.testing.assert_close(results[0].double(), tensors.double().sum(0), rtol=0, atol=1e-5)
    assert all(torch.equal(r, results[0]) for r in results)
    assert {w.sent for w in wires} == {2 * (n - 1) * 4 * -(-size // n)}
    gathered, wires = rehearse(ring_all_gather, [(t,) for t in tensors])
    assert (
        all(torch.equal(torch.stack(g), tensors) for g in gathered)
        and wires[0].sent == (n - 1) * 4 * size
    )
    parts = torch.randn(n, n, size, generator=torch.Generator().manual_seed(seed))
    summed, wires = rehearse(ring_reduce_scatter, [(list(p),) for p in parts])
    torch.testing.assert_close(torch.stack(summed), parts.sum(0), rtol=0, atol=1e-5)
    assert wires[0].sent == (n - 1) * 4 * size


def test_padding_is_no_view_of_something_else():
    parts = padded_parts(torch.arange(5), 3)
    assert [p.tolist() for p in parts] == [[0, 1], [2, 3], [4, 0]]


def test_a_deadlock_is_seen_at_once_and_errors_come_through():
    with pytest.raises(Deadlock, match="rank . waits for a message from rank"):
        rehearse(lambda wire: wire.recv(torch.zeros(1), 1 - wire.rank), [(), ()])
    with pytest.raises(ZeroDivisionError):
        rehearse(lambda wire: 1 / wire.rank, [(), ()])
    with pytest.raises(ValueError, match="no rank 5"):
        rehearse(lambda wire: wire.send(torch.zeros(1), 5), [(), ()])


def rings():
    wire, x = ProcessWire(), torch.arange(6.0) + 10 * dist.get_rank()
    dist.all_reduce(theirs := x.clone())
    return ring_all_reduce(wire, x), theirs, wire.sent


def test_the_same_code_on_processes():
    for ours, theirs, sent in spawn(rings, 3):
        assert torch.equal(ours, theirs) and sent == 2 * 2 * 4 * 2


# ---------------------------------------------------------------- the model on a grid


SHAPE = dict(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, hidden_dim=96, max_seq_len=32
)
TEXT = torch.randint(64, (8, 4, 33), generator=torch.Generator().manual_seed(1))


def whole(t):
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def local(t):
    return t.to_local() if isinstance(t, DTensor) else t


def eight_steps(spread=lambda model: model, rank=0, size=1, **changes):
    torch.manual_seed(0)
    model = spread(Llama(LlamaConfig(**SHAPE | changes)))
    step_of, losses, norms, first = Step(model, Recipe(8, {}, lr=3e-3)), [], [], None
    for batch in TEXT:
        loss, norm = step_of(batch.chunk(size)[rank], 3e-3)
        losses.append(loss), norms.append(norm)
        first = first or [whole(p.grad) for p in model.parameters()]
    return losses, norms, first, step_of


def arrangements(cases):
    torch.set_num_threads(1)
    found = {}
    for name, (tensor, how, changes) in cases.items():
        mesh = make_mesh(tensor)
        data = mesh["data"].get_local_rank(), mesh["data"].size()
        losses, norms, first, step_of = eight_steps(
            lambda m: parallelize(m, mesh, **how), *data, **changes
        )
        dist.all_reduce(mean := torch.tensor(losses, dtype=torch.float64))
        sharded = list(step_of.model.parameters())
        state = [t for s in step_of.optimizer.state.values() for t in s.values() if t.dim()]
        held = [
            sum(local(t).numel() for t in ts) for ts in (sharded, [p.grad for p in sharded], state)
        ]
        with Counter() as count:
            loss_of(step_of.model, TEXT[0].chunk(data[1])[data[0]]).backward()
        found[name] = mean / dist.get_world_size(), norms, first, held, count.collectives
    return found


CASES = {
    2: {
        "fsdp": (1, {}, {}),
        "fsdp selective": (1, {"checkpointing": "selective"}, {}),
        "tied": (1, {}, {"tie_embeddings": True}),
        "tensor": (2, {"sequence": False}, {}),
        "sequence": (2, {}, {}),
        "tied tensor": (2, {}, {"tie_embeddings": True}),
    },
    4: {
        "fsdp": (1, {}, {}),
        "grid": (2, {}, {}),
        "grid full": (2, {"checkpointing": "full"}, {}),
        "grid selective": (2, {"checkpointing": "selective", "sequence": False}, {}),
    },
}


@pytest.fixture(scope="module")
def alone():
    return {tied: eight_steps(tie_embeddings=tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def spread_out():
    return {n: spawn(arrangements, n, cases) for n, cases in CASES.items()}


@pytest.mark.parametrize("n, name", [(n, name) for n in CASES for name in CASES[n]])
def test_an_arrangement_computes_what_one_process_computes(n, name, alone, spread_out):
    losses, norms, first, _ = alone[CASES[n][name][2].get("tie_embeddings", False)]
    for rank in spread_out[n]:
        its_losses, its_norms, its_first, *_ = rank[name]
        torch.testing.assert_close(
            its_losses, torch.tensor(losses, dtype=torch.float64), rtol=2e-5, atol=0
        )
        torch.testing.assert_close(torch.tensor(its_norms), torch.tensor(norms), rtol=3e-4, atol=0)
        torch.testing.assert_close(its_first, first, rtol=1e-4, atol=3e-6)


def sizes(model):
    P = sum(p.numel() for p in model.parameters())
    outer = sum(p.numel() for name, p in model.named_parameters() if "layers" not in name)
    return P, outer, sum(p.numel() for p in model.parameters() if p.dim() == 1)


@pytest.mark.parametrize("n", [2, 4])
def test_fsdp_shards_everything_and_moves_3p(n, alone, spread_out):
    P, outer, _ = sizes(alone[False][3].model)
    for rank in spread_out[n]:
        held, messages = rank["fsdp"][3:]
        assert held == [P // n, P // n, 2 * P // n]
        assert messages["all_gather"] == (
            2 * 2 + 1,
            4 * (2 * P - outer),
        )  # the outer unit is not dropped in between
        assert messages["reduce_scatter"] == (2 + 1, 4 * P)


def test_tensor_parallel_sends_four_messages_a_layer(alone, spread_out):
    P, outer, gains = sizes(alone[False][3].model)
    stream = 4 * 4 * 32 * 64  # B·T·D, and B·T·V as well
    held, messages = spread_out[2][0]["tensor"][3:]
    share = (P - gains) // 2 + gains
    assert held == [share, share, 2 * share]
    calls, size = messages["all_reduce"]  # of the loss: three numbers per token, and a mean
    assert calls == 4 * 2 + 2 + 3
    assert size == pytest.approx((4 * 2 + 2) * stream + 3 * 4 * 4 * 32, abs=8)
    assert "all_gather" not in messages  # the logits stay where they are
    held, messages = spread_out[2][0]["sequence"][3:]
    moved = messages["reduce_scatter"][1] - 4 * share  # FSDP on one data rank passes its gate, too
    assert moved == (4 * 2 + 2) * stream or messages["reduce_scatter"] == (
        4 * 2 + 2,
        (4 * 2 + 2) * stream,
    )


@pytest.mark.parametrize("name", ["grid", "grid full", "grid selective"])
def test_a_grid_of_four_holds_a_quarter(name, alone, spread_out):
    P, _, gains = sizes(alone[False][3].model)
    for rank in spread_out[4]:
        assert rank[name][3] == [
            (P - gains) // 4 + gains // 2,
            (P - gains) // 4 + gains // 2,
            (P - gains) // 2 + gains,
        ]


def narrow():
    mesh = make_mesh()
    torch.manual_seed(0)
    model = parallelize(Llama(LlamaConfig(**SHAPE)), mesh, precision="bfloat16")
    seen = []
    model.layers[0].register_forward_hook(
        lambda m, args, out: seen.append((args[0].dtype, args[1].dtype))
    )
    with Counter() as count:
        loss = loss_of(model, TEXT[0])
    with Counter() as back:
        loss.backward()
    return (
        loss.item(),
        seen,
        count.collectives,
        back.collectives,
        {p.grad.dtype for p in model.parameters()},
    )


def test_bfloat16_is_gathered_and_float32_is_summed(alone):
    P, outer, _ = sizes(alone[False][3].model)
    loss, seen, forward, backward, dtypes = spawn(narrow, 2)[0]
    assert seen == [(torch.bfloat16, torch.float32)]  # activations narrow, rotary angles not
    assert forward["all_gather"][1] == 2 * P and backward["all_gather"][1] == 2 * (P - outer)
    assert backward["reduce_scatter"][1] == 4 * P and dtypes == {torch.float32}
    assert abs(loss - alone[False][0][0]) < 0.02


def accumulated(cases):
    "Loss and gradients of a step of 12 rows, and its sums over the ranks."
    torch.set_num_threads(1)
    found, mesh = {}, make_mesh() if dist.is_initialized() else None
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if mesh else (0, 1)
    for name, (make_loader, loss, changes, reduce) in cases.items():
        loader = make_loader()
        torch.manual_seed(0)
        model = Llama(LlamaConfig(**SHAPE))
        model = parallelize(model, mesh) if mesh else model
        step_of = Step(model, Recipe(1, {}, batch_size=12, clip=1e9, **changes), loss, reduce)
        with Counter() as count:
            mean = step_of(loader.batch(0, rank, ranks), 0.0)[0] / ranks
        if mesh:
            dist.all_reduce(mean := torch.tensor(mean, dtype=torch.float64))
        gradients = [whole(p.grad) for p in model.parameters()]
        found[name] = float(mean), gradients, count.collectives.get("reduce_scatter", (0, 0))[0]
    return found


class Rows:
    "12 rows of text."

    def batch(self, step, rank, ranks):
        return TEXT[:3].flatten(0, 1).chunk(ranks)[rank]


def answers_of_every_length():
    "12 rows, in which 1 to 12 tokens count."
    packed = text_rows(TEXT[:3].flatten(0, 1))
    counts = torch.arange(32)[None] <= torch.arange(12)[:, None]
    packed = Packed(packed.tokens, packed.targets, counts, packed.documents)
    return PackedLoader({"a": packed}, {"a": 1.0}, 12)


def test_micro_batches_are_the_large_batch():
    "By an explicit sum over all tokens that count, in float64; on 1, 2 and 4 ranks; 3 is 2 + 1."
    loaders = {"text": (Rows, loss_of), "answers": (answers_of_every_length, packed_loss)}
    truth = {}
    for kind, (make_loader, _) in loaders.items():
        torch.manual_seed(0)
        model = Llama(LlamaConfig(**SHAPE)).double()
        rows = make_loader().batch(0, 0, 1)
        tokens, targets = (
            (rows[:, :-1], rows[:, 1:]) if kind == "text" else (rows.tokens, rows.targets)
        )
        chances = model(tokens).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        loss = -(chances.mean() if kind == "text" else chances[rows.answers].mean())
        loss.backward()
        truth[kind] = loss.item(), [p.grad.float() for p in model.parameters()]
    for ranks, size in ((1, 5), (2, 4), (4, 2)):
        cases = {
            (kind, reduce): (*source, {"micro_batch": size}, reduce)
            for kind, source in loaders.items()
            for reduce in ("last", "each")
        }
        results = spawn(accumulated, ranks, cases) if ranks > 1 else [accumulated(cases)]
        for found in results:
            for (kind, reduce), (loss, gradients, sums) in found.items():
                assert loss == pytest.approx(truth[kind][0], rel=1e-6)
                torch.testing.assert_close(gradients, truth[kind][1], rtol=1e-4, atol=3e-6)
                rounds = -(-12 // ranks // size)
                # two blocks and the outer unit: once, or in each round
                assert sums == (ranks > 1) * 3 * (rounds if reduce == "each" else 1)


def dressed(ways):
    found, mesh = [], make_mesh()
    for how in ways:
        layers = parallelize(Llama(LlamaConfig(**SHAPE)), mesh, **how).layers
        classes = {kind.__name__ for layer in layers for kind in type(layer).__mro__}
        found.append(
            (
                classes & {"Full", "ByHand", "ByPolicy"},
                [layer._compiled_call_impl is not None for layer in layers],
            )
        )
    return found


def everything_at_once():
    "Three steps: compiled, in bfloat16, checkpointed, in micro-batches of 3 and 1."
    torch.set_num_threads(1)
    mesh, losses = make_mesh(), []
    torch.manual_seed(0)
    how = {"checkpointing": "selective", "compile": True, "precision": "bfloat16"}
    model = parallelize(Llama(LlamaConfig(**SHAPE)), mesh, **how)
    step_of = Step(model, Recipe(3, {}, lr=3e-3, micro_batch=3, precision="bfloat16"))
    for batch in TEXT[:6].unflatten(0, (3, 2)).flatten(1, 2):
        losses.append(step_of(batch.chunk(2)[dist.get_rank()], 3e-3)[0])
    dist.all_reduce(mean := torch.tensor(losses, dtype=torch.float64))
    return mean / 2, {p.grad.dtype for p in model.parameters()}


def test_compiled_in_bfloat16_and_micro_batches_at_once():
    torch.manual_seed(0)
    step_of = Step(Llama(LlamaConfig(**SHAPE)), Recipe(3, {}, lr=3e-3))
    batches = TEXT[:6].unflatten(0, (3, 2)).flatten(1, 2)
    wanted = torch.tensor([step_of(batch, 3e-3)[0] for batch in batches], dtype=torch.float64)
    for losses, dtypes in spawn(everything_at_once, 2):
        # 8 bits of each product's factors, over four products a block
        torch.testing.assert_close(losses, wanted, rtol=2**-8, atol=0)
        assert dtypes == {torch.float32}


def test_blocks_are_checkpointed_and_compiled_as_told():
    ways = [{}, {"checkpointing": "full"}, {"checkpointing": "selective"}, {"compile": True}]
    plain, full, selective, compiled = spawn(dressed, 1, ways)[0]
    assert plain == (set(), [False, False]) and full[0] == {"Full"} and "ByHand" in selective[0]
    assert compiled == (set(), [True, True])


def test_what_is_recomputed_is_gathered_again(spread_out):
    once, twice = (spread_out[4][0][name][4]["all_gather"][0] for name in ("grid", "grid full"))
    assert twice > once


def test_what_cannot_be_shared_is_refused():
    check_division(LlamaConfig.from_name("65B"), 8)
    with pytest.raises(UserError, match="n_heads=52"):
        check_division(LlamaConfig.from_name("33B"), 8)
    with pytest.raises(RankFailed, match="UserError: 2 processes cannot be grouped by 3"):
        spawn(make_mesh, 2, 3)


def test_the_hidden_share_of_communication():
    assert hidden_share([(0, 4)], [(1, 2), (3, 6)]) == 0.5
    assert hidden_share([(0, 1), (0, 2)], [(0, 9)]) == 1.0 and hidden_share([], [(0, 1)]) == 1.0


def test_the_ranges_of_a_trace_are_no_kernels():
    "FSDP names ranges of its code, which the profiler draws on the GPU's side, too."
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = []
    for i, (name, device, is_range) in enumerate(
        [
            ("ncclDevKernel_AllGather_RING_LL", cuda, False),
            ("ampere_bf16_gemm", cuda, False),
            ("FSDP::all_gather (layers.0)", cuda, True),
            ("nccl:all_gather", cuda, True),
            ("aten::mm", cpu, False),
        ]
    ):
        when = SimpleNamespace(start=i, end=i + 1)
        events.append(
            SimpleNamespace(
                name=name, device_type=device, is_user_annotation=is_range, time_range=when
            )
        )
    assert gpu_intervals(SimpleNamespace(events=lambda: events)) == ([(0, 1)], [(1, 2)])
