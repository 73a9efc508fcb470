"""Damages files of models and gives them to the command: `python tests/fuzz_files.py CASES [SEED]`.

Each case is a process of its own that runs `llama-course generate`, `chat`, `eval` or `export`. It
must end well, or with one line on standard error and the status 2, under 1 GB and in 10 seconds;
one in a hundred is begun by the shell, as a user does, the others are forked from this process.
Prints a table, what did neither, and the whole as JSON in the last line.
"""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
import torch

import llama_course.command.evaluate
import llama_course.command.export
import llama_course.command.speak  # noqa: F401 - before the fork, so that no case waits for torch
from llama_course.command import cli
from llama_course.files.gguf import gguf_name
from llama_course.files.hugging_face import save_hugging_face
from llama_course.model import Llama, LlamaConfig

SECONDS, BYTES = 10, 10**9
VALUES = [None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**9, 10**400, 1e308, 5e-324, 1.5]
VALUES += [float("nan"), float("inf"), "", "x", "2", "\ud800", "a" * 10_000, [], {}, [1], {"a": 1}]
VALUES += [["x"], [[]], {"content": 3}, {"rope_type": "yarn", "factor": 2}, [2**31], [None]]
LINES = ["To be, or not to be: that is the question 1234.", "    def f(x): return x + 1\n"]


def write_all(folder):
    "A small model in every form, each in a folder of its own: form -> the files to damage."
    torch.manual_seed(0)
    shape = dict(dim=32, n_layers=1, n_heads=2, vocab_size=300, hidden_dim=32, max_seq_len=512)
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


def arguments(path, out, case):
    "What the command is asked with the model at the path; each case another of four."
    return (
        ["generate", "--weights", path, "--tokens", "2", "--temperature", "0", "To be"],
        ["chat", "--weights", path, "--tokens", "2", "--temperature", "0"],
        ["eval", "--model", path, "--tasks", "piqa", "--limit", "1", "--shots", "0"],
        ["export", path, "--to", "gguf", "--kind", "F32", "--out", out],
    )[case % 4]


def forked(words, said, heard):
    "Begins the command in a process that has torch already; its number."
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            for stream, number in ((heard, 0), (said, 1), (said, 2)):
                os.dup2(stream.fileno(), number)
            sys.stdin = open(0, closefd=False)
            sys.argv = ["llama-course", *words]
            cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException as error:
            os.write(
                2, f"Traceback: {type(error).__name__}: {error}"[:500].encode(errors="replace")
            )
        finally:
            os._exit(1)
    return child


def run(words, place, real):
    "The command's end: (status, what it printed, seconds, bytes at its peak)."
    start = time.monotonic()
    with open(place / "said", "w+b") as said, open(place / "heard", "w+b") as heard:
        heard.write(b"To be?\n")
        heard.seek(0)
        if real:
            program = [sys.executable, "-m", "llama_course", *words]
            child = subprocess.Popen(program, stdin=heard, stdout=said, stderr=said).pid
        else:
            child = forked(words, said, heard)
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() - start > (60 if real else SECONDS):  # a busy machine imports long
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        said.seek(0)
        printed = said.read().decode(errors="replace")
    status, used = os.waitstatus_to_exitcode(ended[1]), ended[2]
    return status, printed, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def judge(status, printed, seconds, peak):
    "What became of a case: well, refused, or what is wrong."
    ours = [line for line in printed.splitlines() if line.startswith("llama-course: ")]
    if "Traceback" in printed or status not in (0, 2):
        return f"ended with {status}: {printed[-300:]}"
    if peak > BYTES:
        return f"took {peak:,} bytes"
    if seconds > SECONDS:
        return f"took {seconds:.0f} seconds"
    if status == 2 and (len(ours) != 1 or not printed.rstrip("\n").endswith(ours[0])):
        return f"refused, and not in one line: {printed[-300:]}"
    return "refused" if status else "well"


def main(cases, seed=0):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    table, wrong = defaultdict(Counter), []
    slowest, largest, real = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name)
        if os.fork() == 0:  # so that this process has run nothing of torch's before it forks
            (whole / "forms.json").write_text(json.dumps(write_all(whole)))
            os._exit(0)
        os.wait()
        forms = json.loads((whole / "forms.json").read_text())
        for case in range(-4 * len(forms), cases):  # those before 0 are whole
            chance = random.Random(f"{seed} {case}")
            form = chance.choice(list(forms)) if case >= 0 else list(forms)[case // 4]
            for folder in ("copy", "out"):
                shutil.rmtree(whole / folder, ignore_errors=True)
            shutil.copytree(whole / form, place := whole / "copy")
            file = chance.choice(forms[form])
            if case >= 0:
                damage(place / file, chance)
            path = place / "m.gguf" if form == "gguf" else place
            words = arguments(
                str(path), str(whole / "out"), chance.randrange(4) if case >= 0 else case
            )
            by_shell = case >= 0 and case % 100 == 0
            status, printed, seconds, peak = run(words, whole, by_shell)
            said = judge(status, printed, 0 if by_shell else seconds, peak)
            print(f"{case} {words[0]} {form}/{file} {said}: {printed[-150:]!r}", file=sys.stderr)
            assert case >= 0 or said == "well", (words, printed)
            slowest, largest = max(slowest, 0 if by_shell else seconds), max(largest, peak)
            real += by_shell
            if said not in ("well", "refused"):
                wrong.append(f"case {case}, {words[0]} {form}/{file}: {said}")
                said = "wrong"
            if case >= 0:
                table[words[0]][said] += 1
                table[file if form == "gguf" else f"{form}/{file}"][said] += 1
    print(f"{'':45} {'well':>6} {'refused':>8} {'wrong':>6}")
    for row in sorted(table, key=lambda row: ("/" in row or "." in row, row)):
        print(f"{row:45} {table[row]['well']:6} {table[row]['refused']:8} {table[row]['wrong']:6}")
    counts = sum((table[name] for name in ("generate", "chat", "eval", "export")), Counter())
    found = {said: counts[said] for said in ("well", "refused")}
    found |= {"wrong": wrong, "bytes": largest, "seconds": round(slowest, 2), "by_shell": real}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
