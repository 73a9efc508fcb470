"""The planner against published tables, the paper's own runs, and its own laws."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import llama_course
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course.command.plan import ModelNumbers, plan_lines, run_plan, the_gpu, the_model
from llama_course.files.plan import read_plan, write_plan
from llama_course.model import Llama, LlamaConfig
from llama_course.planner import (
    BEFORE,
    GPUS,
    PAPER,
    GPTConfig,
    Layout,
    Planning,
    Shares,
    activation_bytes,
    carbon_tonnes,
    energy_mwh,
    family,
    fit_shares,
    is_gpt,
    lacks_room,
    largest,
    layouts,
    measured,
    memory,
    mfu,
    parameters,
    plan,
    predict,
    rates,
    read_rows,
    shape_of,
    step_seconds,
    zero_bytes,
)
from llama_course.support.errors import UserError

DATA = Path(__file__).parents[1] / "nbs" / "data"
A100 = GPUS["A100-80GB"]
SHARDS = {"7B": 1, "13B": 2, "33B": 4, "65B": 8}  # files of the release
many = settings(max_examples=40, deadline=None, derandomize=True, database=None)


shape = LlamaConfig.from_name


# --- counts


@pytest.mark.parametrize(
    "name, count",
    [
        ("7B", 6_738_415_616),
        ("13B", 13_015_864_320),
        ("33B", 32_528_943_616),
        ("65B", 65_285_660_672),
    ],
)
def test_parameters_of_the_paper(name, count):
    assert parameters(shape(name)) == count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1},
        {"tie_embeddings": True},
        {"hidden_dim": 100},
        {"head_dim": 24, "n_kv_heads": 2, "attention_bias": True, "mlp_bias": True},
    ],
)
def test_parameters_of_a_real_model(changes):
    config = LlamaConfig(dim=64, n_layers=3, n_heads=4, vocab_size=50, **changes)
    assert parameters(config) == sum(p.numel() for p in Llama(config).parameters())


@pytest.mark.parametrize(
    "ranks, table",
    [
        (4, (52.5, 41.3, 30)),
        (16, (35.6, 21.6, 7.5)),
        (64, (31.4, 16.6, 1.88)),
        (256, (30.4, 15.4, 0.47)),
        (1024, (30.1, 15.1, 0.12)),
    ],
)
def test_zeros_table_1(ranks, table):
    for stage, printed in enumerate(table, 1):
        assert 7.5 * zero_bytes(stage, ranks) == pytest.approx(printed, abs=0.06)


@pytest.mark.parametrize("name, gib", [("7B", 8.0), ("13B", 12.6), ("33B", 24.5), ("65B", 40.2)])
def test_activations_of_one_sequence(name, gib):
    "The block's inputs, q, k, v, what w1 and w3 gave: sbh (16 + 6 f/h), without the silu."
    config = shape(name)
    block = activation_bytes(config, Layout(checkpointing="none"), code="fused")
    lean = block - (2 * config.hidden_dim + 4 * config.n_heads) * 2048  # nor the log-sum-exp
    assert config.n_layers * lean / 2**30 == pytest.approx(gib, abs=0.05)
    full = config.n_layers * activation_bytes(config, Layout(checkpointing="full")) / 2**30
    assert full == pytest.approx(2 * 2048 * config.dim * config.n_layers / 2**30)


@pytest.mark.parametrize("kv, T", [(None, 64), (None, 192)])
def test_a_real_block_keeps_what_the_table_says(kv, T):
    from llama_course.model import Block

    config, seen = LlamaConfig(dim=512, n_layers=1, n_heads=4, n_kv_heads=kv), {}
    block, table = Block(config).bfloat16(), torch.randn(T, 64, 2)
    x = torch.randn(2, T, 512).bfloat16().requires_grad_()
    own = {t.untyped_storage().data_ptr() for t in (*block.parameters(), table)}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept_alive = block(x, table)
    kept = sum(size for place, size in seen.items() if place not in own)
    assert kept_alive is not None
    assert kept == pytest.approx(
        activation_bytes(config, Layout(micro_batch=2, checkpointing="none"), T), rel=0.02
    )


@pytest.mark.parametrize("kv", [None, 2])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_activations_are_those_that_the_checkpointing_chapter_counts(mode, kv):
    from llama_course.checkpointing import layer_bytes

    config = LlamaConfig(dim=1024, n_layers=1, n_heads=8, n_kv_heads=kv)
    ours = activation_bytes(config, Layout(micro_batch=3, checkpointing=mode), 100)
    assert ours == pytest.approx(layer_bytes(config, 300, mode), rel=1e-3)


@many
@given(
    name=st.sampled_from(list(PAPER)),
    data=st.sampled_from([1, 4, 64]),
    tensor=st.sampled_from([1, 2, 4]),
    b=st.sampled_from([1, 2, 8]),
    kind=st.sampled_from(["none", "selective", "full"]),
)
def test_memory_obeys_its_laws(name, data, tensor, b, kind):
    config, layout = shape(name), Layout(data, tensor, True, b, kind, 2)
    here, states = memory(config, layout), ("parameters", "gradients", "optimizer")
    assert sum(here[part] for part in states) == pytest.approx(
        16 * parameters(config) / data / tensor
    )
    double = memory(config, replace(layout, micro_batch=2 * b))
    rest = ("activations", "communication", "logits", "under way")
    total = lambda parts: sum(parts[part] for part in rest)
    assert total(here) < total(double) <= 2 * total(here) * (1 + 1e-9)
    assert all(double[part] == here[part] for part in states)
    split = memory(config, replace(layout, tensor=2 * tensor))
    whole = memory(config, replace(layout, tensor=2 * tensor, sequence=False))
    assert total(whole) > total(split)
    shared = activation_bytes(config, replace(layout, tensor=2 * tensor))
    assert activation_bytes(config, layout) / 2 <= shared  # some of it stays whole on every rank
    assert shared <= activation_bytes(config, replace(layout, tensor=2 * tensor, sequence=False))
    by_kind = [
        activation_bytes(config, replace(layout, checkpointing=k))
        for k in ("none", "selective", "full")
    ]
    assert by_kind[0] > by_kind[1] > by_kind[2]


# --- published runs


def errors(rows, gpus=GPUS, shares=Shares()):
    return np.array([predict(row, gpus, shares) / row.speed - 1 for row in rows])


@pytest.fixture(scope="module")
def published():
    rows = read_rows(DATA / "throughput.csv")
    return [row for row in rows if is_gpt(row.config)], [r for r in rows if not is_gpt(r.config)]


def test_the_constants_are_the_fit_and_the_fit_is_the_minimum(published):
    gpus, shares = fit_shares(published[0])
    for name in BEFORE:
        assert gpus[name].products == pytest.approx(GPUS[name].products, abs=5e-4)
        assert gpus[name].first == pytest.approx(GPUS[name].first, abs=5e-4)
    assert shares.operands == pytest.approx(Shares().operands, abs=5e-4)
    best = np.square(errors(published[0])).sum()
    assert np.abs(errors(published[0])).max() < 0.04
    for name, field in itertools.product(BEFORE, ("products", "first")):
        for factor in (0.9, 1.1):
            value = getattr(GPUS[name], field) * factor
            other = GPUS | {name: replace(GPUS[name], **{field: value})}
            assert np.square(errors(published[0], other)).sum() > best


def test_torchtitan_was_not_fitted(published):
    assert np.abs(errors(published[1])).max() < 0.15


@pytest.fixture(scope="module")
def kept_aside():
    return read_rows(DATA / "throughput_unseen.csv")


def test_the_rows_that_were_kept_aside(kept_aside):
    found = dict(
        zip(
            ((r.config.dim, r.layout.data, r.seq_len, r.gpu) for r in kept_aside),
            errors(kept_aside),
        )
    )
    assert len(kept_aside) == 188 and np.median(np.abs(list(found.values()))) < 0.05
    # rows that contradict the table's others (chapter 19); one that the term below is fitted to
    faults = {
        (1536, 8, 1024, "A100-80GB"),
        (1536, 8, 512, "A100-80GB"),
        (2048, 32, 2048, "A100-40GB"),
    }
    fitted = (7168, 8, 8192, "A100-80GB")
    assert {row for row, error in found.items() if abs(error) > 0.15} == faults | {fitted}
    assert abs(found[fitted]) < 0.2


def test_a_full_card_waits_for_its_allocator(kept_aside):
    "30B with 8,192 tokens, 13B on 8 and 70B on 64 cards of 40 GB: no other row is held up."
    full = [r for r in kept_aside if lacks_room(r.config, r.layout, GPUS[r.gpu], r.seq_len, r.code)]
    assert sorted((r.config.dim, r.layout.data) for r in full) == [(5120, 8)] * 5 + [
        (7168, 8)
    ] * 2 + [(8192, 64)]
    free = errors(full, shares=replace(Shares(), refill=math.inf))
    assert free.min() > 0.12
    small = [error for row, error in zip(full, errors(full)) if row.config.dim != 7168]
    assert np.abs(small).max() < 0.05  # nothing was fitted to these
    alone = replace(full[0].layout, data=1)
    assert not lacks_room(full[0].config, alone, A100, full[0].seq_len)  # no FSDP, no buffers


@pytest.mark.parametrize(
    "key",
    [lambda r: r.config.dim, lambda r: r.layout.data, lambda r: r.gpu, lambda r: r.seq_len],
    ids=["size", "GPUs", "GPU", "length"],
)
def test_a_whole_group_is_predicted_by_the_others(published, key):
    for value in {key(row) for row in published[0]}:
        gpus, shares = fit_shares([row for row in published[0] if key(row) != value])
        out = [row for row in published[0] if key(row) == value]
        assert np.abs(errors(out, gpus, shares)).max() < 0.15


LLAMA_3 = {"n_kv_heads": 8, "vocab_size": 128256}
OF_8B = LlamaConfig(dim=4096, n_layers=32, n_heads=32, hidden_dim=14336, **LLAMA_3)
OF_70B = LlamaConfig(dim=8192, n_layers=80, n_heads=64, hidden_dim=28672, **LLAMA_3)


@pytest.mark.parametrize(
    "config, layout, code, gib, speed",
    [
        (OF_8B, Layout(8, 1, True, 2), "eager", 82.4, 5762),
        (OF_8B, Layout(8, 1, True, 2), "fused", 77.0, 6667),
        (OF_8B, Layout(128, 1, True, 2), "eager", 67.0, 5605),
        (OF_8B, Layout(128, 1, True, 2), "fused", 62.0, 6514),
        (OF_70B, Layout(32, 8, True, 16, "full"), "fused", 71.9, 597.3),
    ],
)
def test_torchtitans_memory_and_speed(config, layout, code, gib, speed):
    "pytorch/torchtitan: benchmarks/llama3_h100_202412, asyncTP_llama3_h100_2025-06"
    assert sum(memory(config, layout, 8192, code).values()) / 2**30 == pytest.approx(gib, rel=0.1)
    seconds = sum(step_seconds(config, layout, GPUS["H100-96GB"], 8192, code).values())
    ours = layout.micro_batch * 8192 / layout.tensor / seconds
    assert ours == pytest.approx(speed, rel=0.15)


def test_a_cap_on_the_power_slows_products_alone():
    h100 = GPUS["H100-80GB"]
    free, capped = rates(h100), rates(replace(h100, watts=350.0, full_watts=700.0))
    assert capped["products"] == pytest.approx(free["products"] / 2**0.5)
    assert {k: v for k, v in free.items() if k != "products"} == {
        k: v for k, v in capped.items() if k != "products"
    }


@pytest.mark.parametrize("gpt", [False, True])
def test_a_gpt_has_two_matrices(gpt):
    kind = GPTConfig if gpt else LlamaConfig
    config = kind(dim=512, n_layers=3, n_heads=4, vocab_size=1000)
    assert config.hidden_dim == (2048 if gpt else 1536) and config.tie_embeddings is gpt
    block = 4 * 512**2 + (2 * 2048 if gpt else 3 * 1536) * 512
    assert parameters(config) == (1 if gpt else 2) * 512_000 + 3 * (block + 1024) + 512


# --- the paper, which the fit has not seen


@pytest.mark.parametrize("name, printed", [("7B", 3370), ("13B", 2055), ("33B", 733), ("65B", 380)])
def test_speed_of_the_papers_runs(name, printed):
    assert measured(name) == pytest.approx(printed, abs=1)
    t = SHARDS[name]
    seconds = step_seconds(shape(name), Layout(2048 // t, t, micro_batch=t), A100, first=True)
    assert 2048 / sum(seconds.values()) == pytest.approx(printed, rel=0.15)


def test_65b_takes_about_21_days():
    result = plan(Planning("65B", 2048, tensor=8, sequence=True, checkpointing="selective"))
    assert result["days"] == pytest.approx(21, rel=0.15)
    assert result["gpu_hours"] == pytest.approx(1_022_362, rel=0.15)


@pytest.mark.parametrize(
    "hours, mwh, tonnes",
    [
        (809_472, 356, 137),
        (82_432, 36, 14),
        (135_168, 59, 23),
        (530_432, 233, 90),
        (1_022_362, 449, 173),
    ],
)
def test_table_15(hours, mwh, tonnes):
    ours = energy_mwh(hours)
    assert mwh in (int(ours), round(ours)) and round(carbon_tonnes(ours)) == tonnes


def test_the_whole_project_took_four_months_not_five():
    hours = 2638 / energy_mwh(2048)
    assert round(hours / 24) == 122 and round(hours / 24 / 30.44, 1) == 4.0
    assert round(carbon_tonnes(2638)) in (1015, 1016)


def test_a_gpu_is_added_in_one_place(monkeypatch):
    from llama_course.launch import log

    monkeypatch.setitem(GPUS, "B200-192GB", replace(A100, name="B200-192GB", flops=2250e12))
    assert log.gpu_called("NVIDIA B200") is GPUS["B200-192GB"]  # of the MFU
    faster = plan(Planning("7B", 8, "B200-192GB"))
    assert faster["gpu"] == "B200-192GB" and faster["days"] < plan(Planning("7B", 8))["days"]


def test_mfu_is_palms():
    assert mfu(shape("65B"), 380, A100) == pytest.approx(0.497, abs=5e-4)
    assert 380 * 6 * parameters(shape("65B")) / A100.flops == pytest.approx(0.477, abs=5e-4)


# --- the search


@many
@given(
    name=st.sampled_from(["7B", "13B", "65B"]),
    gpus=st.sampled_from([8, 64, 512, 2048]),
    card=st.sampled_from(["A100-80GB", "H100-80GB", "H200-141GB"]),
)
def test_the_plan_is_the_fastest_that_fits(name, gpus, card):
    config, gpu = shape(name), GPUS[card]
    fitting = [
        x for x in layouts(config, gpus, gpu) if sum(memory(config, x).values()) <= gpu.memory
    ]
    if not fitting:
        with pytest.raises(UserError):
            plan(Planning(name, gpus, card))
        return
    best = min(sum(step_seconds(config, x, gpu).values()) for x in fitting)
    result = plan(Planning(name, gpus, card))
    assert sum(result["seconds"].values()) == best
    assert result["layout"]["data"] * result["layout"]["tensor"] == gpus
    assert sum(result["memory_gib"].values()) <= result["memory_limit_gib"]
    assert result["batch"] == 2048
    assert result["tokens_per_second_per_gpu"] == pytest.approx(2048 * 2048 / best / gpus)
    assert result["days"] * 24 * gpus == pytest.approx(result["gpu_hours"])
    assert result["tokens"] / result["tokens_per_second_per_gpu"] / 3600 == pytest.approx(
        result["gpu_hours"]
    )
    assert 0.1 < result["mfu"] < 0.7


def test_every_other_kind_has_a_reason_that_is_true():
    result = plan(Planning("65B", 32))
    config, gpu, best = shape("65B"), A100, sum(result["seconds"].values())
    kinds = {
        (o["layout"]["tensor"], o["layout"]["sequence"], o["layout"]["checkpointing"])
        for o in result["others"]
    }
    assert (
        len(kinds) == len(result["others"]) == 7 * 3 - 1
    )  # tensor 1; 2, 4, 8 with and without sequence
    for other in result["others"]:
        layout = Layout(**other["layout"])
        if "needs" in other["why"]:
            assert sum(memory(config, layout).values()) > gpu.memory
        else:
            slower = sum(step_seconds(config, layout, gpu).values()) / best - 1
            assert other["why"].startswith(f"{slower:.1%} slower") and slower >= 0
    assert {"needs" in other["why"] for other in result["others"]} == {True, False}


def test_more_of_everything_helps():
    days = [plan(Planning("13B", gpus))["days"] for gpus in (16, 64, 512)]
    assert days == sorted(days, reverse=True)
    assert plan(Planning("13B", 64, "H100-80GB"))["days"] < plan(Planning("13B", 64))["days"]
    assert plan(Planning("13B", 64, compiled=True))["days"] < plan(Planning("13B", 64))["days"]
    slow = replace(A100, link=A100.link / 10)
    layout = Layout(8, 8)
    assert sum(step_seconds(shape("13B"), layout, slow).values()) > sum(
        step_seconds(shape("13B"), layout, A100).values()
    )


def test_money_and_carbon_follow_the_hours():
    a, b = plan(Planning("7B", 64)), plan(Planning("7B", 64, price=4.0, pue=2.2, carbon=0.77))
    assert (
        b["cost_dollars"] == pytest.approx(4 * a["gpu_hours"]) and a["gpu_hours"] == b["gpu_hours"]
    )
    assert b["mwh"] == pytest.approx(2 * a["mwh"]) and b["tco2e"] == pytest.approx(4 * a["tco2e"])


@pytest.mark.parametrize("gpu, gpus", [("RTX-4090", 1), ("A100-80GB", 8), ("H100-80GB", 64)])
def test_the_largest_model_is_the_largest(gpu, gpus):
    found = largest(gpu, gpus, 30)
    assert found["days"] <= 30
    config = family(found["heads"] + 2)
    try:
        assert plan(Planning(config, gpus, gpu, 20 * parameters(config)))["days"] > 30
    except UserError:
        pass
    assert largest(gpu, gpus)["parameters"] >= found["parameters"]
    assert largest(gpu, gpus, 1e-6) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: plan(Planning("65B", 8)),
        lambda: plan(Planning("65B", 2048, "A1000")),
        lambda: plan(Planning("7B", 24, batch=2)),
        lambda: plan(Planning("7B", 0)),
        lambda: plan(Planning("7B", -8)),
        lambda: plan(Planning("8B", 8)),
        lambda: plan(Planning("7B", 8, tokens=math.nan)),
        lambda: plan(Planning("7B", 10**7)),
        lambda: plan(Planning("7B", 64, tokens=-1)),
        lambda: plan(Planning("65B", 2048, checkpointing="some")),
        lambda: plan(Planning("65B", 2048, tensor=3)),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(wrong):
    with pytest.raises(UserError) as error:
        wrong()
    assert "\n" not in str(error.value) and len(str(error.value)) < 220


# --- the plan as a file


def test_a_plan_is_a_file_that_is_read_again(tmp_path):
    asked = Planning("7B", 24, seq_len=1024, compiled=True)
    result = plan(asked)
    write_plan(run_plan(asked, result), tmp_path / "plan.json")
    found = read_plan(tmp_path / "plan.json")
    assert found == run_plan(asked, result)
    assert asdict(found.layout) == result["layout"] and found.batch_size == result["batch"]
    assert found.model == shape("7B") and found.compile and found.seq_len == 1024
    assert found.expected_memory_gib == result["memory_gib"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"micro_batches": 2}, "micro_batches"),
        ({"format": "llama_course plan 9"}, "later"),
        ({"format": None}, "no plan"),
        ({"tensor": 2}, "product"),
        ({"accumulate": 0}, "accumulate"),
        ({"checkpointing": "some"}, "checkpointing"),
        ({"model": {"dim": 64}}, "model"),
    ],
)
def test_a_plan_that_is_not_one_is_refused(tmp_path, changes, said):
    asked, path = Planning("7B", 8), tmp_path / "plan.json"
    write_plan(run_plan(asked, plan(asked)), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        read_plan(path)


@pytest.mark.parametrize("gpus", [1, 3, 7, 24])
@pytest.mark.parametrize("batch", [10, 96, 1000])
def test_every_number_of_gpus_has_an_answer(gpus, batch):
    config = LlamaConfig(dim=512, n_layers=4, n_heads=4)
    if batch < gpus:
        return
    result = plan(Planning(config, gpus, batch=batch))
    layout = Layout(**result["layout"])
    assert layout.data * layout.tensor == gpus and layout.batch == result["batch"]
    nearest = min(abs(n * layout.data - batch) for n in range(1, batch + 1))
    assert abs(layout.batch - batch) <= max(nearest, batch / 64)


def test_micro_batch_and_accumulate_make_the_batch():
    result = plan(Planning("7B", 8, micro_batch=3, accumulate=5))
    layout = Layout(**result["layout"])
    assert layout.micro_batch == 3 and layout.accumulate == 5
    assert result["batch"] == 3 * 5 * layout.data
    same = plan(Planning("7B", 8, accumulate=4, batch=96))
    assert same["batch"] == 96 and same["layout"]["accumulate"] == 4


# --- the command


def command(*arguments):
    return llama_course("plan", *arguments)


def test_the_command_prints_one_json_object():
    done = command("--model", "65B", "--gpus", "2048", "--gpu", "A100-80GB", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert {
        "days",
        "tokens_per_second_per_gpu",
        "mfu",
        "gpu_hours",
        "mwh",
        "tco2e",
        "memory_gib",
        "layout",
    } <= set(result)
    assert result == json.loads(json.dumps(plan(Planning("65B", 2048))))


def test_the_command_plan_lines():
    done = command(
        "--model", "7B", "--gpus", "8", "--tensor", "2", "--sequence", "--checkpointing", "full"
    )
    assert done.returncode == 0 and done.stdout.strip() == plan_lines(
        plan(Planning("7B", 8, tensor=2, sequence=True, checkpointing="full"))
    )


@pytest.mark.parametrize(
    "wrong", [("--model", "66B"), ("--gpu", "TPU"), ("--gpus", "some"), ("--gpus", "1")]
)
def test_the_command_refuses_in_one_line(wrong):
    done = command(*wrong)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1


# --- what the command can be told


def planned(*arguments):
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_published_row_from_the_command(tmp_path):
    row = ["--gpus", "64", "--gpu", "H100-80GB", "--micro-batch", "20", "--accumulate", "1"]
    row += ["--seq-len", "2048", "--checkpointing", "none", "--tensor", "1"]
    numbers = ["--dim", "2048", "--layers", "24", "--heads", "16", "--vocab-size", "50368"]
    result = planned(*numbers, "--feed-forward", "gelu", *row)
    assert result["tokens_per_second_per_gpu"] == pytest.approx(44402, rel=0.05)
    assert not result["tight"] and result["batch"] == 64 * 20
    (tmp_path / "config.json").write_text(
        '{"model_type": "mpt", "d_model": 2048, "n_layers": 24, "n_heads": 16, "vocab_size": 50368}'
    )
    same = planned("--model", str(tmp_path / "config.json"), *row)
    assert same["seconds"] == result["seconds"]


def test_a_model_and_a_gpu_of_ones_own(tmp_path):
    numbers = ModelNumbers(kv_heads=8, vocab_size=128256, hidden_dim=14336)
    assert parameters(the_model("7B", numbers)) == parameters(shape_of("Llama-3-8B"))
    assert the_model("7B", ModelNumbers()) == "7B"
    gpu = the_gpu('like = "H100-80GB", watts = 500, memory = 96e9, memory_rate = 2.4e12')
    assert gpu.full_watts == 700 and rates(gpu) == rates(GPUS["H100-96GB"])
    file = tmp_path / "gpu.toml"
    file.write_text('name = "B200"\nflops = 2.25e15\nmemory = 192e9\nmemory_rate = 8e12\n')
    assert the_gpu(str(file)).name == "B200" and the_gpu(str(file)).node == 8
    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    config |= {"intermediate_size": 8192, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = the_model(str(tmp_path), ModelNumbers())
    assert parameters(model) == parameters(shape_of("Llama-3.2-1B"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: the_gpu("TPU"),
        lambda: the_gpu('like = "TPU"'),
        lambda: the_gpu("flops = 1e12"),
        lambda: the_gpu("flops = "),
        lambda: the_gpu("missing.toml"),
        lambda: the_gpu('like = "H100-80GB", memory = -1'),
        lambda: the_gpu('like = "H100-80GB", colour = 3'),
        lambda: the_model("missing.json", ModelNumbers()),
        lambda: shape_of("9B"),
    ],
)
def test_what_is_no_gpu_or_model_is_said_in_one_line(wrong):
    with pytest.raises(UserError) as error:
        wrong()
    assert "\n" not in str(error.value)


# counts printed by loaded checkpoints, as their model cards round them
@pytest.mark.parametrize(
    "name, billions",
    [
        ("Llama-2-7B", 6.74),
        ("Llama-2-13B", 13.02),
        ("Llama-2-70B", 68.98),
        ("Llama-3-8B", 8.03),
        ("Llama-3-70B", 70.55),
        ("Llama-3.1-405B", 405.85),
        ("Llama-3.2-1B", 1.24),
        ("Llama-3.2-3B", 3.21),
    ],
)
def test_llama_2_and_3_by_name(name, billions):
    assert parameters(shape_of(name)) / 1e9 == pytest.approx(billions, abs=0.006)
