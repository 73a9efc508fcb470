"How a model is asked: by the chat template that came with its tokenizer, or plainly."

from typing import Any

from llama_course.formats import plain_chat
from llama_course.instruct import Template
from llama_course.support.errors import UserError


def _own_template(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.encode_chat(messages)


ANSWER_TEMPLATES = {
    "plain": Template("plain", plain_chat, " "),
    "chat": Template("chat", _own_template),
}


def choose_template(
    tokenizer: Any,
    name: str | None = None,  # plain or chat; None: chat if the tokenizer has a template of its own
) -> Template:
    "How this tokenizer's model is asked. Raises `UserError` for what there is not."
    has_own = getattr(tokenizer, "chat_template", None) is not None
    name = name or ("chat" if has_own else "plain")
    if name not in ANSWER_TEMPLATES:
        raise UserError(
            f"no template is called {name!r}: choose one of {', '.join(ANSWER_TEMPLATES)}."
        )
    if name == "chat" and not has_own:
        raise UserError(f"{tokenizer.path} has no chat template: choose the template plain.")
    return ANSWER_TEMPLATES[name]
