"Answers in words: how they are found, compared, voted on, and run."

import itertools
import json
import math
import os
import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from forked import as_program, ran
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama_course.answers import (
    boxed,
    cut_answer,
    exact_match,
    final_formula,
    final_number,
    majority_score,
    normalize_answer,
    normalize_math,
    pass_at_k,
)
from llama_course.model import Llama, LlamaConfig
from llama_course.support.errors import UserError
from llama_course.support.programs import Sandbox
from llama_course.tasks import registry
from llama_course.tasks.benchmarks.gsm8k import WORKED_SUMS, read_gsm8k, strict_number
from llama_course.tasks.benchmarks.hendrycks_math import WORKED_PROBLEMS, read_math
from llama_course.tasks.kinds import score_code, score_fact, score_problem
from llama_course.tasks.registry import TASKS, check_programs
from llama_course.tasks.rows import load_items, read_items
from llama_course.tasks.runner import evaluate
from llama_course.tasks.writing import Write

NAMES = (
    "nq_open triviaqa gsm8k gsm8k_steps gsm8k_vote math_steps math_vote humaneval humaneval_1"
    " humaneval_100 mbpp mbpp_1 mbpp_80"
).split()
SAMPLES = Path(
    os.environ.get("LLAMA_COURSE_SAMPLES", Path(__file__).parents[2] / "shared" / "eval-samples")
)

# ---------------------------------------------------------------- facts

words = st.lists(
    st.sampled_from(
        ["the", "a", "An", "Theatre", "anna", ".", ",", "'s", "-", " ", "  ", "\t", "7", "$"]
    ),
    max_size=9,
)


@settings(deadline=None, max_examples=300)
@given(words.map("".join))
@example("a.m. the-end (A) U.S.A.")
def test_the_rule_is_squads(text):
    squad = pytest.importorskip(
        "lm_eval.tasks.qasper.metrics", reason="pip install 'llama_course[eval]'"
    ).normalize_answer
    assert normalize_answer(text) == squad(text)
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_where_an_answer_ends():
    for text, cut in (
        (" Paris\nQ: next", "Paris"),
        ("Paris.", "Paris"),
        ("Paris,", "Paris"),
        ("St. Louis, Missouri.", "St. Louis, Missouri"),
        ("\n\n Paris", "Paris"),
        ("", ""),
        ("...", ""),
        ("1,000", "1,000"),
        ("D.C.", "D.C"),
    ):
        assert cut_answer(text) == cut, text
    assert exact_match("The “Hamlet”.\nmore", ["x", "hamlet"]) and not exact_match(
        "Hamlet II", ["Hamlet"]
    )
    assert not exact_match("", ["Paris"]) and exact_match("THE DANUBE!", ("Donau", "danube"))


def test_prompts_of_closed_book_questions():
    fact, *others = load_items("nq_open")
    request = TASKS["nq_open"].ask(fact, others[:2])
    assert request.prompt == (
        "Answer these questions:\nQ: how many legs does a spider have?\nA: 8\n"
        "Q: who wrote the play hamlet?\n"
        "A: William Shakespeare\nQ: which river flows through vienna?\nA:"
    )
    assert request.stop == ("\n",) and request.temperature == 0 and request.samples == 1
    assert TASKS["triviaqa"].ask(load_items("triviaqa")[0], []).prompt.count("?") == 1
    assert score_fact(fact, [" The Danube.\n"]) == 1 and score_fact(fact, ["Rhine"]) == 0


# ---------------------------------------------------------------- numbers and formulas


@settings(deadline=None)
@given(
    st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1),
    st.sampled_from(
        [
            "The answer is {}.",
            "#### {}",
            "so it is ${}",
            "= {} eggs.",
            "The answer is: {}",
            "2 + 5 = {}\nQ: 7 and 8?",
        ]
    ),
)
def test_a_number_is_found(n, how):
    for text in (f"{int(n)}", f"{int(n):,}", f"{int(n)}.0", f"{int(n)}.00"):
        assert final_number(how.format(text)) == n


def test_numbers_that_are_easily_misread():
    for text, n in (
        ("The answer is 12, not 5.", 12),
        ("10 - 3 = 7", 7),
        ("I have 5 and 6", 6),
        ("about 1/2", Fraction(1, 2)),
        ("The answer is 1/2.", Fraction(1, 2)),
        ("The answer is 3/0", None),
        ("The answer is 3 1/2.", Fraction(7, 2)),
        (r"The answer is $-2\frac{1}{4}$.", Fraction(-9, 4)),
        (r"The answer is $12 \dfrac{3}{4}$ cups", Fraction(51, 4)),
        ("The answer is 3 1/0", None),
        ("rows of 5, 1/2 each", Fraction(1, 2)),
        ("So the final answer is\n42", 42),
        ("So the final answer is:\n\n  $42$\nQ", 42),
        ("The answer is −5", -5),
        ("The answer is -$1,250.50", Fraction("-1250.5")),
        ("The answer is $-5", -5),
        ("The answer is -\\$5", -5),
        (r"The answer is $-\frac{1}{4}$", Fraction(-1, 4)),
        (r"The answer is $\dfrac{3}{4}$", Fraction(3, 4)),
        (r"The answer is $1{,}250$", 1250),
        (r"The answer is $1,\!250$", 1250),
        ("5-3", 3),
        ("COVID-19", 19),
        ("between 10-20 of them", 20),
        ("The answer is 1,2345", 1),
        ("The answer is +7", 7),
        ("The answer is 1e10000000", None),
        ("The answer is 1e-10000000", None),
        ("The answer is " + "9" * 5000, None),
        ("The answer is 2.50e2 m", 250),
        ("The answer is .5", Fraction(1, 2)),
        ("The answer is 5 + 6 = 11 km", 11),
        ("#### -3", -3),
        ("1,2,3", 3),
        ("12,34", 34),
        ("The answer is 3.\n\nQ: 9", 3),
    ):
        assert final_number(text) == n, text
    assert final_number("no idea") is None and final_number("") is None
    assert strict_number("6 #### 1,250.") == 1250 and strict_number("#### ...") is None
    assert strict_number("The answer is 7") is None


def test_a_box_has_its_own_braces():
    assert boxed(r"\boxed{a} then \boxed{\frac{1}{\sqrt{2}}} end}") == r"\frac{1}{\sqrt{2}}"
    assert boxed(r"so $\boxed 2$.") == "2" and boxed(r"\boxed{2\} }") == r"2\} "
    assert boxed(r"\fbox{7} and \boxed{8}") == "8" and boxed(r"\boxed {9}") == "9"
    assert boxed(r"a \boxed") is None
    assert boxed("nothing") is None and boxed(r"\boxed{1") is None and boxed(r"\boxed{}") == ""


SAME = [
    ("10^{5}", "10^5"),
    (r"x^{ 2 }", "x^2"),
    (r"\frac12", r"\dfrac{1}{2}"),
    ("1/2", "0.5"),
    (r"-\frac{1}{2}", "-.5"),
    (r"\frac{4}{2}", "2"),
    ("x = 3", "3"),
    (r"3\text{ m}", "3"),
    (r"\left[ 2, 5 \right)", "[2,5)"),
    ("1,000,000", "10^6".replace("10^6", "1000000")),
    (r"45^{\circ}", "45"),
    (r"50\%", "50"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"\text{(A)}", "(A)"),
    ("7.50", "7.5"),
    (r"5 \text{ square inches}", "5"),
    (r"\$1.20", "1.2"),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt2"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\frac 9{20}", r"\frac{9}{20}"),
    (r"\frac{625}4", r"\frac{625}{4}"),
    (r"\frac \pi4", r"\frac{\pi}{4}"),
    (r"440\text{ cm}^2", "440"),
    (r"864 \mbox{ inches}^{2}", "864"),
    (r"11,\! 111,\!111", "11111111"),
    (r"45^\circ,135^{\circ}", "45, 135"),
]
OTHER = [
    ("1,2", "12"),
    ("(1,2)", "(2,1)"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("x+1", "x-1"),
    ("1.0001", "1"),
    (r"\sqrt{3}", "3"),
    ("a", "b"),
    ("", "0"),
    (r"\frac{1}{0}", "0"),
    ("2^3", "23"),
    (r"\pi", "3.14"),
    ("-1", "1"),
    ("x=1", "y^2=1"),
    ("1000", "1,0000"),
    ("2 x", "2"),
    (r"3\text{ and }5", "3"),
    (r"2x\text{ cm}", "2"),
    (r"45^\circ, 135^\circ", "45135"),
    ("1, 234", "1234"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 12 \end{pmatrix}"),
]


@pytest.mark.parametrize("a, b", SAME)
def test_equal_formulas(a, b):
    assert normalize_math(a) == normalize_math(b)


@pytest.mark.parametrize("a, b", OTHER)
def test_unequal_formulas(a, b):
    assert normalize_math(a) != normalize_math(b)


LATEX = re.compile(
    r"\\text\{[^{}]*\}|\\[a-zA-Z]+|\d+(?:,(?:\s*\\!\s*)?\d{3}(?!\d))+|\d+|\\.|\s+|.", re.DOTALL
)


def respaced(formula):
    "The same formula with no blank that may go, with blanks everywhere, and otherwise set."
    tokens = [t for t in LATEX.findall(formula) if not t.isspace()]
    needed = [
        len(a) > 1 and a[-1].isalpha() and b[:1].isalpha() for a, b in itertools.pairwise(tokens)
    ]
    tight = "".join(t + " " * n for t, n in zip(tokens, [*needed, False]))
    if not re.search(r"\d,\s+\d{3}(?!\d)", formula):  # 1, 000 is two numbers, 1,000 is one
        yield tight
    yield " ".join(tokens)
    yield f"  {formula}\n"
    yield f"${formula}$"
    yield formula.replace(r"\frac", r"\dfrac")


def formulas():
    "Those of the tests, of our own items, and MATH's 5,000 where they are."
    found = [f for pair in SAME + OTHER for f in pair]
    found += [w["answer"] for w in WORKED_PROBLEMS]
    found += [boxed(item.solution) for item in load_items("math_steps")]
    path = SAMPLES / "math_test.jsonl"
    if path.is_file():
        found += [boxed(item.solution) for item in load_items("math_steps", path)]
    return found


def test_blanks_and_sizes_say_nothing():
    for formula in formulas():
        for other in respaced(formula):
            assert normalize_math(other) == normalize_math(formula), (formula, other)


LONG = r"""
import resource
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
from llama_course.answers import *
from llama_course.tasks.benchmarks.gsm8k import strict_number
from llama_course.tasks.benchmarks.hendrycks_math import in_dollars
parts = ["9", "1,111", ",111", "1e99999999 ", "{", "}", "[", r"\text{", r"\text{a}", r"\frac",
         r"\frac{1}", r"\boxed{", r"\boxed ", "$", "answer is ", "#### ", " ", "\n", "-", "/", "1/",
         ".", "a ", "the ", r"^\circ", r"\sqrt", "=", "\ue000", r"\!", ",\\! "]
for part in parts:
    for text in (part * 20000, "The answer is " + part * 20000, r"\boxed{" + part * 20000 + "}"):
        for rule in (final_number, final_formula, strict_number, in_dollars, normalize_math, boxed):
            rule(text)
        exact_match(text, ["x"])
"""


def test_any_text_is_judged_in_bounded_time():
    pytest.importorskip("resource")
    done = ran(as_program, LONG)
    assert done.returncode == 0, done.stderr[-800:]


def test_what_lm_evals_rule_calls_equal_is_equal():
    theirs = pytest.importorskip(
        "lm_eval.tasks.hendrycks_math.utils", reason="pip install 'llama_course[eval]'"
    ).is_equiv
    forms = [f for pair in SAME + OTHER for f in pair if "{ and" not in f and "2x" not in f]
    forms += [w["answer"] for w in WORKED_PROBLEMS] + [
        item.gold for item in load_items("math_steps")
    ]
    more = [
        (a, b)
        for a, b in itertools.combinations(forms, 2)
        if theirs(a, b) and normalize_math(a) != normalize_math(b)
    ]
    assert not more  # but "3 and 5", which they cut to 3
    assert any(
        normalize_math(a) == normalize_math(b) and not theirs(a, b) for a, b in SAME
    )  # ours knows more


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=r"\{}()fracsqtex0123456789.,/-^$ =", max_size=25))
def test_any_formula_has_a_spelling(text):
    once = normalize_math(text)
    assert isinstance(once, str) and isinstance(
        final_formula(rf"\boxed{{{text}}}"), (str, type(None))
    )


def test_own_problems_and_their_prompts():
    for w in WORKED_SUMS:
        assert final_number(f"{w['steps']} The answer is {w['answer']}.") == Fraction(w["answer"])
    for w in WORKED_PROBLEMS:
        assert final_formula(
            rf"{w['steps']} The answer is $\boxed{{{w['answer']}}}$."
        ) == normalize_math(w["answer"])
    for item in load_items("gsm8k"):
        assert strict_number(item.solution) == final_number(item.solution) == item.gold
    for item in load_items("math_steps"):
        assert final_formula(item.solution) == item.gold
    item = load_items("gsm8k")[0]
    request = TASKS["gsm8k_vote"].ask(item, [])
    assert (
        request.samples == 100
        and request.temperature == 0.6
        and TASKS["gsm8k_vote"].metric == "maj1@100"
    )
    assert request.prompt.count("\nA:") == 9
    assert TASKS["math_vote"].ask(load_items("math_vote")[0], []).samples == 256
    assert TASKS["math_vote"].ask(load_items("math_vote")[0], []).prompt.count("Problem:") == 5
    lm = TASKS["gsm8k"].ask(item, load_items("gsm8k")[1:3])
    assert lm.prompt.endswith(f"Question: {item.text}\nAnswer:") and TASKS["gsm8k"].shots == 5
    assert lm.prompt.count("####") == 2


def test_real_rows_of_gsm8k():
    path = SAMPLES / "gsm8k_test_30.jsonl"
    if not path.is_file():
        pytest.skip(
            f"no {path}: real rows are not shipped (LLAMA_COURSE_SAMPLES says where they are)"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    items = read_items(TASKS["gsm8k"], rows, str(path))
    assert len(items) == 30 and [items[i].gold for i in range(4)] == [18, 3, 70000, 540]
    for item, row in zip(items, rows):
        assert final_number(item.solution) == strict_number(item.solution) == item.gold
        assert score_problem(item, [f"... The answer is {row['answer'].split('#### ')[1]}."]) == 1
        assert score_problem(item, [f"The answer is {item.gold + 1}."]) == 0
    assert load_items("gsm8k_steps", path, 5) == items[:5]


def test_rows_with_other_columns_are_refused_by_name():
    for task, row, _ in (
        ("gsm8k", {"question": "?"}, "answer"),
        ("nq_open", {"answer": ["x"]}, "question"),
        ("triviaqa", {"question": "?"}, "answer"),
        ("math_steps", {"problem": "?"}, "solution"),
        ("humaneval", {"prompt": "x"}, "entry_point"),
        ("mbpp", {"text": "x"}, "test_list"),
    ):
        with pytest.raises(UserError, match="row 1"):
            read_items(TASKS[task], [row], "rows")
    with pytest.raises(UserError, match="####"):
        read_gsm8k({"question": "?", "answer": "42"})
    with pytest.raises(UserError, match="boxed"):
        read_math({"problem": "?", "solution": "42"})


# ---------------------------------------------------------------- votes


@settings(deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=8), st.randoms())
def test_a_vote_knows_no_order_and_its_scores_sum_to_one(votes, chance):
    other = votes[:]
    chance.shuffle(other)
    assert majority_score(votes, "1") == majority_score(other, "1")
    total = sum(majority_score(votes, gold) for gold in "123")
    assert math.isclose(total, 1 if any(v is not None for v in votes) else 0, abs_tol=1e-12)


def test_votes_by_hand():
    assert majority_score(["1", "2", "2"], "2") == 1 and majority_score(["1", "2", "2"], "1") == 0
    assert (
        majority_score(["1", "2", "3"], "3") == pytest.approx(1 / 3)
        and majority_score([None, None, "2"], "2") == 1
    )
    assert (
        majority_score([], "1") == majority_score([None], "1") == majority_score([None], None) == 0
    )
    item = load_items("gsm8k")[0]  # 60
    assert score_problem(item, ["it is 60.0", "60", "59", "The answer is 60 eggs", "dunno"]) == 1


# ---------------------------------------------------------------- pass@k


def test_pass_at_k_counts_choices():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            choices = [min(choice) < c for choice in itertools.combinations(range(n), k)]
            assert pass_at_k(n, c, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)
    for n, c, k in ((200, 1, 100), (1000, 999, 1), (5000, 3, 2500), (200, 101, 100)):
        assert pass_at_k(n, c, k) == pytest.approx(
            float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))), abs=1e-12
        )
    for wrong in ((5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)):
        with pytest.raises(UserError):
            pass_at_k(*wrong)


def test_pass_at_k_is_unbiased_and_the_naive_estimate_is_not():
    chance, p, n, k, runs = random.Random(0), 0.1, 20, 10, 20_000
    counts = [sum(chance.random() < p for _ in range(n)) for _ in range(runs)]
    truth, error = 1 - (1 - p) ** k, 3 * 0.5 / runs**0.5
    assert abs(sum(pass_at_k(n, c, k) for c in counts) / runs - truth) < error
    assert sum(1 - (1 - c / n) ** k for c in counts) / runs < truth - 5 * error


# ---------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def fenced():
    try:
        with Sandbox():
            return
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_own_programs_pass_their_tests_and_no_others(name, fenced):
    items = load_items(name)
    for i, item in enumerate(items):
        wrong, nothing = items[i - 1].solution, "" if name == "mbpp" else "    return None\n"
        assert score_code(item, [item.solution, wrong, nothing, item.solution]) == 0.5, item.names
    assert score_code(items[0], [items[0].solution, "wrong(", "wrong("], k=2) == pytest.approx(
        2 / 3
    )


def test_tasks_that_run_programs_are_refused_before_a_model_writes(monkeypatch):
    def refuse():
        raise UserError("no fence")

    monkeypatch.setattr(registry, "Sandbox", refuse)
    check_programs(["gsm8k", "nq_open"])
    for name in NAMES:
        if name.startswith(("human", "mbpp")):
            with pytest.raises(UserError, match="no fence"):
                check_programs(["gsm8k", name])


def test_lies_of_a_completion_are_not_believed(fenced):
    item = load_items("humaneval")[0]
    lies = [
        "    import os; os._exit(0)\n",
        "    return type('A', (), {'__eq__': lambda s, o: True})()\n",
        "    return a + b + 1\ndef check(candidate): pass\nprint('ok')\n",
    ]
    assert score_code(item, lies) == 0


def test_rows_as_mbpp_has_them(fenced):
    code = (
        "import math\r\nclass Pair:\r\n    def __init__(self, a, b): self.a, self.b = a, b\r\n"
        "def sum(p):\r\n\treturn p.a + p.b\r\ndef helper(): pass"
    )
    row = {
        "task_id": 1,
        "text": "Add.",
        "code": code,
        "test_setup_code": "p = Pair(4, 5)",
        "test_list": ["assert sum(Pair(1, 2)) == 3", "assert sum(p) == 9"],
    }
    (item,) = read_items(TASKS["mbpp"], [row], "rows")
    assert (
        item.names == ("Pair", "sum")
        and "assert sum(Pair(1, 2)) == 3\nassert sum(p) == 9\n[BEGIN]\n" in item.prompt
    )
    assert score_code(item, [item.solution, "def sum(p): return 3"]) == 0.5
    shots = TASKS["mbpp"].ask(load_items("mbpp")[0], load_items("mbpp")[1:4])
    assert (
        shots.prompt.count("[DONE]") == 3
        and shots.prompt.endswith("[BEGIN]\n")
        and shots.stop == ("[DONE]",)
    )


def test_settings_of_the_paper():
    ask = {name: TASKS[name].ask(load_items(name)[0], []) for name in NAMES}
    assert all(isinstance(a, Write) for a in ask.values()) and all(
        TASKS[name].own for name in NAMES
    )
    assert (
        ask["humaneval_1"].temperature,
        ask["humaneval_100"].temperature,
        ask["mbpp_80"].temperature,
    ) == (0.1, 0.8, 0.8)
    assert (
        ask["humaneval_100"].samples >= 100
        and ask["mbpp_80"].samples >= 80
        and TASKS["mbpp"].shots == 3
    )
    assert TASKS["humaneval_100"].metric == "pass@100" and TASKS["mbpp_80"].metric == "pass@80"


# ---------------------------------------------------------------- a model


class Letters:  # every byte is a token
    vocab_size, bos_id, eos_id = 258, 256, 257

    def encode(self, text, bos=False, eos=False):
        return [256] * bos + list(text.encode()) + [257] * eos

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def test_every_task_runs_through_a_model(fenced, tmp_path):
    torch.manual_seed(0)
    model = Llama(LlamaConfig(dim=16, n_layers=1, n_heads=2, vocab_size=258, max_seq_len=4096))
    small = []
    for name in NAMES:
        task = TASKS[name]
        few = lambda item, shots, ask=task.ask: replace(
            r := ask(item, shots), max_tokens=4, samples=min(r.samples, 2)
        )
        score = (
            task.score
            if "_1" not in name and "_8" not in name
            else lambda item, texts: score_code(item, texts, 1)
        )
        small.append(replace(task, ask=few, score=score))
    result = evaluate(model, Letters(), small, limit=1, progress=False)
    assert set(result["tasks"]) == set(NAMES) and all(
        0 <= row["value"] <= 1 and row["n"] == 1 for row in result["tasks"].values()
    )
    assert {record["task"]: len(record["texts"]) for record in result["items"]}["gsm8k_vote"] == 2
