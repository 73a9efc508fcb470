"What the judge knows of `tiled_attention`. Spoilers ahead."

import torch

from llama_course.attention import causal_attention
from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.attention.common import (
    _by_sums,
    _height,
    _walk,
    _whole,
    tile_flops,
)

tiled_attention = Exercise(
    "tiled_attention",
    chapter="11_attention",
    kind="extend",
    minutes=40,
    difficulty=3,
    factor=32.0,
    condition=_height,
    points={"values": 2, "laws": 1, "cost": 7},
    hints=(
        "Two loops: over blocks of queries, and for each over blocks of keys. What does a "
        "block of queries start with? An output of zeros with a log-sum-exp of -inf is a part"
        " without keys.",
        "The queries are the last T of S positions: query i stands at S - T + i. The last "
        "query of a block sees the most; keys after its position concern nobody in the block.",
        "for j in range(0, S - T + stop, block), where stop is the end of the block of "
        "queries, visits what is needed and nothing else. The tile on the diagonal is needed,"
        " although half of it is masked.",
        "No tensor may be larger than a tile, the queries or the keys: not all keys at once, "
        "no matrix. Slices beyond the end are cut by themselves, so a last short block needs "
        "no special case.",
    ),
)


@tiled_attention.cases
def cases_of_tiled_attention(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, (B, H, T, S), Q, block in (
        (torch.float32, (2, 1, 12, 12), 2, 4),
        (torch.float64, (1, 2, 8, 8), 4, 3),
        (torch.float32, (1, 1, 3, 9), 4, 2),
        (torch.float32, (1, 1, 3, 8), 4, 2),  # the last keys of a tile belong to its last query
        (torch.float32, (1, 1, 5, 5), 4, 3),
    ):
        q, k, v = (
            torch.randn(B, H, n, Q, generator=random, dtype=torch.float64) for n in (T, S, S)
        )
        if T == 5:
            q[..., 0], k[..., 0] = 10, 30  # all scores about 300: exp alone is infinite
        yield *((2 * q).to(dtype), k.to(dtype), v.to(dtype)), block


tiled_attention.reference(lambda q, k, v, block: causal_attention(q, k, v))


@tiled_attention.invariant("a key that comes later than a query does not move its result")
def a_key_that_comes_later_than_a_query_does_not_move(seen):
    random = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, 1, 6, 4, generator=random) for _ in range(3))
    before = seen(q, k, v, 3).value[:, :, :4]
    k[:, :, 4:], v[:, :, 4:] = 100.0, -100.0
    return torch.allclose(seen(q, k, v, 3).value[:, :, :4], before, atol=1e-5)


@tiled_attention.invariant("the size of the tiles changes nothing but the cost")
def the_size_of_the_tiles_changes_nothing_but_the_cost(seen):
    random = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, 2, n, 4, generator=random) for n in (5, 7, 7))
    first, *others = (seen(q, k, v, block).value for block in (2, 100))
    return all(torch.allclose(first, other, atol=1e-5) for other in others)


@tiled_attention.limit(
    "largest_tensor", "nothing larger than a tile, queries or keys; no T x S matrix"
)
def most_largest_tensor_of_tiled_attention(q, k, v, block):
    return max(q.numel(), k.numel(), q[:, :, 0, 0].numel() * block * block)


@tiled_attention.limit("flops", "tiles that are wholly masked are not computed")
def most_flops_of_tiled_attention(q, k, v, block):
    return tile_flops(q, k, block)


tiled_attention.right(_walk)


@tiled_attention.right
def with_a_running_softmax(q, k, v, block):
    (T, Q), S, out = q.shape[2:], k.shape[2], torch.empty_like(q)
    for i in range(0, T, block):
        rows = q[:, :, i : i + block] / Q**0.5
        position = S - T + i + torch.arange(rows.shape[2])[:, None]
        top, total, mean = rows.new_full((*rows.shape[:3], 1), -torch.inf), 0, 0
        for j in range(0, int(position[-1]) + 1, block):
            keys, values = k[:, :, j : j + block], v[:, :, j : j + block]
            scores = torch.einsum("bhtq,bhsq->bhts", rows, keys)
            scores = scores.masked_fill(torch.arange(j, j + keys.shape[2]) > position, -torch.inf)
            new = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - new).exp(), (top - new).exp()
            total, mean, top = (
                total * shrink + weights.sum(-1, True),
                mean * shrink + weights @ values,
                new,
            )
        out[:, :, i : i + block] = mean / total
    return out


@tiled_attention.mistake("the whole matrix", hint=4)
def the_whole_matrix(q, k, v, block):
    """Right in value, but the T x S scores are made and stored at once: that is what the tiles
    are to avoid."""
    return _whole(q, k, v)


@tiled_attention.mistake("masked tiles are computed", hint=3)
def masked_tiles_are_computed(q, k, v, block):
    """Right in value, but the tiles above the diagonal are computed as well, to be multiplied by
    zero."""
    return _walk(q, k, v, block, stop=lambda i, T, S: S)


@tiled_attention.mistake("one tile too many in each row", hint=3)
def one_tile_too_many_in_each_row(q, k, v, block):
    """The tile after the diagonal is computed, too: its first key comes after the last query of
    the block."""
    return _walk(q, k, v, block, stop=lambda i, T, S: S - T + i + 2 * block)


@tiled_attention.mistake("all keys at once", hint=4)
def all_keys_at_once(q, k, v, block):
    """Only the queries go in blocks: a strip of block x S scores grows with the text, a tile
    does not."""
    return _walk(q, k, v, block, wide=1000)


@tiled_attention.mistake("positions counted from the first query", hint=2)
def positions_counted_from_the_first_query(q, k, v, block):
    "The queries are the last T of S positions: query i stands at S - T + i, not at i."
    return _walk(q, k, v, block, past=0)


@tiled_attention.mistake("the diagonal is left out", hint=3)
def the_diagonal_is_left_out(q, k, v, block):
    """The tile on the diagonal is masked in part only: leaving it out takes each query its
    nearest keys."""
    return _walk(q, k, v, block, diagonal=False)


@tiled_attention.mistake("no mask on the diagonal", hint=3)
def no_mask_on_the_diagonal(q, k, v, block):
    """Leaving tiles out is not enough: in the tile on the diagonal, half of the scores must be
    masked."""
    return _walk(q, k, v, block, masked=False)


@tiled_attention.mistake("exp without a maximum", hint=1)
def exp_without_a_maximum_in_tiled_attention(q, k, v, block):
    "exp of a score above 88 is infinite: subtract the largest so far, or merge by log-sum-exps."
    return _by_sums(q, k, v, block)


@tiled_attention.mistake("the last queries of a tile lose a key", hint=2)
def the_last_queries_of_a_tile_lose_a_key(q, k, v, block):
    "The walk ends with the last query of the block, not with its first."
    return _walk(q, k, v, block, stop=lambda i, T, S: S - T + i + 1)


@tiled_attention.mistake("tiles are added, not merged", hint=1)
def tiles_are_added_not_merged(q, k, v, block):
    "Each tile's output is an average of its own: merge it by the log-sum-exps, do not add."
    return _walk(q, k, v, block, merge=lambda out, lse, o, l: (out + o, lse))


@tiled_attention.mistake("only the last tile remains", hint=1)
def only_the_last_tile_remains(q, k, v, block):
    "Each tile overwrites what the tiles before it found."
    return _walk(q, k, v, block, merge=lambda out, lse, o, l: (o, l))


@tiled_attention.mistake("the short block at the end is lost", hint=4)
def the_short_block_at_the_end_is_lost(q, k, v, block):
    "T need not be a multiple of the block: the last, shorter block of queries is left at zero."
    whole = q.shape[2] // block * block
    rest = torch.zeros_like(q[:, :, whole:])
    past = k.shape[2] - q.shape[2]
    return torch.cat((_walk(q[:, :, :whole], k, v, block, past=past), rest), 2) if whole else rest
