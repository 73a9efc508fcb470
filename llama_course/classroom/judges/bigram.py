"What the judge knows of the three exercises in `exercises/01_bigram.ipynb`. Spoilers from here on."

import math
import random

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing


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
    call=refusing(
        "cross_entropy", "nll_loss", "log_softmax", "softmax", "logsumexp", "softmin",
        "nll_loss_nd", "cross_entropy_loss", "log_softmax_backward_data",
    ),
    points={"values": 5, "gradients": 2, "invariant": 3},
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


draw_tokens = Exercise(
    "draw_tokens",
    chapter="01_bigram",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Lay the probabilities end to end on a line from 0 to 1. The number u is a point of that "
        "line, and the token whose piece it lies in is drawn.",
        "Divide the logits by the temperature, then softmax, then torch.cumsum along the row. "
        "The token is the first one whose running sum is *greater* than u. Of a temperature of 0 "
        "argmax is the limit; it needs its own line.",
        "Subtract the largest logit of the row before you divide: 3 / 1e-30 - 3 / 1e-30 is fine, "
        "but 1e9 / 1e-30 is infinite.",
        "The running sum ends at 0.9999999 or 1.0000001. Divide it by its last number, and the "
        "last token that can come has exactly 1, which is greater than every u.",
    ),
)


@draw_tokens.cases
def cases_of_draw_tokens(seed):
    draw = torch.Generator().manual_seed(seed)
    last = 1 - 2**-24  # the largest float32 below 1
    for n, vocab, size, temperature, u in (
        (6, 5, 1.0, 1.0, None),
        (8, 30, 2.0, 0.7, None),
        (8, 300, 1.0, 1.5, None),
        (4, 1, 1.0, 1.0, None),
        (5, 9, 3.0, 0.0, None),  # argmax
        (5, 9, 3.0, 1e-30, None),
        (4, 7, 900.0, 1.0, None),
        (3, 6, 1.0, 1.0, 0.0),
        (3, 6, 1.0, 1.0, last),
        (3, 3000, 0.1, 1.0, last),
    ):
        logits = size * torch.randn(n, vocab, generator=draw)
        if vocab > 5:
            logits[:, [0, -1]] = -torch.inf  # cannot come
        if temperature == 0:
            logits[0, 3:5] = 50.0  # equals: the first
        if vocab == 3000:
            logits[:, -2] = 3.0
        points = torch.rand(n, generator=draw) if u is None else torch.full((n,), u)
        yield logits, temperature, _away_from_borders(logits, temperature, points)


def _away_from_borders(logits, temperature, u):
    "The points, moved where they lie so near a border that rounding decides."
    if not 0 < u.max() < 0.999:
        return u
    sums = (logits.double() / max(temperature, 1e-3)).softmax(-1).cumsum(-1)
    middle = sums - 0.5 * torch.diff(sums, dim=-1, prepend=torch.zeros(len(u), 1))
    near = (sums - u[:, None]).abs().amin(-1) < 1e-4
    place = torch.searchsorted(sums, u.double()[:, None], right=True).clamp(max=sums.shape[1] - 1)
    return torch.where(near, middle.gather(1, place)[:, 0], u.double()).float()


@draw_tokens.reference
def truth_of_draw_tokens(logits, temperature, u):
    drawn = []
    for row, point in zip(logits.tolist(), u.tolist()):
        top = max(row)
        if temperature == 0:
            drawn.append(row.index(top))
            continue
        weights = [math.exp((x - top) / temperature) for x in row]
        total, running = math.fsum(weights), 0.0
        for token, weight in enumerate(weights):
            running += weight / total
            if running > point or not any(weights[token + 1 :]):
                drawn.append(token)
                break
    return torch.tensor(drawn)


def _drawn(logits, temperature, u, right=True, top=True, total=True, clamp=None, invert=False):
    "The right answer, with a switch for each mistake."
    if temperature == 0:
        return logits.argmax(-1)
    rows = logits - logits.amax(-1, keepdim=True) if top else logits
    sums = (rows * temperature if invert else rows / temperature).exp().cumsum(-1)
    if total:
        sums = sums / sums[:, -1:]
    place = torch.searchsorted(sums, u[:, None].contiguous(), right=right)[:, 0]
    return place if clamp is None else place.clamp(max=clamp)


draw_tokens.right(_drawn)


@draw_tokens.right
def by_counting_the_sums_below(logits, temperature, u):
    if temperature == 0:
        return logits.argmax(-1)
    rows = logits.double() - logits.double().amax(-1, keepdim=True)
    sums = (rows / temperature).softmax(-1).cumsum(-1)
    last = logits.shape[1] - 1 - logits.isfinite().flip(-1).int().argmax(-1)
    return torch.minimum((sums <= u[:, None]).sum(-1), last)


@draw_tokens.right
def token_by_token(logits, temperature, u):
    return truth_of_draw_tokens(logits, temperature, u)


@draw_tokens.invariant("of evenly spread points each token gets its share")
def each_token_gets_its_share(seen):
    shares = torch.tensor([0.1, 0.5, 0.15, 0.25])
    u = (torch.arange(1000) + 0.5) / 1000
    tokens = seen(shares.log().expand(1000, 4).contiguous(), 1.0, u).value
    return (tokens.bincount(minlength=4) / 1000 - shares).abs().max() < 0.002


@draw_tokens.invariant("a low temperature draws the likeliest token more often, a high one less")
def a_low_temperature_draws_the_likeliest_more_often(seen):
    logits = torch.tensor([0.0, 1.0, 0.5]).expand(500, 3).contiguous()
    u = (torch.arange(500) + 0.5) / 500
    cold, mild, hot = ((seen(logits, t, u).value == 1).sum() for t in (0.3, 1.0, 5.0))
    return bool(cold > mild > hot)


@draw_tokens.mistake("a temperature of 0 divides by zero", hint=2)
def a_temperature_of_0_divides_by_zero(logits, temperature, u):
    "A temperature of 0 means: take the likeliest token, and of equals the first."
    if temperature == 0:
        return torch.zeros(len(u), dtype=torch.long)
    return _drawn(logits, temperature, u)


@draw_tokens.mistake("always the likeliest token", hint=1)
def always_the_likeliest_token(logits, temperature, u):
    "argmax writes the same text each time; u decides which token is drawn."
    return logits.argmax(-1)


@draw_tokens.mistake("times the temperature", hint=2)
def times_the_temperature(logits, temperature, u):
    "The logits are divided by the temperature: a low one makes differences larger."
    return _drawn(logits, temperature, u, invert=True)


@draw_tokens.mistake("the temperature is ignored", hint=2)
def the_temperature_is_ignored(logits, temperature, u):
    "The logits must be divided by the temperature before softmax."
    return _drawn(logits, 1.0 if temperature else 0, u)


@draw_tokens.mistake("u = 0 draws a token that cannot come", hint=2)
def u_0_draws_a_token_that_cannot_come(logits, temperature, u):
    "The first sum *greater* than u, not greater or equal: a token of probability 0 has no piece."
    return _drawn(logits, temperature, u, right=False)


@draw_tokens.mistake("the largest logit is not taken out", hint=3)
def the_largest_logit_is_not_taken_out(logits, temperature, u):
    "The exponential of a large logit is infinite: subtract the largest of the row, then divide."
    return _drawn(logits, temperature, u, top=False, clamp=logits.shape[1] - 1)


@draw_tokens.mistake("beyond the last token", hint=4)
def beyond_the_last_token(logits, temperature, u):
    "By rounding the running sum may end below u; then the last token that can come is drawn."
    if temperature == 0:
        return logits.argmax(-1)
    rows = logits - logits.amax(-1, keepdim=True)
    sums = (rows / temperature).softmax(-1).cumsum(-1) * (1 - 2**-22)
    return torch.searchsorted(sums, u[:, None].contiguous(), right=True)[:, 0]


@draw_tokens.mistake("the probability of the token before", hint=1)
def the_probability_of_the_token_before(logits, temperature, u):
    "The piece of token k ends at the sum of the first k + 1 probabilities: nothing is shifted."
    return (_drawn(logits, temperature, u) - 1).clamp(min=0)


bits_per_byte = Exercise(
    "bits_per_byte",
    chapter="01_bigram",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 6, "invariant": 4},
    hints=(
        "Try two texts of very different length, one of them in Polish. Then cut the long text in "
        "two: should the number change?",
        "A nat is the larger unit: log2(e) = 1.44 bits. And what is divided by what? All surprise "
        "of all texts by all of their bytes, not a mean of means.",
        'len("ż") is 1, len("ż".encode()) is 2. A text without losses adds its bytes, too.',
    ),
)

_WORDS = "to be or not żółw łąka 你好 🐢 the question — whether 'tis naïve".split()


@bits_per_byte.cases
def cases_of_bits_per_byte(seed):
    draw = random.Random(seed)
    for texts, most in ((1, 5), (2, 20), (4, 30), (3, 1)):
        written = [" ".join(draw.choices(_WORDS, k=draw.randint(1, most))) for _ in range(texts)]
        losses = [[draw.expovariate(0.5) for _ in range(draw.randint(1, 9))] for _ in written]
        yield losses, written
    yield [[2.0, 3.0], []], ["abcdef", "a"]  # its first byte was given: no loss
    yield [[0.7], [1e-9] * 50], ["ż", "certain " * 20]


@bits_per_byte.reference
def truth_of_bits_per_byte(nats, texts):
    total = math.fsum(loss for losses in nats for loss in losses)
    return total / math.log(2) / sum(len(text.encode()) for text in texts)


@bits_per_byte.right
def in_two_sums(nats, texts):
    bits = sum(sum(losses) for losses in nats) * math.log2(math.e)
    return bits / len("".join(texts).encode("utf-8"))


@bits_per_byte.right
def with_a_tensor(nats, texts):
    losses = torch.tensor([x for losses in nats for x in losses], dtype=torch.float64)
    return (losses.sum() / math.log(2)).item() / sum(len(bytes(t, "utf-8")) for t in texts)


@bits_per_byte.invariant("where a text is cut does not matter")
def where_a_text_is_cut_does_not_matter(seen):
    whole = seen([[1.0, 2.0, 3.0, 0.5], [4.0]], ["żaba na łące", "x"]).value
    parts = seen([[1.0], [2.0, 3.0, 0.5, 4.0]], ["żaba", " na łącex"]).value
    return math.isclose(whole, parts, rel_tol=1e-9)


@bits_per_byte.invariant(
    "how a text is cut into tokens does not matter, if the surprise is the same"
)
def how_a_text_is_cut_into_tokens_does_not_matter(seen):
    fine = seen([[1.0] * 12, [0.5] * 6], ["twelve bytes", "sixsix"]).value
    coarse = seen([[6.0, 6.0], [3.0]], ["twelve bytes", "sixsix"]).value
    return math.isclose(fine, coarse, rel_tol=1e-9)


@bits_per_byte.invariant("256 equally likely bytes are 8 bits per byte")
def equally_likely_bytes(seen):
    return math.isclose(seen([[math.log(256)] * 4], ["four"]).value, 8.0, rel_tol=1e-9)


def _ratio(nats, texts, size=lambda text: len(text.encode()), scale=1 / math.log(2)):
    return sum(map(sum, nats)) * scale / sum(map(size, texts))


def _mean_of_ratios(nats, texts, size, scale):
    return sum(sum(n) * scale / size(t) for n, t in zip(nats, texts)) / len(texts)


@bits_per_byte.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(nats, texts):
    "Three things are wrong in it: the unit, what is counted, and the mean."
    return _mean_of_ratios(nats, texts, len, math.log(2))


@bits_per_byte.mistake("times log 2", hint=2)
def times_log_2(nats, texts):
    "Bits are smaller than nats, so there are more of them: divide by log 2."
    return _ratio(nats, texts, scale=math.log(2))


@bits_per_byte.mistake("still in nats", hint=2)
def still_in_nats(nats, texts):
    "That is nats per byte: divide by log 2."
    return _ratio(nats, texts, scale=1)


@bits_per_byte.mistake("per character", hint=3)
def per_character(nats, texts):
    "ż is one character and two bytes, 你 three: count the bytes of the UTF-8."
    return _ratio(nats, texts, size=len)


@bits_per_byte.mistake("the mean of the texts' numbers", hint=2)
def the_mean_of_the_texts_numbers(nats, texts):
    "A short text would count as much as a long one: divide the sum by the sum."
    return _mean_of_ratios(nats, texts, lambda t: len(t.encode()), 1 / math.log(2))


@bits_per_byte.mistake("per token", hint=2)
def per_token(nats, texts):
    "Per token the number depends on the tokenizer; divide by the bytes of the text."
    return sum(map(sum, nats)) / math.log(2) / sum(map(len, nats))


@bits_per_byte.mistake("texts without losses are left out", hint=3)
def texts_without_losses_are_left_out(nats, texts):
    "Their bytes belong to the text that was read: all bytes of all texts are counted."
    return _ratio(nats, [text for n, text in zip(nats, texts) if n])
