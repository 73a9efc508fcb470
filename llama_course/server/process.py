"The process of a server: its address, the limits of a connection, and how it ends."

import ipaddress
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from llama_course.model import Llama
from llama_course.server.app import LOCAL_NAMES, app_of
from llama_course.server.gate import Service
from llama_course.server.requests import ApiError
from llama_course.server.worker import BatchWorker
from llama_course.serving import Batcher
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.support.options import option, options

KEY_VARIABLE = "LLAMA_COURSE_API_KEY"
FLUSH = 3  # seconds that the last words of cut answers have to leave
TOO_MANY = json.dumps(
    ApiError("there are too many connections: try again soon.", status=503).body
).encode()
TOO_MANY_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(TOO_MANY), TOO_MANY)
)


@options
class Serving:
    "Options of a server."

    host: str = option(
        "127.0.0.1",
        "The address; with another one than 127.0.0.1 other machines can ask, with a key.",
    )
    port: int = option(8000, "0: any that is free.", ge=0, le=65535)
    rows: int = option(4, "Texts that are written at once.", ge=1, le=1024)
    waiting: int = option(16, "Requests in the queue at most.", ge=0, le=1024)
    api_key: str | None = option(
        None, f"The key that requests must carry; or in the variable {KEY_VARIABLE}."
    )
    without_key: bool = option(False, "Let other machines ask without a key.", flag=True)
    grace: float = option(
        30.0, "Seconds that running answers have to end, after SIGTERM or Ctrl-C.", ge=0, le=3600
    )
    bits: int | None = option(
        None, "8 or 4: quantize; 16 or 32: bfloat16 or float32, by the fast kernels."
    )

    @property
    def is_local(self) -> bool:
        "Whether only this machine can ask."
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def key(self) -> str | None:
        "The key, from the option or the environment. Raises `UserError` where one must be given."
        key = self.api_key or os.environ.get(KEY_VARIABLE)
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
            raise UserError("the API key must be printable ASCII, without spaces around it.")
        if not key and not self.is_local and not self.without_key:
            raise UserError(
                f"with --host {self.host} other machines can ask: give --api-key (or"
                f" {KEY_VARIABLE}), or say --without-key."
            )
        return key or None

    def listen(self) -> socket.socket:
        "A socket at the address. Raises `UserError` if it cannot be used."
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(
                f"cannot listen on {self.host}:{self.port} ({error}): choose another --port or"
                " --host."
            ) from None


def protocol_of(service: Service) -> Any:
    "uvicorn's HTTP protocol, with the limits of the service."
    h11 = need("h11", "serve")
    limits = service.limits

    class Limited(need("uvicorn.protocols.http.h11_impl", "serve").H11Protocol):  # type: ignore[misc]
        "Ends connections that are too many, do not say what they want, or read nothing."

        waits_for_head: Any = None  # timers
        waits_for_reader: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(TOO_MANY_ANSWER)
                transport.close()
            else:
                self._watch_head()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop("waits_for_head")
            self._stop("waits_for_reader")

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start("waits_for_reader", limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("waits_for_reader")

        def _watch_head(self) -> None:
            "From the first byte of a request to the end of its headers."
            if self.conn.their_state is not h11.IDLE:
                self._stop("waits_for_head")
            elif self.waits_for_head is None:
                self._start("waits_for_head", limits.header_seconds, self._no_head)

        def _no_head(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self.transport.abort()

        def _start(self, name: str, seconds: float, action: Any) -> None:
            self._stop(name)
            setattr(self, name, self.loop.call_later(seconds, action))

        def _stop(self, name: str) -> None:
            if timer := getattr(self, name):
                timer.cancel()
                setattr(self, name, None)

    return Limited


def http_server(
    service: Service,
    hosts: tuple[str, ...],  # names it answers to
    grace: float,  # seconds that running answers have after the first signal
) -> Any:  # its `run` serves until a signal
    "uvicorn's server for a service, with an end in two steps: nothing new begins; what runs ends."
    uvicorn = need("uvicorn", "serve")

    class Server(uvicorn.Server):  # type: ignore[misc,name-defined]
        "The first signal lets answers end, the second one does not."

        until = 0.0  # when what still runs is cut

        def handle_exit(self, number: int, frame: Any) -> None:
            if service.draining:
                self.until = 0.0
                return
            service.draining, self.until = True, time.monotonic() + grace
            if service.running:
                print(
                    f"stopping: {service.running} requests have {grace:g} seconds to end"
                    f" ({signal.Signals(number).name} again: none)",
                    file=sys.stderr,
                    flush=True,
                )

        async def on_tick(self, counter: int) -> bool:
            if service.draining and (not service.running or time.monotonic() >= self.until):
                service.worker.stop()  # what is not written by now says so, and ends
                self.should_exit = True
            return await super().on_tick(counter)

    config = uvicorn.Config(
        app_of(service, hosts),
        http=protocol_of(service),
        ws="none",
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=FLUSH,
    )
    return Server(config)


def serve(
    model: Llama,
    tokenizer: Any,
    model_name: str,
    options: Serving,
) -> None:
    "Serves until Ctrl-C or SIGTERM. Raises `UserError` if the address cannot be used."
    key, listener = options.key, options.listen()
    worker = BatchWorker(Batcher(model, options.rows), options.waiting)
    service = Service(worker, tokenizer, model_name, key)
    hosts = LOCAL_NAMES if options.is_local else ("*",)
    server = http_server(service, hosts, options.grace)
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(
        f"{model_name} at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)",
        file=sys.stderr,
        flush=True,
    )
    server.run(sockets=[listener])
    print("stopped", file=sys.stderr)
