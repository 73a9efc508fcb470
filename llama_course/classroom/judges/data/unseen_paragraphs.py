"What the judge knows of `unseen_paragraphs`. Spoilers ahead."

import random
import re
import string
import unicodedata

from llama_course.classroom.exercise import Exercise

unseen_paragraphs = Exercise(
    "unseen_paragraphs",
    chapter="03_data",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    points={"values": 6, "laws": 4},
    hints=(
        "Keep one set for all pages. For each line, work out its normalized form, look it up,"
        " and keep the line as it was if the form is new.",
        "Four things change: str.lower; each digit to 0, so that 2019 and 2021 are the same "
        "but 99 and 2019 are not; punctuation away, in all of Unicode (unicodedata.category "
        "starts with P); accents away.",
        "Accents: unicodedata.normalize('NFD', text) takes é apart into e and an accent, and "
        "the accent has the category Mn. Encoding to ASCII would drop whole letters of other "
        "alphabets.",
        "A line of which nothing is left goes. The result has one list for each page, empty "
        "or not, and the set is made anew in each call.",
    ),
)


TEMPLATES = (
    "Copyright (c) {y} Zoë Müller. All rights reserved.",
    "copyright (C) {y} zoe muller all rights reserved",
    "Call us: {p}",
    "“Zażółć gęślą jaźń”, {p} times!",
    "zażółć gęślą jaźń {p} times",
    "-----",
    "",
    "  ",
    "Żeglarz {p}",
    "Привет, мир {y}!",
    "привет мир {y}",
    "Page {p} of {y}",
    "ΕΛΛΗΝΙΚΆ – {y}",
    "***",
    "A line of its own",
    "a line—of its own",
    "a lineof its own",
    "你好，世界。",
    "你好世界",
    "the year",
    "the year {y}",
)


@unseen_paragraphs.cases
def cases_of_unseen_paragraphs(seed):
    draw = random.Random(seed)
    fill = lambda line: line.format(
        y=draw.randint(1000, 9999), p=draw.choice(["7", "42", "42", "999", "٣"])
    )
    for size in (1, 3, 6):
        pages = [[fill(line) for line in draw.sample(TEMPLATES, 8)] for _ in range(size)]
        again = [pages[0][0], "The end.", "THE END", *pages[0][:3]]
        yield (["\n".join(lines) for lines in (*pages, again, again)],)
    yield (
        [
            *["\n".join(fill(line) for line in TEMPLATES)] * 2,
            "",
            "C jobs\nC++ jobs\n5 €\n5 $\n5\n_\n`a`\na\n2²\n2\nx³",
            "Année 1999\nannee 2001\nANNÉE 99",
            "one\u2028two\fthree\r\none\ntwo",  # a line ends with \n and nothing else
            "\u3000ideographic space\t\nIdeographic space",
        ],
    )


def _folded(text, keep=lambda c: unicodedata.category(c)[0] != "P", digit=lambda c: "0"):
    "Lower case, digits by `digit`, only what `keep` keeps, no accents."
    parts = unicodedata.normalize("NFD", text.lower())
    letters = (digit(c) if c.isdecimal() else c for c in parts if unicodedata.category(c) != "Mn")
    return "".join(c for c in letters if keep(c) or c == "0").strip()


def _unseen(pages, fold):
    "For each page, its lines whose folded form is new."
    seen, result = {""}, []
    for page in pages:
        lines = []
        for line in page.split("\n"):
            if fold(line) not in seen:
                seen.add(fold(line))
                lines.append(line)
        result.append(lines)
    return result


@unseen_paragraphs.reference
def truth_of_unseen_paragraphs(pages):
    return _unseen(pages, _folded)


@unseen_paragraphs.right
def with_folded_lines(pages):
    return _unseen(pages, _folded)


@unseen_paragraphs.right
def by_first_places(pages):
    def key(line):
        text = re.sub(
            r"\d", "0", unicodedata.normalize("NFKD" if line.isascii() else "NFD", line).lower()
        )
        kinds = ((c, unicodedata.category(c)) for c in text)
        return "".join(c for c, kind in kinds if kind != "Mn" and not kind.startswith("P")).strip()

    first = {}
    for p, page in enumerate(pages):
        for i, line in enumerate(page.split("\n")):
            first.setdefault(key(line), (p, i))
    return [
        [
            line
            for i, line in enumerate(page.split("\n"))
            if key(line) and first[key(line)] == (p, i)
        ]
        for p, page in enumerate(pages)
    ]


@unseen_paragraphs.invariant("reading all pages a second time finds nothing new")
def reading_all_pages_a_second_time_finds_nothing_new(seen):
    pages = ["Tea, 1999\nCoffee", "tea 2005\nMilk\n\nmilk!"]
    once, twice = seen(pages).value, seen(pages + pages).value
    return twice == once + [[], []]


@unseen_paragraphs.invariant("a call knows nothing of the calls before it")
def a_call_knows_nothing_of_the_calls_before_it(seen):
    pages = ["First\nSecond", "second\nThird"]
    return seen(pages).value == seen(pages).value == [["First", "Second"], ["Third"]]


@unseen_paragraphs.invariant("each line that comes back stood on its page, as it was")
def each_line_that_comes_back_stood_on_its_page(seen):
    pages = ["  Zoë says: “2 teas”.", "zoe says 3 teas\nNo. 10"]
    return seen(pages).value == [["  Zoë says: “2 teas”."], ["No. 10"]]


@unseen_paragraphs.mistake("lines compared as they are", hint=1)
def lines_compared_as_they_are(pages):
    "Without normalizing, a year or a comma makes a line new."
    return _unseen(pages, fold=str.strip)


@unseen_paragraphs.mistake("the normalized lines come back", hint=1)
def the_normalized_lines_come_back(pages):
    "The normalized form is for comparing only; the text that is kept must be as it was."
    return [[_folded(line) for line in page] for page in _unseen(pages, _folded)]


@unseen_paragraphs.mistake("only ASCII punctuation", hint=2)
def only_ascii_punctuation(pages):
    "string.punctuation lacks typographic quotes, dashes and the marks of other scripts."
    return _unseen(
        pages, fold=lambda line: _folded(line, keep=lambda c: c not in string.punctuation)
    )


@unseen_paragraphs.mistake("other characters end a line, too", hint=1)
def other_characters_end_a_line_too(pages):
    "A line ends with a newline: splitlines() cuts at form feeds, U+2028 and others as well."
    return _unseen(["\n".join(page.splitlines()) for page in pages], _folded)


@unseen_paragraphs.mistake("symbols are removed", hint=2)
def symbols_are_removed(pages):
    "€ and + are symbols, not punctuation: C++ is not C."
    kept = lambda line: re.sub(r"[^\w\s]|_", "", _folded(line))
    return _unseen(pages, fold=lambda line: kept(line).strip())


@unseen_paragraphs.mistake("digits are removed", hint=2)
def digits_are_removed(pages):
    """Each digit becomes a 0 and stays a character: without it, "the year" equals "the year
    1999"."""
    return _unseen(pages, fold=lambda line: _folded(line, digit=lambda c: ""))


@unseen_paragraphs.mistake("a number becomes one 0", hint=2)
def a_number_becomes_one_0(pages):
    "Each digit becomes a 0, so numbers keep their length: 7 and 999 are not the same."
    return _unseen(pages, fold=lambda line: re.sub("0+", "0", _folded(line)))


@unseen_paragraphs.mistake("capital letters matter", hint=2)
def capital_letters_matter(pages):
    "The comparison is in lower case."
    upper = lambda line: "".join("^" * c.isupper() for c in line)
    return _unseen(pages, lambda line: _folded(line) and _folded(line) + upper(line))


@unseen_paragraphs.mistake("accents matter", hint=3)
def accents_matter(pages):
    "é and e should be the same: take letters apart with NFD and leave out the category Mn."

    def fold(line):
        kept = (c for c in line.lower() if unicodedata.category(c)[0] != "P")
        return "".join("0" if c.isdecimal() else c for c in kept).strip()

    return _unseen(pages, fold)


@unseen_paragraphs.mistake("letters outside ASCII are dropped", hint=3)
def letters_outside_ascii_are_dropped(pages):
    "Encoding to ASCII drops accents, and with them every Russian, Greek and Chinese letter."
    return _unseen(
        pages, fold=lambda line: _folded(line).encode("ascii", "ignore").decode().strip()
    )


@unseen_paragraphs.mistake("each page starts afresh", hint=1)
def each_page_starts_afresh(pages):
    "The set must outlive the page: most duplicates stand on other pages."
    return [_unseen([page], _folded)[0] for page in pages]


@unseen_paragraphs.mistake("repetitions on one page stay", hint=1)
def repetitions_on_one_page_stay(pages):
    "A line is looked up among earlier pages only; a page can repeat itself."
    seen, result = {""}, []
    for page in pages:
        result.append([line for line in page.split("\n") if _folded(line) not in seen])
        seen |= {_folded(line) for line in page.split("\n")}
    return result


@unseen_paragraphs.mistake("the first copy goes, too", hint=1)
def the_first_copy_goes_too(pages):
    "Of a line that occurs twice, one copy must stay: the first."
    keys = [_folded(line) for page in pages for line in page.split("\n")]
    return [
        [line for line in page.split("\n") if keys.count(_folded(line)) == 1 and _folded(line)]
        for page in pages
    ]


@unseen_paragraphs.mistake("empty lines stay", hint=4)
def empty_lines_stay(pages):
    "A line of which normalizing leaves nothing, such as a row of dashes, is no text."
    seen, result = set(), []
    for page in pages:
        lines = []
        for line in page.split("\n"):
            if (key := _folded(line)) not in seen or not key:
                seen.add(key)
                lines.append(line)
        result.append(lines)
    return result


@unseen_paragraphs.mistake("empty pages vanish", hint=4)
def empty_pages_vanish(pages):
    "There must be one list for each page, or nobody knows which list belongs to which page."
    return [lines for lines in _unseen(pages, _folded) if lines]
