"What the judge knows of `read_gguf`. Spoilers ahead."

import io
import struct

import torch

from llama_course.classroom.exercise import Exercise

LETTERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # GGUF's number -> struct's


read_gguf = Exercise(
    "read_gguf",
    chapter="23_formats",
    kind="rebuild",
    minutes=35,
    difficulty=2,
    points={"values": 8, "laws": 2},
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
                "flags": ((7,), [True, False]),
                "bytes": ((0,), [1, 200 + draw(50)]),
                "long": ((11,), [-(2**50), 3]),
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
