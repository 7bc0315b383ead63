"""What the best constant answer would get: the same text in reply to every question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gguf_tools.evaluation.card.expected import KINDS, LETTERS, Expected, Free, Number, YesNo
from gguf_tools.evaluation.card.numbers import numbers
from gguf_tools.evaluation.card.words import normalise, plain
from gguf_tools.evaluation.card.yesno import grade_yesno


@dataclass(frozen=True)
class Constant:
    """An answer, and to how many questions it is right."""

    answer: str
    right: int


def best_constant(questions: Sequence[Expected]) -> Constant:
    """The constant answer that is right most often; of equally good ones the first to be right.

    The candidates are yes and no, the letters and texts of options, the accepted phrases, and the ends of tolerances.
    """
    candidates = dict.fromkeys(text for expected in questions for text in _candidates(expected))
    found = {text: sum(takes(expected, text) for expected in questions) for text in candidates}
    answer = max(found, key=found.__getitem__, default="")
    return Constant(answer, found.get(answer, 0))


def by_kind(questions: Iterable[Expected]) -> dict[str, list[int]]:
    """The indices of the questions of each kind, for the kinds that occur, in the order of `KINDS`."""
    found: dict[str, list[int]] = {}
    for index, expected in enumerate(questions):
        found.setdefault(expected.kind, []).append(index)
    return {kind: found[kind] for kind in KINDS if kind in found}


def _candidates(expected: Expected) -> list[str]:
    match expected:
        case Free():
            return list(expected.accept)
        case YesNo():
            return ["yes" if expected.answer else "no"]
        case Number():
            ends = (expected.answer, expected.answer - expected.tolerance, expected.answer + expected.tolerance)
            return list(dict.fromkeys(f"{end:.15g}" for end in ends))
        case _:
            return [LETTERS[expected.answer], expected.options[expected.answer]]


def takes(expected: Expected, text: str) -> bool:
    """Whether a candidate is right; `grade_answer` says the same of such short texts, but takes longer."""
    match expected:
        case Free():
            words = f" {_words(text)} "
            return any(f" {_words(phrase)} " in words for phrase in expected.accept)
        case YesNo():
            return _said(text) == expected.answer
        case Number():
            value = _value(text)
            return value is not None and expected.holds(value)
        case _:
            known = (LETTERS[expected.answer], expected.options[expected.answer])
            return text == known[0] or _words(text) == _words(known[1])


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> str:
    return " ".join(normalise(text))


@lru_cache(maxsize=1 << 14)
def _said(text: str) -> bool | None:
    """Whether the text says yes; None if it says neither yes nor no."""
    return next((answer for answer in (True, False) if grade_yesno(text, answer).right), None)


@lru_cache(maxsize=1 << 14)
def _value(text: str) -> float | None:
    """The number without a unit that the text consists of, or None."""
    words = plain(text)
    found = [number for number in numbers(words) if number.unit is None]
    return found[0].value if len(found) == 1 and found[0].text == words.strip() else None
