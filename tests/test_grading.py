"The judge: right answers pass, wrong ones are refused by name, and no notebook scores more than it is worth."

import ast
import dataclasses
import functools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama import modeling_llama as hf

import llama_course.classroom
from llama_course.classroom import (
    check,
    compare,
    hint,
    judge,
    notebooks,
    observe,
    protocol,
    supervisor,
    worker,
)
from llama_course.classroom.compare import misfit, tolerance
from llama_course.classroom.exercise import LOOKS, find_exercise, load_exercises
from llama_course.classroom.generate import generate_exercises
from llama_course.classroom.grade import grade, gradescope
from llama_course.classroom.observation import Observation
from llama_course.classroom.protocol import CellReply, ForeignMessage, NamesReply, ObservationReply
from llama_course.classroom.report import Report
from llama_course.classroom.supervisor import Limits
from llama_course.support.errors import UserError
from llama_course.support.fence import ForkServer

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = dict(load_exercises())
TASKS = list(EXERCISES.values())
MISTAKES = [(task, mistake) for task in TASKS for mistake in task.mistakes]
QUICK = Limits(memory=1 << 30, cell_seconds=3, call_seconds=3, total_seconds=60)


@functools.cache
def refusal(task_name, mistake_name):
    answer = next(
        mistake.answer for mistake in EXERCISES[task_name].mistakes if mistake.name == mistake_name
    )
    return check(answer, task_name)


def name_of(thing):
    return (
        f"{thing[0].name}: {thing[1].name}".replace(" ", "_")
        if isinstance(thing, tuple)
        else thing.name
    )


# ---------------------------------------------------------------- the exercises themselves


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_an_exercise_is_complete(task):
    assert set(task.points) <= set(LOOKS) and "values" in task.points and task.max_points == 10
    assert 2 <= len(task.hints) <= 4 and all(task.hints)
    assert len(task.rights) >= 2 and len(task.mistakes) >= 6
    assert len({mistake.name for mistake in task.mistakes}) == len(task.mistakes)
    for mistake in task.mistakes:
        assert mistake.remark and 1 <= mistake.hint <= len(task.hints)
    assert bool(task.invariants) == ("invariant" in task.points)
    assert bool(task.limits) == ("ledger" in task.points)
    assert bool(task.wrt) == ("gradients" in task.points)
    kinds = {other.kind for other in TASKS if other.chapter == task.chapter}
    assert kinds == {"rebuild", "extend", "diagnose"}


@pytest.mark.parametrize("seed", [0, 1, 2, 12345])
@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_right_answers_pass(task, seed):
    for answer in task.rights:
        report = check(answer, task.name, seed)
        assert report.passed and report.points == report.max_points and report.messages == [], (
            report
        )


@pytest.mark.parametrize("pair", MISTAKES, ids=name_of)
def test_a_mistake_is_refused_by_its_name(pair):
    task, mistake = pair
    report = refusal(task.name, mistake.name)
    assert not report.passed and report.points < report.max_points
    assert f'"{mistake.name}"' in report.messages[-1], report
    assert mistake.remark in report.messages[-1]
    assert f'hint("{task.name}", {mistake.hint})' in report.messages[-1]


def test_each_look_is_needed():
    refused_by = {
        row[0]
        for task, mistake in MISTAKES
        for row in refusal(task.name, mistake.name).looks
        if row[3] == "failed"
    }
    assert refused_by == set(LOOKS)


def test_an_answer_in_other_words_is_named_too():
    "The name comes from what the answer does: none of these is written as its mistake is."

    def rms_norm(x, weight, eps):
        root = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return (x / (root + eps)).to(x.dtype) * weight

    assert '"eps outside the root"' in check(rms_norm).messages[1]

    def rope(x, positions, theta):
        frequency = 1 / theta ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        angle = torch.outer(torch.arange(x.shape[1]), frequency)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    assert '"the positions are ignored"' in check(rope).messages[1]

    hidden = []

    def lean_rms_norm(x, weight, eps):
        hidden.append(x.double() ** 2)
        return checkpoint(EXERCISES["rms_norm"].rights[0], x, weight, eps, use_reentrant=False)

    report = check(lean_rms_norm)
    assert report.points == 6 and "saved_bytes" in report.messages[0]


def test_no_mistake_is_named_where_none_fits():
    def rms_norm(x, weight, eps):
        return 3 * x

    report = check(rms_norm)
    assert report.points == 0 and len(report.messages) == 1


# ---------------------------------------------------------------- references, against others' code


def test_rms_norm_reference_is_that_of_transformers():
    norm = hf.LlamaRMSNorm(16, eps=1e-3)
    x = torch.randn(3, 5, 16)
    norm.weight.data = torch.rand(16)
    ours = EXERCISES["rms_norm"].truth(x.double(), norm.weight.double(), 1e-3)
    torch.testing.assert_close(ours.float(), norm(x), rtol=1e-6, atol=1e-6)
    by_hand = (
        x.double() / ((x.double() ** 2).mean(-1, keepdim=True) + 1e-3) ** 0.5 * norm.weight.double()
    )
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)


def test_rope_reference_is_that_of_transformers():
    x, positions, theta = (
        torch.randn(2, 5, 3, 8, dtype=torch.float64),
        torch.tensor([9, 0, 4, 1, 33]),
        500.0,
    )
    angle = torch.outer(positions.double(), theta ** (-torch.arange(0, 8, 2).double() / 8)).repeat(
        1, 2
    )
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    theirs, _ = hf.apply_rotary_pos_emb(
        halves, halves, angle.cos()[None], angle.sin()[None], unsqueeze_dim=2
    )
    theirs = torch.stack(theirs.chunk(2, -1), -1).flatten(-2)
    torch.testing.assert_close(EXERCISES["rope"].truth(x, positions, theta), theirs)
    shifted = EXERCISES["rope"].truth(x, positions + 4, theta).transpose(1, 2)
    keys = EXERCISES["rope"].truth(x, positions, theta).transpose(1, 2)
    moved = EXERCISES["shift_keys"].truth(keys, 4, theta)
    torch.testing.assert_close(moved, shifted)


def test_decode_reference_is_causal_attention():
    turn, truth = EXERCISES["rope"].truth, EXERCISES["decode_step"].truth
    q, k, v = torch.randn(3, 2, 6, 2, 8, dtype=torch.float64)  # (B, T, H, Q)
    q_turned, k_turned = (turn(t, torch.arange(6), 100.0).transpose(1, 2) for t in (q, k))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    whole = F.scaled_dot_product_attention(q_turned, k_turned, v, is_causal=True)
    last = truth(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], k_turned[:, :, :5], v[:, :, :5], 100.0)
    torch.testing.assert_close(last, whole[:, :, 5:])


# ---------------------------------------------------------------- values


def test_the_tolerance_follows_from_the_dtype():
    want = torch.tensor([[2.0, -8.0], [0.5, 0.0]], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        eps = torch.finfo(dtype).eps
        assert tolerance(want, dtype).flatten().tolist() == [8 * eps * 8, 8 * eps * 0.5]
        assert not misfit(want.to(dtype) * (1 + eps), want, dtype)
        assert misfit((want * (1 + 20 * eps)).to(dtype), want, dtype)


def test_neither_lenient_nor_petty():
    want = torch.randn(50, 64, dtype=torch.float64)
    assert not misfit(
        (want + 1.5e-8).float(), want, torch.float32
    )  # refused by a bitwise comparison
    assert "error 0.009" in misfit(
        (want + 0.009).float(), want, torch.float32
    )  # passes a tolerance of 0.01
    for broken in (torch.nan, torch.inf):
        assert misfit(want.float() * broken, want, torch.float32)


@pytest.mark.parametrize(
    "got, want, text",
    [
        (None, torch.ones(2), "no `return`"),
        ([1.0, 1.0], torch.ones(2), "a tensor is expected"),
        (torch.ones(3), torch.ones(2), "(3,) float32 came back, (2,) float32"),
        (torch.ones(2).double(), torch.ones(2), "float64 came back, (2,) float32"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "2 came back at (1,), 3 is expected"),
        (torch.ones(2), (torch.ones(2), 1), "2 results are expected"),
        ((1, 2), (1, 3), "result 1: 2 came back"),
        ({"a": 1}, {"b": 1}, "is expected"),
        (True, 1, "True came back"),
        (0.31, 0.3, "0.31 came back"),
        ("a", "b", "'b' is expected"),
        (torch.tensor(1.0), 1.0, "is expected"),
    ],
)
def test_a_misfit_is_said_in_words(got, want, text):
    assert text in misfit(got, want)
    assert misfit(want, want) == ""


# ---------------------------------------------------------------- observing


class Stash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.secret = x * 2
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return grad.expand(1000)


KEPT = []


@pytest.mark.parametrize(
    "answer, bytes_kept",
    [
        (lambda x: x.exp(), 0),
        (lambda x: x.exp().sum(), 4000),
        (lambda x: x.sin(), 0),
        (lambda x: x.sin().cos(), 4000),
        (lambda x: (x.double() ** 2).sum(), 8000),
        (Stash.apply, 4000),
        (lambda x: KEPT.append(x + 1) or x * 1, 4000),
        (
            lambda x: checkpoint(
                lambda x: x.sin().cos(), x, use_reentrant=False, preserve_rng_state=False
            ),
            0,
        ),
        (lambda x: x.view(10, 100).T.reshape(-1).sum(), 0),
    ],
)
def test_bytes_that_are_kept_are_counted_wherever_they_are_kept(answer, bytes_kept):
    KEPT.clear()
    seen = observe(answer, torch.ones(1000), wrt=(0,))
    assert not seen.error and seen.saved_bytes == bytes_kept


def test_largest_tensor_and_flops():
    x = torch.randn(32, 8)
    seen = observe(lambda x: (x @ x.T).softmax(-1) @ x, x, wrt=(0,), cotangent=torch.ones(32, 8))
    assert seen.largest_tensor == 32 * 32
    assert seen.flops == 2 * 2 * 32 * 32 * 8 and seen.backward_flops > seen.flops
    assert (
        observe(lambda x: x.expand(1000, 32, 8).sum(0), x).largest_tensor < 1000 * 32 * 8
    )  # a view
    assert observe(lambda x: x[None].repeat(9, 1, 1), x).largest_tensor == 9 * 32 * 8


def test_what_the_judge_gave_stays_its_own():
    x = torch.ones(3)
    assert observe(lambda x: x.mul_(2), x, wrt=(0,)).modified == [0]
    assert observe(lambda x: x.data.mul_(2), x).modified == [0]
    assert observe(lambda x, y: y, x, torch.zeros(2)).modified == []
    assert x.tolist() == [1, 1, 1]


def test_errors_are_one_line_with_the_line_of_the_answer():
    def answer(x):
        "first line"
        return x @ torch.ones(7)

    error = observe(answer, torch.ones(3)).error
    assert error.startswith("RuntimeError: ") and "(line " in error and "test_grading.py)" in error
    assert observe(lambda x: sys.exit(0), torch.ones(3)).error.startswith("SystemExit: 0")

    def colourful(x):
        raise ValueError("a\x1b[31m\nb")

    error = observe(colourful, torch.ones(1)).error
    assert error.startswith("ValueError: a[31m b (line ") and error.isprintable()


# ---------------------------------------------------------------- check, hint, report


def test_messages_of_check():
    def rms_norm(x, weight, eps):
        pass

    assert "no `return`" in check(rms_norm).messages[0]

    def rms_norm(x, weight, eps):
        return x.sum(-1) * weight[0]

    assert "(3,) float64 came back, (3, 8) float64 is expected" in check(rms_norm).messages[0]

    def rms_norm(x, weight, eps):
        raise NotImplementedError()

    assert check(rms_norm).messages == ["values: there is no answer yet"]

    def rms_norm(x, weight):
        return x

    assert "TypeError" in check(rms_norm).messages[0]

    def rms_norm(x, weight, eps):
        return F.rms_norm(x.mul_(1.5), x.shape[-1:], weight, eps)

    assert "changes its argument `x` in place" in check(rms_norm).messages[0]

    def rms_norm(x, weight, eps):
        return F.rms_norm(x.detach(), x.shape[-1:], weight, eps)

    assert "no gradient reaches `x`" in check(rms_norm).messages[0]


def test_a_report_shows_itself():
    report = check(EXERCISES["rms_norm"].mistakes[0].answer, "rms_norm")
    assert repr(report).startswith("rms_norm: 0 of 10 points\n") and "not reached" in repr(report)
    assert "<table>" in report._repr_html_() and report.passed is False
    evil = dataclasses.replace(report, messages=["<script>alert(1)</script>"])
    assert "<script>" not in evil._repr_html_()
    assert [row[:3] for row in report.looks] == [
        ("values", 0, 4),
        ("gradients", 0, 2),
        ("invariant", 0, 2),
        ("ledger", 0, 2),
    ]


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: check(3), "not 3"),
        (lambda: check("rms_norm"), "takes a function"),
        (lambda: check(None), "takes a function"),
        (lambda: check(lambda x: x), "<lambda>"),
        (lambda: check(print, "rmsnorm"), "there is rms_norm"),
        (lambda: find_exercise("rope_"), "there is rope"),
        (lambda: hint("rope", 9), "from 1 to 4"),
        (lambda: hint("hop"), "no exercise"),
    ],
)
def test_bad_calls_are_told_in_one_line(call, text):
    with pytest.raises(UserError) as error:
        call()
    assert text in str(error.value) and "\n" not in str(error.value)


def test_hints_are_staged():
    first, last = hint("rms_norm"), hint("rms_norm", len(EXERCISES["rms_norm"].hints))
    assert 'hint("rms_norm", 2)' in first and "hint(" not in last and repr(first) == str(first)


def test_check_keeps_standard_error_clean(capsys):
    def rope(x, positions, theta):
        print("noise", file=sys.stderr)
        return EXERCISES["rope"].rights[0](x, positions, theta)

    assert check(rope).passed and capsys.readouterr().err == ""


def test_a_lenient_judge_would_be_noticed(monkeypatch):
    "With a tolerance of 0.01 the judge accepts what the tests above want refused."
    mistakes = {mistake.name: mistake.answer for mistake in EXERCISES["rms_norm"].mistakes}
    answer = mistakes["the scale is cut off from the graph"]
    assert check(answer, "rms_norm").points == 4
    monkeypatch.setattr(
        compare, "tolerance", lambda want, dtype, factor: torch.full_like(want, torch.inf)
    )
    assert check(answer, "rms_norm").passed


# ---------------------------------------------------------------- whole notebooks


NORM = """import torch
def rms_norm(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight
"""
BLOCK = """import torch.nn.functional as F
def pre_norm_block(x, w1, w2, g1, g2, eps):
    h = x + F.rms_norm(x, g1.shape, g1, eps) @ w1
    return h + F.rms_norm(h, g2.shape, g2, eps) @ w2
"""
WRONG = "def rms_norm(x, weight, eps): return x\n"


def write(folder, *sources, name="answers.ipynb"):
    cells = [
        {
            "cell_type": "code",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
            "id": f"c{i}",
        }
        for i, source in enumerate(sources)
    ]
    path = Path(folder) / name
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def points(result):
    return {row["name"]: row["points"] for row in result["exercises"]}


def test_solutions_get_full_marks_and_exercises_none():
    for folder, share in (("solutions", 1), ("exercises", 0)):
        result = grade(ROOT / folder)
        assert set(points(result)) == set(EXERCISES)
        for row in result["exercises"]:
            assert set(row) == {"name", "points", "max_points", "passed", "messages"}
            assert row["points"] == share * row["max_points"] and row["passed"] == bool(share), row
            assert bool(row["messages"]) != bool(share)


# Each attack stands in a notebook with a right pre_norm_block, which must keep its ten points, and either a
# right or a wrong rms_norm, which must get what it is worth.
ATTACKS = {
    "loops for ever": (NORM, "while True: pass", 10),
    "loops after the definition, in the same cell": (NORM + "while True: pass", "", 10),
    "os._exit": (NORM, "import os\nos._exit(0)", 10),
    "os._exit after the definition, in the same cell": (NORM + "import os\nos._exit(0)", "", 10),
    "sys.exit": (NORM, "import sys\nsys.exit(0)", 10),
    "raises": (NORM, "1 / 0", 10),
    "crashes in native code": (NORM, "import ctypes\nctypes.string_at(0)", 10),
    "eats memory in torch": (
        NORM,
        "import torch\nx = []\nwhile True: x.append(torch.ones(1 << 25))",
        10,
    ),
    "eats memory in python": (NORM, "x = [0]\nwhile True: x = x + x", 10),
    "endless recursion": (NORM, "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", 10),
    "fills the disk": (
        NORM,
        "with open('big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))",
        10,
    ),
    "leaves threads behind": (
        NORM,
        """import threading
def f():
    while True: pass
for _ in range(3): threading.Thread(target=f).start()""",
        10,
    ),
    "ends a little later": (
        NORM,
        """import os, threading
threading.Timer(0.05, lambda: os._exit(0)).start()""",
        10,
    ),
    "ends while it is judged": (
        NORM.replace("    wide", "    seen.append(x)\n    wide", 1) + "seen = []",
        """
import os, threading, time
def end():
    while not seen: time.sleep(0.001)
    os._exit(0)
threading.Thread(target=end).start()""",
        10,
    ),
    "definitions that end": (NORM, "import os\ndef f(x=os._exit(0)): pass", 10),
    "waits for input": (NORM, "input('password?')", 10),
    "writes to every descriptor": (
        NORM,
        """import os
for fd in range(3, 200):
    try: os.write(fd, bytes(999))
    except OSError: pass""",
        10,
    ),
    "closes every descriptor": (NORM, "import os\nos.closerange(0, 200)", 10),
    "ends its group": (NORM, "import os, signal\nos.killpg(0, signal.SIGKILL)", 10),
    "ends all that it may": (
        NORM,
        "import os, signal\nif os.getpid() == 1: os.kill(-1, signal.SIGKILL)",
        10,
    ),
    "magics": (NORM, "%matplotlib inline\n!echo 10 points\nx = 1", 10),
    "syntax error": (NORM, "def broken(:", 10),
    "answer loops": ("def rms_norm(x, weight, eps):\n  while True: pass", "", 0),
    "answer exits": ("import os\ndef rms_norm(x, weight, eps): os._exit(0)", "", 0),
    "answer returns a monster": (
        "import torch\ndef rms_norm(*a): return torch.ones(1 << 28)",
        "",
        0,
    ),
    "answer returns a labyrinth": (
        """def rms_norm(x, weight, eps):
    a = []
    for _ in range(99999): a = [a]
    return a""",
        "",
        0,
    ),
    "answer raises SystemExit": (
        "def rms_norm(x, weight, eps): raise SystemExit('10 of 10')",
        "",
        0,
    ),
    "prints success": (
        WRONG,
        "print('rms_norm: 10 of 10 points', '{\"points\": 10, \"passed\": true}')",
        0,
    ),
    "overwrites check": (
        """from llama_course.classroom import learner
learner.check = lambda f: 10""",
        WRONG + "check = learner.check",
        0,
    ),
    "patches the judge": (
        """from llama_course.classroom import compare, judge as j
j.judge = compare.misfit = j.find_fault = j.value_fault = lambda *a, **k: ''""",
        WRONG,
        0,
    ),
    "patches observe": (
        """from llama_course.classroom import observation as o, worker as w
o.observe = w.answers = lambda *a, **k: ({'error': ''}, {})""",
        WRONG,
        0,
    ),
    "patches the channel": (
        """from llama_course.classroom import protocol as p, worker as w
p.send = p.receive = p.pack_tree = p.unpack_tree = w.run_cell = None""",
        NORM,
        10,
    ),
    "patches the exercise": (
        """from llama_course.classroom.exercise import EXERCISES
task = EXERCISES['rms_norm']
task.truth, task.make_cases, task.factor = (lambda x, weight, eps: x), (lambda seed: []), 1e9""",
        WRONG,
        0,
    ),
    "patches torch": (
        """import torch, torch.nn.functional as F
torch.allclose = torch.equal = lambda *a, **k: True
F.rms_norm = lambda x, *a: x
torch.Tensor.__le__ = lambda *a: torch.tensor(True)""",
        WRONG,
        0,
    ),
    "patches torch, right answer": (
        "import torch\ntorch.rsqrt = torch.Tensor.square = None",
        NORM,
        10,
    ),
    "equal to everything": (
        WRONG
        + """
class Yes(float):
    __eq__ = __le__ = __lt__ = lambda *a: True
def rms_norm(x, weight, eps): return Yes()""",
        "",
        0,
    ),
    "a tensor that lies": (
        """import torch
class Lie(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None): return True
def rms_norm(x, weight, eps): return x.as_subclass(Lie)""",
        "",
        0,
    ),
    "leaves modes on": (
        NORM,
        """import torch
torch.set_grad_enabled(False)
torch.inference_mode().__enter__()
torch.set_default_dtype(torch.float64)""",
        10,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_notebook_scores_what_its_answers_are_worth(attack, tmp_path, capfd):
    first, second, worth = ATTACKS[attack]

    def parts():
        return torch.allclose, F.rms_norm, judge.judge, EXERCISES["rms_norm"].truth

    before = parts()
    result = grade(write(tmp_path, first, second, BLOCK), QUICK)
    assert points(result) == {"rms_norm": worth, "lean_rms_norm": 0, "pre_norm_block": 10}, result
    assert before == parts()
    out, err = capfd.readouterr()
    assert out == err == ""  # nothing of the learner's reaches the judge's output
    assert all(
        "\n" not in line
        for row in result["exercises"]
        for line in row["messages"] + result["notes"]
    )


def test_a_ledger_is_not_talked_down(tmp_path):
    "The values are right, the memory is not: patching what counts, before or during the call, is no help."
    greedy = """import torch
KEPT = []
def answer(x, weight, eps):
    KEPT.append(x.double() * 1)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)"""
    early = """import gc, torch
from llama_course.classroom import observation
from llama_course.support import ledger
from torch.multiprocessing import reductions
ledger.Counter.kept = lambda self, result: 0
ledger.Counter.note = lambda *a: None
ledger.storages = lambda tree: {}
reductions.StorageWeakRef.expired = lambda self: True
torch.UntypedStorage.nbytes = lambda self: 0
torch.Tensor.untyped_storage = None
ledger.FORMULAS.clear()
observation.observe.__code__ = (lambda *a, **k: None).__code__"""
    late = """from llama_course.classroom import observation
def lean_rms_norm(*a):
    observation.Counter.kept = lambda *a: 0
    return answer(*a)"""
    both = ((greedy, early, "lean_rms_norm = answer"), "saved_bytes"), ((greedy, late), "replaces")
    for sources, text in both:
        row = grade(write(tmp_path, *sources, BLOCK), QUICK)["exercises"][1]
        assert (
            row["name"] == "lean_rms_norm" and row["points"] <= 6 and text in row["messages"][0]
        ), row


def running(marker):
    "Whether there is a process with this text in its command line lives."
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in line.read_bytes():
                return True
        except OSError:
            continue
    return False


def gone(marker, seconds=5):
    end = time.monotonic() + seconds
    while running(marker) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(marker)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


NO_FENCE = "fence.make_root = lambda f: seccomp.c_call('umount2', b'/nowhere', 0); "


@pytest.fixture(params=["fenced", "without namespaces"])
def fence(request, monkeypatch):
    "Both ways in which Linux keeps a worker: with namespaces of its own, and without, as in some containers."
    if request.param == "without namespaces":
        real = ForkServer.command

        def command(self, sock):
            *rest, start = real(self, sock)
            assert "fence.serve_forks(" in start
            return [*rest, start.replace("fence.serve_forks(", NO_FENCE + "fence.serve_forks(")]

        monkeypatch.setattr(ForkServer, "command", command)
    supervisor.close_fork_server()
    yield request.param == "fenced"
    supervisor.close_fork_server()


@linux
def test_nothing_is_left_behind(fence, tmp_path):
    "Children end with the worker, also those that left its group; a bomb is stopped; the judge lives on."
    child = (
        "import subprocess\nsubprocess.Popen(['sleep', '7654321'])\n"
        "subprocess.Popen(['sleep', '7654321'], start_new_session=True)"
    )
    bomb = "import os, time\nfor _ in range(150):\n  os.setsid() if os.getpid() != os.getsid(0) else None\n  if os.fork() == 0: time.sleep(7654)\ntime.sleep(60)"
    parent = "import os, signal\nif os.getppid() > 1: os.kill(os.getppid(), signal.SIGKILL)"
    patient = Limits(
        memory=1 << 30, cell_seconds=20, call_seconds=10, total_seconds=200
    )  # the count ends it, not the clock
    result = grade(write(tmp_path, NORM, child, bomb, parent, BLOCK), patient)
    assert points(result) == {"rms_norm": 10, "lean_rms_norm": 0, "pre_norm_block": 10}, result
    assert "more than 64 processes" in str(result["notes"])
    assert ("without a fence" in str(result["notes"])) == (not fence)
    supervisor.close_fork_server()
    assert gone("7654321")


@linux
def test_files_outside_its_folder_are_safe_where_the_kernel_helps(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = str(tmp_path).encode()
    attack = (
        f"open({str(precious)!r}, 'w').write('yours')",
        f"import os; os.remove({str(precious)!r})",
        "from llama_course.classroom import judge; open(judge.__file__, 'a').write('# bad')",
        f"import ctypes; assert ctypes.CDLL(None).mount(b'x', {folder!r}, b'tmpfs', 0, 0), 'mounted'",
        f"import os; os.kill({os.getpid()}, 9)",
        "open('own.txt', 'w').write('this is allowed')",
        f"assert open({str(precious)!r}).read() == 'mine', 'its own folder can be read'",
    )
    result = grade(write(tmp_path, NORM, *attack), QUICK)
    notes = str(result["notes"])
    if "without a fence" in notes:
        pytest.skip("no namespaces here")
    assert precious.read_text() == "mine" and points(result)["rms_norm"] == 10
    assert notes.count("Read-only file system") == 3 and "ProcessLookupError" in notes
    assert "mounted" not in notes and "cell 7" not in notes and "cell 8" not in notes


def test_limits_are_those_that_were_asked_for(tmp_path):
    start = time.monotonic()
    limits = Limits(cell_seconds=1, total_seconds=4)
    result = grade(write(tmp_path, NORM, *["while True: pass"] * 9, BLOCK), limits)
    assert time.monotonic() - start < 15 and "time is up" in str(result)
    result = grade(
        write(tmp_path, *["while True: pass"] * 7, NORM, BLOCK), Limits(cell_seconds=0.3)
    )
    assert points(result)["rms_norm"] == 10  # broken often: run by its definitions


def test_workers_without_a_nursery(tmp_path, monkeypatch):
    "As on a system that cannot fork: each worker is a fresh Python."
    monkeypatch.setattr(
        supervisor, "start_worker", lambda sock, fence, folder: supervisor.Alone(sock, folder)
    )
    result = grade(write(tmp_path, NORM, "import os\nos._exit(0)", BLOCK), QUICK)
    assert points(result) == {"rms_norm": 10, "lean_rms_norm": 0, "pre_norm_block": 10}, result


@linux
def test_workers_end_with_a_judge_that_is_killed(tmp_path):
    path = write(tmp_path, NORM, "import subprocess\nsubprocess.run(['sleep', '7654322'])")
    code = f"from llama_course.classroom.grade import grade; grade({str(path)!r})"
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what it leaves behind when it is killed
    judge = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    end = time.monotonic() + 60
    while not running("7654322") and time.monotonic() < end:
        time.sleep(0.05)
    assert running("7654322")
    judge.kill(), judge.wait()
    assert gone("7654322")


def test_the_last_definition_counts(tmp_path):
    assert points(grade(write(tmp_path, NORM, WRONG), QUICK))["rms_norm"] == 0
    assert points(grade(write(tmp_path, WRONG, NORM), QUICK))["rms_norm"] == 10


def test_cells_for_ipython_are_run_as_far_as_possible(tmp_path):
    sources = (
        "%time x = 1\n!ls\nimport torch",
        "%%timeit\n" + WRONG,
        "%%bash\nexit 1",
        "print?\n" + NORM.removeprefix("import torch\n"),
    )
    result = grade(write(tmp_path, *sources), QUICK)
    assert points(result)["rms_norm"] == 10 and "left out" in str(result["notes"])


def test_a_helper_beside_the_notebook_can_be_imported(tmp_path):
    (tmp_path / "my_helpers.py").write_text(NORM)
    assert (
        points(grade(write(tmp_path, "from my_helpers import rms_norm"), QUICK))["rms_norm"] == 10
    )


def test_what_is_missing_is_said_with_the_path(tmp_path):
    result = grade(write(tmp_path, NORM.replace("def rms_norm", "def rms_nrom"), BLOCK), QUICK)
    message = result["exercises"][0]["messages"][0]
    assert str(tmp_path / "answers.ipynb") in message and "found: pre_norm_block" in message


def test_bad_paths_are_told_in_one_line(tmp_path):
    empty, two, none = tmp_path / "empty", tmp_path / "two", tmp_path / "none"
    for folder in (empty, two, none):
        folder.mkdir()
    (
        write(two, NORM, name="a.ipynb"),
        write(two, NORM, name="b.ipynb"),
        write(none, "def other(): pass"),
    )
    files = {
        "text.ipynb": b"hello",
        "binary.ipynb": bytes(range(256)),
        "list.ipynb": b"[1]",
        "nocells.ipynb": b'{"a": 1}',
        "old.ipynb": b'{"worksheets": [], "nbformat": 3}',
        "cells.ipynb": b'{"cells": [1]}',
        "deep.ipynb": b"[" * 10**6,
        "odd.ipynb": b'{"cells": [{"metadata": {"nbgrader": [1]}}, {"metadata": null, "source": 3}]}',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for path in (
        tmp_path / "missing.ipynb",
        empty,
        two,
        none,
        *(tmp_path / name for name in files),
    ):
        with pytest.raises(UserError) as error:
            grade(path)
        assert (
            str(path) in str(error.value)
            and "\n" not in str(error.value)
            and len(str(error.value)) < 500
        )


def test_a_folder_of_notebooks(tmp_path):
    write(tmp_path, NORM, name="norm.ipynb"), write(tmp_path, "x = 1", name="notes.ipynb")
    write(
        tmp_path,
        "from llama_course.classroom.judges.rope import rope\nrope = rope.rights[1]",
        name="rope.ipynb",
    )
    result = grade(tmp_path, QUICK)
    assert points(result) == {
        "rms_norm": 10,
        "lean_rms_norm": 0,
        "pre_norm_block": 0,
        "rope": 10,
        "shift_keys": 0,
        "decode_step": 0,
    }
    assert any("no exercise in it" in note for note in result["notes"])


def length(n):
    return n.to_bytes(8, "big")


def framed(body, blob=b""):
    return length(len(body)) + length(len(blob)) + body + blob


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 40,
        b"\xff" * 40,
        framed(b"{}" * 9),
        framed(b"null"),
        framed(b'{"tree": 1}', b"\xff" * 4),
        length(1 << 40) + length(0),
        b"",
        length(9),
        framed(b'{"tree": {"is": null}}'),
        framed(b"[" * 99999),
        framed(b'{"message": {}, "tree": {"tensor": ["0", [999999999999]]}}'),
        framed(b'{"message": {}, "tree": {"is": {"a": 1}}}'),
        framed(b'{"message": {}, "tree": {"other": 5}}'),
        framed(b'{"message": {}, "tree": {"dict": [[{"list": []}, {"is": 1}]]}}'),
        framed(b'{"message": {}, "tree": {"is": null}}'),
        framed(b'{"message": 3, "tree": {"is": null}}'),
        framed(b'{"message": {"note": 3, "replaced": []}, "tree": {"is": null}}'),
        framed(b'{"message": {"note": "", "replaced": [], "more": 1}, "tree": {"is": null}}'),
    ],
)
def test_a_broken_channel_is_no_danger(data):
    "Whatever stands on the judge's socket is an end or a foreign message, which `ask` turns into AnswerLost."
    ours, theirs = socket.socketpair()
    theirs.sendall(data), theirs.close()
    with ours, pytest.raises((EOFError, ForeignMessage)):
        protocol.receive_reply(ours, CellReply)


def test_what_was_sent_is_what_comes():
    ours, theirs = socket.socketpair()
    tree = (
        torch.ones(2, 3).T.bfloat16(),
        [1, "two", None, b"3", math.nan],
        {"x": 0.1, 2: True},
        torch,
    )
    protocol.send(ours, {"found": ["f"], "replaced": []}, tree)
    reply, (a, b, c, d) = protocol.receive_reply(theirs, NamesReply)
    assert (
        reply == NamesReply(found=["f"], replaced=[])
        and a.stride() == (1, 3)
        and a.dtype == torch.bfloat16
    )
    assert b[:4] == [1, "two", None, b"3"] and math.isnan(b[4]) and c == {"x": 0.1, 2: True}
    assert type(d).__name__ == "module" and type(d) is not type(torch)
    with pytest.raises(ValueError):
        protocol.send(ours, {}, torch.zeros(protocol.LARGEST_MESSAGE // 8, dtype=torch.float64))


SEEN = {
    "error": "",
    "modified": [],
    "saved_bytes": 1,
    "largest_tensor": 2,
    "flops": 3,
    "backward_flops": 4,
    "collectives": {"all_reduce": [1, 8]},
    "replaced": [],
}


@pytest.mark.parametrize(
    "lie",
    [
        {"flops": "9"},
        {"flops": -1},
        {"flops": 10**300},
        {"flops": 1.5},
        {"flops": True},
        {"modified": [7]},
        {"modified": "x"},
        {"modified": [-1]},
        {"error": 3},
        {"collectives": {"all_reduce": 5}},
        {"collectives": {"a": [1]}},
        {"replaced": None},
        {"value": 1},
        {"grads": [1, 2]},
        {"grads": 1},
        {"tree": 5},
    ],
)
def test_a_forged_observation_is_no_danger(lie):
    "Nothing that a worker says is taken for an observation that it cannot be."
    values = {"value": 1, "grads": lie.pop("grads", [None])}
    tree = lie.pop("tree", values)
    ours, theirs = socket.socketpair()
    protocol.send(ours, SEEN | lie, tree)
    with pytest.raises(ForeignMessage):
        reply, tree = protocol.receive_reply(theirs, ObservationReply)
        supervisor.observation(reply, tree, 2, 1)
    protocol.send(ours, SEEN, values | {"grads": [None]})
    seen = supervisor.observation(*protocol.receive_reply(theirs, ObservationReply), 2, 1)
    assert (
        seen
        == Observation(
            value=1,
            grads=[None],
            saved_bytes=1,
            largest_tensor=2,
            flops=3,
            backward_flops=4,
            collectives={"all_reduce": (1, 8)},
        )
        and seen.collective_bytes == 8
    )


def test_a_foreign_message_costs_only_its_own_notebook(tmp_path):
    "C2: a cell writes a message of its own to every socket it finds."
    forge = """import os, socket, struct
body = BODY
for fd in range(3, 64):
    try: os.write(fd, struct.pack(">QQ", len(body), 0) + body)
    except OSError: pass"""
    (tmp_path / "all").mkdir()
    for i, body in enumerate(
        (b'{"tree": {"is": null}}', b'{"message": {"note": ""}, "tree": {"is": null}}')
    ):
        folder = tmp_path / f"f{i}"
        folder.mkdir()
        write(folder, forge.replace("BODY", repr(body)), NORM, BLOCK, name="forged.ipynb")
        write(
            folder,
            "from llama_course.classroom.judges.rope import rope\nrope = rope.rights[1]",
            name="rope.ipynb",
        )
        result = grade(folder, QUICK)
        assert points(result)["rope"] == 10 and points(result)["pre_norm_block"] == 10, result
        assert any("wrote to the judge's own channel" in note for note in result["notes"])


@pytest.mark.parametrize(
    "source",
    [
        "# " + "import " * 30000,
        "import " * 30000 + "x",
        "a = " * 100000,
        "(" * 90000,
        "x" * 10**6,
        " " * 10**6 + "import rope",
        "\n" * 10**6 + "rope = 1",
    ],
)
def test_a_long_cell_is_read_at_once(source, tmp_path):
    "C3: time linear in what a learner writes: forty times as long takes well under four hundred times as long."
    notebooks.defined_names(source)
    found = notebooks.read_notebook(write(tmp_path, source)).claims
    assert found == (["rope"] if "rope" in source else [])
    worker.python_only(source[:50000])


def test_names_are_found_where_they_are_defined():
    source = """def one(x): return later
class two: pass
three = 3
four, five = 4, 5
six == 6
from a import seven, eight as nine
    import ten
async def eleven(): pass
(twelve) = 12
"""
    assert {"one", "two", "three", "seven", "eight", "nine", "ten"} == notebooks.defined_names(
        source
    )


def test_cells_are_run_one_by_one():
    module = types.ModuleType("__main__")
    assert (
        "left out" in worker.run_cell(module, 1, "%matplotlib inline\n!rm -rf /nothing\na = 2")
        and module.a == 2
    )
    note = worker.run_cell(module, 2, "def f():\n    return a / 0\nb = 1\nf()")
    assert (
        note.startswith("ZeroDivisionError")
        and "line 4 of cell 2" not in note
        and "(line 2 of cell 2)" in note
    )
    assert module.b == 1 and worker.run_cell(module, 3, "import sys\nsys.exit(0)").startswith(
        "SystemExit"
    )
    assert (
        not worker.run_cell(module, 4, "def g(): return 7\nwhile True: pass", whole=False)
        and module.g() == 7
    )


def test_what_was_replaced_is_put_back():
    put_back = worker.guard([torch, torch.Tensor, torch.nn.functional])
    torch.allclose = torch.Tensor.__le__ = lambda a, b: True
    assert put_back() == ["torch.allclose", "Tensor.__le__"]
    assert put_back() == [] and not torch.allclose(torch.zeros(1), torch.ones(1))


def test_the_whole_home_is_never_readable(tmp_path, monkeypatch):
    "A notebook that lies in the home itself can read the files beside it, but no folder and nothing hidden."
    (
        (tmp_path / ".netrc").write_text("s3cret"),
        (tmp_path / "data.csv").write_text("1"),
        (tmp_path / ".ssh").mkdir(),
    )
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    beside = [
        path for path in supervisor.readable_folders(tmp_path) if path.startswith(str(tmp_path))
    ]
    assert beside == [str(tmp_path / "data.csv")]
    assert str(tmp_path / ".ssh") in supervisor.readable_folders(tmp_path / ".ssh")
    assert not any(
        tmp_path.is_relative_to(path) for path in supervisor.readable_folders(tmp_path.parent)
    )


def test_no_pickle():
    "What a worker sends is never unpickled."
    for path in Path(llama_course.classroom.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not imported & {"pickle", "dill", "marshal", "shelve", "multiprocessing"}
        assert not called & {"torch.load", "eval", "pickle.loads"}
        assert path.stem != "protocol" or "safetensors.torch.load" in called


def test_a_report_knows_no_arguments():
    "A3: `where` belonged to exercises and was copied to reports, which have none."
    assert not hasattr(Report("rms_norm", [], []), "where")


# ---------------------------------------------------------------- formats for teachers


def test_gradescope(tmp_path):
    result = gradescope(grade(write(tmp_path, NORM, WRONG, BLOCK), QUICK))
    json.dumps(result)
    rows = [
        (test["name"], test["score"], test["max_score"], test["status"]) for test in result["tests"]
    ]
    assert rows == [
        ("rms_norm", 0, 10, "failed"),
        ("lean_rms_norm", 0, 10, "failed"),
        ("pre_norm_block", 10, 10, "passed"),
    ]
    assert all(t["output"] for t in result["tests"][:2])


def test_exercises_are_what_the_solutions_generate(tmp_path):
    first, second = (generate_exercises(ROOT / "solutions", tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == sorted(
        path.name for path in (ROOT / "exercises").glob("*.ipynb")
    )
    for one, other in zip(first, second):
        assert (
            one.read_bytes() == other.read_bytes() == (ROOT / "exercises" / one.name).read_bytes()
        )
        nbformat.validate(nbformat.read(one, as_version=4))
        text = one.read_text()
        assert "BEGIN SOLUTION" not in text and '"outputs": []' in text and "YOUR CODE HERE" in text
    with pytest.raises(UserError):
        generate_exercises(tmp_path / "nothing", tmp_path / "c")


def test_points_in_the_notebooks_are_those_of_the_exercises():
    for path in (ROOT / "solutions").glob("*.ipynb"):
        cells = [
            cell["metadata"].get("nbgrader", {}) for cell in json.loads(path.read_text())["cells"]
        ]
        graded = {meta["grade_id"]: meta["points"] for meta in cells if meta.get("grade")}
        assert graded == {task.name: task.max_points for task in TASKS if task.chapter == path.stem}


@pytest.mark.filterwarnings("ignore:Object of type")  # SQLAlchemy, about nbgrader's own models
def test_nbgrader_gives_the_same_points(tmp_path, monkeypatch):
    "nbgrader's own generate_assignment and autograde, on a solved, a half-solved and an empty notebook."
    from nbgrader.api import Gradebook
    from nbgrader.apps.api import NbGraderAPI
    from traitlets.config import Config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv(
        "PATH", str(Path(sys.executable).parent), prepend=os.pathsep
    )  # nbgrader calls alembic
    source = tmp_path / "source/week1"
    source.mkdir(parents=True)
    shutil.copy(ROOT / "solutions/08_norm.ipynb", source)
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.Exchange.root, config.Execute.timeout = str(tmp_path / "exchange"), 120
    (tmp_path / "exchange").mkdir()
    api = NbGraderAPI(config=config)
    result = api.generate_assignment("week1")
    assert result["success"], result
    released = json.loads((tmp_path / "release/week1/08_norm.ipynb").read_text())
    ours = json.loads((ROOT / "exercises/08_norm.ipynb").read_text())
    sources = lambda nb: [(cell["source"], cell["metadata"]) for cell in nb["cells"]]
    assert sources(released) == sources(ours)  # nbgrader's release is our exercise notebook

    solved = json.loads((ROOT / "solutions/08_norm.ipynb").read_text())
    half = json.loads(json.dumps(ours))
    for cell in half["cells"]:
        grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if grade_id == "rms_norm_answer":
            cell["source"] = NORM
        if grade_id == "lean_rms_norm_answer":
            cell["source"] = NORM.replace("rms_norm", "lean_rms_norm")
    expected = {
        "anna": (solved, [10, 10, 10]),
        "ben": (half, [10, 6, 0]),
        "carl": (ours, [0, 0, 0]),
    }
    for student, (notebook, _) in expected.items():
        folder = tmp_path / "submitted" / student / "week1"
        folder.mkdir(parents=True)
        (folder / "08_norm.ipynb").write_text(json.dumps(notebook))
        result = api.autograde("week1", student)
        assert result["success"], result["log"]
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        for student, (_, scores) in expected.items():
            grades = book.find_submission_notebook("08_norm", "week1", student).grades
            by_nbgrader = {g.name: g.auto_score for g in grades}
            assert [
                by_nbgrader[n] for n in ("rms_norm", "lean_rms_norm", "pre_norm_block")
            ] == scores
            assert points(grade(tmp_path / "submitted" / student / "week1")) == by_nbgrader
