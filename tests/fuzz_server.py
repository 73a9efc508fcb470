"""Asks a server in every wrong way: `python tests/fuzz_server.py REQUESTS [SEED]`.

A real process, `llama-course serve`, gets the requests; each must be answered with its own text or
its own refusal, never with 500, and what others ask in the meantime must be the text that is
written alone. Prints the answers counted, and what was wrong.
"""

import collections
import contextlib
import json
import sys
import tempfile
import threading
from pathlib import Path

import httpx
import hypothesis
from hypothesis import strategies as st
from served import server, tiny_run

from llama_course.files.load import load
from llama_course.generation import end_ids, generate

HUGE = [2**31, 2**63, 10**40, -1, 1e308, 5e-324, 1e-320, -0.0, 1e999, float("nan")]
texts = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(["To be", "", "\ud800"])
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | texts | st.sampled_from(HUGE)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3)
)
ids = st.lists(st.integers(0, 289) | st.integers(-3, 400), min_size=1, max_size=9)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
roles = st.sampled_from(["user", "system", "developer", "assistant", "tool"])
message = st.fixed_dictionaries(
    {"role": roles, "content": texts | parts},
    optional={"name": texts, "tool_calls": st.none(), "refusal": st.none()},
)
odd_message = st.fixed_dictionaries(
    {"role": roles | anything, "content": texts | parts | anything},
    optional={"name": anything, "tool_calls": anything, "refusal": anything},
)
shares = st.floats(0, 1) | st.sampled_from([5e-324, 1e-320, 1e-45, 0, 1])
neutral = {
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "store": [False],
    "logit_bias": [{}],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto"],
    "best_of": [1],
    "suffix": [""],
}
common = {
    "temperature": st.floats(0, 2) | shares,
    "top_p": shares,
    "min_p": shares,
    "top_k": st.integers(1, 400),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 8),
    "stop": texts | st.lists(texts, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | anything}),
    "max_completion_tokens": st.integers(1, 6),
    "top_logprobs": st.integers(0, 20),
    "logprobs": st.booleans() | st.integers(0, 5),
    "echo": st.booleans(),
    "user": texts,
} | {name: st.sampled_from(values) for name, values in neutral.items()}


@st.composite
def bodies(draw):
    "Path and body of a request: a good one, with some fields good, some not, some unknown."
    path = draw(st.sampled_from(["completions", "chat/completions"]))
    body = {"model": "tiny", "max_tokens": draw(st.integers(1, 6))}
    few = st.lists(message, min_size=1, max_size=3)
    if path == "completions":
        one = texts | ids
        body["prompt"] = draw(one | one | one | st.lists(one, max_size=9) | anything)
    else:
        body["messages"] = draw(few | few | few | st.lists(odd_message, max_size=3) | anything)
    for name in draw(st.lists(st.sampled_from([*common, "model", "max_tokens"]), max_size=4)):
        good = common.get(name, st.integers(0, 6))
        body[name] = draw(good | good | good | good | good | anything)
    if draw(st.integers(0, 19)) == 7:
        body[draw(texts)] = draw(anything)
    return path, body


@st.composite
def requests(draw):
    "Path, headers and content: mostly JSON of a body, sometimes other bytes."
    path, body = draw(bodies())
    content, kind = json.dumps(body).encode(), "application/json"
    if draw(st.integers(0, 19)) == 7:
        content = draw(st.binary(max_size=60)) or content[: draw(st.integers(0, len(content)))]
    if draw(st.integers(0, 39)) == 7:
        kind = draw(st.sampled_from(["text/plain", "", "application/json; charset=utf-8", "é"]))
    return path, {"content-type": kind.encode("latin-1")}, content


def look(answer):
    "What is wrong with an answer; empty: nothing."
    if answer.status_code not in (200, 400, 404, 413, 415, 429):
        return f"{answer.status_code} {answer.text[:300]}"
    try:
        if answer.headers["content-type"].startswith("text/event-stream"):
            *events, done, end = answer.text.split("\n\n")
            read = [json.loads(event.removeprefix("data: ")) for event in events]
            assert done == "data: [DONE]" and end == "" and all("choices" in e for e in read)
        elif answer.status_code == 200:
            assert all(c["finish_reason"] in ("stop", "length") for c in answer.json()["choices"])
        else:
            assert isinstance(answer.json()["error"]["message"], str)
    except (AssertionError, ValueError, KeyError) as error:
        return f"{error!r} in {answer.status_code} {answer.text[:300]}"
    return ""


def control(run, seed):
    "A request, and the text that it must get: the one that `generate` writes alone."
    model, tokenizer = load(run)
    prompt = tokenizer.encode("To be", bos=True)
    written = generate(model, prompt, 20, 0.9, seed=seed, stop_id=end_ids(tokenizer))
    known = len(tokenizer.decode(prompt))
    body = dict(model="tiny", prompt="To be", max_tokens=20, temperature=0.9, seed=seed)
    return body, tokenizer.decode(prompt + list(written))[known:]


class Others:
    "Two who ask for the same texts all the time."

    def __init__(self, address, run):
        self.address, self.wrong, self.asked = address, [], 0
        self.controls, self.enough = [control(run, seed) for seed in range(4)], threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(2)]

    def ask(self, n):
        with httpx.Client(base_url=self.address, timeout=120) as client:
            while not self.enough.is_set() and not self.wrong:
                body, text = self.controls[n]
                with contextlib.suppress(httpx.HTTPError):
                    answer = client.post("/v1/completions", json=body)
                    if answer.status_code != 200 or answer.json()["choices"][0]["text"] != text:
                        self.wrong.append(f"another's text: {answer.text[:300]}")
                    self.asked += 1
                n = (n + 1) % len(self.controls)
                self.enough.wait(0.02)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.enough.set()
        for thread in self.threads:
            thread.join()


def fuzz(address, run, cases, seed=0):
    "Asks so many times; the answers counted, and what was wrong."
    found, wrong = collections.Counter(), []
    with httpx.Client(base_url=address, timeout=120) as client, Others(address, run) as others:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(requests())
        def ask(request):
            path, headers, content = request
            answer = client.post(f"/v1/{path}", headers=headers, content=content)
            found[str(answer.status_code)] += 1
            if found.total() % 500 == 0:
                print(dict(found), len(wrong), file=sys.stderr, flush=True)
            if said := look(answer):
                wrong.append(f"{path} {content[:500]!r}: {said}")

        ask()
        body, text = others.controls[0]  # and it is there in the end, and the same
        last = client.post("/v1/completions", json=body).json()
        alive = client.get("/health").status_code == 200 and last["choices"][0]["text"] == text
    return dict(found) | {"others": others.asked, "wrong": wrong + others.wrong, "alive": alive}


def main(cases, seed=0):
    with tempfile.TemporaryDirectory() as name:
        run = tiny_run(Path(name) / "tiny")
        with server(run) as (process, address):
            found = fuzz(address, run, cases, seed)
            process.terminate()
            errors = process.communicate()[1]
    print(json.dumps(found | {"traceback": errors[-3000:] if "Traceback" in errors else ""}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
