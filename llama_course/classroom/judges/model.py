"What the judge knows of the three exercises in `exercises/12_model.ipynb`. Spoilers from here on."

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing

# ------------------------------------------------------------------- logits from a dictionary


def make_weights(draw, layers, dim, heads, kv_heads, inside, vocab):
    "Weights of a small LLaMA under Meta's names."
    mat = lambda *shape: torch.randn(shape, generator=draw) / shape[-1] ** 0.5
    gain = lambda: 1 + 0.3 * torch.randn(dim, generator=draw)
    width = dim // heads
    weights = {"tok_embeddings.weight": torch.randn(vocab, dim, generator=draw)}
    for i in range(layers):
        weights |= {
            f"layers.{i}.attention_norm.weight": gain(),
            f"layers.{i}.attention.wq.weight": 2 * mat(dim, dim),
            f"layers.{i}.attention.wk.weight": 2 * mat(kv_heads * width, dim),
            f"layers.{i}.attention.wv.weight": mat(kv_heads * width, dim),
            f"layers.{i}.attention.wo.weight": mat(dim, dim),
            f"layers.{i}.ffn_norm.weight": gain(),
            f"layers.{i}.feed_forward.w1.weight": mat(inside, dim),
            f"layers.{i}.feed_forward.w2.weight": mat(dim, inside),
            f"layers.{i}.feed_forward.w3.weight": mat(inside, dim),
        }
    return weights | {"norm.weight": gain(), "output.weight": mat(vocab, dim)}


llama_logits = Exercise(
    "llama_logits",
    chapter="12_model",
    kind="rebuild",
    minutes=45,
    difficulty=3,
    factor=64.0,
    call=refusing("transformer_encoder_layer_fwd", "multi_head_attention_forward"),
    points={"values": 8, "invariant": 2},
    hints=(
        "Write norm(x, gain), and then the layer in two lines: x = x + attention(norm(x, g1)), "
        "x = x + feed_forward(norm(x, g2)). The embedding before, one norm and one product after.",
        'The number of layers is not given: count the names that end in "attention_norm.weight", '
        'or go on while f"layers.{i}.attention_norm.weight" is there.',
        "(B, T, D) becomes (B, T, H, Q) by unflatten(-1, (-1, Q)), Q = D / H; the keys and values "
        "have as many heads as wk has rows divided by Q. Rotate queries and keys, before the heads "
        "are repeated: k.repeat_interleave(H // K, 2), so neighbours share a head.",
        "RoPE: pair i of a head is elements 2i and 2i+1, turned by position · theta^(-2i/Q). "
        "Attention: softmax(q kᵀ / sqrt(Q)) with -inf above the diagonal. Every matrix is applied "
        "as x @ w.T, and only eps, not 1e-5, stands under the root.",
    ),
)


@llama_logits.cases
def cases_of_llama_logits(seed):
    draw = torch.Generator().manual_seed(seed)
    for batch, length, layers, dim, heads, kv_heads, eps, theta in (
        (2, 5, 1, 16, 2, 2, 1e-5, 10000.0),
        (1, 7, 2, 24, 4, 2, 1e-2, 10000.0),  # grouped queries
        (2, 4, 3, 16, 4, 1, 1e-6, 50.0),  # one head of keys for all
        (1, 1, 2, 8, 2, 1, 1e-3, 500.0),  # a single token
        (1, 6, 0, 8, 2, 2, 0.1, 500.0),  # no layer at all
    ):
        weights = make_weights(draw, layers, dim, heads, kv_heads, 12, 11)
        tokens = torch.randint(11, (batch, length), generator=draw)
        tokens[0, -1] = tokens[0, 0]  # the same token twice
        yield tokens, weights, heads, eps, theta


def _norm(x, gain, eps):
    wide = x.float() if x.itemsize < 4 else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * gain


def _turned(x, theta, first=0, halves=False):
    "RoPE for (B, T, H, Q)."
    width = x.shape[-1]
    rate = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(first, first + x.shape[1], dtype=torch.float64)[:, None] * rate
    cos, sin = (t[:, None].to(x.dtype) for t in (angle.cos(), angle.sin()))
    if halves:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def _attend(
    x, part, heads, theta, *, causal=True, alone=False, rotate=None, repeat=None, scale=None
):
    q, k, v = (
        (x @ part(f"attention.w{name}").T).unflatten(-1, (-1, x.shape[-1] // heads))
        for name in "qkv"
    )
    rotate = rotate or _turned
    q, k = rotate(q, theta), rotate(k, theta)
    share = heads // k.shape[2]
    repeat = repeat or (lambda t: t.repeat_interleave(share, 2))
    q, k, v = (t.transpose(1, 2) for t in (q, repeat(k), repeat(v)))
    scores = q @ k.mT / (scale or q.shape[-1] ** 0.5)
    if causal:
        hidden = torch.ones_like(scores).triu(1).bool()
        scores = scores.masked_fill(hidden | hidden.mT if alone else hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ part("attention.wo").T


def _layer(x, part, heads, eps, theta, post=False, parallel=False, shared=False, **how):
    "One layer; `part(name)` is a weight of it."
    gains = part("attention_norm"), part("attention_norm" if shared else "ffn_norm")
    attend = lambda t: _attend(t, part, heads, theta, **how)

    def feed(t):
        gate = F.silu(t @ part("feed_forward.w1").T)
        return (gate * (t @ part("feed_forward.w3").T)) @ part("feed_forward.w2").T

    if post:
        x = _norm(x + attend(x), gains[0], eps)
        return _norm(x + feed(x), gains[1], eps)
    between = x + attend(_norm(x, gains[0], eps))
    return between + feed(_norm(x if parallel else between, gains[1], eps))


def _logits(tokens, weights, heads, eps, theta, last=True, count=None, tied=False, **how):
    "The right answer, with a switch for each mistake."
    x = weights["tok_embeddings.weight"][tokens]
    layers = sum(name.endswith("attention_norm.weight") for name in weights)
    for i in range(layers if count is None else min(count, layers)):
        part = functools.partial(lambda i, name: weights[f"layers.{i}.{name}.weight"], i)
        x = _layer(x, part, heads, eps, theta, **how)
    if last:
        x = _norm(x, weights["norm.weight"], eps)
    return x @ weights["tok_embeddings.weight" if tied else "output.weight"].T


@llama_logits.reference
def truth_of_llama_logits(tokens, weights, heads, eps, theta):
    wide = {name: w.double() for name, w in weights.items()}
    return _logits(tokens, wide, heads, eps, theta)


@llama_logits.right
def in_plain_operations(tokens, weights, heads, eps, theta):
    return _logits(tokens, weights, heads, eps, theta)


@llama_logits.right
def with_pytorchs_functions(tokens, weights, heads, eps, theta):
    x = F.embedding(tokens, weights["tok_embeddings.weight"])
    width, i = x.shape[-1] // heads, 0
    norm = lambda x, gain: F.rms_norm(x, x.shape[-1:], gain, eps)
    rate = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    angle = torch.outer(torch.arange(tokens.shape[1]), rate)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(t):
        pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    while f"layers.{i}.attention_norm.weight" in weights:
        w = {n.split(".", 2)[2]: t for n, t in weights.items() if n.startswith(f"layers.{i}.")}
        h = norm(x, w["attention_norm.weight"])
        q, k, v = (
            F.linear(h, w[f"attention.w{n}.weight"]).unflatten(-1, (-1, width)) for n in "qkv"
        )
        q, k, v = (t.transpose(1, 2) for t in (rotate(q), rotate(k), v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(out.transpose(1, 2).flatten(-2), w["attention.wo.weight"])
        h = norm(x, w["ffn_norm.weight"])
        gate = F.silu(F.linear(h, w["feed_forward.w1.weight"]))
        inside = gate * F.linear(h, w["feed_forward.w3.weight"])
        x, i = x + F.linear(inside, w["feed_forward.w2.weight"]), i + 1
    return F.linear(norm(x, weights["norm.weight"]), weights["output.weight"])


def _one_model(seed=3, length=6):
    draw = torch.Generator().manual_seed(seed)
    weights = make_weights(draw, 1, 16, 4, 2, 12, 11)
    return torch.randint(11, (2, length), generator=draw), weights


@llama_logits.invariant("the future does not move the past")
def the_future_does_not_move_the_past(seen):
    tokens, weights = _one_model()
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    one, two = (seen(t, weights, 4, 1e-5, 1e4).value for t in (tokens, other))
    return torch.allclose(one[:, :4], two[:, :4], atol=1e-5) and not torch.allclose(
        one[:, 4:], two[:, 4:], atol=1e-3
    )


@llama_logits.invariant("the texts of a batch do not see each other")
def the_texts_of_a_batch_do_not_see_each_other(seen):
    tokens, weights = _one_model(4)
    both = seen(tokens, weights, 4, 1e-5, 1e4).value
    alone = [seen(row[None], weights, 4, 1e-5, 1e4).value for row in tokens]
    return torch.allclose(both, torch.cat(alone), rtol=1e-3, atol=1e-4)


@llama_logits.mistake("the final norm is missing", hint=1)
def the_final_norm_is_missing(tokens, weights, heads, eps, theta):
    'After the last layer there is one more norm, "norm.weight", before the output.'
    return _logits(tokens, weights, heads, eps, theta, last=False)


@llama_logits.mistake("two layers and no more", hint=2)
def two_layers_and_no_more(tokens, weights, heads, eps, theta):
    "The dictionary says how many layers there are: none, one, three, eighty."
    return _logits(tokens, weights, heads, eps, theta, count=2)


@llama_logits.mistake("the future is seen", hint=4)
def the_future_is_seen(tokens, weights, heads, eps, theta):
    "A query may look at its own position and earlier ones: mask what is above the diagonal."
    return _logits(tokens, weights, heads, eps, theta, causal=False)


@llama_logits.mistake("another eps", hint=4)
def another_eps(tokens, weights, heads, eps, theta):
    "All norms use the eps that was given."
    return _logits(tokens, weights, heads, 1e-5, theta)


@llama_logits.mistake("another theta", hint=4)
def another_theta(tokens, weights, heads, eps, theta):
    "The base of the rotary frequencies is the theta that was given."
    return _logits(tokens, weights, heads, eps, 10000.0)


@llama_logits.mistake("the heads of keys in another order", hint=3)
def the_heads_of_keys_in_another_order(tokens, weights, heads, eps, theta):
    "Neighbouring query heads share a key head: repeat_interleave, not repeat."
    repeat = lambda t: t.repeat(1, 1, heads // t.shape[2], 1)
    return _logits(tokens, weights, heads, eps, theta, repeat=repeat)


@llama_logits.mistake("halves instead of neighbours", hint=4)
def halves_instead_of_neighbours(tokens, weights, heads, eps, theta):
    "Meta's weights turn elements 2i and 2i+1 together; Hugging Face's files turn i and i + Q/2."
    turn = lambda t, theta: _turned(t, theta, halves=True)
    return _logits(tokens, weights, heads, eps, theta, rotate=turn)


@llama_logits.mistake("no positions", hint=4)
def no_positions(tokens, weights, heads, eps, theta):
    "Queries and keys are turned by their position; without that the order of the past is lost."
    return _logits(tokens, weights, heads, eps, theta, rotate=lambda t, theta: t)


@llama_logits.mistake("the norm after the sum", hint=1)
def the_norm_after_the_sum(tokens, weights, heads, eps, theta):
    "LLaMA normalizes the input of each part; the stream itself is only added to."
    return _logits(tokens, weights, heads, eps, theta, post=True)


@llama_logits.mistake("both parts read the same stream", hint=1)
def both_parts_read_the_same_stream(tokens, weights, heads, eps, theta):
    "The feed-forward part reads what attention has added already: one after the other."
    return _logits(tokens, weights, heads, eps, theta, parallel=True)


@llama_logits.mistake("one gain for both norms", hint=1)
def one_gain_for_both_norms(tokens, weights, heads, eps, theta):
    "attention_norm and ffn_norm are two vectors."
    return _logits(tokens, weights, heads, eps, theta, shared=True)


@llama_logits.mistake("the scores are not scaled", hint=4)
def the_scores_are_not_scaled(tokens, weights, heads, eps, theta):
    "The scores are divided by the root of the head's width, Q = D / H."
    return _logits(tokens, weights, heads, eps, theta, scale=1.0)


@llama_logits.mistake("scaled by the model's width", hint=4)
def scaled_by_the_models_width(tokens, weights, heads, eps, theta):
    "The root is that of the head's width, D / H, not that of D."
    root = weights["norm.weight"].numel() ** 0.5
    return _logits(tokens, weights, heads, eps, theta, scale=root)


@llama_logits.mistake("the embedding used as output", hint=1)
def the_embedding_used_as_output(tokens, weights, heads, eps, theta):
    'LLaMA has two matrices: "tok_embeddings.weight" and "output.weight".'
    return _logits(tokens, weights, heads, eps, theta, tied=True)


# ------------------------------------------------------------------- the loss, without the logits

chunked_loss = Exercise(
    "chunked_loss",
    chapter="12_model",
    kind="extend",
    minutes=40,
    difficulty=3,
    wrt=("hidden", "output"),
    condition=lambda hidden, *rest: 8 + hidden.abs().max().item(),
    points={"values": 2, "gradients": 2, "ledger": 6},
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


# ------------------------------------------------------------------- a model seen from outside

FAULTS = ("batch", "future", "order", "past")


def make_forward(weights, heads, faults):
    "A model with these faults, called as forward(tokens) -> logits."

    def forward(tokens):
        how = {"causal": "future" not in faults, "alone": "past" in faults}
        if "order" in faults:
            how["rotate"] = lambda t, theta: t
        logits = _logits(tokens, weights, heads, 1e-5, 1e4, **how)
        if "batch" in faults:
            logits = logits - logits.mean(0, keepdim=True) * (0.1 if len(logits) > 1 else 0)
        return logits

    return forward


def with_a_model(answer, seed, faults, vocab):
    "What the answer finds in a model that has been made with these faults."
    draw = torch.Generator().manual_seed(seed)
    weights = make_weights(draw, 1, 8, 2, 1, 8, vocab)
    for name, weight in weights.items():  # attention looks at everything a little
        weights[name] = weight.double() * (0.25 if "wq" in name else 1)
    found = answer(make_forward(weights, 2, faults), vocab)
    return sorted(found) if isinstance(found, (list, tuple, set)) else found


find_faults = Exercise(
    "find_faults",
    chapter="12_model",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    call=with_a_model,
    points={"values": 10},
    hints=(
        "Each property is a comparison of two calls: the same tokens with one thing changed. What "
        "must change then, and what must not?",
        "future: change the last token, look at the logits before it. batch: one text alone and "
        "the same text beside others. past: change the first token, look at the last logits.",
        "order: exchange two *different* earlier tokens, look at the last logits; if the past is "
        "not seen at all, there is no order to speak of. Compare with a tolerance, 1e-7 or so: "
        "batches are added up in another order.",
        "With these models any true difference is far above rounding. Take a text without repeated "
        "tokens, so that no two equal ones are exchanged: torch.arange(n)[None] % vocab.",
    ),
)


@find_faults.cases
def cases_of_find_faults(seed):
    sets = [
        [], ["future"], ["batch", "order"], ["past"], ["batch", "past"], ["future", "order"],
    ]  # fmt: skip
    for i, faults in enumerate(sets):
        yield 100 * seed + i, faults, (50, 7)[i % 2]


@find_faults.reference
def truth_of_find_faults(seed, faults, vocab):
    return sorted(faults)


def _differ(a, b) -> bool:
    return not torch.allclose(a, b, atol=1e-7)


def _find(forward, vocab, names=FAULTS, last=-1, swap=(0, 1), alike=False):
    "The right answer, with a switch for each mistake."
    differ = _differ
    tokens = torch.zeros(1, 6, dtype=torch.long) if alike else torch.arange(6)[None] % vocab
    base, found = forward(tokens), set()
    later, earlier = tokens.clone(), tokens.clone()
    later[0, -1], earlier[0, 0] = (tokens[0, -1] + 1) % vocab, (tokens[0, 0] + 1) % vocab
    if differ(forward(later)[:, :last], base[:, :last]):
        found.add("future")
    other = (tokens + 2) % vocab
    if differ(forward(torch.cat((tokens, other)))[:1], base):
        found.add("batch")
    if not differ(forward(earlier)[:, -1], base[:, -1]):
        found.add("past")
    exchanged = tokens.clone()
    i, j = swap
    exchanged[0, i], exchanged[0, j] = tokens[0, j], tokens[0, i]
    if not differ(forward(exchanged)[:, -1], base[:, -1]) and "past" not in found:
        found.add("order")
    return sorted(found & set(names))


find_faults.right(_find)


@find_faults.right
def with_random_texts(forward, vocab):
    draw = torch.Generator().manual_seed(0)
    found = []
    row = torch.randperm(vocab, generator=draw)[:5]
    change = lambda place, by: torch.cat(
        (row[:place], (row[place : place + 1] + by) % vocab, row[place + 1 :])
    )
    call = lambda *rows: forward(torch.stack(rows))
    alone = call(row)[0]
    near = lambda a, b: (a - b).abs().max() < 1e-7 * (1 + b.abs().max())
    if not near(call(change(4, 1))[0][:4], alone[:4]):
        found.append("future")
    if near(call(change(1, 2))[0][-1], alone[-1]):
        found.append("past")
    elif near(call(row[[0, 2, 1, 3, 4]])[0][-1], alone[-1]):
        found.append("order")
    if not near(call(change(0, 1), row.flip(0), row)[2], alone):
        found.append("batch")
    return found


@find_faults.mistake("everything is in order", hint=1)
def everything_is_in_order(forward, vocab):
    "Every model passes: compare two calls, and add the name of what is wrong."
    return []


@find_faults.mistake("the changed place itself is compared", hint=2)
def the_changed_place_itself_is_compared(forward, vocab):
    "Where a token changes, its own logits must change: compare only the places before it."
    return _find(forward, vocab, last=6)


@find_faults.mistake("the lost order is not found", hint=3)
def the_lost_order_is_not_found(forward, vocab):
    """Exchange two *earlier* tokens and look at the last logits; the last token's own logits change
    with it in any case."""
    return _find(forward, vocab, swap=(4, 5))


@find_faults.mistake("equal tokens are exchanged", hint=4)
def equal_tokens_are_exchanged(forward, vocab):
    "Exchanging two equal tokens changes nothing in any model: take different ones."
    return _find(forward, vocab, alike=True)


@find_faults.mistake("the batch is not tried", hint=2)
def the_batch_is_not_tried(forward, vocab):
    "A text must have the same logits beside others as alone."
    return _find(forward, vocab, names=("future", "order", "past"))


@find_faults.mistake("the future is not tried", hint=2)
def the_future_is_not_tried(forward, vocab):
    "A later token must not change earlier logits."
    return _find(forward, vocab, names=("batch", "order", "past"))


@find_faults.mistake("a model that sees no past has no order", hint=3)
def a_model_that_sees_no_past_has_no_order(forward, vocab):
    "Where the past is not seen, `order` is not named as well."
    found = _find(forward, vocab)
    return sorted({*found, "order"}) if "past" in found else found
