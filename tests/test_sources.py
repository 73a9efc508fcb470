"The five sources: what each treatment takes away, what it leaves, and hostile input."

import io
import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course import sources as s
from llama_course.corpus.dumps import stackexchange_posts, wiki_pages
from llama_course.data import Document, Funnel

settings.register_profile("sources", deadline=None, max_examples=60)
settings.load_profile("sources")


def doc(text, name="x"):
    return Document("test", name, text)


def text_of(step, text):
    return step(doc(text)).text


# GitHub


@pytest.mark.parametrize(
    "licence, good",
    [
        ("MIT", True),
        ("BSD License", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("", False),
        ("limited", False),
        ("LGPL-3.0-only", False),
        ("MIT OR GPL-2.0", False),
        ("Mozilla Public License (MPL)", False),
        ("License :: OSI Approved :: Apache Software License", True),
    ],
)
def test_licences(licence, good):
    assert s.is_permissive(licence) == good


def test_the_thresholds_are_the_ones_that_are_named():
    at = lambda mean, longest: doc("\n".join(["a" * longest] + ["a" * mean] * 0))
    assert s.short_lines(at(0, 100)) and not s.short_lines(at(0, 101))
    one_long = lambda n: doc("\n".join(["a" * n] + ["a"] * 100))
    assert s.short_lines(one_long(1000)) and not s.short_lines(one_long(1001))
    assert s.mostly_alphanumeric(doc("a+++")) and not s.mostly_alphanumeric(doc("a++++"))
    assert s.mostly_alphanumeric(doc("ż中1 \n\t" + "-" * 9)) and not s.mostly_alphanumeric(doc(""))


HEADERS = [
    ("# Copyright 2020 X\nx = 1\n", "x = 1\n"),
    ("#!/bin/sh\n# SPDX-License-Identifier: MIT\necho 1\n", "#!/bin/sh\necho 1\n"),
    (
        "# What it does.\n#\n# Licensed under MIT.\n# No warranty.\n\nx = 1\n",
        "# What it does.\n#\nx = 1\n",
    ),
    ("// Copyright X\n// all rights reserved\n\n#include <a>\n", "#include <a>\n"),
    ("/*\n * Copyright X\n */\nint a;\n", "int a;\n"),
]
UNTOUCHED = [
    "",
    "\n",
    "#",
    "x = 1\n# Copyright X\n",
    "# Reads a table.\n\nx = 1\n",
    "/* a */ int b; /* Copyright */\n",
    "'''Copyright X'''\nx = 1\n",
    "print('# license')\n",
]


@pytest.mark.parametrize("before, after", HEADERS + [(text, text) for text in UNTOUCHED])
def test_headers(before, after):
    assert text_of(s.without_header, before) == after
    assert text_of(s.without_header, after) == after


@given(
    st.lists(
        st.sampled_from(
            ["# copyright\n", "# code\n", "#\n", "\n", "x = 1\n", "    y = '''\n", "#!/x\n", "%"]
        )
    )
)
def test_a_header_is_cut_from_the_top_only(lines):
    text = "".join(lines)
    after = text_of(s.without_header, text)
    code = next((i for i, line in enumerate(lines) if not line.startswith(("#", "\n"))), len(lines))
    assert after.endswith("".join(lines[code:])) and len(after) <= len(text)


def test_exact_duplicates_are_exact():
    step = s.ExactDuplicates()
    texts = ["a", "b", "a", "a ", "A", "b", "\ud800", "\ud800"]
    assert [step(doc(t)) is not None for t in texts] == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        False,
    ]


# Wikipedia

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><page><title>A</title><ns>0</ns>
<revision><text>'''A''' is [[b|B]].</text></revision></page>
<page><title>B</title><ns>0</ns><redirect title="A"/>
<revision><text>#REDIRECT [[A]]</text></revision></page>
<page><title>Talk:A</title><ns>1</ns><revision><text>hm</text></revision></page>
<page><title>C</title><ns>0</ns><revision><text/></revision></page></mediawiki>"""


def test_a_dump_gives_its_articles():
    pages = list(wiki_pages(io.StringIO(DUMP)))
    assert [(p.name, p.text) for p in pages] == [("A", "'''A''' is [[b|B]]."), ("C", "")]


WIKI = [
    ("'''A''' ''b''", "A b"),
    ("[[x]] [[x|y]] [http://a.b c]", "x y c"),
    ("a<!-- no -->b", "ab"),
    ("a{{x|{{y}}|[[z]]}}b", "ab"),
    ("a<ref>{{cite}}</ref>b<ref name=c/>d", "abd"),
    ("{| class=x\n| a\n|}b", "b"),
    ("[[File:a.jpg|thumb|b [[c]] d]]e", "e"),
    ("[[Kategoria:X]]a", "a"),
    ("[[:Category:X|y]]", "y"),
    ("[[Star Trek: First Contact|film]]", "film"),
    ("<math>a<b</math>", "$a<b$"),
    ("A ({{lang|x}}; born 1)", "A (born 1)"),
    ("A ({{IPA|x}}) b", "A b"),
    ("a &amp; b &lt;c", "a & b <c"),
    ("== H ==\na\n== References ==\n{{reflist}}\n== Links ==", "H \na"),
    ("{{unclosed", "{{unclosed"),
    ("", ""),
]


@pytest.mark.parametrize("wikitext, prose", WIKI)
def test_wikitext(wikitext, prose):
    pytest.importorskip("mwparserfromhell")
    assert s.wiki_prose(wikitext).split() == prose.split()


def test_parents_of_kept_sections_keep_their_headings():
    pytest.importorskip("mwparserfromhell")
    text = s.wiki_prose("== A ==\n=== B ===\nb\n=== C ===\n{{x}}\n== D ==\n=== E ===\n{{x}}\n")
    assert text.split() == ["A", "B", "b"]


@given(st.text(alphabet="[]{}|<>/!-='ab \nref:File", max_size=60))
def test_any_wikitext_is_survived(text):
    pytest.importorskip("mwparserfromhell")
    assert isinstance(s.wiki_prose(text), str)


@given(st.lists(st.sampled_from("plain words and a few more 12 été 中".split()), min_size=1))
def test_plain_text_is_left_alone(words):
    pytest.importorskip("mwparserfromhell")
    assert s.wiki_prose(" ".join(words)) == " ".join(words)


# Books


def by_hand(text, size=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


@given(
    st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40)
)
def test_shingles_are_sets_of_runs(a, b):
    a, b = " ".join(a), " ".join(b)
    A, B = by_hand(a), by_hand(b)
    assert len(s.shingles(a)) == len(A)
    assert s.jaccard(s.shingles(a), s.shingles(b)) == pytest.approx(len(A & B) / len(A | B))


def test_the_estimate_has_the_error_of_theory():
    chance = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        errors = []
        for seed in range(40):
            numbers = chance.integers(0, 2**63, 1000, dtype=np.uint64)
            both = int(share * 1000)
            rest = (1000 - both) // 2
            a, b = numbers[: both + rest], np.concatenate([numbers[:both], numbers[both + rest :]])
            estimate = (s.minhash(a, 256, seed) == s.minhash(b, 256, seed)).mean()
            errors.append(
                (estimate - s.jaccard(np.sort(a), np.sort(b))) / np.sqrt(share * (1 - share) / 256)
            )
        assert abs(np.mean(errors)) < 0.6 and 0.6 < np.std(errors) < 1.5, (
            share,
            np.mean(errors),
            np.std(errors),
        )


def test_minhash_does_not_depend_on_order_or_parts():
    numbers = np.random.default_rng(1).integers(0, 2**63, 10_000, dtype=np.uint64)
    whole = s.minhash(numbers)
    assert (whole == s.minhash(numbers[::-1])).all()
    assert (whole == np.minimum(s.minhash(numbers[:3000]), s.minhash(numbers[3000:]))).all()


def test_near_duplicates():
    chance = random.Random(0)
    words = [str(chance.random()) for _ in range(3000)]
    book = " ".join(words)
    edition = " ".join(words[:1500] + ["other"] + words[1501:])
    half = " ".join(words[:1500] + [str(chance.random()) for _ in range(1500)])
    step = s.NearDuplicates()
    names = [
        d.name
        for d in (doc(book, "book"), doc(edition, "edition"), doc(half, "half"), doc(book, "again"))
        if step(d)
    ]
    assert names == ["book", "half"] and [(a, b) for a, b, _ in step.twins] == [
        ("edition", "book"),
        ("again", "book"),
    ]
    assert s.NearDuplicates(threshold=0.3)(doc(book)) is not None
    loose = s.NearDuplicates(threshold=0.2)
    assert loose(doc(book)) and loose(doc(half, "half")) is None


# ArXiv

COMMENTS = [
    ("a % b\nc", "a c"),
    (r"5\% of a", r"5\% of a"),
    (r"a\\% b" + "\nc", r"a\\c"),
    ("% a\nb", "b"),
    ("a\n  % b\nc", "a\nc"),
    ("a%\n\nb", "a\n\nb"),
    ("%", ""),
    (r"\verb|%| a%b", r"\verb|%| a"),
    (r"\verb+%+a", r"\verb+%+a"),
    ("\\begin{verbatim}\n% a\n\\end{verbatim}", "\\begin{verbatim}\n% a\n\\end{verbatim}"),
    (
        "\\begin{lstlisting}[x]\na % b\n\\end{lstlisting}% c",
        "\\begin{lstlisting}[x]\na % b\n\\end{lstlisting}",
    ),
    (r"\url{a%20b}", r"\url{a%20b}"),
    ("a\\begin{comment}b\\end{comment}\nc", "ac"),
    (r"\%% a", r"\%"),
    (r"\begin{verbatim} never closed % a", r"\begin{verbatim} never closed "),
]


@pytest.mark.parametrize("before, after", COMMENTS)
def test_comments(before, after):
    assert text_of(s.without_tex_comments, before) == after


@given(st.text(alphabet="%\\ab{}\n ", max_size=40))
def test_comments_go_once_and_for_all(text):
    after = text_of(s.without_tex_comments, text)
    assert len(after) <= len(text)
    if "%" not in text:
        assert after == text
    unescaped = re.sub(r"\\.", "", after, flags=re.S)  # what is left of % stands after a backslash
    assert "%" not in unescaped or re.search(r"\\%", after)


NAMES = [rf"\m{letter}" for letter in "abcde"]


@st.composite
def papers(draw):
    "LaTeX with macros, and what it stands for; each macro may use those before it."
    source, known = [], {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5)):
        count, default = draw(st.integers(0, 3)), None
        if count and draw(st.booleans()):
            default = draw(st.sampled_from(["d", "{d}"]))
        body = draw(
            st.lists(
                st.sampled_from(["x", r"\alpha ", "{y}", *(f"#{i + 1}" for i in range(count))]),
                max_size=5,
            )
        )
        inner = draw(st.sampled_from([None, *known]))
        use = lambda args: ""
        if inner:
            use, args = known[inner]
            body.append(inner + "{}" if not args else inner + "".join("{z}" for _ in range(args)))
            body_value = body[:-1] + [
                (use(["z"] * args) if args else use([])) + ("" if args else "{}")
            ]
        else:
            body_value = body
        form = draw(st.sampled_from(["new", "def"])) if default is None else "new"
        joined = "".join(body)
        if form == "def":
            source.append(
                rf"\def{name}" + "".join(f"#{i + 1}" for i in range(count)) + f"{{{joined}}}"
            )
        else:
            source.append(
                rf"\newcommand{{{name}}}"
                + (f"[{count}]" if count else "")
                + (f"[{default}]" if default is not None else "")
                + f"{{{joined}}}"
            )
        needed = count - (default is not None)

        def value(args, parts=tuple(body_value), default=default):
            given = ([default] if default is not None else []) + list(args)
            return "".join(given[int(p[1]) - 1] if p[:1] == "#" else p for p in parts)

        known[name] = (value, needed)
    text, wanted = [], []
    for name in draw(st.lists(st.sampled_from([*known, "words "]), max_size=6)):
        if name not in known:
            text.append(name), wanted.append(name)
            continue
        value, needed = known[name]
        args = draw(
            st.lists(st.sampled_from(["p", "{q}", r"\beta ", ""]), min_size=needed, max_size=needed)
        )
        text.append(name + "".join(f"{{{a}}}" for a in args) + ("" if needed else "{}"))
        wanted.append(value(args) + ("" if needed else "{}"))
    return "".join(source + text), "".join(wanted)


@settings(max_examples=200)
@given(papers())
def test_macros_become_what_they_stand_for(paper):
    text, wanted = paper
    assert s.expand_macros(text) == wanted


@pytest.mark.parametrize(
    "text, wanted",
    [
        (
            r"\newcommand{\m}[1]{#1}\m{\beta}words",
            r"\beta words",
        ),  # the name must not run into the word
        (r"\def\a{\alpha}$\a x\a_1\a1$", r"$\alpha x\alpha_1\alpha1$"),
        (r"\def\a{b}\a c \ab", r"bc \ab"),
        (r"\def\b#1{<#1>}\def\a{\b}\a{x}", "<x>"),
        (r"\def\m#1{\def\k##1{#1-##1}}\m{a}\k{b}", "a-b"),
        (r"\verb|\a|\def\a{1}\verb|\a|\a", r"\verb|\a|\verb|\a|1"),
        (r"\a\def\a{1}\a\def\a{2}\a", r"\a12"),
        (r"\newcommand\f[2][x]{#1#2}\f yz\f[q]{rs}", "xyzqrs"),
        (r"\DeclareMathOperator{\id}{id}\id", r"\operatorname{id}"),
    ],
)
def test_macros_one_by_one(text, wanted):
    assert s.expand_macros(text) == wanted


@given(st.text(alphabet="\\newcommand{}[]#1ab def", max_size=60))
def test_any_tex_is_survived(text):
    out = s.expand_macros(text)
    assert out is None or isinstance(out, str)


@pytest.mark.parametrize(
    "text",
    [
        r"\def\a{\a}\a",
        r"\def\a{\a\a}\a",
        r"\def\a{x\a}\a",
        r"\newcommand{\a}[1]{\a{#1#1}}\a{x}",
        "".join(rf"\def\{x}{{" + rf"\{y}" * 10 + "}" for x, y in zip("abcdefghijk", "bcdefghijkl"))
        + r"\def\l{x}\a",
    ],
)
def test_endless_macros_end(text):
    began = time.perf_counter()
    assert s.with_macros_expanded(doc(text)) is None
    assert time.perf_counter() - began < 10


def test_a_long_paper_is_no_trouble():
    text = r"\newcommand{\R}{\mathbb{R}}" + r"let $x \in \R$ be a number. " * 5000
    assert s.expand_macros(text) == r"let $x \in \mathbb{R}$ be a number. " * 5000


BODIES = [
    (r"\a\begin{document}b\section{C}d\end{document}e", r"\section{C}d"),
    (r"b\section*{C}d", r"\section*{C}d"),
    (r"\begin{document}b\end{document}", "b"),
    (r"\section{A}\bibliography{x}\appendix b", r"\section{A}\appendix b"),
    (
        r"\section[s]{A}\begin{thebibliography}{9}\bibitem{x}\end{thebibliography}b",
        r"\section[s]{A}b",
    ),
    (r"\sectionmark{x}\section{A}", r"\section{A}"),
    (r"\subsection{B}\section{A}", r"\section{A}"),
    (r"\section{A}\begin{thebibliography} never closed", r"\section{A}"),
]


@pytest.mark.parametrize("text, body", BODIES)
def test_bodies(text, body):
    assert s.tex_body(text).strip() == body
    assert s.tex_body(body).strip() == body


# StackExchange


def test_html_of_posts():
    assert s.post_text("<p>a</p><p>b<br/>c</p>") == "a\n\nb\nc"
    assert s.post_text("<pre><code> a\n   b\n</code></pre>") == " a\n   b"
    assert (
        s.post_text("<script>x</script><style>y</style><p>1 &lt; 2 &amp;&amp; 3</p>")
        == "1 < 2 && 3"
    )
    assert s.post_text("<p>never <b>closed") == "never closed" and s.post_text("") == ""
    assert s.post_text("<div>" * 20_000 + "deep") == "deep"
    assert s.post_text("\0a\1<p>\0b") == "a\n\nb"


@given(st.text(alphabet="<>/ab &;pre\"'=!-\n", max_size=60))
def test_any_html_is_survived(text):
    assert isinstance(s.post_text(text), str)


def row(number, kind, **more):
    return {"Id": str(number), "PostTypeId": str(kind)} | more


def test_answers_stand_by_score():
    rows = [
        row(5, 2, ParentId="1", Score="3", Body="c"),
        row(2, 2, ParentId="1", Score="-1", Body="e"),
        row(1, 1, Title="T & U", Body="q"),
        row(3, 2, ParentId="1", Score="3", Body="b"),
        row(9, 5, Body="wiki"),
        row(4, 2, ParentId="1", Score="30", Body="a"),
        row(6, 2, ParentId="7", Score="1", Body="lost"),
        row(8, 2, ParentId="1", Body="d"),
    ]
    for seed in range(5):
        lonely = []
        random.Random(seed).shuffle(rows)
        (thread,) = s.threads(rows, lonely=lonely)
        words = [w for w in s.without_html(thread).text.split() if w != "Answer"]
        assert words == ["T", "&", "U", "q", "a", "b", "c", "d", "e"] and lonely == ["6"]


def test_posts_are_read_from_the_dump():
    xml = '<posts><row Id="1" PostTypeId="1" Title="t" Body="&lt;p&gt;b&#xA;c&lt;/p&gt;" /></posts>'
    assert [p["Body"] for p in stackexchange_posts(io.StringIO(xml))] == ["<p>b\nc</p>"]


# all

STEPS = [
    s.short_lines,
    s.mostly_alphanumeric,
    s.without_header,
    s.ExactDuplicates(),
    s.plain_wikitext,
    s.NearDuplicates(),
    s.without_tex_comments,
    s.with_macros_expanded,
    s.paper_body,
    s.without_html,
]


@pytest.mark.parametrize(
    "step", STEPS, ids=lambda step: getattr(step, "__name__", type(step).__name__)
)
def test_every_step_takes_what_there_is(step):
    if step is s.plain_wikitext:
        pytest.importorskip("mwparserfromhell")
    funnel = Funnel({"step": step})
    hostile = [
        "",
        " ",
        "\n" * 1000,
        "\0",
        "a" * 200_000,
        "{" * 3000,
        "[[" * 3000,
        "<" * 3000,
        "\\" * 3000,
        "%" * 3000,
        "\u202e\u0301",
        "🦙" * 1000,
        "\udcff not UTF-8",
        "((((" * 500,
        "#" * 5000,
        "/*" * 2000,
    ]
    for text in funnel(doc(text, str(i)) for i, text in enumerate(hostile)):
        assert isinstance(text.text, str)
    assert funnel.counts[0]["documents_in"] == len(hostile)
