"The options of a request, checked where they are named, and the jobs that they ask for."

from dataclasses import dataclass
from typing import Any

from llama_course.generation import check_prompt
from llama_course.server.conversation import chat_prompt
from llama_course.serving import Batcher, Job
from llama_course.support.errors import UserError
from llama_course.support.options import OptionError, from_dict, option, options

SMALLEST = 1e-6  # a share below it is taken for this; a temperature below it for 0


class ApiError(Exception):
    "An answer with a status of 400 or more, in OpenAI's shape."

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        kind = {429: "rate_limit_error", 503: "server_error"}.get(status, "invalid_request_error")
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@options
class Sampling:
    "How each next token is drawn: the same bounds on the command line and over HTTP."

    temperature: float = option(
        1.0, "0: always the likeliest; 1: as the model believes.", ge=0, le=2
    )
    top_p: float | None = option(
        None, "Draw from the fewest tokens that hold this much probability.", ge=0, le=1
    )
    top_k: int | None = option(None, "Draw from the k likeliest tokens.", ge=1)
    min_p: float | None = option(
        None,
        "Draw from tokens at least this many times as likely as the likeliest.",
        ge=0,
        le=1,
    )
    seed: int | None = option(None, "The same seed gives the same text.", ge=-(2**63), le=2**63 - 1)

    def settings(self) -> dict[str, Any]:
        "The arguments of `sample_next`; numbers too small for float32 become what they mean."
        shares = {"top_p": self.top_p, "min_p": self.min_p}
        return {
            "temperature": self.temperature if self.temperature >= SMALLEST else 0.0,
            "top_k": self.top_k,
            **{name: p if p is None else max(p, SMALLEST) for name, p in shares.items()},
        }


@options
class RequestOptions(Sampling):
    "The options of a request to /v1/chat/completions or /v1/completions."

    max_tokens: int | None = option(None, "Tokens of an answer, at most.", ge=1)
    max_completion_tokens: int | None = option(None, "The same, by its newer name.", ge=1)
    n: int = option(1, "Answers to each prompt.", ge=1, le=8)
    stop: str | tuple[str, ...] | None = option(None, "Texts that end an answer.")
    stream: bool = option(False, "Send the answer as it is written.")
    stream_options: dict[str, Any] = option(
        dict, "include_usage: end a stream with the number of tokens."
    )
    user: str | None = option(None, "Who asks; of no use here.")

    def stops(self) -> list[str]:
        "The texts that end an answer. Raises `OptionError`."
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if len(stops) > 4 or not all(stops):
            raise OptionError("stop", "must be one to four texts.")
        return stops


UNSUPPORTED: dict[
    str, tuple[Any, ...]
] = {  # fields that we cannot fill, and the values that ask for nothing
    "logprobs": (False, 0),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}


@dataclass(frozen=True)
class Request:
    "A request whose options are right."

    options: RequestOptions
    is_chat: bool
    content: Any  # the messages, or the prompt or prompts

    @property
    def counts_tokens(self) -> bool:
        "Whether a stream shall end with the number of tokens."
        return bool(self.options.stream_options.get("include_usage"))

    def encoded(self, tokenizer: Any) -> tuple[list[list[int]], list[str]]:
        "The ids of the prompts, and the texts that end the answers. Raises `ApiError`."
        try:
            stops = self.options.stops()
            if not self.is_chat:
                return _prompts(self.content, tokenizer), stops
            ids, more = chat_prompt(tokenizer, self.content)
            return [ids], stops + more
        except OptionError as error:
            raise ApiError(str(error), error.name) from None
        except UserError as error:
            raise ApiError(str(error), "messages" if self.is_chat else "prompt") from None


def read_request(
    body: Any,  # parsed JSON
    is_chat: bool,  # whether it must hold messages, or a prompt
    model_name: str,
) -> Request:
    "The request; fields that are null count as left out. Raises `ApiError`."
    if not isinstance(body, dict):
        raise ApiError("the request must be a JSON object.")
    body = {key: value for key, value in body.items() if value is not None}
    required = "messages" if is_chat else "prompt"
    for key in ("model", required):
        if key not in body:
            raise ApiError(f"the field {key} is missing.", key)
    if (asked := body.pop("model")) != model_name:
        raise ApiError(
            f"there is no model {asked!r}: this is {model_name}.",
            "model",
            404,
            "model_not_found",
        )
    content = body.pop(required)
    for key, neutral in UNSUPPORTED.items():
        if body.pop(key, neutral[0]) not in neutral:
            raise ApiError(f"{key} is not supported.", key)
    try:
        return Request(from_dict(RequestOptions, body), is_chat, content)
    except OptionError as error:
        raise ApiError(str(error), error.name) from None


def _prompts(given: Any, tokenizer: Any) -> list[list[int]]:
    "The ids of one to eight prompts, each a text or a list of ids."
    is_ids = isinstance(given, list) and given and all(type(i) is int for i in given)
    prompts = [given] if isinstance(given, str) or is_ids else given
    if not isinstance(prompts, list) or not 0 < len(prompts) <= 8:
        raise UserError("prompt must be 1 to 8 texts.")
    return [tokenizer.encode(p, bos=True) if isinstance(p, str) else p for p in prompts]


def make_jobs(
    request: Request,
    prompts: list[list[int]],
    batcher: Batcher,
    stops: frozenset[int],  # what ends a text
) -> list[Job]:
    "One job for each prompt and answer. Raises `ApiError` for a prompt that the model cannot read."
    chosen = request.options
    wanted = chosen.max_completion_tokens or chosen.max_tokens
    field = "messages" if request.is_chat else "prompt"
    jobs = []
    for prompt in prompts:
        try:
            check_prompt(prompt, batcher.model.config)
        except UserError as error:
            if not isinstance(prompt, list) or len(prompt) <= batcher.max_len:
                raise ApiError(str(error), field) from None
        left = batcher.max_len - len(prompt)
        if left < (wanted or 1):
            raise ApiError(
                f"the prompt has {len(prompt)} tokens and {wanted or 1} were asked for; together at"
                f" most {batcher.max_len} fit.",
                field,
                code="context_length_exceeded",
            )
        for i in range(chosen.n):
            seed = None if chosen.seed is None else (chosen.seed + i) % 2**63
            jobs.append(Job(prompt, wanted or left, chosen.settings(), seed, stops))
    return jobs
