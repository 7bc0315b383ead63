"""Answers to questions of the kinds yesno and number: tables of what models say and of what is meant to deceive; constants."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.evaluation.card.answers import asserted
from gguf_tools.evaluation.card.constants import best_constant, takes
from gguf_tools.evaluation.card.expected import LETTERS, Expected, Free, Number, Options, YesNo
from gguf_tools.evaluation.card.grading import grade_answer
from gguf_tools.evaluation.card.numbers import grade_number, in_words
from gguf_tools.evaluation.card.units import UNITS
from gguf_tools.evaluation.card.yesno import grade_yesno

SAID = {
    "Yes": "yes",
    "yes.": "yes",
    "No.": "no",
    "NO": "no",
    "**No**, whales are mammals.": "no",
    "No, it is not.": "no",
    "No it isn't": "no",
    "Yes whales are mammals": "yes",
    "The answer is no.": "no",
    "Answer: Yes": "yes",
    "I would say no.": "no",
    "The answer to your question is no.": "no",
    "Sorry, no idea.": "neither",
    "No idea": "neither",
    "I do not know.": "neither",
    "I cannot answer that.": "neither",
    "Not sure.": "neither",
    "I know nothing about it": "neither",
    "No doubt.": "neither",
    "No one knows.": "neither",
    "Yes and no.": "neither",
    "yes or no": "neither",
    "Yes/No": "neither",
    "Yes. No.": "both",
    "Neither yes nor no.": "neither",
    "Is it yes?": "neither",
    "If yes, it would be a planet.": "neither",
    "The answer is not yes.": "neither",
    "I wouldn't say no.": "neither",
    "Of course not!": "no",
    "Definitely.": "yes",
    "It is.": "yes",
    "It is not.": "no",
    "I don't think so.": "no",
    "The word 'no' has two letters.": "neither",
    "True": "yes",
    "That is correct.": "yes",
    "False.": "no",
    "That's incorrect": "no",
    "It's true love": "neither",
    "No problem!": "neither",
    "no-one": "neither",
    "No, I don't know.": "neither",
    "Well, no.": "no",
    "Yes, no doubt about it.": "yes",
    "No way!": "no",
    "There is no way to know.": "neither",
    "Based on the above, I am not sure.": "neither",
    "The Sun is a star.": "neither",
    "yes\n": "yes",
    "Yes, it is a star. It is not a planet.": "yes",
    "Yes, the Sun is a star": "yes",
    "No more than two.": "neither",
    "Note that the Sun is a star": "neither",
    "Nothing": "neither",
    "November": "neither",
    "Yesterday": "neither",
    "The answer is: No": "no",
    "so the answer is yes, because it is": "yes",
    "Answer with yes or no: yes": "yes",
    "no\n\nno": "no",
    "": "neither",
    "Yes?": "neither",
    "No? Yes.": "yes",
    "YES!!!": "yes",
    "My answer is a clear no": "no",
    "It is no secret that whales swim": "neither",
    "ye s": "neither",
    "Say yes.": "yes",
    "Nein": "neither",
    "Yes, yes, yes": "yes",
    "there is no answer": "neither",
    "I have no yes": "neither",
    "No comment": "neither",
}


@pytest.mark.parametrize(("answer", "said"), SAID.items())
def test_yes_and_no(answer: str, said: str) -> None:
    for expected in (True, False):
        found = grade_yesno(answer, expected)
        assert found.right == (said == ("yes" if expected else "no"))
        assert (found.read.split() or ["neither"])[0] == said


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_an_answer_never_says_both(answer: str) -> None:
    assert not (grade_yesno(answer, True).right and grade_yesno(answer, False).right)


@pytest.mark.parametrize(
    "word", ["not", "cannot", "know", "none", "nobody", "nothing", "now", "north", "nor", "Norway", "noon"]
)
def test_no_inside_a_word_is_no_answer(word: str) -> None:
    for answer in (word, word.capitalize() + ".", f"It is {word}.", f"I {word}"):
        assert not grade_yesno(answer, False).right or answer == "It is not."


TWELVE = {
    "12": True,
    "12.": True,
    "12.0": True,
    "The answer is 12": True,
    "twelve": True,
    "a dozen": True,
    "12 apples": True,
    "12.5": False,
    "-12": False,
    "minus 12": False,
    "120": False,
    "1.2": False,
    "12 or 13": False,
    "not 12": False,
    "It is not 12": False,
    "10 to 14": False,
    "between 12 and 14": False,
    "12-14": False,
    "12–14": False,
    "more than 12": False,
    "at least 12": False,
    "no more than 12": True,
    "12%": False,
    "Is it 12?": False,
    "12 + 3 = 15": False,
    "3 x 4 = 12": True,
    "3 × 4 = 12": True,
    "11, 12, 13": False,
    "twelve hundred": False,
    "1,2": False,
    "12,000": False,
    "12 000": False,
    "1.2 × 10^1": True,
    "1.2e1": True,
    "twenty-one": False,
    "12th": False,
    "12km": True,
    "There are 365 days in 12 months": True,
    "$12": True,
    "**12**": True,
    "\\boxed{12}": True,
    "$12$": True,
    "12:30": False,
    "11.9999": False,
    "011": False,
    "I have no idea": False,
    "The number 12, not 13": True,
    "13, not 12": False,
    "one two": False,
    "ten two": False,
    "2012": False,
    "12.12.2012": False,
    "v12": False,
    "12th-century": False,
    "½": False,
    "twelve thousand": False,
    "ten and two": False,
    "12²": False,
    "12 million": False,
    "between 10 and 14, probably 12": True,
    "24/2": False,
    "24/2 = 12": True,
    "2^5 = 12": True,
    "12 = 2^5": True,
    "1e400": False,
    "1/0": False,
}


@pytest.mark.parametrize(("answer", "right"), TWELVE.items())
def test_twelve(answer: str, right: bool) -> None:
    assert grade_number(answer, Number(12.0)).right == right


MOON = {
    "384,400 km": True,
    "384400": True,
    "about 238,855 miles": True,
    "238,855": False,
    "384,400 miles": False,
    "384,400 kg": False,
    "384,400 light years": False,
    "384.4 million meters": True,
    "3.84 × 10^8 m": True,
    "3.84e5": True,
    "384 400 kilometers": True,
    "over 380,000 km": True,
    "300,000 km": False,
    "380 thousand kilometres": True,
    "384,400-km": True,
    "380,000 to 390,000 km": False,
    "three hundred eighty-four thousand four hundred kilometers": True,
    "384,400 Kilometers (238,855 miles)": True,
    "384 km": False,
}


@pytest.mark.parametrize(("answer", "right"), MOON.items())
def test_the_distance_of_the_moon(answer: str, right: bool) -> None:
    assert grade_number(answer, Number(384400.0, "km", 0.05 * 384400)).right == right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("100 degrees Celsius", Number(100.0, "°C", 0.5), True),
        ("212°F", Number(100.0, "°C", 0.5), True),
        ("373.15 K", Number(100.0, "°C", 0.5), True),
        ("100 degrees", Number(100.0, "°C", 0.5), True),
        ("100 F", Number(100.0, "°C", 0.5), False),
        ("100 °C (212 °F)", Number(100.0, "°C", 0.5), True),
        ("50 percent", Number(50.0, "%"), True),
        ("half", Number(50.0, "%"), False),
        ("50%", Number(0.5), True),
        ("50%", Number(50.0), False),
        ("5 feet 10 inches", Number(178.0, "cm", 1.0), True),
        ("1 m 78 cm", Number(178.0, "cm", 1.0), True),
        ("5 feet", Number(178.0, "cm", 1.0), False),
        ("8 legs", Number(8.0, "legs"), True),
        ("8 kg", Number(8.0, "legs"), False),
        ("$5", Number(5.0, "$"), True),
        ("€5", Number(5.0, "$"), False),
        ("No one knows.", Number(1.0), False),
        ("the one that", Number(1.0), False),
        ("One.", Number(1.0), True),
        ("-40", Number(-40.0), True),
        ("minus forty", Number(-40.0), True),
        ("3.14159", Number(math.pi, "", 0.01), True),
        ("3,14", Number(math.pi, "", 0.01), True),
        ("22/7", Number(math.pi, "", 0.01), True),
        ("two thirds", Number(2 / 3), True),
        ("1 1/2", Number(1.5), True),
    ],
)
def test_numbers_with_units(answer: str, expected: Number, right: bool) -> None:
    assert grade_number(answer, expected).right == right


def test_a_number_of_the_question_is_no_answer() -> None:
    assert not grade_number("5 more than 0 is 6", Number(5.0), "What is 5 more than 0?").right
    assert grade_number("7 times 8 is 56.", Number(56.0), "What is 7 times 8?").right


IN_WORDS = {
    "three hundred and sixty-six": 366,
    "twenty one": 21,
    "one hundred": 100,
    "a hundred and one": 101,
    "two thousand and five": 2005,
    "three point one four": 3.14,
    "two and a half": 2.5,
    "one and a half million": 1.5e6,
    "two thirds": 2 / 3,
    "one hundred thousand": 1e5,
    "one million two hundred thousand": 1.2e6,
    "fifteen hundred": 1500,
    "two hundred hundred": None,
    "one two three": None,
    "twenty thirty": None,
    "one thousand million": None,
    "two dozen": 24,
}


@pytest.mark.parametrize(("text", "value"), IN_WORDS.items())
def test_numbers_in_words(text: str, value: float | None) -> None:
    assert in_words(text) == value


SMALL: list[str] = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen",
)
TENS: list[str] = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")


def spelled(number: int, link: str) -> str:
    """A number below a million in words."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{SMALL[number % 10]}" if number % 10 else "")
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{spelled(number // size, link)} {word}" + (f"{link}{spelled(rest, link)}" if rest else "")


@given(
    st.integers(0, 999_999),
    st.sampled_from([" ", " and "]),
    st.sampled_from(["{}", "It is {}.", "{} km", "Answer: {}"]),
)
def test_numbers_are_read_in_digits_and_in_words(number: int, link: str, frame: str) -> None:
    for text in (str(number), f"{number:,}", spelled(number, link)):
        assert grade_number(frame.format(text), Number(float(number))).right, text
        assert not grade_number(frame.format(text), Number(number + 1.0)).right, text


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.integers(1, 1000))
def test_units_convert_within_their_dimension_only(one: str, other: str, value: int) -> None:
    first, second = UNITS[one], UNITS[other]
    one = one.replace("$", "dollars")  # written before the number
    if first.dimension == second.dimension:
        converted = first.to(second, value)
        assert grade_number(f"It is {value} {one}.", Number(converted, second.name, 1e-6 * abs(converted))).right
    else:
        assert not grade_number(f"It is {value} {one}.", Number(float(value), second.name, 1e9)).right


NO_ANSWERS = [
    "Based on the above, I am not sure.",
    "Sorry, no idea.",
    "I cannot know.",
    "A difficult question! Every choice can be defended.",
    "Could be. Do ask again.",
    "",
    "A, B, C, D",
    "A) or B) or C) or D)",
    "yes or no",
    "1 2 3 4 5 6 7 8 9 10 11 12 or 13",
    "All of them.",
]
ONE_OF_EACH: list[Expected] = [
    *(Options(("iron", "wood", "glass", "milk"), n) for n in range(4)),
    YesNo(True),
    YesNo(False),
    Number(4.0),
    Number(100.0, "km", 5.0),
    Free(("Paris",)),
]


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_what_is_no_answer_is_right_nowhere(answer: str) -> None:
    for expected in ONE_OF_EACH:
        if answer.startswith("1 2 3") and isinstance(expected, Number):
            continue  # numbers in a row without commas: a limit, see docs/card.md
        assert not grade_answer(answer, expected).right, expected


@given(
    st.sampled_from(ONE_OF_EACH),
    st.sampled_from([*LETTERS[:4], "yes", "no", "iron", "milk", "4", "98", "102.5", "Paris", "x"]),
)
def test_a_constant_takes_what_the_grading_takes(expected: Expected, text: str) -> None:
    assert takes(expected, text) == grade_answer(text, expected).right


def test_the_best_constant_answer() -> None:
    assert best_constant([YesNo(True), YesNo(False), YesNo(False)]) == best_constant([YesNo(False)] * 2 + [YesNo(True)])
    assert best_constant([YesNo(True), YesNo(False), YesNo(False)]).answer == "no"
    assert best_constant([]).right == 0
    letters = [Options(("iron", "wood"), 1), Options(("milk", "tea"), 1), Options(("iron", "air"), 0)]
    assert (best_constant(letters).answer, best_constant(letters).right) == ("B", 2)
    apart = [Number(100.0, "", 10.0), Number(115.0, "", 6.0), Number(110.0)]
    assert best_constant(apart).right == 3
    assert best_constant([Free(("two", "2")), Number(2.0), Free(("Paris",))]).right == 2


def test_a_mention_inside_a_longer_one_is_none() -> None:
    assert asserted("It is carbon dioxide.", [["carbon"], ["carbon dioxide"]]) == ["other", "right"]
    assert asserted("Carbon, not carbon dioxide.", [["carbon"], ["carbon dioxide"]]) == ["right", "negated"]
