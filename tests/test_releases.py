"""Folders as they are published: every file and field of the public ones, few layers, few tokens.

What a stranger downloads is loaded at the first try, and goes out again whole.
"""

import io
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from llama_course.files.export import Export, export
from llama_course.files.load import load
from llama_course.files.pieces import merges_of_pieces, model_of_pieces
from llama_course.generation import generate
from llama_course.support.disk import write_json

tokenizers = pytest.importorskip("tokenizers", reason="pip install 'llama_course[smollm]'")
pytest.importorskip("gguf", reason="pip install 'llama_course[smollm]'")
spm = pytest.importorskip("sentencepiece")
proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

LINES = [
    "To be, or not to be: that is the question 1234.",
    "    def f(x): return x + 1\n",
    "naïve café – ½ 日本 don't I'LL",
    "You are a helpful assistant. Hi there, what is it?",
]
TEXTS = [
    *LINES,
    " ",
    "  two  spaces ",
    "\n\n\t tabs\r\n",
    "🦙🦙 2023 100000",
    " Hi",
    "[INST] x [/INST]",
]
CHAT = [
    {"role": "user", "content": " 1 + 1?\n"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Why? "},
]
FAR = int(1e30)  # what transformers writes for "no limit"
# Templates as short as those of the releases are long, made of the same parts.
LLAMA3_CHAT = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The first message may be the system's. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday is " + date_string + "\\n\\n" }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{{- first + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
    {%- elif message.content is mapping %}
        {{- message.content | tojson }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
    "{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + "
    "' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_CHAT = """{%- set asked = messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in messages %}{%- set ns.index = ns.index + 1 %}{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def token(word):
    "A token as settings files write it."
    return {"content": word} | dict.fromkeys(
        ("lstrip", "normalized", "rstrip", "single_word"), False
    )


def added(words):
    "The list of a tokenizer.json: word -> id."
    return [{"id": i, **token(word), "special": True} for word, i in words.items()]


def begins_with(word, i):
    "The TemplateProcessing that puts a token before each text."
    start = [{"SpecialToken": {"id": word, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": word, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {word: {"id": word, "ids": [i], "tokens": [word]}}
    about = {"type": "TemplateProcessing", "single": start, "pair": start + second}
    return about | {"special_tokens": special}


# The words of Llama 3 that have a meaning, by their place behind the 128,000 merged tokens.
LLAMA3_WORDS = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id"} | {
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",
    9: "eot_id",
    10: "python_tag",
}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3_tokenizer(folder, n, eos, template):
    "tokenizer.json and its settings: n tokens, most of which no merges lead to, and 256 controls."
    parts = tokenizers.pre_tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = parts.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated")
    made.pre_tokenizer = parts.Sequence([split, parts.ByteLevel(False, use_regex=False)])
    letters = parts.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(LINES * 20, trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = model["vocab"]
    vocabulary |= {f"Ġword{i}": i for i in range(len(vocabulary), n)}
    spare = iter(range(256))
    words = {
        f"<|{LLAMA3_WORDS.get(i) or f'reserved_special_token_{next(spare)}'}|>": n + i
        for i in range(256)
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    about = json.loads(made.to_str()) | {
        "added_tokens": added(words),
        "post_processor": {
            "type": "Sequence",
            "processors": [
                byte_level | {"trim_offsets": False, "use_regex": True},
                begins_with("<|begin_of_text|>", n),
            ],
        },
        "decoder": byte_level | {"use_regex": True},
        "model": model | {"ignore_merges": True, "merges": [" ".join(m) for m in model["merges"]]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(about))
    settings = {
        "added_tokens_decoder": {str(i): {**token(w), "special": True} for w, i in words.items()},
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(
        folder / "tokenizer_config.json",
        settings | ({"chat_template": template} if template else {}),
    )
    named = {"bos_token": token("<|begin_of_text|>"), "eos_token": token(eos)}
    write_json(folder / "special_tokens_map.json", named)


def pieces_tokenizer(folder, as_json=True, controls=(), words=(), metaspace=False, **settings):
    """tokenizer.model and, as Llama 2's folder has it too, tokenizer.json. Controls follow </s>, as
    in Mistral v0.3; words stand at the end, as in CodeLlama. Returns the number of tokens.
    """
    file = io.BytesIO()
    about = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity")
    about |= dict(remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=file,
        vocab_size=320,
        split_digits=True,
        minloglevel=3,
        **about,
    )
    found = [
        (p.piece, p.score, p.type) for p in proto.ModelProto.FromString(file.getvalue()).pieces
    ]
    found = found[:3] + [(w, 0.0, 3) for w in controls] + found[3:] + [(w, 0.0, 4) for w in words]
    model = model_of_pieces(found, {"unk": 0, "bos": 1, "eos": 2}, True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    ids = {piece: i for i, (piece, _, _) in enumerate(found)}
    special = {word: ids[word] for word in ("<unk>", "<s>", "</s>", *controls, *words)}
    merges = merges_of_pieces({p: score for p, score, kind in found if kind == 1})
    steps = [{"type": "Prepend", "prepend": "▁"}]
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(special),
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": space if metaspace else None,
        "post_processor": begins_with("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
        "model": dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix"), None)
        | {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        | {"vocab": ids, "merges": [" ".join(pair) for pair in merges]},
    }
    if as_json:
        (folder / "tokenizer.json").write_text(json.dumps(table))
    usual = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", **token("<s>")},
        "clean_up_tokenization_spaces": False,
        "eos_token": {"__type": "AddedToken", **token("</s>")},
        "legacy": False,
        "model_max_length": FAR,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": {"__type": "AddedToken", **token("<unk>")},
    }
    write_json(folder / "tokenizer_config.json", usual | settings)
    named = {f"{name}_token": token(word) for name, word in (("bos", "<s>"), ("eos", "</s>"))}
    write_json(folder / "special_tokens_map.json", named)
    return len(found)


def weights(folder, about, form="safetensors"):
    "config.json as published, but for its sizes, and weights under the names of the release."
    grouped = about["num_key_value_heads"] < about["num_attention_heads"]
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    sizes |= {"num_key_value_heads": 2 if grouped else 4}
    sizes |= {"head_dim": 16} if "head_dim" in about else {}
    write_json(folder / "config.json", about | sizes)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    state = {n: t + torch.randn_like(t) / 8 for n, t in model.state_dict().items()}
    dtype = getattr(torch, about["torch_dtype"])
    state = {n: t.to(dtype) for n, t in state.items()}
    if about["tie_word_embeddings"]:
        del state["lm_head.weight"]
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    for i in range(2):  # as the files of 2023 have it
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    files = {n: f"pytorch_model-{i % 2 + 1:05}-of-00002.bin" for i, n in enumerate(state)}
    for file in set(files.values()):
        torch.save({n: t for n, t in state.items() if files[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    write_json(folder / "pytorch_model.bin.index.json", index)


LLAMA = dict(
    architectures=["LlamaForCausalLM"],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_act="silu",
    initializer_range=0.02,
    model_type="llama",
    num_attention_heads=32,
    num_key_value_heads=32,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    transformers_version="4.35.0",
    use_cache=True,
)


def llama_3(folder, tied, factor, instruct, n=128000):
    ends = [n + 1, n + 8, n + 9] if instruct else n + 1
    draw = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": n}
    write_json(folder / "generation_config.json", draw | {"eos_token_id": ends})
    eos = "<|eot_id|>" if instruct else "<|end_of_text|>"
    llama3_tokenizer(folder, n, eos, LLAMA3_CHAT if instruct else None)
    rope = dict(factor=factor, high_freq_factor=4.0, low_freq_factor=1.0, rope_type="llama3")
    about = dict(bos_token_id=n, eos_token_id=ends, head_dim=64, num_key_value_heads=8)
    about |= dict(max_position_embeddings=131072, mlp_bias=False, rope_theta=500000.0)
    about |= dict(rope_scaling=rope | {"original_max_position_embeddings": 8192})
    weights(folder, LLAMA | about | dict(tie_word_embeddings=tied, vocab_size=n + 256))
    (folder / "original").mkdir()  # Meta's own files beside
    write_json(folder / "original" / "params.json", {"dim": 2048, "use_scaled_rope": True})


def llama_2_chat(folder):
    pieces_tokenizer(folder, chat_template=LLAMA2_CHAT)
    draw = {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0}
    draw |= {"temperature": 0.6, "max_length": 4096, "top_p": 0.9}
    write_json(folder / "generation_config.json", draw)
    about = dict(max_position_embeddings=4096, torch_dtype="float16", vocab_size=320)
    weights(folder, LLAMA | about, "bin")


def mistral_0_1(folder):
    words = {str(i): {**token(w), "special": True} for i, w in enumerate(("<unk>", "<s>", "</s>"))}
    about = dict(added_tokens_decoder=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    pieces_tokenizer(folder, chat_template=LLAMA2_CHAT, legacy=True, **about)
    of = dict(architectures=["MistralForCausalLM"], model_type="mistral", num_key_value_heads=8)
    of |= dict(max_position_embeddings=32768, sliding_window=4096, rope_theta=10000.0)
    weights(folder, LLAMA | of | dict(vocab_size=320))


def mistral_0_3(folder):
    controls = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[control_8]")
    about = dict(chat_template=MISTRAL_CHAT, add_prefix_space=True, additional_special_tokens=[])
    n = pieces_tokenizer(folder, controls=controls, metaspace=True, **about)
    of = dict(architectures=["MistralForCausalLM"], model_type="mistral", num_key_value_heads=8)
    of |= dict(max_position_embeddings=32768, sliding_window=None, rope_theta=1000000.0)
    weights(folder, LLAMA | of | dict(vocab_size=n))
    write_json(folder / "params.json", {"dim": 4096, "n_layers": 32})  # Mistral's own files beside
    (folder / "consolidated.safetensors").write_bytes(b"not read")
    (folder / "tokenizer.model.v3").write_bytes((folder / "tokenizer.model").read_bytes())


def vicuna(folder):
    pieces_tokenizer(folder, as_json=False, model_max_length=4096)
    draw = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(folder / "generation_config.json", draw | {"temperature": 0.9, "top_p": 0.6})
    about = dict(max_position_embeddings=4096, torch_dtype="float16", pad_token_id=0)
    about |= dict(max_sequence_length=16384, rope_scaling={"factor": 4.0, "type": "linear"})
    weights(folder, LLAMA | about | dict(vocab_size=320), "bin")


def code_llama(folder):
    words = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    about = dict(tokenizer_class="CodeLlamaTokenizer", additional_special_tokens=list(words))
    about |= dict(eot_token="▁<EOT>", fill_token="<FILL_ME>", prefix_token="▁<PRE>", legacy=None)
    n = pieces_tokenizer(folder, words=words, chat_template=LLAMA2_CHAT, **about)
    of = dict(max_position_embeddings=16384, rope_theta=1000000, vocab_size=n)
    weights(folder, LLAMA | of)


RELEASES = {
    "Llama-3.2-1B": (lambda folder: llama_3(folder, True, 32.0, False), 131072, {128001}),
    "Llama-3.1-8B-Instruct": (
        lambda folder: llama_3(folder, False, 8.0, True, 600),  # of 128,000
        131072,
        {601, 608, 609},
    ),
    "Llama-2-7b-chat-hf": (llama_2_chat, 4096, {2}),
    "Mistral-7B-Instruct-v0.1": (mistral_0_1, 4096, {2}),
    "Mistral-7B-Instruct-v0.3": (mistral_0_3, 32768, {2}),
    "vicuna-7b-v1.5-16k": (vicuna, 16384, {2}),
    "CodeLlama-7b-Instruct-hf": (code_llama, 16384, {2}),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_strangers_folder_is_loaded_at_the_first_try_and_goes_out_whole(tmp_path, name):
    make, context, stops = RELEASES[name]
    (folder := tmp_path / name).mkdir()
    make(folder)
    model, tokenizer = load(folder, torch.float32)
    assert (model.config.max_seq_len, tokenizer.stop_ids) == (context, stops)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    size = model.config.vocab_size
    tokens = torch.randint(size, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(tokens).logits
        assert (model(tokens) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert len(list(generate(model, tokenizer.encode("Hi", bos=True), 3, temperature=0))) <= 3

    if (folder / "tokenizer.json").exists():  # what its file says, whatever the class makes of it
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for text in TEXTS[: -1 if name.endswith("v0.3") else None]:  # where [INST] is a control
            assert tokenizer.encode(text, bos=True) == reference.encode(text).ids, text
    if (folder / "tokenizer.model").exists():
        pieces = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        for text in TEXTS:
            if not (name.endswith("v0.3") and text[0] == " "):  # whose Metaspace drops the first
                assert tokenizer.encode(text) == pieces.encode(text), text
    if name.startswith("Llama-3"):
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        assert all(tokenizer.encode(t, bos=True) == reference(t)["input_ids"] for t in TEXTS)
        if tokenizer.chat_template:
            wanted = reference.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
            assert tokenizer.encode_chat(CHAT) == wanted

    goes_out_whole(folder, tmp_path, model, tokenizer, tokens)


def goes_out_whole(folder, tmp_path, model, tokenizer, tokens):
    "hf, gguf and, where Meta has had such a model, meta: the same ids, chats, logits, settings."
    settings, table = folder / "generation_config.json", folder / "tokenizer.json"
    given = json.loads(settings.read_text()) if settings.exists() else {}
    drops_a_space = table.exists() and "Metaspace" in table.read_text()  # and others do not
    with torch.no_grad():
        wanted = model(tokens)
    metas = folder.name.startswith(("Llama-2", "CodeLlama"))
    for to in ("hf", "gguf", *(["meta"] if metas else [])):
        export(Export(run=folder, to=to, out=tmp_path / to))
        path = tmp_path / to / "model.gguf" if to == "gguf" else tmp_path / to
        again, words = load(path, torch.float32)
        with torch.no_grad():
            assert (again(tokens) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        for text in TEXTS:
            if to == "hf" or not (drops_a_space and text[0] == " "):
                assert words.encode(text, bos=True) == tokenizer.encode(text, bos=True), (to, text)
        if to == "hf":
            if tokenizer.chat_template:
                assert words.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
            kept = json.loads((path / "generation_config.json").read_text())
            for field in ("do_sample", "temperature", "top_p", "max_length"):
                assert kept.get(field) == given.get(field)


def test_what_vllm_and_ollama_ask_of_the_files(tmp_path):
    "By their documents: names of architecture, tensors, settings; a Modelfile."
    (folder := tmp_path / "m").mkdir()
    llama_2_chat(folder)
    for to in ("hf", "gguf"):
        export(Export(run=folder, to=to, out=tmp_path / to))
    about = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert about["architectures"] == ["LlamaForCausalLM"] and about["model_type"] == "llama"
    config = transformers.LlamaConfig.from_pretrained(tmp_path / "hf")
    with torch.device("meta"):
        names = set(transformers.LlamaForCausalLM(config).state_dict())
    from safetensors import safe_open

    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names and file.metadata() == {"format": "pt"}
        assert {str(file.get_tensor(n).dtype) for n in names} == {f"torch.{about['dtype']}"}
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == LLAMA2_CHAT and settings["eos_token"] == "</s>"
    draw = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert draw["temperature"] == 0.6 and draw["eos_token_id"] == 2
    lines = (tmp_path / "gguf" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf" and Path(tmp_path / "gguf" / "model.gguf").is_file()
    assert "PARAMETER temperature 0.6" in lines and "PARAMETER top_p 0.9" in lines
    allowed = {"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "num_predict"}
    assert all(line.split()[1] in allowed for line in lines[1:])
