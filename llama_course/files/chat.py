"A conversation as token ids, by the chat template that a model brings."

import re

from llama_course.support.errors import UserError
from llama_course.support.optional import need


def encode_chat(
    tokenizer,  # with controls, chat_template, bos_id, eos_id, path and encode
    messages: list[dict],  # {"role": "user", "content": "..."} and so on
) -> list[int]:
    """The ids of a conversation, up to where the model answers.

    Control words in a message stay text: a character that is in no message is put into them, and
    taken out when the rendered text has been cut at the template's own control words. Raises
    `UserError` where there is no template, and where it refuses the conversation, fails, or
    reaches out of its sandbox.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.path} has no chat template: it does not talk.")
    texts = "".join(str(message.get("content", "")) for message in messages)
    guard = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in texts)
    longest_first = sorted(tokenizer.controls, key=len, reverse=True)
    words = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def broken(text: str) -> str:
        return words.sub(lambda word: word[0][0] + guard + word[0][1:], text)

    safe = [{key: broken(str(value)) for key, value in message.items()} for message in messages]
    text, start = render(tokenizer, safe), 0
    ids: list[int] = []
    for word in words.finditer(text):
        ids += tokenizer.encode(text[start : word.start()].replace(guard, "")) + [
            tokenizer.controls[word[0]]
        ]
        start = word.end()
    return ids + tokenizer.encode(text[start:].replace(guard, ""))


def render(
    tokenizer,  # with controls, chat_template, bos_id, eos_id and path
    messages: list[dict],
) -> str:
    "What the template makes of the messages. Raises `UserError` if it fails or leaves the sandbox."
    jinja = need("jinja2.sandbox", "smollm")
    sandbox = jinja.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str):
        raise UserError(f"the chat template of {tokenizer.path} refuses this: {message}")

    names = {i: word for word, i in tokenizer.controls.items()}
    try:
        return sandbox.from_string(tokenizer.chat_template).render(
            messages=messages,
            add_generation_prompt=True,
            raise_exception=refuse,
            bos_token=names.get(tokenizer.bos_id, ""),
            eos_token=names.get(tokenizer.eos_id, ""),
        )
    except UserError:
        raise
    except Exception as error:  # Jinja raises many kinds
        raise UserError(f"the chat template of {tokenizer.path} failed: {error}") from None
