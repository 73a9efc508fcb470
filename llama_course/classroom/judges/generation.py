"""What the judge knows of the four exercises in `exercises/21_generation.ipynb`. Spoilers from
here on."""

import codecs

import torch

from llama_course.classroom.exercise import Exercise

nucleus = Exercise(
    "nucleus",
    chapter="21_generation",
    kind="rebuild",
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
    kind="diagnose",
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


append = Exercise(
    "append",
    chapter="21_generation",
    kind="diagnose",
    points={"values": 7, "invariant": 3},
    hints=(
        "Write down the places by hand: the cache holds 3 positions, 2 come. Which places do "
        "the new ones go to, which are handed to attention, and what is the length "
        "afterwards?",
        "Positions count from 0: with a length of 3 the next place is 3. Python's slice ends "
        "before its end: 3 to 5 for two, and all that is filled is 0 to 5.",
        "end = length + k.shape[2]; keys[:, :, length:end] = k; the same for the values; "
        "return keys[:, :, :end], values[:, :, :end], end. (Change copies only: clone first.)",
    ),
)


@append.cases
def cases_of_append(seed):
    g = torch.Generator().manual_seed(seed)
    for B, K, S, Q, length, T in (
        (1, 2, 8, 4, 0, 1),
        (2, 1, 8, 4, 3, 2),
        (1, 2, 6, 2, 5, 1),
        (2, 2, 9, 4, 0, 9),
        (1, 1, 7, 4, 6, 1),
        (1, 3, 8, 2, 1, 4),
    ):
        full, new = ((B, K, n, Q) for n in (S, T))
        yield *torch.randn(2, *full, generator=g), length, *torch.randn(2, *new, generator=g)


def _append(keys, values, length, k, v, start=0, end=0, seen=0, after=0, both=True):
    "The usual answer, each number shifted by as much as is said."
    keys, values, stop = keys.clone(), values.clone(), length + k.shape[2]
    place = slice(max(0, length + start), max(0, stop + start + end))
    n = len(range(keys.shape[2])[place])
    keys[:, :, place] = k[:, :, :n]
    if both:
        values[:, :, place] = v[:, :, :n]
    return keys[:, :, : stop + seen], values[:, :, : stop + seen], stop + after


@append.reference
def truth_of_append(keys, values, length, k, v):
    return _append(keys, values, length, k, v)


append.right(_append)


@append.right
def by_concatenation(keys, values, length, k, v):
    join = lambda old, new: torch.cat([old[:, :, :length], new], 2)
    return join(keys, k), join(values, v), length + k.size(2)


@append.invariant("two chunks one after the other are one")
def two_chunks_one_after_the_other_are_one(seen):
    g = torch.Generator().manual_seed(5)
    keys, values = torch.zeros(2, 1, 2, 9, 4)
    k, v = torch.randn(2, 1, 2, 7, 4, generator=g)
    first = seen(keys, values, 0, k[:, :, :3], v[:, :, :3]).value
    pad = lambda t: torch.cat([t, torch.zeros(1, 2, 9 - t.shape[2], 4)], 2)
    second = seen(pad(first[0]), pad(first[1]), first[2], k[:, :, 3:], v[:, :, 3:]).value
    return second[2] == 7 and torch.equal(second[0], k) and torch.equal(second[1], v)


@append.mistake("the newest position is not handed out", hint=2)
def the_newest_position_is_not_handed_out(keys, values, length, k, v):
    """Attention gets what was there before: the token cannot see itself. The slice goes to
    length + T."""
    return _append(keys, values, length, k, v, seen=-1)


@append.mistake("one position too many is handed out", hint=2)
def one_position_too_many_is_handed_out(keys, values, length, k, v):
    "A place that nobody has filled yet is handed out: the slice ends before its end."
    keys, values, end = _append(keys, values, length, k, v, seen=1)
    return keys, values, end


@append.mistake("written one place too early", hint=2)
def written_one_place_too_early(keys, values, length, k, v):
    "The last position is overwritten: with a length of 3 the next place is 3, not 2."
    return _append(keys, values, length, k, v, start=-1 if length else 0)


@append.mistake("written one place too late", hint=2)
def written_one_place_too_late(keys, values, length, k, v):
    "A gap of one is left: with a length of 3 the next place is 3, not 4."
    return _append(keys, values, length, k, v, start=1)


@append.mistake("the length grows by one, whatever comes", hint=1)
def the_length_grows_by_one_whatever_comes(keys, values, length, k, v):
    "A chunk of T tokens fills T places: the length grows by T."
    keys, values, _ = _append(keys, values, length, k, v)
    return keys, values, length + 1


@append.mistake("the length stays behind", hint=1)
def the_length_stays_behind(keys, values, length, k, v):
    "The length that comes back is the one before; the next token is written over this one."
    return (*_append(keys, values, length, k, v)[:2], length)


@append.mistake("only the new ones are handed out", hint=3)
def only_the_new_ones_are_handed_out(keys, values, length, k, v):
    "Attention needs all positions so far, not those of this chunk alone."
    return (k.clone(), v.clone(), length + k.shape[2])


@append.mistake("the whole memory is handed out", hint=3)
def the_whole_memory_is_handed_out(keys, values, length, k, v):
    "Beyond the length there is nothing, or what another text left: hand out the filled part."
    keys, values, end = _append(keys, values, length, k, v, seen=10**6)
    return keys, values, end


@append.mistake("the values are forgotten", hint=3)
def the_values_are_forgotten(keys, values, length, k, v):
    "Keys are written and values are not."
    return _append(keys, values, length, k, v, both=False)
