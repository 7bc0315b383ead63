"""The card suite's items: questions with expected answers, texts to continue, and a text for the perplexity.

Two sets are included: `general` for any instruct model, and `bundled`, on which the bundled models were trained. A user's
file of questions can replace those of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_tools.bundled import FACTS
from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.expected import EXAMPLES, KEYS, Expected, Options, accepted, expected_of
from gguf_tools.evaluation.text_files import json_object, read_lines, read_text, shown
from gguf_tools.formats.digest import json_digest

SET_SIZE = 17
"""Number of questions in one set, as on the model cards of layer surgeries."""

COMPLETIONS = 2
"""Number of texts to continue per set of questions."""

_DATA = Path(__file__).parent / "data"
_QUESTION_KEYS = ("question", "kind", *dict.fromkeys(key for keys in KEYS.values() for key in keys), "system", "topic")
_QUESTION_EXAMPLE = EXAMPLES["free"]
_COMPLETION_KEYS = ("prompt", "accept")
_COMPLETION_EXAMPLE = '{"prompt": "Monday, Tuesday,", "accept": ["Wednesday"]}'


@dataclass(frozen=True)
class Question:
    """A question, the expected answer, and an optional system prompt; questions are taken from the `topic`s in turn."""

    question: str
    expected: Expected
    system: str | None = None
    topic: str = ""

    @property
    def asked(self) -> str:
        """The text that the model is shown: the question, and the options with their letters if it may choose by them."""
        if not isinstance(self.expected, Options) or not self.expected.listed:
            return self.question
        return "\n".join([self.question, *map(self.expected.named, range(len(self.expected.options)))])


@dataclass(frozen=True)
class Completion:
    """A text to continue, and phrases of which a coherent continuation contains at least one."""

    prompt: str
    accept: tuple[str, ...]


@dataclass(frozen=True)
class CardSet:
    """The items of one run of the suite; `passages` are for the perplexity."""

    name: str
    questions: tuple[Question, ...]
    completions: tuple[Completion, ...]
    passages: tuple[str, ...]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 (hexadecimal) of the questions with their accepted answers, of the texts to continue, and of the passages.

        Each is the `json_digest` of the items.
        """
        items = {
            "questions": [asdict(question) for question in self.questions],
            "completions": [asdict(completion) for completion in self.completions],
            "text": list(self.passages),
        }
        return {name: json_digest(found) for name, found in items.items()}


@dataclass(frozen=True)
class Choice:
    """The items that a run uses: those that are scored, and held-out questions to confirm a choice made by the score."""

    scored: CardSet
    held_out: tuple[Question, ...] = ()


SETS = {
    "general": (_DATA / "general.jsonl", _DATA / "general_completions.jsonl", _DATA / "general.txt"),
    "bundled": (FACTS, _DATA / "bundled_completions.jsonl", _DATA / "bundled.txt"),
}
"""Name → questions, completions and text."""

REST = "rest"
"""Value of `held_out` for all questions of the same set that are not scored."""


def choose(questions: str = "general", sets: int = 1, held_out: str | None = None, text: Path | None = None) -> Choice:
    """Select the items of a run: 17 · `sets` questions, and up to 2 · `sets` completions.

    `questions` names a set or a file; a file provides questions only, and the rest comes from the general set. `held_out` is
    None, "rest", a set or a file; questions that are scored are excluded from it. `text` replaces the text for the
    perplexity. Questions are taken from the topics in turn, in file order within a topic, so every run selects the same ones.

    Raises InputError if a file is broken or has too few questions.
    """
    whole = _load(questions)
    ordered = _by_turns(whole.questions)
    size = len(ordered) if sets == 1 and len(ordered) < SET_SIZE else sets * SET_SIZE
    if size > len(ordered):
        raise InputError(
            f"{questions}: has {len(ordered)} questions, but {sets} sets of {SET_SIZE} need {size}; "
            f"give at most {max(len(ordered) // SET_SIZE, 1)}"
        )
    passages = whole.passages if text is None else split_passages(read_text(text), str(text))
    scored = CardSet(whole.name, ordered[:size], whole.completions[: COMPLETIONS * sets], passages)
    return Choice(scored, _held_out(questions, held_out, ordered[size:], scored))


def _held_out(
    questions: str, held_out: str | None, rest: tuple[Question, ...], scored: CardSet
) -> tuple[Question, ...]:
    """The held-out questions: none, the `rest` of the set, or those of another set or file, without the scored ones.

    Raises InputError if no question is left.
    """
    if held_out is None:
        return ()
    asked = {question.question for question in scored.questions}
    others = rest if held_out == REST else _by_turns(_load(held_out).questions)
    found = tuple(question for question in others if question.question not in asked)
    if not found:
        where = questions if held_out == REST else held_out
        raise InputError(f"{where}: no question is left to hold out; give another file or fewer sets")
    return found


def _load(name: str) -> CardSet:
    if name in SETS:
        questions, completions, text = SETS[name]
    else:
        questions = Path(name)
        _, completions, text = SETS["general"]
        if not questions.exists():
            raise InputError(f"{name}: is neither a question set ({', '.join(SETS)}) nor a file; check the path")
    return CardSet(
        name, load_questions(questions), load_completions(completions), split_passages(read_text(text), str(text))
    )


def load_questions(path: Path) -> tuple[Question, ...]:
    """The questions of a JSON lines file without duplicates; raises InputError that names the line."""
    found: dict[str, Question] = {}
    for origin, line in read_lines(path):
        row = json_object(line, origin, _QUESTION_KEYS, _QUESTION_EXAMPLE)
        for key in ("system", "topic"):
            if row.get(key) is not None and not isinstance(row[key], str):
                raise InputError(f"{origin}: {key} is {shown(row[key])}; expected text")
        question = Question(
            _required(row, "question", origin, _QUESTION_EXAMPLE),
            expected_of(row, origin),
            row.get("system"),
            row.get("topic") or "",
        )
        if question.question in found:
            raise InputError(f"{origin}: the question {shown(question.question)} occurs twice; remove one")
        found[question.question] = question
    if not found:
        raise InputError(f"{path}: has no questions; expected one per line, such as {_QUESTION_EXAMPLE}")
    return tuple(found.values())


def load_completions(path: Path) -> tuple[Completion, ...]:
    """The texts to continue of a JSON lines file; raises InputError that names the line."""
    found = []
    for origin, line in read_lines(path):
        row = json_object(line, origin, _COMPLETION_KEYS, _COMPLETION_EXAMPLE)
        prompt = _required(row, "prompt", origin, _COMPLETION_EXAMPLE)
        found.append(Completion(prompt, accepted(row, origin, _COMPLETION_EXAMPLE)))
    return tuple(found)


def _required(row: dict[str, Any], key: str, origin: str, example: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{origin}: {key} is {shown(value)}; expected text, as in {example}")
    return value


def _by_turns(questions: Sequence[Question]) -> tuple[Question, ...]:
    """One question of each topic in turn, topics in the order of their first appearance."""
    rank: dict[str, int] = {}
    seen: dict[str, int] = {}
    keys = []
    for question in questions:
        rank.setdefault(question.topic, len(rank))
        seen[question.topic] = seen.get(question.topic, 0) + 1
        keys.append((seen[question.topic], rank[question.topic]))
    return tuple(question for _, question in sorted(zip(keys, questions, strict=True), key=lambda pair: pair[0]))


def split_passages(text: str, origin: str) -> tuple[str, ...]:
    """A text's paragraphs, separated by blank lines; raises InputError if there is none."""
    passages = tuple(part.strip("\n") for part in "\n".join(map(str.rstrip, text.splitlines())).split("\n\n"))
    passages = tuple(part for part in passages if part.strip())
    if not passages:
        raise InputError(f"{origin}: is empty; expected text")
    return passages
