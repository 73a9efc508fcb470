"The command line: every mistake is one line and status 2; standard output has clean data."

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import COMMAND, ran, with_small_files

from llama_course.command import cli, doctor
from llama_course.files import load as files
from llama_course.files.run import RUN_FORMAT
from llama_course.model import Llama, LlamaConfig
from llama_course.support.disk import fingerprint, write_json
from llama_course.tokenizer import Tokenizer

WORDS = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer\n"
BASE = [sys.executable, "-m", "llama_course"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run with a model that has learned nothing."
    folder = tmp_path_factory.mktemp("cli") / "run"
    tokenizer = Tokenizer.train([WORDS * 5], 300, folder / "tokenizer.model")
    torch.manual_seed(0)
    Llama(LlamaConfig(dim=32, n_layers=1, n_heads=2, vocab_size=300, max_seq_len=64)).save(folder)
    write_json(
        folder / "run.json",
        {"format": RUN_FORMAT, "tokenizer": tokenizer.fingerprint, "settings": {}},
    )
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    "The command in this process: status, standard output, standard error."

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llama-course", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, *capfd.readouterr()
        finally:
            signal.signal(signal.SIGTERM, before)

    return call


def refused(outcome, *words):
    "Status 2, nothing on standard output, one line that says it."
    status, out, err = outcome
    assert status == 2 and out == "", (status, out, err)
    assert (
        err.startswith("llama-course: ")
        and err.count("\n") == 1
        and err.endswith("\n")
        and "Traceback" not in err
    )
    for word in words:
        assert str(word) in err, err


@pytest.fixture
def damaged(run, tmp_path):
    "A copy of the run to be spoiled."
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_generate(run, call):
    first, again = (
        call("generate", "--run", run, "--seed", 1, "--tokens", 8, "To be") for _ in range(2)
    )
    assert (
        first == again
        and first[0] == 0
        and first[1].startswith("To be")
        and first[1].endswith("\n")
        and not first[2]
    )
    status, out, err = call("generate", "--run", run, "--seed", 1, "--tokens", 8, "To be", "--json")
    said = json.loads(out)
    assert (
        status == 0
        and not err
        and said["prompt"] + said["text"] + "\n" == first[1]
        and said["tokens"] == 8
    )
    assert call("generate", "--run", run, "--tokens", 3)[0] == 0  # no prompt: a new text


def test_generate_from_packed_weights(run, call, monkeypatch):
    words = ["generate", "--run", run, "--temperature", 0, "--tokens", 8, "To be"]
    packed, asked = files.quantized_model, []
    monkeypatch.setattr(
        files, "quantized_model", lambda path, bits: asked.append(bits) or packed(path, bits)
    )
    assert call(*words, "--bits", 32) == call(*words)
    status, out, err = call(*words, "--bits", 8)
    assert status == 0 and out.startswith("To be") and not err and asked == [32, 8]
    refused(call(*words, "--bits", 5), "5 bits", "8, 16")
    refused(call(*words, "--bits", 4), "rows of 32")


def test_help_everywhere(call):
    status, out, err = call()
    assert status == 0 and not err and call("--help") == call("-h") == (0, out, "")
    for name in cli.COMMANDS:
        status, text, err = call(name, "--help")
        assert status == 0 and text.startswith("Usage: llama-course") and not err
        assert cli.help_line(name)[:40] in out and cli.help_line(name)[:40] in text
    assert call(name, "-h") == (0, text, "")


def test_help_does_not_wait_for_torch():
    code = """import sys
from llama_course.command import cli
sys.argv = ["llama-course", "--help"]
try: cli.main()
except SystemExit: print(*{"torch", "matplotlib", "numpy"} & set(sys.modules), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "\n" and "doctor" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nonsense"], ["No such command"]),
        (["generate", "--token", "5"], ["--token"]),
        (["generate", "--tokens", "many"], ["--tokens"]),
        (["generate", "--run"], ["--run"]),
        (["train", "text.txt"], ["--run"]),
        (["train"], ["texts"]),
        (["demo", "--steps", "1.5"], ["--steps"]),
        (["demo", "--minutes", "0"], ["minutes", "above 0"]),
        (["demo", "--minutes", "nan"], ["minutes", "not nan"]),
        (["demo", "--steps", "-3"], ["steps", "1 or more"]),
        (["demo", "--steps", "5", "--minutes", "1"], ["not both"]),
        (["demo", "--steps", "5", "--seed", "-1"], ["--seed", "not -1"]),
        (["grade"], ["path"]),
    ],
)
def test_wrong_usage(arguments, words, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    refused((status, out, err.lower()), *[w.lower() for w in words])
    assert not list(tmp_path.iterdir())  # and nothing was made


@pytest.mark.parametrize(
    "choices, words",
    [
        (["--tokens", "0"], "--tokens must be 1 or more, not 0"),
        (["--temperature", "-1"], "--temperature must be from 0 to 2"),
        (["--temperature", "inf"], "--temperature must be a number"),
        (["--top-p", "-0.1"], "--top-p must be from 0 to 1"),
        (["--top-p", "1.5"], "--top-p must be"),
        (["--seed", str(2**80)], "--seed must be"),
    ],
)
def test_choices_out_of_range(choices, words, run, call):
    refused(call("generate", "--run", run, *choices, "To"), words)


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    for error in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ):
        monkeypatch.setattr(doctor, "examine", lambda error=error: (_ for _ in ()).throw(error))
        assert cli.app(["doctor"], standalone_mode=False) == 2
        said = capsys.readouterr().err
        assert "memory does not suffice" in said and said.count("\n") == 1


def test_a_mistake_of_ours_stays_loud(monkeypatch):
    for error in (RuntimeError("shapes do not match"), KeyError("x")):
        monkeypatch.setattr(doctor, "examine", lambda error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            cli.app(["doctor"], standalone_mode=False)


def test_prompts_that_cannot_be_read(run, call):
    refused(call("generate", "--run", run, ""), "prompt is empty")
    refused(call("generate", "--run", run, "half \udc80"), "surrogate")
    refused(call("generate", "--run", run, WORDS * 50), "tokens", "64")


def test_a_folder_that_is_no_run(run, call, tmp_path):
    refused(
        call("generate", "--run", tmp_path / "none", "x"), tmp_path / "none", "not a run folder"
    )
    refused(call("generate", "--run", tmp_path, "x"), tmp_path, "not a run folder")
    refused(call("generate", "--run", run / "run.json", "x"), "not a run folder")
    refused(call("generate", "--run", run, "--weights", run, "x"), "--run and --weights")
    refused(call("generate", "--weights", tmp_path, "x"), tmp_path)
    (tmp_path / "run.json").write_text("[]")
    refused(call("generate", "--run", tmp_path, "x"), "run.json")
    (tmp_path / "run.json").write_text("{")
    refused(call("generate", "--run", tmp_path, "x"), "run.json")
    (tmp_path / "run.json").unlink()
    (tmp_path / "letter.txt").write_text("mine")
    refused(call("demo", "--run", tmp_path, "--steps", 1), tmp_path, "other files")
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_a_run_that_is_not_finished(damaged, call):
    (damaged / "model.safetensors").unlink()
    refused(call("generate", "--run", damaged, "x"), damaged, "not finished")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b[:-1],
        lambda b: b[:100],
        lambda b: b"",
        lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:],
        lambda b: pickle.dumps({"a": 1}),
    ],
    ids=["a byte less", "cut", "empty", "one bit", "a pickle"],
)
def test_weights_that_were_altered(spoil, damaged, call):
    path = damaged / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    refused(call("generate", "--run", damaged, "x"), path, "altered")


def test_config_that_was_altered(damaged, call):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"n_heads": 3}))
    refused(call("generate", "--run", damaged, "x"), "heads")
    (damaged / "config.json").write_text(json.dumps(config | {"dim": "wide"}))
    refused(call("generate", "--run", damaged, "x"), "dim")


def test_a_tokenizer_that_does_not_fit(damaged, call):
    path = damaged / "tokenizer.model"
    Tokenizer.train(
        ["Another text altogether, as long as it has to be.\n" * 9], 300, path
    )  # of the same size
    refused(call("generate", "--run", damaged, "x"), path, "not the tokenizer")
    Tokenizer.train([WORDS * 5], 290, path)  # of another size, entered in run.json
    write_json(
        damaged / "run.json", {"format": RUN_FORMAT, "tokenizer": fingerprint(path), "settings": {}}
    )
    refused(call("generate", "--run", damaged, "x"), path, "not the tokenizer")
    path.write_bytes(b"no model")
    refused(call("generate", "--run", damaged, "x"), path)
    path.unlink()
    refused(call("generate", "--run", damaged, "x"), damaged, "tokenizer.model")


def test_own_text_that_is_none(call, tmp_path):
    new = tmp_path / "run"
    (tmp_path / "picture.txt").write_bytes(bytes(range(256)))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short\n")
    refused(call("train", tmp_path / "no.txt", "--run", new)[:2] + ("llama-course: x\n",))
    told = {
        "no.txt": "no.txt",
        "picture.txt": "UTF-8",
        "empty.txt": "too little",
        "short.txt": "too little",
    }
    for name, words in told.items():
        status, out, err = call("train", tmp_path / name, "--run", new, "--steps", 1)
        refused((status, out, err.splitlines(True)[-1]), words)
    refused(call("train", tmp_path / "short.txt", "--run", new, "--model", "8B"), "8B", "demo")


def test_grade_what_is_no_notebook(call, tmp_path):
    (tmp_path / "text.ipynb").write_text("no notebook")
    (tmp_path / "other.ipynb").write_text('{"a": 1}')
    for name in ("none.ipynb", "text.ipynb", "other.ipynb"):
        refused(call("grade", tmp_path / name), tmp_path / name)
    status, out, _ = call("grade", tmp_path)  # a class of two
    assert status == 2 and out.count("not a notebook") == 2


def test_doctor_knows_every_extra():
    settings = (Path(__file__).parents[1] / "settings.ini").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+)_requirements", settings, re.MULTILINE))
    assert {extra for _, extra in doctor.PACKAGES.values()} == extras - {"docs", "bench"}


def test_doctor(call):
    status, out, err = call("doctor")
    assert status == 0 and not err and "Python" in out and "torch" in out and "xformers" in out
    status, out, err = call("doctor", "--json")
    found = json.loads(out)
    assert status == 0 and found["machine"]["torch"] == torch.__version__
    assert all(c["advice"] for c in found["checks"] if not c["good"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on files are POSIX")
def test_a_full_disk(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i} {WORDS}" for i in range(5000)))
    for limit in (2_000, 60_000, 5_000_000):  # the tokenizer, a shard, a checkpoint do not fit
        words = ["train", tmp_path / "text.txt", "--run", tmp_path / str(limit)]
        words += ["--steps", 2, "--vocab-size", 320]
        done = ran(with_small_files, limit, *COMMAND, *words)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "cannot write" in last and "free some space" in last, (
            done.stderr
        )
        assert "Traceback" not in done.stderr and not list((tmp_path / str(limit)).rglob("*.part"))


def test_a_reader_that_goes_away(run):
    process = subprocess.Popen(
        [*BASE, "generate", "--run", run, "--tokens", "50", "To be"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141


def test_ctrl_c_in_the_middle_of_a_text(tmp_path):
    folder = tmp_path / "slow"
    tokenizer = Tokenizer.train([WORDS * 5], 300, folder / "tokenizer.model")
    torch.manual_seed(0)
    Llama(LlamaConfig(dim=512, n_layers=8, n_heads=8, vocab_size=300, max_seq_len=2048)).save(
        folder
    )
    write_json(
        folder / "run.json",
        {"format": RUN_FORMAT, "tokenizer": tokenizer.fingerprint, "settings": {}},
    )
    process = subprocess.Popen(
        [*BASE, "generate", "--run", folder, "--seed", "8", "--tokens", "2000", "To be"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(20).startswith(b"To be")  # it is under way
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read() == b"llama-course: stopped.\n"
