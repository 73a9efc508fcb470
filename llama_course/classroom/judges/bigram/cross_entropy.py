"What the judge knows of `cross_entropy`. Spoilers ahead."

import math

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise


def _magnified(logits, targets) -> float:
    "The loss is a difference of logits: it may be much smaller than what is subtracted."
    exact = F.cross_entropy(logits.double(), targets).item()
    return (1 + logits[logits.isfinite()].abs().max().item()) / max(exact, 1e-3)


cross_entropy = Exercise(
    "cross_entropy",
    chapter="01_bigram",
    kind="rebuild",
    minutes=20,
    difficulty=1,
    wrt=("logits",),
    condition=_magnified,
    points={"values": 5, "gradients": 2, "laws": 3},
    hints=(
        "Take one row. Its probabilities are exp(logits) divided by their sum; the loss of the "
        "row is minus the logarithm of one of them. Write that logarithm out: which part of it "
        "needs no exponential at all?",
        "-log p[target] = log(sum of exp(logits)) - logits[target]. "
        "logits[torch.arange(N), targets] takes one number of each row.",
        "exp(100) is infinite in float32. Subtract the largest logit of each row first: all "
        "probabilities stay as they are, and no exponent is above zero.",
    ),
)  # fmt: skip


@cross_entropy.cases
def cases_of_cross_entropy(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, n, vocab, size, offset in (
        (torch.float64, 3, 5, 1.0, 0.0),
        (torch.float32, 7, 30, 3.0, 0.0),
        (torch.float32, 1, 2, 1.0, 0.0),
        (torch.float32, 4, 1, 1.0, 2.0),  # one token only: it is certain
        (torch.float32, 5, 12, 1.0, 1000.0),  # exp overflows
        (torch.float32, 5, 12, 1.0, -1000.0),  # exp is zero
        (torch.float32, 6, 9, 200.0, 0.0),  # softmax is zero, its logarithm is not
        (torch.bfloat16, 6, 20, 2.0, 0.0),
        (torch.float16, 4, 16, 4.0, 300.0),
    ):
        logits = offset + size * torch.randn(n, vocab, generator=draw)
        targets = torch.randint(vocab, (n,), generator=draw)
        if vocab > 6 and not offset:
            logits[0, int(targets[0] + 1) % vocab] = -torch.inf  # a token that cannot come
        if size == 200.0:
            targets = logits.nan_to_num(neginf=torch.inf).argmin(-1)
        yield logits.to(dtype), targets


@cross_entropy.reference
def truth_of_cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets)


@cross_entropy.right
def with_the_largest_taken_out(logits, targets):
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wide = wide - wide.amax(-1, keepdim=True)
    losses = wide.exp().sum(-1).log() - wide[torch.arange(len(wide)), targets]
    return losses.mean().to(logits.dtype)


@cross_entropy.right
def row_by_row(logits, targets):
    total = 0
    for row, target in zip(logits.double(), targets):
        top = row.max().detach()
        total = total + top + torch.log(torch.exp(row - top).sum()) - row[target]
    return (total / len(logits)).to(logits.dtype)


@cross_entropy.invariant("adding a number to all logits of a row changes nothing")
def adding_a_number_changes_nothing(seen):
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets, shift = torch.tensor([0, 7, 3, 3]), torch.tensor([[5.0], [-700.0], [900.0], [0.0]])
    moved = seen(logits + shift, targets).value
    return torch.allclose(seen(logits, targets).value, moved, rtol=1e-9)


@cross_entropy.invariant("a model that knows nothing has the loss log V")
def a_model_that_knows_nothing(seen):
    loss = seen(torch.full((3, 256), 2.5), torch.tensor([0, 100, 255])).value
    return abs(loss.item() - math.log(256)) < 1e-5


@cross_entropy.invariant("the gradients of each row sum to zero")
def the_gradients_of_each_row_sum_to_zero(seen):
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([0, 7, 3, 3])
    (grad,) = seen(logits, targets, wrt=(0,), cotangent=torch.tensor(1.0)).grads
    return grad.sum(-1).abs().max() < 1e-6 and bool((grad[torch.arange(4), targets] < 0).all())


def _losses(logits, targets):
    "The right losses, one for each row."
    wide = logits.double() - logits.double().amax(-1, keepdim=True)
    return wide.exp().sum(-1).log() - _picked(wide, targets)


def _picked(table, targets):
    return table[torch.arange(len(table)), targets]


def _right_loss(logits, targets):
    return with_the_largest_taken_out(logits, targets)


@cross_entropy.mistake("the logarithm of a rounded probability", hint=2)
def the_logarithm_of_a_rounded_probability(logits, targets):
    "A small probability becomes 0, and its logarithm -inf: take the logarithm before you divide."
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return -_picked(weights / weights.sum(-1, keepdim=True), targets).log().mean()


@cross_entropy.mistake("exp without taking out the largest", hint=3)
def exp_without_taking_out_the_largest(logits, targets):
    "exp(1000) is infinite and exp(-1000) is zero: subtract the largest logit of the row first."
    return (logits.exp().sum(-1).log() - _picked(logits, targets)).mean()


@cross_entropy.mistake("the sum of the losses", hint=1)
def the_sum_of_the_losses(logits, targets):
    "The mean over the N tokens is asked for."
    return _right_loss(logits, targets) * len(targets)


@cross_entropy.mistake("bits instead of nats", hint=1)
def bits_instead_of_nats(logits, targets):
    "The natural logarithm gives nats; log2 gives bits."
    return _right_loss(logits, targets) / math.log(2)


@cross_entropy.mistake("minus is forgotten", hint=1)
def minus_is_forgotten(logits, targets):
    "A loss is minus the logarithm of the probability, so it is never below zero."
    return -_right_loss(logits, targets)


@cross_entropy.mistake("the logarithm of the mean probability", hint=1)
def the_logarithm_of_the_mean_probability(logits, targets):
    "Each token's logarithm comes first, the mean after it: the order matters."
    return -(-_losses(logits, targets)).exp().mean().log().to(logits.dtype)


@cross_entropy.mistake("over the wrong axis", hint=1)
def over_the_wrong_axis(logits, targets):
    "The probabilities of one row sum to one: the sum runs along the last axis."
    wide = logits.double()
    top = wide.amax(0, keepdim=True)
    sums = (wide - top).exp().sum(0, keepdim=True).log() + top
    return (_picked(sums.expand_as(wide), targets) - _picked(wide, targets)).mean().to(logits.dtype)


@cross_entropy.mistake("the most probable token instead of the target", hint=2)
def the_most_probable_token_instead_of_the_target(logits, targets):
    "The probability of the token that came is asked for, not that of the likeliest one."
    return _right_loss(logits, logits.argmax(-1))


@cross_entropy.mistake("cut off from the logits", hint=2)
def cut_off_from_the_logits(logits, targets):
    "Gradient descent needs the derivative: no .item(), .detach() or no_grad()."
    scale = logits.detach().float()
    scale = scale - scale.amax(-1, keepdim=True)
    losses = scale.exp().sum(-1).log() - scale[torch.arange(len(scale)), targets]
    return losses.mean().to(logits.dtype)


@cross_entropy.mistake("the library's own function", hint=1)
def the_librarys_own_function(logits, targets):
    "PyTorch's cross_entropy, log_softmax and softmax are what this task builds."
    return F.cross_entropy(logits, targets)
