"""What the judge knows of the three exercises in `exercises/15_training.ipynb`. Spoilers from
here on."""

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
    points={"values": 8, "invariant": 2},
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


accumulate_gradients = Exercise(
    "accumulate_gradients",
    chapter="15_training",
    kind="extend",
    minutes=20,
    difficulty=2,
    factor=64.0,
    points={"values": 4, "invariant": 2, "ledger": 4},
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


class _Reader(nn.Module):
    "Logits that depend on all tokens so far, and so on where a window begins."

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table.clone())  # (V, V)

    def forward(self, tokens):
        places = torch.arange(1, tokens.shape[1] + 1)
        return self.table[tokens].cumsum(1) / places[:, None]


held_out_bits = Exercise(
    "held_out_bits",
    chapter="15_training",
    kind="diagnose",
    minutes=20,
    difficulty=1,
    call=lambda answer, table, tokens, text_bytes, seq_len: answer(
        _Reader(table), tokens, text_bytes, seq_len
    ),
    points={"values": 7, "invariant": 3},
    hints=(
        "Take a model that knows nothing. What should come out, and what does?",
        "Which tokens are predicted, and from where? Write the places down for N = 8 and T = 3: "
        "each but the first must be there once.",
        "A window of T + 1 tokens has T predictions: the model reads the first T, and its last "
        "token is the first that the next window reads. The last window may be shorter.",
        "Add nats, token by token. At the end: divided by ln 2, divided by the bytes of the text.",
    ),
)


@held_out_bits.cases
def cases_of_held_out_bits(seed):
    random = torch.Generator().manual_seed(seed)
    for length, text_bytes, seq_len in ((9, 31, 4), (8, 20, 3), (3, 7, 5), (6, 6, 5), (2, 9, 1)):
        table = 2 * torch.randn(6, 6, generator=random)
        yield table, torch.randint(6, (length,), generator=random), text_bytes, seq_len
    yield torch.zeros(6, 6), torch.tensor([3]), 1, 4  # nothing to predict


@held_out_bits.reference
def truth_of_held_out_bits(table, tokens, text_bytes, seq_len):
    "One token at a time."
    bits = 0.0
    for i in range(1, len(tokens)):
        context = tokens[(i - 1) // seq_len * seq_len : i]
        bits -= table[context].mean(0).log_softmax(-1)[tokens[i]].item() / math.log(2)
    return bits / text_bytes


def _bits(
    model, tokens, text_bytes, seq_len, *, overlap=1, rest=True, mean=False, unit=math.log(2),
    per=None,
):  # fmt: skip
    "Window by window, with a place for each mistake."
    nats, windows = [], 0
    for i in range(0, len(tokens) - 1, seq_len):
        window = tokens[i : i + seq_len + overlap]
        if len(window) < 2 or (len(window) < seq_len + overlap and not rest):
            continue
        logits = model(window[None, :-1])[0]
        nats.append(F.cross_entropy(logits, window[1:], reduction="sum").item())
        windows += len(window) - 1
    if mean:
        size = [min(seq_len, len(tokens) - 1 - i) for i in range(0, len(tokens) - 1, seq_len)]
        total = sum(n / s for n, s in zip(nats, size)) / max(len(size), 1) * windows
    else:
        total = sum(nats)
    return total / unit / (text_bytes if per is None else max(per(tokens), 1))


held_out_bits.right(
    lambda model, tokens, text_bytes, seq_len: _bits(model, tokens, text_bytes, seq_len)
)


@held_out_bits.right
@torch.no_grad()
def with_all_whole_windows_in_one_batch(model, tokens, text_bytes, seq_len):
    whole = (len(tokens) - 1) // seq_len * seq_len
    parts = [tokens[whole:][None]]
    if whole:
        parts.append(tokens[: whole + 1].unfold(0, seq_len + 1, seq_len))
    bits = 0.0
    for part in parts:
        chances = model(part[:, :-1]).double().softmax(-1).gather(-1, part[:, 1:, None])
        bits += float(-chances.log2().sum())
    return bits / text_bytes


@held_out_bits.invariant("a model that knows nothing pays log2 V bits for each token but the first")
def a_model_that_knows_nothing(seen):
    tokens = torch.arange(11) % 8
    found = [seen(torch.zeros(8, 8), tokens, 15, n).value for n in (1, 3, 4, 10, 50)]
    return all(abs(bits - 10 * 3 / 15) < 1e-5 for bits in found)


@held_out_bits.mistake("the code as it was given", hint=1)
def the_bits_as_they_were_given(model, tokens, text_bytes, seq_len):
    "Nats per token, of some of the tokens: unit, denominator and windows are wrong."
    total, windows = 0.0, 0
    for i in range(0, len(tokens) - seq_len + 1, seq_len):
        window = tokens[i : i + seq_len]
        total += F.cross_entropy(model(window[None])[0, :-1], window[1:]).item()
        windows += 1
    return total / windows


@held_out_bits.mistake("nats, not bits", hint=4)
def nats_not_bits(*args):
    "F.cross_entropy is in nats: a bit is ln 2 nats."
    return _bits(*args, unit=1.0)


@held_out_bits.mistake("times ln 2", hint=4)
def times_ln_2(*args):
    "A nat is more than a bit, so there are more bits than nats: divide by ln 2."
    return _bits(*args, unit=1 / math.log(2))


@held_out_bits.mistake("bits per token", hint=4)
def bits_per_token(*args):
    "Divided by the tokens that were predicted, not by the bytes of the text."
    return _bits(*args, per=lambda tokens: len(tokens) - 1)


@held_out_bits.mistake("each window's first token is never predicted", hint=3)
def each_windows_first_token_is_never_predicted(*args):
    "Windows of T tokens have T - 1 predictions: they must share a token with the next window."
    return _bits(*args, overlap=0)


@held_out_bits.mistake("the rest is left out", hint=3)
def the_rest_is_left_out(*args):
    "N - 1 need not be a multiple of T: the last, shorter window belongs to the text as well."
    return _bits(*args, rest=False)


@held_out_bits.mistake("every window counts the same", hint=4)
def every_window_counts_the_same(*args):
    "A mean of the windows' means gives the tokens of a short window more weight than others."
    return _bits(*args, mean=True)


@held_out_bits.mistake("one window for all", hint=3)
def one_window_for_all(model, tokens, text_bytes, seq_len):
    "The context is not cut at T: a model must not be shown more tokens than it can read."
    return _bits(model, tokens, text_bytes, len(tokens))
