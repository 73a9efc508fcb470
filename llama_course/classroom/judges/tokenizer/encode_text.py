"What the judge knows of `encode_text`. Spoilers ahead."

import random

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.tokenizer.common import _found
from llama_course.classroom.judges.tokenizer.linear_merge import in_a_chain_of_cells

LEARNED = [
    "▁t",
    "he",
    "▁the",
    "in",
    "▁a",
    "re",
    "an",
    "</",
    "▁in",
    "▁an",
    "th",
    "er",
    "</s",
    "▁re",
    "there",
    "ing",
]


VOCABULARY = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *LEARNED,
    *("<0", "<0x", "<0xF", "<0xFF"),
    *"▁ethianrsgod<>/.0123456789",
]


def small_vocabulary() -> dict:
    "Piece -> id; of two merges the one with the smaller id comes first."
    return {piece: i for i, piece in enumerate(VOCABULARY)}


encode_text = Exercise(
    "encode_text",
    chapter="06_tokenizer",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "There are four mistakes. Encode ' the', 'there', 'ż' and '</s>', and look at the "
        "pieces of the ids.",
        "When do spaces become ▁? And which of the pairs is merged first: the id tells the "
        "order in which pieces were learned.",
        "What is no piece becomes its bytes in UTF-8, and <0x00> has the id 3. Control tokens"
        " and byte pieces have ids, but no text may become one by merging: only ids from 259 "
        "on.",
    ),
)


@encode_text.cases
def cases_of_encode_text(seed):
    chance, parts = random.Random(seed), [*"then ri gasd", " the", "there", "</s>", "ż", "字", "7"]
    texts = [
        " the the",
        "there in the ring",
        " an</s>",
        "ż",
        "🦙 an",
        "12 the",
        "a\n",
        "▁the",
        "",
        "</s>the",
        "<0xFF> the",  # somebody types the name of a byte
    ]
    texts += ["".join(chance.choices(parts, k=10)) for _ in range(4)]
    for text in texts:
        yield text, small_vocabulary()


def _encode(text, vocabulary, first=259, spaces="before", choose=min, unknown="utf-8", offset=3):
    "The ids of a text; each switch breaks it at one place."
    pieces = list(text.replace(" ", "▁") if spaces == "before" else text)
    table = {piece: i for piece, i in vocabulary.items() if i >= first}
    sign = -1 if choose is max else 1  # of equals the leftmost
    while found := [(rank, sign * i) for rank, i in _found(pieces, table)]:
        i = sign * choose(found)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = []
    for piece in pieces if spaces == "before" else [piece.replace(" ", "▁") for piece in pieces]:
        if piece in table:
            ids.append(table[piece])
        else:
            ids += [0] if unknown == "unk" else [offset + byte for byte in piece.encode(unknown)]
    return ids


@encode_text.reference
def truth_of_encode_text(text, vocabulary):
    return _encode(text, vocabulary)


@encode_text.right
def with_a_chain_of_cells(text, vocabulary):
    rank = {piece: i for piece, i in vocabulary.items() if i >= 259}
    ids = []
    for piece in in_a_chain_of_cells(text.replace(" ", "▁"), rank):
        ids += (
            [rank[piece]]
            if piece in rank
            else [vocabulary[f"<0x{byte:02X}>"] for byte in piece.encode()]
        )
    return ids


@encode_text.right
def with_ids(text, vocabulary):
    pieces = ["▁" if character == " " else character for character in text]
    for _ in range(len(text)):
        ids = [vocabulary.get(a + b, 0) for a, b in zip(pieces, pieces[1:])]
        allowed = [i for i in ids if i > 258]
        if not allowed:
            break
        place = ids.index(min(allowed))
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    spelled = [
        [p] if vocabulary.get(p, 0) > 258 else [f"<0x{b:02X}>" for b in p.encode()] for p in pieces
    ]
    return [vocabulary[piece] for row in spelled for piece in row]


@encode_text.invariant("no text becomes a control token")
def no_text_becomes_a_control_token(seen):
    texts = ("</s>", "<s>", "<unk>", "a</s>b", "<0x41>", "字")
    return not any(i < 3 for text in texts for i in seen(text, small_vocabulary()).value)


@encode_text.mistake("the encoder as it was given", hint=1)
def the_encoder_as_it_was_given(text, vocabulary):
    """Spaces become ▁ too late, the worst pair is first, control tokens count as pieces, bytes
    are not used."""
    return _encode(text, vocabulary, first=0, spaces="after", choose=max, unknown="unk")


@encode_text.mistake("spaces become ▁ after the merges", hint=2)
def spaces_become_after_the_merges(text, vocabulary):
    """Pieces such as ▁the are never found, because while pairs are merged there is no ▁ in the
    text."""
    return _encode(text, vocabulary, spaces="after")


@encode_text.mistake("the worst pair first", hint=2)
def the_worst_pair_first_in_encode_text(text, vocabulary):
    "The pair with the largest id was learned last; the smallest comes first."
    return _encode(text, vocabulary, choose=max)


@encode_text.mistake("unknown characters become <unk>", hint=3)
def unknown_characters_become_unk(text, vocabulary):
    "The model has byte fallback: what is no piece is written as its bytes, and nothing is lost."
    return _encode(text, vocabulary, unknown="unk")


@encode_text.mistake("a text can become a control token", hint=3)
def a_text_can_become_a_control_token(text, vocabulary):
    "Who types </s> would end the text: control tokens must not be found by merging."
    return _encode(text, vocabulary, first=0)


@encode_text.mistake("ids of bytes without the three before them", hint=3)
def ids_of_bytes_without_the_three_before_them(text, vocabulary):
    "The byte 0 has the id 3, after <unk>, <s> and </s>."
    return _encode(text, vocabulary, offset=0)


@encode_text.mistake("UTF-16 instead of UTF-8", hint=3)
def utf_16_instead_of_utf_8(text, vocabulary):
    "Byte pieces are the bytes of UTF-8."
    return _encode(text, vocabulary, unknown="utf-16-le")


@encode_text.mistake("a space in front of every text", hint=2)
def a_space_in_front_of_every_text(text, vocabulary):
    "That is the dummy prefix, which this model does not have."
    return _encode(" " + text if text else "", vocabulary)


@encode_text.mistake("the first pair that is found", hint=2)
def the_first_pair_that_is_found(text, vocabulary):
    "The leftmost pair is merged; it must be the one with the smallest id."
    return _encode(text, vocabulary, choose=lambda found: found[0])
