"Tasks: their items, requests and shots; what runs them, interrupted or not; the command."

import importlib
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from scoring import REQUESTS, TEXT, expected, make_model, same

from llama_course import likelihood, tasks
from llama_course.generation import generate_text
from llama_course.likelihood import Choose, Likelihood, against_neutral, encode_pair, in_total
from llama_course.support.disk import read_json, write_json
from llama_course.support.errors import UserError
from llama_course.tasks import benchmarks
from llama_course.tasks import rows as row_readers
from llama_course.tasks.benchmarks import mmlu
from llama_course.tasks.journal import Journal
from llama_course.tasks.registry import TASKS, Task, find_task
from llama_course.tasks.rows import (
    by_subject,
    file_rows,
    hub_rows,
    load_items,
    load_shots,
    shots_for,
)
from llama_course.tasks.runner import Work, choose_all, evaluate, plan_work, write_all
from llama_course.tasks.summary import FROM_TEST, mean_and_error, score_table, summary
from llama_course.tasks.writing import Write, prompt_ids, write_answers
from llama_course.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXT * 3, 600, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_mean_and_error():
    scores = [1, 0, 1, 1, 0, 0, 0, 1, 1]
    found, t = mean_and_error(scores), torch.tensor(scores).double()
    assert (
        found["n"] == 9
        and math.isclose(found["value"], t.mean())
        and math.isclose(found["stderr"], t.std() / 3)
    )
    assert mean_and_error([0.0]) == {"value": 0.0, "stderr": None, "n": 1}


def request_of(name, row, shots=()):
    task = find_task(name)
    return task.ask(
        task.read(row_readers.Row(row)), [task.read(row_readers.Row(shot)) for shot in shots]
    )


NAMES = (
    "boolq piqa social_iqa hellaswag winogrande arc_easy arc_challenge openbookqa race_middle"
    " race_high mmlu"
).split()
ROWS = {
    "piqa": {"goal": "Boil it.", "sol1": "Use fire.", "sol2": "Use ice.", "label": 1},
    "social_iqa": {
        "context": "Al fell.",
        "question": "How is Al?",
        "answerA": "hurt",
        "answerB": "rich",
        "answerC": "far",
        "label": "1",
    },
    "hellaswag": {
        "activity_label": "Rowing",
        "ctx_a": "A man rows [step] now.",
        "ctx_b": "he",
        "label": "2",
        "endings": ["stops [title] Rest.", "a", "b", "c"],
    },
    "winogrande": {
        "sentence": "The cup left the box as _ was big.",
        "option1": "the cup",
        "option2": "the box",
        "answer": "2",
    },
    "arc_easy": {
        "question": "Hot?",
        "choices": {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    "openbookqa": {
        "question_stem": "Fire is",
        "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
        "answerKey": "A ",
    },
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    "race_high": {
        "article": "Ice is cold.",
        "question": "What is it?",
        "options": ["a", "b", "c", "d"],
        "answer": "D",
    },
    "mmlu": {
        "question": " Hot? ",
        "choices": ["ice", "fire", "air", "sea"],
        "answer": 1,
        "subject": "high_school_physics",
    },
}
WANTED = {
    "piqa": ("Question: Boil it.\nAnswer:", (" Use fire.", " Use ice."), None, 1),
    "social_iqa": ("Q: Al fell. How is Al?\nA:", (" hurt", " rich", " far"), None, 0),
    "hellaswag": ("Rowing: A man rows now. He", (" stops. Rest.", " a", " b", " c"), None, 2),
    "winogrande": (
        ("The cup left the box as the cup", "The cup left the box as the box"),
        (" was big.",) * 2,
        None,
        1,
    ),
    "arc_easy": ("Question: Hot?\nAnswer:", (" ice", " fire", " air"), None, 1),
    "openbookqa": ("Fire is", (" hot", " cold"), "Answer:", 0),
    "boolq": ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", (" no", " yes"), "Answer:", 1),
    "race_high": (
        "Article: Ice is cold.\n\nQuestion: What is it?\nAnswer:",
        (" a", " b", " c", " d"),
        None,
        3,
    ),
    "mmlu": (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Hot?\nA. ice\nB. fire\nC. air\nD. sea\nAnswer:",
        (" A", " B", " C", " D"),
        None,
        1,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_public_data_becomes_a_request(name):
    context, options, neutral, gold = WANTED[name]
    assert request_of(name, ROWS[name]) == Choose(context, options, neutral)
    assert find_task(name).read(ROWS[name]).gold == gold


def test_boolq_as_its_authors_have_it():
    row = {name: value for name, value in ROWS["boolq"].items() if name != "label"}
    assert [find_task("boolq").read(row | {"answer": yes}).gold for yes in (True, False)] == [1, 0]


def test_the_rules_are_the_papers():
    rules = {name: TASKS[name].rule for name in NAMES}
    assert {name for name, rule in rules.items() if rule is against_neutral} == {
        "openbookqa",
        "boolq",
    }
    assert {name for name, rule in rules.items() if rule is in_total} == {
        "winogrande",
        "mmlu",
    }  # equal lengths
    assert len(rules) == 11 and {
        name: TASKS[name].shots for name in rules if TASKS[name].shots
    } == {"mmlu": 5}


def test_shots_are_solved_items():
    shot = ROWS["winogrande"] | {"answer": "1"}
    request = request_of("winogrande", ROWS["winogrande"], [shot])
    assert (
        request.context[1]
        == "The cup left the box as the cup was big.\n\nThe cup left the box as the box"
    )
    head = WANTED["mmlu"][0].partition("Hot?")[0]
    request = request_of(
        "mmlu", ROWS["mmlu"], [ROWS["mmlu"] | {"question": "Cold?", "answer": 0}] * 2
    )
    assert (
        request.context.startswith(head + "Cold?\n") and request.context.count("Answer: A\n\n") == 2
    )
    assert request.context.count(head) == 1


@pytest.mark.parametrize(
    "name, column", [(name, column) for name, row in ROWS.items() for column in row]
)
def test_a_missing_column_is_named(name, column, tmp_path):
    row = {key: value for key, value in ROWS[name].items() if key != column}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[name]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"{name}.jsonl, row 2: there is no column '{column}'"):
        load_items(name, tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "there is no item"),
        ("\n\n", "there is no item"),
        ("[1]", "line 1 is no JSON object"),
        ("{'a': 1}", "line 1 is not JSON"),
        (json.dumps(ROWS["piqa"] | {"label": ""}), "row 1 is no item of piqa"),
        ("\0\0", "not JSON"),
        (json.dumps(ROWS["piqa"] | {"label": None}), "row 1 is no item of piqa"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    (tmp_path / "piqa.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as found:
        load_items("piqa", tmp_path)
    assert str(tmp_path) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "name, row, gold",
    [
        ("arc_easy", {"answerKey": "9"}, None),
        ("race_high", {"answer": "E"}, None),
        ("mmlu", {"choices": ["a", "b"]}, None),
        ("piqa", {"label": 7}, None),
        ("social_iqa", {"label": "0"}, None),
        ("hellaswag", {"label": "4"}, None),
        ("boolq", {"label": -1}, None),
    ],
)
def test_an_answer_that_no_option_has_is_refused(tmp_path, name, row, gold):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[name] | row))
    with pytest.raises(UserError, match=f"row 1 is no item of {name}"):
        load_items(name, tmp_path)


WRONG = [  # a value of another type, or one that Python would take for something else
    ("piqa", {"label": 0.9}),
    ("piqa", {"label": True}),
    ("piqa", {"sol1": ["Use fire."]}),
    ("piqa", {"goal": None}),
    ("hellaswag", {"endings": "abcd"}),
    ("hellaswag", {"endings": ["a", "b", 3, "d"]}),
    ("mmlu", {"choices": "ABCD"}),
    ("mmlu", {"choices": {"a": 1, "b": 2, "c": 3, "d": 4}}),
    ("mmlu", {"subject": 7}),
    ("arc_easy", {"choices": "fire"}),
    ("arc_easy", {"choices": {"text": "abc", "label": ["1", "2", "3"]}}),
    ("race_high", {"options": "abcd"}),
    ("race_high", {"answer": "AB"}),
    ("boolq", {"label": "maybe"}),
    ("boolq", {"label": 0.0}),
    ("winogrande", {"answer": [2]}),
    ("winogrande", {"sentence": "no blank"}),
    ("nq_open", {"question": "q", "answer": 5}),
    ("nq_open", {"question": "q", "answer": []}),
    ("nq_open", {"question": "q", "answer": [5]}),
    ("nq_open", {"question": "q", "answer": " "}),
    ("nq_open", {"question": ["q"], "answer": ["x"]}),
    ("nq_open", {"question": "q", "answer": "['Paris' 'Rome']"}),
    ("nq_open", {"question": "q", "answer": "[" * 100000}),
    ("nq_open", {"question": "q", "answer": "[__import__('os').mkdir('executed')]"}),
    ("triviaqa", {"question": "q", "answer": {"aliases": "Paris"}}),
    ("triviaqa", {"question": "q", "answer": {"aliases": []}}),
    ("triviaqa", {"question": "q", "answer": {"value": 5}}),
    ("gsm8k", {"question": "q", "answer": 5}),
    ("gsm8k", {"question": "q", "answer": "#### 1e10000000"}),
    ("gsm8k", {"question": "q", "answer": "#### five"}),
    ("math_steps", {"problem": "p", "solution": None}),
    ("humaneval", {"entry_point": 1, "prompt": "", "test": "", "canonical_solution": ""}),
]


@pytest.mark.parametrize("name, wrong", WRONG)
def test_a_value_of_another_type_is_named(tmp_path, monkeypatch, name, wrong):
    monkeypatch.chdir(tmp_path)
    whole = ROWS.get(name) or json.loads(TASKS[name].own.read_text().split("\n")[0])
    lines = [json.dumps(whole), json.dumps(whole | wrong)]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"{name}.jsonl, row 2") as found:
        load_items(name, tmp_path)
    assert "\n" not in str(found.value) and not Path("executed").exists()


FORMS = {  # of the same golds, by people who have the public files
    "nq_open.jsonl": '{"question": "q", "answer": ["Paris", "Rome, Italy"]}',
    "nq_open.json": '[\n{"question": "q",\n "answer": ["Paris", "Rome, Italy"]}]',
    "nq_open.csv": "question,answer\nq,\"['Paris', 'Rome, Italy']\"\n",
    "nq_open.tsv": 'question\tanswer\nq\t"[""Paris"", ""Rome, Italy""]"\n',
    "triviaqa.jsonl": '{"question": "q", "answer": {"aliases": ["Paris"], "value": "Rome, Italy"}}',
    "triviaqa.json": '{"Data": [{"Question": "q", "QuestionId": "tc_1", "Answer": {"Aliases":'
    ' ["Paris", "Rome, Italy"], "Value": "Paris", "NormalizedAliases": ["paris"]}}], "Version": 1}',
    "triviaqa.csv": "question,answer\n"
    "q,\"{'aliases': ['Paris', 'Rome, Italy'], 'value': 'Paris'}\"",
}


@pytest.mark.parametrize("file", FORMS)
def test_golds_are_read_in_every_form_that_people_have(tmp_path, file):
    (tmp_path / file).write_text(FORMS[file])
    (item,) = load_items(file.partition(".")[0], tmp_path)
    assert item.question == "q" and item.golds == ("Paris", "Rome, Italy")


def test_one_known_answer_may_stand_alone(tmp_path):
    (tmp_path / "nq_open.csv").write_text("question,answer\nwhere,Paris\n")
    (tmp_path / "triviaqa.jsonl").write_text('{"question": "where", "answer": {"value": "Paris"}}')
    for name in ("nq_open", "triviaqa"):
        assert load_items(name, tmp_path)[0].golds == ("Paris",)
    (tmp_path / "piqa.csv").write_text("goal,sol1,sol2,label\na,b,c,1\na,b\n")
    with pytest.raises(UserError, match="row 2 has fewer cells"):
        load_items("piqa", tmp_path)


def test_shots_from_the_test_itself_are_said_in_the_result(tokenizer, model, tmp_path):
    rows = TASKS["nq_open"].own.read_text().splitlines()
    (tmp_path / "nq_open.jsonl").write_text("\n".join(rows[:3]))

    def result(**how):
        return evaluate(model, tokenizer, ["nq_open"], items=tmp_path, progress=False, **how)

    warned = result(shots=2)
    assert warned["tasks"]["nq_open"]["warning"] == FROM_TEST and FROM_TEST in score_table(warned)
    assert "warning" not in result(shots=0)["tasks"]["nq_open"]
    (tmp_path / "nq_open.shots.csv").write_text("question,answer\nwhere,Paris\n")
    alone = result(shots=1)
    assert "warning" not in alone["tasks"]["nq_open"] and FROM_TEST not in score_table(alone)


def test_items_come_from_files_of_three_kinds(tmp_path):
    rows = file_rows(TASKS["piqa"].own)
    wanted = load_items("piqa")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for kind, bar in (("csv", ","), ("tsv", "\t")):
        lines = [bar.join(rows[0])] + [bar.join(f'"{v}"' for v in r.values()) for r in rows]
        (tmp_path / f"a.{kind}").write_text("\ufeff" + "\n".join(lines))
    for path in ("a.jsonl", "a.csv", "a.tsv"):
        assert load_items("piqa", tmp_path / path) == wanted
    for path, words in ((tmp_path, "no piqa.jsonl"), (tmp_path / "none", "does not exist")):
        with pytest.raises(UserError, match=words):
            load_items("piqa", path)


def test_items_come_from_the_package_datasets(monkeypatch):
    calls = []

    class Datasets:
        @staticmethod
        def load_dataset(path, config, split):
            if path == "Rowan/hellaswag":
                raise ConnectionError("no network\nat all")
            calls.append((path, config, split))
            return file_rows(TASKS["mmlu"].own)

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert load_items("mmlu", "hf") == load_items("mmlu")
    assert len(load_shots("mmlu", "hf")) == 12 and calls == [
        ("cais/mmlu", "all", s) for s in ("test", "dev")
    ]
    with pytest.raises(UserError, match="ConnectionError no network$"):
        load_items("hellaswag", "hf")
    calls.clear()
    rows, where = hub_rows("a/b", ("algebra", "geometry"), "test")  # MATH is seven parts
    assert (
        len(rows) == 24
        and calls == [("a/b", p, "test") for p in ("algebra", "geometry")]
        and "algebra geometry" in where
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install"):
        load_items("mmlu", "hf")


def test_a_task_without_own_items_says_where_to_get_them():
    with pytest.raises(UserError, match="winogender_gotcha has no items of our own"):
        load_items("winogender_gotcha")


def test_a_task_is_one_file_and_its_items(tmp_path, monkeypatch, capsys):
    "A new file in `benchmarks/` is found by the registry and the command. (case A5)"
    (tmp_path / "colours.py").write_text(NEW_TASK)
    row = {"thing": "Snow", "right": "white", "wrong": "black"}
    (tmp_path / "colours.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    importlib.reload(tasks)
    try:
        assert load_items("colours")[0].options == ("white", "black")
        assert "colours" in command(capsys, "eval", "--tasks", "list")[1].out.split()
    finally:
        del TASKS["colours"], sys.modules[f"{benchmarks.__name__}.colours"]


NEW_TASK = """
from pathlib import Path

from llama_course.likelihood import Question
from llama_course.tasks.kinds import choice_task


def read_colours(row: dict) -> Question:
    return Question(f"{row['thing']} is", (row["right"], row["wrong"]), 0)


OWN = Path(__file__).with_suffix(".jsonl")
choice_task("colours", ("me/colours", None, "test"), read_colours, OWN)
"""


def test_an_unknown_task_names_its_neighbours():
    with pytest.raises(UserError, match="arc_easy"):
        find_task("arc_eazy")
    with pytest.raises(UserError, match="winogrande"):
        find_task("wino")


def test_own_items_are_sound():
    for name in NAMES:
        items = load_items(name)
        assert 4 <= len(items) <= 12 and len(set(items)) == len(items)
        assert (
            len({item.gold for item in items}) > 1
        )  # a model that always takes the first does not win
        for item in items:
            assert len(item.options) > 1 and all(item.options)


def test_shots_never_show_the_question(tmp_path):
    items = load_items("mmlu")
    for item in items:
        shots = shots_for(item, by_subject(items), 5)
        assert len(shots) == 5 and item not in shots and {s.group for s in shots} == {item.group}
    assert shots_for(items[0], by_subject(items), 99) == items[1:6]
    rows = file_rows(TASKS["mmlu"].own)
    (tmp_path / "mmlu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    (tmp_path / "mmlu.shots.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[1:4]))
    work = plan_work([TASKS["mmlu"]], tmp_path)
    assert [w.shots for w in work] == [3, 2]  # the second question is among the shots
    assert work[1].request.context.count(work[1].item.text) == 1


def test_limits_count_in_each_subject():
    assert [i.group for i in load_items("mmlu", limit=2)] == ["astronomy"] * 2 + [
        "high_school_geography"
    ] * 2
    assert len(load_items("piqa", limit=4)) == 4
    assert len(plan_work([TASKS["mmlu"]], limit=1, shots=5)[0].request.context.split("\n\n")) == 7


def test_what_was_cut_off_is_said(tokenizer, capsys):
    small = make_model(2, max_seq_len=24)
    long = Choose("The cat sat on the mat. " * 9 + "The cat sat on", (" the mat", " a chair"))
    task = Task(
        "cats", "accuracy", (), lambda row: long, lambda item, shots: item, lambda item, answer: 1.0
    )
    work = [Work(task, i, r, r, 0) for i, r in enumerate((long, REQUESTS[1]))]
    records = [r for batch in choose_all(small, tokenizer, work, set()) for r in batch]
    lost = len(encode_pair(tokenizer, long.context, " the mat")[0]) - 24
    assert [r["cut"] for r in records if "cut" in r] and lost <= records[0]["cut"] <= lost + 5
    assert summary(work, records)["tasks"]["cats"]["cut"] == 1
    assert "1 of 2 items are longer than the model's context" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["piqa", "boolq", "crows_pairs", "winogender", "truthfulqa_mc2", "nq_open", "gsm8k_vote"],
)
def test_a_model_of_no_numbers_ends_the_task_by_name(tokenizer, name):
    broken = make_model()
    torch.nn.init.constant_(broken.norm.weight, math.nan)
    with pytest.raises(UserError, match=f"^{name}, item .*weights are damaged"):
        evaluate(broken, tokenizer, [name], progress=False)


# ---------------------------------------------------------------- writing


def test_greedy_answers_are_those_of_generation(tokenizer, model):
    for prompt, stop in (("The cat", ()), ("Question: why", (" ",)), ("x", ("e", "a"))):
        plain = "".join(generate_text(model, tokenizer, prompt, 20, stops=stop, temperature=0))
        assert write_answers(model, tokenizer, Write(prompt, stop, 20)) == [plain]


def test_samples_are_drawn_apart_and_repeat(tokenizer, model):
    request = Write("The cat", (), 12, samples=20, temperature=1.0, top_p=0.9)
    texts = write_answers(model, tokenizer, request)
    assert len(texts) == 20 and len(set(texts)) > 10
    assert (
        write_answers(model, tokenizer, request)
        == texts
        != write_answers(model, tokenizer, request, seed=1)
    )


def test_a_prompt_is_read_once_for_its_samples(tokenizer, model):
    read = []
    with model.tok_embeddings.register_forward_hook(
        lambda m, args, out: read.append(tuple(args[0].shape))
    ):
        write_answers(model, tokenizer, Write("The cat", (), 3, samples=9, temperature=1.0))
    assert read[0][0] == 1 and read[1:] == [(9, 1)] * 2


def writing(k=2, own=None):
    return Task(
        "capital",
        "exact match",
        (),
        lambda row: row["q"],
        lambda q, shots: Write(q, ("\n",), 10, k, 1.0),
        lambda q, texts: float(len(texts[0]) > 3),
        own=own,
    )


def test_neighbours_do_not_change_what_is_written(tokenizer, model):
    task = writing()
    prompts = "The cat", "A much longer prompt of many words", "x"
    work = [Work(task, i, q, task.ask(q, []), 0) for i, q in enumerate(prompts)]
    whole = {r["index"]: r for batch in write_all(model, tokenizer, work, set()) for r in batch}
    for i in range(3):
        alone = next(write_all(model, tokenizer, work[i : i + 1], set()))[0]
        assert alone == whole[i] and len(alone["texts"]) == 2
    rest = [
        r["index"] for batch in write_all(model, tokenizer, work, {("capital", 1)}) for r in batch
    ]
    assert sorted(rest) == [0, 2]


def test_a_long_prompt_is_cut_so_that_the_answer_fits(tokenizer):
    small = make_model(max_seq_len=24)
    long = Write("The cat sat on the mat. " * 9, (), 10)
    ids, lost = prompt_ids(small, tokenizer, long)
    assert len(ids) == 14 and lost > 0 and len(write_answers(small, tokenizer, long)) == 1
    with pytest.raises(UserError, match="leave no room"):
        write_answers(small, tokenizer, Write("x", (), 24))


def test_scores_are_those_of_the_requests(tokenizer, model):
    result = evaluate(model, tokenizer, ["piqa", "openbookqa", "mmlu"], progress=False)
    rows = iter(result["items"])
    for name in ("piqa", "openbookqa", "mmlu"):
        task, items = TASKS[name], load_items(name)
        pool, scores = by_subject(items), []
        for i, item in enumerate(items):
            request = task.ask(item, shots_for(item, pool, task.shots))
            answer, row = list(expected(model, tokenizer, request)), next(rows)
            scores.append(
                float(max(range(len(answer)), key=lambda o: task.rule(answer[o])) == item.gold)
            )
            assert (row["task"], row["index"], row["gold"], row["score"]) == (
                name,
                i,
                item.gold,
                scores[-1],
            )
            same([Likelihood(*l) for l in row["likelihoods"]], answer)
        warned = {"warning": FROM_TEST} if task.shots else {}
        assert result["tasks"][name] == warned | {
            "metric": "accuracy",
            "shots": task.shots,
        } | mean_and_error(scores)
    assert json.loads(json.dumps(result)) == result
    assert all(name in score_table(result) for name in result["tasks"])


PROMPTS = [{"q": q} for q in ("The cat", "A dog", "The big mat", "x")] * 6
CHOSEN = ["arc_easy", "mmlu", "race_high"]
HOW = dict(batch_tokens=300, progress=False)


def evaluate_slowly(tokenizer, folder, own):
    "In a process of its own: prints how many records each batch has added."
    torch.set_num_threads(1)
    add = Journal.add

    def slow(self, records):
        add(self, records)
        print(len(records))
        time.sleep(0.05)

    Journal.add = slow
    chosen = [*CHOSEN, writing(own=own)]
    evaluate(make_model(), Tokenizer.load(tokenizer), chosen, out=folder, **HOW)


def test_killed_it_goes_on_and_ends_with_the_same(tokenizer, model, tmp_path):
    own = tmp_path / "capital.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    path = tmp_path / "run/items.jsonl"
    start = lambda: Forked(evaluate_slowly, tokenizer.path, tmp_path / "run", own)
    process = start()
    while process.poll() is None and not (
        path.exists() and len(path.read_bytes().splitlines()) > 9
    ):
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = path.read_bytes().splitlines()
    assert len(kept) > 9 and not (tmp_path / "run/results.json").exists()
    with open(path, "ab") as file:
        file.write(b'{"task": "mmlu", "in')
    process = start()
    after = sum(map(int, process.communicate()[0].split()))
    lines = path.read_bytes().splitlines()
    keys = [(r["task"], r["index"]) for r in map(json.loads, lines)]
    assert (
        process.returncode == 0
        and len(kept) + after == len(lines) == len(set(keys))
        and lines[: len(kept)] == kept
    )
    whole = evaluate(model, tokenizer, [*CHOSEN, writing(own=own)], **HOW)
    same_items(read_json(tmp_path / "run/results.json"), whole)


def same_items(one, other):
    "Equal to the last bit, but for what another number of threads may round."
    assert one["tasks"] == other["tasks"] and len(one["items"]) == len(other["items"])
    for a, b in zip(one["items"], other["items"]):
        assert [a.get(name) for name in ("task", "index", "score", "texts")] == [
            b.get(name) for name in ("task", "index", "score", "texts")
        ]
        for l, m in zip(a.get("likelihoods", ()), b.get("likelihoods", ()), strict=True):
            assert l == pytest.approx(m, abs=1e-4)


def test_what_is_scored_is_not_scored_again(tokenizer, model, tmp_path, monkeypatch):
    run = lambda: evaluate(
        model, tokenizer, ["piqa", "boolq"], out=tmp_path, batch_tokens=300, progress=False
    )
    whole, path, calls = run(), tmp_path / "items.jsonl", []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:7]) + lines[7][:20]
    )  # a line that was torn in the middle of a batch
    same_items(run(), whole)
    again = path.read_bytes().splitlines(keepends=True)
    assert again[:7] == lines[:7] and len(again) == len(lines) == len({line[:40] for line in again})
    plain = likelihood.score_trees
    monkeypatch.setattr(
        likelihood, "score_trees", lambda m, trees: calls.append(trees) or plain(m, trees)
    )
    same_items(run(), whole)
    assert not calls and path.read_bytes().splitlines(keepends=True) == again


def test_a_folder_holds_one_evaluation(tokenizer, model, tmp_path):
    run = lambda model=model, **how: evaluate(
        model, tokenizer, ["piqa"], out=tmp_path / "run", progress=False, **how
    )
    assert run() == run()
    for how, words in (
        (dict(shots=1), "items"),
        (dict(limit=2), "items"),
        (dict(seed=3), "seed"),
        (dict(model=make_model(9)), "model"),
    ):
        with pytest.raises(UserError, match=f"other {words}: choose"):
            run(**how)
    (tmp_path / "run/items.jsonl").write_bytes(b"not json\n")
    with pytest.raises(UserError, match="damaged"):
        run()


@pytest.mark.parametrize("how", [dict(shots=-1), dict(limit=0), dict(batch_tokens=0)])
def test_numbers_that_make_no_sense(tokenizer, model, how):
    with pytest.raises(UserError, match=next(iter(how))):
        evaluate(model, tokenizer, ["piqa"], **how)


def test_mmlu_is_averaged_by_question():
    rows = [
        {"task": "mmlu", "group": g, "score": s}
        for g, s in (
            ("anatomy", 1.0),
            ("virology", 0.0),
            ("virology", 0.0),
            ("astronomy", 1.0),
            ("my_own", 0.0),
        )
    ]
    found = mmlu.mmlu_averages([*rows, {"task": "piqa", "score": 1.0}])
    assert {name: (f["value"], f["n"]) for name, f in found.items()} == {
        "STEM": (1.0, 1),
        "Other": (1 / 3, 3),
        "unknown": (0.0, 1),
        "All": (0.4, 5),
    }


def test_items_as_in_table_16_have_the_averages_of_table_9():
    printed = {
        "Humanities": 61.8,
        "STEM": 51.7,
        "Social Science": 72.9,
        "Other": 67.4,
        "All": 63.4,
    }  # of 65B
    right = {
        name: round(row.scores["LLaMA 65B"] * row.questions / 100)
        for name, row in mmlu.SUBJECTS.items()
    }
    records = [
        {"task": "mmlu", "group": name, "score": float(i < right[name])}
        for name, row in mmlu.SUBJECTS.items()
        for i in range(row.questions)
    ]
    found = mmlu.mmlu_averages(records)
    assert {name: found[name]["value"] for name in printed} == pytest.approx(
        {name: value / 100 for name, value in printed.items()}, abs=6e-4
    )


@pytest.fixture(scope="module")
def run_folder(tokenizer, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model.save(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    write_json(
        folder / "run.json", {"format": "llama_course run 1", "tokenizer": tokenizer.fingerprint}
    )
    return folder


def command(capsys, *arguments):
    "The command in this process: its status, and what it printed."
    from llama_course.command.cli import app

    status = app([*map(str, arguments)], prog_name="llama-course", standalone_mode=False)
    return status or 0, capsys.readouterr()


def test_the_command_scores_a_run(run_folder, tmp_path, capsys):
    status, said = command(
        capsys,
        "eval",
        "--model",
        run_folder,
        "--tasks",
        "arc_easy,boolq",
        "--limit",
        3,
        "--json",
        "--out",
        tmp_path / "out",
    )
    found = json.loads(said.out)
    assert status == 0 and set(found["tasks"]) == {"arc_easy", "boolq"} and len(found["items"]) == 6
    assert found == read_json(tmp_path / "out/results.json") and "item" in said.err
    status, said = command(capsys, "eval", "--model", run_folder, "--tasks", "mmlu", "--shots", 1)
    assert status == 0 and "mmlu" in said.out and "stderr" in said.out


def test_the_command_lists_its_tasks(capsys):
    assert set(NAMES) < set(command(capsys, "eval", "--tasks", "list")[1].out.split())


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--tasks", "arc_eazy"], "arc_easy"),
        (["--tasks", ","], "names no task"),
        (["--tasks", "piqa", "--shots", "-1"], "shots must be 0 or more"),
        (["--tasks", "piqa", "--limit", "0"], "limit must be 1 or more"),
        (["--tasks", "piqa", "--items", "nowhere"], "nowhere"),
        (["--tasks", "piqa", "--device", "moon"], "device moon"),
    ],
)
def test_the_command_says_what_is_wrong(run_folder, capsys, wrong, words):
    status, said = command(capsys, "eval", "--model", run_folder, *wrong)
    lines = [line for line in said.err.splitlines() if line.startswith("llama-course:")]
    assert status == 2 and len(lines) == 1 and words in lines[0] and not said.out


def test_the_command_says_when_there_is_no_model(tmp_path, capsys):
    status, said = command(capsys, "eval", "--model", tmp_path / "none.gguf", "--tasks", "piqa")
    assert status == 2 and "does not exist" in said.err
