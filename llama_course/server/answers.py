"How answers are written: OpenAI's objects, whole or as a stream of server-sent events."

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

from llama_course.server.logprobs import TokenTexts, Told
from llama_course.server.requests import ApiError
from llama_course.serving import Job


class Piece(NamedTuple):
    "A part of an answer."

    choice: int
    text: str
    reason: str = ""  # why the choice ended; empty while it goes on
    tokens: tuple[Told, ...] = ()  # those of the text, where their probabilities are asked for


class Answer:
    "The objects of one answer, which share an id: `whole`, and `chunk` for a piece of a stream."

    def __init__(
        self,
        jobs: list[Job],
        prompts: list[list[int]],
        is_chat: bool,
        model_name: str,
        token_texts: list[TokenTexts] | None = None,  # of each job, where probabilities are told
        with_usage: bool = False,  # whether a stream ends with the number of tokens
    ) -> None:
        self.jobs, self.is_chat, self.token_texts = jobs, is_chat, token_texts
        self.prompt_tokens, self.with_usage = sum(map(len, prompts)), with_usage
        self.kind = "chat.completion" if is_chat else "text_completion"
        mark = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.about = {"id": mark, "created": int(time.time()), "model": model_name}

    async def whole(self, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
        "The answer that is not streamed. Raises `ApiError`."
        texts, reasons = [""] * len(self.jobs), [""] * len(self.jobs)
        tokens: list[list[Told]] = [[] for _ in self.jobs]
        async for piece in pieces:
            n = piece.choice
            texts[n], reasons[n] = texts[n] + piece.text, piece.reason
            tokens[n].extend(piece.tokens)
        choices = []
        for n, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            content: dict[str, Any] = {"text": text}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            content |= {"logprobs": self._logprobs(n, tokens[n]), "finish_reason": reason}
            choices.append({"index": n, **content})
        return self.about | {"object": self.kind, "choices": choices, "usage": self.usage()}

    def chunk(self, piece: Piece, role: bool = False) -> dict[str, Any]:
        "One piece of a choice, as a stream has it."
        content: dict[str, Any] = {"text": piece.text}
        if self.is_chat:
            delta = {"role": "assistant"} if role else {}
            content = {"delta": delta | ({"content": piece.text} if piece.text or role else {})}
        logprobs = self._logprobs(piece.choice, list(piece.tokens)) if piece.tokens else None
        content |= {"logprobs": logprobs, "finish_reason": piece.reason or None}
        usage = {"usage": None} if self.with_usage else {}
        return self._event([{"index": piece.choice, **content}]) | usage

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = self.kind + (".chunk" if self.is_chat else "")
        return self.about | {"object": kind, "choices": choices}

    def _logprobs(self, n: int, tokens: list[Told]) -> dict[str, Any] | None:
        if self.token_texts is None:
            return None
        return (self.token_texts[n].chat if self.is_chat else self.token_texts[n].plain)(tokens)

    def usage(self) -> dict[str, int]:
        "How many tokens were read, and written so far."
        written = sum(len(job.ids) for job in self.jobs)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def events(self, first: Piece, others: AsyncGenerator[Piece, None]) -> AsyncIterator[str]:
        "The stream: roles, pieces, reasons, and the end; or what went wrong, and the end."
        try:
            if self.is_chat:
                for n in range(len(self.jobs)):
                    yield _line(self.chunk(Piece(n, ""), role=True))
            yield _line(self.chunk(first))
            async for piece in others:
                yield _line(self.chunk(piece))
            if self.with_usage:
                yield _line(self._event([]) | {"usage": self.usage()})
        except ApiError as error:
            yield _line(error.body)
        finally:
            await others.aclose()
        yield "data: [DONE]\n\n"


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
