"What the judge knows of `unpermute`. Spoilers ahead."

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

unpermute = Exercise(
    "unpermute",
    chapter="23_formats",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 6, "laws": 3, "cost": 1},
    hints=(
        "Only what is rotated has an order of pairs: queries and keys. Values, the output "
        "matrix and the feed-forward part stay as they are.",
        "Hugging Face keeps the rows of a head as (first of each pair), then (second of each "
        "pair); Meta wants the two of a pair side by side. Cut the rows into (heads, 2, Q/2),"
        " swap the last two.",
        "wk has n_kv_heads heads, wq n_heads; both have the same width of a head. Rows are "
        "dimension 0: a layer's weight is (out, in).",
    ),
)


@unpermute.cases
def cases_of_unpermute(seed):
    random = torch.Generator().manual_seed(seed)
    for heads, kv, Q in ((4, 2, 4), (6, 3, 8), (3, 1, 6), (2, 2, 10)):
        D = heads * Q
        rows = {"q_proj": D, "k_proj": kv * Q, "v_proj": kv * Q, "o_proj": D, "up_proj": 2 * D}
        yield {name: torch.randn(n, D, generator=random) for name, n in rows.items()}, heads, kv


def _turn(t: Tensor, heads: int) -> Tensor:
    "Rows of every head: halves become neighbours."
    return t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _turn_back(t, heads):
    return t.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@unpermute.reference
def truth_of_unpermute(layer, n_heads, n_kv_heads):
    return layer | {
        "q_proj": _turn(layer["q_proj"], n_heads),
        "k_proj": _turn(layer["k_proj"], n_kv_heads),
    }


@unpermute.invariant("without rotation the scores of queries and keys stay the same")
def without_rotation_the_scores_of_queries_and_keys_stay_the_same(seen):
    random = torch.Generator().manual_seed(3)
    layer = {name: torch.randn(8, 16, generator=random) for name in ("q_proj", "k_proj", "v_proj")}
    turned, x = seen(layer, 2, 2).value, torch.randn(5, 16, generator=random)

    def scores(layer):
        q, k = ((x @ layer[name].T).unflatten(-1, (2, 4)) for name in ("q_proj", "k_proj"))
        return torch.einsum("thq,shq->hts", q, k)

    return torch.allclose(scores(layer), scores(turned), atol=1e-4)


@unpermute.limit("flops", "rows are moved, nothing is multiplied")
def most_flops_of_unpermute(layer, n_heads, n_kv_heads):
    return 0


@unpermute.right
def by_a_view(layer, n_heads, n_kv_heads):
    return layer | {
        "q_proj": _turn(layer["q_proj"], n_heads),
        "k_proj": _turn(layer["k_proj"], n_kv_heads),
    }


@unpermute.right
def by_an_order_of_rows(layer, n_heads, n_kv_heads):
    result = {}
    for name, t in layer.items():
        heads = {"q_proj": n_heads, "k_proj": n_kv_heads}.get(name)
        if heads:
            Q = t.shape[0] // heads
            order = torch.arange(t.shape[0]).view(heads, 2, Q // 2).permute(0, 2, 1).reshape(-1)
            t = t[order]
        result[name] = t
    return result


@unpermute.mistake("the wrong direction", hint=2)
def the_wrong_direction(layer, n_heads, n_kv_heads):
    """This goes from Meta's order to Hugging Face's: (heads, Q/2, 2) was cut where (heads, 2,
    Q/2) should be."""
    heads = {"q_proj": n_heads, "k_proj": n_kv_heads}
    return layer | {name: _turn_back(layer[name], n) for name, n in heads.items()}


@unpermute.mistake("nothing is turned", hint=1)
def nothing_is_turned(layer, n_heads, n_kv_heads):
    "The tensors came back as they were: the model would load and write nonsense."
    return dict(layer)


@unpermute.mistake("keys in as many heads as queries", hint=3)
def keys_in_as_many_heads_as_queries(layer, n_heads, n_kv_heads):
    "With grouped queries wk has n_kv_heads heads; cut into n_heads the parts are too narrow."
    return layer | {name: _turn(layer[name], n_heads) for name in ("q_proj", "k_proj")}


@unpermute.mistake("keys are forgotten", hint=1)
def keys_are_forgotten(layer, n_heads, n_kv_heads):
    "Keys are rotated as queries are: k_proj must be turned as well."
    return layer | {"q_proj": _turn(layer["q_proj"], n_heads)}


@unpermute.mistake("values are turned as well", hint=1)
def values_are_turned_as_well(layer, n_heads, n_kv_heads):
    "Values are not rotated: v_proj stays as it is."
    heads = {"q_proj": n_heads, "k_proj": n_kv_heads, "v_proj": n_kv_heads}
    return layer | {name: _turn(layer[name], n) for name, n in heads.items() if name in layer}


@unpermute.mistake("the whole matrix as one head", hint=2)
def the_whole_matrix_as_one_head(layer, n_heads, n_kv_heads):
    "Each head has its own pairs: cut the rows into heads first."
    return layer | {name: _turn(layer[name], 1) for name in ("q_proj", "k_proj")}


@unpermute.mistake("columns are turned", hint=3)
def columns_are_turned(layer, n_heads, n_kv_heads):
    "A weight is (out, in): what comes out are the rows."

    def columns(t):
        return _turn(t.T, n_heads).T.contiguous()

    return layer | {name: columns(layer[name]) for name in ("q_proj", "k_proj")}


@unpermute.mistake("the output matrix is turned", hint=1)
def the_output_matrix_is_turned(layer, n_heads, n_kv_heads):
    "o_proj reads values, which are not rotated."
    turned = {name: _turn(layer[name], n_heads) for name in ("q_proj", "o_proj") if name in layer}
    return layer | turned | {"k_proj": _turn(layer["k_proj"], n_kv_heads)}


@unpermute.mistake("the other tensors are lost", hint=1)
def the_other_tensors_are_lost(layer, n_heads, n_kv_heads):
    "The layer must come back whole: tensors that are not turned belong to it."
    return {"q_proj": _turn(layer["q_proj"], n_heads), "k_proj": _turn(layer["k_proj"], n_kv_heads)}


@unpermute.mistake("a matrix of ones and zeros", hint=2)
def a_matrix_of_ones_and_zeros(layer, n_heads, n_kv_heads):
    """Multiplying by a permutation moves rows at the price of a matrix product; index or reshape
    instead."""

    def moved(t, heads):
        return _turn(torch.eye(len(t)), heads).to(t.dtype) @ t

    return layer | {
        "q_proj": moved(layer["q_proj"], n_heads),
        "k_proj": moved(layer["k_proj"], n_kv_heads),
    }
