"""Examples to finetune on: lines of JSON as conversations, and these as what the model is to write.

A line has an instruction, perhaps an input, and an answer (many public files call it `output`); or
messages. Its task is what the field `task` says, or the file's name.
"""

import json
from collections.abc import Iterator
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


def conversation(
    row: Any,  # one parsed line
    place: str,  # file and line, for the message
) -> Conversation:
    "The line's messages. Raises `UserError` that names the place and the field."
    if not isinstance(row, dict):
        raise UserError(f"{place} is not a JSON object.")
    if "messages" in row:
        return _checked_messages(row["messages"], place)
    row = {"answer": row.get("output"), **row}
    for field in ("instruction", "answer"):
        if not isinstance(row.get(field), str):
            raise UserError(
                f"{place} has no text in the field {field!r}: add it, or give messages."
            )
    if not isinstance(row.get("input") or "", str):
        raise UserError(
            f"{place} has no text in the field 'input': write it as text, or leave it out."
        )
    asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"]}]


def _checked_messages(messages: Any, place: str) -> Conversation:
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UserError(
            f"{place}: messages must be a list, each with role ({', '.join(ROLES)}) and content."
        )
    if messages[0]["role"] == "assistant" or not any(m["role"] == "assistant" for m in messages):
        raise UserError(f"{place}: somebody must ask, and then the assistant must answer.")
    return messages


def _is_message(m: Any) -> bool:
    return isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str)


def read_conversations(
    path: Path,  # of a file of JSON lines
) -> dict[str, list[Conversation]]:  # task -> its conversations
    "The examples of a file. Raises `UserError` with the line that is wrong."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8: convert it.") from None
    found: dict[str, list[Conversation]] = {}
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other ends of lines
        if not line.strip():
            continue
        place = f"{path}, line {number},"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error}): mend or remove it.") from None
        messages = conversation(row, place)
        found.setdefault(str(row.get("task", path.stem)), []).append(messages)
    if not found:
        raise UserError(f"{path} holds no example: one JSON object per line is needed.")
    return found


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
