"""Intervals, pairs, sizes of test sets, contamination, and the paper's sentences in its tables."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course.certainty import (
    CLAIMS,
    QUESTIONS,
    TABLE_14,
    Claim,
    bootstrap,
    gram_index,
    items_needed,
    judge_claim,
    margin,
    margins,
    mcnemar,
    overlap,
    paired,
    plain_words,
    standard_error,
    table_16_average,
    wilson,
    z_value,
)
from llama_course.support.errors import UserError
from llama_course.support.paper import results, table_16
from llama_course.tasks.benchmarks.mmlu import category_of

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
many = settings(max_examples=60, deadline=None, derandomize=True, database=None)
counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# --- one score


@many
@given(count=counts, level=st.floats(0.5, 0.999))
def test_wilson_is_scipys(count, level):
    k, n = count
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    low, high = wilson(k, n, level)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1


@pytest.mark.parametrize("n, p", [(5, 0.5), (10, 0.9), (20, 0.95), (164, 0.02), (500, 0.6)])
def test_wilson_holds_what_it_promises(n, p):
    held = sum(
        stats.binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n)[0] <= p <= wilson(k, n)[1]
    )
    assert held > 0.91


@many
@given(scores=st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_standard_error_is_scipys(scores):
    assert standard_error(scores) == pytest.approx(stats.sem(scores), abs=1e-12)


def test_one_item_has_no_standard_error():
    assert math.isnan(standard_error([1.0])) and math.isnan(standard_error([]))


def test_z_value():
    assert z_value(0.95) == pytest.approx(stats.norm.ppf(0.975))
    for level in (0, 1, 95):
        with pytest.raises(UserError):
            z_value(level)


@pytest.mark.parametrize("right, n", [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_score(right, n):
    with pytest.raises(UserError):
        wilson(right, n)


# --- how many items


def test_one_point_takes_forty_thousand():
    assert items_needed(0.01) == math.ceil(
        (1.959964 + 0.841621) ** 2 * (2 * 0.25 - 0.00005) / 0.0001
    )
    assert items_needed(0.01, disagree=0.1) < items_needed(0.01) / 4
    assert (
        items_needed(0.2, disagree=0.2)
        == math.ceil((1.959964 + 0.841621) ** 2 * (0.2 - 0.04) / 0.04)
        == 32
    )
    assert items_needed(0.02) == pytest.approx(items_needed(0.01) / 4, rel=0.01)


@pytest.mark.parametrize(
    "gap, share, disagree", [(0.05, 0.5, None), (0.05, 0.8, None), (0.05, 0.5, 0.2)]
)
def test_as_many_items_show_the_gap_in_four_tests_of_five(gap, share, disagree):
    rng, n, tests = np.random.default_rng(1), items_needed(gap, share, disagree), 3000
    if disagree is None:
        a, b = (
            rng.binomial(n, share - gap / 2, tests) / n,
            rng.binomial(n, share + gap / 2, tests) / n,
        )
        error = np.sqrt((a * (1 - a) + b * (1 - b)) / n)
    else:
        b, a, _ = (
            rng.multinomial(n, [(disagree + gap) / 2, (disagree - gap) / 2, 1 - disagree], tests).T
            / n
        )
        error = np.sqrt((a + b - (b - a) ** 2) / n)
    assert (b - a > 1.96 * error).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "wrong", [dict(gap=0), dict(gap=0.1, share=0.99), dict(gap=0.1, disagree=0.05)]
)
def test_no_such_gap(wrong):
    with pytest.raises(UserError):
        items_needed(**wrong)


# --- pairs


@many
@given(wins=st.integers(0, 60), losses=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
    wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(wanted) == mcnemar(losses, wins)


def test_pairs_see_what_two_intervals_do_not():
    b = np.arange(1000) < 700
    a = np.arange(1000) < 720
    found = paired(a, b)
    assert (found.wins, found.losses) == (20, 0) and found.difference == pytest.approx(0.02)
    assert found.p_value < 1e-5 and found.stderr == pytest.approx(stats.sem(a.astype(float) - b))
    assert wilson(700, 1000)[1] > wilson(720, 1000)[0]


def test_pairs_must_be_pairs():
    with pytest.raises(UserError, match="3 and 2"):
        paired([1, 0, 1], [1, 0])
    with pytest.raises(UserError):
        paired([], [])


def test_bootstrap_is_scipys():
    scores = np.random.default_rng(3).random(80) < 0.3
    theirs = stats.bootstrap(
        (scores,), np.mean, method="percentile", rng=0, n_resamples=4000
    ).confidence_interval
    assert bootstrap(scores, draws=4000) == pytest.approx(tuple(theirs), abs=0.015)
    assert bootstrap(scores) == bootstrap(scores) != bootstrap(scores, seed=1)
    assert bootstrap([1.0, 1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(UserError):
        bootstrap([])


# --- contamination


def test_a_copy_is_found_whatever_its_dress():
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    index = gram_index(["before " + text + " after"])
    assert overlap(text, index) == overlap(text.upper().replace(",", " --"), index) == 1
    assert overlap("quite other words " * 6, index) == 0


def test_only_the_copied_part_counts():
    text = " ".join(f"w{i}" for i in range(40))
    index = gram_index([" ".join(f"w{i}" for i in range(20))])
    assert overlap(text, index) == pytest.approx(20 / 40)


def test_short_items_cannot_be_judged():
    index = gram_index(["one two three four"], n=3)
    assert math.isnan(overlap("one two", index, n=3)) and overlap("one two three", index, n=3) == 1


def test_words_of_other_scripts_are_words():
    assert plain_words("Ångström's naïve_test -- 日本 42!") == [
        "ångström",
        "s",
        "naïve",
        "test",
        "日本",
        "42",
    ]


# --- the tables


def test_mmlu_has_all_its_questions():
    assert len(table_16()) == 57 and sum(row.questions for row in table_16().values()) == 14042
    for category, n in (
        ("Humanities", 4705),
        ("STEM", 3018),
        ("Social Science", 3077),
        ("Other", 3242),
    ):
        assert (
            sum(row.questions for name, row in table_16().items() if category_of(name) == category)
            == n
        )
    assert table_16()["anatomy"].category == "STEM"  # as printed


def test_every_printed_score_is_a_share_of_its_questions():
    for _, n, scores in table_16().values():
        for model in list(scores)[3:]:
            assert abs(100 * round(scores[model] * n / 100) / n - scores[model]) < 0.0551


@pytest.mark.parametrize("model", ["LLaMA 7B", "LLaMA 13B", "LLaMA 33B", "LLaMA 65B"])
def test_table_9_is_table_16_with_anatomy_moved(model):
    printed = results(9)[model]
    assert round(table_16_average(model), 1) == printed["Average"]
    for kind, name in (
        ("Humanities",) * 2,
        ("STEM",) * 2,
        ("Social Science", "Social Sciences"),
        ("Other",) * 2,
    ):
        assert table_16_average(model, kind, anatomy="Other") == pytest.approx(
            printed[name], abs=0.06
        )
    assert abs(table_16_average(model, "STEM") - printed["STEM"]) > 0.2  # as Table 16 prints it


def test_questions_are_given_for_every_number():
    for n, tasks in QUESTIONS.items():
        for row in results(n).values():
            assert row.keys() <= tasks.keys()


# --- the sentences


def test_a_margin_has_the_error_of_two_shares():
    m = margin(3, "x", 60, 50, 100)
    assert m.points == 10 and m.stderr == pytest.approx(100 * math.sqrt((0.24 + 0.25) / 100))
    assert m.least == pytest.approx(100 * math.sqrt((0.1 - 0.01) / 100)) and not m.is_clear()
    assert margin(3, "x", 60, 50, 1000).is_clear() and margin(3, "x", 50, 60, 1000).is_clear()


def test_margins_are_the_tables():
    found = {(m.table, m.task): m.points for m in margins("LLaMA 65B", "Chinchilla 70B")}
    assert found[3, "BoolQ"] == 1.6 and found[9, "Average"] == -4.1 and (3, "OBQA") not in found
    assert [m.points for m in margins("LLaMA 65B", "GPT-3 175B", 14)] == [29, 28]


def verdict(says):
    return judge_claim(next(claim for claim in CLAIMS if claim.says == says))


def test_the_slips_are_found():
    assert (
        verdict("65B beats Chinchilla but on BoolQ").exceptions[0].points > 0
    )  # the exception is none
    palm = verdict("65B beats PaLM-540B but on BoolQ, WinoGrande")
    assert (
        palm.printed == "holds"
        and all(m.points < 0 for m in palm.exceptions)
        and len(palm.exceptions) == 2
    )
    common = verdict("13B beats GPT-3 on most of common sense")
    assert (
        common.printed == "holds"
        and common.won == 5
        and {m.task for m in common.lost} == {"PIQA", "OBQA"}
    )
    zero = verdict("65B is the best at zero-shot questions")
    assert zero.printed == "does not hold" and zero.lost[0].points == -1.1
    maths = verdict("65B beats Minerva-62B on GSM8k")
    assert maths.printed == "does not hold" and maths.certain == "cannot be told" and maths.won == 1
    code = verdict("65B beats PaLM-62B, also trained longer")
    assert code.printed == "does not hold" and [m.points for m in code.lost] == [0]
    assert verdict("65B is more truthful than GPT-3").certain == "holds"


def test_a_claim_that_is_clearly_wrong():
    wrong = judge_claim(Claim("-", "7B beats 65B", "LLaMA 7B", ("LLaMA 65B",), (4, 5)))
    assert wrong.printed == wrong.certain == "does not hold" and wrong.won == 0
    right = judge_claim(Claim("-", "65B beats 7B", "LLaMA 65B", ("LLaMA 7B",), (4, 5)))
    assert right.printed == right.certain == "holds" and right.unclear == 0
    assert right.mean == -wrong.mean > 3 * right.mean_error > 0


def test_most_is_more_than_half():
    half = Claim("-", "-", "LLaMA 65B", ("LLaMA 33B",), (3,), tasks=("ARC-e", "SIQA"), share=0.5)
    assert judge_claim(half).won == 1 and judge_claim(half).printed == "does not hold"


def test_a_claim_without_numbers():
    with pytest.raises(UserError, match="LaMDA"):
        judge_claim(Claim("-", "-", "LLaMA 65B", ("LaMDA 137B",), (3,)))


def test_table_14_is_the_papers():
    assert TABLE_14["LLaMA 65B"] == (0.57, 0.53) and len(TABLE_14) == 7
