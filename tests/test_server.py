"The server's doors: what clients send by default, keys, limits of a connection, its end, a fuzz."

import json
import re
import signal
import socket
import threading
from contextlib import contextmanager

import pytest
import torch
from served import Bytes, server, small, tiny_run, working
from typer.testing import CliRunner

from llama_course.command.cli import app
from llama_course.generation import generate
from llama_course.server.app import make_app
from llama_course.server.gate import ConnectionLimits, Service
from llama_course.server.process import Serving, http_server
from llama_course.support.errors import UserError

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

LOCAL = ("127.0.0.1",)


@pytest.fixture(scope="module")
def client():
    with TestClient(make_app(working(), Bytes(), "tiny")) as client:
        yield client


def post(client, path="completions", **body):
    return client.post(f"/v1/{path}", json={"model": "tiny", **body})


def chat(client, *messages, **body):
    return post(client, "chat/completions", messages=list(messages), **body)


HELLO = {"role": "user", "content": "Hi"}


# ---- what clients send by default


@pytest.mark.parametrize(
    "field",
    [
        {"tool_choice": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"store": False},
        {"logprobs": False, "top_logprobs": 0},
        {"stream_options": {"include_usage": False}},
        {"metadata": {"run": "a"}, "user": "u", "service_tier": "auto"},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "stop": None},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"max_completion_tokens": 3, "max_tokens": 9},
    ],
)
def test_defaults_of_clients_change_nothing(client, field):
    wanted = chat(client, HELLO, max_tokens=3, seed=1).json()["choices"]
    found = chat(client, HELLO, **{"max_tokens": 3, "seed": 1} | field)
    assert found.status_code == 200 and found.json()["choices"] == wanted


def test_parts_of_text_are_one_text(client):
    whole = [
        {"role": "system", "content": "Be brief."},
        HELLO,
        {"role": "assistant", "content": ""},
    ]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": t} for t in ("Be ", "brief.")]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
        {"role": "assistant", "content": [], "tool_calls": None, "refusal": None},
    ]
    answers = [chat(client, *m, max_tokens=5, seed=2).json() for m in (whole, parts)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"] == answers[1]["usage"]


@pytest.mark.parametrize(
    "message, said",
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part"),
        ({"role": "tool", "content": "x"}, "role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "assistant", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ("Hi", "no object"),
    ],
)
def test_messages_that_are_no_text(client, message, said):
    answer = chat(client, HELLO, message, max_tokens=3)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "messages"
    assert "message 1" in error["message"] and said in error["message"]


def test_probabilities_are_the_models_own(client):
    "Against a plain log-softmax of the model's logits, whatever the temperature is."
    body = dict(prompt="To be", max_tokens=6, temperature=0.5, seed=3, logprobs=3)
    choice = post(client, **body).json()["choices"][0]
    told, prompt, model = choice["logprobs"], Bytes().encode("To be", bos=True), small()
    ids = list(generate(model, prompt, 6, 0.5, seed=3, stop_id=1))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1)
    assert told["token_logprobs"] == pytest.approx(
        [wanted[n, i].item() for n, i in enumerate(ids)], rel=1e-5
    )
    for n, likeliest in enumerate(told["top_logprobs"]):
        best = wanted[n].topk(3)
        for i, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            text = Bytes().decode([i])  # several bytes that are no character share one text
            assert likeliest[text] >= logprob - 1e-5
    assert told["tokens"] == [Bytes().decode([i]) for i in ids]
    assert told["text_offset"] == [*range(6)]  # each of these bytes is a letter of the text
    pieces = post(client, **body, stream=True).text.split("\n\n")[:-2]
    choices = [json.loads(piece[6:])["choices"][0] for piece in pieces]
    streamed = [c["logprobs"] for c in choices if c["logprobs"]]
    for name, column in told.items():
        assert sum((part[name] for part in streamed), []) == column


def test_probabilities_of_a_conversation(client):
    plain = post(client, prompt="User: Hi\nAssistant:", max_tokens=4, temperature=0, logprobs=2)
    asked = chat(client, HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    content = asked.json()["choices"][0]["logprobs"]["content"]
    told = plain.json()["choices"][0]["logprobs"]
    assert [c["token"] for c in content] == told["tokens"] and len(content) == 4
    assert [c["logprob"] for c in content] == told["token_logprobs"]
    for entry in content:
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # the likeliest was taken
        assert len(entry["top_logprobs"]) == 2
        assert entry["bytes"] in (None, list(entry["token"].encode()))
    answer = chat(client, HELLO, max_tokens=4, top_logprobs=2)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "top_logprobs"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt(client, stream):
    body = dict(prompt=["To be", [84, 111]], max_tokens=4, seed=3)
    without = [c["text"] for c in post(client, **body).json()["choices"]]
    answer = post(client, **body, echo=True, stream=stream)
    texts = ["", ""]
    if stream:
        for piece in answer.text.split("\n\n")[:-2]:
            choice = json.loads(piece[6:])["choices"][0]
            texts[choice["index"]] += choice["text"]
    else:
        texts = [c["text"] for c in answer.json()["choices"]]
    assert texts == ["To be" + without[0], "To" + without[1]]
    only = post(client, prompt="To be", max_tokens=0, echo=True).json()
    assert only["choices"][0]["text"] == "To be" and only["usage"]["completion_tokens"] == 0


# ---- doors


def test_a_model_by_its_name(client):
    assert client.get("/v1/models/tiny").json() == client.get("/v1/models").json()["data"][0]
    error = client.get("/v1/models/org/gpt-4")
    assert error.status_code == 404 and error.json()["error"]["code"] == "model_not_found"


def test_a_key_is_asked_for():
    with TestClient(make_app(working(), Bytes(), "tiny", api_key="right")) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/models/tiny"):
            for key in ("", "Bearer wrong", "Basic right", "Bearer", "Bearer ri\u00e9"):
                headers = {"authorization": key.encode("latin-1")}
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and "www-authenticate" in answer.headers
            assert client.get(path, headers={"authorization": "bearer right"}).status_code == 200
        assert post(client, prompt="x", max_tokens=3).status_code == 401
        client.headers["authorization"] = "Bearer right"
        assert post(client, prompt="x", max_tokens=3).status_code == 200


def test_other_machines_need_a_key(monkeypatch):
    monkeypatch.delenv("LLAMA_COURSE_API_KEY", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert Serving(host=host).key is None and Serving(host=host).is_local
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org", ""):
        with pytest.raises(UserError, match="--api-key"):
            Serving(host=host).key  # noqa: B018
        assert Serving(host=host, without_key=True).key is None
        assert Serving(host=host, api_key="k").key == "k"
    with pytest.raises(UserError, match="ASCII"):
        Serving(api_key="k\n").key  # noqa: B018
    monkeypatch.setenv("LLAMA_COURSE_API_KEY", "from there")
    assert Serving(host="0.0.0.0").key == "from there"


def test_the_command_names_the_key(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_COURSE_API_KEY", raising=False)
    run = tiny_run(tmp_path / "tiny")
    found = CliRunner().invoke(
        app, ["serve", "--run", str(run), "--host", "0.0.0.0", "--port", "0"]
    )
    assert found.exit_code and "--without-key" in str(found.exception) + found.output


def samples(client):
    text = client.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_happened():
    with TestClient(make_app(working(), Bytes(), "tiny")) as client:
        whole = post(client, prompt="To be", max_tokens=9, n=2, seed=1).json()["usage"]
        post(client, prompt="To be", max_tokens=0)
        client.get("/nothing")
        found = samples(client)
    name = "llama_course_requests_total"
    assert found[name, "/v1/completions", "200"] == found[name, "/v1/completions", "400"] == 1
    assert found[name, "404", "other"] == 1
    assert found["llama_course_generated_tokens_total",] == whole["completion_tokens"]
    assert found["llama_course_prompt_tokens_total",] == 2 * whole["prompt_tokens"]
    first, others = (
        found[f"llama_course_{name}_seconds_count",]
        for name in ("time_to_first_token", "time_per_output_token")
    )
    assert first == 2 and first + others == whole["completion_tokens"]
    assert found["llama_course_texts_running",] == found["llama_course_texts_waiting",] == 0


# ---- one request's fault


@pytest.mark.parametrize("stream", [False, True])
def test_no_numbers_are_refused_to_whom_they_belong(stream):
    model = small()
    model.tok_embeddings.weight.data[200] = torch.nan
    with TestClient(make_app(working(model), Bytes(), "tiny")) as client:
        wanted = post(client, prompt="To", max_tokens=3, temperature=0).json()["choices"]
        answer = post(client, prompt=[84, 200], max_tokens=3, stream=stream)
        assert answer.status_code == 400 and "numbers" in answer.json()["error"]["message"]
        assert post(client, prompt="To", max_tokens=3, temperature=0).json()["choices"] == wanted


def test_a_fault_in_a_stream_that_has_begun_is_its_last_event():
    model, worker = small(), working()
    calls = iter(range(10**6))
    real = worker.batcher.draw

    def draw(row, logits):
        real(row, logits * torch.nan if next(calls) == 3 else logits)

    worker.batcher.draw = draw
    with TestClient(make_app(worker, Bytes(), "tiny")) as client:
        asked = dict(prompt="To", max_tokens=9, temperature=0)
        *pieces, error, done, end = post(client, **asked, stream=True).text.split("\n\n")
        assert "numbers" in json.loads(error[6:])["error"]["message"] and done == "data: [DONE]"
        text = "".join(json.loads(piece[6:])["choices"][0]["text"] for piece in pieces)
        whole = post(client, **asked).json()["choices"][0]["text"]
        assert end == "" and whole.startswith(text) and len(text) < len(whole)
        assert whole == Bytes().decode(generate(model, [0, 84, 111], 9, 0, stop_id=1))


# ---- a real socket


@contextmanager
def running(worker=None, grace=60.0, api_key=None, **limits):
    "uvicorn in a thread: the server and its port."
    service = Service(worker or working(), Bytes(), "tiny", api_key, ConnectionLimits(**limits))
    made, listener = http_server(service, LOCAL, grace), Serving(port=0).listen()
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield made, listener.getsockname()[1]
    finally:
        made.handle_exit(signal.SIGTERM, None)
        made.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive()


def talk(port, *parts):
    "What the server says to these bytes until it closes the connection."
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        said = b""
        while piece := connection.recv(65536):
            said += piece
    return said


BEGUN = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


def test_who_does_not_say_what_they_want_is_closed():
    "A connection without a word, half a header, half a body, too long a body."
    with running(header_seconds=0.3, body_seconds=0.3, body_bytes=100) as (_, port):
        try:
            assert talk(port) == talk(port, BEGUN) == b""
        except ConnectionResetError:
            pass  # the same, said harder
        said = talk(port, BEGUN + b"content-length: 50\r\n\r\n", b'{"model"')
        assert b" 408 " in said.splitlines()[0] and b"body was not there" in said
        for length in (b"content-length: 150", b"transfer-encoding: chunked"):
            body = b" " * 150 if b"150" in length else b"96\r\n" + b" " * 150 + b"\r\n0\r\n\r\n"
            said = talk(port, BEGUN + length + b"\r\n\r\n", body)
            assert b" 413 " in said.splitlines()[0]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/health").status_code == 200


def test_headers_in_time_are_no_fault_however_long_the_answer_takes():
    gate, worker = threading.Event(), working()
    step = worker.batcher.step
    worker.batcher.step = lambda: gate.wait(60) and step()
    with running(worker, header_seconds=0.2) as (_, port):
        threading.Timer(0.6, gate.set).start()
        body = {"model": "tiny", "prompt": "x", "max_tokens": 3}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200


def test_too_many_connections():
    with running(connections=2) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        said = talk(port)
        assert b" 503 " in said.splitlines()[0] and b"too many connections" in said
        for connection in held:
            connection.close()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            while client.get("/health").status_code != 200:
                pass  # until the server has seen that they are gone


def test_the_end_lets_answers_end_and_nothing_begin():
    worker, gate = working(rows=1), threading.Event()
    advance = worker.batcher.advance
    worker.batcher.advance = lambda: gate.wait(60) and advance()
    with running(worker) as (made, port):
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        asked = dict(model="tiny", prompt="To", max_tokens=20, seed=1, stream=True, n=2, echo=True)
        with client, client.stream("POST", "/v1/completions", json=asked) as answer:
            lines = answer.iter_lines()
            begun = [next(lines)]
            made.handle_exit(signal.SIGTERM, None)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as other:
                refused = post(other, prompt="x", max_tokens=3)
                assert refused.status_code == 503 == other.get("/health").status_code
                assert "stopping" in refused.json()["error"]["message"]
            gate.set()
            said = [line for line in [*begun, *lines] if line]
    texts = ["", ""]
    for line in said[:-1]:
        choice = json.loads(line[6:])["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert said[-1] == "data: [DONE]"
    for n, text in enumerate(texts):  # also the one that had not begun
        ids = generate(small(), [0, 84, 111], 20, seed=1 + n, stop_id=1)
        assert text == "To" + Bytes().decode(list(ids))


def test_the_end_cuts_what_does_not_end_in_time():
    worker = working(rows=1)
    worker.batcher.advance = lambda: threading.Event().wait(0.01)  # and nothing is written
    with running(worker, grace=0.0) as (made, port):
        asked = dict(model="tiny", prompt="To", max_tokens=50, echo=True, stream=True)
        url = f"http://127.0.0.1:{port}/v1/completions"
        with httpx.stream("POST", url, json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            made.handle_exit(signal.SIGTERM, None)
            *_, error, done = [line for line in lines if line]
    assert "stopped" in json.loads(error[6:])["error"]["message"] and done == "data: [DONE]"


def test_a_reader_that_reads_nothing_is_let_go():
    with running(write_seconds=0.2, connections=1) as (made, port):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        for _ in range(20_000):  # pipelined, and larger than all buffers between us
            try:
                connection.send(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                break
        while made.server_state.connections:
            threading.Event().wait(0.01)
        connection.close()


def test_the_page_asks_for_the_key(browser):
    context = browser.new_context()
    with running(api_key="right") as (_, port):
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{port}")
        key = tab.get_by_label("API key")
        assert not key.is_visible()
        tab.get_by_label("Message").fill("Hi")
        tab.keyboard.press("Enter")
        key.wait_for(timeout=60_000)
        assert "API key" in tab.locator(".error").inner_text()
        key.fill("right")
        tab.get_by_label("Message").fill("Hi")
        tab.keyboard.press("Enter")
        tab.locator(".assistant").nth(1).filter(has_text=re.compile(r"\S")).wait_for(timeout=60_000)
        tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.locator(".error").count() == 1
        context.close()


# ---- clients, and a fuzz, on a real process


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("server") / "tiny")


@pytest.fixture(scope="module")
def address(run):
    with server(run) as (process, address):
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_hundred_odd_requests(address, run):
    "10,000 of them: `python tests/fuzz_server.py 10000`."
    from fuzz_server import fuzz

    found = fuzz(address, run, 100)
    assert found["wrong"] == [] and found["alive"] and found["others"]
    assert found["200"] >= 10 and found["400"] >= 10


def test_langchain_works_unchanged(address):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain.ChatOpenAI(
        base_url=f"{address}/v1", api_key="none", model="tiny", max_tokens=8, seed=3, max_retries=0
    )
    said = model.invoke("To be?")
    assert said.usage_metadata["output_tokens"] <= 8
    assert "".join(piece.text for piece in model.stream("To be?")) == said.text
    told = model.bind(logprobs=True, top_logprobs=2).invoke(
        [("system", "Be brief."), ("human", "Hi")]
    )
    assert (
        len(told.response_metadata["logprobs"]["content"]) == told.usage_metadata["output_tokens"]
    )
    parts = [{"role": "user", "content": [{"type": "text", "text": "To be?"}]}]
    assert model.invoke(parts).text == said.text


def test_litellm_works_unchanged(address):
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    where = dict(
        model="openai/tiny", api_base=f"{address}/v1", api_key="none", max_tokens=8, seed=3
    )
    messages = [{"role": "user", "content": "To be?"}]
    whole = litellm.completion(messages=messages, **where)
    pieces = litellm.completion(messages=messages, stream=True, **where)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == (whole.choices[0].message.content or "")
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=messages, **where, temperature=9)
