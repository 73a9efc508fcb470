"""Encoding, side by side: ours, sentencepiece, tokenizers, and minbpe's algorithm.

    python benchmarks/tokenizer.py [--rounds 9] [--megabytes 1] [--vocab-size 4096] [--json]

One vocabulary, trained on most of Shakespeare, and plays and code that it has not seen. All
contestants must return the same ids, or there is no table. `sentencepiece` is C++. `tokenizers`
is Hugging Face's in Rust, loaded with the same pieces and merges. minbpe's algorithm looks
through the whole row for the best pair, merges it everywhere, and begins again; on a row of a
million characters it would not end, so it gets the text line by line. So do, in a second row of
the table, all others.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import sentencepiece as spm
import typer
from _shared import in_turns, machine, markdown, ratio

from llama_course.bpe import BPE, BYTE, NORMAL
from llama_course.data import sample, shakespeare, split, standard_library
from llama_course.tokenizer import META, Tokenizer

COLD = "ours, nothing remembered"


def rust(model: BPE):
    "`tokenizers` with our pieces; its merges are all ways to make a piece, by score."
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, normalizers

    ids = {piece.text: i for i, piece in enumerate(model.file.pieces)}
    merges = []
    for text in (piece.text for piece in model.file.pieces if piece.kind == NORMAL):
        ways = [
            (text[:cut], text[cut:])
            for cut in range(1, len(text))
            if {text[:cut], text[cut:]} <= ids.keys()
        ]
        merges += sorted(ways, key=lambda way: (ids[way[0]], ids[way[1]]))
    tokenizer = Rust(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", META)
    return tokenizer


def repeated_merges(model: BPE):
    "minbpe's algorithm: find the pair that was learned first, merge it everywhere, begin again."
    pieces = model.file.pieces
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.kind == NORMAL}
    merged = {
        (ids[text[:cut]], ids[text[cut:]]): i
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    }
    in_bytes = [
        next(i for i, p in enumerate(pieces) if p.kind == BYTE and p.text == f"<0x{b:02X}>")
        for b in range(256)
    ]

    def encode(text):
        row = []
        for character in text.replace(" ", META):
            row += (
                [ids[character]]
                if character in ids
                else [in_bytes[byte] for byte in character.encode()]
            )
        while known := {pair for pair in zip(row, row[1:]) if pair in merged}:
            best, new, at = min(known, key=merged.get), [], 0
            while at < len(row):
                if tuple(row[at : at + 2]) == best:
                    new.append(merged[best])
                    at += 2
                else:
                    new.append(row[at])
                    at += 1
            row = new
        return row

    return encode


def contestants(path):
    "name -> a function from text to ids."
    ours, theirs = BPE.load(path), spm.SentencePieceProcessor(model_file=str(path))
    tokenizer = rust(ours)
    return {
        "sentencepiece (C++)": theirs.encode,
        "tokenizers (Rust)": lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        COLD: BPE.load(path).encode,
        "ours, words remembered": ours.encode,
        "minbpe's algorithm": repeated_merges(ours),
    }


def by_line(encode):
    "The same encoder, given one line at a time."
    return lambda text: [i for line in text.splitlines(keepends=True) for i in encode(line)]


def compare(encoders, text):
    "Ends the program if one contestant returns other ids."
    first = next(iter(encoders.values()))(text)
    for name, encode in encoders.items():
        if encode(text) != first:
            sys.exit(f"{name} returns other ids than {next(iter(encoders))}: nothing to compare.")


def main(
    rounds: int = 9,
    megabytes: float = 1.0,
    vocab_size: int = 4096,
    as_json: bool = typer.Option(False, "--json", help="one object on standard output"),
):
    say = lambda text: print(text, file=sys.stderr, flush=True)
    plays, unseen = split(shakespeare())
    half = int(megabytes * 5e5)
    text = "".join(d.text for d in unseen)[:half] + "".join(
        d.text for d in sample(standard_library(), half)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        Tokenizer.train([d.text for d in plays], vocab_size, path)
        whole = contestants(path)
        lines = contestants(path)
    whole.pop("minbpe's algorithm")
    say("do all return the same ids?")
    compare(whole, text)
    compare({name: by_line(encode) for name, encode in lines.items()}, text)
    say(f"{rounds} rounds in turns")
    actions = {("whole", name): lambda e=encode: e(text) for name, encode in whole.items()}
    actions |= {
        ("lines", name): lambda e=by_line(encode): e(text) for name, encode in lines.items()
    }
    for way, encoders in (("whole", whole), ("lines", lines)):  # this one forgets before each round
        actions[way, COLD] = lambda run=actions[way, COLD], e=encoders[COLD]: (
            e.__self__.memory.clear(),
            run(),
        )
    seconds = in_turns(actions, rounds)
    size, table = len(text.encode()) / 1e6, []
    for (way, name), own in seconds.items():
        table.append(
            {
                "encoder": name,
                "text": "in one row" if way == "whole" else "line by line",
                "mb_per_second": size / statistics.median(own),
                "speed_against_sentencepiece": ratio(seconds[way, "sentencepiece (C++)"], own),
            }
        )
    result = {
        "machine": machine(),
        "megabytes": size,
        "vocab_size": vocab_size,
        "rounds": rounds,
        "contestants": table,
    }
    print(json.dumps(result, indent=1) if as_json else in_words(result))


def in_words(result):
    rows = [
        [
            f"{r['encoder']}, {r['text']}",
            f"{r['mb_per_second']:.2f}",
            f"{r['speed_against_sentencepiece']:.2f}",
        ]
        for r in result["contestants"]
    ]
    return "\n\n".join(
        [
            f"{result['machine']}\n{result['megabytes']:.1f} MB of unseen plays and code,"
            f" {result['vocab_size']:,} pieces,"
            f" {result['rounds']} rounds; all return the same ids",
            markdown(["encoder", "MB/s", "speed against sentencepiece"], rows),
        ]
    )


if __name__ == "__main__":
    typer.run(main)
