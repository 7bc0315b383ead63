"""The answers of one model or several: as records for JSON Lines, and as a report that says what is right and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gguf_tools.evaluation.card.as_json import answer_dict
from gguf_tools.evaluation.card.compare import flips
from gguf_tools.evaluation.card.grading import WHY
from gguf_tools.evaluation.card.notes import ASKED
from gguf_tools.evaluation.card.results import Answered, CardReport, Completed
from gguf_tools.tables import Block, Lines
from gguf_tools.text import json_escapes, shortened

LONGEST = 300
"""Most characters of an answer that is shown; the records have all of it."""


def flip_lines(cards: Mapping[str, CardReport], names: Mapping[str, str]) -> list[str]:
    """For each report but the first, a sentence on what flipped from the first to it, facts and held-out facts apart."""
    best, *others = cards
    lines = []
    for other in others:
        for what, one, two in (
            ("", cards[best].answers, cards[other].answers),
            (" (held out)", cards[best].held_out, cards[other].held_out),
        ):
            found = flips(one, two)
            if found is not None:
                lines.append(f"{names[other]}{what}, compared with {names[best]}: {found.text}")
    return lines


def records(path: str, report: CardReport) -> Iterator[dict[str, Any]]:
    """One record for each question and mode; `set` is scored, other mode or held out."""
    for name, items in _sets(report):
        for item in items:
            yield {"model": path, "set": name, **answer_dict(item)}


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSON Lines."""
    return "".join(json_escapes(json.dumps(row, ensure_ascii=False, allow_nan=False)) + "\n" for row in rows)


def _sets(report: CardReport) -> list[tuple[str, Sequence[Answered]]]:
    return [("scored", report.answers), ("other mode", report.probes), ("held out", report.held_out)]


def answer_blocks(cards: Mapping[str, CardReport], names: Mapping[str, str]) -> list[Block]:
    """Every question with its answers, verdicts and reasons; of several models side by side, with what flipped.

    The models' answers stand in the order of `cards`, whose first is the one that others are compared with.
    """
    first = next(iter(cards.values()))
    blocks: list[Block] = []
    for place, (name, items) in enumerate(_sets(first)):
        asked = [_sets(report)[place][1] for report in cards.values()]
        same = [[item.question for item in one] == [item.question for item in items] for one in asked]
        if not all(same):
            blocks += [Lines(), Lines(f"{name}: the models were asked different questions, which --answers has")]
            continue
        mode = "" if not items else f", asked {ASKED[items[0].mode]}"
        blocks += [Lines(), Lines(f"questions ({name}{mode})")] if items else []
        for number, answers in enumerate(zip(*asked, strict=True), 1):
            blocks += [Lines(line) for line in _question(number, dict(zip(cards, answers, strict=True)), names)]
    if first.completions:
        blocks += [Lines(), Lines("texts to continue")]
        several = zip(*(report.completions for report in cards.values()), strict=True)
        for completed in several:
            blocks += [Lines(line) for line in _completion(dict(zip(cards, completed, strict=True)), names)]
    return blocks[1:]  # without the first empty line


def _question(number: int, answers: Mapping[str, Answered], names: Mapping[str, str]) -> list[str]:
    """The lines of one question: itself with what is expected, and each model's answer with its verdict."""
    one = next(iter(answers.values()))
    lines = [f"{number}. {_shown(one.question)} ({one.expected.text})"]
    for path, item in answers.items():
        flipped = ""
        if item is not one and item.right != one.right:
            flipped = ", gained" if item.right else ", lost"
        name = f"{names[path]}: " if len(answers) > 1 else ""
        lines.append(f"   {name}{verdict(item)}{flipped}: {_shown(item.reply.answer) or '(empty)'}")
    return lines


def verdict(item: Answered) -> str:
    """Whether an answer is right, and why not: "wrong (read as B) Lyon: says something else)"."""
    if item.right:
        return "right" if item.likelihoods is None else "right, by likelihood"
    reason = item.grade.reason if item.fits else "no room"
    read = f"read as {item.grade.read}: " if item.grade.read and item.fits else ""
    by = "; by likelihood" if item.likelihoods is not None else ""
    return f"wrong ({read}{WHY[reason]}{by})"


def _completion(completed: Mapping[str, Completed], names: Mapping[str, str]) -> list[str]:
    """The lines of one text to continue."""
    one = next(iter(completed.values()))
    lines = [f"   {_shown(one.prompt)} …"]
    for path, item in completed.items():
        name = f"{names[path]}: " if len(completed) > 1 else ""
        lines.append(f"   {name}{_coherence(item)}: {_shown(item.generation.text) or '(empty)'}")
    return lines


def _coherence(item: Completed) -> str:
    if item.coherent:
        return "right"
    if not item.generation.fits:
        return f"wrong ({WHY['no room']})"
    if not item.follows:
        return "wrong (the expected word is missing)"
    return "wrong (an endless loop)" if item.generation.loop is not None else "wrong (characters that are not whole)"


def _shown(text: str) -> str:
    return shortened(" ".join(text.split()), LONGEST)
