"What the judge knows of `stream_bytes`. Spoilers ahead."

import codecs

import torch

from llama_course.classroom.exercise import Exercise

stream_bytes = Exercise(
    "stream_bytes",
    chapter="21_generation",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "Keep the bytes that do not yet make a character, and put the next chunk behind them.",
        "Bytes wait only as long as they may still become a character: b'\\xff' never will, "
        "and is shown as U+FFFD at once; so is b'\\xc3' when a letter follows it.",
        "codecs.getincrementaldecoder('utf-8')(errors='replace') has exactly this state. Its "
        "decode(b'', final=True) is the last piece.",
    ),
)


@stream_bytes.cases
def cases_of_stream_bytes(seed):
    text = "naïve ½ 日本 🦙!".encode()
    yield ([text[i : i + 1] for i in range(len(text))],)
    g = torch.Generator().manual_seed(seed)
    for size in (2, 3, 5):
        cuts = (
            (torch.randperm(len(text) - 1, generator=g)[: len(text) // size] + 1)
            .sort()
            .values.tolist()
        )
        yield ([text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])],)
    yield ([b"a\xf0\x9f", b"\xa6", b"", b"\x99b\xc3"],)
    yield ([b"ok\xff", b"\xc3", b"x", b"\xe6\x97", b"y", b"\xf0\x9f"],)
    yield ([b"\xef\xbf", b"\xbd", b"!"],)
    yield ([],)


@stream_bytes.reference
def truth_of_stream_bytes(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(chunk) for chunk in chunks] + [decoder.decode(b"", True)]


@stream_bytes.right
def with_an_incremental_decoder(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(chunk) for chunk in chunks]
    return [*pieces, decoder.decode(b"", final=True)]


@stream_bytes.right
def by_what_must_wait(chunks):
    def waits(rest):  # bytes at the end that a later one may complete
        for n in (3, 2, 1):
            tail = rest[-n:] if len(rest) >= n else b""
            try:
                tail.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0:
                    return n
        return 0

    rest, pieces = b"", []
    for chunk in chunks:
        rest += chunk
        n = len(rest) - waits(rest)
        pieces.append(rest[:n].decode(errors="replace"))
        rest = rest[n:]
    return [*pieces, rest.decode(errors="replace")]


@stream_bytes.invariant("the pieces together are the whole text, however it was cut")
def the_pieces_together_are_the_whole_text(seen):
    text = "½🦙日x".encode() * 3
    cut = lambda n: [text[i : i + n] for i in range(0, len(text), n)]
    return all("".join(seen(cut(n)).value) == text.decode() for n in (1, 2, 3, 7))


@stream_bytes.invariant("plain letters are never late")
def plain_letters_are_never_late(seen):
    return seen([b"a", b"b", b"c"]).value == ["a", "b", "c", ""]


def _by_text(chunks, ready=lambda text: not text.endswith("\ufffd"), errors="replace", end=True):
    "All bytes decoded again after each chunk."
    raw, sent, pieces = b"", 0, []
    for chunk in chunks:
        raw += chunk
        text = raw.decode(errors=errors)
        new = text[sent:] if ready(text) else ""
        sent += len(new)
        pieces.append(new)
    return pieces + [raw.decode(errors=errors)[sent:] if end else ""]


@stream_bytes.mistake("each chunk for itself", hint=1)
def each_chunk_for_itself(chunks):
    "A character that is cut between two chunks becomes U+FFFD twice: keep what is incomplete."
    return [chunk.decode(errors="replace") for chunk in chunks] + [""]


@stream_bytes.mistake("half characters are dropped", hint=1)
def half_characters_are_dropped(chunks):
    "errors='ignore' swallows the bytes that should wait."
    return [chunk.decode(errors="ignore") for chunk in chunks] + [""]


@stream_bytes.mistake("the rest at the end is lost", hint=3)
def the_rest_at_the_end_is_lost(chunks):
    """When the stream ends in the middle of a character, that is shown: one U+FFFD as the last
    piece."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(chunk) for chunk in chunks] + [""]


@stream_bytes.mistake("there is no last piece", hint=3)
def there_is_no_last_piece(chunks):
    "One piece for each chunk, and one more for the end, which is usually empty."
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(chunk) for chunk in chunks]


@stream_bytes.mistake("what can never be a character waits as well", hint=2)
def what_can_never_be_a_character_waits_as_well(chunks):
    """b'\\xff' cannot begin a character; holding it back, or the letters before a half one,
    makes text late."""
    return _by_text(chunks)


@stream_bytes.mistake("bad bytes are an error", hint=2)
def bad_bytes_are_an_error(chunks):
    "A model may write any bytes: what is no UTF-8 becomes U+FFFD, and nothing is raised."
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks] + [decoder.decode(b"", True)]


@stream_bytes.mistake("the whole text again with each chunk", hint=1)
def the_whole_text_again_with_each_chunk(chunks):
    "Only what is new belongs into a piece."
    raw, pieces = b"", []
    for chunk in chunks:
        raw += chunk
        pieces.append(raw.decode(errors="replace"))
    return pieces + [""]


@stream_bytes.mistake("everything at the end", hint=1)
def everything_at_the_end(chunks):
    "The text is right and comes when the reader has gone: a piece for each chunk."
    return ["" for _ in chunks] + [b"".join(chunks).decode(errors="replace")]
