"The server: an ASGI application with OpenAI's addresses and a page, and its process."

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from llama_course.generation import TextStream, end_ids
from llama_course.model import Llama
from llama_course.server.answers import Answer, AnswerPiece
from llama_course.server.requests import ApiError, make_jobs, read_request
from llama_course.server.worker import BatchWorker, QueueFull
from llama_course.serving import Batcher, Job
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.support.options import option, options

MAX_BODY = 2**20  # bytes of a request
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
    " img-src data:"
)  # what the browser may do for the page


def page(model_name: str) -> str:
    "The page to talk to the model with, as HTML that loads nothing from anywhere."
    folder = files("llama_course.server") / "page"
    html, style, script = (
        (folder / name).read_text("utf-8") for name in ("page.html", "style.css", "script.js")
    )
    return Template(html).substitute(name=escape(model_name), style=style, script=script)


async def read_json_body(request: Any) -> Any:
    """The body of a request, parsed. Raises `ApiError`.

    A page of another site in the same browser can send text to this machine, but a request that
    says it is JSON only with our consent, which we do not give.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise ApiError("send application/json.", status=415)
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY:
            raise ApiError(f"a request has at most {MAX_BODY} bytes.", status=413)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON.") from None


def refusal(worker: BatchWorker) -> ApiError:
    "What a request is answered that finds no place."
    if worker.closed:
        return ApiError("the model has stopped; see the server's log.", status=503)
    return ApiError("all places are taken: try again soon.", status=429, code="busy")


async def answer_pieces(
    worker: BatchWorker,
    jobs: list[Job],
    streams: list[TextStream],  # of each job
) -> AsyncGenerator[AnswerPiece, None]:
    """Submits the jobs; yields their text as it is written. Raises `ApiError`.

    The worker calls back from its thread; the queue hands that over to the event loop. Whoever goes
    away closes this generator, and that cancels the jobs.
    """
    ids: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    try:
        for n, job in enumerate(jobs):
            job.on_token = lambda i, n=n: loop.call_soon_threadsafe(ids.put_nowait, (n, i))
            try:
                worker.submit(job)
            except UserError as error:
                raise ApiError(str(error)) from None
            except QueueFull:
                raise refusal(worker) from None
        open_choices = set(range(len(jobs)))
        while open_choices:
            n, i = await ids.get()
            if n not in open_choices:
                continue  # it ended at a stop string while its row was still in a step
            job, stream = jobs[n], streams[n]
            text = stream.end() if i is None else stream.push(i)
            reason = "stop" if stream.stopped else job.reason if i is None else ""
            if text or reason:
                yield n, text, reason
            if reason:
                job.cancelled = True
                open_choices.remove(n)
    finally:
        for job in jobs:
            job.cancelled = True


def endpoint(
    is_chat: bool,  # messages, or plain text
    worker: BatchWorker,
    tokenizer: Any,
    model_name: str,
) -> Any:
    "The function that answers /v1/chat/completions, or /v1/completions."
    responses = need("starlette.responses", "serve")

    async def answer(http_request: Any) -> Any:
        request = read_request(await read_json_body(http_request), is_chat, model_name)
        prompts, stops = request.encoded(tokenizer)
        jobs = make_jobs(request, prompts, worker.batcher, end_ids(tokenizer))
        objects = Answer(jobs, prompts, is_chat, model_name)
        pieces = answer_pieces(
            worker, jobs, [TextStream(tokenizer, job.prompt, stops) for job in jobs]
        )
        if request.options.stream:
            first = await anext(pieces)  # what is refused is refused before the stream begins
            events = objects.events(first, pieces, request.counts_tokens)
            return responses.StreamingResponse(
                events, 200, {"cache-control": "no-store"}, "text/event-stream"
            )
        texts, reasons = [""] * len(jobs), [""] * len(jobs)
        async for n, text, reason in pieces:
            texts[n], reasons[n] = texts[n] + text, reason
            if await http_request.is_disconnected():
                await pieces.aclose()
        if "error" in reasons:
            raise ApiError("the model failed; see the server's log.", status=503)
        return responses.JSONResponse(objects.whole(texts, reasons))

    return answer


def make_app(
    worker: BatchWorker,  # is closed with the application
    tokenizer: Any,
    model_name: str,  # what the model is called in requests
    hosts: Sequence[str] = (
        *LOCAL_NAMES,
        "testserver",
    ),  # names it answers to; ["*"]: any
) -> Any:
    "The server as an ASGI application. Raises `UserError` if starlette is missing."
    applications, exceptions, middleware, responses, routing, trustedhost = (
        need(f"starlette.{name}", "serve")
        for name in (
            "applications",
            "exceptions",
            "middleware",
            "responses",
            "routing",
            "middleware.trustedhost",
        )
    )
    about = {
        "id": model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llama_course",
    }

    async def home(request: Any) -> Any:
        return responses.HTMLResponse(
            page(model_name), headers={"content-security-policy": CONTENT_POLICY}
        )

    async def models(request: Any) -> Any:
        return responses.JSONResponse({"object": "list", "data": [about]})

    async def refused(request: Any, error: ApiError) -> Any:
        return responses.JSONResponse(error.body, error.status)

    async def unknown(request: Any, error: Any) -> Any:
        return await refused(request, ApiError(error.detail, status=error.status_code))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    chat, text = (endpoint(is_chat, worker, tokenizer, model_name) for is_chat in (True, False))
    return applications.Starlette(
        routes=[
            routing.Route("/", home),
            routing.Route("/v1/models", models),
            routing.Route("/v1/chat/completions", chat, methods=["POST"]),
            routing.Route("/v1/completions", text, methods=["POST"]),
        ],
        middleware=[
            middleware.Middleware(trustedhost.TrustedHostMiddleware, allowed_hosts=list(hosts))
        ],
        exception_handlers={ApiError: refused, exceptions.HTTPException: unknown},
        lifespan=lifespan,
    )


@options
class Serving:
    "Options of a server."

    host: str = option(
        "127.0.0.1", "The address; another one than 127.0.0.1 lets other machines ask."
    )
    port: int = option(8000, "0: any that is free.", ge=0, le=65535)
    rows: int = option(4, "Texts that are written at once.", ge=1, le=1024)
    waiting: int = option(16, "Requests in the queue at most.", ge=0, le=1024)
    bits: int | None = option(
        None, "8 or 4: quantize; 16 or 32: bfloat16 or float32, by the fast kernels."
    )


def serve(
    model: Llama,
    tokenizer: Any,
    model_name: str,
    options: Serving,
) -> None:
    "Serves until Ctrl-C or SIGTERM. Raises `UserError` if the address cannot be used."
    uvicorn = need("uvicorn", "serve")
    host, port = options.host, options.port
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error}): choose another --port or --host."
        ) from None
    hosts = LOCAL_NAMES if host in (*LOCAL_NAMES, "::1") else ("*",)
    worker = BatchWorker(Batcher(model, options.rows), options.waiting)
    app = make_app(worker, tokenizer, model_name, hosts)
    print(
        f"{model_name} at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)",
        file=sys.stderr,
        flush=True,
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn has ended cleanly and passes the signal on
    print("stopped", file=sys.stderr)
