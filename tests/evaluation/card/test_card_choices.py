"""Answers to questions with options: tables of what models say, and the choice by likelihood."""

from __future__ import annotations

import pytest

from gguf_tools.evaluation.card.expected import Options
from gguf_tools.evaluation.card.grading import grade_likelihoods
from gguf_tools.evaluation.card.options import grade_options

CITIES = Options(("Paris", "Lyon", "Rome", "Carbon dioxide", "carbon"), 0)
CHOSEN = {
    "<b>B</b>": "B",
    "C is not correct, B is.": "B",
    "(A) Paris (B) Lyon (C) Rome (D) Carbon dioxide (E) carbon": "several",
    "It cannot be A, so it must be B": "B",
    "The answer is not A, C or D, it's B": "B",
    "I don't think it's B": "none",
    "neither A nor B": "none",
    "My answer: A, no wait, B": "several",
    "A": "A",
    "(A)": "A",
    "A)": "A",
    "A.": "A",
    "a": "A",
    "(a)": "A",
    "B": "B",
    "(B)": "B",
    "(B) Lyon": "B",
    "B) Lyon": "B",
    "B. Lyon": "B",
    "B: Lyon": "B",
    "b) Lyon": "B",
    "**B**": "B",
    "\\boxed{B}": "B",
    "The answer is B.": "B",
    "The answer is (B) Lyon.": "B",
    "Answer: B": "B",
    "Option B": "B",
    "It's B.": "B",
    "B is correct": "B",
    "B, because it is in France": "B",
    "B because": "B",
    "Paris": "A",
    "The capital is Paris.": "A",
    "Lyon": "B",
    "Paris, not Lyon": "A",
    "not Paris": "none",
    "Not A but B": "B",
    "It is not A.": "none",
    "A is wrong, so B.": "B",
    "A or B": "several",
    "A and B": "several",
    "A, B": "several",
    "A/B": "several",
    "Either A or B": "several",
    "(A) or (B)": "several",
    "A) Lyon": "several",
    "(A) Lyon": "several",
    "Based on the above, I am not sure.": "none",
    "Bears live in the Arctic.": "none",
    "A city in France.": "none",
    "A good question!": "none",
    "I think so": "none",
    "Sorry, no idea.": "none",
    "Every city": "none",
    "Beautiful.": "none",
    "Cannot say.": "none",
    "Don't know.": "none",
    "Definitely": "none",
    "Vitamin C.": "none",
    "Plan B is needed": "none",
    "I got an A.": "none",
    "U.S.A.": "none",
    "e.g. this": "none",
    "Dr. C. Smith": "none",
    "A) Paris\nB) Lyon\nC) Rome\nD) Carbon dioxide\nE) carbon\n\nThe answer is B.": "B",
    "A) Paris B) Lyon C) Rome D) Carbon dioxide E) carbon": "several",
    "Paris, Lyon and Rome": "several",
    "Carbon dioxide": "D",
    "carbon": "E",
    "It is carbon dioxide.": "D",
    "Is it B?": "none",
    "Paris is in France, so the answer is Lyon.": "B",
    "A is a city in France. B is nice. So the answer is C.": "C",
    "F": "none",
    "Z": "none",
    "Answer: a": "A",
    "the answer is a city": "none",
    "The answer is A city": "none",
    "(F)": "none",
    "B-52": "none",
    "C's": "none",
    "B\n\nExplanation: Paris is the capital of France.": "B",
    "The correct answer is: (C) Rome": "C",
    "I choose C": "C",
    "C - Rome": "C",
    "none of them": "none",
    "The letter B": "B",
    "[B]": "B",
    '"B"': "B",
    "B) Lyon is wrong": "none",
    "The answer is B, not A.": "B",
    "The answer is not B.": "none",
    "It isn't B, it's C.": "C",
    "Ｂ": "B",
    "B and not A": "B",
    "Answer: (B)": "B",
    "Answer (B)": "B",
    "D'Artagnan": "none",
    "C++": "none",
    "A, of course": "A",
    "The answer is A because Paris": "A",
    "So A": "A",
    "A\nB\nC": "several",
    "ABC": "none",
    "A B C": "none",
    "A. Paris B. Lyon": "several",
}


@pytest.mark.parametrize(("answer", "chosen"), CHOSEN.items())
def test_choices(answer: str, chosen: str) -> None:
    for n, letter in enumerate("ABCDE"):
        found = grade_options(answer, Options(CITIES.options, n), "Which one?")
        assert found.right == (letter == chosen), found
        assert (found.reason == "alternatives") == (chosen == "several")


@pytest.mark.parametrize(
    ("answer", "right"),
    {
        "No": True,
        "No, it is not.": True,
        "B": True,
        "B) No": True,
        "Yes": False,
        "I have no idea": False,
        "Sorry, no idea.": False,
        "no one knows": False,
        "Not enough information": False,
    }.items(),
)
def test_a_choice_of_yes_or_no(answer: str, right: bool) -> None:
    assert grade_options(answer, Options(("Yes", "No", "Not enough information"), 1)).right == right


def test_the_most_likely_option_is_chosen() -> None:
    expected = Options(("iron", "wood"), 1, "letters")
    assert grade_likelihoods([-2.0, -1.0], expected).right
    assert grade_likelihoods([-1.0, -2.0], expected).read == "A) iron"
    assert not grade_likelihoods([-1.0, -1.0], expected).right
