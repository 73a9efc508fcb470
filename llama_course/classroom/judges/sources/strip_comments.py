"What the judge knows of `strip_comments`. Spoilers ahead."

import random
import re

from llama_course.classroom.exercise import Exercise

strip_comments = Exercise(
    "strip_comments",
    chapter="05_sources",
    kind="diagnose",
    minutes=25,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        r"Try 50\% of it, then a\\% note: in the first the sign is text, in the second a comment. "
        "What is the difference?",
        "An even number of backslashes before % (also none) leaves it a comment; an odd number "
        "makes it a sign. Read from left to right: a backslash takes the next character with it.",
        "The end of the line goes with the comment, and so do the blanks that begin the next "
        "line. But an empty line is a paragraph's end: then the newline stays.",
        r"re.sub with one pattern for both: (\\.)|%..., and a function that keeps group 1.",
    ),
)


_TEX = (
    r"50\% of it", "text % note", r"a\\% note", r"a\\\% b", "% a whole line", "", "  indented",
    "x%",
    r"\url{a}", "%", r"100\%% twice", "end.", "\t% tab", r"\% first",
)  # fmt: skip


@strip_comments.cases
def cases_of_strip_comments(seed):
    draw = random.Random(seed)
    for size in (3, 6, 12, 12):
        yield ("\n".join(draw.choices(_TEX, k=size)),)
    for text in (
        "one% and\n  two", "one % and\n\ntwo", "only text\n", "% all", "", "a%\n%\n  b",
        "\\\\%x\ny",
        "last % without end", "a%b%c\nd", "a% b\n \t", "a% b\n \u00a0c",
        "x%\n \n y", "end\\", "  % first\nb",
    ):  # fmt: skip
        yield (text,)


@strip_comments.reference
def truth_of_strip_comments(text):
    out, i = [], 0
    while i < len(text):
        if text[i] == "\\":
            out.append(text[i : i + 2])
            i += 2
        elif text[i] == "%":
            end = text.find("\n", i)
            if end < 0:
                break
            after = end + 1
            while after < len(text) and text[after] in " \t":
                after += 1
            empty = after < len(text) and text[after] == "\n"
            i = end if empty else after  # an empty line ends the paragraph
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def _without(text, escape=r"\\.", blanks=r"[ \t]*", paragraph=True):
    "The right answer, with a switch for each mistake."
    comment = r"%[^\n]*(?=\n[ \t]*\n)|" if paragraph else ""
    pattern = rf"({escape})|{comment}%[^\n]*(?:\n{blanks}|\Z)"
    return re.sub(pattern, lambda match: match[1] or "", text, flags=re.S)


strip_comments.right(_without)


@strip_comments.right
def line_by_line(text):
    out, join = [], False
    lines = text.split("\n")
    for n, line in enumerate(lines):
        if join:
            line = line.lstrip(" \t")
        place = 0
        while (place := line.find("%", place)) >= 0:
            before = line[:place]
            if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
                break
            place += 1
        last = n == len(lines) - 1
        blank = not last and not lines[n + 1].strip(" \t") and n + 1 < len(lines) - 1
        join = place >= 0 and not blank
        out.append(line[:place] if place >= 0 else line)
        out.append("" if join or last else "\n")
    return "".join(out)


@strip_comments.invariant("a text without comments stays as it is")
def a_text_without_comments_stays(seen):
    text = "50\\% of \\\\ all\n\n  $x \\% y$\n"
    return seen(text).value == text


@strip_comments.invariant("a second time there is nothing to remove")
def a_second_time_there_is_nothing_to_remove(seen):
    once = seen("a % b\nc\\% d\n% e\n\nf\\\\%g\n h").value
    return seen(once).value == once == "a c\\% d\n\n\nf\\\\h"


@strip_comments.mistake("two backslashes taken for one", hint=2)
def two_backslashes_taken_for_one(text):
    r"In \\% the first backslash takes the second with it, and % begins a comment."
    pattern = r"(?<!\\)(?:%[^\n]*(?=\n[ \t]*\n)|%[^\n]*(?:\n[ \t]*|\Z))"
    return re.sub(pattern, "", text)


@strip_comments.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(text):
    r"It knows \% but not \\%, and leaves the newline that TeX does not see."
    return re.sub(r"(?<!\\)%.*", "", text)


@strip_comments.mistake("every percent sign", hint=1)
def every_percent_sign(text):
    r"\% is a percent sign in the text, not a comment."
    return _without(text, escape=r"(?!)")


@strip_comments.mistake("the newline stays", hint=3)
def the_newline_stays(text):
    "The newline belongs to the comment: TeX joins the two lines."
    return re.sub(r"(\\.)|%[^\n]*", lambda match: match[1] or "", text, flags=re.S)


@strip_comments.mistake("the blanks of the next line stay", hint=3)
def the_blanks_of_the_next_line_stay(text):
    "TeX skips the blanks that begin a line: so they do not count after a comment either."
    return _without(text, blanks="")


@strip_comments.mistake("a paragraph's end is lost", hint=3)
def a_paragraphs_end_is_lost(text):
    "Before an empty line the newline stays: else two paragraphs become one."
    return _without(text, paragraph=False)


@strip_comments.mistake("blanks at the end are taken for an empty line", hint=3)
def blanks_at_the_end_are_taken_for_an_empty_line(text):
    "Only a line that ends with a newline ends a paragraph; the text may end with blanks."
    pattern = r"(\\.)|%[^\n]*(?=\n[ \t]*(?:\n|\Z))|%[^\n]*(?:\n[ \t]*|\Z)"
    return re.sub(pattern, lambda match: match[1] or "", text, flags=re.S)


@strip_comments.mistake("other white space goes as well", hint=3)
def other_white_space_goes_as_well(text):
    "Blanks and tabs begin a line: a no-break space is a character of the text."
    return _without(text, blanks=r"\s*")


@strip_comments.mistake("the last line needs a newline", hint=3)
def the_last_line_needs_a_newline(text):
    "A comment may end with the text, without a newline."
    pattern = r"(\\.)|%[^\n]*(?=\n[ \t]*\n)|%[^\n]*\n[ \t]*"
    return re.sub(pattern, lambda match: match[1] or "", text, flags=re.S)
