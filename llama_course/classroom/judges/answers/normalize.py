"What the judge knows of `normalize`. Spoilers ahead."

import random
import re
import string

from llama_course.classroom.exercise import Exercise

normalize = Exercise(
    "normalize",
    chapter="26_answers",
    kind="rebuild",
    minutes=10,
    difficulty=1,
    points={"values": 7, "laws": 3},
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
