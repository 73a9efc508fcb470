"The server as an ASGI application: OpenAI's addresses, a page, health and metrics."

import asyncio
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, TypeVar

from llama_course.generation import TextStream, end_ids
from llama_course.server.answers import Answer, Piece
from llama_course.server.gate import Gate, Service, read_json_body
from llama_course.server.logprobs import Recorder, TokenTexts, Told
from llama_course.server.requests import ApiError, Request, make_jobs, no_model, read_request
from llama_course.server.worker import BatchWorker, QueueFull
from llama_course.serving import Job
from llama_course.support.errors import UserError
from llama_course.support.optional import need

_Result = TypeVar("_Result")
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


def refusal(service: Service) -> ApiError:
    "What a request is answered that finds no place."
    try:
        service.check_open()
    except ApiError as error:
        return error
    message = "all places are taken: try again soon."
    return ApiError(message, status=429, code="busy", headers={"retry-after": "1"})


def failure(job: Job) -> ApiError:
    "What a request is answered whose text could not be written."
    if job.reason == "cancelled":
        return ApiError("the server has stopped before the answer was complete.", status=503)
    if isinstance(job.error, UserError):
        return ApiError(str(job.error), code="generation_failed")
    if job.error is not None:
        traceback.print_exception(job.error)
        return ApiError("this answer failed; see the server's log.", status=500)
    return ApiError("the model failed; see the server's log.", status=503)


async def answer_pieces(
    service: Service,
    jobs: list[Job],
    streams: list[TextStream],  # of each job
    echoes: list[str],  # what each answer begins with; empty: nothing
    recorders: list[Recorder] | None = None,  # of each job, where probabilities are told
) -> AsyncGenerator[Piece, None]:
    """Submits the jobs; yields their text as it is written. Raises `ApiError`.

    The worker calls back from its thread; the queue hands that over to the event loop. Whoever goes
    away closes this generator, and that cancels the jobs.
    """
    events: asyncio.Queue[tuple[int, int | None, Told | None]] = asyncio.Queue()
    loop, metrics = asyncio.get_running_loop(), service.metrics
    began = time.perf_counter()
    last: list[float | None] = [None] * len(jobs)  # when the newest token of each came
    tokens: list[list[Told]] = [[] for _ in jobs]

    def listen(n: int, job: Job) -> None:
        def heard(i: int | None) -> None:
            told = recorders[n].told(i) if recorders and i is not None else None
            loop.call_soon_threadsafe(events.put_nowait, (n, i, told))

        job.on_token = heard
        if recorders:
            job.on_logits = recorders[n].look

    try:
        for n, job in enumerate(jobs):
            listen(n, job)
        try:
            service.worker.submit(*jobs)
        except UserError as error:
            raise ApiError(str(error)) from None
        except QueueFull:
            raise refusal(service) from None
        metrics.prompt_tokens.inc(sum(len(job.prompt) for job in jobs))
        for n, text in enumerate(echoes):
            if text:
                yield Piece(n, text)
        open_choices = set(range(len(jobs)))
        while open_choices:
            n, i, told = await events.get()
            if n not in open_choices:
                continue  # it ended at a stop string while its row was still in a step
            job, stream = jobs[n], streams[n]
            if i is None and job.reason not in ("stop", "length"):
                raise failure(job)
            if i is not None:
                metrics.token(began, last[n])
                last[n] = time.perf_counter()
            if told:
                tokens[n].append(told)
            text = stream.end() if i is None else stream.push(i)
            reason = "stop" if stream.stopped else job.reason if i is None else ""
            if text or reason:
                yield Piece(n, text, reason, tuple(tokens[n]))
                tokens[n] = []
            if reason:
                job.cancelled = True
                open_choices.remove(n)
    finally:
        for job in jobs:
            job.cancelled = True


class Gone(Exception):
    "Whoever asked has closed the connection."


async def unless_gone(http_request: Any, work: Awaitable[_Result]) -> _Result:
    "What the work returns; it is cancelled if whoever asked goes away. Raises `Gone`."
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(http_request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(http_request: Any) -> None:
    while (await http_request.receive())["type"] != "http.disconnect":
        pass


def endpoint(
    is_chat: bool,  # messages, or plain text
    service: Service,
) -> Any:
    "The function that answers /v1/chat/completions, or /v1/completions."
    responses, requests = (need(f"starlette.{name}", "serve") for name in ("responses", "requests"))
    gone = responses.Response(status_code=499)  # nobody reads it
    tokenizer, batcher = service.tokenizer, service.worker.batcher

    def prepare(body: Any) -> tuple[Request, Answer, AsyncGenerator[Piece, None]]:
        request = read_request(body, is_chat, service.model_name)
        prompts, stops = request.encoded(tokenizer)
        jobs = make_jobs(request, prompts, batcher, end_ids(tokenizer))
        echoes = [tokenizer.decode(job.prompt) for job in jobs] if request.echoes else []
        count, recorders, token_texts = request.options.alternatives, None, None
        if count is not None:
            recorders = [Recorder(count) for _ in jobs]
            token_texts = [TokenTexts(tokenizer, job.prompt) for job in jobs]
        answer = Answer(
            jobs, prompts, is_chat, service.model_name, token_texts, request.counts_tokens
        )
        streams = [TextStream(tokenizer, job.prompt, stops) for job in jobs]
        return request, answer, answer_pieces(service, jobs, streams, echoes, recorders)

    async def answer(http_request: Any) -> Any:
        try:
            body = await read_json_body(http_request, service.limits)
        except requests.ClientDisconnect:
            return gone
        # a long text is read in a thread: the answers of others go on
        request, objects, pieces = await asyncio.to_thread(prepare, body)
        try:
            if not request.options.stream:
                whole = await unless_gone(http_request, objects.whole(pieces))
                return responses.JSONResponse(whole)
            # what is refused is refused before the stream begins
            first = await unless_gone(http_request, anext(pieces))
        except BaseException as error:
            await pieces.aclose()
            if isinstance(error, Gone):
                return gone
            raise
        return responses.StreamingResponse(
            objects.events(first, pieces), 200, {"cache-control": "no-store"}, "text/event-stream"
        )

    return answer


def make_app(
    worker: BatchWorker,  # is closed with the application
    tokenizer: Any,
    model_name: str,  # what the model is called in requests
    hosts: Sequence[str] = (*LOCAL_NAMES, "testserver"),  # names it answers to; ["*"]: any
    api_key: str | None = None,  # that requests must carry
) -> Any:
    "The server as an ASGI application. Raises `UserError` if starlette is missing."
    return app_of(Service(worker, tokenizer, model_name, api_key), hosts)


def app_of(service: Service, hosts: Sequence[str]) -> Any:
    "The ASGI application of a service."
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
    model_name = service.model_name
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

    async def model(request: Any) -> Any:
        if (asked := request.path_params["name"]) != model_name:
            raise no_model(asked, model_name)
        return responses.JSONResponse(about)

    async def health(request: Any) -> Any:
        service.check_open()
        return responses.JSONResponse({"status": "ok"})

    async def metrics(request: Any) -> Any:
        text, kind = service.metrics.text()
        return responses.Response(text, media_type=None, headers={"content-type": kind})

    async def refused(request: Any, error: ApiError) -> Any:
        return responses.JSONResponse(error.body, error.status, error.headers)

    async def unknown(request: Any, error: Any) -> Any:
        return await refused(request, ApiError(error.detail, status=error.status_code))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    chat, text = (endpoint(is_chat, service) for is_chat in (True, False))
    return applications.Starlette(
        routes=[
            routing.Route("/", home),
            routing.Route("/health", health),
            routing.Route("/metrics", metrics),
            routing.Route("/v1/models", models),
            routing.Route("/v1/models/{name:path}", model),
            routing.Route("/v1/chat/completions", chat, methods=["POST"]),
            routing.Route("/v1/completions", text, methods=["POST"]),
        ],
        middleware=[
            middleware.Middleware(trustedhost.TrustedHostMiddleware, allowed_hosts=list(hosts)),
            middleware.Middleware(Gate, service=service),
        ],
        exception_handlers={ApiError: refused, exceptions.HTTPException: unknown},
        lifespan=lifespan,
    )
