"The log-probabilities of what is written, in OpenAI's two shapes."

from typing import Any, NamedTuple

from torch import Tensor

CONTEXT = 8  # tokens before a token that are decoded along, for its text


class Told(NamedTuple):
    "What is told of one token."

    id: int
    logprob: float
    likeliest: list[tuple[int, float]]  # ids and log-probabilities, the likeliest first


class Recorder:
    "Notes the probabilities while a job is written, in the batcher's thread."

    def __init__(self, count: int) -> None:  # of the likeliest tokens that are told
        self.count = count
        self._logprobs: Tensor | None = None

    def look(self, logits: Tensor) -> None:  # (V,), before the next id is drawn
        "The model's own probabilities: before temperature, top_k, top_p and min_p."
        self._logprobs = logits.float().log_softmax(-1)

    def told(self, i: int) -> Told:
        "What is told of the id that was drawn."
        assert self._logprobs is not None
        best = self._logprobs.topk(min(self.count, len(self._logprobs)))
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Told(i, self._logprobs[i].item(), pairs)


class TokenTexts:
    "The text of each token of one answer, in the context of those before it."

    def __init__(self, tokenizer: Any, prompt: list[int], offset: int = 0) -> None:
        self.tokenizer, self.before, self.offset = tokenizer, list(prompt[-CONTEXT:]), offset

    def _text(self, i: int) -> str:
        known = len(self.tokenizer.decode(self.before))
        return self.tokenizer.decode([*self.before, i])[known:]

    def _pass(self, i: int) -> None:
        self.before = [*self.before, i][-CONTEXT:]

    def chat(self, tokens: list[Told]) -> dict[str, Any]:
        "The tokens in the shape of /v1/chat/completions."
        content = []
        for token in tokens:
            likeliest = [self._entry(i, logprob) for i, logprob in token.likeliest]
            content.append(self._entry(token.id, token.logprob) | {"top_logprobs": likeliest})
            self._pass(token.id)
        return {"content": content, "refusal": None}

    def _entry(self, i: int, logprob: float) -> dict[str, Any]:
        text = self._text(i)
        # a part of a character has no text, and its bytes are not known
        whole = list(text.encode()) if "\ufffd" not in text else None
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": whole}

    def plain(self, tokens: list[Told]) -> dict[str, list]:
        "The tokens in the shape of /v1/completions."
        shape: dict[str, list] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            text = self._text(token.id)
            likeliest = {self._text(i): logprob for i, logprob in reversed(token.likeliest)}
            values = text, token.logprob, likeliest, self.offset
            for column, value in zip(shape.values(), values, strict=True):
                column.append(value)
            self.offset += len(text)
            self._pass(token.id)
        return shape
