"What a learner's answer can do to the judge: nothing, whatever it returns, raises, prints or sets."

import collections
import contextlib
import fractions
import functools
import random
import threading
import time

import numpy as np
import pytest
import torch

from llama_course.classroom import check, learner, observe
from llama_course.classroom.exercise import EXERCISES as COURSE
from llama_course.classroom.exercise import Exercise, load_exercises
from llama_course.classroom.surroundings import neutral
from llama_course.classroom.trial import make_case
from llama_course.classroom.values import taken

EXERCISES = dict(load_exercises())


def norm_by_hand(x, weight, eps):
    "A right answer; the library's own function is refused."
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight


# ---------------------------------------------------------------- the door


class Liar(int):
    def __eq__(self, other):
        raise KeyboardInterrupt

    __hash__ = int.__hash__


class Loud:
    def __repr__(self):
        raise SystemExit

    __getattr__ = __len__ = __iter__ = __repr__


def endless():
    nest = []
    nest.append(nest)
    return nest


@pytest.mark.parametrize(
    "value, plain",
    [
        (np.float64(0.25), 0.25),
        (np.float32(0.5), 0.5),
        (np.longdouble(2), 2.0),
        (np.int64(7), 7),
        (np.uint8(255), 255),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        ([np.int32(1), (np.float16(1.5), {np.int64(2): np.bool_(False)})], [1, (1.5, {2: False})]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (Liar(3), 3),
        (10**400, 10**400),
    ],
)
def test_numbers_of_numpy_are_numbers(value, plain):
    got = taken(value)
    assert got == plain and type(got) is type(plain)


REFUSED = [
    (np.ones((2, 3)), "a NumPy array (2, 3) float64"),
    (np.datetime64("2023-02-27"), "a NumPy datetime64"),
    (torch.eye(3).to_sparse(), "a sparse tensor (sparse_coo)"),
    (torch.empty(2, device="meta"), "a tensor on the device meta"),
    (torch.ones(2, dtype=torch.complex64), "a tensor of complex64"),
    (torch.zeros(1).expand(10**12), "a tensor of 1,000,000,000,000 elements"),
    (10**10_000, "a whole number of 33,220 bits"),
    (fractions.Fraction(1, 3), "a Fraction"),
    ({1, 2}, "a set"),
    ((i for i in range(3)), "a generator"),
    (Loud(), "a Loud"),
    (1j, "a complex"),
    ([0] * 200_000, "a list of more than 100,000 parts"),
    (endless(), "[[...] (1 of them)]"),
    ({torch.ones(1): 2}, "a dict whose keys are neither numbers nor texts"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_no_plain_data_is_refused_by_its_name(number):
    value, name = REFUSED[number]

    def rms_norm(x, weight, eps):
        return value

    def pass_at_k(n, c, k):
        return value

    for answer in (rms_norm, pass_at_k):
        report = check(answer)
        assert report.points == 0 and name in report.messages[0], report


class Unreadable(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("int too large to convert to float"),
        SystemExit(0),
        GeneratorExit(),
        KeyboardInterrupt(),
        Unreadable(),
        RecursionError(),
        MemoryError(),
        StopIteration(),
        AssertionError("\x1b[2J" + "x" * 10_000),
    ],
)
def test_no_error_of_an_answer_ends_the_judge(error):
    def pass_at_k(n, c, k):
        raise error

    report = check(pass_at_k)
    assert report.points == 0 and type(error).__name__ in report.messages[0]
    assert "test_judge.py): `raise error`" in report.messages[0] and len(report.messages[0]) < 700


# ---------------------------------------------------------------- time and output


def test_a_loop_without_end_is_ended_at_its_line(monkeypatch):
    monkeypatch.setattr(learner, "CALL_SECONDS", 0.2)

    def pass_at_k(n, c, k):
        while True:
            pass

    def stubborn(n, c, k):
        while True:
            try:
                time.sleep(0.001)
            except BaseException:
                pass

    for answer in (pass_at_k, stubborn):
        report = check(answer, "pass_at_k")
        assert report.points == 0 and "OutOfTime: it takes longer than 0.2 s" in report.messages[0]
        assert "test_judge.py): `" in report.messages[0]
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(check(pass_at_k)))
    thread.start()
    thread.join()
    assert "OutOfTime" in outcome[0].messages[0]


def test_what_an_answer_prints_is_curbed(capsys):
    def pass_at_k(n, c, k):
        for i in range(20_000):
            print("still here", i)

    check(pass_at_k)
    shown = capsys.readouterr()
    assert shown.out.startswith("still here 0\n") and len(shown.out) < 5000 and not shown.err
    assert "more characters were printed]" in shown.out


# ---------------------------------------------------------------- surroundings


def float64_on():
    torch.set_default_dtype(torch.float64)


SETTINGS = {
    "gradients off": lambda: torch.set_grad_enabled(False),
    "float64": float64_on,
    "inference mode": lambda: torch.inference_mode().__enter__(),
    "seed": lambda: (torch.manual_seed(7), random.seed(7), np.random.seed(7)),
    "threads": lambda: torch.set_num_threads(3),
    "bfloat16 products": lambda: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    "device": lambda: torch.set_default_device("meta"),
    "errors of NumPy": lambda: np.seterr(all="raise"),
}
SOME = ("rms_norm", "lora_map", "reduce_scatter", "nucleus")


@pytest.mark.parametrize("name", SETTINGS)
def test_verdicts_do_not_depend_on_what_a_notebook_has_set(name):
    with neutral():  # puts everything back for the other tests
        SETTINGS[name]()
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
        for task in SOME:
            make_case.__globals__["trial_of"].cache_clear()
            assert check(EXERCISES[task].rights[0], task).passed
            wrong = EXERCISES[task].mistakes[0]
            assert wrong.name in check(wrong.answer, task).messages[-1]
        assert before == (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        )  # fmt: skip


def test_what_an_answer_leaves_set_is_put_back():
    def leaves(x):
        for setting in SETTINGS.values():
            setting()
        return x

    before = torch.get_rng_state(), random.getstate(), np.geterr()
    observe(leaves, torch.ones(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.geterr()) == before[1:]
    assert torch.ones(1).device.type == "cpu" and torch.ones(1).dtype == torch.float32
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert (
        not torch.is_autocast_enabled("cpu")
        and check(EXERCISES["rms_norm"].rights[0], "rms_norm").passed
    )
    layer, outs = torch.nn.Linear(2, 2), []
    for _ in range(2):  # within an autocast that nobody left, the first weights would be kept
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outs.append(layer(torch.ones(1, 2)))
        with torch.no_grad():
            layer.weight += 1
    assert not torch.equal(*outs)


# ---------------------------------------------------------------- partial credit


def test_right_but_for_16_bits_is_no_empty_answer():
    def rms_norm(x, weight, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    report = check(rms_norm)
    assert [row[1] for row in report.looks] == [2, 1, 2, 2]
    assert "right but for 16 bits" in repr(report) and "squares in 16 bits" in repr(report)


def test_a_fault_in_16_bits_is_never_free():
    "Where a look has one point there is no half of it: all ten would say that nothing is wrong."

    def lean_rms_norm(x, weight, eps):
        right = EXERCISES["lean_rms_norm"].rights[0](x, weight, eps)
        return right.float() if x.dtype == torch.bfloat16 else right

    report = check(lean_rms_norm)
    assert report.points == 9 and not report.passed and "bfloat16 is expected" in report.messages[0]


def test_right_but_for_the_gradient_and_right_but_for_the_cost():
    def rms_norm(x, weight, eps):
        return norm_by_hand(x, weight.detach(), eps)

    assert [row[1] for row in check(rms_norm).looks] == [4, 0, 2, 0]

    def rms_norm(x, weight, eps):
        wide = x.double()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (scaled * weight.double()).type_as(x)

    assert [row[1] for row in check(rms_norm).looks] == [4, 2, 2, 0]


# ---------------------------------------------------------------- names and messages


def test_no_name_is_given_to_what_only_fails_at_the_same_place():
    def rms_norm(x, weight, eps):  # was called "the gain as a diagonal matrix"
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        more = x.float() * 1 if x.dtype != torch.float64 else x * 1
        return (more * root).type_as(x) * 1 * weight

    report = check(rms_norm)
    assert "diagonal" not in repr(report)

    def rms_norm(x, weight, eps):  # like "the gain is forgotten" in the first case alone
        gain = torch.ones_like(weight) if x.dtype == torch.float64 else weight + 1e-2
        return norm_by_hand(x, gain, eps)

    assert "This looks like" not in repr(check(rms_norm))


def test_messages_show_arguments_and_what_came_back():
    def weighted_vote(answers, weights, gold):
        return 2.0

    report = check(weighted_vote)
    assert (
        "values: 2.0 came back, " in report.messages[0]
        and "weights [1, 1, 1, 1]" in report.messages[0]
    )

    def merge_pieces(*args):
        return ["a"]

    message = check(merge_pieces).messages[0]
    assert "['a'] came back, [" in message and "1 results," in message

    def rms_norm(x, weight, eps):
        return norm_by_hand(x.contiguous().view(x.shape), weight, eps) * (
            1 if x.is_contiguous() else 2
        )

    message = check(rms_norm).messages[0]
    assert "does not hold; (3, 4, 16) float32 came back last, with x (3, 4, 16) float32" in message


# ---------------------------------------------------------------- tolerance


def test_the_tolerance_follows_the_terms_that_cancel():
    task = EXERCISES["reduce_scatter"]
    parts = torch.tensor([[[1e4], [0.0]], [[-1e4 + 10], [0.0]]], dtype=torch.float32)
    case = make_case(task, (parts,), 0)
    noise, size = case.noise[0][0].item(), case.truth.value[0].abs().item()
    assert noise > 100 * torch.finfo(torch.float32).eps * size
    steady = make_case(task, (parts.abs(),), 0)
    assert steady.noise[0][0].item() < 2 * torch.finfo(torch.float32).eps * 2e4


def test_where_a_result_jumps_rounding_explains_nothing():
    task = Exercise("jumps", "none", "rebuild", {"values": 10}, ())
    task.reference(lambda x: x.round())
    try:
        assert make_case(task, (torch.tensor([0.5, 1.5, 2.5]),), 0).noise[0].tolist() == [0, 0, 0]
    finally:
        del COURSE["jumps"]


@pytest.mark.parametrize("name", ["merge_attention", "reduce_scatter", "lora_map"])
def test_right_answers_pass_at_every_seed(name):
    "They were refused at seeds 3, 5, 29, 48 and 59."
    for seed in (3, 5, 29, 48, 59):
        for answer in EXERCISES[name].rights:
            assert check(answer, name, seed).passed


# ---------------------------------------------------------------- out of sight


def scores_in_numpy(q, k):
    return (q.detach().numpy() @ k.detach().numpy().T).max(-1)


def hidden_by_numpy(x):
    return torch.from_numpy(scores_in_numpy(x, x))


def hidden_by_a_thread(x):
    box = []
    thread = threading.Thread(target=lambda: box.append((x @ x.T).amax(-1)))
    thread.start()
    thread.join()
    return box[0]


def hidden_by_a_mode(x):
    with torch._C._DisableTorchDispatch():
        return (x @ x.T).amax(-1)


def hidden_by_no_mode(x):
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return (x @ x.T).amax(-1)


def hidden_by_lists(x):
    rows = x.tolist()
    return torch.tensor([max(sum(a * b for a, b in zip(r, s)) for s in rows) for r in rows])


@pytest.mark.parametrize(
    "answer, told",
    [
        (hidden_by_numpy, ".numpy()"),
        (lambda x: torch.from_numpy(np.asarray(x) * 2), ".__array__()"),
        (hidden_by_lists, ".tolist()"),
        (hidden_by_a_thread, "thread"),
        (hidden_by_a_mode, "turns off the mode"),
        (hidden_by_no_mode, "turns off the mode"),
    ],
)
def test_the_ledger_refuses_what_it_cannot_see(answer, told):
    seen = observe(answer, torch.randn(40, 8))
    assert not seen.error and any(told in text for text in seen.hidden), seen
    honest = observe(lambda x: (x @ x.T).amax(-1), torch.randn(40, 8), wrt=(0,))
    assert honest.hidden == [] and honest.largest_tensor == 1600


def test_hidden_work_costs_the_ledgers_points():
    def tiled_attention(q, k, v, block):
        scores = q.double().numpy() @ np.swapaxes(k.double().numpy(), -1, -2) / q.shape[-1] ** 0.5
        T, S = scores.shape[-2:]
        scores = np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return torch.from_numpy(p / p.sum(-1, keepdims=True) @ v.double().numpy()).type_as(q)

    report = check(tiled_attention)
    assert report.looks[0][1] > 0 and report.looks[-1][1] == 0, report
    assert "cost: it takes numbers out of PyTorch" in report.messages[-1]


def test_help_from_the_judges_truth_is_noted():
    from llama_course.classroom.exercise import find_exercise
    from llama_course.classroom.judges.norm import rms_norm as norm

    def by_lookup(x, weight, eps):
        return find_exercise("rms_norm").rights[0](x, weight, eps)

    def by_a_helper(x, weight, eps):
        return by_lookup(x, weight, eps)

    def by_the_file(x, weight, eps):
        with contextlib.suppress(OSError):
            open("solutions/08_norm.ipynb").read()
        return norm_by_hand(x, weight, eps)

    def by_name(x, weight, eps):
        import llama_course.classroom.judges.norm.rms_norm as truth

        return truth.with_rsqrt(x, weight, eps)

    whole = functools.partial(norm.with_rsqrt)
    for answer in (norm.with_rsqrt, whole, by_lookup, by_a_helper, by_the_file, by_name):
        report = check(answer, "rms_norm")
        assert report.passed and report.notes and "for the teacher" in repr(report), answer

    def rms_norm(x, weight, eps):
        return norm_by_hand(x, weight, eps)

    assert check(rms_norm).notes == []
