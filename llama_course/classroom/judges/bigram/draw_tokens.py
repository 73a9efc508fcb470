"What the judge knows of `draw_tokens`. Spoilers ahead."

import math

import torch

from llama_course.classroom.exercise import Exercise

draw_tokens = Exercise(
    "draw_tokens",
    chapter="01_bigram",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
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
