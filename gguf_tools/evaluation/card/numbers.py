"""Reads numbers with their units from an answer, and says whether it states the expected one.

Digits with decimals, thousands, signs, fractions and powers of ten are read, and English number words ("three hundred and
sixty-six", "two and a half"). What a mention counts for is decided by `answers`: numbers in questions, operands, negated ones and
alternatives do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gguf_tools.evaluation.card.answers import Grade, grade
from gguf_tools.evaluation.card.expected import Number
from gguf_tools.evaluation.card.units import AFTER, BEFORE, Unit, unit_named
from gguf_tools.evaluation.card.words import plain

_SMALL = {
    word: float(n)
    for n, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
            " eighteen nineteen",
        )
    )
}
_TENS = {
    word: 10.0 * n
    for n, word in enumerate(re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_PARTS = {"half": 2.0, "halves": 2.0, "third": 3.0, "thirds": 3.0, "quarter": 4.0, "quarters": 4.0, "fifths": 5.0}
_ANY = "|".join([*sorted({*_SMALL, *_TENS}, key=len, reverse=True), "hundred", *_SCALES, "dozen"])
_NUMERAL = r"(?:(?<![^\s(\[{=:,;\"'<>≈~$€])[-−–])?(?<![\w.,√^])(?:\d{1,3}(?: \d{3})+(?![ ]?\d)|\d{1,400})"
_DECIMALS = r"(?:\.\d{1,400})?(?:e[-+]?\d{1,4})?"
_POWER = r"(?:\s*[×x·]\s*10\^?(?P<power>-?\d{1,4}))?"
_DIGITS = re.compile(
    rf"(?P<number>{_NUMERAL}{_DECIMALS})(?:/(?P<below>\d{{1,20}})(?![\w/])|(?:\s+(?P<top>\d{{1,3}})/(?P<bottom>\d{{1,3}})(?![\w/]))?)"
    rf"(?:\^(?P<exponent>-?\d{{1,4}}))?{_POWER}(?:\s*(?P<scale>{'|'.join(_SCALES)})\b)?(?!\.?\d|:\d)"
)
_WORDS = re.compile(
    rf"(?<![\w-])(?P<minus>(?:minus|negative)\s+)?(?P<words>(?:an?\s+)?(?:{_ANY})(?:[-\s]+(?:and\s+)?(?:{_ANY})(?![\w]))*"
    r"(?:\s+point(?:\s+(?:zero|one|two|three|four|five|six|seven|eight|nine))+)?"
    rf"(?P<more>(?:\s+and)?\s+(?:an?\s+)?(?P<part>{'|'.join(_PARTS)})(?:\s+(?:{'|'.join(_SCALES)}))?)?|(?:an?\s+)?half(?!\s+of))(?![\w-])"
)
_RANGE = re.compile(r"\s*(?:to|through|until|[-–—−]|\.\.\.?|…)\s*")
_BOUND = re.compile(
    r"(?<!not )(?<!no )\b(?:(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger) than|over|under|above|below|at least"
    r"|at most|up to|almost|nearly|close to)\s+(?:an?\s+|the\s+)?$"
)
_PRONOUN_BEFORE = re.compile(r"\b(?:no|the|this|that|any|every|some|which|each|another)[\s-]+$")
_PRONOUN_AFTER = re.compile(
    r"[\s-]*(?:of|another|who|that|can|could|should|must|may|might|would|thing|day|another|more|is|has)\b"
)
_DOLLARS = re.compile(r"(?<!\w)\$\s?(\d[\d,.]*(?:\s(?:million|billion|trillion)\b)?)(?![\d,.]*\s*\$)", re.IGNORECASE)
_CALCULATES = re.compile(r"\s*(?:[=+*×·]|[-−–] |equals?\b|is\b)")
_RIGHT = "1rightnumber"
"""Stands for a right number in the text that is graded; a word with a digit, so that operands are recognised."""


@dataclass(frozen=True)
class Stated:
    """A number in a text: its value, its unit if one is known, its place and its text."""

    value: float
    unit: Unit | None
    start: int
    end: int
    text: str


def grade_number(answer: str, expected: Number, question: str = "") -> Grade:
    """Whether an answer states the expected number.

    A number with a unit is converted if it is of the expected unit's dimension, and wrong if not; a number without a unit is
    taken to be in the expected one. The ends of a range ("10 to 14") do not count, and bounds ("more than 12") only if there is a
    tolerance.
    """
    text = _text(answer)
    found = list(numbers(text))
    graded = grade(_marked(text, found, expected), [_RIGHT], _marked(_text(question), None, expected))
    said = list(dict.fromkeys(number.text for number in found if not graded.right or _matches(number, expected)))
    shown = ", ".join(said[:1] if graded.right else said[:3]) + (", …" if len(said) > 3 and not graded.right else "")
    if graded.reason == "other" and not found:
        return Grade(False, "undecided", "no number")
    return Grade(graded.right, graded.reason, shown)


def _text(text: str) -> str:
    """Plain text in which "$5" is "5 dollars"; between two dollar signs stands LaTeX, whose signs `plain` removes."""
    return plain(_DOLLARS.sub(r"\1 dollars ", text))


def numbers(text: str) -> Iterator[Stated]:
    """The numbers of a text (without capitals and markup, as `plain` returns it), in order; ends of ranges are left out."""
    found = _compounds(text, [*_single(text)])
    for at, one in enumerate(found):
        before = text[found[at - 1].end : one.start] if at else ""
        after = text[one.end : found[at + 1].start] if at + 1 < len(found) else ""
        first = before.strip() == "and" and _is_between(text, found[at - 1].start)
        second = after.strip() == "and" and _is_between(text, one.start)
        if not (first or second or _RANGE.fullmatch(before) or _RANGE.fullmatch(after)):
            yield one


def _is_between(text: str, start: int) -> bool:
    """Whether "between" stands before a position."""
    return bool(re.search(r"\bbetween\s+$", text[max(start - 20, 0) : start]))


def _single(text: str) -> Iterator[Stated]:
    """Every number of a text with the unit beside it."""
    spans = [(match.start(), match.end(), _digits(match)) for match in _DIGITS.finditer(text)]
    spans += [(match.start(), match.end(), _worded(text, match)) for match in _WORDS.finditer(text)]
    last = 0
    for start, end, value in sorted(spans):
        if value is None or start < last:
            continue
        unit = AFTER.match(text, end)
        sign = BEFORE.search(text[max(start - 3, 0) : start])
        name = unit[1] if unit else sign[1] if sign else ""
        last = unit.end() if unit else end
        yield Stated(value, unit_named(name), start, last, text[start:last].strip())


def _compounds(text: str, found: list[Stated]) -> list[Stated]:
    """Joins what is said in two units, such as 5 feet 10 inches."""
    joined: list[Stated] = []
    for one in found:
        first = joined[-1] if joined else None
        if (
            first is not None
            and first.unit is not None
            and one.unit is not None
            and first.unit.dimension == one.unit.dimension
            and first.unit.factor > one.unit.factor
            and not first.unit.offset
            and re.fullmatch(r"\s*(?:,|and)?\s*", text[first.end : one.start])
        ):
            value = first.value + one.unit.to(first.unit, one.value)
            joined[-1] = Stated(value, first.unit, first.start, one.end, text[first.start : one.end])
        else:
            joined.append(one)
    return joined


def _digits(match: re.Match[str]) -> float | None:
    """The value of a number in digits; None if it is too large, or a calculation (2^5, 24/2, 1/3 + …) and not its result."""
    value = float(re.sub("^[−–]", "-", match["number"]).replace(" ", ""))
    expression = match["below"] or match["exponent"]
    if (expression and _CALCULATES.match(match.string, match.end())) or (match["exponent"] and value != 10):
        return None
    if match["below"] or match["bottom"]:
        below = float(match["below"] or match["bottom"])
        if not below:
            return None
        part = float(match["top"]) if match["bottom"] else value
        value = value + part / below if match["bottom"] else part / below
        if match["below"] and value == int(value):
            return None
    try:
        value = value ** float(match["exponent"]) if match["exponent"] else value
        value *= 10.0 ** float(match["power"] or 0) * _SCALES.get(match["scale"] or "", 1.0)
    except (OverflowError, ZeroDivisionError):
        return None
    return value if isinstance(value, float) and abs(value) < 1e300 else None


def _worded(text: str, match: re.Match[str]) -> float | None:
    """The value of a number in words, or None if the words are no single number or only a pronoun ("no one")."""
    if match["words"] == "one" and not match["minus"]:
        before, after = text[max(match.start() - 12, 0) : match.start()], text[match.end() :]
        if _PRONOUN_BEFORE.search(before) or _PRONOUN_AFTER.match(after):
            return None
    value = in_words(match["words"])
    return None if value is None else -value if match["minus"] else value


def in_words(text: str) -> float | None:
    """The value of English number words; None if they are not one number ("one two three")."""
    whole, _, decimals = text.partition(" point ")
    words = [word for word in re.split(r"[-\s]+", whole) if word not in ("and", "a", "an")]
    scale = _SCALES[words.pop()] if len(words) > 1 and words[-1] in _SCALES and words[-2] in _PARTS else 1.0
    part = _PARTS[words.pop()] if words[-1] in _PARTS else None
    if part is not None and not words:
        return scale / part
    total = group = 0.0
    room = 1e3  # the next word must be below it
    largest = 1e15
    for word in words:
        if word in _SCALES:
            if _SCALES[word] >= largest:
                return None
            total, group, room, largest = total + (group or 1.0) * _SCALES[word], 0.0, 1e3, _SCALES[word]
        elif word == "hundred":
            if group >= 100:
                return None
            group, room = (group or 1.0) * 100, 100.0
        elif word == "dozen":
            group, room = (group or 1.0) * 12, 1.0
        else:
            value = _SMALL[word] if word in _SMALL else _TENS[word]
            if value >= room or (value == 0 and len(words) > 1):
                return None
            group, room = group + value, 10.0 if word in _TENS else 1.0
    value = total + group + float("0." + "".join(f"{_SMALL[word]:.0f}" for word in decimals.split()) if decimals else 0)
    if part is None:
        return value
    # "two and a half", but "two thirds"
    return scale * (value + 1 / part if " and " in text else value / part)


def _matches(number: Stated, expected: Number) -> bool:
    """Whether a number in a text is the expected one, converted to its unit."""
    unit = unit_named(expected.unit)
    if number.unit is None or (unit is None and not expected.unit and number.unit.dimension != "share"):
        return expected.holds(number.value)
    if number.unit.dimension == "share" and not expected.unit:
        return expected.holds(number.value / 100)
    return (
        unit is not None
        and unit.dimension == number.unit.dimension
        and expected.holds(number.unit.to(unit, number.value))
    )


def _marked(text: str, found: list[Stated] | None, expected: Number) -> str:
    """The text with `_RIGHT` in the place of each number that is the expected one."""
    parts, last = [], 0
    for number in numbers(text) if found is None else found:
        bound = not expected.tolerance and _BOUND.search(text[max(number.start - 30, 0) : number.start])
        if _matches(number, expected) and not bound:
            parts += [text[last : number.start], _RIGHT]
            last = number.end
    return "".join([*parts, text[last:]])
