"Text for a run: documents of one's own files or of a prepared folder, and what is held out."

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from llama_course.corpus.build import prepared
from llama_course.corpus.stages import cleaned
from llama_course.data import Document, sample, split
from llama_course.support.errors import UserError

HELD_OUT_SHARE = 0.1  # of the documents: three plays, and some 180 files of Python
Sources = dict[str, Callable[[], Iterable[Document]]]  # name -> a function that gives the documents


def pieces(text: str, size: int) -> Iterator[str]:
    "The text in parts of about that size, each ending with a line."
    start = 0
    while start < len(text):
        end = text.find("\n", start + size) + 1 or len(text)
        yield text[start:end]
        start = end


def own_texts(
    paths: Iterable[Path | str],  # text files, or folders of them
    size: int = 30_000,  # characters, roughly, of one document
) -> Iterator[Document]:
    "The documents of your own text. In a folder, what is not text is left out. Raises `UserError`."
    for path in map(Path, paths):
        inside = path.is_dir()
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if inside else [path]:
            name = file.relative_to(path).as_posix() if inside else file.name
            try:
                text = file.read_text(encoding="utf-8-sig")
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}.") from None
            except UnicodeDecodeError:
                if inside:
                    continue  # a picture, an archive
                raise UserError(
                    f"{file} is not text in UTF-8: convert it, or leave it out."
                ) from None
            for i, part in enumerate(pieces(text, size)):
                yield Document("text", f"{name}#{i}", part)


def divide(
    source: str, documents: Iterable[Document]
) -> tuple[list[Document], list[Document]]:  # to train on, held out
    "`split`, with a document or more on either side. Raises `UserError` where there is too little."
    train, held_out = split(documents, HELD_OUT_SHARE)
    if not held_out:
        held_out = sample(train, 1)  # the first in the order of their hashes
    train = [d for d in train if d not in held_out]
    if train:
        return train, held_out
    raise UserError(
        f"{source}: there is too little text to learn from one part and to be judged by another."
    )


def even_sample(
    texts: dict[str, list[Document]],  # source -> its documents
    proportions: dict[str, float],  # source -> share
) -> list[Document]:
    "As much text as there is in these proportions."
    size = {source: sum(len(d.text.encode()) for d in texts[source]) for source in texts}
    total = min(size[source] / share for source, share in proportions.items() if share)
    return [
        d for source, share in proportions.items() for d in sample(texts[source], share * total)
    ]


def prepared_data(paths: Sequence) -> dict | None:
    "What data.json says, if the text is such a folder. `UserError`: other text is beside it."
    found = [about for path in paths if (about := prepared(path))]
    if found and len(paths) > 1:
        raise UserError("give one folder made by `llama-course data`, and no other text.")
    return found[0] if found else None


def prepared_sources(folder: Path, about: dict) -> Sources:
    "The cleaned documents of a folder that `llama-course data` wrote."
    return {name: partial(cleaned, folder / "clean" / name, name) for name in about["sources"]}
