"Who is let in: with the right key, in time, and while the server is not stopping."

import asyncio
import hmac
import json
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from llama_course.server.metrics import ServerMetrics
from llama_course.server.requests import ApiError
from llama_course.server.worker import BatchWorker

KNOWN = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")
CLOSE_CONNECTION = {"connection": "close"}


@dataclass(frozen=True)
class ConnectionLimits:
    "What a connection may take."

    connections: int = 256  # at once; those beyond it are answered 503
    header_seconds: float = 10.0  # until the first line and the headers of a request are there
    body_bytes: int = 2**20  # of a request
    body_seconds: float = 20.0  # until its body is there
    write_seconds: float = 60.0  # that a reader may read nothing


@dataclass
class Service:
    "One server: what its parts share."

    worker: BatchWorker
    tokenizer: Any
    model_name: str  # what the model is called in requests
    api_key: str | None = None  # that requests must carry
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    draining: bool = False  # answers that run may end, others do not begin
    running: int = 0  # requests whose answer is not complete

    def __post_init__(self) -> None:
        self.metrics = ServerMetrics(self.worker)

    def check_open(self) -> None:
        "Raises `ApiError` while no request can be answered."
        if self.draining:
            raise ApiError("the server is stopping.", status=503, headers=CLOSE_CONNECTION)
        if self.worker.closed:
            raise ApiError("the model has stopped; see the server's log.", status=503)

    def check_key(self, header: str) -> None:  # Authorization
        "Raises `ApiError` if a key is needed and this is another one."
        if self.api_key is None:
            return
        scheme, _, key = header.partition(" ")
        right = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


class Gate:
    "ASGI middleware: the key, the end of the server, counters."

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        service, path = self.service, scope["path"]
        asks = path.startswith("/v1/") and scope["method"] == "POST"
        label = path if path in KNOWN else "other"
        began, started = time.perf_counter(), False

        async def counted(message: Any) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                service.metrics.answered(label, message["status"])
            await send(message)

        service.running += asks
        try:
            if path.startswith("/v1/") or path == "/metrics":
                headers = dict(scope["headers"])
                service.check_key(headers.get(b"authorization", b"").decode("latin-1"))
            if asks:
                service.check_open()
            await self.app(scope, receive, counted)
            if asks:
                service.metrics.seconds.observe(time.perf_counter() - began)
        except ApiError as error:
            await send_error(error, counted)
        except Exception as error:
            if started:
                raise
            traceback.print_exception(error)
            await send_error(ApiError("a fault in the server; see its log.", status=500), counted)
        finally:
            service.running -= asks


async def send_error(error: ApiError, send: Any) -> None:
    "An error as an ASGI answer."
    raw = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(raw)),
    } | error.headers
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})


async def read_json_body(request: Any, limits: ConnectionLimits) -> Any:
    """The body of a request, parsed. Raises `ApiError`.

    A page of another site in the same browser can send text to this machine, but a request that
    says it is JSON only with our consent, which we do not give.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError("send application/json.", status=415)
    try:
        async with asyncio.timeout(limits.body_seconds):
            raw = await _read(request, limits.body_bytes)
    except TimeoutError:
        message = f"the body was not there within {limits.body_seconds:g} seconds."
        raise ApiError(message, status=408, headers=CLOSE_CONNECTION) from None
    try:
        value = json.loads(raw, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        return value
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON.") from None


async def _read(request: Any, most: int) -> bytes:
    "The body. What is too long is read on for a while, so that its sender gets to the answer."
    raw, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        if size <= most:
            raw += piece
        elif size > 16 * most:
            break
    if size > most:
        raise ApiError(f"a request has at most {most} bytes.", status=413, headers=CLOSE_CONNECTION)
    return bytes(raw)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
