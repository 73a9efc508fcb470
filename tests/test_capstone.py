"Your own LLaMA: parts of a learner's, put together, compared and trained."

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import llama_course

from llama_course.classroom.assemble import SMALL, compare_parts, judged, losses_of, settled
from llama_course.classroom.parts import SLOTS, Assembly, Part, collect
from llama_course.generation import generate
from llama_course.model import Llama
from llama_course.support.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SOLVED = ROOT / "solutions"


@pytest.fixture(scope="module")
def solved():
    return collect(SOLVED)


def with_part(slot, function):
    return Assembly({slot: Part(slot, SLOTS[slot][0], function, "the test")})


def layer_norm(x, weight, eps):
    return x * torch.rsqrt(x.var(-1, keepdim=True) + eps) * weight


def gate_on_the_wrong_branch(x, w1, w2, w3):
    return (x @ w1.T * torch.nn.functional.silu(x @ w3.T)) @ w2.T


def halves(x, positions, theta):
    angle = torch.outer(
        positions.float(), theta ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    )
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def future_seen(q, k, v, block):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def no_correction(p, grad, mean, square, step, lr, decay):
    mean, square = 0.9 * mean + 0.1 * grad, 0.95 * square + 0.05 * grad**2
    return p - lr * (decay * p + mean / (square.sqrt() + 1e-8)), mean, square


def cut_off(logits, targets):
    return torch.nn.functional.cross_entropy(logits.detach().requires_grad_(), targets)


def blind_to_itself(q, keys, values, lengths, k, v):
    keys, values, rows = keys.clone(), values.clone(), torch.arange(len(q))
    keys[rows, :, lengths], values[rows, :, lengths] = k, v
    scores = q[:, :, None] @ keys.mT / q.shape[-1] ** 0.5
    hidden = torch.arange(keys.shape[2]) >= lengths[:, None]
    weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
    return (weights @ values)[:, :, 0], keys, values, lengths + 1


def half_the_temperature(logits, temperature, u):
    if temperature == 0:
        return logits.argmax(-1)
    sums = (logits / temperature / 2).softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, u[:, None].contiguous())[:, 0]


WRONG = {
    "norm": layer_norm,
    "feed-forward": gate_on_the_wrong_branch,
    "RoPE": halves,
    "attention": future_seen,
    "optimizer": no_correction,
    "loss": cut_off,
    "cache": blind_to_itself,
    "sampler": half_the_temperature,
    "schedule": lambda step, steps, peak, warmup: peak,
}


def test_the_courses_own_answers_fill_all_slots(solved):
    assert all(part.function for part in solved.parts.values()) and len(solved.own) == len(SLOTS)
    assert "schedule      learning_rate of 14_optimizer.ipynb" in solved.in_words()


def test_together_they_train_as_the_library_does(solved):
    for ours, theirs in zip(losses_of(solved, steps=4), losses_of(Assembly(), steps=4)):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("slot", SLOTS)
def test_a_wrong_part_is_found_and_the_course_stands_in(slot):
    mine = with_part(slot, WRONG[slot])
    (found,) = compare_parts(mine)
    assert found.fault and found.part.slot == slot
    rest = settled(mine, [found])
    assert rest.own == [] and "departs" in rest.in_words()[0]


def test_an_error_in_a_part_is_told_with_its_line():
    def broken(x, weight, eps):
        return x @ torch.ones(3)

    (found,) = compare_parts(with_part("norm", broken))
    assert "RuntimeError" in found.fault and "test_capstone.py): `return x @ torch" in found.fault
    assert "values: " in judged(compare_parts(with_part("norm", layer_norm)))["norm"]


def test_own_parts_write_the_same_text_from_a_cache(solved):
    torch.manual_seed(1)
    course, own = Llama(SMALL), solved.model(SMALL)
    own.load_state_dict(course.state_dict())
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        texts = [list(generate(m, [5, 6, 7], 12, **settings)) for m in (course, own)]
        assert texts[0] == texts[1]
    rows = torch.tensor([[4, 9, 2, 7], [1, 0, 3, 5]])
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])  # each row its own
    torch.testing.assert_close(own(rows, positions), course(rows, positions), rtol=1e-4, atol=1e-5)


def test_what_is_not_answered_is_the_courses(tmp_path):
    with pytest.raises(UserError, match="llama-course start"):
        collect(tmp_path)
    for name in ("08_norm", "10_rope"):
        shutil.copy(ROOT / "exercises" / f"{name}.ipynb", tmp_path)
    blank = collect(tmp_path)
    assert blank.own == [] and set(blank.parts) == set(SLOTS)
    shutil.copy(SOLVED / "10_rope.ipynb", tmp_path)
    assert [part.name for part in collect(tmp_path).own] == ["rope"]


def test_the_command_trains_speaks_and_exports(tmp_path):
    words = ["assemble", "--folder", str(SOLVED), "--run", "mine", "--steps", "3", "--json"]
    ran = llama_course(*words, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    result = json.loads(ran.stdout)
    assert sum(part["own"] for part in result["parts"]) == len(SLOTS)
    assert 1.5 < result["bigram"] < 3 < result["bits_per_byte"] < 8
    assert result["said"].startswith("ROMEO:") and Path(tmp_path / result["gguf"]["file"]).exists()
    assert result["gguf"]["same"] in (
        True,
        None,
    )  # llama.cpp writes the same, where it is installed
