"What the judge knows of `write_fields`. Spoilers ahead."

import random
import struct

from llama_course.classroom.exercise import Exercise

write_fields = Exercise(
    "write_fields",
    chapter="07_bpe",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "Try the values 0, 127, 128, 300 and -1, and the field number 16. 300 must become the two "
        "bytes AC 02.",
        "The group of the *lowest* seven bits comes first, and every byte but the last has its "
        "highest bit set.",
        "The tag is a varint, too: number * 8 + kind, 128 for field 16 with an integer. A length "
        "is counted in bytes, after encoding: ż has two.",
        "A negative integer is written as if 2**64 were added: ten bytes.",
    ),
)


@write_fields.cases
def cases_of_write_fields(seed):
    draw = random.Random(seed)
    yield ([(1, 0), (2, 1), (3, 127), (4, 128), (5, 300), (6, 16383), (7, 16384)],)
    yield ([(15, 5), (16, 5), (2047, 3), (2048, 2**63 - 1)],)
    yield ([(1, "▁the"), (2, 1.5), (3, b""), (4, ""), (5, bytes(200)), (1, "ż" * 70)],)
    yield ([(1, -1), (2, -(2**31)), (3, -(2**63))],)
    yield ([],)
    some = lambda: draw.choice(
        (
            draw.randint(0, 2 ** draw.randint(1, 62)),
            -draw.randint(1, 99),
            draw.uniform(-9, 9),
            "piece ▁ą",
        )
    )
    yield ([(draw.randint(1, 60), some()) for _ in range(12)],)


@write_fields.reference
def truth_of_write_fields(fields):
    return b"".join(_field(number, value) for number, value in fields)


def _varint(value):
    "By arithmetic on a text of bits: an independent way."
    bits = format(value % 2**64, "b")
    bits = bits.zfill(-(-len(bits) // 7) * 7)
    groups = [bits[i : i + 7] for i in range(0, len(bits), 7)][::-1]
    return bytes(int(("0" if i == len(groups) - 1 else "1") + g, 2) for i, g in enumerate(groups))


def _field(number, value, varint=_varint, tag=None, size=len, floats="<f", text=str.encode):
    tag = tag or varint
    if isinstance(value, float):
        return tag(number * 8 + 5) + struct.pack(floats, value)
    if isinstance(value, int):
        return tag(number * 8) + varint(value)
    data = text(value) if isinstance(value, str) else value
    return tag(number * 8 + 2) + varint(size(value) if size is not len else len(data)) + data


def _small(value, mask=127, more=128, wrap=True):
    "A varint in a loop."
    if value < 0:
        value = value + 2**64 if wrap else -value
    out = []
    while True:
        group, value = value & mask, value >> 7
        out.append(group | (more if value else 0))
        if not value:
            return bytes(out)


@write_fields.right
def with_a_loop(fields):
    return b"".join(_field(number, value, varint=_small) for number, value in fields)


@write_fields.right
def with_a_recursion(fields):
    def varint(value):
        value &= 2**64 - 1
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    out = bytearray()
    for number, value in fields:
        match value:
            case int():
                out += varint(number << 3) + varint(value)
            case float():
                out += varint(number << 3 | 5) + struct.pack("<f", value)
            case _:
                data = value.encode() if isinstance(value, str) else value
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


@write_fields.invariant("a message of two parts is the two messages, one after the other")
def a_message_of_two_parts(seen):
    a, b = [(1, 300), (20, "ż")], [(3, -5), (4, 0.5)]
    return seen(a + b).value == seen(a).value + seen(b).value


@write_fields.invariant("300 in field 1 is 08 AC 02, as protobuf's own documentation has it")
def the_documented_bytes(seen):
    return seen([(1, 150)]).value == b"\x08\x96\x01" and seen([(1, 300)]).value == b"\x08\xac\x02"


def _written(fields, **how):
    return b"".join(_field(number, value, **how) for number, value in fields)


def _highest_first(value):
    data = [b & 127 for b in _small(value)][::-1]
    return bytes(b | 128 for b in data[:-1]) + bytes(data[-1:])


@write_fields.mistake("the highest group first", hint=2)
def the_highest_group_first(fields):
    "The lowest seven bits are the first byte."
    return _written(fields, varint=_highest_first)


@write_fields.mistake("the tag as one byte", hint=3)
def the_tag_as_one_byte(fields):
    "From field 16 on the tag needs two bytes: it is a varint."
    return _written(fields, tag=lambda value: bytes([value % 256]))


@write_fields.mistake("lengths in characters", hint=3)
def lengths_in_characters(fields):
    "The length is that of the bytes: ż has two of them."
    return _written(fields, size=lambda value: len(value))


@write_fields.mistake("negative numbers lose their sign", hint=4)
def negative_numbers_lose_their_sign(fields):
    "A negative integer is written as 2**64 plus itself."
    return _written(fields, varint=lambda value: _small(value, wrap=False))


@write_fields.mistake("negative numbers in 32 bits", hint=4)
def negative_numbers_in_32_bits(fields):
    "Protobuf extends negative integers to 64 bits: ten bytes."
    return _written(fields, varint=lambda value: _small(value % 2**32 if value < 0 else value))


@write_fields.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(fields):
    "Four things are wrong: the order of the groups, the tag, lengths, and negative integers."
    return _written(
        fields,
        varint=lambda value: _highest_first(abs(value)),
        tag=lambda value: bytes([value % 256]),
        size=lambda value: len(value),
    )


@write_fields.mistake("the plain bytes of the number", hint=2)
def whole_bytes(fields):
    "A varint has groups of seven bits, and only as many as the number needs."
    return _written(fields, varint=lambda value: value.to_bytes(10, "little", signed=value < 0))


@write_fields.mistake("the last byte is marked, too", hint=2)
def the_last_byte_is_marked_too(fields):
    "The highest bit of the last byte is 0: it says that the number is over."
    mark = lambda value: bytes(b | 128 for b in _small(value)) if value > 127 else bytes([value])
    return _written(fields, varint=lambda value: mark(value % 2**64))


@write_fields.mistake("floats with their first byte last", hint=1)
def floats_the_wrong_way_round(fields):
    'Protobuf is little-endian: struct.pack("<f", value).'
    return _written(fields, floats=">f")
