"What the judge knows of `stated_number`. Spoilers ahead."

import random
import re
import string
from decimal import Decimal
from fractions import Fraction

from llama_course.classroom.exercise import Exercise

stated_number = Exercise(
    "stated_number",
    chapter="26_answers",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "Write down what the given code makes of '7-3', 'It is 3.', '1, 2 and 3', '5.00' and "
        "'Answer: 18. I took 3 steps.'",
        "First cut out where to look: text.lower().rfind('answer:') is the last marker. If there "
        "is a number behind it, the first of those counts; otherwise the last of the whole text.",
        "A number as a regular expression: [0-9]{1,3}(,[0-9]{3})+ with no digit behind it, or "
        "[0-9]+; then perhaps a point and digits, (\\.[0-9]+)?. A minus counts if neither a digit "
        "nor a letter stands before it: (?<![0-9A-Za-z])-.",
        "Cut the text of the number at its point: zeros go from the left of the one part "
        "(.lstrip('0'), but 0.5) and from the right of the other. A float or a Decimal rounds long "
        "numbers. '-0' is '0'.",
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
        "café-5",  # é is no letter from a to z
        "5 of ٣ or ½ or ²",  # digits are 0 to 9
        "about .50 of it",  # no digit before the point
        "x = -.5",
        "Answer: 5, not 6. Answer: hm",
        "12345678901234567890123456789012345",
        "0.10000000000000000000000000000000010",
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
    sign, digits = "-" * number.startswith("-"), number.replace(",", "").lstrip("-")
    whole, _, rest = digits.partition(".")
    text = (whole.lstrip("0") or "0") + ("." + rest).rstrip("0").rstrip(".")
    return text if text == "0" else sign + text


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
            places = len(match[2] or ".") - 1
            text = str(abs(value.numerator) * 10**places // value.denominator)
            text = text.zfill(places + 1)
            text = f"{text[: len(text) - places]}.{text[len(text) - places :]}"
            text = "-" * (value < 0) + text.rstrip("0").rstrip(".")
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


@stated_number.mistake("the last marker with a number", hint=2)
def the_last_marker_with_a_number(text):
    "Where no number stands behind the *last* marker, the last number of the whole text counts."
    parts = re.split("answer:", text, flags=re.IGNORECASE)[1:]
    found = [found for part in parts if (found := re.findall(NUMBER, part))]
    return _plain(found[-1][0]) if found else _number(text)


@stated_number.mistake("a point without a digit before it", hint=3)
def a_point_without_a_digit_before_it(text):
    "A point belongs to a number if digits stand on both sides of it: .50 is 50 here."
    return _number(text, pattern=NUMBER.replace("|[0-9]+)", r"|[0-9]+|(?=\.[0-9]))"))


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


@stated_number.mistake("through a float", hint=4)
def through_a_float(text):
    "A float has 16 digits: a longer number comes back as another one."

    def plain(number):
        short = f"{float(number.replace(',', '')):.12f}".rstrip("0").rstrip(".")
        return "0" if short == "-0" else short

    return _number(text, plain=plain)


@stated_number.mistake("through a Decimal", hint=4)
def through_a_decimal(text):
    "Decimal's normalize() rounds to 28 digits: a longer number comes back as another one."

    def plain(number):
        short = f"{Decimal(number.replace(',', '')).normalize():f}"
        return "0" if short == "-0" else short

    return _number(text, plain=plain)


@stated_number.mistake("digits of other scripts", hint=3)
def digits_of_other_scripts(text):
    r"\d matches ٣ as well: digits are 0 to 9 here."
    plain = lambda number: _plain(number.translate({0x660 + i: str(i) for i in range(10)}))
    return _number(text, pattern=NUMBER.replace("[0-9]", r"\d"), plain=plain)


@stated_number.mistake("the code as it was given", hint=1)
def the_number_as_it_was_given(text):
    "Dots that end a sentence, minuses between numbers and lists of numbers are all taken in."
    numbers = re.findall(r"-?[0-9.]+", text.replace(",", ""))
    return numbers[-1] if numbers else None
