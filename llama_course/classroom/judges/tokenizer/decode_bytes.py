"What the judge knows of `decode_bytes`. Spoilers ahead."

import random
import re

from llama_course.classroom.exercise import Exercise

decode_bytes = Exercise(
    "decode_bytes",
    chapter="06_tokenizer",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "A character may need up to four byte pieces: collect bytes until a piece comes that "
        "is none, and decode them together. What is still collected at the end?",
        "<0x41> is hexadecimal: int(piece[3:5], 16). ▁ is a space where a piece says so; the "
        "three bytes E2 96 81 are the character ▁ itself, so replace in pieces, not in the "
        "text that came out.",
        "Bytes that are no UTF-8 become U+FFFD, one for each byte. Python's errors='replace' "
        "writes one for a whole broken character; UnicodeDecodeError has .start, the place of"
        " the first wrong byte.",
    ),
)


@decode_bytes.cases
def cases_of_decode_bytes(seed):
    chance = random.Random(seed)
    for text in ("ż", "字", "🦙"):  # whole characters
        yield (["▁a", *(f"<0x{byte:02X}>" for byte in text.encode()), "b▁", "c"],)
    yield (["▁the", "▁", "x▁y"],)
    yield (["<0x41>", "<0x7A>", "<0x0A>"],)
    yield (["a", "<0xE2>", "<0x96>", "<0x81>", "▁b"],)  # the character ▁, not a space
    yield (["<0xF0>", "<0x9F>", "a", "<0xA6>", "<0x99>"],)  # a llama that is interrupted
    yield (["<0xE5>", "<0xAD>", "<0x97>", "<0xE5>", "<0xAD>"],)  # the last character lacks a byte
    yield (["<0xC5>", "<0xC5>", "<0xBC>", "<0xFF>"],)
    yield (["▁hello", "string", "ab"],)
    yield (["<0x", "<0xC5", "<0xC5>a", "a<0x41>", "<0xZZ>", "<0x+5>", "<0x4>"],)
    yield (["<0xc5>", "<0xC5>\n", "<0x4１>", " <0x41>", "<0X41>"],)  # none of them is a byte
    yield ([],)
    pieces = [
        "▁",
        "e",
        "▁it",
        "<0xC5>",
        "<0xBC>",
        "<0x80>",
        "<0xE2>",
        "<0x96>",
        "<0x81>",
        "<0xF0>",
        "<0x9F>",
    ]
    for _ in range(4):
        yield (chance.choices(pieces, k=16),)


@decode_bytes.reference
def text_of(pieces):
    return _decode(pieces)


def _strictly(data):
    "UTF-8 as text; each byte that is wrong becomes U+FFFD."
    text = ""
    while data:
        try:
            return text + data.decode()
        except UnicodeDecodeError as error:
            text, data = text + data[: error.start].decode() + "\ufffd", data[error.start + 1 :]
    return text


def _decode(
    pieces, decode=_strictly, number=lambda digits: int(digits, 16), space=" ", last=True, after="▁"
):
    "The text of the pieces; each switch breaks it at one place."
    text, data = "", b""
    for piece in pieces:
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            data += bytes([number(piece[3:5])])
        else:
            text, data = text + decode(data) + piece.replace("▁", space), b""
    return (text + decode(data) if last else text).replace("▁", after)


@decode_bytes.right
def byte_by_byte(pieces):
    text, data = [], bytearray()
    for piece in [*pieces, ""]:
        digits = piece[3:5]
        if piece == f"<0x{digits}>" and len(digits) == 2 and set(digits) <= set("0123456789ABCDEF"):
            data.append(int(digits, 16))
        else:
            text.append(_strictly(bytes(data)))
            text.append(piece.replace("▁", " "))
            data.clear()
    return "".join(text)


@decode_bytes.right
def with_surrogates(pieces):
    data = b""
    for piece in pieces:
        byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        data += bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
    # what is wrong becomes a surrogate, one for each byte, and each surrogate a sign
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode(errors="surrogateescape"))


@decode_bytes.invariant("a text in bytes alone comes back")
def a_text_in_bytes_alone_comes_back(seen):
    text = "Zażółć gęślą jaźń 🦙 ▁"
    return seen([f"<0x{byte:02X}>" for byte in text.encode()]).value == text


def _decode_if(is_byte):
    "The right answer with another idea of what a byte piece is."

    def answer(pieces):
        marked = [p if is_byte(p) else "\0" + p for p in pieces]
        text, data = "", b""
        for piece in [*marked, "\0"]:
            if piece.startswith("\0"):
                text, data = text + _strictly(data) + piece[1:].replace("▁", " "), b""
            else:
                data += bytes([int(piece[3:5], 16)])
        return text

    return answer


@decode_bytes.mistake("any piece that begins with <0x", hint=2)
def any_piece_that_begins_with_0x(pieces):
    "A piece is a byte if it is <0x, two hexadecimal digits, >, and nothing more."
    return _decode_if(lambda piece: piece.startswith("<0x"))(pieces)


@decode_bytes.mistake("small letters are digits, too", hint=2)
def small_letters_are_digits_too(pieces):
    "Byte pieces are written with capitals: <0xc5> is a text of six characters."
    return _decode_if(lambda piece: re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece))(pieces)


@decode_bytes.mistake("any piece of six characters", hint=2)
def any_piece_of_six_characters(pieces):
    "A piece is a byte if it is <0x, two hexadecimal digits, >; a word may have six letters, too."
    return _decode_if(lambda piece: len(piece) == 6)(pieces)


@decode_bytes.mistake("each byte alone", hint=1)
def each_byte_alone(pieces):
    "A byte of a longer character is no text by itself: collect them, and decode them together."
    return "".join(_decode([piece]) for piece in pieces)


@decode_bytes.mistake("bytes as Latin-1", hint=1)
def bytes_as_latin_1(pieces):
    "chr(byte) is right for ASCII only; the bytes are UTF-8."
    return _decode(pieces, decode=lambda data: data.decode("latin-1"), after="▁")


@decode_bytes.mistake("the bytes at the end are lost", hint=1)
def the_bytes_at_the_end_are_lost(pieces):
    "What was collected is written only when another piece comes; at the end none does."
    return _decode(pieces, last=False)


@decode_bytes.mistake("the number is read as decimal", hint=2)
def the_number_is_read_as_decimal(pieces):
    "The two digits are hexadecimal: int(piece[3:5], 16)."
    return _decode(pieces, number=int)


@decode_bytes.mistake("▁ stays", hint=2)
def stays(pieces):
    "▁ in a piece stands for a space."
    return _decode(pieces, space="▁")


@decode_bytes.mistake("▁ is replaced at the end", hint=2)
def is_replaced_at_the_end(pieces):
    """In the finished text ▁ may be the character itself, spelled in bytes; replace it in the
    pieces."""
    return _decode(pieces, after=" ")


@decode_bytes.mistake("one sign for a broken character", hint=3)
def one_sign_for_a_broken_character(pieces):
    "errors='replace' writes one U+FFFD for several bytes; one for each is asked for."
    return _decode(pieces, decode=lambda data: data.decode(errors="replace"))


@decode_bytes.mistake("wrong bytes are dropped", hint=3)
def wrong_bytes_are_dropped(pieces):
    "errors='ignore' loses that there was something: each wrong byte becomes U+FFFD."
    return _decode(pieces, decode=lambda data: data.decode(errors="ignore"))


@decode_bytes.mistake("wrong bytes end it", hint=3)
def wrong_bytes_end_it(pieces):
    "A model may write half a character; decoding must not raise UnicodeDecodeError."
    return _decode(pieces, decode=bytes.decode)


@decode_bytes.mistake("the first space is removed", hint=2)
def the_first_space_is_removed(pieces):
    "This model has no dummy prefix: a space at the beginning belongs to the text."
    return _decode(pieces).removeprefix(" ")
