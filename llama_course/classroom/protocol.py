"""The messages between the judge and a worker: two lengths, JSON, and tensors in safetensors' form.

Nothing is ever unpickled. What a worker sends is read by its type: whatever else stands on the
socket is a `ForeignMessage`.
"""

import contextlib
import json
import socket
import struct
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

LARGEST_BODY = 1 << 23  # bytes of JSON: as Python's objects they take up to thirty times as many
LARGEST_BLOB = 1 << 26  # bytes of tensors
SCALARS = (bool, int, float, str)


class ForeignMessage(ValueError):
    "What came over the socket is no message of this protocol."


class Reply(BaseModel):
    "What a worker says."

    model_config = ConfigDict(strict=True, extra="forbid")
    turn: Annotated[int, Field(ge=0, lt=1 << 62)]  # the number that came with the question
    replaced: list[str]  # names that the judge counts with, and that the code has replaced


class CellReply(Reply):
    "About a cell that was run."

    note: str  # empty, or what is to be said of it


class NamesReply(Reply):
    "Which of the names that were asked for are functions."

    found: list[str]


class ReadReply(Reply):
    "What a notebook file holds, or why it is none."

    status: Literal["", "not a notebook", "empty", "too large"]  # empty: it can be read
    reason: str
    sources: list[tuple[int, str]]  # of its code cells
    claims: list[str]  # exercises that it has to do with
    blank: list[str]  # those of them whose task is as it was given out
    prints: dict[str, str]  # those that are answered: what stays of the answer without its names


Count = Annotated[int, Field(ge=0, le=1 << 62)]


class ObservationReply(Reply):
    "About one call of an answer; its value and gradients are the message's tree."

    error: str
    modified: list[Count]
    saved_bytes: Count
    largest_tensor: Count
    flops: Count
    backward_flops: Count
    collectives: dict[str, tuple[Count, Count]]
    hidden: list[str] = []
    borrowed: list[str] = []


AnyReply = TypeVar("AnyReply", bound=Reply)


def pack_tree(
    tree: Any,  # tensors, numbers, texts, bytes; tuples, lists and dicts of these
    tensors: dict[str, Tensor],  # gets the tensors
) -> dict:
    "The tree as JSON can hold it. What it does not know is told by its type's name."
    if isinstance(tree, Tensor):
        strides = tree.stride()
        order = sorted(range(tree.dim()), key=lambda i: -strides[i])  # transposed stays so
        key, plain = str(len(tensors)), tree.detach().as_subclass(Tensor)
        tensors[key] = plain.permute(order).contiguous().clone()
        return {"tensor": [key, order]}
    if tree is None or type(tree) in SCALARS:
        return {"is": tree}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [pack_tree(part, tensors) for part in tree]}
    if isinstance(tree, dict):
        return {"dict": [[pack_tree(k, tensors), pack_tree(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, bytes):
        return {"bytes": tree.hex()}
    return {"other": type(tree).__name__}


def unpack_tree(packed: dict, tensors: dict[str, Tensor]) -> Any:
    "The tree again. Raises for what `pack_tree` has not made."
    ((kind, thing),) = packed.items()
    match kind:
        case "tensor":
            key, order = thing
            return tensors[key].permute([order.index(i) for i in range(len(order))])
        case "list":
            return [unpack_tree(part, tensors) for part in thing]
        case "tuple":
            return tuple(unpack_tree(part, tensors) for part in thing)
        case "dict":
            return {unpack_tree(k, tensors): unpack_tree(v, tensors) for k, v in thing}
        case "bytes":
            return bytes.fromhex(thing)
        case "is" if thing is None or type(thing) in SCALARS:
            return thing
        case "other" if isinstance(thing, str):
            return type(thing, (), {})()
    raise ValueError(f"no {kind!r} in this protocol")


def send(sock: socket.socket, message: dict, tree: Any = None) -> None:
    "Sends one message. Raises `ValueError` for one that is too large."
    tensors: dict[str, Tensor] = {}
    body = json.dumps({"message": message, "tree": pack_tree(tree, tensors)}).encode()
    blob = safetensors.torch.save(tensors) if tensors else b""
    if len(body) > LARGEST_BODY or len(blob) > LARGEST_BLOB:
        raise ValueError(f"{len(body) + len(blob):,} bytes are more than a message may have")
    sock.sendall(struct.pack(">QQ", len(body), len(blob)) + body + blob)


def receive(
    sock: socket.socket,
    watch: Callable[[], None] = lambda: None,  # called again and again; raises to give up
) -> tuple[Any, Any]:
    "The next message and its tree. Raises `EOFError`, and `ForeignMessage` for anything else."

    def read(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            watch()
            with contextlib.suppress(TimeoutError):
                piece = sock.recv(min(size - len(data), 1 << 20))
                if not piece:
                    raise EOFError("the other side is gone")
                data += piece
        return bytes(data)

    sizes = struct.unpack(">QQ", read(16))
    if sizes[0] > LARGEST_BODY or sizes[1] > LARGEST_BLOB:
        raise ForeignMessage("it is too large")
    body, blob = read(sizes[0]), read(sizes[1])
    try:
        whole = json.loads(body)
        tree = unpack_tree(whole["tree"], safetensors.torch.load(blob) if blob else {})
        return whole["message"], tree
    except Exception as error:  # of whatever kind: these bytes are somebody else's
        raise ForeignMessage(type(error).__name__) from None


def receive_reply(
    sock: socket.socket,
    kind: type[AnyReply],
    watch: Callable[[], None] = lambda: None,
) -> tuple[AnyReply, Any]:
    "The next message, which must be such a reply, and its tree. Raises as `receive` does."
    message, tree = receive(sock, watch)
    try:
        return kind.model_validate_json(json.dumps(message)), tree
    except (ValueError, TypeError, RecursionError):
        raise ForeignMessage(f"no {kind.__name__}") from None
