"The server: continuous batches, OpenAI's protocol, limits, a real process, the page in a browser."

import contextlib
import gc
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from served import Bytes, server, small, tiny_run, working

from llama_course.attention import Attention
from llama_course.generation import KVCache, generate
from llama_course.model import Llama, Parts
from llama_course.server.app import make_app, page, refusal
from llama_course.server.conversation import chat, chat_prompt
from llama_course.server.gate import Service
from llama_course.server.process import Serving, serve
from llama_course.server.requests import Sampling
from llama_course.server.worker import QueueFull
from llama_course.serving import Batcher, Job, step_bytes
from llama_course.support.errors import UserError

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
from starlette.testclient import TestClient  # noqa: E402

# ---- the batcher


def submitted(worker, *jobs):
    "The jobs' texts and events, before they are done."
    texts, events = [[] for _ in jobs], [threading.Event() for _ in jobs]
    for job, text, event in zip(jobs, texts, events):
        job.on_token = lambda i, text=text, event=event: (
            event.set() if i is None else text.append(i)
        )
        worker.submit(job)
    return texts, events


def finished(worker, *jobs):
    texts, events = submitted(worker, *jobs)
    assert all(event.wait(60) for event in events)
    return texts


@pytest.fixture
def worker():
    "Two rows, three may wait."
    made = working()
    yield made
    made.close()


def test_without_a_thread_texts_are_those_written_alone():
    batcher, seen = Batcher(small(), rows=2), []
    jobs = [
        Job([5] * n, m, dict(temperature=1.3), n)
        for n, m in ((1, 30), (40, 5), (3, 61), (2, 1), (9, 0), (4, 7))
    ]
    jobs[5].cancelled, jobs[0].on_token = True, seen.append
    for job in jobs:
        batcher.submit(job)
    while not batcher.is_idle():
        batcher.step()
    for job in jobs[:5]:
        assert job.ids == list(
            generate(small(), job.prompt, job.max_new_tokens, 1.3, seed=job.seed)
        )
    assert seen == [*jobs[0].ids, None] and [job.reason for job in jobs] == ["length"] * 5 + [
        "cancelled"
    ]
    assert batcher.steps == 64 and not any(batcher.cache.users)  # 4 of the second, then 60


def test_in_a_batch_as_alone(worker):
    wanted = [
        ([5] * n, room, seed)
        for n, room, seed in ((1, 30, 1), (40, 5, 2), (3, 61, 3), (2, 1, 4), (9, 20, 5))
    ]
    texts = finished(
        worker, *(Job(p, n, dict(temperature=1.3, top_p=0.9), seed) for p, n, seed in wanted)
    )
    for text, (prompt, n, seed) in zip(texts, wanted):
        assert text == list(generate(small(), prompt, n, 1.3, top_p=0.9, seed=seed))


def test_a_row_goes_to_the_next_before_the_longest_is_done(worker):
    "One long text beside ten short ones: as many steps as the long one has, and not their sum."
    long = Job([1], 60, seed=0)
    short = lambda: Job([2, 3], 6, seed=1)
    texts, events = submitted(worker, long, *(short() for _ in range(4)))
    assert all(event.wait(60) for event in events)
    assert sum(map(len, texts)) == 84 and worker.batcher.steps <= 62


def hooked(model):
    "What each call of the model's attention gets to see: (texts, new tokens, positions)."
    seen = []
    model.layers[0].attention.register_forward_pre_hook(
        lambda _, args: seen.append((*args[0].shape[:2], args[3].end))
    )
    return seen


def written(batcher, *jobs):
    for job in jobs:
        batcher.submit(job)
    while not batcher.is_idle():
        batcher.step()
    cache = batcher.cache
    assert not any(cache.texts) and not any(cache.tables) and not any(cache.users)
    assert len(cache.free) == len(cache.users)
    return [job.ids for job in jobs]


def alone(job):
    return list(generate(small(), job.prompt, job.max_new_tokens, seed=job.seed, **job.sampling))


def test_a_step_looks_at_no_place_that_no_text_has_filled():
    "A context of 64, and steps that see as many positions as the longest text of the moment has."
    model = small()
    seen = hooked(model)
    written(Batcher(model, rows=3), Job([1] * 40, 3, seed=0), Job([1], 9, seed=0))
    both, rest = [(2, 1, 41), (2, 1, 42)], [(1, 1, n) for n in range(3, 10)]
    assert seen == [(1, 40, 40), *both, *rest]


def test_a_long_prompt_is_read_between_the_tokens_of_others():
    model, order = small(), []
    seen = hooked(model)
    jobs = [Job([3], 6, seed=1), Job([2] * 45, 4, dict(temperature=0.8), seed=2)]
    for n, job in enumerate(jobs):
        job.on_token = lambda i, n=n: i is not None and order.append(n)
    batcher = Batcher(model, rows=2, chunk=16)
    assert written(batcher, *jobs) == [*map(alone, jobs)]
    assert [s[1] for s in seen if s[1] > 1] == [16, 16, 13] and order[:4] == [0, 0, 1, 0]


def test_what_prompts_share_is_read_once():
    model = small()
    seen = hooked(model)
    common = [*range(3, 38)]  # 35 tokens: two whole blocks
    jobs = [Job(common + [n] * n, 5, seed=n) for n in range(1, 5)]
    batcher = Batcher(model, rows=3)
    assert written(batcher, *jobs) == [*map(alone, jobs)]
    assert [s[1] for s in seen if s[1] > 1] == [36, 5, 6, 7]  # 35 and n, of which 32 are there
    again = Job(jobs[0].prompt + jobs[0].ids + [9] * 9, 3, seed=5)  # a conversation goes on
    del seen[:]
    assert written(batcher, again) == [alone(again)]
    assert seen[0] == (1, 50 - 32, 50)  # 40 were known, and of them two blocks are whole
    same = Job([*again.prompt[:48]], 3, seed=6)  # ends with a block: the last token is read anew
    del seen[:]
    assert written(batcher, same) == [alone(same)] and seen[0] == (1, 16, 48)


def test_blocks_that_are_taken_again_are_forgotten():
    "A cache for one text of 64, and three texts in turn: the first is no longer known."
    batcher = Batcher(model := small(), rows=1)
    seen, texts = hooked(model), [[n] * 40 for n in (1, 2, 1)]
    jobs = [Job(text, 20, seed=0) for text in texts]
    assert written(batcher, *jobs) == [*map(alone, jobs)]
    assert [s[1] for s in seen if s[1] > 1] == [40, 40, 40]
    assert len(batcher.cache.known) == len(batcher.cache.names) <= 4


@pytest.mark.parametrize("chunk", [5, 64])
def test_where_no_block_is_free_the_last_waits_again(chunk):
    "Room for 64 tokens, and four texts of up to 50 each: all are written as alone."
    jobs = [Job([n] * 9, 40 + n, dict(temperature=1.2), seed=n) for n in range(1, 5)]
    batcher = Batcher(model := small(), rows=4, tokens=64, chunk=chunk)
    seen = hooked(model)
    assert written(batcher, *jobs) == [*map(alone, jobs)]
    assert max(rows for rows, _, _ in seen) > 1  # it was not one after the other
    assert sum(n for _, n, _ in seen if n > 1) > 4 * 9  # some were read again


class Unturned(Attention):
    def forward(self, x, rotary, mask=None, cache=None):
        still = torch.zeros_like(rotary)
        still[..., 0] = 1
        return super().forward(x, still, mask, cache)


def test_a_model_with_an_attention_of_your_own_is_served():
    torch.manual_seed(2)
    model = Llama(small().config, Parts(attention=Unturned)).double().eval()
    worker = working(model)
    prompts = [[5, 6, 7], [9] * 20, [1]]
    texts = finished(worker, *(Job(p, 9, seed=3) for p in prompts))
    assert texts == [list(generate(model, p, 9, seed=3)) for p in prompts]
    worker.close()


def test_a_full_queue_refuses_and_then_takes_again(worker):
    gate = threading.Event()
    slow = Job([1], 5, seed=0, on_token=lambda i: gate.wait(60))
    worker.submit(slow)
    waiting = [Job([1], 2, seed=0) for _ in range(4)]
    texts, events = submitted(worker, *waiting)
    with pytest.raises(QueueFull):
        worker.submit(Job([1], 2))
    gate.set()
    assert all(event.wait(60) for event in events)
    assert len(finished(worker, Job([1], 2))[0]) == 2


def test_who_goes_away_frees_the_row():
    worker, gone = working(rows=1), Job([1], 60, seed=0)
    texts, (event,) = submitted(worker, gone)
    while not texts[0]:
        time.sleep(0.001)
    gone.cancelled = True
    assert event.wait(60) and gone.reason == "cancelled" and len(texts[0]) < 60
    assert len(finished(worker, Job([1], 3))[0]) == 3
    worker.close()


def test_closing_ends_everybody():
    worker = working(rows=1)
    jobs = [Job([1], 60, seed=0) for _ in range(3)]
    _, events = submitted(worker, *jobs)
    worker.close()
    assert all(event.wait(10) for event in events) and not worker.thread.is_alive()
    assert jobs[2].reason == "cancelled"
    with pytest.raises(QueueFull):
        worker.submit(Job([1], 2))


def test_a_fault_in_the_model_leaves_nobody_waiting(capfd):
    worker = working(rows=1)
    both = threading.Event()  # the fault comes when both are in the queue
    worker.batcher.advance = lambda: both.wait(60) and 1 / 0
    jobs = [Job([1], 9), Job([1], 9)]
    _, events = submitted(worker, *jobs)
    both.set()
    assert all(event.wait(60) for event in events)
    assert [job.reason for job in jobs] == [
        "error",
        "error",
    ] and "ZeroDivisionError" in capfd.readouterr().err
    with pytest.raises(QueueFull):
        worker.submit(Job([1], 2))
    assert refusal(Service(worker, Bytes(), "x")).status == 503  # waiting would not help


def test_one_job_s_fault_is_its_own():
    "No numbers, or a fault while drawing: that job ends, and nobody after it reads what it left."
    model = small()
    model.tok_embeddings.weight.data[200] = torch.nan
    worker = working(model, rows=2, waiting=9)
    faults = [
        Job([200], 9),
        Job([1, 200] + [3] * 30, 9),
        Job([1], 9, on_logits=lambda logits: 1 / 0),
    ]
    jobs = [Job([n] * n, 60 - n, dict(temperature=0)) for n in (40, 2, 3, 4, 5)]
    finished(worker, jobs[0], faults[1], jobs[1], jobs[2], faults[0], jobs[3], faults[2], jobs[4])
    assert [job.reason for job in faults] == ["error"] * 3 and not any(job.ids for job in faults)
    assert [type(job.error) for job in faults] == [UserError, UserError, ZeroDivisionError]
    for job in jobs:
        assert job.ids == list(generate(small(), job.prompt, job.max_new_tokens, 0))
    worker.close()


@pytest.mark.parametrize(
    "wrong",
    [dict(prompt=[]), dict(prompt=[999]), dict(max_new_tokens=64), dict(sampling=dict(top_p=7))],
)
def test_jobs_that_cannot_be_are_refused(worker, wrong):
    with pytest.raises(UserError):
        worker.submit(Job(**dict(prompt=[1], max_new_tokens=3) | wrong))
    assert len(finished(worker, *(Job([1], 2) for _ in range(5)))) == 5  # no place was lost


def test_bytes_of_a_step():
    for changes in ({}, dict(n_kv_heads=1), dict(tie_embeddings=True)):
        model = small(**changes)
        read = {p.data_ptr(): p for p in model.parameters() if p.dim() == 2}
        if not model.config.tie_embeddings:
            del read[model.tok_embeddings.weight.data_ptr()]
        weights, cache = step_bytes(model.config, 64, 3, 8)
        assert weights == sum(p.nbytes for p in read.values())
        kept = KVCache(model, 3, 64)
        assert cache == sum(t.nbytes for t in (*kept.keys, *kept.values))


# ---- the protocol


@pytest.fixture(scope="module")
def client():
    with TestClient(make_app(working(), Bytes(), "tiny")) as client:
        yield client


def post(client, path="completions", **body):
    return client.post(f"/v1/{path}", json={"model": "tiny", **body})


def test_models_and_page(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny"]
    answer = client.get("/")
    assert (
        "default-src 'none'" in answer.headers["content-security-policy"] and "tiny" in answer.text
    )
    assert (
        "http" not in page("m") and "&lt;b&gt;" in page("<b>") and "<b>" not in page("<b>")
    )  # and loads nothing


def test_a_completion_is_what_generate_writes(client):
    found = post(
        client, prompt=["To", "be"], max_tokens=9, temperature=0.7, top_k=40, seed=4, n=2
    ).json()
    assert [c["index"] for c in found["choices"]] == [0, 1, 2, 3] and found[
        "object"
    ] == "text_completion"
    for choice, (prompt, seed) in zip(
        found["choices"], [("To", 4), ("To", 5), ("be", 4), ("be", 5)]
    ):
        ids = list(
            generate(small(), Bytes().encode(prompt, bos=True), 9, 0.7, 40, seed=seed, stop_id=1)
        )
        assert choice["text"] == Bytes().decode(ids)
        assert choice["finish_reason"] == ("length" if len(ids) == 9 else "stop")
    assert found["usage"]["prompt_tokens"] == 6
    assert found["usage"]["total_tokens"] == 6 + found["usage"]["completion_tokens"]


def events(answer):
    lines = answer.text.split("\n\n")
    assert lines.pop() == "" and lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_stream_is_the_answer_in_pieces(client):
    body = dict(messages=[{"role": "user", "content": "½?"}], max_tokens=20, seed=2)
    whole = post(client, "chat/completions", **body).json()["choices"][0]
    answer = post(
        client, "chat/completions", **body, stream=True, stream_options={"include_usage": True}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last, usage = events(answer)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [p["choices"][0]["delta"].get("content", "") for p in [*parts, last]]
    assert "".join(pieces) == whole["message"]["content"] and len(pieces) > 3
    assert [p["choices"][0]["finish_reason"] for p in parts] == [None] * len(parts)
    assert last["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0


def test_a_stop_string_ends_an_answer(client):
    text = post(client, prompt="x", max_tokens=40, seed=1).json()["choices"][0]["text"]
    stop = next(c for c in text[5:] if c != "\ufffd")
    found = post(client, prompt="x", max_tokens=40, seed=1, stop=stop).json()["choices"][0]
    assert found == {
        "index": 0,
        "text": text[: text.index(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    "body, status, param",
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "prompt"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": [True]}, 400, "prompt"),
        ({"prompt": ["a", 5]}, 400, "prompt"),
        ({"prompt": "x" * 64}, 400, "prompt"),
        ({"max_tokens": 64}, 400, "prompt"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "9"}, 400, "max_tokens"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"top_p": -1}, 400, "top_p"),
        ({"n": 9}, 400, "n"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": [3]}, 400, "stop"),
        ({"stream": 1}, 400, "stream"),
        ({"logprobs": 6}, 400, "logprobs"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"logprobs": 1, "echo": True}, 400, "logprobs"),
        ({"best_of": 2}, 400, "best_of"),
        ({"prompt": [[True]]}, 400, "prompt"),
        ({"prompt": [["a"]]}, 400, "prompt"),
        ({"presence_penalty": False}, 400, "presence_penalty"),
        ({"store": True}, 400, "store"),
        ({"tools": [{}]}, 400, "tools"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said(client, body, status, param, stream):
    answer = post(client, **{"prompt": "x", "max_tokens": 3, "stream": stream} | body)
    error = answer.json()["error"]
    assert answer.status_code == status and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["param"] == param


def test_numbers_too_small_for_the_model_do_not_stop_it(client):
    for tiny in ({"temperature": 5e-324}, {"top_p": 5e-324}, {"min_p": 0}, {"top_p": 0}):
        assert post(client, prompt="x", max_tokens=3, **tiny).status_code == 200
    assert Sampling(temperature=5e-324, top_p=0.0).settings()["temperature"] == 0


def test_bodies_that_are_no_requests(client):
    send = lambda content, kind="application/json": client.post(
        "/v1/completions", content=content, headers={"content-type": kind}
    )
    for text in ('"\\ud800"', "NaN", "[" * 9999, "1e999", '"x", "temperature": Infinity'):
        assert send('{"model": "tiny", "prompt": ' + text + "}").status_code == 400
    assert send("{").status_code == send("[]").status_code == send(b"\xff").status_code == 400
    assert (
        send('{"model": "tiny", "prompt": "x"}', "text/plain").status_code == 415
    )  # as another site's page would
    assert send(" " * (2**20 + 1)).status_code == 413
    for answer in (client.get("/v1/completions"), client.get("/v1/nothing")):
        assert answer.status_code in (404, 405) and answer.json()["error"]["message"]
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_too_many_at_once_are_told_so():
    gate, worker = threading.Event(), working(rows=1, waiting=1)
    with TestClient(make_app(worker, Bytes(), "tiny")) as client:
        worker.submit(Job([1], 5, seed=0, on_token=lambda i: gate.wait(60)))
        _, (event,) = submitted(worker, Job([1], 2, seed=0))
        answer = post(client, prompt="x", max_tokens=3)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        gate.set()
        assert event.wait(60) and post(client, prompt="x", max_tokens=3).status_code == 200


def test_more_answers_than_rows_wait_their_turn(client):
    found = post(client, prompt=["To", "be"] * 4, n=8, max_tokens=2, seed=3).json()["choices"]
    assert [c["index"] for c in found] == [*range(64)]
    assert [c["text"] for c in found] == [c["text"] for c in found[:16]] * 4


def test_a_request_of_many_jobs_lets_others_in():
    worker, gate, order = working(rows=1, waiting=3), threading.Event(), []
    many = [Job([1], 2, seed=n) for n in range(6)]
    for n, job in enumerate(many):
        job.on_token = lambda i, n=n: gate.wait(60) and i is None and order.append(n)
    worker.submit(*many)
    one, done = Job([1], 2, seed=9), threading.Event()
    one.on_token = lambda i: i is None and (order.append("one"), done.set())
    worker.submit(one)
    gate.set()
    assert done.wait(60) and order.index("one") <= 2
    worker.close()


# ---- talking


def test_plain_and_own_templates():
    ids, stops = chat_prompt(
        Bytes(), [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    assert Bytes().decode(ids) == "System: Be brief.\nUser: Hi\nAssistant:" and "\nUser:" in stops

    class Own(Bytes):
        chat_template = "yes"

        def encode_chat(self, messages):
            return [len(messages)]

    assert chat_prompt(Own(), [{"role": "user", "content": "Hi"}]) == ([1], [])
    for wrong in ([], "Hi", [{"role": "user"}], [{"content": "x"}], [5]):
        with pytest.raises(UserError, match="messages"):
            chat_prompt(Bytes(), wrong)


def test_a_conversation_forgets_its_beginning_in_time():
    shown, lines = [], iter(["one", "two", "three", "four", "five"])

    def say():
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    messages = chat(small(context=96), Bytes(), say, shown.append, tokens=20, seed=1)
    assert messages[-2]["content"] == "five" and len(messages) < 10
    assert "".join(shown).count("\n") >= 5


# ---- a real process


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("serving") / "tiny")


@pytest.fixture(scope="module")
def address(run):
    with server(run) as (process, address):
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.stderr.read()
        assert "Traceback" not in process.stderr.read()


def test_openais_client_works_unchanged(address):
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["tiny"]
    asked = dict(
        model="tiny", messages=[{"role": "user", "content": "To be?"}], max_tokens=12, seed=3
    )
    whole = client.chat.completions.create(**asked)
    pieces = [
        c.choices[0].delta.content or ""
        for c in client.chat.completions.create(**asked, stream=True)
    ]
    assert (
        whole.choices[0].message.content == "".join(pieces) and whole.usage.completion_tokens <= 12
    )
    assert (
        client.completions.create(model="tiny", prompt="To", max_tokens=5, temperature=0)
        .choices[0]
        .text
    )
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(**asked | {"model": "gpt-4"})
    with pytest.raises(openai.BadRequestError, match="512"):
        client.chat.completions.create(**asked | {"max_tokens": 600})


def test_a_reader_that_goes_away_gives_its_row_back(address):
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    for _ in range(24):  # more than rows and queue together
        stream = client.completions.create(model="tiny", prompt="To", max_tokens=500, stream=True)
        next(iter(stream))
        stream.close()
    assert client.completions.create(model="tiny", prompt="To", max_tokens=3).choices
    del stream
    gc.collect()  # the streams end here, and not while another test imports what they need


def ended_by(number, run, httpx):
    "A server that gets the signal in the middle of an answer: its status and its last words."
    body = {"model": "tiny", "prompt": "To", "stream": True, "n": 8}
    with server(run) as (process, address):
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            with contextlib.suppress(httpx.HTTPError):
                for _ in lines:
                    pass
        return process.wait(20), process.stderr.read().strip().splitlines()[-1]


def test_it_ends_cleanly_in_the_middle_of_an_answer(run):
    httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
    with ThreadPoolExecutor(2) as both:  # each waits for its server most of the time
        found = both.map(lambda n: ended_by(n, run, httpx), (signal.SIGINT, signal.SIGTERM))
    assert list(found) == [(0, "stopped")] * 2


def test_an_address_that_is_taken(address):
    with pytest.raises(UserError, match="choose another --port"):
        serve(small(), Bytes(), "x", Serving(port=int(address.rsplit(":", 1)[1])))


def test_the_page_talks(address, browser):
    context = browser.new_context()
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    tab.on(
        "request",
        lambda r: wrong.append(r.url) if not r.url.startswith((address, "data:")) else None,
    )
    tab.goto(address)
    tab.locator("textarea").fill("To be <b>or</b> not?")
    tab.keyboard.press("Enter")
    tab.locator("button", has_text="Send").wait_for(timeout=20_000)
    tab.locator(".assistant").nth(0).filter(has_text=re.compile(r"\S")).wait_for(timeout=20_000)
    tab.locator("button", has_text="Send").wait_for(timeout=20_000)
    assert (
        tab.locator(".user").inner_text() == "To be <b>or</b> not?"
        and tab.locator(".error").count() == 0
    )
    tab.locator("textarea").fill("And now?")
    tab.locator("button").click()
    tab.locator(".assistant").nth(1).filter(has_text=re.compile(r"\S")).wait_for(timeout=20_000)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator(".error").count() == 0
    context.close()
    assert [
        line for line in wrong if "400" not in line
    ] == []  # a browser reports what no longer fitted by itself
