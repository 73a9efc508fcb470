"""Damages files of models in many ways and loads them: `python tests/fuzz_files.py CASES [SEED]`.

Each load must succeed or end in one line, under 1 GB and in 10 seconds. Prints what did neither.
"""

import copy
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
import torch

from llama_course.files.gguf import gguf_name
from llama_course.files.hugging_face import save_hugging_face
from llama_course.files.load import load
from llama_course.generation import generate
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError

VALUES = [None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**9, 10**400, 1e308, 5e-324, 1.5]
VALUES += [float("nan"), float("inf"), "", "x", "2", "\ud800", "a" * 10_000, [], {}, [1], {"a": 1}]
VALUES += [["x"], [[]], {"content": 3}, {"rope_type": "yarn", "factor": 2}, [2**31], [None]]
LINES = ["To be, or not to be: that is the question 1234.", "    def f(x): return x + 1\n"]


def write_all(folder):
    "A small model in every form, each in a folder of its own: form -> the files to damage."
    torch.manual_seed(0)
    shape = dict(dim=32, n_layers=1, n_heads=2, vocab_size=300, hidden_dim=32, max_seq_len=64)
    model = Llama(LlamaConfig(**shape))
    pieces, byte_level = folder / "tokenizer.model", folder / "tokenizer.json"
    with open(pieces, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 20),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            minloglevel=3,
        )
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=297, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES * 20, trainer)
    made.add_special_tokens(["<s>", "</s>", "<|eot|>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A", "$A $B", [("<s>", 297)]
    )
    made.save(str(byte_level))
    beside = {
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "added_tokens_decoder": {"299": {"content": "<|eot|>", "special": True}},
        },
        "generation_config.json": {"eos_token_id": [298, 299]},
    }
    forms = {}
    for form in ("safetensors", "bin", "parts"):
        save_hugging_face(model, folder / form, 2e4 if form == "parts" else 1e9)
        shutil.copy(byte_level, folder / form)
        for name, value in beside.items():
            (folder / form / name).write_text(json.dumps(value))
        forms[form] = sorted(p.name for p in (folder / form).iterdir())
    state = {n: t.clone() for n, t in model.state_dict().items()}
    from safetensors.torch import load_file

    (folder / "bin" / "model.safetensors").rename(folder / "weights")
    torch.save(load_file(folder / "weights"), folder / "bin" / "pytorch_model.bin")
    forms["bin"] = sorted(p.name for p in (folder / "bin").iterdir())
    (folder / "meta").mkdir()
    torch.save(state, folder / "meta" / "consolidated.00.pth")
    params = dict(dim=32, n_layers=1, n_heads=2, multiple_of=32, ffn_dim_multiplier=0.3)
    (folder / "meta" / "params.json").write_text(json.dumps(params | {"vocab_size": -1}))
    shutil.copy(pieces, folder / "meta")
    (folder / "meta" / "added_tokens.json").write_text("{}")
    forms["meta"] = sorted(p.name for p in (folder / "meta").iterdir())
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / "m.gguf", model, pieces)
    forms["gguf"] = ["m.gguf"]
    return forms


def write_gguf(path, model, pieces):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    c, proto = model.config, ModelProto.FromString(pieces.read_bytes())
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(c.max_seq_len), w.add_embedding_length(c.dim)
    w.add_block_count(c.n_layers), w.add_feed_forward_length(c.hidden_dim)
    w.add_head_count(c.n_heads), w.add_head_count_kv(c.n_kv_heads)
    w.add_layer_norm_rms_eps(c.norm_eps), w.add_rope_freq_base(c.rope_theta)
    w.add_rope_scaling_factor(2.0), w.add_rope_dimension_count(c.head_dim)
    w.add_tokenizer_model("llama"), w.add_token_list([p.piece for p in proto.pieces])
    w.add_token_scores([p.score for p in proto.pieces])
    w.add_token_types([p.type for p in proto.pieces])
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)
    for name, t in model.state_dict().items():
        w.add_tensor(gguf_name(name), t.numpy())
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def damaged_json(value, chance):
    "The value with one to three places changed."
    for _ in range(chance.randint(1, 3)):
        at, path = value, []
        while isinstance(at, dict | list) and at and (not path or chance.random() < 0.7):
            key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            path.append((at, key))
            at = at[key]
        if not path or chance.random() < 0.02:
            value = copy.deepcopy(chance.choice(VALUES))
            continue
        holder, key = path[-1]
        if chance.random() < 0.15:
            del holder[key]
        elif chance.random() < 0.15 and isinstance(holder, dict):
            holder[chance.choice(["x", "", "rope_scaling", "head_dim", key + "s"])] = copy.deepcopy(
                holder[key]
            )
        else:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
    return value


def damaged_bytes(content, chance):
    "The content cut, or with some of its bytes changed, mostly near the beginning."
    content = bytearray(content)
    if chance.random() < 0.2:
        return bytes(content[: chance.randrange(len(content))])
    near = min(len(content), chance.choice([64, 400, 4000, len(content)]))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(near)
        if chance.random() < 0.3:
            content[at : at + 8] = chance.choice([0, 1, 2**31, 2**40, 2**62]).to_bytes(8, "little")
        else:
            content[at] = chance.choice([0, 1, 9, 127, 128, 255, chance.randrange(256)])
    return bytes(content)


def damage(path, chance):
    if path.suffix == ".json" and chance.random() < 0.85:
        value = damaged_json(json.loads(path.read_text(encoding="utf-8")), chance)
        path.write_text(json.dumps(value), encoding="utf-8")
    elif path.suffix == ".safetensors" and chance.random() < 0.6:
        content = path.read_bytes()
        n = int.from_bytes(content[:8], "little")
        table = json.dumps(damaged_json(json.loads(content[8 : 8 + n]), chance)).encode()
        path.write_bytes(len(table).to_bytes(8, "little") + table + content[8 + n :])
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), chance))


def try_load(path):
    "What became of it: loaded, refused, or what is wrong."
    try:
        model, tokenizer = load(path)
        ids = tokenizer.encode("To be", bos=True)
        tokenizer.decode(list(generate(model, ids or [1], 2, temperature=0)))
        if getattr(tokenizer, "chat_template", None):
            tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    except UserError as error:
        print(str(error)[-120:], end=" ", file=sys.stderr)
        return "refused" if len(str(error).splitlines()) == 1 else f"many lines: {error}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "loaded"


def main(cases, seed=0):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        forms = write_all(whole := Path(name))
        found = {"loaded": 0, "refused": 0}
        assert all(
            try_load(whole / form / ("m.gguf" if form == "gguf" else "")) == "loaded"
            for form in forms
        ), [try_load(whole / form) for form in forms]
        before, wrong, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], 0.0
        for case in range(cases):
            chance = random.Random(f"{seed} {case}")
            form = chance.choice(list(forms))
            shutil.rmtree(place := whole / "copy", ignore_errors=True)
            shutil.copytree(whole / form, place)
            file = chance.choice(forms[form])
            damage(place / file, chance)
            signal.alarm(10)  # ends this process, and the case is the last that was begun
            print(f"{case} {form}/{file}", end=" ", file=sys.stderr, flush=True)
            start = time.monotonic()
            said = try_load(place / "m.gguf" if form == "gguf" else place)
            slowest = max(slowest, time.monotonic() - start)
            signal.alarm(0)
            print(said, file=sys.stderr, flush=True)
            if said in found:
                found[said] += 1
            else:
                wrong.append(f"case {case}, {form}/{file}: {said}")
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps(found | {"wrong": wrong, "kilobytes": more, "slowest": round(slowest, 2)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
