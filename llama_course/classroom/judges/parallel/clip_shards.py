"What the judge knows of `clip_shards`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.collectives.common import on_stage
from llama_course.collectives import ring_all_gather, ring_all_reduce

clip_shards = Exercise(
    "clip_shards",
    chapter="17_parallel",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    factor=16.0,
    call=on_stage(lambda shards, gains, max_norm: [(shard, gains, max_norm) for shard in shards]),
    points={"values": 5, "laws": 2, "cost": 3},
    hints=(
        "Take two ranks with shards (3,) and (4,) and no gains. How long is the whole gradient?",
        "Squares add up, lengths do not. And `gains` is one tensor, of which every rank has a"
        " copy: how often does it count? And what happens to a gradient that is shorter than "
        "max_norm?",
        "norm = sqrt(all-reduce of the shard's squares + the squares of gains); scale = "
        "min(1, max_norm / norm). One number a rank has to travel.",
    ),
)


@clip_shards.cases
def cases_of_clip_shards(seed: int):
    random = torch.Generator().manual_seed(seed)
    for n, size, gains, max_norm in (
        (1, 5, 3, 1.0),
        (2, 6, 4, 1.0),
        (3, 4, 9, 2.0),
        (4, 8, 5, 100.0),
    ):
        yield torch.randn(n, size, generator=random), torch.randn(gains, generator=random), max_norm
    yield torch.zeros(2, 3), torch.zeros(2), 1.0


@clip_shards.reference
def truth_of_clip_shards(shards, gains, max_norm):
    norm = (shards.square().sum() + gains.square().sum()).sqrt()
    scale = min(1.0, max_norm / max(norm.item(), 1e-300))
    return [(shard * scale, gains * scale, norm) for shard in shards]


def _clip(wire, shard, gains, max_norm, total=None, scale=None):
    "Clipping, with a place for each mistake."
    squares = shard.square().sum(), gains.square().sum()
    norm = (
        total(wire, *squares) if total else (ring_all_reduce(wire, squares[0]) + squares[1]).sqrt()
    )
    scale = scale(norm, max_norm) if scale else torch.clamp(max_norm / norm, max=1.0)
    return shard * scale, gains * scale, norm


@clip_shards.right
def with_one_all_reduce(wire, *args):
    return _clip(wire, *args)


@clip_shards.right
def with_gathered_lengths(wire, shard, gains, max_norm):
    lengths = torch.stack(ring_all_gather(wire, torch.linalg.vector_norm(shard)))
    norm = torch.linalg.vector_norm(torch.cat([lengths, gains]))
    if norm <= max_norm:
        return shard.clone(), gains.clone(), norm
    return shard * (max_norm / norm), gains * (max_norm / norm), norm


@clip_shards.invariant("into how many shards a gradient is cut does not matter")
def into_how_many_shards_a_gradient_is_cut_does_not_matter(seen):
    whole = torch.randn(12, generator=torch.Generator().manual_seed(4))
    norms = [seen(whole.view(n, -1), torch.ones(3), 1.0).value[0][2] for n in (1, 2, 3, 4)]
    return torch.allclose(torch.stack(norms), norms[0].expand(4), rtol=1e-5)


@clip_shards.limit(
    "collective_bytes", "one number of each rank, in an all-reduce that pads it to N"
)
def most_collective_bytes_of_clip_shards(shards, gains, max_norm):
    return 2 * (len(shards) - 1) * 4


@clip_shards.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(wire, shard, gains, max_norm):
    """Lengths are added, the copies of gains are counted on every rank, and short gradients are
    made longer."""
    norm = ring_all_reduce(wire, torch.cat([shard, gains]).norm())
    return shard * (max_norm / norm), gains * (max_norm / norm), norm


@clip_shards.mistake("lengths are added", hint=1)
def lengths_are_added(wire, shard, gains, max_norm):
    "3 and 4 make 5, not 7: add squares and take the root of the sum."
    return _clip(
        wire,
        shard,
        gains,
        max_norm,
        total=lambda w, s, g: (ring_all_reduce(w, s.sqrt()) ** 2 + g).sqrt(),
    )


@clip_shards.mistake("each rank for itself", hint=1)
def each_rank_for_itself(wire, shard, gains, max_norm):
    "Each rank clips by its own length, so the shards of one gradient get different factors."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: (s + g).sqrt())


@clip_shards.mistake("gains count on every rank", hint=2)
def gains_count_on_every_rank(wire, shard, gains, max_norm):
    "gains is one tensor with N copies: its squares belong to the sum once."
    return _clip(
        wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s + g).sqrt()
    )


@clip_shards.mistake("gains are left out", hint=2)
def gains_are_left_out(wire, shard, gains, max_norm):
    "The length is that of all parameters together; the squares of gains are missing."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s).sqrt())


@clip_shards.mistake("short gradients are made longer", hint=2)
def short_gradients_are_made_longer(wire, shard, gains, max_norm):
    "A gradient that is short enough stays as it is: the factor is at most 1."
    return _clip(wire, shard, gains, max_norm, scale=lambda norm, most: most / norm)


@clip_shards.mistake("a mean of the squares", hint=1)
def a_mean_of_the_squares(wire, shard, gains, max_norm):
    "The squares are divided by the number of ranks: the shards are pieces, not copies."
    return _clip(
        wire,
        shard,
        gains,
        max_norm,
        total=lambda w, s, g: (ring_all_reduce(w, s) / w.size + g).sqrt(),
    )


@clip_shards.mistake("the square of the length", hint=3)
def the_square_of_the_length(wire, shard, gains, max_norm):
    "The root of the sum of squares is missing."
    return _clip(wire, shard, gains, max_norm, total=lambda w, s, g: ring_all_reduce(w, s) + g)


@clip_shards.mistake("the whole gradient is gathered", hint=3)
def the_whole_gradient_is_gathered(wire, shard, gains, max_norm):
    "Every rank collects all shards to measure them: one number of each is enough."
    norm = torch.cat([*ring_all_gather(wire, shard), gains]).norm()
    scale = torch.clamp(max_norm / norm, max=1.0)
    return shard * scale, gains * scale, norm
