"What the judge knows of `clean_page`. Spoilers ahead."

import random
import re

from llama_course.classroom.exercise import Exercise


def count_sentences(text):
    "How many words end a sentence: with a mark, or a mark and a quote."
    return sum(word.rstrip('"').endswith((".", "?", "!")) for word in text.split())


clean_page = Exercise(
    "clean_page",
    chapter="04_web",
    kind="diagnose",
    minutes=20,
    difficulty=1,
    points={"values": 8, "laws": 2},
    hints=(
        "Take a line of a page by hand through the rules. Which rule looks at something that "
        "another rule changes later?",
        "White space first, then [1] and [edit], then the rules for a line: a line that ends in "
        '"text.[1]" ends with a full stop.',
        "Lorem ipsum and { are looked for in the page as it came: the lines that have them may be "
        "dropped by another rule. The three sentences are counted in what is left.",
    ),
)


_LINES = (
    "The cat sat on the mat.", "It was a quiet day in town.[1]", "  Who knows why it rains? ",
    "Menu",
    "Please turn on JavaScript to see it.", "So they say, and more...", "One two three four five",
    '"Nobody ever asked me that before."', "Lorem ipsum dolor sit amet today", "if (x) { return; }",
    "History [edit]", "Yes. No. Maybe so. Or not. Fine. Good.", "We use cookies on this nice site.",
    "",
    "Few words here.",
    "It stands in the book of rules. [2] [3]", "It costs [citation needed] three dollars now!  ",
    "Three little words. [2] [3]",
)  # fmt: skip


@clean_page.cases
def cases_of_clean_page(seed):
    draw = random.Random(seed)
    six = "It rains on the sea today. " * 2 + "Nobody knows why.\n"
    yield (six + "Here are five words now.\n" + six,)
    yield (six.replace("today. It", "today\nit"),) if seed % 2 else (six,)
    usual = [line for line in _LINES if "{" not in line and "orem" not in line]
    for size, lines in ((4, usual), (6, usual), (8, usual), (10, usual), (6, _LINES)):
        yield ("\n".join(draw.choices(lines, k=size)),)
    good = "The cat sat on the mat.\nIt ran away from the dog.\nNobody saw it ever again."
    for page in (
        good, "", good + "\nlorem ipsum", "function() {\n" + good, good.replace(".", ".[12]"),
        good.replace("\n", " \n\t "), "A. B. C. D.\n" + good[:50],
        good + "\nJAVASCRIPT is off on it.",
        "Yes. No. So.\n" * 3, good.replace("mat.", "mat...."), "[1]\n" + good + "\n[edit]",
        "The LOREM Ipsum text is not a text.\n" + good,
        "One two three four [5].\n" + good, 'He said "this is all there is."\n' + good[24:],
    ):  # fmt: skip
        yield (page,)


MARKS = ("[edit]", "[citation needed]")


def _unmarked(line):
    for mark in MARKS:
        line = line.replace(mark, "")
    parts = line.split("[")
    kept = parts[0]
    for part in parts[1:]:
        digits, bracket, rest = part.partition("]")
        kept += rest if bracket and digits.isdecimal() and digits.isascii() else "[" + part
    return kept


def _kept(line, words=5):
    ends = line.endswith((".", "?", "!", '"')) and not line.endswith("...")
    return ends and len(line.split()) >= words and "javascript" not in line.lower()


@clean_page.reference
def truth_of_clean_page(page):
    if "{" in page or "lorem ipsum" in page.lower():
        return None
    lines = [_unmarked(line.strip()).strip() for line in page.split("\n")]
    text = "\n".join(line for line in lines if _kept(line))
    return text if count_sentences(text) >= 3 else None


def _clean(
    page, *, whole=True, marks="first", strip="first", count="after", words=5, dots=True, least=3,
    case=True, quote=True,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    if whole and ("{" in page or "lorem ipsum" in (page.lower() if case else page)):
        return None
    lines = []
    for line in page.split("\n"):
        line = line.strip() if strip == "first" else line
        line = _unmarked(line).strip() if marks == "first" else line
        ends = (".", "?", "!", '"') if quote else (".", "?", "!")
        script = "javascript" in (line.lower() if case else line)
        if line.endswith(ends) and not (dots and line.endswith("...")) and not script:
            if len(line.split()) >= words:
                line = _unmarked(line).strip() if marks == "last" else line
                lines.append(line.strip() if strip == "last" else line)
    text = "\n".join(lines)
    if not whole and ("{" in text or "lorem ipsum" in text.lower()):
        return None
    return text if count_sentences(page if count == "before" else text) >= least else None


clean_page.right(_clean)


@clean_page.right
def rule_by_rule(page):
    if re.search(r"\{|lorem ipsum", page, re.I):
        return None
    lines = [
        re.sub(r"\[[0-9]+\]|\[edit\]|\[citation needed\]", "", line.strip())
        for line in page.split("\n")
    ]
    lines = [line.strip() for line in lines]
    lines = [
        line for line in lines if re.search(r'[.?!"]\Z', line) and not re.search(r"\.\.\.\Z", line)
    ]
    lines = [line for line in lines if len(line.split()) > 4]
    lines = [line for line in lines if not re.search("javascript", line, re.I)]
    text = "\n".join(lines)
    return text if count_sentences(text) > 2 else None


_GOOD = "The cat sat on the mat.\nIt ran away from the dog.\nNobody saw it ever again."


@clean_page.invariant("a page that has been cleaned stays as it is")
def a_clean_page_stays(seen):
    page = " Menu\n" + _GOOD.replace("mat.", "mat.[1]") + "\nmore..."
    return seen(page).value == seen(_GOOD).value == _GOOD


@clean_page.invariant("white space at the ends of lines does not matter")
def white_space_does_not_matter(seen):
    return seen(_GOOD.replace("\n", "  \n \t")).value == _GOOD


@clean_page.mistake("lorem ipsum and { in what is left", hint=3)
def page_rules_in_what_is_left(page):
    "The line with { may be dropped by another rule; the page is looked at as it came."
    return _clean(page, whole=False)


@clean_page.mistake("citation marks removed at the end", hint=2)
def citation_marks_removed_at_the_end(page):
    "A line that ends in [1] does not end in a full stop until the mark is gone."
    return _clean(page, marks="last")


@clean_page.mistake("white space removed at the end", hint=2)
def white_space_removed_at_the_end(page):
    "A line that ends in a blank does not end in a full stop."
    return _clean(page, strip="last", marks="last")


@clean_page.mistake("sentences counted in the page as it came", hint=3)
def sentences_counted_in_the_page_as_it_came(page):
    "Three sentences must be left when all else is gone."
    return _clean(page, count="before")


@clean_page.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(page):
    "Four rules stand at a wrong place."
    return _clean(page, count="before", whole=False, marks="last", strip="last")


@clean_page.mistake("dots taken for a full stop", hint=1)
def dots_taken_for_a_full_stop(page):
    "A line that ends in ... goes on elsewhere."
    return _clean(page, dots=False)


@clean_page.mistake("more than five words", hint=1)
def more_than_five_words(page):
    "Five words are enough."
    return _clean(page, words=6)


@clean_page.mistake("four sentences", hint=1)
def four_sentences(page):
    "Three sentences are enough."
    return _clean(page, least=4)


@clean_page.mistake("capital letters matter", hint=1)
def capital_letters_matter(page):
    "JAVASCRIPT and Lorem ipsum are meant as well."
    return _clean(page, case=False)


@clean_page.mistake("a closing quote is no end", hint=1)
def a_closing_quote_is_no_end(page):
    "A sentence may end with a closing quote."
    return _clean(page, quote=False)
