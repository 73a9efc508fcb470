"What the judge knows of the three exercises in `exercises/04_web.ipynb`. Spoilers from here on."

import math
import random
import re

import torch

from llama_course.classroom.exercise import Exercise

# ------------------------------------------------------------------- perplexity under Kneser-Ney

bigram_perplexity = Exercise(
    "bigram_perplexity",
    chapter="04_web",
    kind="rebuild",
    minutes=30,
    difficulty=2,
    points={"values": 7, "invariant": 3},
    hints=(
        "Four counts come first: how often a word was followed by anything; by how many different "
        "words; how many different words came before a word; how many different pairs there are.",
        "The part that all pairs lose, discount · (different words after a) / (count of a), is "
        "what the second word's own probability is multiplied by.",
        "A word a that was never followed by anything has no counts: then only the second "
        "probability remains, with the factor 1.",
        "math.exp(-(sum of the logarithms) / (number of pairs)); the mean is taken of logarithms. "
        "Where a probability is 0 the perplexity is math.inf.",
    ),
)

_WORDS = "the cat dog sat on mat a ran and".split()


@bigram_perplexity.cases
def cases_of_bigram_perplexity(seed):
    draw = random.Random(seed)
    for size, discount, unknown in ((20, 0.75, 0), (60, 0.5, 0), (200, 0.9, 0), (30, 0.0, 2)):
        text = draw.choices(_WORDS, k=size)
        pairs = {}
        for a, b in zip(text, text[1:]):
            pairs[a, b] = pairs.get((a, b), 0) + 1
        words = draw.choices(_WORDS[: 9 - unknown], k=draw.randint(2, 12))
        yield pairs, words, discount
    yield {("a", "b"): 3, ("b", "a"): 1}, ["a", "c"], 0.5  # c never came second: infinite
    yield {("a", "b"): 3, ("b", "a"): 1}, ["c", "a", "b", "b"], 0.5  # c was never first
    yield {("a", "b"): 3}, ["a"], 0.5  # no pair
    yield {("a", "b"): 1, ("a", "c"): 1}, ["a", "b"], 1.0  # all is taken away
    some = {("a", "b"): 3, ("a", "c"): 9, ("b", "a"): 1, ("b", "d"): 8}
    yield some, ["a", "b"] * 700, 0.75  # a product underflows


@bigram_perplexity.reference
def truth_of_bigram_perplexity(pairs, words, discount):
    logs = []
    for a, b in zip(words, words[1:]):
        after = {y: n for (x, y), n in pairs.items() if x == a}
        share = sum(y == b for _, y in pairs) / len(pairs)
        if after:
            total = sum(after.values())
            share = (
                max(after.get(b, 0) - discount, 0) / total + discount * len(after) / total * share
            )
        if share == 0:
            return math.inf
        logs.append(math.log(share))
    return math.exp(-math.fsum(logs) / len(logs)) if logs else math.inf


def _perplexity(
    pairs, words, discount, *,
    lower="types", spread=True, unseen=True, mean="log", base=math.e, floor=True, per=None,
):  # fmt: skip
    "The right answer, with a switch for each mistake."
    total, types, before, seconds = {}, {}, {}, {}
    for (a, b), n in pairs.items():
        total[a] = total.get(a, 0) + n
        types[a] = types.get(a, 0) + 1
        before[b] = before.get(b, 0) + 1
        seconds[b] = seconds.get(b, 0) + n
    below = before if lower == "types" else seconds
    size = sum(below.values())
    found = []
    for a, b in zip(words, words[1:]):
        p = below.get(b, 0) / size if lower != "uniform" else 1 / len(before)
        if a in total:
            first = (pairs.get((a, b), 0) - discount) / total[a]
            first = max(first, 0) if floor else first
            p = first + (discount * types[a] / total[a] if spread else 1 - discount) * p
        elif not unseen:
            p = 0
        found.append(p)
    if not found or min(found) <= 0:
        return math.inf
    if mean == "log":
        return base ** (-sum(math.log(p, base) for p in found) / (per or len(found)))
    if mean == "product":
        product = math.prod(found)
        return product ** (-1 / len(found)) if product else math.inf
    return len(found) / sum(found) if mean == "p" else sum(1 / p for p in found) / len(found)


bigram_perplexity.right(_perplexity)


@bigram_perplexity.right
def with_bits(pairs, words, discount):
    return _perplexity(pairs, words, discount, base=2)


def _corpus():
    text = "a b a c a b b a c c a b a a c b".split()
    pairs = {}
    for pair in zip(text, text[1:]):
        pairs[pair] = pairs.get(pair, 0) + 1
    return pairs


@bigram_perplexity.invariant("after each word the probabilities of all words sum to one")
def the_probabilities_sum_to_one(seen):
    sums = [
        sum(1 / seen(_corpus(), [a, b], discount).value for b in "abc")
        for a, discount in (("a", 0.75), ("c", 0.25), ("never", 0.5))
    ]
    return all(math.isclose(total, 1, rel_tol=1e-9) for total in sums)


@bigram_perplexity.invariant("a text read twice is as surprising as read once")
def a_text_read_twice(seen):
    once, twice = (seen(_corpus(), ["a", "b"] * n + ["a"], 0.5).value for n in (2, 4))
    return math.isclose(once, twice, rel_tol=1e-9)


@bigram_perplexity.mistake("the product underflows", hint=4)
def the_product_underflows(pairs, words, discount):
    "The product of a thousand probabilities is 0 in floating point: add logarithms instead."
    return _perplexity(pairs, words, discount, mean="product")


@bigram_perplexity.mistake("how often, not after how many words", hint=1)
def how_often_not_after_how_many_words(pairs, words, discount):
    "The second probability counts *different* words before b, not how often b occurs."
    return _perplexity(pairs, words, discount, lower="counts")


@bigram_perplexity.mistake("all words equally likely below", hint=1)
def all_words_equally_likely_below(pairs, words, discount):
    "The second probability depends on the word b: on how many different words it follows."
    return _perplexity(pairs, words, discount, lower="uniform")


@bigram_perplexity.mistake("the discount is not given back", hint=2)
def the_discount_is_not_given_back(pairs, words, discount):
    "What is taken from the pairs, discount times their kinds, over the count, goes to the rest."
    return _perplexity(pairs, words, discount, spread=False)


@bigram_perplexity.mistake("a word never seen first is impossible", hint=3)
def a_word_never_seen_first_is_impossible(pairs, words, discount):
    "After a word that was never followed by anything the second probability stands alone."
    return _perplexity(pairs, words, discount, unseen=False)


@bigram_perplexity.mistake("counts below zero", hint=2)
def counts_below_zero(pairs, words, discount):
    "A pair that never came has a count of 0, and nothing can be taken from it."
    return _perplexity(pairs, words, discount, floor=False)


@bigram_perplexity.mistake("the mean of the probabilities", hint=4)
def the_mean_of_the_probabilities(pairs, words, discount):
    "The mean is taken of the logarithms."
    return _perplexity(pairs, words, discount, mean="p")


@bigram_perplexity.mistake("the mean of the perplexities", hint=4)
def the_mean_of_the_perplexities(pairs, words, discount):
    "The mean is taken of the logarithms, before exp."
    return _perplexity(pairs, words, discount, mean="1/p")


@bigram_perplexity.mistake("divided by the words instead of the pairs", hint=4)
def divided_by_the_words(pairs, words, discount):
    "The first word is given: there is one probability less than there are words."
    return _perplexity(pairs, words, discount, per=len(words))


# ------------------------------------------------------------------- duplicates, 8 bytes each

add_keys = Exercise(
    "add_keys",
    chapter="04_web",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 5, "invariant": 3, "ledger": 2},
    hints=(
        "Two questions for each key: is it among those seen? And is it the first of its kind in "
        "this batch? torch.searchsorted answers the first, for a sorted tensor.",
        "The first of its kind: sort the batch with stable=True; a key is new where it differs "
        "from the one before it. The places that sort() also returns bring it back into order.",
        "searchsorted returns len(seen) for a key above all: clamp it before you look there, and "
        "mind that seen may be empty.",
        "keys[:, None] == seen makes a matrix: for a billion keys that were seen, a billion "
        "numbers for each key of the batch.",
    ),
)


@add_keys.cases
def cases_of_add_keys(seed):
    draw = torch.Generator().manual_seed(seed)
    for n, m, low, high in (
        (12, 9, -20, 20),
        (0, 8, 0, 5),
        (7, 0, 0, 9),
        (0, 0, 0, 1),
        (100, 60, 0, 90),
    ):
        some = torch.randint(low, high, (n,), generator=draw).unique()
        yield some, torch.randint(low, high, (m,), generator=draw)
    ends = torch.tensor([-(2**63), -1, 0, 2**53, 2**53 + 1, 2**63 - 1])
    yield ends[::2].clone(), ends.flip(0).repeat(2)
    yield torch.tensor([5]), torch.tensor([9, 9, 5, 9])


@add_keys.reference
def truth_of_add_keys(seen, keys):
    known, new = set(seen.tolist()), []
    for key in keys.tolist():
        new.append(key not in known)
        known.add(key)
    return torch.tensor(new, dtype=torch.bool), torch.tensor(sorted(known), dtype=torch.int64)


def _added(seen, keys, first=True, known=True, stable=True, merge=True, last=False):
    "The right answer, with a switch for each mistake."
    order = (keys.flip(0) if last else keys).sort(stable=True)
    ranked, places = order.values, order.indices
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    if first:
        fresh[1:] = ranked[1:] != ranked[:-1]
    if known and len(seen):
        at = torch.searchsorted(seen, ranked).clamp(max=len(seen) - 1)
        fresh &= seen[at] != ranked
    new = torch.empty_like(fresh)
    new[places] = fresh
    merged = torch.cat((seen, ranked[fresh]))
    return (new.flip(0) if last else new), merged.sort().values if merge else merged


add_keys.right(_added)


@add_keys.right
def with_a_set(seen, keys):
    return truth_of_add_keys(seen, keys)


@add_keys.right
def with_unique(seen, keys):
    both = torch.cat((seen, keys))
    values, inverse = both.unique(return_inverse=True)
    first = torch.full_like(values, len(both))
    first.scatter_reduce_(0, inverse, torch.arange(len(both)), "amin")
    return first[inverse[len(seen) :]] == torch.arange(len(seen), len(both)), values


@add_keys.invariant("a batch in two parts gives the same as in one")
def a_batch_in_two_parts(seen):
    known, keys = torch.tensor([3, 8]), torch.tensor([5, 3, 5, 1, 8, 1, 9])
    new, merged = seen(known, keys).value
    one, between = seen(known, keys[:3]).value
    two, after = seen(between, keys[3:]).value
    return torch.equal(torch.cat((one, two)), new) and torch.equal(after, merged)


@add_keys.invariant("a second time nothing is new, and nothing is added")
def a_second_time_nothing_is_new(seen):
    keys = torch.tensor([7, -2, 7, 4])
    _, merged = seen(torch.tensor([4]), keys).value
    again, same = seen(merged, keys).value
    return not again.any() and torch.equal(same, merged)


@add_keys.invariant("eight bytes per different key")
def eight_bytes_per_different_key(seen):
    new, merged = seen(torch.arange(0, 100, 2), torch.arange(100) % 70).value
    return merged.nbytes == 8 * (50 + int(new.sum())) == 8 * 85


@add_keys.limit("largest_tensor", "no matrix of all keys against all that were seen")
def most_largest_tensor_of_add_keys(seen, keys):
    return len(seen) + len(keys)


@add_keys.mistake("a matrix of comparisons", hint=4)
def a_matrix_of_comparisons(seen, keys):
    "Right in value, but every key is compared with every other."
    both = torch.cat((seen, keys))
    same = both[:, None] == both[None]
    earlier = torch.ones_like(same).tril(-1)
    new = ~(same & earlier).any(1)[len(seen) :]
    return new, both[torch.cat((torch.ones(len(seen), dtype=torch.bool), new))].sort().values


@add_keys.mistake("duplicates within the batch", hint=2)
def duplicates_within_the_batch(seen, keys):
    "A key that comes twice in the batch is new the first time only."
    return _added(seen, keys, first=False)


@add_keys.mistake("what was seen is not looked at", hint=1)
def what_was_seen_is_not_looked_at(seen, keys):
    "A key that was seen in an earlier batch is not new."
    return _added(seen, keys, known=False)


@add_keys.mistake("the last of its kind", hint=2)
def the_last_of_its_kind(seen, keys):
    "The first of equal keys is new, the later ones are not."
    return _added(seen, keys, last=True)


@add_keys.mistake("the result is not sorted", hint=1)
def the_result_is_not_sorted(seen, keys):
    "The next batch looks the keys up by bisection: they must be in order."
    return _added(seen, keys, merge=False)


@add_keys.mistake("in the order of the sorted keys", hint=2)
def in_the_order_of_the_sorted_keys(seen, keys):
    "The answer for a key stands at the key's own place: undo the sorting."
    new, merged = _added(seen, keys)
    return new[keys.sort(stable=True).indices], merged


@add_keys.mistake("rounded to float", hint=3)
def rounded_to_float(seen, keys):
    "Above 2**53 a float no longer tells neighbours apart: keys stay integers."
    new, merged = truth_of_add_keys(seen.double(), keys.double())
    return new, merged


@add_keys.mistake("a key above all that were seen", hint=3)
def a_key_above_all_that_were_seen(seen, keys):
    "searchsorted returns len(seen) for it, which is no place; and seen may be empty."
    return seen[torch.searchsorted(seen, keys)] != keys, torch.cat((seen, keys)).unique()


# ------------------------------------------------------------------- C4's rules in order


def count_sentences(text):
    "How many words end a sentence: with a mark, or a mark and a quote."
    return sum(word.rstrip('"').endswith((".", "?", "!")) for word in text.split())


clean_page = Exercise(
    "clean_page",
    chapter="04_web",
    kind="diagnose",
    minutes=20,
    difficulty=1,
    points={"values": 8, "invariant": 2},
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
