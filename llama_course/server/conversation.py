"A conversation: as the ids that a model reads, and turn by turn in the terminal."

from collections.abc import Callable
from typing import Any

from llama_course.generation import end_ids, generate, stream_text
from llama_course.model import Llama
from llama_course.support.errors import UserError


def chat_prompt(
    tokenizer: Any,
    messages: Any,  # [{"role": "user", "content": "..."}, ...]
) -> tuple[list[int], list[str]]:  # ids; strings that end the answer
    """A conversation, up to where the model answers.

    A tokenizer with a chat template writes it as the template says. For a model that has read plays
    and programs it is a script with speakers, and the answer ends where another would speak. Raises
    `UserError` for what is no list of messages.
    """
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UserError(
            'messages must be a list of {"role": "user", "content": "text"}, at least one.'
        )
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.encode_chat(messages), []
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return tokenizer.encode("\n".join([*lines, "Assistant:"]), bos=True), [
        "\nUser:",
        "\nSystem:",
    ]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def chat(
    model: Llama,
    tokenizer: Any,
    read: Callable[[], str] = lambda: input(
        "> "
    ),  # the next message; EOFError ends the conversation
    write: Callable[[str], object] = lambda piece: print(piece, end="", flush=True),
    tokens: int = 300,  # of an answer, at most
    **sampling: Any,  # of `generate`
) -> list[dict[str, str]]:  # the messages
    "A conversation in the terminal; its oldest turns are dropped when it no longer fits."
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = read().strip()
        except EOFError:
            return messages
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        ids, stops = chat_prompt(tokenizer, messages)
        while len(ids) + tokens > model.config.max_seq_len and len(messages) > 2:
            del messages[:2]
            ids, stops = chat_prompt(tokenizer, messages)
        answer = ""
        for piece in stream_text(
            generate(model, ids, tokens, stop_id=end_ids(tokenizer), **sampling),
            tokenizer,
            ids,
            stops,
        ):
            answer += piece
            write(piece)
        write("\n")
        messages.append({"role": "assistant", "content": answer})
