"""What the judge knows of the four exercises in `exercises/23_formats.ipynb`. Spoilers from
here on."""

import io
import json
import struct

import torch
from torch import Tensor

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
    points={"values": 5, "invariant": 3, "ledger": 2},
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


unpermute = Exercise(
    "unpermute",
    chapter="23_formats",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 6, "invariant": 3, "ledger": 1},
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


read_tensor = Exercise(
    "read_tensor",
    chapter="23_formats",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Read the file by hand: eight bytes with the length of the table, the table, the "
        "numbers. From where are data_offsets counted?",
        "Both ends of data_offsets are needed, and the dtype: BF16 and F16 are both two bytes"
        " wide.",
        "Offsets count from the end of the table, byte 8 + length. Views: "
        "bytes.view(torch.bfloat16), then .view(shape), then .float().",
    ),
)

KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def file_of(tensors: dict, order: list) -> Tensor:
    "A safetensors file as uint8; the table lists the tensors in another order than the data."
    table: dict = {"__metadata__": {"format": "pt"}}
    data, kinds = b"", {t: k for k, t in KINDS.items()}
    for name, t in tensors.items():
        content = t.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(content)]
        table[name] = {"dtype": kinds[t.dtype], "shape": list(t.shape), "data_offsets": offsets}
        data += content
    text = json.dumps({name: table[name] for name in ["__metadata__", *order]}).encode()
    text += b" " * (-len(text) % 8)
    return torch.frombuffer(
        bytearray(len(text).to_bytes(8, "little") + text + data), dtype=torch.uint8
    )


@read_tensor.cases
def cases_of_read_tensor(seed):
    random = torch.Generator().manual_seed(seed)

    def draw(dtype, *shape):
        return torch.randn(shape, generator=random).to(dtype)

    for _ in range(2):
        tensors = {
            "b": draw(torch.float32, 4, 6),
            "a": draw(torch.bfloat16, 3, 5),
            "c": draw(torch.float16, 2, 7),
            "d": draw(torch.float32, 9),
        }
        file = file_of(tensors, ["d", "a", "c", "b"])
        yield from ((file, name) for name in tensors)


@read_tensor.reference
def truth_of_read_tensor(file, name):
    data = file.numpy().tobytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[name]
    begin, end = (start + offset for offset in entry["data_offsets"])
    numbers = torch.frombuffer(bytearray(data[begin:end]), dtype=KINDS[entry["dtype"]])
    return numbers.reshape(entry["shape"]).float()


@read_tensor.invariant("the order of the table plays no part")
def the_order_of_the_table_plays_no_part(seen):
    tensors = {"x": torch.arange(6.0).view(2, 3), "y": torch.arange(4.0)}
    files = [file_of(tensors, order) for order in (["x", "y"], ["y", "x"])]
    return all(
        torch.equal(seen(file, name).value, t) for file in files for name, t in tensors.items()
    )


def _table(file) -> tuple:
    "The table of a file, and the place where its data begin."
    length = int.from_bytes(bytes(file[:8].tolist()), "little")
    return json.loads(bytes(file[8 : 8 + length].tolist())), 8 + length


def _read(file, name, early=0, kinds=KINDS, shape=lambda s: s):
    "The usual answer; each argument is a place where it goes wrong."
    table, start = _table(file)
    first, last = (start - early + offset for offset in table[name]["data_offsets"])
    numbers = file[first:last].clone().view(kinds[table[name]["dtype"]])
    return numbers.view(*shape(table[name]["shape"])).float()


read_tensor.right(_read)


@read_tensor.right
def with_views_of_bytes(file, name):
    length = int(file[:8].clone().view(torch.int64))
    table, data = json.loads(file[8 : 8 + length].numpy().tobytes()), file[8 + length :]
    begin, end = (entry := table[name])["data_offsets"]
    return (
        data[begin:end]
        .clone()
        .view(KINDS[entry["dtype"]])
        .reshape(entry["shape"])
        .to(torch.float32)
    )


def _in_turn(file, name, kinds=KINDS):
    "Reads tensor after tensor in the order of the table."
    table, start = _table(file)
    for key, entry in table.items():
        if key == "__metadata__":
            continue
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        data = file[start : start + size].clone()
        if key == name:
            return data.view(kinds[entry["dtype"]]).view(entry["shape"]).float()
        start += size


@read_tensor.mistake("the reader as it was given", hint=1)
def the_reader_as_it_was_given(file, name):
    """It reads tensor after tensor in the order of the table, and takes all two-byte numbers for
    float16."""
    return _in_turn(file, name, kinds=KINDS | {"BF16": torch.float16})


@read_tensor.mistake("the order of the table", hint=1)
def the_order_of_the_table(file, name):
    "The table may stand in any order: where a tensor lies is in its data_offsets alone."
    return _in_turn(file, name)


@read_tensor.mistake("offsets from the beginning of the file", hint=3)
def offsets_from_the_beginning_of_the_file(file, name):
    "data_offsets count from the end of the table, not from the beginning of the file."
    return _read(file, name, early=_table(file)[1])


@read_tensor.mistake("eight bytes too early", hint=3)
def eight_bytes_too_early(file, name):
    "The eight bytes before the table were forgotten: the numbers begin at byte 8 + length."
    return _read(file, name, early=8)


@read_tensor.mistake("bfloat16 read as float16", hint=2)
def bfloat16_read_as_float16(file, name):
    "BF16 and F16 are both two bytes wide and mean different numbers."
    return _read(file, name, kinds=KINDS | {"BF16": torch.float16})


@read_tensor.mistake("float16 read as bfloat16", hint=2)
def float16_read_as_bfloat16(file, name):
    "F16 and BF16 are both two bytes wide and mean different numbers."
    return _read(file, name, kinds=KINDS | {"F16": torch.bfloat16})


@read_tensor.mistake("the shape backwards", hint=3)
def the_shape_backwards(file, name):
    "safetensors writes shapes as PyTorch does, rows first; GGUF writes them the other way round."
    return _read(file, name, shape=lambda shape: shape[::-1])


@read_tensor.mistake("without a shape", hint=3)
def without_a_shape(file, name):
    "The numbers are right, but they lie in one row: the table has their shape."
    return _read(file, name, shape=lambda shape: [-1])


@read_tensor.mistake("bytes taken for numbers", hint=3)
def bytes_taken_for_numbers(file, name):
    """.float() turns each byte into a number; .view(dtype) reads the bytes as numbers of that
    dtype."""
    table, start = _table(file)
    begin, shape = start + table[name]["data_offsets"][0], table[name]["shape"]
    return file[begin : begin + torch.Size(shape).numel()].float().view(shape)


@read_tensor.mistake("the stored dtype comes back", hint=3)
def the_stored_dtype_comes_back(file, name):
    "The result should be float32, whatever the file keeps."
    return _read(file, name).to(KINDS[_table(file)[0][name]["dtype"]])


LETTERS = dict(enumerate("BbHhIif?"))  # GGUF's number of a type -> struct's letter
LETTERS |= {10: "Q", 11: "q", 12: "d"}

read_gguf = Exercise(
    "read_gguf",
    chapter="23_formats",
    kind="rebuild",
    minutes=35,
    difficulty=2,
    points={"values": 8, "invariant": 2},
    hints=(
        "Keep a place in the file that moves on. Three small functions are enough: take a number "
        "of a type, take a text, take a value of any type.",
        "struct.unpack_from('<I', file, place) reads a number at a place without a copy; '<' is "
        "lowest byte first. Types 0 to 7 are B b H h I i f ?, types 10 to 12 are Q q d.",
        "An array is a type (4 bytes), a count (8 bytes), then so many values of that type, which "
        "may be texts. The dimensions are written from the last to the first: reverse them.",
        "The numbers begin at the next multiple of the alignment behind the table: -(-place // "
        "alignment) * alignment, with metadata.get('general.alignment', 32).",
    ),
)


def _write_gguf(metadata, tensors):
    "A file with these settings {key: (type, value)} and tensors {name: (shape, kind, offset)}."

    def text(value):
        data = value.encode()
        return struct.pack("<Q", len(data)) + data

    def value(kind, thing):
        if kind == 8:
            return text(thing)
        if isinstance(kind, tuple):
            each = b"".join(value(kind[0], one) for one in thing)
            return struct.pack("<IQ", kind[0], len(thing)) + each
        return struct.pack("<" + LETTERS[kind], thing)

    file = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, (kind, thing) in metadata.items():
        number = 9 if isinstance(kind, tuple) else kind
        file += text(key) + struct.pack("<I", number) + value(kind, thing)
    for name, (shape, kind, offset) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        file += text(name) + dims + struct.pack("<IQ", kind, offset)
    step = dict(metadata).get("general.alignment", (4, 32))[1]
    begin = -(-len(file) // step) * step
    file += bytes(begin - len(file))
    places = {name: (shape, kind, begin + at) for name, (shape, kind, at) in tensors.items()}
    return file + bytes(range(64)) * 3, ({key: v for key, (_, v) in metadata.items()}, places)


WRITTEN: dict[bytes, tuple] = {}  # a file -> what was written into it


@read_gguf.cases
def cases_of_read_gguf(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=random))
    two = {"token_embd.weight": ((64, 8), 0, 0), "blk.0.attn_norm.weight": ((8,), 0, 2048)}
    files = [
        ({"general.architecture": (8, "llama")}, {}),
        (
            {
                "llama.block_count": (4, 1 + draw(80)),
                "name": (8, "Läma " * (1 + draw(4))),
                "llama.rope.freq_base": (6, 10000.0),
            },
            two,
        ),
        (
            {
                "general.alignment": (4, 64),
                "tokens": ((8,), ["<unk>", "<s>", "▁the", ""]),
                "scores": ((6,), [0.0, -0.5, -1.25 - draw(9)]),
                "kinds": ((5,), [2, 3, 1, -1]),
                "nothing": ((4,), []),
                "flag": (7, True),
                "off": (7, False),
            },
            two | {"output.weight": ((3, 5, 2), 12, 4096 + 64 * draw(9))},
        ),
        (
            {
                "u8": (0, 200 + draw(50)),
                "i8": (1, -1 - draw(100)),
                "u16": (2, 65_000 + draw(500)),
                "i16": (3, -1 - draw(30_000)),
                "i32": (5, -1 - draw(10**6)),
                "u64": (10, 2**63 + draw(1000)),
                "i64": (11, -(2**40) - draw(1000)),
                "f64": (12, 0.1),
                "general.alignment": (4, 8),
            },
            {"x" * (1 + draw(20)): ((2, 3), 1, 0)},
        ),
    ]
    for metadata, tensors in files:
        file, truth = _write_gguf(metadata, tensors)
        WRITTEN[file] = truth
        yield (file,)


@read_gguf.reference
def truth_of_read_gguf(file):
    "What was written."
    return WRITTEN[file]


def _read_gguf(
    file, *, order="<", reverse=True, align=lambda about: about.get("general.alignment", 32),
    absolute=True, count="Q", letters=LETTERS, number=4, texts=True,
):  # fmt: skip
    "The reader, with a place for each mistake."
    place = 0

    def take(letter):
        nonlocal place
        (value,) = struct.unpack_from(order + letter, file, place)
        place += struct.calcsize(order + letter)
        return value

    def text():
        nonlocal place
        length = take(count)
        data = bytes(file[place : place + length])
        place += length
        return data.decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, n = take("I"), take("Q")
            if inner == 8 and not texts:
                raise KeyError(inner)
            return [value(inner) for _ in range(n)]
        return take(letters[kind])

    place = 8
    tensors, settings = take("Q"), take("Q")
    about = {}
    for _ in range(settings):
        key = text()
        about[key] = value(take("I"))
    rows = []
    for _ in range(tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))]
        rows.append((name, tuple(shape[::-1] if reverse else shape), take("I"), take("Q")))
    step = align(about)
    begin = -(-place // step) * step if absolute else 0
    return about, {name: (shape, kind, begin + at) for name, shape, kind, at in rows}


read_gguf.right(_read_gguf)


@read_gguf.right
def by_a_stream(file):
    stream = io.BytesIO(file)
    whole = lambda n, signed=False: int.from_bytes(stream.read(n), "little", signed=signed)
    string = lambda: stream.read(whole(8)).decode("utf-8")
    readers = {
        0: lambda: whole(1), 1: lambda: whole(1, True), 2: lambda: whole(2),
        3: lambda: whole(2, True), 4: lambda: whole(4), 5: lambda: whole(4, True),
        6: lambda: struct.unpack("<f", stream.read(4))[0], 7: lambda: stream.read(1) != b"\0",
        8: string, 9: lambda: [read() for read in [readers[whole(4)]] for _ in range(whole(8))],
        10: lambda: whole(8), 11: lambda: whole(8, True),
        12: lambda: struct.unpack("<d", stream.read(8))[0],
    }  # fmt: skip
    stream.read(8)
    n, m = whole(8), whole(8)
    about = {string(): readers[whole(4)]() for _ in range(m)}
    table = {}
    for _ in range(n):
        name = string()
        shape = [whole(8) for _ in range(whole(4))]
        table[name] = [shape[::-1], whole(4), whole(8)]
    step = about.get("general.alignment", 32)
    begin = (stream.tell() + step - 1) // step * step
    return about, {name: (shape, kind, begin + at) for name, (shape, kind, at) in table.items()}


@read_gguf.invariant("a longer name moves all tensors by whole steps of the alignment")
def a_longer_name_moves_all_tensors(seen):
    places = []
    for n in range(1, 70, 7):
        file, _ = _write_gguf({"k" * n: (8, "v")}, {"a": ((4,), 0, 0), "b": ((2, 2), 0, 96)})
        found = seen(file).value[1]
        places.append((found["a"][2], found["b"][2] - found["a"][2]))
    return all(a % 32 == 0 and apart == 96 for a, apart in places) and len(set(places)) > 1


@read_gguf.mistake("floats of eight bytes", hint=2)
def floats_of_eight_bytes(file):
    "Type 6 has four bytes, type 12 has eight."
    return _read_gguf(file, letters=LETTERS | {6: "d"})


@read_gguf.mistake("no arrays of texts", hint=3)
def no_arrays_of_texts(file):
    "A vocabulary is an array whose values are texts, each with a length of its own."
    return _read_gguf(file, texts=False)


@read_gguf.mistake("highest byte first", hint=2)
def highest_byte_first(file):
    "GGUF writes the lowest byte of a number first: '<'."
    return _read_gguf(file, order=">")


@read_gguf.mistake("shapes are not turned round", hint=3)
def shapes_are_not_turned_round(file):
    "GGUF writes the dimension whose numbers lie side by side first; PyTorch has it last."
    return _read_gguf(file, reverse=False)


@read_gguf.mistake("numbers right behind the table", hint=4)
def numbers_right_behind_the_table(file):
    "They begin at the next multiple of the alignment; the gap is filled with zeros."
    return _read_gguf(file, align=lambda about: 1)


@read_gguf.mistake("an alignment of 32 always", hint=4)
def an_alignment_of_32_always(file):
    "A file may ask for another alignment in its settings."
    return _read_gguf(file, align=lambda about: 32)


@read_gguf.mistake("places behind the table", hint=4)
def places_behind_the_table(file):
    "Offsets count from where the numbers begin: asked for is the place in the file."
    return _read_gguf(file, absolute=False)


@read_gguf.mistake("lengths of four bytes", hint=2)
def lengths_of_four_bytes(file):
    "A text's length takes eight bytes."
    return _read_gguf(file, count="I")


@read_gguf.mistake("truth values are numbers", hint=2)
def truth_values_are_numbers(file):
    "Type 7 is True or False, not 1 or 0."
    return _read_gguf(file, letters=LETTERS | {7: "B"})


@read_gguf.mistake("nothing is negative", hint=2)
def nothing_is_negative(file):
    "Types 1, 3, 5 and 11 have a sign."
    return _read_gguf(file, letters=LETTERS | {1: "B", 3: "H", 5: "I", 11: "Q"})


@read_gguf.mistake("everything is signed", hint=2)
def everything_is_signed(file):
    "Types 0, 2, 4 and 10 have no sign: 2^63 is not negative."
    return _read_gguf(file, letters=LETTERS | {0: "b", 2: "h", 4: "i", 10: "q"})
