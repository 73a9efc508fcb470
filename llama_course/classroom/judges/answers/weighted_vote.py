"What the judge knows of `weighted_vote`. Spoilers ahead."

import random
from collections import defaultdict

from llama_course.classroom.exercise import Exercise

weighted_vote = Exercise(
    "weighted_vote",
    chapter="26_answers",
    kind="extend",
    minutes=15,
    difficulty=1,
    points={"values": 7, "laws": 3},
    hints=(
        "Add up the weights of each answer; None is no answer and has no vote.",
        "All answers with the largest sum are winners. Is the right one among them? Then the "
        "lot falls on it with probability 1 / number of winners.",
        "If nobody voted, or every weight is 0, there is no winner: the score is 0.0.",
    ),
)


@weighted_vote.cases
def cases_of_weighted_vote(seed):
    chance = random.Random(seed)
    yield ["7", "9", "9", "7"], [1, 1, 1, 1], "7"
    yield ["7", "9", "8"], [1, 1, 1], "8"
    yield [None, None, "7", None], [5, 5, 1, 5], "7"
    yield [None, None], [1, 2], "7"
    yield [], [], "7"
    yield ["7", "9", "9"], [3, 1, 1], "7"
    yield ["7", "9", "9"], [2, 1, 1], "9"
    yield ["1", "2", "2", "1", "3"], [4, 1, 2, 0, 3], "1"
    yield ["7", "7", "8"], [0, 0, 0], "7"
    yield ["9", "9", "7"], [1, 1, 1], "5"
    for n in (5, 6, 8, 8):
        given = [chance.choice(["1", "2", "3", None]) for _ in range(n)]
        yield given, [chance.randint(0, 3) for _ in range(n)], "1"


def _vote(given, weights, gold, *, none=False, tie="lot", weigh=lambda w: w, zero=False):
    "The score; each keyword is something that is easily wrong."
    sums = defaultdict(float)
    for answer, weight in zip(given, weights):
        if answer is not None or none:
            sums[answer] += weigh(weight)
    most = max(sums.values(), default=0)
    winners = [answer for answer in sums if sums[answer] == most and (most > 0 or zero)]
    if tie == "lot":
        return float((gold in winners) / max(1, len(winners)))
    if tie == "any":
        return float(gold in winners)
    if tie == "sole":
        return float(winners == [gold])
    return float(bool(winners) and winners[0 if tie == "first" else -1] == gold)


@weighted_vote.reference
def truth_of_weighted_vote(answers, weights, gold):
    return _vote(answers, weights, gold)


@weighted_vote.invariant("the order of the samples is no matter")
def the_order_of_the_samples_is_no_matter(seen):
    given, weights = ["1", "2", "2", "1", None, "3"], [1, 2, 1, 2, 4, 1]
    return seen(given, weights, "1").value == seen(given[::-1], weights[::-1], "1").value == 0.5


@weighted_vote.invariant("the scores of all answers sum to one")
def the_scores_of_all_answers_sum_to_one(seen):
    given, weights = ["1", "2", "3", "3", "2"], [3, 1, 2, 1, 2]
    return abs(sum(seen(given, weights, gold).value for gold in "123") - 1) < 1e-9


@weighted_vote.right
def by_a_table_of_weights(given, weights, gold):
    return _vote(given, weights, gold)


@weighted_vote.right
def by_candidate(given, weights, gold):
    total = lambda a: sum(w for b, w in zip(given, weights) if a == b)
    candidates = {a for a in given if a is not None}
    best = max(map(total, candidates), default=0)
    if not best or total(gold) != best or gold not in candidates:
        return 0.0
    return 1 / sum(total(a) == best for a in candidates)


@weighted_vote.mistake("weights are not used", hint=1)
def weights_are_not_used(given, weights, gold):
    "Every vote counted the same: add up weights, not votes."
    return _vote(given, [1] * len(given), gold)


@weighted_vote.mistake("no answer has a vote", hint=1)
def no_answer_has_a_vote(given, weights, gold):
    "None was counted like an answer and can win: texts without an answer do not vote."
    return _vote(given, weights, gold, none=True)


@weighted_vote.mistake("the first wins a tie", hint=2)
def the_first_wins_a_tie(given, weights, gold):
    "In a tie the answer that was drawn first won: another order gives another score."
    return _vote(given, weights, gold, tie="first")


@weighted_vote.mistake("the last wins a tie", hint=2)
def the_last_wins_a_tie(given, weights, gold):
    "In a tie the answer that came last won: another order gives another score."
    return _vote(given, weights, gold, tie="last")


@weighted_vote.mistake("a tie is won", hint=2)
def a_tie_is_won(given, weights, gold):
    "A right answer among several winners counted in full: the lot falls on it only sometimes."
    return _vote(given, weights, gold, tie="any")


@weighted_vote.mistake("a tie is lost", hint=2)
def a_tie_is_lost(given, weights, gold):
    "A right answer among several winners counted nothing: the lot may fall on it."
    return _vote(given, weights, gold, tie="sole")


@weighted_vote.mistake("a tie is half", hint=2)
def a_tie_is_half(given, weights, gold):
    "With three winners the lot falls on each with a third, not with a half."
    score = _vote(given, weights, gold)
    return 0.5 if 0 < score < 1 else score


@weighted_vote.mistake("the share of votes", hint=2)
def the_share_of_votes(given, weights, gold):
    "This is the share of the votes that are right, not the outcome of the vote."
    cast = [(a, w) for a, w in zip(given, weights) if a is not None]
    return sum(w for a, w in cast if a == gold) / max(1, sum(w for _, w in cast))


@weighted_vote.mistake("zero weights elect", hint=3)
def zero_weights_elect(given, weights, gold):
    "Where every weight is 0 nobody has voted: there is no winner."
    return _vote(given, weights, gold, zero=True)
