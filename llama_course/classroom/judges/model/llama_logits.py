"What the judge knows of `llama_logits`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.model.common import _logits, _turned, make_weights

llama_logits = Exercise(
    "llama_logits",
    chapter="12_model",
    kind="rebuild",
    minutes=45,
    difficulty=3,
    factor=64.0,
    points={"values": 8, "laws": 2},
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
        (1, 3, 11, 8, 2, 1, 1e-3, 500.0),  # layer 10 comes after layer 9
    ):
        weights = make_weights(draw, layers, dim, heads, kv_heads, 12, 11)
        tokens = torch.randint(11, (batch, length), generator=draw)
        tokens[0, -1] = tokens[0, 0]  # the same token twice
        yield tokens, weights, heads, eps, theta


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


@llama_logits.mistake("the layers in the order of their names", hint=2)
def the_layers_in_the_order_of_their_names(tokens, weights, heads, eps, theta):
    "As texts, layers.10 comes before layers.2: the numbers count."
    ends = [name for name in weights if not name.startswith("layers.")]
    numbers = sorted({name.split(".")[1] for name in weights if name not in ends})
    other = {name: weights[name] for name in ends}
    for name in weights.keys() - ends:
        _, number, part = name.split(".", 2)
        other[f"layers.{numbers.index(number)}.{part}"] = weights[name]
    return _logits(tokens, other, heads, eps, theta)


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
