"How answers are written: OpenAI's objects, whole or as a stream of server-sent events."

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from llama_course.serving import Job

AnswerPiece = tuple[
    int, str, str
]  # index of the choice, text, why the choice ended ("" while it goes on)


class Answer:
    "The objects of one answer, which share an id: `whole`, and `chunk` for a piece of a stream."

    def __init__(
        self,
        jobs: list[Job],
        prompts: list[list[int]],
        is_chat: bool,
        model_name: str,
    ) -> None:
        self.jobs, self.is_chat = jobs, is_chat
        self.prompt_tokens = sum(map(len, prompts))
        self.kind = "chat.completion" if is_chat else "text_completion"
        mark = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.about = {"id": mark, "created": int(time.time()), "model": model_name}

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        "The answer that is not streamed."
        choices = []
        for n, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            content: dict[str, Any] = {"text": text}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": n, **content, "logprobs": None, "finish_reason": reason})
        return self.about | {
            "object": self.kind,
            "choices": choices,
            "usage": self.usage(),
        }

    def chunk(self, n: int, text: str, reason: str = "", role: bool = False) -> dict[str, Any]:
        "One piece of choice n."
        content: dict[str, Any] = {"text": text}
        if self.is_chat:
            delta = {"role": "assistant"} if role else {}
            content = {"delta": delta | ({"content": text} if text or role else {})}
        choice = {
            "index": n,
            **content,
            "logprobs": None,
            "finish_reason": reason or None,
        }
        return self.about | {
            "object": self.kind + (".chunk" if self.is_chat else ""),
            "choices": [choice],
        }

    def usage(self) -> dict[str, int]:
        "How many tokens were read, and written so far."
        written = sum(len(job.ids) for job in self.jobs)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def events(
        self,
        first: AnswerPiece,
        others: AsyncGenerator[AnswerPiece, None],
        with_usage: bool,  # the number of tokens, in an event before the last
    ) -> AsyncIterator[str]:
        "The stream: roles, pieces, reasons, and the end."
        try:
            if self.is_chat:
                for n in range(len(self.jobs)):
                    yield _event(self.chunk(n, "", role=True))
            yield _event(self.chunk(*first))
            async for piece in others:
                yield _event(self.chunk(*piece))
            if with_usage:
                yield _event(self.chunk(0, "") | {"choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        finally:
            await others.aclose()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
