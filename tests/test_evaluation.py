"The paper's tasks with given options: likelihoods, items, shots, interruptions, the command."
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_course import likelihood as ev
from llama_course.likelihood import Choose, Likelihood, Task, UserError, Write, likelihoods
from llama_course.generation import generate_text
from llama_course.model import Llama, LlamaConfig, hugging_face_settings, to_hugging_face
from llama_course.support.disk import read_json, write_json
from llama_course.tokenizer import Tokenizer

TEXT = [json.dumps(rows) for rows in ev.OWN.values()]
REQUESTS = [
    Choose("The cat sat on", (" the mat", " the big mat", " a chair")),
    Choose("", ("One.", "Two words.")),
    Choose("Is it so?\nAnswer:", (" yes", " no", " yes and no"), "Answer:"),
    Choose(("Anna spoke because", "Anna sang because"), (" she was glad.",) * 2),
    Choose("Ends with spaces  ", ("one", "two words")),
    Choose("Answer:", (" A", " B", " C", " D"))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXT * 3, 600, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=600, max_seq_len=512)
    return Llama(LlamaConfig(**shape | changes)).eval()


@pytest.fixture(scope="module")
def model(): return make_model()


@torch.no_grad()
def one_by_one(model, tokenizer, context, option):
    "The reference: an own pass through the whole model for every token of the option."
    before, after = ev.encode_pair(tokenizer, context, option)
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
        neutral = one_by_one(model, tokenizer, request.neutral, option)[0] if request.neutral is not None else 0.0
        tokens = len(ev.encode_pair(tokenizer, context, option)[1])
        yield Likelihood(total, tokens, len(option.removeprefix(" ")), greedy, neutral)


def same(found, wanted, tolerance=2e-4):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a[1:4] == b[1:4]
        assert abs(a.total - b.total) < tolerance and abs(a.neutral - b.neutral) < tolerance


# ---------------------------------------------------------------- likelihoods

@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 4, "tie_embeddings": True}, {"n_kv_heads": 1, "rope_theta": 100.0}])
def test_likelihoods_are_those_of_a_pass_a_token(tokenizer, changes):
    model = make_model(3, **changes)
    for request in REQUESTS:
        same(likelihoods(model, tokenizer, request), list(expected(model, tokenizer, request)))


def test_likelihoods_are_the_loss_of_transformers(tokenizer, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **hugging_face_settings(model.config), bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()
    theirs.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    for request in REQUESTS[:3]:
        for option, l in zip(request.options, likelihoods(model, tokenizer, request)):
            before, after = ev.encode_pair(tokenizer, request.context, option)
            labels = torch.tensor([[-100] * len(before) + after])
            with torch.no_grad(): loss = theirs(torch.tensor([before + after]), labels=labels).loss.item()
            assert abs(l.total + loss * len(after)) < 2e-4


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_batches_do_not_change_a_thing(tokenizer, model, batch_tokens):
    found = dict(ev.likelihoods_of(model, tokenizer, REQUESTS, batch_tokens))
    assert sorted(found) == list(range(len(REQUESTS)))
    for i, request in enumerate(REQUESTS): same(found[i], list(expected(model, tokenizer, request)))


def test_judged_in_parts_of_any_size(model):
    torch.manual_seed(1)
    states, places = torch.randn(9, 32), torch.tensor([3, 3, 8, 0, 3, 5])
    targets = torch.tensor([1, 2, 3, 4, 1, 0])
    with torch.no_grad(): logs = model.output(states).log_softmax(-1)
    for rows in (1, 2, 3, 100):
        found, best = ev.judge_places(model, states, places, targets, rows)
        torch.testing.assert_close(found, logs[places, targets], atol=1e-5, rtol=1e-5)
        assert best.tolist() == (logs[places].argmax(-1) == targets).tolist()


@torch.no_grad()
def test_greedy_means_every_token(tokenizer, model):
    before, likeliest = tokenizer.encode("The cat", bos=True), []
    for _ in range(3): likeliest.append(model(torch.tensor([before + likeliest]))[0, -1].argmax().item())
    others = [[(i + (n == at)) % 600 for n, i in enumerate(likeliest)] for at in range(3)]
    tree = ev.grow_tree([(before, after) for after in (likeliest, *others)])
    assert [greedy for _, greedy in ev.score_trees(model, [tree])[0]] == [True, False, False, False]


def test_every_shared_beginning_is_read_once(tokenizer, model, monkeypatch):
    read = []
    states = ev.tree_states
    monkeypatch.setattr(ev, "tree_states", lambda m, tokens, *a: read.append(tokens.numel()) or states(m, tokens, *a))
    for request in REQUESTS:
        n = len(request.options)
        contexts = request.context if isinstance(request.context, tuple) else (request.context,) * n
        contexts += (request.neutral,) * (n if request.neutral is not None else 0)
        beginnings = set()
        for context, option in zip(contexts, request.options * 2):
            before, after = ev.encode_pair(tokenizer, context, option)
            ids = (before + after)[:-1]
            beginnings |= {tuple(ids[: i + 1]) for i in range(len(ids))}
        likelihoods(model, tokenizer, request)
        assert read.pop() == len(beginnings)


def test_who_sees_whom():
    parents = [-1, 0, 1, 1, 3, -1, 5]
    seen = ev.sight(parents, 8)
    def ancestors(i): return {i} | (ancestors(parents[i]) if parents[i] >= 0 else set())
    assert [set(row.nonzero()[0]) for row in seen] == [*map(ancestors, range(7)), {7}]


def test_siblings_and_neighbours_do_not_matter(tokenizer, model):
    alone = likelihoods(model, tokenizer, Choose("The cat sat on", (" the mat",)))[0]
    for others in ((" a chair", " the moon at night"), (" the mat of my aunt",)):
        found = likelihoods(model, tokenizer, Choose("The cat sat on", (" the mat", *others)))[0]
        assert abs(found.total - alone.total) < 1e-4


def test_the_border_between_context_and_option(tokenizer):
    whole = tokenizer.encode("Answer: yes", bos=True)
    before, after = ev.encode_pair(tokenizer, "Answer:", " yes")
    assert before + after == whole and before == tokenizer.encode("Answer:", bos=True)
    assert ev.encode_pair(tokenizer, "Answer: ", "yes") == (before, after)
    for context in ("The cat s", "", "A line\n", "The", "  "):
        for option in ("at", "cat", "\nthe", " the"):
            before, after = ev.encode_pair(tokenizer, context, option)
            assert before and after and tokenizer.decode(before + after) == context + option


def test_a_long_context_is_cut_on_the_left(tokenizer, capsys):
    small = make_model(2, max_seq_len=24)
    long = Choose("The cat sat on the mat. " * 9 + "The cat sat on", (" the mat", " a chair"))
    found = likelihoods(small, tokenizer, long)
    for option, l in zip(long.options, found):
        before, after = ev.encode_pair(tokenizer, long.context, option)
        ids = (before + after)[-25:]
        with torch.no_grad(): logs = small(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        wanted = sum(logs[len(ids) - len(after) - 1 + i, t].item() for i, t in enumerate(after))
        assert abs(l.total - wanted) < 2e-4
    task = Task("cats", "accuracy", (), lambda row: long, lambda item, shots: item, lambda item, answer: 1.0)
    work = [ev.Work(task, i, r, r, 0) for i, r in enumerate((long, REQUESTS[1]))]
    records = [r for batch in ev.choose_all(small, tokenizer, work, set()) for r in batch]
    lost = len(ev.encode_pair(tokenizer, long.context, " the mat")[0]) - 24
    assert [r["cut"] for r in records if "cut" in r] and lost <= records[0]["cut"] <= lost + 5
    assert ev.summary(work, records)["tasks"]["cats"]["cut"] == 1
    assert "1 of 2 items are longer than the model's context" in capsys.readouterr().err
    with pytest.raises(UserError, match="leaves no room"):
        likelihoods(small, tokenizer, Choose("The", (" cat" * 40, " dog")))


@pytest.mark.parametrize("context, options", [("a", ()), ("a", ("",)), (("a",), (" b", " c"))])
def test_requests_that_make_no_sense(context, options):
    with pytest.raises(UserError): Choose(context, options)


# ---------------------------------------------------------------- rules

def test_the_three_rules_choose_differently():
    short = Likelihood(-6.0, 1, 3, False, -8.0)
    long = Likelihood(-10.0, 4, 20, False, -11.0)
    likely_anyway = Likelihood(-9.0, 2, 9, False, -3.0)
    answer = [short, long, likely_anyway]
    assert [ev.choice(answer, rule) for rule in (ev.in_total, ev.per_character, ev.against_neutral)] == [0, 1, 0]
    assert ev.against_neutral(short) == 2.0 and ev.per_character(long) == -0.5
    assert ev.choice([short, short]) == 0


def test_mean_and_error():
    scores = [1, 0, 1, 1, 0, 0, 0, 1, 1]
    found, t = ev.mean_and_error(scores), torch.tensor(scores).double()
    assert found["n"] == 9 and math.isclose(found["value"], t.mean()) and math.isclose(found["stderr"], t.std() / 3)
    assert ev.mean_and_error([0.0]) == {"value": 0.0, "stderr": None, "n": 1}


# ---------------------------------------------------------------- tasks

def request_of(name, row, shots=()):
    task = ev.find_task(name)
    return task.ask(task.read(ev.Row(row)), [task.read(ev.Row(shot)) for shot in shots])


ROWS = {
    "piqa": {"goal": "Boil it.", "sol1": "Use fire.", "sol2": "Use ice.", "label": 1},
    "social_iqa": {"context": "Al fell.", "question": "How is Al?", "answerA": "hurt", "answerB": "rich", "answerC": "far",
                   "label": "1"},
    "hellaswag": {"activity_label": "Rowing", "ctx_a": "A man rows [step] now.", "ctx_b": "he", "label": "2",
                  "endings": ["stops [title] Rest.", "a", "b", "c"]},
    "winogrande": {"sentence": "The cup left the box as _ was big.", "option1": "the cup", "option2": "the box",
                   "answer": "2"},
    "arc_easy": {"question": "Hot?", "choices": {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]},
                 "answerKey": "2"},
    "openbookqa": {"question_stem": "Fire is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "A "},
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    "race_high": {"article": "Ice is cold.", "question": "What is it?", "options": ["a", "b", "c", "d"], "answer": "D"},
    "mmlu": {"question": " Hot? ", "choices": ["ice", "fire", "air", "sea"], "answer": 1, "subject": "high_school_physics"}}
WANTED = {
    "piqa": ("Question: Boil it.\nAnswer:", (" Use fire.", " Use ice."), None, 1),
    "social_iqa": ("Q: Al fell. How is Al?\nA:", (" hurt", " rich", " far"), None, 0),
    "hellaswag": ("Rowing: A man rows now. He", (" stops. Rest.", " a", " b", " c"), None, 2),
    "winogrande": (("The cup left the box as the cup", "The cup left the box as the box"), (" was big.",) * 2, None, 1),
    "arc_easy": ("Question: Hot?\nAnswer:", (" ice", " fire", " air"), None, 1),
    "openbookqa": ("Fire is", (" hot", " cold"), "Answer:", 0),
    "boolq": ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", (" no", " yes"), "Answer:", 1),
    "race_high": ("Article: Ice is cold.\n\nQuestion: What is it?\nAnswer:", (" a", " b", " c", " d"), None, 3),
    "mmlu": ("The following are multiple choice questions (with answers) about high school physics.\n\n"
             "Hot?\nA. ice\nB. fire\nC. air\nD. sea\nAnswer:", (" A", " B", " C", " D"), None, 1)}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_public_data_becomes_a_request(name):
    context, options, neutral, gold = WANTED[name]
    assert request_of(name, ROWS[name]) == Choose(context, options, neutral)
    assert ev.find_task(name).read(ROWS[name]).gold == gold


def test_the_rules_are_the_papers():
    rules = {name: ev.TASKS[name].rule for name in ev.HUB}
    assert {name for name, rule in rules.items() if rule is ev.against_neutral} == {"openbookqa", "boolq"}
    assert {name for name, rule in rules.items() if rule is ev.in_total} == {"winogrande", "mmlu"}  # equal lengths
    assert len(rules) == 11 and {name: ev.TASKS[name].shots for name in rules if ev.TASKS[name].shots} == {"mmlu": 5}


def test_shots_are_solved_items():
    shot = ROWS["winogrande"] | {"answer": "1"}
    request = request_of("winogrande", ROWS["winogrande"], [shot])
    assert request.context[1] == "The cup left the box as the cup was big.\n\nThe cup left the box as the box"
    head = WANTED["mmlu"][0].partition("Hot?")[0]
    request = request_of("mmlu", ROWS["mmlu"], [ROWS["mmlu"] | {"question": "Cold?", "answer": 0}] * 2)
    assert request.context.startswith(head + "Cold?\n") and request.context.count("Answer: A\n\n") == 2
    assert request.context.count(head) == 1


@pytest.mark.parametrize("name, column", [(name, column) for name, row in ROWS.items() for column in row])
def test_a_missing_column_is_named(name, column, tmp_path):
    row = {key: value for key, value in ROWS[name].items() if key != column}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[name]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"{name}.jsonl, row 2: there is no column '{column}'"): ev.load_items(name, tmp_path)


@pytest.mark.parametrize("text, words", [
    ("", "there is no item"), ("\n\n", "there is no item"), ("[1]", "line 1 is no JSON object"),
    ("{'a': 1}", "line 1 is not JSON"),
    (json.dumps(ROWS["piqa"] | {"label": ""}), "row 1 is no item of piqa"), ("\0\0", "not JSON"),
    (json.dumps(ROWS["piqa"] | {"label": None}), "row 1 is no item of piqa")])
def test_bad_files_are_named(tmp_path, text, words):
    (tmp_path / "piqa.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as found: ev.load_items("piqa", tmp_path)
    assert str(tmp_path) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("name, row, gold", [
    ("arc_easy", {"answerKey": "9"}, None), ("race_high", {"answer": "E"}, None), ("mmlu", {"choices": ["a", "b"]}, None),
    ("piqa", {"label": 7}, None), ("social_iqa", {"label": "0"}, None), ("hellaswag", {"label": "4"}, None),
    ("boolq", {"label": -1}, None)])
def test_an_answer_that_no_option_has_is_refused(tmp_path, name, row, gold):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[name] | row))
    with pytest.raises(UserError, match=f"row 1 is no item of {name}"): ev.load_items(name, tmp_path)


def test_items_come_from_files_of_three_kinds(tmp_path):
    rows = ev.OWN["piqa"]
    wanted = ev.load_items("piqa")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for kind, bar in (("csv", ","), ("tsv", "\t")):
        lines = [bar.join(rows[0])] + [bar.join(f'"{v}"' for v in r.values()) for r in rows]
        (tmp_path / f"a.{kind}").write_text("\ufeff" + "\n".join(lines))
    for path in ("a.jsonl", "a.csv", "a.tsv"): assert ev.load_items("piqa", tmp_path / path) == wanted
    for path, words in ((tmp_path, "no piqa.jsonl"), (tmp_path / "none", "does not exist")):
        with pytest.raises(UserError, match=words): ev.load_items("piqa", path)


def test_items_come_from_the_package_datasets(monkeypatch):
    calls = []
    class Datasets:
        @staticmethod
        def load_dataset(path, config, split):
            if path == "Rowan/hellaswag": raise ConnectionError("no network\nat all")
            calls.append((path, config, split))
            return ev.OWN["mmlu"]
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert ev.load_items("mmlu", "hf") == ev.load_items("mmlu")
    assert len(ev.load_shots("mmlu", "hf")) == 12 and calls == [("cais/mmlu", "all", s) for s in ("test", "dev")]
    with pytest.raises(UserError, match="ConnectionError no network$"): ev.load_items("hellaswag", "hf")
    calls.clear()
    rows, where = ev.hub_rows("a/b", ("algebra", "geometry"), "test")  # MATH is seven parts
    assert len(rows) == 24 and calls == [("a/b", p, "test") for p in ("algebra", "geometry")] and "algebra geometry" in where
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install"): ev.load_items("mmlu", "hf")


def test_an_unknown_task_names_its_neighbours():
    with pytest.raises(UserError, match="arc_easy"): ev.find_task("arc_eazy")
    with pytest.raises(UserError, match="winogrande"): ev.find_task("wino")


def test_own_items_are_sound():
    for name, rows in ev.OWN.items():
        if name not in ev.HUB: continue
        items = ev.load_items(name)
        assert 4 <= len(items) <= 12 and len(set(items)) == len(items)
        assert len({item.gold for item in items}) > 1  # a model that always takes the first does not win
        for item in items: assert len(item.options) > 1 and all(item.options)


# ---------------------------------------------------------------- shots and limits

def test_shots_never_show_the_question(tmp_path):
    items = ev.load_items("mmlu")
    for item in items:
        shots = ev.shots_for(item, ev.by_subject(items), 5)
        assert len(shots) == 5 and item not in shots and {s.group for s in shots} == {item.group}
    assert ev.shots_for(items[0], ev.by_subject(items), 99) == items[1:6]
    rows = ev.OWN["mmlu"]
    (tmp_path / "mmlu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    (tmp_path / "mmlu.shots.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[1:4]))
    work = ev.plan_work([ev.TASKS["mmlu"]], tmp_path)
    assert [w.shots for w in work] == [3, 2]  # the second question is among the shots
    assert work[1].request.context.count(work[1].item.text) == 1


def test_limits_count_in_each_subject():
    assert [i.group for i in ev.load_items("mmlu", limit=2)] == ["astronomy"] * 2 + ["high_school_geography"] * 2
    assert len(ev.load_items("piqa", limit=4)) == 4
    assert len(ev.plan_work([ev.TASKS["mmlu"]], limit=1, shots=5)[0].request.context.split("\n\n")) == 7


# ---------------------------------------------------------------- writing

def test_greedy_answers_are_those_of_generation(tokenizer, model):
    for prompt, stop in (("The cat", ()), ("Question: why", (" ",)), ("x", ("e", "a"))):
        plain = "".join(generate_text(model, tokenizer, prompt, 20, stops=stop, temperature=0))
        assert ev.write(model, tokenizer, Write(prompt, stop, 20)) == [plain]


def test_samples_are_drawn_apart_and_repeat(tokenizer, model):
    request = Write("The cat", (), 12, samples=20, temperature=1.0, top_p=0.9)
    texts = ev.write(model, tokenizer, request)
    assert len(texts) == 20 and len(set(texts)) > 10
    assert ev.write(model, tokenizer, request) == texts != ev.write(model, tokenizer, request, seed=1)


def test_a_prompt_is_read_once_for_its_samples(tokenizer, model, monkeypatch):
    read = []
    with model.tok_embeddings.register_forward_hook(lambda m, args, out: read.append(args[0].shape)):
        ev.write(model, tokenizer, Write("The cat", (), 3, samples=9, temperature=1.0))
    assert read[0][0] == 1 and read[1:] == [(9, 1)] * 2


def writing(k=2):
    return Task("capital", "exact match", (), lambda row: row["q"], lambda q, shots: Write(q, ("\n",), 10, k, 1.0),
                lambda q, texts: float(len(texts[0]) > 3))


def test_neighbours_do_not_change_what_is_written(tokenizer, model):
    task = writing()
    prompts = "The cat", "A much longer prompt of many words", "x"
    work = [ev.Work(task, i, q, task.ask(q, []), 0) for i, q in enumerate(prompts)]
    whole = {r["index"]: r for batch in ev.write_all(model, tokenizer, work, set()) for r in batch}
    for i in range(3):
        alone = next(ev.write_all(model, tokenizer, work[i : i + 1], set()))[0]
        assert alone == whole[i] and len(alone["texts"]) == 2
    rest = [r["index"] for batch in ev.write_all(model, tokenizer, work, {("capital", 1)}) for r in batch]
    assert sorted(rest) == [0, 2]


def test_a_long_prompt_is_cut_so_that_the_answer_fits(tokenizer):
    small = make_model(max_seq_len=24)
    long = Write("The cat sat on the mat. " * 9, (), 10)
    ids, lost = ev.prompt_ids(small, tokenizer, long)
    assert len(ids) == 14 and lost > 0 and len(ev.write(small, tokenizer, long)) == 1
    with pytest.raises(UserError, match="leave no room"): ev.write(small, tokenizer, Write("x", (), 24))


# ---------------------------------------------------------------- the whole

def test_scores_are_those_of_the_requests(tokenizer, model):
    result = ev.evaluate(model, tokenizer, ["piqa", "openbookqa", "mmlu"], progress=False)
    rows = iter(result["items"])
    for name in ("piqa", "openbookqa", "mmlu"):
        task, items = ev.TASKS[name], ev.load_items(name)
        pool, scores = ev.by_subject(items), []
        for i, item in enumerate(items):
            request = task.ask(item, ev.shots_for(item, pool, task.shots))
            answer, row = list(expected(model, tokenizer, request)), next(rows)
            scores.append(float(max(range(len(answer)), key=lambda o: task.rule(answer[o])) == item.gold))
            assert (row["task"], row["index"], row["gold"], row["score"]) == (name, i, item.gold, scores[-1])
            same([Likelihood(*l) for l in row["likelihoods"]], answer)
        assert result["tasks"][name] == {"metric": "accuracy", "shots": task.shots} | ev.mean_and_error(scores)
    assert json.loads(json.dumps(result)) == result
    assert all(name in ev.in_words(result) for name in result["tasks"])


CHILD = """
import sys, time, torch
sys.path.insert(0, sys.argv[3])
import test_evaluation as t
from llama_course import likelihood as ev
ev.TASKS["capital"], ev.OWN["capital"] = t.writing(), t.PROMPTS
add = ev.Journal.add
def slow(self, records):
    add(self, records)
    print(len(records), flush=True)
    time.sleep(0.05)
ev.Journal.add = slow
ev.evaluate(t.make_model(), t.Tokenizer.load(sys.argv[1]), folder=sys.argv[2], **t.HOW)
"""
PROMPTS = [{"q": q} for q in ("The cat", "A dog", "The big mat", "x")] * 6
HOW = dict(tasks=["arc_easy", "mmlu", "capital", "race_high"], batch_tokens=300, progress=False)


def test_killed_it_goes_on_and_ends_with_the_same(tokenizer, model, tmp_path, monkeypatch):
    start = lambda folder: subprocess.Popen(
        [sys.executable, "-c", CHILD, tokenizer.path, folder, Path(__file__).parent], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    process = start(tmp_path / "run")
    before = sum(int(process.stdout.readline()) for _ in range(5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    path = tmp_path / "run/items.jsonl"
    kept = path.read_bytes().splitlines()
    assert len(kept) >= before > 0 and not (tmp_path / "run/results.json").exists()
    with open(path, "ab") as file: file.write(b'{"task": "mmlu", "in')
    process = start(tmp_path / "run")
    after = sum(map(int, process.communicate()[0].split()))
    lines = path.read_bytes().splitlines()
    keys = [(r["task"], r["index"]) for r in map(json.loads, lines)]
    assert process.returncode == 0 and len(kept) + after == len(lines) == len(set(keys)) and lines[: len(kept)] == kept
    monkeypatch.setitem(ev.TASKS, "capital", writing())
    monkeypatch.setitem(ev.OWN, "capital", PROMPTS)
    same_items(read_json(tmp_path / "run/results.json"), ev.evaluate(model, tokenizer, **HOW))


def same_items(one, other):
    "Equal to the last bit, but for what another number of threads may round."
    assert one["tasks"] == other["tasks"] and len(one["items"]) == len(other["items"])
    for a, b in zip(one["items"], other["items"]):
        assert [a.get(name) for name in ("task", "index", "score", "texts")] == \
            [b.get(name) for name in ("task", "index", "score", "texts")]
        for l, m in zip(a.get("likelihoods", ()), b.get("likelihoods", ()), strict=True):
            assert l == pytest.approx(m, abs=1e-4)


def test_what_is_scored_is_not_scored_again(tokenizer, model, tmp_path, monkeypatch):
    run = lambda: ev.evaluate(model, tokenizer, ["piqa", "boolq"], folder=tmp_path, batch_tokens=300, progress=False)
    whole, path, calls = run(), tmp_path / "items.jsonl", []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # a line that was torn in the middle of a batch
    same_items(run(), whole)
    again = path.read_bytes().splitlines(keepends=True)
    assert again[:7] == lines[:7] and len(again) == len(lines) == len({line[:40] for line in again})
    plain = ev.score_trees
    monkeypatch.setattr(ev, "score_trees", lambda m, trees: calls.append(trees) or plain(m, trees))
    same_items(run(), whole)
    assert not calls and path.read_bytes().splitlines(keepends=True) == again


def test_what_questions_share_is_read_once(tokenizer, model, monkeypatch):
    passage = "The mill stands by the river, and the river is old. " * 2
    requests = [Choose(passage + q, (" yes", " no, not at all"), "Answer:") for q in ("Where?", "How old?", "Who?")]
    requests.insert(1, Choose("Another text altogether.", (" yes", " no")))
    trees = [ev.request_tree(tokenizer, r, 512) for r in requests]
    one = ev.graft([trees[0], trees[2], trees[3]])
    beginnings = set()
    for t in (trees[0], trees[2], trees[3]):
        def path(i): return (path(t.parents[i]) if t.parents[i] >= 0 else ()) + (t.tokens[i],)
        beginnings |= {path(i) for i in range(len(t.tokens))}
    assert len(one.tokens) == len(beginnings) and one.targets == trees[0].targets + trees[2].targets + trees[3].targets
    assert sorted(map(sorted, ev.neighbours(trees))) == [[0, 2, 3], [1]]
    assert sorted(map(sorted, ev.neighbours(trees, most=len(trees[0].tokens)))) == [[0], [1], [2], [3]]
    for i, found in ev.likelihoods_of(model, tokenizer, requests): same(found, list(expected(model, tokenizer, requests[i])))
    kept = [i for batch in ev.score_all(model, trees, 2048, done={2}) for i, _ in batch]
    assert sorted(kept) == [0, 1, 3]


def test_a_folder_holds_one_evaluation(tokenizer, model, tmp_path):
    run = lambda model=model, **how: ev.evaluate(model, tokenizer, ["piqa"], folder=tmp_path / "run", progress=False, **how)
    assert run() == run()
    for how, words in ((dict(shots=1), "items"), (dict(limit=2), "items"), (dict(seed=3), "seed"),
                       (dict(model=make_model(9)), "model")):
        with pytest.raises(UserError, match=f"other {words}: choose"): run(**how)
    (tmp_path / "run/items.jsonl").write_bytes(b"not json\n")
    with pytest.raises(UserError, match="damaged"): run()


@pytest.mark.parametrize("how", [dict(shots=-1), dict(limit=0), dict(batch_tokens=0)])
def test_numbers_that_make_no_sense(tokenizer, model, how):
    with pytest.raises(UserError, match=next(iter(how))): ev.evaluate(model, tokenizer, ["piqa"], **how)


def test_mmlu_is_averaged_by_question():
    rows = [{"task": "mmlu", "group": g, "score": s} for g, s in
            (("anatomy", 1.0), ("virology", 0.0), ("virology", 0.0), ("astronomy", 1.0), ("my_own", 0.0))]
    found = ev.mmlu_averages([*rows, {"task": "piqa", "score": 1.0}])
    assert {name: (f["value"], f["n"]) for name, f in found.items()} == {
        "STEM": (1.0, 1), "Other": (1 / 3, 3), "unknown": (0.0, 1), "All": (0.4, 5)}
    assert sum(map(len, ev.CATEGORIES.values())) == 57


# ---------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def run_folder(tokenizer, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model.save(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    write_json(folder / "run.json", {"format": "llama_course run 1", "tokenizer": tokenizer.fingerprint})
    return folder


def command(capsys, *arguments):
    "The command in this process: its status, and what it printed."
    from llama_course.command.cli import app
    status = app([*map(str, arguments)], prog_name="llama-course", standalone_mode=False)
    return status or 0, capsys.readouterr()


def test_the_command_scores_a_run(run_folder, tmp_path, capsys):
    status, said = command(capsys, "eval", "--model", run_folder, "--tasks", "arc_easy,boolq", "--limit", 3, "--json",
                           "--out", tmp_path / "out")
    found = json.loads(said.out)
    assert status == 0 and set(found["tasks"]) == {"arc_easy", "boolq"} and len(found["items"]) == 6
    assert found == read_json(tmp_path / "out/results.json") and "item" in said.err
    status, said = command(capsys, "eval", "--model", run_folder, "--tasks", "mmlu", "--shots", 1)
    assert status == 0 and "mmlu" in said.out and "stderr" in said.out


def test_the_command_lists_its_tasks(capsys):
    assert set(ev.HUB) < set(command(capsys, "eval", "--tasks", "list")[1].out.split())


@pytest.mark.parametrize("wrong, words", [
    (["--tasks", "arc_eazy"], "arc_easy"), (["--tasks", ","], "names no task"),
    (["--tasks", "piqa", "--shots", "-1"], "shots must be 0 or more"),
    (["--tasks", "piqa", "--limit", "0"], "limit must be 1 or more"), (["--tasks", "piqa", "--items", "nowhere"], "nowhere"),
    (["--tasks", "piqa", "--device", "moon"], "device moon")])
def test_the_command_says_what_is_wrong(run_folder, capsys, wrong, words):
    status, said = command(capsys, "eval", "--model", run_folder, *wrong)
    lines = [line for line in said.err.splitlines() if line.startswith("llama-course:")]
    assert status == 2 and len(lines) == 1 and words in lines[0] and not said.out


def test_the_command_says_when_there_is_no_model(tmp_path, capsys):
    status, said = command(capsys, "eval", "--model", tmp_path / "none.gguf", "--tasks", "piqa")
    assert status == 2 and "does not exist" in said.err
