"What the tests of scoring share: a tiny model, requests, and likelihoods of one pass per token."

import torch

from llama_course.likelihood import Choose, Likelihood, encode_pair
from llama_course.model import Llama, LlamaConfig
from llama_course.tasks.registry import TASKS

TEXT = [task.own.read_text(encoding="utf-8") for task in TASKS.values() if task.own]
REQUESTS = [
    Choose("The cat sat on", (" the mat", " the big mat", " a chair")),
    Choose("", ("One.", "Two words.")),
    Choose("Is it so?\nAnswer:", (" yes", " no", " yes and no"), "Answer:"),
    Choose(("Anna spoke because", "Anna sang because"), (" she was glad.",) * 2),
    Choose("Ends with spaces  ", ("one", "two words")),
    Choose("Answer:", (" A", " B", " C", " D")),
]


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=600, max_seq_len=512)
    return Llama(LlamaConfig(**shape | changes)).eval()


@torch.no_grad()
def one_by_one(model, tokenizer, context, option):
    "The reference: an own pass through the whole model for every token of the option."
    before, after = encode_pair(tokenizer, context, option)
    total, greedy = 0.0, True
    for n, target in enumerate(after):
        logits = model(torch.tensor([before + after[:n]]))[0, -1].double()
        total += (logits[target] - logits.logsumexp(0)).item()
        greedy &= bool(logits.argmax() == target)
    return total, greedy


def expected(model, tokenizer, request):
    n = len(request.options)
    contexts = request.context if isinstance(request.context, tuple) else (request.context,) * n
    for context, option in zip(contexts, request.options):
        total, greedy = one_by_one(model, tokenizer, context, option)
        neutral = (
            one_by_one(model, tokenizer, request.neutral, option)[0]
            if request.neutral is not None
            else 0.0
        )
        tokens = len(encode_pair(tokenizer, context, option)[1])
        yield Likelihood(total, tokens, len(option.removeprefix(" ")), greedy, neutral)


def same(found, wanted, tolerance=2e-4):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a[1:4] == b[1:4]
        assert abs(a.total - b.total) < tolerance and abs(a.neutral - b.neutral) < tolerance
