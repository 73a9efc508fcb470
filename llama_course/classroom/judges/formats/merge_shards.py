"What the judge knows of `merge_shards`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.formats import cut_dimension

SHAPES = {
    "tok_embeddings.weight": (10, 16),
    "layers.0.attention.wq.weight": (16, 16),
    "layers.0.attention.wo.weight": (16, 16),
    "layers.0.feed_forward.w1.weight": (24, 16),
    "layers.0.feed_forward.w2.weight": (16, 24),
    "layers.0.ffn_norm.weight": (16,),
    "layers.10.feed_forward.w3.weight": (24, 16),
    "norm.weight": (16,),
    "output.weight": (8, 16),
}


merge_shards = Exercise(
    "merge_shards",
    chapter="23_formats",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    points={"values": 5, "laws": 3, "cost": 2},
    hints=(
        "A matrix that spreads the stream (wq, wk, wv, w1, w3, output) is cut by rows, one "
        "that gathers it (wo, w2) by columns, and so is the embedding. Norms are whole in "
        "every file.",
        "The name decides, not the shape: wq and wo are both square. Columns are dimension 1.",
        "torch.cat(pieces, dim) glues in the order of the files. A norm is taken from the "
        "first file.",
    ),
)


def cut(whole: dict, n: int) -> list:
    "The tensors as n files hold them."

    def piece(name, t, i):
        dim = cut_dimension(name)
        return t.clone() if dim is None else t.chunk(n, dim)[i].clone()

    return [{name: piece(name, t, i) for name, t in whole.items()} for i in range(n)]


@merge_shards.cases
def cases_of_merge_shards(seed):
    random = torch.Generator().manual_seed(seed)
    for n in (2, 4, 1, 8):
        whole = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
        yield (cut(whole, n),)


@merge_shards.reference
def truth_of_merge_shards(shards):
    whole = {}
    for name in shards[0]:
        dim, pieces = cut_dimension(name), [shard[name] for shard in shards]
        whole[name] = pieces[0] if dim is None else torch.cat(pieces, dim)
    return whole


@merge_shards.invariant("cutting the result again gives the files back")
def cutting_the_result_again_gives_the_files_back(seen):
    random = torch.Generator().manual_seed(9)
    shards = cut({name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}, 4)
    again = cut(seen(shards).value, 4)
    return all(torch.equal(a[name], b[name]) for a, b in zip(again, shards) for name in SHAPES)


@merge_shards.limit("largest_tensor", "no tensor is larger than the largest whole one")
def most_largest_tensor_of_merge_shards(shards):
    return max(
        sum(shard[name].numel() for shard in shards) for name in shards[0] if "norm" not in name
    )


def _dim_of(name):
    if "norm" in name:
        return None
    return 1 if name.startswith("tok") or ".wo." in name or ".w2." in name else 0


def _merge(shards, dim_of=_dim_of, order=lambda shards: shards):
    "The usual answer, with the two things that go wrong as arguments."
    whole = {}
    for name in shards[0]:
        pieces, dim = [shard[name] for shard in order(shards)], dim_of(name)
        whole[name] = pieces[0] if dim is None else torch.cat(pieces, dim)
    return whole


merge_shards.right(_merge)


@merge_shards.right
def glued_by_name(shards):
    def glue(name, *pieces):
        if pieces[0].dim() == 1:
            return pieces[0]
        columns = any(part in name for part in (".wo.", ".w2.", "tok_embeddings"))
        return torch.hstack(pieces) if columns else torch.vstack(pieces)

    return {name: glue(name, *(shard[name] for shard in shards)) for name in shards[0]}


@merge_shards.mistake("everything is glued by rows", hint=1)
def everything_is_glued_by_rows(shards):
    "wo, w2 and the embedding are cut by columns: dimension 1."
    return _merge(shards, dim_of=lambda name: None if "norm" in name else 0)


@merge_shards.mistake("everything is glued by columns", hint=1)
def everything_is_glued_by_columns(shards):
    "wq, wk, wv, w1, w3 and output are cut by rows: dimension 0."
    return _merge(shards, dim_of=lambda name: None if "norm" in name else 1)


@merge_shards.mistake("the embedding is glued by rows", hint=1)
def the_embedding_is_glued_by_rows(shards):
    "The first release cuts the embedding by columns; only Llama 3 and later cut it by rows."
    return _merge(shards, dim_of=lambda name: 0 if "tok_" in name else _dim_of(name))


@merge_shards.mistake("wo is glued like wq", hint=2)
def wo_is_glued_like_wq(shards):
    """wo gathers the heads: each file has some of its columns. Its shape is square and does not
    tell."""
    return _merge(shards, dim_of=lambda name: 0 if ".wo." in name else _dim_of(name))


@merge_shards.mistake("w2 is glued like w1", hint=1)
def w2_is_glued_like_w1(shards):
    "w2 reads what w1 and w3 make: each file has some of its columns."
    return _merge(shards, dim_of=lambda name: 0 if ".w2." in name else _dim_of(name))


@merge_shards.mistake("norms are glued", hint=3)
def norms_are_glued(shards):
    "Every file has each norm whole: take one, do not glue them."
    return _merge(shards, dim_of=lambda name: 0 if "norm" in name else _dim_of(name))


@merge_shards.mistake("norms are added", hint=3)
def norms_are_added(shards):
    "The norms are copies of each other: n times the gain is another model."
    whole = _merge(shards)
    return {name: t * len(shards) if t.dim() == 1 else t for name, t in whole.items()}


@merge_shards.mistake("the files in the wrong order", hint=3)
def the_files_in_the_wrong_order(shards):
    "The pieces lie in the order of the files."
    return _merge(shards, order=lambda shards: shards[::-1])


@merge_shards.mistake("only the first layer", hint=2)
def only_the_first_layer(shards):
    "Layers have numbers of one and of two digits: layers.10 was not recognised."
    return _merge(shards, dim_of=lambda name: 1 if name.startswith("layers.10") else _dim_of(name))


@merge_shards.mistake("all tensors in one", hint=3)
def all_tensors_in_one(shards):
    "Glue one tensor at a time: all at once needs the memory of the whole model again."
    torch.cat([t.flatten() for shard in shards for t in shard.values()])
    return _merge(shards)
