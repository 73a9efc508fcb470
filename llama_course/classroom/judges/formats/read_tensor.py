"What the judge knows of `read_tensor`. Spoilers ahead."

import json

import torch
from torch import Tensor

from llama_course.classroom.exercise import Exercise

read_tensor = Exercise(
    "read_tensor",
    chapter="23_formats",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    points={"values": 7, "laws": 3},
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
