"The questions at the chapters' ends: their files, what a notebook shows, and what is refused."

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from llama_course.classroom.quiz import LETTERS, QUIZZES, quiz, read_quiz
from llama_course.support.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(QUIZZES.glob("*.toml"))
GOOD = """
[[question]]
text = "Why `x < y`?"
[[question.choice]]
text = "It is."
why = "So it follows."
right = true
[[question.choice]]
text = "It is not."
why = "Then `y` would be
 smaller."
"""
GOOD = GOOD.replace('"Then', '"""Then').replace('smaller."', 'smaller."""')


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_chapters_questions_can_be_read_and_are_shown_whole(path):
    questions = quiz(path.stem).questions
    assert len(questions) >= 3
    page = BeautifulSoup(quiz(path.stem)._repr_html_(), "html.parser")
    # what an untrusted notebook keeps: JupyterLab takes <input>, <script> and <style> away
    assert {tag.name for tag in page.find_all()} <= set(
        "div h2 p ol li details summary strong code".split()
    )
    assert {name for tag in page.find_all() for name in tag.attrs} == {"class"}
    shown = [(d.summary.get_text(), d.p.get_text()) for d in page.find_all("details")]
    meant = [
        (f"{letter}. {c.text}", f"{'Right' if c.right else 'Not right'}. {c.why}")
        for question in questions
        for letter, c in zip(LETTERS, question.choice)
    ]
    assert shown == [(a.replace("`", ""), b.replace("`", "")) for a, b in meant]
    text = repr(quiz(path.stem))
    before, _, after = text.partition("\n\nAnswers\n")
    for question in questions:
        assert all(choice.text in before and choice.why in after for choice in question.choice)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_right_choice_is_not_known_by_its_place(path):
    "A reader who always says B learns nothing and is right a third of the time, no more often."
    right = [question.right for question in quiz(path.stem).questions]
    assert len(set(right)) > 1


def test_a_notebook_with_a_quiz_shows_its_own_before_the_exercises():
    calls = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, 4).cells
        for cell, following in zip(cells, [*cells[1:], {"source": ""}]):
            if "classroom.quiz" in cell.source:
                named = re.fullmatch(
                    r"#\| echo: false\nfrom llama_course\.classroom\.quiz import quiz\n\n?"
                    r'quiz\("(\w+)"\)',
                    cell.source.strip(),
                )
                assert named and named[1] == path.stem, path.name
                ends = not following["source"]  # the capstone, which has no exercises
                assert ends or following["source"].startswith("## Exercises"), path.name
                shown = "".join(cell.outputs[0]["data"]["text/html"])
                assert shown == quiz(path.stem)._repr_html_(), f"{path.name} is to be run again"
                calls[path.stem] = cell
    assert {path.stem for path in FILES} <= {path.stem for path in (ROOT / "nbs").glob("*.ipynb")}
    assert "08_norm" in calls


def test_code_is_marked_and_everything_else_is_text(tmp_path):
    (tmp_path / "q.toml").write_text(GOOD.replace("It is not.", "<b>No</b> & `a<b`, $5 and $6"))
    shown = read_quiz(tmp_path / "q.toml")._repr_html_()
    assert "Why <code>x &lt; y</code>?" in shown
    assert "B. &lt;b&gt;No&lt;/b&gt; &amp; <code>a&lt;b</code>, $5 and $6" in shown
    assert "Then <code>y</code> would be smaller." in shown


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("right = true", "", "question 1: one choice must have `right = true`."),
        ("right = true", "right = 1", "question 1, choice 1: right must be true or false, not 1."),
        ("right = true", "Right = true", "question 1, choice 1: Right is not an option: did you"),
        ("It is not.", "It  is.", "question 1: two choices say 'It is.'."),
        ('why = "So it follows."', "", "question 1, choice 1: why is missing."),
        ("So it follows.", " ", "question 1, choice 1: why is empty."),
        (
            "So it follows.",
            "`a",
            "choice 1: why has an opening ` that is never closed.",
        ),
        ("So it follows.", "$x^2$", "question 1, choice 1: why has $x^2$; write it without"),
        ('text = "Why', 'hint = ""\ntext = "Why', "question 1: hint is not an option; there are"),
        ('text = "Why `x < y`?"', "", "question 1: text is missing."),
        ("[[question]]", "[question]", "question must be a list, not"),
        ("[[question]]", "[[questions]]", "questions is not an option: did you mean question?"),
        ("[[question]]", "[[question]", "is not TOML: "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_question(tmp_path, old, new, said):
    assert old in GOOD
    (tmp_path / "q.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        read_quiz(tmp_path / "q.toml")
    told = str(caught.value)
    assert str(tmp_path / "q.toml") in told and said in told and "\n" not in told


def test_too_few_choices_no_question_and_no_file(tmp_path):
    one = GOOD[: GOOD.index("[[question.choice]]", 60)]
    for text, said in ((one, "2 to 8 choices"), ("question = []", "has no question")):
        (tmp_path / "q.toml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_quiz(tmp_path / "q.toml")
    for name in ("8_norm", "../quizzes/08_norm", ""):
        with pytest.raises(UserError, match="there are .*08_norm"):
            quiz(name)
