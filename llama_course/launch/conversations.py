"""Examples to finetune on: lines of JSON as conversations, and these as what the model is to write.

A line has an instruction, perhaps an input, and an answer (many public files call it `output`); or
messages. Two more forms that public files have are converted: `prompt` with `completion`, and
ShareGPT's `conversations`. Its task is what the field `task` says, or the file's name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_course.instruct import (
    INSTRUCTION_TASKS,
    Encoded,
    Template,
    encode_answer,
    is_held_out_example,
    make_examples,
)
from llama_course.support.errors import UserError

Conversation = list[dict[str, str]]  # {"role", "content"} each
ROLES = ("system", "user", "assistant")
SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"} | {
    "chatgpt": "assistant",
    "system": "system",
}
CONVERTED = ("ShareGPT's conversations", "prompt and completion")
MEANT = ("weight", "tool_calls", "function_call", "tool_call_id")  # would change what is learned


def conversation(
    row: Any,  # one parsed line
    place: str,  # file and line, for the message
) -> Conversation:
    "The line's messages. Raises `UserError` that names the place and the field."
    return _form_of(row, place)[1]


def _form_of(row: Any, place: str) -> tuple[str, Conversation]:
    "The form that the line is in, and its messages."
    if not isinstance(row, dict):
        raise UserError(f"{place} is not a JSON object.")
    if "messages" in row:
        return "messages", _checked_messages(row["messages"], place)
    if "conversations" in row:
        return "ShareGPT's conversations", _checked_messages(_of_sharegpt(row, place), place)
    if "prompt" in row and "completion" in row:
        return "prompt and completion", _checked_messages(_of_completion(row, place), place)
    row = {"answer": row.get("output"), **row}
    for field in ("instruction", "answer"):
        if not isinstance(row.get(field), str):
            raise UserError(
                f"{place} has no text in the field {field!r}: add it, or give messages."
            )
    if not isinstance(row.get("input", ""), str | None):
        raise UserError(
            f"{place} has no text in the field 'input': write it as text, or leave it out."
        )
    asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return "instructions", [_message("user", asked), _message("assistant", row["answer"])]


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _of_sharegpt(row: dict, place: str) -> list:
    "The messages of {from, value}."
    turns, found = row["conversations"], []
    for turn in turns if isinstance(turns, list) else [None]:
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
            raise UserError(f"{place} conversations must be a list, each with from and value.")
        if turn["from"] not in SHAREGPT:
            known = ", ".join(SHAREGPT)
            raise UserError(f"{place} comes from {turn['from']!r}, and is known from {known}.")
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        found.append(rest | _message(SHAREGPT[turn["from"]], turn.get("value")))
    return found


def _of_completion(row: dict, place: str) -> list:
    "The messages of a prompt and what completes it: two texts, or two lists of messages."
    asked, answer = row["prompt"], row["completion"]
    if isinstance(asked, list) and isinstance(answer, list):
        return asked + answer
    for field in ("prompt", "completion"):
        if not isinstance(row[field], str):
            raise UserError(f"{place} has no text in the field {field!r}: write it as text.")
    return [_message("user", asked), _message("assistant", answer)]


def _checked_messages(messages: Any, place: str) -> Conversation:
    "The messages, each with a text. Raises `UserError` that names what is no conversation."
    if not isinstance(messages, list) or not messages or not all(map(_has_role, messages)):
        raise UserError(
            f"{place} messages must be a list, each with role ({', '.join(ROLES)}) and content."
        )
    found = []
    for m in messages:
        if odd := next((name for name in MEANT if m.get(name) not in (None, 1, [])), None):
            raise UserError(f"{place} a message has {odd}, which is not learned: remove it.")
        found.append(_message(m["role"], _text_of(m.get("content"), place)))
    if found[0]["role"] == "assistant" or not any(m["role"] == "assistant" for m in found):
        raise UserError(f"{place} somebody must ask, and then the assistant must answer.")
    return found


def _has_role(m: Any) -> bool:
    return isinstance(m, dict) and isinstance(m.get("role"), str) and m["role"] in ROLES


def _text_of(content: Any, place: str) -> str:
    "The text of a message; one in parts is put together."
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UserError(f"{place} a message's content is {content!r:.40}: write it as text.")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UserError(
                f"{place} a message has a part of the type {kind!r}: only text is read."
            )
        texts.append(part["text"])
    return "".join(texts)


def read_conversations(
    path: Path,  # of a file of JSON lines, or of one list
    say: Callable[[str], None] = lambda line: None,  # called with what was converted
) -> dict[str, list[Conversation]]:  # task -> its conversations
    "The examples of a file. Raises `UserError` with the line that is wrong."
    found: dict[str, list[Conversation]] = {}
    converted: Counter[str] = Counter()
    for place, row in _rows(path):
        form, messages = _form_of(row, place)
        converted[form] += 1
        task = row.get("task")
        if not isinstance(task, str | None):
            raise UserError(f"{place} has no text in the field 'task': write it as text.")
        found.setdefault(path.stem if task is None else task, []).append(messages)
    if not found:
        raise UserError(f"{path} holds no example: one JSON object per line is needed.")
    for form, n in converted.items():
        if form in CONVERTED:
            say(f"{path}: {n:,} examples converted from {form} to messages.")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:  # place, row
    "The rows of a file: JSON objects, one per line or in one list."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8: convert it.") from None
    if path.suffix == ".json" and text.lstrip().startswith("["):
        rows = _parsed(text, str(path))
        yield from ((f"{path}, row {number},", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other ends of lines
        if line.strip():
            place = f"{path}, line {number},"
            yield place, _parsed(line, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): mend or remove it.") from None


def generated_conversations(seed: int) -> dict[str, list[Conversation]]:
    "The tasks of chapter 29, without the instructions that it holds out."
    found = {}
    for task in INSTRUCTION_TASKS:
        examples, _ = make_examples(task, 600, seed)  # one of them has only 720 instructions
        found[task] = [
            conversation({"instruction": e.instruction, "answer": e.answer}, task)
            for e in examples
            if not is_held_out_example(e)
        ]
    return found


def encode_turns(tokenizer: Any, messages: Conversation, template: Template) -> Iterator[Encoded]:
    "Of each of the assistant's messages: the ids before it and its own, the end of text included."
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            yield encode_answer(tokenizer, messages[:i], message["content"], template)


def fitting(
    encoded: list[Encoded],
    seq_len: int,  # T
    too_long: str = "drop",  # or cut: the first T + 1 tokens, if an answer has begun by then
) -> tuple[list[Encoded], int, int]:  # those that fit; how many were dropped, how many cut
    "Examples that a row can hold."
    kept, cut = [], 0
    for e in encoded:
        if len(e.ids) > seq_len + 1:
            e = Encoded(e.ids[: seq_len + 1], e.is_answer[: seq_len + 1])
            if too_long == "drop" or not any(e.is_answer):
                continue
            cut += 1
        kept.append(e)
    return kept, len(encoded) - len(kept), cut
