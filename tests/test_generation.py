"Text from a model: the cache against no cache, sampling against transformers and against chance."

import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course.attention import Attention
from llama_course.feedforward import FeedForward
from llama_course.generation import (
    KVCache,
    TextStream,
    generate,
    generate_batch,
    generate_text,
    next_logits,
    sample_next,
    stream_text,
    token_probabilities,
)
from llama_course.model import Llama, LlamaConfig, Parts, hugging_face_settings, to_hugging_face
from llama_course.norm import RMSNorm
from llama_course.support.errors import UserError
from llama_course.tokenizer import Tokenizer


def shaken(dtype=torch.float32, seed=0, **changes):
    "A model far from uniform, so that a wrong position or key changes what it says."
    torch.manual_seed(seed)
    shape = dict(
        dim=48, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=97, hidden_dim=64, max_seq_len=64
    )
    model = Llama(LlamaConfig(**shape | changes)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / (48**0.5 if p.dim() > 1 else 5))
    return model


# ---- the cache


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_split_of_a_text_gives_the_same_logits(data):
    kv = data.draw(st.sampled_from([1, 2, 4]))
    tied, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    model = shaken(torch.float64, seed, n_kv_heads=kv, tie_embeddings=tied)
    n, batch = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 3))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, n - 1)), max_size=6)))
    tokens, cache = torch.randint(97, (batch, n)), KVCache(model, batch, n)
    with torch.no_grad():
        pieces = [
            model(piece, cache=cache) for piece in tokens.tensor_split(cuts, dim=1) if piece.numel()
        ]
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), rtol=1e-9, atol=1e-10)
    assert cache.lengths.tolist() == [n] * batch


def test_the_cache_takes_memory_once_and_hands_out_views():
    model = shaken(torch.bfloat16)
    cache = KVCache(model)
    assert len(cache.keys) == len(cache.values) == 3 and cache.keys[0].shape == (1, 2, 64, 12)
    assert cache.keys[0].dtype == cache.values[0].dtype == torch.bfloat16
    place = cache.keys[0].data_ptr()
    with torch.no_grad():
        for token in range(5):
            model(torch.tensor([[token]]), cache=cache)
    places, end, mask, (layer, *_) = cache.begin(torch.zeros(1, 3))
    keys, values = layer.update(*torch.ones(2, 1, 2, 3, 12))
    assert (
        places == range(5, 8)
        and end == 8
        and mask is None
        and keys.shape == values.shape == (1, 2, 8, 12)
    )
    assert keys.data_ptr() == cache.keys[0].data_ptr() == place
    assert (keys[:, :, 5:] == 1).all() and (cache.keys[0][:, :, 8:] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_full_cache_refuses_and_keeps_what_it_has(n):
    model = shaken()
    cache = KVCache(model, 2, 4)
    with torch.no_grad():
        model(torch.randint(97, (1, 4)), cache=cache[1:])
    before = cache.keys[0].clone()
    assert cache.lengths.tolist() == [0, 4] and not before[0].any()
    for row in (slice(1, 2), slice(0, 2)):  # alone, and beside an empty row
        with pytest.raises(UserError, match=f"{4 + n} tokens .* for 4"):
            model(torch.ones(row.stop - row.start, n, dtype=torch.long), cache=cache[row])
    assert cache.lengths.tolist() == [0, 4] and torch.equal(cache.keys[0], before)


@pytest.mark.parametrize("size", [(0, 8), (-1, 8), (1, 0), (1, 65)])
def test_a_cache_that_cannot_be(size):
    with pytest.raises(UserError):
        KVCache(shaken(), *size)


def test_arguments_that_do_not_fit_are_refused():
    model, tokens = shaken(), torch.ones(2, 3, dtype=torch.long)
    square = torch.ones(2, 3, 3, dtype=torch.bool)
    wrong = [
        dict(cache=KVCache(model, 3)),
        dict(positions=torch.arange(3)),
        dict(positions=torch.ones(3, 3).long()),
        dict(positions=tokens * 64),
        dict(positions=tokens - 2),
        dict(mask=square.float()),
        dict(mask=square[0]),
        dict(mask=square[:, :2]),
        dict(mask=square[..., :2]),
        dict(mask=square, cache=KVCache(model, 3)),
    ]
    for change in wrong:
        with pytest.raises(UserError):
            model(tokens, **change)
    with pytest.raises(UserError):
        model(torch.ones(1, 65, dtype=torch.long))


def test_bytes_of_the_cache_are_those_of_the_release():
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_name("7B")).half()
    cache = KVCache(model, 32, 1024)
    assert sum(t.nbytes for t in (*cache.keys, *cache.values)) == 17_179_869_184


# ---- sampling


SETTINGS = dict(
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 3, 50, 999]),
    top_p=st.sampled_from([None, 1e-9, 0.3, 0.9, 0.999, 1.0]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(**SETTINGS, seed=st.integers(0, 9999), size=st.sampled_from([0.1, 1.0, 10.0]))
def test_probabilities_are_those_of_transformers_warpers(temperature, top_k, top_p, seed, size):
    logits = size * torch.randn(
        3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        theirs = transformers.TopKLogitsWarper(top_k)(None, theirs)
    if top_p:
        theirs = transformers.TopPLogitsWarper(top_p)(None, theirs)
    ours = token_probabilities(logits, temperature, top_k, top_p)
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=1e-9, atol=1e-14)
    if (top_p or 0) < 1:
        assert torch.equal(ours > 0, theirs.softmax(-1) > 0)  # the same tokens remain


def test_top_p_at_the_boundary():
    p = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64)
    for top_p, kept in (
        (0.5, [1]),
        (0.51, [0, 1]),
        (0.75, [0, 1]),
        (1e-12, [1]),
        (1.0, [0, 1, 2, 3]),
    ):
        result = token_probabilities(p.log(), top_p=top_p)
        assert result.nonzero().flatten().tolist() == kept
        torch.testing.assert_close(result[kept], p[kept] / p[kept].sum())


def test_extreme_logits_stay_finite():
    for temperature in (1e-4, 1e4):
        p = token_probabilities(
            torch.tensor([1e4, 9e3, -1e4, -torch.inf]), temperature, top_k=3, top_p=0.9
        )
        assert p.isfinite().all() and abs(p.sum() - 1) < 1e-6 and p[3] == 0


def test_greedy_is_the_likeliest():
    logits = torch.randn(64, 97)
    assert torch.equal(sample_next(logits, temperature=0), logits.argmax(-1))
    assert torch.equal(sample_next(logits, top_k=1), logits.argmax(-1))
    assert torch.equal(sample_next(logits, top_p=1e-6), logits.argmax(-1))


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(temperature=0.5),
        dict(top_k=4),
        dict(top_p=0.8),
        dict(temperature=2.0, top_k=9, top_p=0.9),
    ],
)
def test_draws_are_as_frequent_as_promised(change):
    g, n = torch.Generator().manual_seed(5), 50_000
    logits = torch.randn(12, generator=g)
    seen = torch.bincount(sample_next(logits.expand(n, -1), **change, generator=g), minlength=12)
    expected = n * token_probabilities(logits.double(), **change)
    kept = expected > 0
    assert seen[~kept].sum() == 0
    chi_square, freedom = ((seen - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1
    assert (chi_square - freedom) / (2 * freedom) ** 0.5 < 4.5


@pytest.mark.parametrize("little", [5e-324, 1e-300, 1e-45, 1e-7])
def test_what_is_nothing_to_float32_is_the_likeliest_token(little):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    for least in (dict(temperature=little), dict(top_p=little), dict(min_p=1.0)):
        assert torch.equal(sample_next(logits, **least), logits.argmax(-1))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_k=0),
        dict(top_k=-3),
        dict(top_p=0.0),
        dict(top_p=1.01),
        dict(top_p=-1),
    ],
)
def test_settings_that_leave_nothing_are_refused_at_the_call(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        sample_next(torch.zeros(1, 5), **wrong)
    with pytest.raises(UserError, match=next(iter(wrong))):
        generate(shaken(), [1], 5, **wrong)


# ---- generate


@pytest.mark.parametrize("seed", range(6))
def test_greedy_text_is_that_of_transformers(seed):
    model = shaken(seed=seed, n_kv_heads=[1, 2, 4][seed % 3])
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **hugging_face_settings(model.config),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    reference.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    prompt = torch.randint(97, (1, [1, 2, 13][seed % 3]))
    everything = torch.ones_like(prompt)  # without this mask it takes the id 0 for padding
    theirs = reference.generate(
        prompt, attention_mask=everything, max_new_tokens=40, do_sample=False
    )
    theirs = theirs[0, prompt.size(1) :].tolist()
    assert list(generate(model, prompt[0].tolist(), 40, temperature=0)) == theirs
    assert len(set(theirs)) > 3  # not one token over and over


def test_drawn_text_is_that_of_recomputing_everything():
    model, ids, g = shaken(torch.float64), [5, 6, 7], torch.Generator().manual_seed(3)
    for _ in range(30):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[:, -1]
        ids.append(sample_next(logits, 1.3, 20, 0.95, g).item())
    assert ids[3:] == list(generate(model, ids[:3], 30, 1.3, 20, 0.95, seed=3))


def test_seeds():
    model = shaken()
    text = lambda seed: list(generate(model, [1, 2], 30, seed=seed))
    state = torch.get_rng_state()
    assert text(7) == text(7) != text(8)
    assert text(None) != text(None)
    assert torch.equal(torch.get_rng_state(), state)  # the program's own chance is left alone


def test_what_ends_a_text():
    model, prompt = shaken(), [3] * 10
    text = list(generate(model, prompt, 10_000, seed=0))
    assert len(text) == 64 - 10  # prompt and answer fill the context
    for n in (0, -1):
        assert list(generate(model, prompt, n)) == []
    assert list(generate(model, [3] * 64, 5)) == []
    assert list(generate(model, [3] * 63, 5, seed=0)) != []
    assert list(generate(model, prompt, 7, seed=0)) == text[:7]
    stop = text[20]
    assert list(generate(model, prompt, 50, seed=0, stop_id=stop)) == text[: text.index(stop)]


def test_ids_come_out_as_they_are_made():
    model, calls = shaken(), []
    model.layers[0].register_forward_hook(lambda m, args, out: calls.append(args[0].shape[1]))
    text = generate(model, [1, 2, 3], 50)
    assert calls == []
    list(itertools.islice(text, 4))
    assert calls == [3, 1, 1, 1]


def test_generation_leaves_gradients_on():
    model = shaken()
    text = generate(model, [1], 5)
    next(text)
    assert torch.is_grad_enabled()
    assert model(torch.tensor([[1]])).requires_grad


@pytest.mark.parametrize(
    "prompt", ["text", b"", [], [97], [-1], [1.0], [[1]], 5, torch.tensor([1]), [1] * 65, None]
)
def test_wrong_prompts_are_refused_at_the_call(prompt):
    with pytest.raises(UserError) as error:
        generate(shaken(), prompt, 5)
    assert "\n" not in str(error.value)


# ---- text


class Bytes:
    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(), start=st.text(max_size=3))
def test_streamed_text_has_no_half_characters(text, start):
    pieces = list(stream_text(iter(text.encode()), Bytes(), list(start.encode())))
    assert "".join(pieces) == text and all(pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(junk=st.binary(max_size=30))
def test_streamed_junk_is_what_decoding_gives(junk):
    assert "".join(stream_text(junk, Bytes())) == junk.decode(errors="replace")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    junk=st.lists(
        st.sampled_from([*"½🦙日a".encode(), 0xFF, 0xC3, 0xF0]), min_size=20, max_size=120
    )
)
def test_long_junk_is_what_decoding_gives(junk):
    stream = TextStream(Bytes())
    pieces = [stream.push(i) for i in junk]
    assert "".join(pieces) + stream.end() == bytes(junk).decode(errors="replace")


def sentencepiece(folder, **changes):
    "SentencePiece with the bytes of rare characters, and a space before the text or none."
    import sentencepiece as spm

    from llama_course.tokenizer import SETTINGS

    with open(folder / "t.model", "wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(["To be, or not to be: 12  34"] * 20),
            model_writer=file,
            vocab_size=285,
            **SETTINGS | changes,
        )
    return Tokenizer.load(folder / "t.model")


def byte_level(folder):
    "A tokenizer of merged bytes, as GPT-2's: a token may end within a character."
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    t = tokenizers.ByteLevelBPETokenizer()
    t.train_from_iterator(
        ["To be, or not to be: 12  34 naïve 🦙🦙 日本"] * 20,
        vocab_size=290,
        min_frequency=1,
        show_progress=False,
    )
    return t


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("decoder") for _ in range(2)]
    return [
        sentencepiece(folders[0]),
        sentencepiece(folders[1], add_dummy_prefix=True),
        byte_level(None),
    ]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_ids_in_a_stream_give_the_text_of_all(decoders, data):
    t = decoders[data.draw(st.integers(0, 2))]
    size = t.get_vocab_size() if hasattr(t, "get_vocab_size") else t.vocab_size
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=60))
    prompt = t.encode(data.draw(st.sampled_from(["", "To", " To be ", "½"])))
    prompt = list(getattr(prompt, "ids", prompt))
    stream = TextStream(t, prompt)
    said = "".join(stream.push(i) for i in ids) + stream.end()
    assert said == t.decode(prompt + ids)[len(t.decode(prompt)) :]


@pytest.mark.parametrize(
    "text", ["To be, or not to be ", "½🦙", "\x80"], ids=["letters", "characters", "no characters"]
)
def test_a_long_text_costs_its_length_and_not_its_square(text):
    class Counting(Bytes):
        decoded = 0

        def decode(self, ids):
            self.decoded += len(ids)
            return super().decode(ids)

    costs = []
    for times in (100, 400):
        ids, t = list(text.encode("latin-1" if text == "\x80" else "utf-8")) * times, Counting()
        assert "".join(stream_text(ids, t, list(b"To be, or") * 9)) == bytes(ids).decode(
            errors="replace"
        )
        costs.append(t.decoded)
    assert costs[1] < 5 * costs[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["To be, or not to be, that is the question.\n" * 20]
    return Tokenizer.train(texts, 290, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.mark.parametrize("text", ["to be ½ 🦙 or", "naïve", " two  spaces", "\n\n", "日本語"])
def test_streaming_with_byte_fallback(tokenizer, text):
    prompt = tokenizer.encode("That is: ", bos=True)
    pieces = list(stream_text(tokenizer.encode(text), tokenizer, prompt))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_text_from_a_prompt(tokenizer):
    model = shaken(vocab_size=tokenizer.vocab_size)
    ids = tokenizer.encode("To be", bos=True)
    expected = tokenizer.decode(
        ids + list(generate(model, ids, 20, seed=1, stop_id=tokenizer.eos_id))
    )
    assert "To be" + "".join(generate_text(model, tokenizer, "To be", 20, seed=1)) == expected


def test_text_ends_at_eos(tokenizer):
    model = shaken(vocab_size=tokenizer.vocab_size)
    eos = torch.tensor(tokenizer.eos_id)
    model.output.register_forward_hook(lambda m, args, out: out.index_fill(-1, eos, 1e4))
    assert list(generate_text(model, tokenizer, "To be", 20, temperature=0)) == []


def test_a_tokenizer_that_does_not_fit(tokenizer):
    with pytest.raises(UserError, match="290 tokens, the model 97"):
        generate_text(shaken(), tokenizer, "To", 5)
    model = shaken(vocab_size=tokenizer.vocab_size)
    for prompt in (None, 5, b"To", ["To"]):
        with pytest.raises(UserError):
            generate_text(model, tokenizer, prompt, 5)


def test_sixteen_bits(tokenizer):
    model = shaken(torch.bfloat16)
    assert len(list(generate(model, [1, 2, 3], 20, temperature=0))) == 20


# ---- many texts at once, and the compiled step


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_of_a_batch_do_not_notice_each_other(data):
    model = shaken(
        torch.float64,
        data.draw(st.integers(0, 99)),
        n_kv_heads=data.draw(st.sampled_from([1, 2, 4])),
    )
    texts = [
        torch.randint(97, (data.draw(st.integers(2, 20)),))
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    read = [data.draw(st.integers(1, len(t))) for t in texts]
    cache, seen = KVCache(model, len(texts), 64), []
    with torch.no_grad():
        for row, (t, n) in enumerate(zip(texts, read)):
            cut = data.draw(st.integers(0, n))
            pieces = [
                model(piece[None], cache=cache[row : row + 1])[0]
                for piece in (t[:cut], t[cut:n])
                if len(piece)
            ]
            seen.append(list(torch.cat(pieces)))
        while cache.lengths.lt(torch.tensor([len(t) for t in texts])).any():
            at = cache.lengths.tolist()
            new = torch.tensor([t[i] if i < len(t) else 5 for t, i in zip(texts, at)])
            for row, logits in enumerate(next_logits(model, new, cache)):
                seen[row].append(logits)
        for t, found in zip(texts, seen):
            torch.testing.assert_close(
                torch.stack(found[: len(t)]), model(t[None])[0], rtol=1e-9, atol=1e-10
            )


def test_a_row_that_is_used_again_forgets_the_longer_text_before():
    model = shaken(torch.float64)
    cache, t = KVCache(model, 2, 64), torch.randint(97, (6,))
    with torch.no_grad():
        model(torch.randint(97, (1, 40)), cache=cache[:1])
        cache.lengths[0] = 0
        model(t[None, :5], cache=cache[:1])
        found = next_logits(model, torch.tensor([t[5], 0]), cache)[0]
        torch.testing.assert_close(found, model(t[None])[0, -1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "choices", [dict(temperature=0), dict(seed=3), dict(seed=9, temperature=1.4, min_p=0.05)]
)
def test_a_batch_writes_what_each_prompt_gets_alone(choices):
    model, prompts = shaken(torch.float64), [[1], list(range(40)), [9, 8, 7], [3] * 63]
    alone = [list(generate(model, p, 30, **choices)) for p in prompts]
    assert generate_batch(model, prompts, 30, **choices) == alone
    assert [len(t) for t in alone] == [30, 24, 30, 1]  # two have come to the end of the context
    stop = alone[0][12]
    ended = [list(generate(model, p, 30, stop_id=stop, **choices)) for p in prompts]
    assert generate_batch(model, prompts, 30, stop_id=stop, **choices) == ended


class Unturned(Attention):
    "A learner's own: it is told of no positions, and looks back through the cache it is given."

    def forward(self, x, rotary, mask=None, cache=None):
        still = torch.zeros_like(rotary)
        still[..., 0] = 1
        return super().forward(x, still, mask, cache)


class Ungated(FeedForward):
    def forward(self, x):
        assert x.dim() == 3  # it may count on (B, T, D)
        return self.w2(F.relu(self.w1(x)))


class Centred(RMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    "parts",
    [
        dict(attention=Unturned),
        dict(feed_forward=Ungated, norm=Centred),
        dict(attention=Unturned, feed_forward=Ungated, norm=Centred),
    ],
)
def test_parts_of_your_own_write_the_same_in_company(parts):
    model = own_model(Parts(**parts))
    config = model.config
    prompts = [[1], list(range(40)), [9, 8, 7]]
    alone = []
    for ids in prompts:
        ids = list(ids)
        for _ in range(12):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        alone.append(ids[-12:])
    assert generate_batch(model, prompts, 12, temperature=0) == alone
    if len(parts) == 3:  # compiling takes a while
        assert generate_batch(model, prompts, 12, temperature=0, compiled=True) == alone
    for part in parts:  # each of them matters
        fewer = Llama(
            config, Parts(**{name: own for name, own in parts.items() if name != part})
        ).double()
        fewer.load_state_dict(model.state_dict())
        assert generate_batch(fewer, prompts, 12, temperature=0) != alone


def test_a_map_that_is_more_than_its_weights_is_called():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.flip(-1)

    model = shaken(torch.float64)
    for layer in model.layers:
        new = Adapted(48, 48, bias=False).double()
        new.load_state_dict(layer.attention.wo.state_dict())
        layer.attention.wo = new
    assert generate_batch(model, [[1, 2]], 20, temperature=0) == [
        list(generate(model, [1, 2], 20, temperature=0))
    ]


def test_the_compiled_step_writes_the_same():
    for dtype in (torch.float32, torch.bfloat16):
        model = shaken(dtype, max_seq_len=256)
        for prompt in ([1, 2, 3], [5] * 40)[
            : 2 if dtype == torch.float32 else 1
        ]:  # also beyond a block of 64
            plain = list(generate(model, prompt, 40, temperature=0))
            fast = list(generate(model, prompt, 40, temperature=0, compiled=True))
            assert fast == plain if dtype == torch.float32 else len(fast) == 40
    assert list(generate(shaken(), [1] * 64, 5, compiled=True)) == []


@settings(max_examples=100, deadline=None, derandomize=True)
@given(min_p=st.floats(1e-3, 1), top_p=st.sampled_from([None, 0.4, 0.95]), seed=st.integers(0, 999))
def test_min_p_is_that_of_transformers(min_p, top_p, seed):
    logits = 3 * torch.randn(
        3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    theirs = transformers.TopPLogitsWarper(top_p)(None, logits) if top_p else logits
    theirs = transformers.MinPLogitsWarper(min_p)(None, theirs).softmax(-1)
    torch.testing.assert_close(
        token_probabilities(logits, top_p=top_p, min_p=min_p), theirs, rtol=1e-9, atol=1e-14
    )
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(UserError, match="min_p"):
            sample_next(logits, min_p=wrong)


# ---- stop strings


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("ab½\n", max_size=20),
    stops=st.lists(st.text("ab½\n", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_at_the_first_stop_string(text, stops):
    said = "".join(pieces := list(stream_text(text.encode(), Bytes(), stops=stops)))
    found = [text.find(s) for s in stops if s in text]
    assert not any(s in said for s in stops) and text.startswith(said) and all(pieces)
    if not found:
        assert said == text
    else:
        assert len(said) >= min(found)  # never cut before a stop string begins


def test_what_might_become_a_stop_string_is_held_back():
    stream = TextStream(Bytes(), stops=["END"])
    assert [stream.push(i) for i in b"xENxEND..."] == ["x", "", "", "ENx", "", "", "", "", "", ""]
    assert stream.stopped and stream.end() == ""


def test_of_two_stop_strings_in_one_token_the_first_counts():
    class Sentences:
        def decode(self, ids):
            return "one STOP two END" * len(ids)

    for stops in (["END", "STOP"], ["STOP", "END"]):
        assert list(stream_text([0], Sentences(), stops=stops)) == ["one "]


# ---- one forward pass: parts of one's own, and any module in place of a part


OWN_PARTS = Parts(attention=Unturned, feed_forward=Ungated, norm=Centred)


def own_model(parts=OWN_PARTS):
    torch.manual_seed(4)
    model = Llama(shaken().config, parts).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 4)
    return model


@pytest.mark.parametrize("own", [False, True])
def test_a_tree_of_continuations_is_each_of_its_texts(own):
    "Two texts with one beginning, read at once: what follows it is masked from each other."
    model = own_model() if own else shaken(torch.float64)
    start, first, second = torch.randint(97, (5,)), torch.randint(97, (3,)), torch.randint(97, (4,))
    tokens, positions = torch.cat([start, first, second]), torch.tensor([*range(8), *range(5, 9)])
    mask = torch.ones(12, 12).tril().bool()
    mask[8:, 5:8] = False
    with torch.no_grad():
        both = model(tokens[None], positions[None], mask[None])[0]
        cache = KVCache(model)  # and the same behind a beginning that is already in the cache
        model(start[None], cache=cache)
        behind = model(tokens[None, 5:], positions[None, 5:], mask[None, 5:], cache)[0]
        for text, places in ((first, range(5, 8)), (second, range(8, 12))):
            alone = model(torch.cat([start, text])[None])[0, 5:]
            torch.testing.assert_close(both[places], alone, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(behind[[p - 5 for p in places]], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("own", [False, True])
def test_packed_texts_do_not_see_each_other(own):
    model = own_model() if own else shaken(torch.float64)
    tokens, document = (
        torch.randint(97, (2, 12)),
        torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3]),
    )
    mask = (document[:, :, None] == document[:, None]).tril()
    with torch.no_grad():
        packed = model(tokens, mask=mask)
        for row, cut in ((0, 5), (1, 9)):
            for part in (slice(0, cut), slice(cut, 12)):
                alone = model(tokens[row : row + 1, part])[0]
                torch.testing.assert_close(
                    packed[row, part], alone, rtol=1e-4, atol=1e-5
                )  # angles are float32


class Flipped(torch.nn.Module):
    "No linear layer at all."

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 2 * self.inner(x).flip(-1)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "output", torch.nn.Linear(48, 97).double()),
        lambda m: setattr(m, "output", Flipped(m.output)),
        lambda m: setattr(m, "norm", torch.nn.LayerNorm(48).double()),
        lambda m: setattr(m.layers[1].attention, "wo", torch.nn.Linear(48, 48).double()),
        lambda m: setattr(m.layers[1].attention, "wk", Flipped(m.layers[1].attention.wk)),
        lambda m: setattr(m.layers[0].feed_forward, "w2", torch.nn.Linear(64, 48).double()),
        lambda m: setattr(m.layers[2], "ffn_norm", Flipped(m.layers[2].ffn_norm)),
    ],
)
def test_any_module_in_place_of_a_part(change):
    "A1: one text, a batch of one and of many are written by the same model, whatever its parts."
    torch.manual_seed(1)
    model = shaken(torch.float64)
    before = list(generate(model, [1, 2, 3], 20, temperature=0))
    change(model)
    alone = list(generate(model, [1, 2, 3], 20, temperature=0))
    assert alone != before
    assert generate_batch(model, [[1, 2, 3]], 20, temperature=0) == [alone]
    assert generate_batch(model, [[1, 2, 3], [5]], 20, temperature=0)[0] == alone


def test_the_compiled_step_keeps_a_bias():
    torch.manual_seed(1)
    model = shaken()
    model.output = torch.nn.Linear(48, 97)
    torch.nn.init.normal_(model.output.bias)
    plain = list(generate(model, [1, 2, 3], 20, temperature=0))
    assert list(generate(model, [1, 2, 3], 20, temperature=0, compiled=True)) == plain


def test_a_step_looks_at_filled_places_alone():
    model, cache = shaken(torch.float64), KVCache(shaken(torch.float64), 3, 64)
    seen = []

    class Watched(Attention):
        def forward(self, x, rotary, mask=None, cache=None):
            seen.append((cache.end, None if mask is None else tuple(mask.shape)))
            return super().forward(x, rotary, mask, cache)

    for layer in model.layers:
        layer.attention.__class__ = Watched
    with torch.no_grad():
        model(torch.ones(1, 9, dtype=torch.long), cache=cache[1:2])
        next_logits(model, torch.ones(3, dtype=torch.long), cache)
        cache.lengths[:] = torch.tensor([4, 0, 0])
        next_logits(model, torch.ones(3, dtype=torch.long), cache)
        next_logits(model, torch.ones(1, dtype=torch.long), cache[:1])
    assert seen[::3] == [(9, None), (10, (3, 1, 10)), (5, (3, 1, 5)), (6, None)]
