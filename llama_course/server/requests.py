"The options of a request, checked where they are named, and the jobs that they ask for."

from dataclasses import dataclass
from typing import Any

from llama_course.generation import SMALLEST, check_prompt
from llama_course.server.conversation import chat_prompt
from llama_course.serving import Batcher, Job
from llama_course.support.errors import UserError
from llama_course.support.options import OptionError, from_dict, option, options

MOST_PROMPTS = 8  # of a request
MESSAGE_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class ApiError(Exception):
    "An answer with a status of 400 or more, in OpenAI's shape."

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(status, "invalid_request_error")
        self.status, self.headers = status, headers or {}
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
    "The options that both kinds of request have."

    max_tokens: int | None = option(None, "Tokens of an answer, at most.", ge=0)
    n: int = option(1, "Answers to each prompt.", ge=1, le=8)
    stop: str | tuple[str, ...] | None = option(None, "Texts that end an answer.")
    stream: bool = option(False, "Send the answer as it is written.")
    stream_options: dict[str, Any] = option(
        dict, "include_usage: end a stream with the number of tokens."
    )

    @property
    def most(self) -> int | None:
        "Tokens of an answer, at most; None: as many as fit. Raises `OptionError`."
        if self.max_tokens == 0:
            raise OptionError("max_tokens", "must be 1 or more, not 0.")
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        "How many likely tokens are told for each that is written; None: no probability at all."
        return None

    def stops(self) -> list[str]:
        "The texts that end an answer. Raises `OptionError`."
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if len(stops) > 4 or not all(stops):
            raise OptionError("stop", "must be one to four texts.")
        return stops


@options
class ChatOptions(RequestOptions):
    "The options of a request to /v1/chat/completions."

    max_completion_tokens: int | None = option(
        None, "Tokens of an answer, at most; before max_tokens.", ge=1
    )
    logprobs: bool = option(False, "Tell the log-probability of each token.")
    top_logprobs: int | None = option(
        None, "Tell those of so many likeliest tokens, too.", ge=0, le=20
    )

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or super().most

    @property
    def alternatives(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise OptionError("top_logprobs", "needs logprobs: true.")
        return (self.top_logprobs or 0) if self.logprobs else None


@options
class TextOptions(RequestOptions):
    "The options of a request to /v1/completions."

    echo: bool = option(False, "Begin the answer with the prompt.")
    logprobs: int | None = option(
        None, "Tell the log-probability of each token, and of so many likeliest.", ge=0, le=5
    )

    @property
    def most(self) -> int | None:
        return 0 if self.echo and self.max_tokens == 0 else super().most

    @property
    def alternatives(self) -> int | None:
        if self.echo and self.logprobs is not None:
            raise OptionError("logprobs", "are not told together with echo.")
        return self.logprobs


# What clients send by themselves, or what says who asks: of no use here, and no harm.
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # what cannot be done: the values that ask for nothing
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}


@dataclass(frozen=True)
class Request:
    "A request whose options are right."

    options: ChatOptions | TextOptions
    is_chat: bool
    content: Any  # the messages, or the prompt or prompts

    @property
    def counts_tokens(self) -> bool:
        "Whether a stream shall end with the number of tokens."
        return bool(self.options.stream_options.get("include_usage"))

    @property
    def echoes(self) -> bool:
        "Whether the answers begin with their prompts."
        return isinstance(self.options, TextOptions) and self.options.echo

    def encoded(self, tokenizer: Any) -> tuple[list[list[int]], list[str]]:
        "The ids of the prompts, and the texts that end the answers. Raises `ApiError`."
        field = "messages" if self.is_chat else "prompt"
        try:
            stops = self.options.stops()
            if not self.is_chat:
                return _prompts(self.content, tokenizer), stops
            ids, more = chat_prompt(tokenizer, _messages(self.content))
            return [ids], stops + more
        except OptionError as error:
            raise ApiError(str(error), error.name) from None
        except UserError as error:
            raise ApiError(str(error), field) from None


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
        raise no_model(asked, model_name)
    content = body.pop(required)
    for key in IGNORED:
        body.pop(key, None)
    for key, neutral in UNSUPPORTED.items():
        if key in body and not any(_same(body[key], value) for value in neutral):
            raise ApiError(f"{key} is not supported.", key)
        body.pop(key, None)
    try:
        kind: type[ChatOptions] | type[TextOptions] = ChatOptions if is_chat else TextOptions
        chosen: ChatOptions | TextOptions = from_dict(kind, _best_of(body, is_chat))
        chosen.most, chosen.alternatives  # noqa: B018, they raise
        return Request(chosen, is_chat, content)
    except OptionError as error:
        raise ApiError(str(error), error.name) from None


def no_model(asked: Any, model_name: str) -> ApiError:
    "What is answered where another model is asked for."
    message = f"there is no model {asked!r:.60}: this is {model_name}."
    return ApiError(message, "model", 404, "model_not_found")


def _same(value: Any, other: Any) -> bool:
    "Whether two values are equal as JSON: true is not 1."
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _best_of(body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    "The body without best_of, which may ask for as many answers as are sent. Raises `ApiError`."
    if is_chat or "best_of" not in body:
        return body
    best_of = body.pop("best_of")
    if not _same(best_of, body.get("n", 1)):
        raise ApiError("best_of is not supported, beside the value of n.", "best_of")
    return body


def _prompts(given: Any, tokenizer: Any) -> list[list[int]]:
    "The ids of one to eight prompts, each a text or a list of ids. Raises `UserError`."
    prompts = [given] if isinstance(given, str) or _is_ids(given) else given
    fits = isinstance(prompts, list) and 0 < len(prompts) <= MOST_PROMPTS
    if not fits or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise UserError(
            f"prompt must be a text, a list of token ids, or 1 to {MOST_PROMPTS} of either."
        )
    return [tokenizer.encode(p, bos=True) if isinstance(p, str) else p for p in prompts]


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(i) is int for i in given)


def _messages(given: Any) -> list[dict[str, str]]:
    "The messages, each with a role and one text. Raises `UserError`."
    if not isinstance(given, list):
        raise UserError('messages must be a list of {"role": "user", "content": "text"}.')
    return [_message(n, message) for n, message in enumerate(given)]


def _message(n: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
        raise UserError(f"message {n} is no object with a role and a content.")
    if role not in MESSAGE_ROLES:
        raise UserError(
            f"message {n} has the role {role!r:.60}: there are {', '.join(MESSAGE_ROLES)}."
        )
    for key, value in message.items():
        # clients send an answer back as they got it, with fields that are empty
        if key not in ("role", "content", "name") and value:
            raise UserError(f"message {n} has {key!r:.60}, which is not supported.")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(n, part) for part in content)
    if not isinstance(content, str):
        raise UserError(f"the content of message {n} must be a text, or a list of parts of text.")
    return {"role": MESSAGE_ROLES[role], "content": content}


def _part(n: int, part: Any) -> str:
    "The text of a part of a message."
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind != "text" or not isinstance(text, str):
        raise UserError(
            f'message {n} has a part that is no {{"type": "text", "text": "..."}}: send text.'
        )
    return text


def make_jobs(
    request: Request,
    prompts: list[list[int]],
    batcher: Batcher,
    stops: frozenset[int],  # what ends a text
) -> list[Job]:
    "One job for each prompt and answer. Raises `ApiError` for a prompt that the model cannot read."
    chosen = request.options
    wanted = chosen.most
    field = "messages" if request.is_chat else "prompt"
    jobs = []
    for prompt in prompts:
        try:
            if len(prompt) <= batcher.max_len:
                check_prompt(prompt, batcher.model.config)
        except UserError as error:
            raise ApiError(str(error), field) from None
        left = batcher.max_len - len(prompt)
        needed = 1 if wanted is None else wanted
        if left < needed:
            raise ApiError(
                f"the prompt has {len(prompt)} tokens and {needed:.9g} were asked for; together at"
                f" most {batcher.max_len} fit.",
                field,
                code="context_length_exceeded",
            )
        for i in range(chosen.n):
            seed = None if chosen.seed is None else (chosen.seed + i) % 2**63
            most = left if wanted is None else wanted
            jobs.append(Job(prompt, most, chosen.settings(), seed, stops))
    return jobs
