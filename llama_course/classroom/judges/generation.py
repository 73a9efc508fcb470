"""What the judge knows of the four exercises in `exercises/21_generation.ipynb`. Spoilers from
here on."""

import codecs

import torch

from llama_course.classroom.exercise import Exercise

nucleus = Exercise(
    "nucleus",
    chapter="21_generation",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 6, "invariant": 4},
    hints=(
        "Sort the tokens of a row by probability, the likeliest first, and add them up from there.",
        "A token is kept while the sum of those BEFORE it is still less than the share: the "
        "one that reaches the share is kept, the next is not. The first one is always kept.",
        "cumsum(-1) - p is the sum before. Set the others to zero, bring the rows back to the"
        " tokens' own order (scatter, or index with argsort of the order), and divide each "
        "row by its new sum.",
    ),
)


@nucleus.cases
def cases_of_nucleus(seed):
    random = torch.Generator().manual_seed(seed)
    steps = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    for share in (0.5, 0.75, 0.76, 0.1, 1.0, 0.875):
        rows = torch.stack([steps[torch.randperm(6, generator=random)] for _ in range(4)])
        yield rows, share
    yield (3 * torch.randn(5, 40, generator=random)).softmax(-1), 0.9
    yield torch.tensor([[0.0, 0.96875, 0.0, 0.03125]]), 0.95


def _nucleus(p, share, kept=lambda before, sorted_p, share: before < share, back=True, divide=True):
    "The usual answer, with what goes wrong as arguments."
    sorted_p, order = p.sort(dim=-1, descending=True, stable=True)
    before = sorted_p.cumsum(-1) - sorted_p
    sorted_p = torch.where(kept(before, sorted_p, share), sorted_p, 0.0)
    out = torch.zeros_like(p).scatter(-1, order, sorted_p) if back else sorted_p
    return out / out.sum(-1, keepdim=True) if divide else out


@nucleus.reference
def truth_of_nucleus(p, share):
    return _nucleus(p, share)


nucleus.right(_nucleus)


@nucleus.right
def token_by_token(p, share):
    out = torch.zeros_like(p)
    for row, target in zip(p, out):
        total = 0.0
        for i in row.argsort(dim=-1, descending=True, stable=True).tolist():
            if total >= share:
                break
            target[i] = row[i]
            total += row[i].item()
    return out / out.sum(-1, keepdim=True)


@nucleus.invariant(
    "without the least likely token that is kept, the rest holds less than the share"
)
def without_the_least_likely_token_that_is_kept(seen):
    p = (
        2 * torch.randn(8, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ).softmax(-1)
    for share in (0.2, 0.6, 0.95):
        kept = torch.where(seen(p, share).value > 0, p, 0)
        least = torch.where(kept > 0, kept, 1).amin(-1)
        if not ((kept.sum(-1) >= share - 1e-9) & (kept.sum(-1) - least < share)).all():
            return False
    return True


@nucleus.invariant("another order of the tokens gives the same, in that order")
def another_order_of_the_tokens_gives_the_same(seen):
    g = torch.Generator().manual_seed(4)
    p, order = torch.randn(3, 20, generator=g).softmax(-1), torch.randperm(20, generator=g)
    return torch.allclose(seen(p[:, order], 0.7).value, seen(p, 0.7).value[:, order])


@nucleus.mistake("the token that reaches the share is left out", hint=2)
def the_token_that_reaches_the_share_is_left_out(p, share):
    """Compare the sum before a token with the share, not the sum with it: the one that reaches
    it stays."""
    return _nucleus(p, share, kept=lambda before, q, share: (before + q <= share) | (before == 0))


@nucleus.mistake("one token too many at the boundary", hint=2)
def one_token_too_many_at_the_boundary(p, share):
    "Where those before already hold exactly the share nothing more is needed: < and not <=."
    return _nucleus(p, share, kept=lambda before, q, share: before <= share)


@nucleus.mistake("everything may be left out", hint=2)
def everything_may_be_left_out(p, share):
    """A likeliest token that holds more than the share is dropped, and 0/0 remains: the first is
    always kept."""
    return _nucleus(p, share, kept=lambda before, q, share: before + q <= share)


@nucleus.mistake("the sorted order comes back", hint=3)
def the_sorted_order_comes_back(p, share):
    "The result is in the order of the likelihood; bring each probability back to its token."
    return _nucleus(p, share, back=False)


@nucleus.mistake("rows do not sum to one", hint=3)
def rows_do_not_sum_to_one(p, share):
    "What is left must be divided by its sum: it is a distribution again."
    return _nucleus(p, share, divide=False)


@nucleus.mistake("a threshold on the probability", hint=1)
def a_threshold_on_the_probability(p, share):
    """Tokens above 1 - share are kept, however much they hold together: that is a threshold, not
    top-p."""
    out = torch.where(p >= 1 - share, p, 0.0)
    return out / out.sum(-1, keepdim=True)


@nucleus.mistake("the least likely first", hint=1)
def the_least_likely_first(p, share):
    "The sum begins at the least likely token: sort descending."
    sorted_p, order = p.sort(-1)
    kept = torch.where(sorted_p.cumsum(-1) - sorted_p < share, sorted_p, 0.0)
    out = torch.zeros_like(p).scatter(-1, order, kept)
    return out / out.sum(-1, keepdim=True)


@nucleus.mistake("min-p instead", hint=1)
def min_p_instead(p, share):
    "Tokens are compared with the likeliest one; top-p adds them up."
    out = torch.where(p >= share * p.amax(-1, keepdim=True), p, 0.0)
    return out / out.sum(-1, keepdim=True)


stream_bytes = Exercise(
    "stream_bytes",
    chapter="21_generation",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Keep the bytes that do not yet make a character, and put the next chunk behind them.",
        "Bytes wait only as long as they may still become a character: b'\\xff' never will, "
        "and is shown as U+FFFD at once; so is b'\\xc3' when a letter follows it.",
        "codecs.getincrementaldecoder('utf-8')(errors='replace') has exactly this state. Its "
        "decode(b'', final=True) is the last piece.",
    ),
)


@stream_bytes.cases
def cases_of_stream_bytes(seed):
    text = "naïve ½ 日本 🦙!".encode()
    yield ([text[i : i + 1] for i in range(len(text))],)
    g = torch.Generator().manual_seed(seed)
    for size in (2, 3, 5):
        cuts = (
            (torch.randperm(len(text) - 1, generator=g)[: len(text) // size] + 1)
            .sort()
            .values.tolist()
        )
        yield ([text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])],)
    yield ([b"a\xf0\x9f", b"\xa6", b"", b"\x99b\xc3"],)
    yield ([b"ok\xff", b"\xc3", b"x", b"\xe6\x97", b"y", b"\xf0\x9f"],)
    yield ([b"\xef\xbf", b"\xbd", b"!"],)
    yield ([],)


@stream_bytes.reference
def truth_of_stream_bytes(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(chunk) for chunk in chunks] + [decoder.decode(b"", True)]


@stream_bytes.right
def with_an_incremental_decoder(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(chunk) for chunk in chunks]
    return [*pieces, decoder.decode(b"", final=True)]


@stream_bytes.right
def by_what_must_wait(chunks):
    def waits(rest):  # bytes at the end that a later one may complete
        for n in (3, 2, 1):
            tail = rest[-n:] if len(rest) >= n else b""
            try:
                tail.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0:
                    return n
        return 0

    rest, pieces = b"", []
    for chunk in chunks:
        rest += chunk
        n = len(rest) - waits(rest)
        pieces.append(rest[:n].decode(errors="replace"))
        rest = rest[n:]
    return [*pieces, rest.decode(errors="replace")]


@stream_bytes.invariant("the pieces together are the whole text, however it was cut")
def the_pieces_together_are_the_whole_text(seen):
    text = "½🦙日x".encode() * 3
    cut = lambda n: [text[i : i + n] for i in range(0, len(text), n)]
    return all("".join(seen(cut(n)).value) == text.decode() for n in (1, 2, 3, 7))


@stream_bytes.invariant("plain letters are never late")
def plain_letters_are_never_late(seen):
    return seen([b"a", b"b", b"c"]).value == ["a", "b", "c", ""]


def _by_text(chunks, ready=lambda text: not text.endswith("\ufffd"), errors="replace", end=True):
    "All bytes decoded again after each chunk."
    raw, sent, pieces = b"", 0, []
    for chunk in chunks:
        raw += chunk
        text = raw.decode(errors=errors)
        new = text[sent:] if ready(text) else ""
        sent += len(new)
        pieces.append(new)
    return pieces + [raw.decode(errors=errors)[sent:] if end else ""]


@stream_bytes.mistake("each chunk for itself", hint=1)
def each_chunk_for_itself(chunks):
    "A character that is cut between two chunks becomes U+FFFD twice: keep what is incomplete."
    return [chunk.decode(errors="replace") for chunk in chunks] + [""]


@stream_bytes.mistake("half characters are dropped", hint=1)
def half_characters_are_dropped(chunks):
    "errors='ignore' swallows the bytes that should wait."
    return [chunk.decode(errors="ignore") for chunk in chunks] + [""]


@stream_bytes.mistake("the rest at the end is lost", hint=3)
def the_rest_at_the_end_is_lost(chunks):
    """When the stream ends in the middle of a character, that is shown: one U+FFFD as the last
    piece."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(chunk) for chunk in chunks] + [""]


@stream_bytes.mistake("there is no last piece", hint=3)
def there_is_no_last_piece(chunks):
    "One piece for each chunk, and one more for the end, which is usually empty."
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(chunk) for chunk in chunks]


@stream_bytes.mistake("what can never be a character waits as well", hint=2)
def what_can_never_be_a_character_waits_as_well(chunks):
    """b'\\xff' cannot begin a character; holding it back, or the letters before a half one,
    makes text late."""
    return _by_text(chunks)


@stream_bytes.mistake("bad bytes are an error", hint=2)
def bad_bytes_are_an_error(chunks):
    "A model may write any bytes: what is no UTF-8 becomes U+FFFD, and nothing is raised."
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks] + [decoder.decode(b"", True)]


@stream_bytes.mistake("the whole text again with each chunk", hint=1)
def the_whole_text_again_with_each_chunk(chunks):
    "Only what is new belongs into a piece."
    raw, pieces = b"", []
    for chunk in chunks:
        raw += chunk
        pieces.append(raw.decode(errors="replace"))
    return pieces + [""]


@stream_bytes.mistake("everything at the end", hint=1)
def everything_at_the_end(chunks):
    "The text is right and comes when the reader has gone: a piece for each chunk."
    return ["" for _ in chunks] + [b"".join(chunks).decode(errors="replace")]


decode_rate = Exercise(
    "decode_rate",
    chapter="21_generation",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 8, "invariant": 2},
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


ragged_step = Exercise(
    "ragged_step",
    chapter="21_generation",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    factor=32.0,
    points={"values": 7, "invariant": 3},
    hints=(
        "Two texts, of 2 and of 5 positions. Where must each one's new key go, and which places "
        "may its query see?",
        "keys[torch.arange(B), :, lengths] = k writes a row's key at that row's own place.",
        "torch.arange(S) <= lengths[:, None] is (B, S): the places that each row may see, its new "
        "one among them. What is hidden gets a score of minus infinity before the softmax.",
        "With H heads of queries and K of keys, heads 0 to H/K - 1 use the first: "
        "k.repeat_interleave(H // K, 1), or q.unflatten(1, (K, H // K)).",
    ),
)


@ragged_step.cases
def cases_of_ragged_step(seed):
    g = torch.Generator().manual_seed(seed)
    for B, H, K, S, Q, dtype in (
        (1, 1, 1, 4, 4, torch.float64),
        (3, 2, 2, 6, 4, torch.float32),
        (4, 6, 2, 8, 4, torch.float32),
        (2, 4, 1, 5, 8, torch.float64),
    ):
        lengths = torch.randint(S, (B,), generator=g)
        if B > 1:
            lengths[0], lengths[-1] = 0, S - 1  # a new text; one that fills its row
        keys, values = torch.randn(2, B, K, S, Q, generator=g)
        beyond = torch.arange(S) >= lengths[:, None, None, None]
        others = 1e3 * torch.arange(1.0, S + 1)[:, None]  # of other texts
        keys, values = (torch.where(beyond.mT, others, t) for t in (keys, values))
        new = torch.randn(2, B, K, Q, generator=g)
        q = 2 * torch.randn(B, H, Q, generator=g)
        floats = (t.to(dtype) for t in (q, keys, values))
        yield *floats, lengths, *new.to(dtype)


@ragged_step.reference
def truth_of_ragged_step(q, keys, values, lengths, k, v):
    "Row by row, head by head."
    out, keys, values = torch.empty_like(q), keys.clone(), values.clone()
    for b, n in enumerate(lengths.tolist()):
        keys[b, :, n], values[b, :, n] = k[b], v[b]
        for h in range(q.shape[1]):
            one = h * keys.shape[1] // q.shape[1]
            scores = keys[b, one, : n + 1] @ q[b, h] / q.shape[-1] ** 0.5
            out[b, h] = scores.softmax(0) @ values[b, one, : n + 1]
    return out, keys, values, lengths + 1


def _ragged(
    q, keys, values, lengths, k, v, *, places=lambda n: n, seen=lambda s, n: s <= n, root=True,
    heads=torch.repeat_interleave, copy=True, grow=1, hide=-torch.inf,
):  # fmt: skip
    "The step, with a place for each mistake."
    if copy:
        keys, values = keys.clone(), values.clone()
    rows, group = torch.arange(len(q)), q.shape[1] // keys.shape[1]
    keys[rows, :, places(lengths)], values[rows, :, places(lengths)] = k, v
    every_k, every_v = (heads(t, group, 1) for t in (keys, values))  # (B, H, S, Q)
    scores = (every_k @ q[..., None])[..., 0] * (q.shape[-1] ** -0.5 if root else 1)
    visible = seen(torch.arange(keys.shape[2]), lengths[:, None])  # (B, S)
    weights = scores.masked_fill(~visible[:, None], hide).softmax(-1)
    return (weights[:, :, None] @ every_v)[:, :, 0], keys, values, lengths + grow


ragged_step.right(_ragged)


@ragged_step.right
def with_sdpa_of_groups(q, keys, values, lengths, k, v):
    B, K, S, _ = keys.shape
    here = (torch.arange(S) == lengths[:, None])[:, None, :, None]
    keys, values = torch.where(here, k[:, :, None], keys), torch.where(here, v[:, :, None], values)
    visible = (torch.arange(S) <= lengths[:, None])[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.unflatten(1, (K, -1)), keys, values, attn_mask=visible
    )
    return out.flatten(1, 2), keys, values, lengths + 1


@ragged_step.invariant("a row's result is the same with and without the others")
def a_rows_result_is_the_same_alone(seen):
    args = list(ragged_step.make_cases(6))[2]
    together = seen(*args).value[0]
    alone = [seen(*(t[b : b + 1] for t in args)).value[0][0] for b in range(len(args[0]))]
    return torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


@ragged_step.invariant("what lies beyond a row's length does not matter")
def what_lies_beyond_does_not_matter(seen):
    q, keys, values, lengths, k, v = list(ragged_step.make_cases(7))[1]
    beyond = torch.arange(keys.shape[2])[:, None] > lengths[:, None, None, None]
    other = seen(q, keys.masked_fill(beyond, -50), values.masked_fill(beyond, 3), lengths, k, v)
    return torch.equal(seen(q, keys, values, lengths, k, v).value[0], other.value[0])


@ragged_step.mistake("the code as it was given", hint=1)
def the_step_as_it_was_given(*args):
    "All rows are treated as if they had the length of the longest, and heads are dealt out wrong."
    same = lambda n: n.max().expand(n.shape)
    return _ragged(
        *args,
        places=same,
        seen=lambda s, n: s <= same(n),
        heads=lambda t, n, _: t.repeat(1, n, 1, 1),
    )


@ragged_step.mistake("written behind the longest", hint=2)
def written_behind_the_longest(*args):
    "Each row's new key goes to that row's own length, not to that of the longest."
    return _ragged(*args, places=lambda n: n.max().expand(n.shape))


@ragged_step.mistake("everybody sees as far as the longest", hint=3)
def everybody_sees_as_far_as_the_longest(*args):
    "A short row looks at places that nothing of its own text has filled."
    return _ragged(*args, seen=lambda s, n: s <= n.max().expand(n.shape))


@ragged_step.mistake("the new token is not seen", hint=3)
def the_new_token_is_not_seen(*args):
    "A token attends to itself, too: <= and not <."
    return _ragged(*args, seen=lambda s, n: (s < n) | ((n == 0) & (s == 0)))


@ragged_step.mistake("one place too far", hint=3)
def one_place_too_far(*args):
    "The place behind the new token holds something of another text."
    return _ragged(*args, seen=lambda s, n: s <= n + 1)


@ragged_step.mistake("heads are dealt out in turns", hint=4)
def heads_are_dealt_out_in_turns(*args):
    "Neighbouring heads share keys: 0 and 1 the first, 2 and 3 the second; not 0 and 2."
    return _ragged(*args, heads=lambda t, n, _: t.repeat(1, n, 1, 1))


@ragged_step.mistake("hidden places get weight zero before the softmax", hint=3)
def hidden_places_get_a_score_of_zero(*args):
    "A score of 0 is not hidden: exp(0) is 1."
    return _ragged(*args, hide=0.0)


@ragged_step.mistake("the root of Q is missing", hint=1)
def the_root_of_q_is_missing(*args):
    "Scores are divided by the root of the head's width."
    return _ragged(*args, root=False)


@ragged_step.mistake("the caller's cache is changed", hint=2)
def the_callers_cache_is_changed(*args):
    "Here the old cache stays as it is: change copies."
    return _ragged(*args, copy=False)


@ragged_step.mistake("lengths stay", hint=1)
def lengths_stay(*args):
    "Every row is longer by one afterwards."
    return _ragged(*args, grow=0)
