"What the judge knows of `train_steps`. Spoilers ahead."

import math

import torch
import torch.nn.functional as F
from torch import nn

from llama_course.classroom.exercise import Exercise


class _Bigram(nn.Module):
    "Logits of the next token from the last one: small, and with a gain beside its matrices."

    def __init__(self, embedding, gain, output):
        super().__init__()
        self.embedding = nn.Parameter(embedding.clone())  # (V, D)
        self.gain = nn.Parameter(gain.clone())  # (D,)
        self.output = nn.Parameter(output.clone())  # (V, D)

    def forward(self, tokens):
        return (self.embedding[tokens] * self.gain) @ self.output.T


def _optimizer(model, kind):
    "Two groups, as LLaMA's: the matrices decay, the gain does not."
    groups = [
        {"params": [model.embedding, model.output], "weight_decay": 0.1},
        {"params": [model.gain], "weight_decay": 0.0},
    ]
    if kind == "SGD":
        return torch.optim.SGD(groups, lr=0.5)
    return torch.optim.AdamW(groups, lr=0.5, betas=(0.9, 0.95))


def _train(answer, embedding, gain, output, batches, rates, clip, kind):
    "The losses that the answer returns, and what it makes of the model."
    model = _Bigram(embedding, gain, output)
    losses = answer(model, _optimizer(model, kind), batches, rates, clip)
    losses = torch.tensor([float(loss) for loss in losses], dtype=torch.float64)
    return losses, model.embedding.detach(), model.gain.detach(), model.output.detach()


train_steps = Exercise(
    "train_steps",
    chapter="15_training",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    call=_train,
    factor=2e10,  # in float64: whether clip_grad_norm_'s 1e-6 is added to the norm does not matter
    points={"values": 8, "laws": 2},
    hints=(
        "Six lines in the loop: loss, old gradients away, new gradients, clip, rate, step. Which "
        "of them may change places?",
        "F.cross_entropy takes logits (n, V) and targets (n,): flatten both. Inputs are all "
        "tokens but the last, targets all but the first.",
        "torch.nn.utils.clip_grad_norm_ scales the gradients of all parameters by one factor, "
        "and returns the norm that they had before.",
        "The rate is set in every group, before the step. optimizer.step() is left out where the "
        "norm is infinite or not a number (math.isfinite).",
    ),
)


@train_steps.cases
def cases_of_train_steps(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
    for kind, steps, clip, shapes, broken in (
        ("SGD", 1, 1e9, [(1, 2)], False),  # one token to predict, nothing to clip
        ("SGD", 4, 0.3, [(2, 6), (3, 4)], False),
        ("AdamW", 4, 0.3, [(2, 6), (1, 5)], False),
        ("SGD", 3, 0.5, [(2, 5)], True),
        ("AdamW", 4, 0.5, [(2, 5)], True),
    ):
        vocabulary, width = 7, 4
        embedding = draw(vocabulary, width)
        batches = [
            torch.randint(vocabulary - 1, shapes[i % len(shapes)], generator=random)
            for i in range(steps)
        ]
        if broken:  # the second batch has a token whose vector is infinite
            embedding[-1] = torch.inf
            batches[1][0, 1] = vocabulary - 1
        rates = (0.05 * 2 ** torch.rand(steps, generator=random)).tolist()
        rates[-1] *= 4
        yield embedding, 1 + 0.3 * draw(width), draw(vocabulary, width), batches, rates, clip, kind


@train_steps.reference
def truth_of_train_steps(embedding, gain, output, batches, rates, clip, optimizer):
    "SGD and AdamW by their formulas, one tensor after the other."
    weights = [embedding, gain, output]
    mean, square = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    losses, taken = [], 0
    for batch, rate in zip(batches, rates):
        leaves = [w.detach().requires_grad_() for w in weights]
        logits = (leaves[0][batch[:, :-1]] * leaves[1]) @ leaves[2].T
        chances = logits.log_softmax(-1).gather(-1, batch[:, 1:, None])
        loss = -chances.sum() / chances.numel()
        grads = torch.autograd.grad(loss, leaves)
        norm = sum(g.square().sum() for g in grads).sqrt()
        losses.append(loss.detach())
        if not norm.isfinite():
            continue
        taken += 1
        for i, grad in enumerate(grads):
            grad, decay = grad * min(1.0, clip / (norm.item() + 1e-6)), 0.0 if i == 1 else 0.1
            if optimizer == "SGD":
                weights[i] = weights[i] - rate * (grad + decay * weights[i])
                continue
            mean[i] = 0.9 * mean[i] + 0.1 * grad
            square[i] = 0.95 * square[i] + 0.05 * grad**2
            size = (square[i] / (1 - 0.95**taken)).sqrt() + 1e-8
            step = mean[i] / (1 - 0.9**taken) / size
            weights[i] = weights[i] * (1 - rate * decay) - rate * step
    return torch.stack(losses), *weights


def _loop(
    model, optimizer, batches, rates, clip, *, zero=True, groups=None, late=False, after=False,
    clipping=nn.utils.clip_grad_norm_, check=True, reduction="mean", shift=1,
):  # fmt: skip
    "The loop, with a place for each mistake."
    losses = []
    for batch, rate in zip(batches, rates):
        ends = (batch[:, :-1], batch[:, 1:]) if shift else (batch, batch)

        def loss_now(ends=ends):
            logits, targets = model(ends[0]).flatten(0, 1), ends[1].flatten()
            return F.cross_entropy(logits, targets, reduction=reduction)

        loss = loss_now()
        if zero:
            optimizer.zero_grad()
        loss.backward()
        norm = clipping(model.parameters(), clip)
        old = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups[:groups]:
            group["lr"] = rate
        if late:
            for group, before in zip(optimizer.param_groups, old):
                group["lr"] = before
        if math.isfinite(norm) or not check:
            optimizer.step()
        if late:
            for group in optimizer.param_groups:
                group["lr"] = rate
        losses.append((loss_now() if after else loss).item())
    return losses


train_steps.right(_loop)


@train_steps.right
def with_gradients_by_hand(model, optimizer, batches, rates, clip):
    losses, weights = [], list(model.parameters())
    for batch, rate in zip(batches, rates):
        logits = model(batch[:, :-1])
        chosen = logits.gather(-1, batch[:, 1:, None])[..., 0]
        loss = (logits.logsumexp(-1) - chosen).mean()
        grads = torch.autograd.grad(loss, weights)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        losses += [float(loss)]
        if not norm < torch.inf:
            continue
        for weight, grad in zip(weights, grads):
            weight.grad = grad * min(1.0, clip / float(norm))
        for group in optimizer.param_groups:
            group.update(lr=rate)
        optimizer.step()
    return losses


@train_steps.invariant("with a rate of zero nothing moves, and the same batch costs the same again")
def nothing_moves_at_rate_zero(seen):
    args = list(list(train_steps.make_cases(3))[2])
    args[3], args[4] = [args[3][0]] * 3, [0.0] * 3
    losses, *weights = seen(*args).value
    return len(set(losses.tolist())) == 1 and all(map(torch.equal, weights, args[:3]))


@train_steps.mistake("old gradients are kept", hint=1)
def old_gradients_are_kept(*args):
    "backward() adds to .grad: without zero_grad each step follows the sum of all steps so far."
    return _loop(*args, zero=False)


@train_steps.mistake("the rate comes one step late", hint=4)
def the_rate_comes_one_step_late(*args):
    "The rate is set after the step: each step is taken with the rate of the step before."
    return _loop(*args, late=True)


@train_steps.mistake("only the first group gets the rate", hint=4)
def only_the_first_group_gets_the_rate(*args):
    "The optimizer has two groups, and each has a rate of its own."
    return _loop(*args, groups=1)


@train_steps.mistake("no rate is set", hint=4)
def no_rate_is_set(*args):
    "The optimizer keeps the rate that it was made with: `rates` is not used."
    return _loop(*args, groups=0)


@train_steps.mistake("each tensor is clipped for itself", hint=3)
def each_tensor_is_clipped_for_itself(*args):
    "The norm is that of all gradients together; clipped one by one they get another direction."

    def one_by_one(parameters, clip):
        return sum(nn.utils.clip_grad_norm_([p], clip) ** 2 for p in parameters) ** 0.5

    return _loop(*args, clipping=one_by_one)


@train_steps.mistake("nothing is clipped", hint=3)
def nothing_is_clipped(*args):
    "A gradient longer than `clip` is used as it is."
    return _loop(*args, clipping=lambda ps, clip: nn.utils.clip_grad_norm_(ps, math.inf))


@train_steps.mistake("every number is clipped", hint=3)
def every_number_is_clipped(*args):
    "clip_grad_value_ bounds each number; what is asked for is a bound on the length of all."

    def by_value(parameters, clip):
        parameters = list(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)
        nn.utils.clip_grad_value_(parameters, clip)
        return norm

    return _loop(*args, clipping=by_value)


@train_steps.mistake("every gradient gets the full length", hint=3)
def every_gradient_gets_the_full_length(*args):
    "A gradient shorter than `clip` is stretched to it: the factor must not be above one."

    def stretched(parameters, clip):
        parameters = list(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)
        for p in parameters:
            p.grad.mul_(clip / norm)
        return norm

    return _loop(*args, clipping=stretched)


@train_steps.mistake("a step along what is no number", hint=4)
def a_step_along_what_is_no_number(*args):
    "One broken batch makes all weights NaN: leave the step out where the norm is not finite."
    return _loop(*args, check=False)


@train_steps.mistake("a sum over the tokens", hint=2)
def a_sum_over_the_tokens(*args):
    "The loss is the mean over all predicted tokens of the batch, not their sum."
    return _loop(*args, reduction="sum")


@train_steps.mistake("each token predicts itself", hint=2)
def each_token_predicts_itself(*args):
    "Inputs and targets are the same tokens: the target of each place is the token after it."
    return _loop(*args, shift=0)


@train_steps.mistake("the loss after the step", hint=1)
def the_loss_after_the_step(*args):
    "The loss of a step is that of the weights it began with; you compute it again afterwards."
    return _loop(*args, after=True)
