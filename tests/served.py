"What the tests of the server share: tiny models, a batcher at work, `serve` in a process."

import contextlib
import re
import time

import torch
from forked import COMMAND, Forked

from llama_course.files.run import RunFolder
from llama_course.model import Llama, LlamaConfig
from llama_course.server.worker import BatchWorker
from llama_course.serving import Batcher
from llama_course.tokenizer import Tokenizer


class Bytes:
    "Each byte is a token; 0 begins and 1 ends a text."

    vocab_size, bos_id, eos_id = 256, 0, 1

    def encode(self, text, bos=False):
        return [0] * bos + list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i > 1).decode(errors="replace")


def small(context=64, seed=0, **changes):
    torch.manual_seed(seed)
    shape = dict(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=256,
        hidden_dim=48,
        max_seq_len=context,
    )
    return Llama(LlamaConfig(**shape | changes)).double().eval()


def working(model=None, rows=2, waiting=3, **choices):
    return BatchWorker(Batcher(model or small(), rows, **choices), waiting)


def tiny_run(folder):
    "A finished run with a model that has learned nothing."
    tokenizer = Tokenizer.train(
        ["To be, or not to be: that is the question.\n" * 9], 290, folder / "tokenizer.model"
    )
    torch.manual_seed(0)
    Llama(LlamaConfig(dim=32, n_layers=1, n_heads=2, vocab_size=290, max_seq_len=512)).save(folder)
    RunFolder(folder).note(tokenizer=tokenizer.fingerprint)
    return folder


@contextlib.contextmanager
def server(run, *flags):
    "`llama-course serve` in a process: the process and its address."
    words = ["serve", "--run", run, "--port", 0, *flags]
    process = Forked(*COMMAND, *words, OMP_NUM_THREADS="1")
    try:
        yield process, address_of(process)
    finally:
        process.kill()
        process.wait()


def address_of(process):
    "Where `serve` answers: it says so as soon as it does."
    said = ""
    while not (found := re.search(r"(http://127\.0\.0\.1:\d+)[^\d]", said)):
        assert process.poll() is None, said + process.stderr.read()
        time.sleep(0.02)
        said += process.stderr.read()
    return found[1]
