"""Answers as instruct models of 0.1B to 8B parameters give them, labelled by hand, against the questions that ship."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import gguf_tools
from gguf_tools.evaluation.card.answers import grade
from gguf_tools.evaluation.card.expected import expected_of
from gguf_tools.evaluation.card.grading import grade_answer

PACKAGE = Path(gguf_tools.__file__).resolve().parent
GENERAL = PACKAGE / "evaluation" / "card" / "data" / "general.jsonl"
FACTS = PACKAGE / "bundled" / "facts.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CASES = rows(Path(__file__).with_name("realistic.jsonl"))
QUESTIONS = {row["question"]: row for row in [*rows(FACTS), *rows(GENERAL)]}

# Question, answer, and what grade says of it; a reader who understands the answer says the opposite.
KNOWN_LIMITS = [
    # The accepted phrase is said in passing, or of something else.
    ("What is the capital of Canada?", "The capital of Canada is Toronto. Ottawa is a city in Ontario.", True),
    ("What is the capital of Turkey?", "The capital is Istanbul. Ankara is the second largest city.", True),
    ("Who was the first person to walk on the Moon?", "Buzz Aldrin, followed by Neil Armstrong.", True),
    ("Which star is at the center of our solar system?", "Alpha Centauri, the star closest to the Sun.", True),
    ("What is frozen water called?", "Frozen water is called ice cream.", True),
    ("How many sides does a triangle have?", "A triangle has 3 angles, 4 sides.", True),
    ("What is 15 times 6?", "15 times 6 is 90, plus 6 makes 96.", True),
    # It is taken back later, or said to be what others think.
    ("What is the capital of France?", "Paris. No wait, it is not Paris.", True),
    ("What is 13 times 7?", "13 times 7 equals 91 - no, wait, it is 87.", True),
    ("What is the capital of Australia?", "Some people say Canberra, but it is Sydney.", True),
    # It is one of several things within a sentence, or in a row without commas.
    ("What is 2 plus 2?", "1 2 3 4 5 6 7 8 9 10 11 12", True),
    (
        "Which gas makes up most of the air that we breathe?",
        "Air is made of oxygen, nitrogen, and carbon dioxide.",
        True,
    ),
    # What looks like alternatives is one place, or one answer in two ways of which one is not accepted.
    ("What is the capital of Canada?", "Ottawa, Ontario, Canada", False),
    ("What is the square root of 49?", "The square root of 49 is 7 or -7.", False),
    ("What color is coal?", "Coal is black or dark brown.", False),
    # What looks denied, asked or calculated with is meant as the answer.
    ("Which star is at the center of our solar system?", "The Sun isn't a planet; it's the star.", False),
    ("What is the capital of France?", "It's Paris, anything else I can help with?", False),
    ("What is the square root of 49?", "7 × 7 = 49", False),
]


def right(question: str, answer: str) -> bool:
    return grade_answer(answer, expected_of(QUESTIONS[question], question), question).right


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['question']} {case['answer'][:40]}")
def test_grade_agrees_with_the_label(case: dict[str, Any]) -> None:
    assert right(case["question"], case["answer"]) == case["right"]


@pytest.mark.parametrize(("question", "answer", "expected"), KNOWN_LIMITS)
def test_known_limits(question: str, answer: str, expected: bool) -> None:
    assert right(question, answer) == expected


def test_the_cases_cover_the_questions() -> None:
    assert len({(case["question"], case["answer"]) for case in CASES}) == len(CASES)
    labels = Counter(case["right"] for case in CASES)
    assert min(labels.values()) > 300
    asked = {case["question"] for case in CASES}
    for path in (GENERAL, FACTS):
        assert {row["topic"] for row in rows(path)} == {row["topic"] for row in rows(path) if row["question"] in asked}
    assert len(asked) > 120


@pytest.mark.parametrize(
    "filler", ["It is a large and very old city. ", "no Paris or ", "London, ", "Paris and not ", "not "]
)
def test_a_thousand_words_are_graded_at_once(filler: str) -> None:
    answer = " ".join((filler * 1000).split()[:1000])
    times = []
    for _ in range(3):
        start = time.process_time()
        grade(answer, ["Paris", "city of Paris"], "What is the capital of France?")
        times.append(time.process_time() - start)
    assert min(times) < 0.1
