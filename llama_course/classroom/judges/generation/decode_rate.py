"What the judge knows of `decode_rate`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

decode_rate = Exercise(
    "decode_rate",
    chapter="21_generation",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "Time = bytes / bandwidth. Bytes of one step: all matrices that are multiplied, once;"
        " and the cache of every text. A step makes one token for each text.",
        "Matrices of a layer: wq and wo D times D, wk and wv D times KQ with Q = D/H, three "
        "of D times F; and once the output, V times D. Of the embedding a single row is read:"
        " count nothing.",
        "Cache of one text: keys and values, 2 L S K Q numbers. So batch * bandwidth / "
        "(itemsize * (L * (2D² + 2DKQ + 3DF) + VD + batch * 2LSKQ)).",
    ),
)


@decode_rate.cases
def cases_of_decode_rate(seed):
    g = torch.Generator().manual_seed(seed)
    any_of = lambda *values: values[torch.randint(len(values), (), generator=g)]
    for batch, length, itemsize in (
        (1, 1, 4),
        (1, 2048, 2),
        (16, 1024, 2),
        (64, 2048, 4),
        (3, 7, 2),
    ):
        c = dict(D=any_of(256, 4096), L=any_of(8, 32), H=16, K=any_of(2, 4))
        c |= dict(F=any_of(704, 11008), V=any_of(4096, 32000))
        yield c, length, batch, itemsize, any_of(2e10, 1e12)


def _rate(c, length, batch, itemsize, bandwidth, layer=None, ends=None, cache=None, made=None):
    "The usual answer, any part of it replaced."
    width = c["K"] * c["D"] // c["H"]
    layer = layer or (lambda: 2 * c["D"] ** 2 + 2 * c["D"] * width + 3 * c["D"] * c["F"])
    ends = c["V"] * c["D"] if ends is None else ends
    cache = 2 * c["L"] * length * width * batch if cache is None else cache
    return (
        (batch if made is None else made)
        * bandwidth
        / (itemsize * (c["L"] * layer() + ends + cache))
    )


@decode_rate.reference
def truth_of_decode_rate(config, length, batch, itemsize, bandwidth):
    return _rate(config, length, batch, itemsize, bandwidth)


decode_rate.right(_rate)


@decode_rate.right
def matrix_by_matrix(config, length, batch, itemsize, bandwidth):
    D, L, H, K, F, V = (config[name] for name in "DLHKFV")
    numbers = V * D
    for _ in range(L):
        numbers += D * D + 2 * D * (D // H * K) + D * D + 3 * D * F  # wq, wk and wv, wo, SwiGLU
        numbers += batch * 2 * length * K * (D // H)
    return batch / (numbers * itemsize / bandwidth)


@decode_rate.invariant("with no cache to speak of, twice the texts are twice the tokens")
def with_no_cache_to_speak_of(seen):
    c = dict(D=4096, L=32, H=32, K=1, F=11008, V=32000)
    one, two = (seen(c, 1, batch, 2, 1e12).value for batch in (1, 2))
    return 1.999 < two / one < 2.0001


@decode_rate.mistake("the embedding is read whole", hint=2)
def the_embedding_is_read_whole(config, length, batch, itemsize, bandwidth):
    "Of the embedding each token reads one row; only the output is multiplied whole."
    return _rate(config, length, batch, itemsize, bandwidth, ends=2 * config["V"] * config["D"])


@decode_rate.mistake("the output is forgotten", hint=2)
def the_output_is_forgotten(c, length, batch, itemsize, bandwidth):
    "The scores of V tokens need a matrix of V times D in every step."
    return _rate(c, length, batch, itemsize, bandwidth, ends=0)


@decode_rate.mistake("the cache is forgotten", hint=3)
def the_cache_is_forgotten(c, length, batch, itemsize, bandwidth):
    "Attention reads the keys and values of all earlier positions in every step."
    return _rate(c, length, batch, itemsize, bandwidth, cache=0)


@decode_rate.mistake("one cache for all texts", hint=3)
def one_cache_for_all_texts(config, length, batch, itemsize, bandwidth):
    "Texts share the weights, not their keys and values: the cache is read once for each."
    width = config["K"] * config["D"] // config["H"]
    return _rate(config, length, batch, itemsize, bandwidth, cache=2 * config["L"] * length * width)


@decode_rate.mistake("the weights are read again for each text", hint=1)
def the_weights_are_read_again_for_each_text(config, length, batch, itemsize, bandwidth):
    "That is the point of a batch: the weights are read once for all its texts."
    return _rate(config, length, 1, itemsize, bandwidth)


@decode_rate.mistake("steps, not tokens", hint=1)
def steps_not_tokens(c, length, batch, itemsize, bandwidth):
    "A step makes one token for each text of the batch."
    return _rate(c, length, batch, itemsize, bandwidth, made=1)


@decode_rate.mistake("keys without values", hint=3)
def keys_without_values(config, length, batch, itemsize, bandwidth):
    "Both keys and values are kept and read: 2."
    width = config["K"] * config["D"] // config["H"]
    return _rate(
        config, length, batch, itemsize, bandwidth, cache=config["L"] * length * width * batch
    )


@decode_rate.mistake("no grouped queries", hint=2)
def no_grouped_queries(config, length, batch, itemsize, bandwidth):
    "wk, wv and the cache have K heads, not H."
    return _rate(config | {"K": config["H"]}, length, batch, itemsize, bandwidth)


@decode_rate.mistake("two matrices in the feed-forward part", hint=2)
def two_matrices_in_the_feed_forward_part(config, length, batch, itemsize, bandwidth):
    "SwiGLU has three: w1, w2 and w3."
    D, width = config["D"], config["K"] * config["D"] // config["H"]
    layer = lambda: 2 * D**2 + 2 * D * width + 2 * D * config["F"]
    return _rate(config, length, batch, itemsize, bandwidth, layer)


@decode_rate.mistake("numbers taken for bytes", hint=1)
def numbers_taken_for_bytes(config, length, batch, itemsize, bandwidth):
    "The bandwidth is in bytes; a number has itemsize of them."
    return _rate(config, length, batch, 1, bandwidth)
