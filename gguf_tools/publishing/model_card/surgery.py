"""The section of a model card on the layer surgery that its files have behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.text import for_markdown, one_line


@dataclass(frozen=True, kw_only=True)
class SurgeryTold:
    """All surgery that a file records, on its checkpoint and on itself, for readers.

    `recipe` is its text; `sentences` has one for each op; `donors` name the other models; `before` and `after` are numbers of
    layers, and `drawing` shows old and new layers side by side ("" and None where `before` is not recorded and does not follow).
    """

    recipe: str
    sentences: tuple[str, ...]
    donors: tuple[str, ...]
    before: int | None
    after: int
    drawing: str


TellSurgery = Callable[[GGUFHeader, int, str | None], SurgeryTold | None]
"""What a file with this header, this many layers, and these letters of them (`ModelSpec.pattern`) records; None for nothing."""


def surgery_section(told: Sequence[tuple[str, SurgeryTold | None]]) -> str:
    """The section for files as (label, surgery); files of the same surgery share a part. "" if no file has any."""
    kinds: dict[SurgeryTold, list[str]] = {}
    for label, surgery in told:
        if surgery:
            kinds.setdefault(surgery, []).append(label)
    if not kinds:
        return ""
    parts = ["## Layer surgery\n"]
    for surgery, labels in kinds.items():
        whose = "" if len(kinds) == 1 and len(labels) == len(told) else f" of {', '.join(map(for_markdown, labels))}"
        counts = f"{_counts(surgery, whose)} Weights were not trained further."
        if surgery.sentences:
            parts.append(f"{counts} The operations, in order:\n")
            parts += [f"{n}. {for_markdown(sentence)}" for n, sentence in enumerate(surgery.sentences, 1)]
            parts.append("\nLayers are numbered from 0, as they stand when an operation is reached.")
        else:
            parts.append(counts)
        parts += [f"{for_markdown(donor)}." for donor in surgery.donors]
        parts.append(f"As a recipe of tinyq: `{one_line(surgery.recipe)}`\n")
        if surgery.drawing:
            parts.append(f"```text\n{surgery.drawing}\n```\n")
    return "\n".join(parts)


def _counts(surgery: SurgeryTold, whose: str) -> str:
    if surgery.before is None:
        return f"The layers{whose} were changed; there are {surgery.after} now."
    if surgery.before == surgery.after:
        return f"The {surgery.after} layers{whose} were changed; their number is the same."
    return f"The {surgery.before} layers of the original became {surgery.after}{whose.replace(' of ', ' in ', 1)}."
