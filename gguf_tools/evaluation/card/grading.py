"""Grades the answer to a question of any kind."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools.evaluation.card.answers import Grade, grade
from gguf_tools.evaluation.card.expected import Expected, Free, Number, YesNo
from gguf_tools.evaluation.card.numbers import grade_number
from gguf_tools.evaluation.card.options import grade_options
from gguf_tools.evaluation.card.yesno import grade_yesno


def grade_answer(answer: str, expected: Expected, question: str = "") -> Grade:
    """Whether the text of an answer (without a thought) is right. `question` is its text as the file states it."""
    match expected:
        case Free():
            return grade(answer, expected.accept, question)
        case YesNo():
            return grade_yesno(answer, expected.answer)
        case Number():
            return grade_number(answer, expected, question)
        case _:
            return grade_options(answer, expected, question)


WHY = {
    "right": "right",
    "empty": "no answer",
    "other": "says something else",
    "negated": "denies it",
    "alternatives": "offers several answers",
    "undecided": "does not decide",
    "no room": "does not fit into the context",
}
"""Reason → what `--show-answers` says."""


def grade_likelihoods(likelihoods: Sequence[float], expected: Expected) -> Grade:
    """Whether the expected option is the most likely one; of equally likely ones the first counts as chosen."""
    if isinstance(expected, Free | YesNo | Number):
        raise TypeError(f"a question of kind {expected.kind} has no options")
    chosen = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    right = chosen == expected.answer
    return Grade(right, "right" if right else "other", expected.named(chosen))
