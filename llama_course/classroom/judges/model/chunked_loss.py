"What the judge knows of `chunked_loss`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise

chunked_loss = Exercise(
    "chunked_loss",
    chapter="12_model",
    kind="extend",
    minutes=40,
    difficulty=3,
    wrt=("hidden", "output"),
    condition=lambda hidden, *rest: 8 + hidden.abs().max().item(),
    points={"values": 2, "gradients": 2, "cost": 6},
    hints=(
        "loss = lse - logit of the target, and lse is the logarithm of a sum over the vocabulary: "
        "a sum can be made part by part. You need the largest logit so far, and the sum so far.",
        "For one part of the vocabulary: its logits (N, chunk), their logsumexp (N,). Two of those "
        "are joined by torch.logaddexp. The logit of the target is a product of two vectors: "
        "(hidden * output[targets]).sum(-1).",
        "Autograd would keep the logits of every part. Put what makes a part's logsumexp into a "
        "checkpoint; or write a Function whose backward pass makes the logits again: the gradient "
        "of a logit is its probability, exp(logit - lse), divided by N.",
        "The vocabulary need not be a multiple of chunk: output.split(chunk). A row of output that "
        "is no target still gets a gradient.",
    ),
)


@chunked_loss.cases
def cases_of_chunked_loss(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, n, dim, vocab, chunk, size in (
        (torch.float64, 6, 4, 40, 10, 1.0),
        (torch.float32, 12, 5, 101, 16, 1.0),  # the last part is shorter
        (torch.float32, 8, 6, 64, 64, 3.0),
        (torch.float32, 9, 4, 50, 7, 300.0),  # all logits about 300
        (torch.float32, 1, 3, 30, 1, 1.0),
        (torch.float32, 5, 4, 12, 100, 1.0),  # one part, shorter than chunk
    ):
        hidden = min(size, 3.0) * torch.randn(n, dim, generator=draw)
        output = torch.randn(vocab, dim, generator=draw)
        if size > 100:
            hidden[:, 0], output[:, 0] = size, 1.0
        targets = torch.randint(vocab, (n,), generator=draw)
        targets[-1] = vocab - 1
        yield hidden.to(dtype), output.to(dtype), targets, chunk


@chunked_loss.reference
def truth_of_chunked_loss(hidden, output, targets, chunk):
    return F.cross_entropy(hidden @ output.T, targets)


def _part(hidden, rows):
    return (hidden @ rows.T).logsumexp(-1)


def _chunked(hidden, output, targets, chunk, part=None, join=torch.logaddexp, mean=True):
    "The right answer, with a switch for each mistake."
    part = part or (
        lambda h, r: checkpoint(_part, h, r, use_reentrant=False, preserve_rng_state=False)
    )
    lse = None
    for rows in output.split(chunk):
        own = part(hidden, rows)
        lse = own if lse is None else join(lse, own)
    losses = lse - (hidden * output[targets]).sum(-1)
    return losses.mean() if mean else losses.sum()


chunked_loss.right(_chunked)


class _LossByHand(torch.autograd.Function):
    "The same with a backward pass that makes the logits again."

    @staticmethod
    def forward(ctx, hidden, output, targets, chunk):
        top = torch.full_like(hidden[:, 0], -torch.inf)
        total = torch.zeros_like(top)
        for rows in output.split(chunk):
            logits = hidden @ rows.T
            new = torch.maximum(top, logits.amax(-1))
            total = total * (top - new).exp() + (logits - new[:, None]).exp().sum(-1)
            top = new
        lse = top + total.log()
        ctx.save_for_backward(hidden, output, targets, lse)
        ctx.chunk = chunk
        return (lse - (hidden * output[targets]).sum(-1)).mean()

    @staticmethod
    def backward(ctx, grad):
        hidden, output, targets, lse = ctx.saved_tensors
        scale = grad / len(hidden)
        of_hidden, of_output = -scale * output[targets], torch.zeros_like(output)
        of_output.index_add_(0, targets, -scale * hidden)
        for i in range(0, len(output), ctx.chunk):
            rows = output[i : i + ctx.chunk]
            p = (hidden @ rows.T - lse[:, None]).exp() * scale
            of_hidden = of_hidden + p @ rows
            of_output[i : i + ctx.chunk] += p.T @ hidden
        return of_hidden, of_output, None, None


chunked_loss.right(_LossByHand.apply)


@chunked_loss.limit("largest_tensor", "never more than N times chunk logits exist")
def most_largest_tensor_of_chunked_loss(hidden, output, targets, chunk):
    return max(len(hidden) * min(chunk, len(output)), hidden.numel(), output.numel())


@chunked_loss.limit("saved_bytes", "a few numbers for each token and part are kept, no logits")
def most_saved_bytes_of_chunked_loss(hidden, output, targets, chunk):
    parts = -(-len(output) // chunk)
    return hidden.element_size() * len(hidden) * (3 * parts + 3 * hidden.shape[1] + 8)


@chunked_loss.mistake("all logits at once", hint=1)
def all_logits_at_once(hidden, output, targets, chunk):
    "Right in value, but the N x V logits are made and kept."
    return truth_of_chunked_loss(hidden, output, targets, chunk)


@chunked_loss.mistake("autograd keeps every part", hint=3)
def autograd_keeps_every_part(hidden, output, targets, chunk):
    "The parts are small, but autograd keeps the logits of all of them."
    return _chunked(hidden, output, targets, chunk, part=_part)


@chunked_loss.mistake("the sums without the largest", hint=1)
def the_sums_without_the_largest(hidden, output, targets, chunk):
    "exp of a logit of hundreds is infinite: add in the logarithm, or take out the largest so far."
    part = lambda h, r: (h @ r.T).exp().sum(-1).log()
    return _chunked(hidden, output, targets, chunk, part=part, join=torch.logaddexp)


@chunked_loss.mistake("the logsumexps are added", hint=2)
def the_logsumexps_are_added(hidden, output, targets, chunk):
    "The sums are added, not their logarithms: torch.logaddexp."
    return _chunked(hidden, output, targets, chunk, join=torch.add)


@chunked_loss.mistake("only the largest part counts", hint=2)
def only_the_largest_part_counts(hidden, output, targets, chunk):
    "All parts belong to the sum: the maximum of their log-sum-exps is not enough."
    return _chunked(hidden, output, targets, chunk, join=torch.maximum)


@chunked_loss.mistake("the mean of the parts' losses", hint=1)
def the_mean_of_the_parts_losses(hidden, output, targets, chunk):
    "A softmax over a part is not a part of the softmax: one sum runs over the whole vocabulary."
    parts = output.split(chunk)
    mean = sum(_part(hidden, rows) for rows in parts) / len(parts)
    return (mean - (hidden * output[targets]).sum(-1)).mean()


@chunked_loss.mistake("the sum instead of the mean", hint=1)
def the_sum_instead_of_the_mean(hidden, output, targets, chunk):
    "The mean over the N tokens is asked for."
    return _chunked(hidden, output, targets, chunk, mean=False)


@chunked_loss.mistake("the last, shorter part is lost", hint=4)
def the_last_shorter_part_is_lost(hidden, output, targets, chunk):
    "The last rows of the vocabulary belong to the sum, too."
    whole = max(len(output) // chunk * chunk, min(chunk, len(output)))
    lse = _chunked(hidden, output[:whole], targets.clamp(max=whole - 1), chunk)
    return (
        lse + ((hidden * (output[targets.clamp(max=whole - 1)] - output[targets])).sum(-1)).mean()
    )


@chunked_loss.mistake("no gradient through the sum", hint=3)
def no_gradient_through_the_sum(hidden, output, targets, chunk):
    "The log-sum-exp depends on hidden and output: a no_grad() around it loses their gradients."
    part = lambda h, r: _part(h.detach(), r.detach())
    return _chunked(hidden, output, targets, chunk, part=part)
