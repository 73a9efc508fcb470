"What the server measures, in Prometheus' form."

import time
from typing import Any

from llama_course.server.worker import BatchWorker
from llama_course.support.optional import need

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # bounds of histograms


class ServerMetrics:
    "Counters of one server. Raises `UserError` if prometheus_client is missing."

    def __init__(self, worker: BatchWorker) -> None:
        self._client: Any = need("prometheus_client", "serve")
        self._registry = self._client.CollectorRegistry()
        made = {"namespace": "llama_course", "registry": self._registry}
        counter, gauge = self._client.Counter, self._client.Gauge
        self._requests = counter("requests", "Requests answered.", ("path", "status"), **made)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", **made)
        self.tokens = counter("generated_tokens", "Tokens written.", **made)
        for n, (name, help) in enumerate(
            (("texts_running", "Texts being written."), ("texts_waiting", "Texts that wait."))
        ):
            gauge(name, help, **made).set_function(lambda n=n: worker.counts()[n])
        waits: dict[str, Any] = made | {"buckets": SECONDS}
        histogram = self._client.Histogram
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", **waits
        )
        self.next_token = histogram(
            "time_per_output_token_seconds", "From a token of a text to its next.", **waits
        )
        self.seconds = histogram(
            "request_seconds", "From a request to the end of its answer.", **waits
        )

    def answered(self, path: str, status: int) -> None:
        "Counts an answer."
        self._requests.labels(path, status).inc()

    def token(
        self,
        began: float,  # when its request did, by time.perf_counter
        last: float | None,  # when the token before it came; None: it is the first
    ) -> None:
        "Counts a token that was just written."
        self.tokens.inc()
        now = time.perf_counter()
        if last is None:
            self.first_token.observe(now - began)
        else:
            self.next_token.observe(now - last)

    def text(self) -> tuple[bytes, str]:
        "All of them, and their content type."
        return self._client.generate_latest(self._registry), self._client.CONTENT_TYPE_LATEST
