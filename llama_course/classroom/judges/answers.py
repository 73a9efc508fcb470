"""What the judge knows of the four exercises in `exercises/26_answers.ipynb`. Spoilers from
here on."""

import math
import random
import re
import string
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from itertools import combinations

from llama_course.classroom.exercise import Exercise

normalize = Exercise(
    "normalize",
    chapter="26_answers",
    kind="rebuild",
    minutes=10,
    difficulty=1,
    points={"values": 7, "invariant": 3},
    hints=(
        "Four steps, in this order: lower case, punctuation, articles, spaces.",
        "Punctuation is removed, not replaced: U.S. becomes us. string.punctuation lists it.",
        "An article is a whole word: re.sub(r'\\b(a|an|the)\\b', ' ', text) leaves theatre as "
        "it is. Then ' '.join(text.split()) removes spaces at the ends and doubles, and tabs "
        "and line breaks too.",
    ),
)


@normalize.cases
def cases_of_normalize(seed):
    chance = random.Random(seed)
    yield ("The  U.S. Senate",)
    yield ('"The Theatre", an anthem; a Banana!',)
    yield (" A\tthe\nAn ",)
    yield ("It's 1,000 rock-and-roll songs (a lot)",)
    yield ("a.m. the-end #a _the_ a/b",)
    yield ("5 € – “x”; 3 × ½ …",)  # none of these is in string.punctuation
    yield ("naïve ÉCOLE №7",)
    pieces = "the The a an Anna then bathe banana 42 . , - ' $5".split() + [" ", "  ", "\t"]
    for _ in range(12):
        yield (" ".join(chance.choices(pieces, k=6)) + "".join(chance.choices(pieces, k=4)),)


MARKS = "[" + re.escape(string.punctuation) + "]"


def _clean(
    text,
    *,
    lower=str.lower,
    marks=lambda t: re.sub(MARKS, "", t),
    order="lmas",
    articles=lambda t: re.sub(r"\b(a|an|the)\b", " ", t),
    spaces=lambda t: " ".join(t.split()),
):
    "The rule; each keyword is a step that is easily wrong."
    steps = {"l": lower, "m": marks, "a": articles, "s": spaces}
    for step in order:
        text = steps[step](text)
    return text


@normalize.reference
def truth_of_normalize(text):
    return _clean(text)


@normalize.invariant("a second time changes nothing")
def a_second_time_changes_nothing(seen):
    once = [seen(text).value for text in ("The  tall\tman.", "an  apple, a day")]
    return once == ["tall man", "apple day"] and [seen(text).value for text in once] == once


@normalize.invariant("upper case, a final dot and an article at the beginning say nothing")
def upper_case(seen):
    return len({seen(text).value for text in ("Nile", "the Nile", "THE NILE.", " a nile ")}) == 1


@normalize.right
def cleaned_step_by_step(text):
    return _clean(text)


@normalize.right
def character_by_character(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


@normalize.mistake("upper case stays", hint=1)
def upper_case_stays(text):
    "PARIS and Paris are the same answer: lower() comes first."
    return _clean(text, lower=str)


@normalize.mistake("articles inside words", hint=3)
def articles_inside_words(text):
    "The letters a, an, the were removed inside words, too: theatre became tre."
    return _clean(text, articles=lambda t: re.sub("the|an|a", "", t))


@normalize.mistake("only the first article", hint=3)
def only_the_first_article(text):
    "Articles are removed wherever they stand, not only at the beginning."
    return _clean(text, articles=lambda t: re.sub(r"^\s*(a|an|the)\b", " ", t))


@normalize.mistake("only 'the'", hint=3)
def only_the(text):
    "a and an are articles as well."
    return _clean(text, articles=lambda t: re.sub(r"\bthe\b", " ", t))


@normalize.mistake("punctuation becomes a space", hint=2)
def punctuation_becomes_a_space(text):
    "Punctuation is removed, not replaced by a space: U.S. is us, not u s."
    return _clean(text, marks=lambda t: re.sub(MARKS, " ", t))


@normalize.mistake("punctuation at the ends only", hint=2)
def punctuation_at_the_ends_only(text):
    "Marks inside a word go as well: rock-and-roll is rockandroll."
    return _clean(
        text, marks=lambda t: " ".join(word.strip(string.punctuation) for word in t.split())
    )


@normalize.mistake("all that is no letter or digit is removed", hint=2)
def all_that_is_no_letter_or_digit(text):
    "€ and – are not in string.punctuation: the rule removes what stands there, and no more."
    return _clean(text, marks=lambda t: re.sub(r"[^\w\s]|_", "", t))


@normalize.mistake("digits are removed", hint=2)
def digits_are_removed(text):
    "Digits are no punctuation: whoever removes all that is no letter loses the years."
    return _clean(text, marks=lambda t: re.sub(r"[^a-z\s]", "", t))


@normalize.mistake("articles before punctuation", hint=1)
def articles_before_punctuation(text):
    "Punctuation goes first: otherwise the a of a.m. is taken for an article."
    return _clean(text, order="lams")


@normalize.mistake("double spaces stay", hint=3)
def double_spaces_stay(text):
    "strip() cleans the ends only; between words there may be two spaces or a tab."
    return _clean(text, spaces=str.strip)


@normalize.mistake("no spaces at all", hint=3)
def no_spaces_at_all(text):
    "Without spaces 'to day' and 'today' are the same: one space stays between words."
    return _clean(text, spaces=lambda t: "".join(t.split()))


weighted_vote = Exercise(
    "weighted_vote",
    chapter="26_answers",
    kind="extend",
    minutes=15,
    difficulty=1,
    points={"values": 7, "invariant": 3},
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


stated_number = Exercise(
    "stated_number",
    chapter="26_answers",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    points={"values": 8, "invariant": 2},
    hints=(
        "Write down what the given code makes of '7-3', 'It is 3.', '1, 2 and 3', '5.00' and "
        "'Answer: 18. I took 3 steps.'",
        "First cut out where to look: text.lower().rfind('answer:') is the last marker. If there "
        "is a number behind it, the first of those counts; otherwise the last of the whole text.",
        "A number as a regular expression: [0-9]{1,3}(,[0-9]{3})+ with no digit behind it, or "
        "[0-9]+; then perhaps a point and digits, (\\.[0-9]+)?. A minus counts if neither a digit "
        "nor a letter stands before it: (?<![0-9A-Za-z])-.",
        "decimal.Decimal(text).normalize() drops zeros at the end; f'{...:f}' writes it without an "
        "exponent. '-0' is '0'.",
    ),
)


@stated_number.cases
def cases_of_stated_number(seed):
    chance = random.Random(seed)
    for text in (
        "The answer is 42",
        "It is 3.",
        "She has 7-3 apples",
        "so x = -12",
        "1, 2 and 3, or 1,2",
        "It costs $1,234,567.50 in all.",
        "Answer: 18. I took 3 steps.",
        "ANSWER: 3 of 7",
        "answer: 5 no, ANSWER: -0.50 dollars, of 100",
        "I counted 12. Answer: twelve",
        "nothing at all ... -",
        "",
        "5.00",
        "007 and 100",
        "-0.0",
        "1234,567 or 12,34,567",
        "3.14.15",
        "a-5, 8-5 and - 6",
    ):
        yield (text,)
    for _ in range(8):
        whole = chance.choice(["0", "5", "1,000", "90", "12,345", "100"])
        number = (
            chance.choice(["", "-", "$", "-"]) + whole + chance.choice(["", ".5", ".250", ".0"])
        )
        ends = chance.choice([".", " apples", "%", ", I think", " = x"])
        marker = chance.choice(["Answer: ", "ANSWER:", "so ", ""])
        yield (f"{chance.randint(2, 99)} and {chance.randint(2, 99)}: {marker}{number}{ends}",)


def _digits(text, i):
    "Where the digits that begin at i end."
    while i < len(text) and text[i] in string.digits:
        i += 1
    return i


@stated_number.reference
def truth_of_stated_number(text):
    "One character after the other."

    def numbers(text):
        found, i = [], 0
        while i < len(text):
            if text[i] not in string.digits:
                i += 1
                continue
            begin, end = i, _digits(text, i)
            groups = end
            while end - begin <= 3 and text[groups : groups + 1] == ",":
                if _digits(text, groups + 1) != groups + 4:
                    break
                groups += 4
            i = groups
            whole, rest = text[begin:i].replace(",", "").lstrip("0") or "0", ""
            if text[i : i + 1] == "." and _digits(text, i + 1) > i + 1:
                end = _digits(text, i + 1)
                rest, i = text[i + 1 : end].rstrip("0"), end
            before = text[begin - 2] if begin > 1 else " "
            letters = string.digits + string.ascii_letters
            minus = begin > 0 and text[begin - 1] == "-" and before not in letters
            value = whole + ("." + rest if rest else "")
            found.append(("-" if minus and value != "0" else "") + value)
        return found

    place = text.lower().rfind("answer:")
    behind = numbers(text[place + len("answer:") :]) if place >= 0 else []
    return behind[0] if behind else (numbers(text) or [None])[-1]


NUMBER = r"(?:(?<![0-9A-Za-z])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"


def _plain(number):
    "The number in its shortest form."
    text = f"{Decimal(number.replace(',', '')).normalize():f}"
    return "0" if text == "-0" else text


def _number(text, *, pattern=NUMBER, marker=str.rfind, plain=_plain, lower=str.lower, whole=True):
    "By a regular expression, with a place for each mistake."
    place = marker(lower(text), "answer:")
    behind = re.findall(pattern, text[place + 7 :]) if place >= 0 else []
    found = re.findall(pattern, text)
    if behind:
        return plain(behind[0])
    if place >= 0 and not whole:
        return None
    return plain(found[-1]) if found else None


stated_number.right(_number)


@stated_number.right
def by_cutting(text):
    tokens = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+(?!\d)|[0-9]+)(\.[0-9]+)?")

    def read(part):
        values = []
        for match in tokens.finditer(part):
            sign = re.search(r"(?:^|[^0-9a-zA-Z])-$", part[: match.start()]) is not None
            value = Fraction(match[0].replace(",", "")) * (-1 if sign else 1)
            text = f"{float(value):.12f}".rstrip("0").rstrip(".")
            values.append("0" if value == 0 else text)
        return values

    parts = re.split("answer:", text, flags=re.IGNORECASE)
    if len(parts) > 1 and (values := read(parts[-1])):
        return values[0]
    return next(reversed(read(text)), None)


@stated_number.invariant("what is written before the last marker does not matter")
def what_is_written_before_the_last_marker(seen):
    ends = "Answer: -1,250.0 or so"
    found = {seen(begin + ends).value for begin in ("", "3 + 4. ", "Answer: 9. No. ", "-8, -9 ")}
    return found == {"-1250"}


@stated_number.mistake("the marker is ignored", hint=2)
def the_marker_is_ignored(text):
    "What stands behind 'Answer:' counts, not the last number of whatever follows."
    return _number(text, marker=lambda text, marker: -1)


@stated_number.mistake("the first marker", hint=2)
def the_first_marker(text):
    "Whoever corrects himself writes 'Answer:' again: the last one counts."
    return _number(text, marker=str.find)


@stated_number.mistake("the marker in one case only", hint=2)
def the_marker_in_one_case_only(text):
    "'ANSWER:' and 'answer:' are markers as well."
    return _number(text, lower=lambda text: text.replace("Answer:", "answer:"))


@stated_number.mistake("no number behind the marker, no answer", hint=2)
def no_number_behind_the_marker(text):
    "Where no number stands behind the marker, the last number of the whole text counts."
    return _number(text, whole=False)


@stated_number.mistake("every minus is a sign", hint=3)
def every_minus_is_a_sign(text):
    "In 7-3 the minus is an operation: the number is 3."
    return _number(text, pattern=NUMBER.replace("(?<![0-9A-Za-z])", ""))


@stated_number.mistake("no minus is a sign", hint=3)
def no_minus_is_a_sign(text):
    "Negative answers lose their sign."
    return _number(text, pattern=NUMBER.replace("(?:(?<![0-9A-Za-z])-)?", ""))


@stated_number.mistake("all commas are removed", hint=3)
def all_commas_are_removed(text):
    "'1,2' are two numbers; a comma separates thousands only where three digits follow."
    return _number(text.replace(",", ""))


@stated_number.mistake("commas end a number", hint=3)
def commas_end_a_number(text):
    "1,234,567 is one number."
    return _number(text, pattern=NUMBER.replace("(?:,[0-9]{3})+", "(?:,[0-9]{3}){0}"))


@stated_number.mistake("whole numbers alone", hint=3)
def whole_numbers_alone(text):
    "0.50 is a half, not 0 and 50."
    return _number(text, pattern=NUMBER.removesuffix(r"(?:\.[0-9]+)?"))


@stated_number.mistake("zeros stay", hint=4)
def zeros_stay(text):
    "5.00, 05 and 5 are the same answer and must become the same text."
    return _number(text, plain=lambda number: number.replace(",", ""))


@stated_number.mistake("the code as it was given", hint=1)
def the_number_as_it_was_given(text):
    "Dots that end a sentence, minuses between numbers and lists of numbers are all taken in."
    numbers = re.findall(r"-?[0-9.]+", text.replace(",", ""))
    return numbers[-1] if numbers else None


pass_at_k = Exercise(
    "pass_at_k",
    chapter="26_answers",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    points={"values": 6, "invariant": 4},
    hints=(
        "The given formula may take the same program twice. Which choices of k different "
        "programs are there?",
        "The share of choices without one that passes is C(n - c, k) / C(n, k): all k come "
        "from the n - c.",
        "If n - c < k, no choice does without one that passes. math.comb is exact for any "
        "size; as a product it is (1 - k/i) for i from n - c + 1 to n.",
    ),
)


@pass_at_k.cases
def cases_of_pass_at_k(seed):
    chance = random.Random(seed)
    yield from (
        (5, 0, 2),
        (5, 5, 2),
        (5, 1, 5),
        (5, 1, 1),
        (6, 2, 3),
        (10, 7, 4),
        (4, 2, 3),
        (1, 1, 1),
    )
    yield from ((1, 0, 1), (200, 3, 100), (2000, 1, 1000))
    for _ in range(5):
        n = chance.randint(3, 9)
        yield n, chance.randint(0, n), chance.randint(1, n)


def _counted(n, c, k):
    if n > 12:
        return 1 - math.comb(n - c, k) / math.comb(n, k)
    choices = list(combinations(range(n), k))
    return sum(min(choice) < c for choice in choices) / len(choices)


@pass_at_k.reference
def truth_of_pass_at_k(n, c, k):
    return float(_counted(n, c, k))


@pass_at_k.invariant("its mean over many runs is the truth")
def its_mean_over_many_runs_is_the_truth(seen):
    n, k = 8, 4
    for p in (0.1, 0.4):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * seen(n, c, k).value for c in range(n + 1)
        )
        if abs(mean - (1 - (1 - p) ** k)) > 1e-6:
            return False
    return True


@pass_at_k.invariant("with k = 1 it is the share that passes, with k = n whether any does")
def with_k_1_it_is_the_share_that_passes(seen):
    return all(
        abs(seen(6, c, 1).value - c / 6) < 1e-6 and seen(6, c, 6).value == (c > 0) for c in range(7)
    )


@pass_at_k.right
def by_binomials(n, c, k):
    return 1 - math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.right
def by_a_running_product(n, c, k):
    none = 1.0
    for i in range(n - c + 1, n + 1):
        none *= max(0.0, 1 - k / i)
    return 1.0 - none


@pass_at_k.mistake("as it was given", hint=1)
def as_it_was_given(n, c, k):
    "This draws with return: the same program may be taken twice, and the estimate is too low."
    return 1 - (1 - c / n) ** k


@pass_at_k.mistake("the share that passes, k times", hint=1)
def the_share_that_passes_k_times(n, c, k):
    "k chances of c/n do not add up: two of the k may pass together."
    return min(1.0, k * c / n)


@pass_at_k.mistake("all k pass", hint=2)
def all_k_pass(n, c, k):
    "That is the share of choices in which all k pass: C(c, k). One is enough."
    return math.comb(c, k) / math.comb(n, k)


@pass_at_k.mistake("none passes", hint=2)
def none_passes(n, c, k):
    "That is the share without any that passes: take it from 1."
    return math.comb(n - c, k) / math.comb(n, k)


@pass_at_k.mistake("the first k only", hint=1)
def the_first_k_only(n, c, k):
    """Whether one of k passes, if any does: the other n - k programs were thrown away or all
    counted as one."""
    return float(c > 0)


@pass_at_k.mistake("k - 1 programs", hint=2)
def k_1_programs(n, c, k):
    "One program too few was chosen: C(n - c, k - 1) / C(n, k - 1)."
    return 1 - math.comb(n - c, k - 1) / math.comb(n, k - 1)


@pass_at_k.mistake("the product begins one too early", hint=3)
def the_product_begins_one_too_early(n, c, k):
    "The product has c factors, i from n - c + 1 to n; one more was taken."
    return 1 - math.prod(max(0.0, 1 - k / i) for i in range(max(1, n - c), n + 1))


@pass_at_k.mistake("the product ends one too early", hint=3)
def the_product_ends_one_too_early(n, c, k):
    "The product has c factors, i from n - c + 1 to n; range(a, b) leaves out b."
    return 1 - math.prod(max(0.0, 1 - k / i) for i in range(n - c + 1, n))


@pass_at_k.mistake("factors below zero", hint=3)
def factors_below_zero(n, c, k):
    """If n - c < k a factor of the product is negative or zero and its product means nothing:
    answer 1 there."""
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1) if i != k)
