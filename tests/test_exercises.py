"The exercises: right answers pass, and what is wrong is refused by its name."

import ast
import dataclasses
import functools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama import modeling_llama as hf

from llama_course.classroom import (
    check,
    compare,
    hint,
    observe,
    trial,
)
from llama_course.classroom.compare import misfit, tolerance
from llama_course.classroom.exercise import EXERCISES as course
from llama_course.classroom.exercise import LOOKS, Exercise, find_exercise, load_exercises
from llama_course.classroom.progress import HARD
from llama_course.classroom.report import Report
from llama_course.support.errors import UserError

SOLUTIONS = Path(__file__).resolve().parent.parent / "solutions"
EXERCISES = dict(load_exercises())
TASKS = list(EXERCISES.values())
MISTAKES = [(task, mistake) for task in TASKS for mistake in task.mistakes]


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
    assert bool(task.invariants) == ("laws" in task.points)
    assert bool(task.limits) == ("cost" in task.points)
    assert bool(task.wrt) == ("gradients" in task.points)
    kinds = {other.kind for other in TASKS if other.chapter == task.chapter}
    assert kinds == {"rebuild", "extend", "diagnose"}


def task_texts():
    "Exercise -> the text of its task, from its heading on."
    found = {}
    for path in sorted(SOLUTIONS.glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            marked = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
            if cell["cell_type"] == "markdown" and marked.endswith("_task"):
                found[marked.removesuffix("_task")] = "".join(cell["source"])
    return found


def test_every_task_says_what_it_is_how_long_it_takes_and_how_hard_it_is():
    texts = task_texts()
    assert set(texts) == set(EXERCISES)
    for name, task in EXERCISES.items():
        level = HARD[task.difficulty]
        number, kind = r"(?:.*\n\n)?## \d+\. ", task.kind.capitalize()
        begins = rf"{kind}: `{name}`\n\n\*About {task.minutes} minutes; {level}\.\* "
        assert re.match(number + begins, texts[name], re.DOTALL), name


# where the judge deals the arguments out: to ranks, as a model, as files on a disk
DEALT = {
    "find_faults", "train_steps", "held_out_bits", "reduce_scatter", "doubling_all_reduce",
    "equal_sums", "parallel_swiglu", "sharded_step", "clip_shards", "newest_whole",
    "save_checkpoint", "bytes_alive", "serve_rows",
}  # fmt: skip


def test_messages_call_the_arguments_as_the_task_does():
    for path in sorted(SOLUTIONS.glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if not cell["metadata"].get("nbgrader", {}).get("solution"):
                continue
            for node in ast.parse("".join(cell["source"])).body:
                name = getattr(node, "name", "")
                if isinstance(node, ast.FunctionDef) and name in EXERCISES.keys() - DEALT:
                    given = [argument.arg for argument in node.args.args]
                    assert EXERCISES[name].names[: len(given)] == given, name


@pytest.mark.parametrize("seed", [0, 12345])  # fifty of them: make seeds
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
    assert report.points == 4 and "saved_bytes" in report.messages[0]


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
        (torch.ones(2), (torch.ones(2), 1), "((2,) float32, 1) is expected"),
        ([1], [1, 2], "[1] came back, [1, 2] is expected: 1 results, 2 are expected"),
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
    assert (
        error.startswith("RuntimeError: ") and "(line " in error and "test_exercises.py)" in error
    )
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
        return EXERCISES["rms_norm"].rights[0](x.mul_(1.5), weight, eps)

    assert "changes its argument `x` in place" in check(rms_norm).messages[0]

    def rms_norm(x, weight, eps):
        return EXERCISES["rms_norm"].rights[0](x.detach(), weight, eps)

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
        ("laws", 0, 2),
        ("cost", 0, 2),
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

    assert check(rope).passed
    out, err = capsys.readouterr()
    assert "noise" in out and err == ""


def test_a_lenient_judge_would_be_noticed(monkeypatch):
    "With a tolerance of 0.01 the judge accepts what the tests above want refused."
    mistakes = {mistake.name: mistake.answer for mistake in EXERCISES["rms_norm"].mistakes}
    answer = mistakes["the scale is cut off from the graph"]
    assert check(answer, "rms_norm").points == 6  # values and laws
    monkeypatch.setattr(
        compare, "tolerance", lambda want, dtype, factor: torch.full_like(want, torch.inf)
    )
    assert check(answer, "rms_norm").passed


def test_a_report_knows_no_arguments():
    "A3: `where` belonged to exercises and was copied to reports, which have none."
    assert not hasattr(Report("rms_norm", [], []), "where")


# ---------------------------------------------------------------- an exercise, from its parts


@pytest.fixture
def softmax():
    "An exercise that is none of the course's."
    task = Exercise(
        "my_softmax",
        chapter="none",
        kind="rebuild",
        wrt=("x",),
        hints=("Each row sums to one.", "Subtract the largest first."),
        points={"values": 4, "gradients": 3, "laws": 2, "cost": 1},
    )

    @task.cases
    def cases(seed):
        random = torch.Generator().manual_seed(seed)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            yield ((3 * torch.randn(4, 50, generator=random)).to(dtype),)

    @task.reference
    def by_the_formula(x):
        return x.exp() / x.exp().sum(-1, keepdim=True)

    @task.right
    def by_torch(x):
        return x.softmax(-1)

    @task.invariant("adding a number to all scores changes nothing")
    def only_differences_matter(seen):
        x = torch.arange(5.0)
        return torch.allclose(seen(x).value, seen(x + 1000).value)

    @task.limit("saved_bytes", "the result is enough for the backward pass")
    def most_saved_bytes(x):
        return 8 * len(x)

    @task.mistake("no shift before exp", hint=2)
    def no_shift(x):
        """exp(1000)
        is infinite."""
        return by_the_formula(x)

    @task.mistake("not differentiable", hint=1)
    def cut_off(x):
        "Numbers that went through .detach() have no gradient."
        return x.detach().softmax(-1).requires_grad_()

    @task.mistake("over the wrong axis", hint=1)
    def over_columns(x):
        "The columns sum to one, not the rows."
        return x.softmax(0)

    yield task
    del course[task.name]


def test_an_exercise_is_made_of_decorated_functions(softmax):
    assert [mistake.remark for mistake in softmax.mistakes][0] == "exp(1000) is infinite."
    assert softmax.names == ["x"] and softmax.where == (0,) and softmax.max_points == 10
    assert [mistake.hint for mistake in softmax.mistakes] == [2, 1, 1]
    assert softmax.limits[0].at_most(torch.ones(4)) == 32
    assert str(hint("my_softmax", 2)) == "Subtract the largest first."


def test_the_truth_is_computed_in_float64(softmax):
    case = trial.make_case(softmax, (torch.randn(2, 3).bfloat16(),), seed=0)
    assert case.dtype == case.cotangent.dtype == torch.bfloat16
    assert case.truth.value.dtype == torch.float64 and case.truth.grads[0].shape == (2, 3)
    assert torch.equal(case.truth.value, softmax.truth(case.args[0].double()))
    assert "x (2, 3) bfloat16" in case.text


def test_each_mistake_fails_at_its_look(softmax):
    assert check(softmax.rights[0], "my_softmax").passed
    failed = []
    for mistake in softmax.mistakes:
        report = check(mistake.answer, "my_softmax")
        failed += [row[0] for row in report.looks if row[3] == "failed"]
        assert f'"{mistake.name}"' in report.messages[-1]
        assert f'hint("my_softmax", {mistake.hint})' in report.messages[-1]
    assert failed == ["laws", "cost", "gradients", "values"]

    def shifted(x):
        shifted = (x - x.amax(-1, keepdim=True)).exp()
        return shifted / shifted.sum(-1, keepdim=True)

    assert check(shifted, "my_softmax").points == 9  # right, and keeps more than the result


def test_a_number_that_no_float_holds_is_a_misfit():
    assert "came back, 0.5 is expected" in misfit(10**400, 0.5)


def test_infinity_is_only_infinity():
    assert misfit(3.0, float("inf")) and misfit(-float("inf"), float("inf"))
    assert misfit(float("inf"), 3.0) and not misfit(float("inf"), float("inf"))
