"""What counts as the right answer to a question: the four kinds of question, and how a file states them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.units import unit_named
from gguf_tools.evaluation.card.words import normalise
from gguf_tools.evaluation.text_files import shown
from gguf_tools.formats.text_file import is_finite

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
By = Literal["text", "letters", "options"]
"""How a choice is read: from the text of the answer, or by the log-likelihood of the letters or of the options."""


@dataclass(frozen=True)
class Free:
    """The answer must assert one of these phrases."""

    accept: tuple[str, ...]
    kind = "free"

    @property
    def text(self) -> str:
        """The expected answer in words."""
        return " or ".join(self.accept)


@dataclass(frozen=True)
class YesNo:
    """The answer must say yes, or no."""

    answer: bool
    kind = "yesno"

    @property
    def text(self) -> str:
        """The expected answer in words."""
        return "yes" if self.answer else "no"


@dataclass(frozen=True)
class Number:
    """The answer must state a number within `tolerance` of `answer`, both in `unit`, or in no unit at all."""

    answer: float
    unit: str = ""
    tolerance: float = 0.0
    kind = "number"

    @property
    def text(self) -> str:
        """The expected answer in words."""
        within = f" ± {self.tolerance:.6g}" if self.tolerance else ""
        return f"{self.answer:.12g}{within}{' ' if self.unit else ''}{self.unit}"

    def holds(self, value: float) -> bool:
        """Whether a value in `unit` is near enough; 1e-9 more than the tolerance allows for rounding."""
        return abs(value - self.answer) <= self.tolerance + 1e-9 * max(abs(self.answer), 1e-9)


@dataclass(frozen=True)
class Options:
    """The answer must choose the option at `answer`, by its letter or its text; see `By`."""

    options: tuple[str, ...]
    answer: int
    by: By = "text"
    kind = "choice"

    @property
    def text(self) -> str:
        """The expected answer in words."""
        return self.named(self.answer)

    def named(self, index: int) -> str:
        """An option with its letter, as it is shown: "B) Lyon"."""
        return f"{LETTERS[index]}) {self.options[index]}"

    @property
    def listed(self) -> bool:
        """Whether the model is shown the options with their letters."""
        return self.by != "options"


Expected = Free | YesNo | Number | Options
KINDS = ("free", "yesno", "number", "choice")
KEYS: Mapping[str, tuple[str, ...]] = {
    "free": ("accept",),
    "yesno": ("answer",),
    "number": ("answer", "unit", "tolerance"),
    "choice": ("options", "answer", "by"),
}
"""Kind → the keys of a line that belong to it."""
EXAMPLES = {
    "free": '{"question": "What is the capital of France?", "accept": ["Paris"]}',
    "yesno": '{"kind": "yesno", "question": "Is a whale a fish?", "answer": "no"}',
    "number": '{"kind": "number", "question": "How far away is the Moon?", "answer": 384400, "unit": "km", "tolerance": "5%"}',
    "choice": '{"kind": "choice", "question": "Which is a metal?", "options": ["iron", "sulfur"], "answer": "A"}',
}


def expected_of(row: Mapping[str, Any], origin: str) -> Expected:
    """The expected answer that a line of a file of questions states. Raises InputError that names the line (`origin`)."""
    kind = row.get("kind", "free")
    if kind not in KINDS:
        raise InputError(f"{origin}: kind is {shown(kind)}; expected one of {', '.join(KINDS)}")
    for key in row:
        owners = [other for other, keys in KEYS.items() if key in keys]
        if owners and kind not in owners:
            raise InputError(
                f"{origin}: {key} belongs to questions of kind {' or '.join(owners)}, and this one is of kind {kind}; "
                f"expected a line such as {EXAMPLES[kind]}"
            )
    return _READ[kind](row, origin)


def accepted(row: Mapping[str, Any], origin: str, example: str) -> tuple[str, ...]:
    """The phrases under `accept`. Raises InputError that names the line unless each has a letter or a digit."""
    return _phrases(row.get("accept"), "accept", "accepted answer", "a list of accepted answers", origin, example)


def _phrases(value: object, key: str, one: str, several: str, origin: str, example: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InputError(f"{origin}: {key} is {shown(value)}; expected {several}, as in {example}")
    unusable = next((item for item in value if not normalise(item)), None)
    if unusable is not None:
        raise InputError(f"{origin}: the {one} {shown(unusable)} has no letters or digits; expected at least one")
    return tuple(value)


def _free(row: Mapping[str, Any], origin: str) -> Free:
    return Free(accepted(row, origin, EXAMPLES["free"]))


def _yesno(row: Mapping[str, Any], origin: str) -> YesNo:
    value = row.get("answer")
    if isinstance(value, bool):
        return YesNo(value)
    if not isinstance(value, str) or value.strip().casefold() not in ("yes", "no"):
        raise InputError(f"{origin}: answer is {shown(value)}; expected yes or no, as in {EXAMPLES['yesno']}")
    return YesNo(value.strip().casefold() == "yes")


def _number(row: Mapping[str, Any], origin: str) -> Number:
    """Raises InputError for what is no finite number, a unit that is no text, or a negative tolerance."""
    answer, unit, tolerance = row.get("answer"), row.get("unit"), row.get("tolerance", 0)
    if not _is_number(answer):
        raise InputError(f"{origin}: answer is {shown(answer)}; expected a number, as in {EXAMPLES['number']}")
    if unit is not None and (not isinstance(unit, str) or not unit.strip()):
        raise InputError(f"{origin}: unit is {shown(unit)}; expected text such as km")
    value = float(answer)
    if isinstance(tolerance, str) and tolerance.strip().endswith("%"):
        try:
            tolerance = abs(value) * float(tolerance.strip()[:-1]) / 100
        except ValueError:
            tolerance = None
    if not _is_number(tolerance) or tolerance < 0:
        raise InputError(
            f"{origin}: tolerance is {shown(row.get('tolerance'))}; expected a number of at least 0 in the question's unit, "
            'or a share of the answer such as "5%"'
        )
    unit = (unit or "").strip()
    known = unit_named(unit)
    return Number(value, known.name if known else unit, float(tolerance))


def _is_number(value: object) -> TypeGuard[int | float]:
    return is_finite(value) and abs(value) < 1e300


def _choice(row: Mapping[str, Any], origin: str) -> Options:
    """Raises InputError for options that cannot be told apart, or an answer that is none of them."""
    options = _phrases(row.get("options"), "options", "option", "a list of options", origin, EXAMPLES["choice"])
    by = row.get("by", "text")
    if by not in get_args(By):
        raise InputError(f"{origin}: by is {shown(by)}; expected one of {', '.join(get_args(By))}")
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{origin}: has {len(options)} options; expected 2 to {len(LETTERS)}")
    words = [normalise(option) for option in options]
    twice = next((n for n, found in enumerate(words) if found in words[:n]), None)
    if twice is not None:
        raise InputError(
            f"{origin}: the option {shown(options[twice])} occurs twice, ignoring case and punctuation; remove one"
        )
    for n, found in enumerate(words):
        letter = "".join(found).upper()
        if letter in LETTERS[: len(options)] and len(letter) == 1 and letter != LETTERS[n]:
            raise InputError(
                f"{origin}: the option {shown(options[n])} is also the letter of another option; expected options that cannot "
                "be mistaken for letters, or another order"
            )
    answer = row.get("answer")
    if answer in options:
        return Options(options, options.index(answer), by)
    letters = LETTERS[: len(options)]
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise InputError(
            f"{origin}: answer is {shown(answer)}; expected one of the options, or its letter (A to {letters[-1]})"
        )
    return Options(options, letters.index(answer), by)


_READ: Mapping[str, Callable[[Mapping[str, Any], str], Expected]] = {
    "free": _free,
    "yesno": _yesno,
    "number": _number,
    "choice": _choice,
}
