"A conversation as token ids, by the chat template that a model brings."

import json
import re
from datetime import datetime

from llama_course.support.errors import UserError
from llama_course.support.optional import need


def encode_chat(
    tokenizer,  # with controls, chat_template, bos_id, eos_id, path, encode and encode_after
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
    if guard not in text and hasattr(tokenizer, "encode_rendered"):
        return tokenizer.encode_rendered(text)
    ids: list[int] = []
    for word in words.finditer(text):
        part = text[start : word.start()].replace(guard, "")
        ids += tokenizer.encode_after(part) if start else tokenizer.encode(part)
        ids.append(tokenizer.controls[word[0]])
        start = word.end()
    last = text[start:].replace(guard, "")
    return ids + (tokenizer.encode_after(last) if start else tokenizer.encode(last))


def render(
    tokenizer,  # with controls, chat_template, bos_id, eos_id and path
    messages: list[dict],
) -> str:
    "What the template makes of the messages. Raises `UserError` if it fails or leaves the sandbox."
    jinja = need("jinja2.sandbox", "smollm")
    sandbox = jinja.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _marks()]
    )
    sandbox.filters["tojson"] = _as_json

    def refuse(message: str):
        raise UserError(f"the chat template of {tokenizer.path} refuses this: {message}")

    names = {i: word for word, i in tokenizer.controls.items()}
    try:
        return sandbox.from_string(tokenizer.chat_template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            raise_exception=refuse,
            strftime_now=lambda form: datetime.now().strftime(form),
            bos_token=names.get(tokenizer.bos_id, ""),
            eos_token=names.get(tokenizer.eos_id, ""),
        )
    except UserError:
        raise
    except Exception as error:  # Jinja raises many kinds
        raise UserError(f"the chat template of {tokenizer.path} failed: {error}") from None


def _marks() -> type:
    "Jinja's extension for {% generation %}, which marks what an assistant said and prints nothing."

    class Marks(need("jinja2.ext", "smollm").Extension):  # type: ignore[misc]
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Marks


def _as_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    "JSON as templates expect it; Jinja's own filter writes for HTML."
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
