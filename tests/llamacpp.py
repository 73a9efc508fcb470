"""llama.cpp in a process of its own: reads a list of jobs as JSON, prints what it says to each.

A job has the path of a GGUF file, texts to tokenize and prompts to continue greedily. A process of
its own, since a crash there ends more than one test.
"""

import json
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest


def llama_cpp(jobs):
    "One answer for each job; skips the test where llama.cpp is not installed."
    if find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is missing: pip install xllamacpp")
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def answer(job):
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = job["path"]
    settings.n_ctx, settings.n_parallel, settings.verbosity = 512, 1, -1
    settings.cache_type_k = settings.cache_type_v = 0  # F32, where it is F16 by itself
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)

    def post(path, **body):
        request = urllib.request.Request(
            server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return json.loads(urllib.request.urlopen(request).read())

    greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
    said = [
        post("/completion", prompt=prompt, n_predict=16, return_tokens=True, n_probs=4, **greedy)
        for prompt in job["prompts"]
    ]
    steps = [
        [
            {t["id"]: t["logprob"] for t in at["top_logprobs"]}
            for at in one["completion_probabilities"]
        ]
        for one in said
    ]
    return {
        "ids": [post("/tokenize", content=t, add_special=True)["tokens"] for t in job["texts"]],
        "written": [one["tokens"] for one in said],
        "likely": steps,  # before each token written: the four likeliest, id -> log-probability
        "chats": [
            post("/apply-template", messages=messages)["prompt"] for messages in job["chats"]
        ],
    }


if __name__ == "__main__":
    print(json.dumps([answer(job) for job in json.load(sys.stdin)]))
