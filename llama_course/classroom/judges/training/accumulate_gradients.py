"What the judge knows of `accumulate_gradients`. Spoilers ahead."

import math

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise

accumulate_gradients = Exercise(
    "accumulate_gradients",
    chapter="15_training",
    kind="extend",
    minutes=20,
    difficulty=2,
    factor=64.0,
    points={"values": 3, "laws": 1, "cost": 6},
    hints=(
        "Two micro-batches with 1 and 9 counted tokens: the mean of their means gives that one "
        "token as much weight as the other nine together.",
        "Add up sums, and divide once at the end: by the number of targets that count.",
        "F.cross_entropy(..., reduction='sum') leaves out targets of -100 by itself. "
        "torch.autograd.grad(loss, weight) gives one micro-batch's gradient.",
        "A mean over no tokens is 0/0. Divide by max(count, 1).",
    ),
)


@accumulate_gradients.cases
def cases_of_accumulate_gradients(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, sizes, ignored in (
        (torch.float64, (3,), 0.0),
        (torch.float32, (1, 9), 0.0),
        (torch.float32, (4, 7, 2), 0.5),
        (torch.float64, (5, 6, 5), 0.4),
        (torch.float32, (3, 4), 1.0),  # no target counts
    ):
        vocabulary, width, batches = 12, 3, []
        for size in sizes:
            x = torch.randn(size, width, generator=random).to(dtype)
            targets = torch.randint(vocabulary, (size,), generator=random)
            targets[torch.rand(size, generator=random) < ignored] = -100
            batches.append((x, targets))
        if 0 < ignored < 1:
            batches[1][1][:] = -100  # one of them has nothing that counts
            batches[0][1][0] = 5
        yield torch.randn(vocabulary, width, generator=random).to(dtype), batches


@accumulate_gradients.reference
def truth_of_accumulate_gradients(weight, batches):
    "All at once, by the formula: (probabilities - one hot) for each token that counts."
    x, targets = (torch.cat(parts) for parts in zip(*batches))
    x, targets = x[targets >= 0], targets[targets >= 0]
    if not len(x):
        return weight.new_zeros(()), torch.zeros_like(weight)
    chances = (x @ weight.T).softmax(-1)
    loss = -chances[torch.arange(len(x)), targets].log().mean()
    return loss, (chances - F.one_hot(targets, len(weight))).T @ x / len(x)


def _accumulated(
    weight, batches, *, count=lambda t: int((t >= 0).sum()), each="sum", last=False, divided=True,
):  # fmt: skip
    "One micro-batch after the other, with a place for each mistake."
    total, gradient, counted = 0.0, torch.zeros_like(weight), 0
    for x, targets in batches:
        leaf = weight.detach().requires_grad_()
        loss = F.cross_entropy(x @ leaf.T, targets, reduction=each)
        (of_weight,) = torch.autograd.grad(loss, leaf)
        total, gradient = total + loss.detach(), of_weight if last else gradient + of_weight
        counted += count(targets)
    n = max(counted, 1) if each == "sum" else len(batches)
    return total / n, gradient / (n if divided else 1)


accumulate_gradients.right(_accumulated)


@accumulate_gradients.right
def counted_first(weight, batches):
    n = max(sum(int((targets != -100).sum()) for _, targets in batches), 1)
    leaf = weight.detach().clone().requires_grad_()
    total = weight.new_zeros(())
    for x, targets in batches:
        keep = targets >= 0
        logs = F.linear(x[keep], leaf).log_softmax(-1)
        loss = -logs.gather(1, targets[keep, None]).sum() / n
        loss.backward()
        total += loss.detach()
    return total, leaf.grad


@accumulate_gradients.invariant("how a batch is cut into micro-batches does not matter")
def how_a_batch_is_cut_does_not_matter(seen):
    random = torch.Generator().manual_seed(7)
    weight, x = (torch.randn(n, 3, generator=random, dtype=torch.float64) for n in (9, 8))
    targets = torch.tensor([1, -100, 3, -100, -100, 8, 0, 2])
    whole = seen(weight, [(x, targets)]).value
    cut = seen(weight, [(x[i:j], targets[i:j]) for i, j in ((0, 1), (1, 6), (6, 8))]).value
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(whole, cut))


@accumulate_gradients.limit(
    "largest_tensor", "nothing larger than the weight or the largest micro-batch's logits"
)
def most_largest_tensor_of_accumulate_gradients(weight, batches):
    return max(weight.numel(), max(len(x) for x, _ in batches) * len(weight))


@accumulate_gradients.mistake("the mean of the means", hint=1)
def the_mean_of_the_means(weight, batches):
    "Each micro-batch counts the same, however few of its tokens count."
    mean = [b for b in batches if (b[1] >= 0).any()]
    return _accumulated(weight, mean, each="mean") if mean else _accumulated(weight, batches)


@accumulate_gradients.mistake("targets of -100 are counted", hint=2)
def targets_of_100_are_counted(weight, batches):
    "The sum leaves the targets of -100 out, but you divide by the number of all positions."
    return _accumulated(weight, batches, count=len)


@accumulate_gradients.mistake("only the last gradient", hint=2)
def only_the_last_gradient(weight, batches):
    "The gradient of each micro-batch takes the place of the one before: add them up."
    return _accumulated(weight, batches, last=True)


@accumulate_gradients.mistake("sums that are not divided", hint=2)
def sums_that_are_not_divided(weight, batches):
    "Loss and gradient are sums over the tokens; their mean is asked for."
    return _accumulated(weight, batches, count=lambda t: 0)


@accumulate_gradients.mistake("the loss is a mean, the gradient a sum", hint=2)
def the_loss_is_a_mean_the_gradient_a_sum(weight, batches):
    "The loss is divided, the gradient is not: the mean's gradient is the sum's divided by n."
    return _accumulated(weight, batches, divided=False)


@accumulate_gradients.mistake("a mean over nothing", hint=4)
def a_mean_over_nothing(weight, batches):
    "Where no target counts you divide 0 by 0: the text asks for zeros."
    loss, gradient = _accumulated(weight, batches)
    counted = any((targets >= 0).any() for _, targets in batches)
    return (loss, gradient) if counted else (loss * math.nan, gradient * math.nan)


@accumulate_gradients.mistake("all micro-batches at once", hint=3)
def all_micro_batches_at_once(weight, batches):
    "Right in value, but the logits of the whole batch exist at the same time."
    return _accumulated(weight, [tuple(map(torch.cat, zip(*batches)))])
