"""Notes on a run of the card suite: items that count as failed or were shortened, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from gguf_tools.evaluation.card.modes import Mode
from gguf_tools.evaluation.card.results import Answered, CardReport, Completed, Generation
from gguf_tools.evaluation.prompts import TEXT_CHUNK

ASKED: Mapping[Mode, str] = {"direct": "without thinking", "thinking": "with thinking", "plain": "as plain text"}


def notes_of(report: CardReport) -> list[str]:
    """Sentences on items that count as failed or were shortened."""
    notes: list[str] = []
    if not report.modes.template:
        notes.append(
            "the model has no chat template: the questions were asked as plain text, without testing thinking modes"
        )
    cut = sum(passage.pieces > 1 for passage in report.passages)
    if cut:
        notes.append(
            f"{cut} of {len(report.passages)} passages were split into pieces of at most "
            f"{min(report.context, TEXT_CHUNK)} tokens, which raises the perplexity"
        )
    for mode, asked in ASKED.items():
        held_out = report.held_out if mode == report.mode else ()
        answers = [*report.in_mode(mode), *held_out]
        notes += _grouped(f"asked {asked}", [(item.question, _answer_fault(report, item)) for item in answers])
    faults = [(item.prompt, _completion_fault(report, item)) for item in report.completions]
    return notes + _grouped("continued", faults)


def _answer_fault(report: CardReport, item: Answered) -> str | None:
    """The first thing that went wrong with an answer, whether it is right or not."""
    fault = _fault(report, item.generation)
    if fault:
        return fault
    if not item.reply.closed:
        return "a thought that is never closed"
    if item.grade.reason == "empty":
        return "an empty answer"
    if not item.generation.ended:
        return "cut off before its end"
    if item.mode == "thinking" and not item.reply.thought:
        return "no thought"
    if item.mode == "direct" and item.reply.thought and not report.modes.undecided:
        return "a thought that was not requested"
    return None


def _completion_fault(report: CardReport, item: Completed) -> str | None:
    """What went wrong with a continuation; a loop after a right sentence counts for the repetition only."""
    if item.generation.loop and item.coherent:
        return "an endless loop after a right sentence, which is coherent but repeats itself"
    return _fault(report, item.generation) or (None if item.generation.tokens else "an empty continuation")


def _fault(report: CardReport, generation: Generation) -> str | None:
    """A fault that any generated text can have, or None."""
    if not generation.fits:
        return f"no room in the context of {report.context} tokens"
    return "an endless loop" if generation.loop else None


def _grouped(asked: str, faults: Sequence[tuple[str, str | None]]) -> list[str]:
    """One note per type of fault, with examples of the texts that have it."""
    by_fault: dict[str, list[str]] = {}
    for text, fault in faults:
        if fault:
            by_fault.setdefault(fault, []).append(textwrap.shorten(text, 60, placeholder=" …"))
    notes = []
    for fault, texts in by_fault.items():
        more = f"; and {len(texts) - 2} more" if len(texts) > 2 else ""
        notes.append(f"{asked}, {len(texts)} of {len(faults)}: {fault} ({'; '.join(texts[:2])}{more})")
    return notes
