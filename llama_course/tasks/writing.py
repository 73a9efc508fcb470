"Answers that a model writes: many texts at a time, each prompt read once for all its samples."

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_course.generation import KVCache, TextStream, end_ids, next_logits, sample_next
from llama_course.model import Llama
from llama_course.support.errors import UserError

TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class Write:
    "A request: go on from here."

    prompt: str
    stop: tuple[str, ...] = ()  # strings that end the text, and are not part of it
    max_tokens: int = 64
    samples: int = 1  # k of maj1@k and pass@k
    temperature: float = 0.0  # 0: greedy
    top_p: float | None = None


@dataclass(frozen=True)
class Draft:
    "A text that is to be written."

    request: Write
    ids: list[int]  # of the prompt; drafts with the very same list share one reading
    randomness: torch.Generator


def generator_for(*names: Any) -> torch.Generator:
    "Random numbers that depend on the names alone, and so not on what else is written at the time."
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def prompt_ids(
    model: Llama,
    tokenizer: Any,
    request: Write,
) -> tuple[list[int], int]:  # ids, and how many were cut off on the left
    "The prompt, so short that the answer fits behind it. Raises `UserError` where no prompt would."
    longest = model.config.max_seq_len
    ids, room = tokenizer.encode(request.prompt, bos=True), longest - request.max_tokens
    if room < 1:
        raise UserError(
            f"{request.max_tokens} new tokens leave no room for a prompt:"
            f" the model reads {longest}."
        )
    lost = max(0, len(ids) - room)
    return ids[lost:], lost


@torch.no_grad()
def _read_prompts(model: Llama, drafts: Sequence[Draft]) -> tuple[KVCache, Tensor]:
    "A cache that holds the prompts, with room for the answers; the logits after each, (B, V)."
    most = max(len(d.ids) for d in drafts) + max(d.request.max_tokens for d in drafts)
    cache = KVCache(model, len(drafts), min(most, model.config.max_seq_len))
    logits: list[Tensor] = []
    first: dict[int, int] = {}
    for row, draft in enumerate(drafts):
        same = first.setdefault(id(draft.ids), row)
        if same == row:
            ids = torch.tensor([draft.ids], device=cache.device)
            states = model.hidden(ids, cache=cache[row : row + 1])
            logits.append(model.output(states[0, -1]))
        else:
            cache.copy(same, row)
            logits.append(logits[same])
    if not all(one.isfinite().all() for one in logits):
        raise UserError("a logit is no finite number: the model's weights are damaged.")
    return cache, torch.stack(logits)


@torch.no_grad()
def _write_together(model: Llama, tokenizer: Any, drafts: Sequence[Draft]) -> list[str]:
    "The texts that follow the prompts, written together until all have ended."
    cache, logits = _read_prompts(model, drafts)
    stops = end_ids(tokenizer)
    streams = [TextStream(tokenizer, d.ids, d.request.stop) for d in drafts]
    texts, going = [""] * len(drafts), set(range(len(drafts)))
    for n in range(1, max(d.request.max_tokens for d in drafts) + 1):
        new = torch.cat(
            [
                sample_next(
                    one[None].cpu(),
                    d.request.temperature,
                    top_p=d.request.top_p,
                    generator=d.randomness,
                )
                for one, d in zip(logits, drafts)
            ]
        )
        for row in list(going):
            ended = int(new[row]) in stops
            if not ended:
                texts[row] += streams[row].push(int(new[row]))
            if ended or streams[row].stopped or n == drafts[row].request.max_tokens:
                going.discard(row)
        if not going:
            break
        for row in set(range(len(drafts))) - going:
            cache.lengths[row] = 0  # it has ended, and costs no more
        logits = next_logits(model, new.to(cache.device), cache)
    return [text + stream.end() for text, stream in zip(texts, streams)]


def write_texts(model: Llama, tokenizer: Any, drafts: Sequence[Draft]) -> list[str]:
    "The texts of the drafts, at most 16 at a time."
    parts = [drafts[i : i + TEXTS_AT_ONCE] for i in range(0, len(drafts), TEXTS_AT_ONCE)]
    return [text for part in parts for text in _write_together(model, tokenizer, part)]


def write_answers(
    model: Llama,
    tokenizer: Any,
    request: Write,
    seed: int = 0,
) -> list[str]:  # as many as the request has samples
    "The answers to one request."
    ids, _ = prompt_ids(model, tokenizer, request)
    drafts = [Draft(request, ids, generator_for(seed, i)) for i in range(request.samples)]
    return write_texts(model, tokenizer, drafts)
