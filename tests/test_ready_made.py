"What others have ready-made earns less than half of a rebuild's points."

import importlib

import pytest
import torch

from llama_course.classroom import check
from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.own_work import LibraryShortcut
from llama_course.classroom.ready_made import POINT, functions_elsewhere

CALLS = {
    "cross_entropy": """
import scipy.special
def cross_entropy(logits, targets):
    logs = scipy.special.log_softmax(logits.detach().double().numpy(), -1)
    return torch.tensor(-logs[range(len(targets)), targets.numpy()].mean()).to(logits.dtype)
""",
    "rms_norm": """
from transformers.models.llama import modeling_llama
class Norm: pass
def rms_norm(x, weight, eps):
    norm = Norm()
    norm.weight, norm.variance_epsilon = weight, eps
    return modeling_llama.LlamaRMSNorm.forward(norm, x)
""",
    "rms_norm of torch.ops": """
def rms_norm(x, weight, eps):
    return torch.ops.aten.rms_norm(x, x.shape[-1:], weight, eps)
""",
    "swiglu": """
from transformers.activations import ACT2FN
def swiglu(x, w1, w2, w3):
    return (ACT2FN["silu"](x @ w1.T) * (x @ w3.T)) @ w2.T
""",
    "rope": """
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
def rope(x, positions, theta):
    Q = x.shape[-1]
    rate = theta ** (-torch.arange(0, Q, 2).float() / Q)
    angle = torch.outer(positions.float(), rate).repeat(1, 2)[None]
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    turned, _ = apply_rotary_pos_emb(halves, halves, angle.cos(), angle.sin(), unsqueeze_dim=2)
    return torch.stack(turned.chunk(2, -1), -1).flatten(-2).type_as(x)
""",
    "softmax_backward": """
def softmax_backward(p, grad):
    scores, back = torch.func.vjp(lambda s: s.softmax(-1), p.double().log())
    return back(grad.double())[0].type_as(p)
""",
    "lean_swiglu": """
def lean_swiglu(a, b):
    gate = lambda a, b: torch.nn.functional.silu(a) * b
    return torch.utils.checkpoint.checkpoint(gate, a, b, use_reentrant=False)
""",
    "adamw_step": """
from torch.optim.adamw import adamw
def adamw_step(p, grad, mean, square, step, lr, decay):
    new = [t.clone() for t in (p, mean, square)]
    p, mean, square = ([t] for t in new)
    adamw(p, [grad], mean, square, [], [torch.tensor(step - 1.0)], foreach=False, amsgrad=False,
          beta1=0.9, beta2=0.95, lr=lr, weight_decay=decay, eps=1e-8, maximize=False)
    return tuple(new)
""",
    "unseen_paragraphs": """
def unseen_paragraphs(pages):
    from datatrove.utils.text import simplify_text
    seen, found = {""}, []
    for page in pages:
        new = {simplify_text(line): line for line in reversed(page.split("\\n"))}
        found.append([line for key, line in reversed(new.items()) if key not in seen])
        seen |= new.keys()
    return found
""",
    "learn_merges": """
def learn_merges(words, n):
    import tokenizers
    return tokenizers.models.BPE()
""",
    "wilson_interval": """
from scipy import stats
def between(right, n, level):
    return stats.binomtest(right, n).proportion_ci(level, method="wilson")
def wilson_interval(right, n, level):
    found = between(right, n, level)
    return found.low, found.high
""",
}


def answer_of(name, source):
    space = {"torch": torch}
    exec(compile(source, f"<cell {name}>", "exec"), space)
    return space[name.split()[0]]


@pytest.mark.parametrize("name", CALLS)
def test_a_ready_made_call_earns_less_than_half(name):
    report = check(answer_of(name, CALLS[name]), name.split()[0])
    assert report.points < report.max_points / 2, report
    assert LibraryShortcut.__name__ in report.messages[0], report.messages


def test_what_is_not_the_point_may_come_from_elsewhere():
    quantile = """
from scipy.stats import norm
def wilson_interval(right, n, level):
    z, s = norm.ppf((1 + level) / 2), right / n
    middle, reach = s + z**2 / (2 * n), z * (s * (1 - s) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)
"""
    assert check(answer_of("wilson_interval", quantile)).passed


def test_every_entry_of_the_table_is_there():
    "A name that its package no longer has would refuse nothing."
    for name in ("scipy.special", "scipy.stats", "sklearn.metrics", "torch.optim.adamw"):
        importlib.import_module(name)
    assert set(POINT) <= set(load_exercises())
    for name in POINT:
        for dotted, function in functions_elsewhere(name).items():
            assert callable(function), dotted
