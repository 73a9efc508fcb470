"What the judge knows of `serve_rows`. Spoilers ahead."

from collections import deque

import torch

from llama_course.classroom.exercise import Exercise
from llama_course.generation import KVCache, next_logits
from llama_course.model import Llama, LlamaConfig


def _small_llama(seed):
    "A model whose choices depend on all that it has read."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = dict(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=24, max_seq_len=24)
        model = Llama(LlamaConfig(**shape)).double().eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() == 2:
                    p.normal_(0, 0.1 if "embeddings" in name else 0.3)
    return model.requires_grad_(False)


def _serve(answer, seed, prompts, lengths, rows, max_len):
    model = _small_llama(seed)

    def watch(module, args, options):
        tokens, cache = args[0], options.get("cache")
        if len(tokens) > rows:
            raise ValueError(f"{len(tokens)} texts are in work at a time, and rows is {rows}")
        if getattr(cache, "max_len", 0) > max_len:
            raise ValueError(f"a row has room for {cache.max_len} tokens, and max_len is {max_len}")

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            return answer(model, prompts, lengths, rows, max_len)
    finally:
        hook.remove()


serve_rows = Exercise(
    "serve_rows",
    chapter="22_serving",
    kind="diagnose",
    minutes=30,
    difficulty=3,
    call=_serve,
    points={"values": 6, "laws": 4},
    hints=(
        "Serve each prompt alone, with a new cache, and compare: which texts differ? What has "
        "their row done before?",
        "cache.lengths[row] says how many places of the row are filled. A row that goes to the "
        "next prompt still has the keys and values of the last one.",
        "next_logits adds a token to *every* row, also to one that nobody uses: set its length "
        "back to 0 each time, or it grows until nothing fits.",
        "The first token of an answer comes from reading the prompt. An answer of one token is "
        "done before the first step.",
    ),
)


@serve_rows.cases
def cases_of_serve_rows(seed):
    random = torch.Generator().manual_seed(seed)
    prompt = lambda n: torch.randint(24, (n,), generator=random).tolist()
    yield seed, [prompt(3)], [4], 2, 8
    yield seed + 1, [prompt(n) for n in (2, 5, 1, 3)], [3, 3, 1, 4], 2, 24
    yield seed + 2, [prompt(n) for n in (4, 1, 5)], [2, 8, 1], 2, 9  # one is long, one ends soon


@serve_rows.reference
def truth_of_serve_rows(seed, prompts, lengths, rows, max_len):
    "One after the other, without a cache."
    model, texts = _small_llama(seed), []
    with torch.no_grad():
        for prompt, length in zip(prompts, lengths):
            ids = list(prompt)
            for _ in range(length):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            texts.append(ids[len(prompt) :])
    return texts


def _served(
    model, prompts, lengths, rows, max_len, *, reset=True, idle=True, at_once=True, newest=True,
    prompt=True, extra=0, row_of=lambda r: r,
):  # fmt: skip
    "The batch, with a place for each mistake."
    cache, tokens = KVCache(model, rows, max_len), torch.zeros(rows, dtype=torch.long)
    texts, jobs, waiting = [[] for _ in prompts], [None] * rows, deque(range(len(prompts)))

    def take(row, logits):
        i = jobs[row]
        if newest:
            tokens[row] = logits.argmax()
        texts[i].append(int(logits.argmax()))

    def leave(row):
        if jobs[row] is not None and len(texts[jobs[row]]) >= lengths[jobs[row]] + extra:
            jobs[row] = None

    while waiting or any(job is not None for job in jobs):
        for row in range(rows):
            while jobs[row] is None and waiting:
                jobs[row] = waiting.popleft()
                if reset:
                    cache.lengths[row] = 0
                read = prompts[jobs[row]] if prompt else prompts[jobs[row]][-1:]
                take(row, model(torch.tensor([read]), cache=cache[row : row + 1])[0, -1])
                if at_once:
                    leave(row)
        if idle:
            for row, job in enumerate(jobs):
                if job is None:
                    cache.lengths[row] = 0
        if all(job is None for job in jobs):
            continue
        logits = next_logits(model, tokens, cache)
        for row, job in enumerate(jobs):
            if job is not None:
                take(row, logits[row_of(row) % rows])
                leave(row)
    return texts


serve_rows.right(_served)


@serve_rows.right
def in_turns_of_one_row(model, prompts, lengths, rows, max_len):
    caches = [KVCache(model, 1, max_len) for _ in prompts]
    texts = []
    for prompt, length, cache in zip(prompts, lengths, caches):
        ids, text = torch.tensor([prompt]), []
        while len(text) < length:
            ids = model(ids, cache=cache)[:, -1:].argmax(-1)
            text += ids[0].tolist()
        texts.append(text)
    return texts


@serve_rows.invariant("a text does not depend on the others")
def a_text_does_not_depend_on_the_others(seen):
    prompts, lengths = [[1, 7, 3], [20, 4], [11]], [3, 2, 4]
    together = seen(8, prompts, lengths, 2, 12).value
    alone = [seen(8, [p], [n], 1, 12).value[0] for p, n in zip(prompts, lengths)]
    return together == alone


@serve_rows.mistake("free rows grow", hint=3)
def free_rows_grow(*args):
    "Every step adds a token to rows that nobody uses, until they are longer than the cache."
    return _served(*args, idle=False)


@serve_rows.mistake("a row for each text", hint=1)
def a_row_for_each_text(model, prompts, lengths, rows, max_len):
    "At most `rows` texts are in work at a time: the others wait until a row is free."
    return _served(model, prompts, lengths, len(prompts), max_len)


@serve_rows.mistake("longer rows", hint=3)
def longer_rows(model, prompts, lengths, rows, max_len):
    "A row has room for max_len tokens; free rows that grow need more, and should not grow."
    return _served(model, prompts, lengths, rows, 24, idle=False)


@serve_rows.mistake("the row keeps its last text", hint=2)
def the_row_keeps_its_last_text(*args):
    "cache.lengths[row] is not set to 0, and the new prompt is read after the old text."
    return _served(*args, reset=False, idle=False)


@serve_rows.mistake("one token too many for the shortest", hint=4)
def one_token_too_many_for_the_shortest(*args):
    "An answer of one token is done after its prompt; you look only after the next step."
    return _served(*args, at_once=False)


@serve_rows.mistake("one token too many", hint=4)
def one_token_too_many(*args):
    "Answers are one token longer than asked for."
    return _served(*args, extra=1)


@serve_rows.mistake("the last token of the prompt alone", hint=1)
def the_last_token_of_the_prompt_alone(*args):
    "The whole prompt must be read into the row."
    return _served(*args, prompt=False)


@serve_rows.mistake("the newest token is not fed", hint=1)
def the_newest_token_is_not_fed(*args):
    "The step must get each row's newest token."
    return _served(*args, newest=False)


@serve_rows.mistake("rows are mixed up", hint=1)
def rows_are_mixed_up(*args):
    "A row gets the logits of its neighbour."
    return _served(*args, row_of=lambda r: r + 1)


@serve_rows.mistake("the code as it was given", hint=1)
def the_server_as_it_was_given(model, prompts, lengths, rows, max_len):
    "The first texts are right. The next ones read what their row has read before."
    return _served(model, prompts, lengths, rows, max_len, reset=False, idle=False, at_once=False)
