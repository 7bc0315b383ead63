"""The section of a model card that compares its first file with others: the original, or an earlier version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

from gguf_tools.evaluation.card.compare import Difference, difference, part_difference
from gguf_tools.evaluation.card.report import (
    CARD_COLUMNS,
    HELD_OUT_COLUMNS,
    beside,
    card_row,
    changed_count,
    changed_share,
    changed_value,
    held_out_row,
)
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.card.statistics import McNemar, Paired
from gguf_tools.publishing.model_card.facts import CardFacts, CardFile
from gguf_tools.tables import MISSING, Column, Table
from gguf_tools.text import for_markdown, human_bytes, human_count

Cell = str | None
_SHARES = {"completion": "completion", "thinking": "thinking", "non-thinking": "non_thinking"}
"""Row of the table → part of the score that is a share of items."""


def comparison_section(facts: CardFacts) -> str:
    """What the versions are, how they score, and the paired differences; "" without baselines."""
    if not facts.baselines:
        return ""
    first = facts.files[0]
    labels = [baseline.label for baseline in facts.baselines]
    lines = ["## Comparison\n", _versions(first, facts.baselines, labels), ""]
    cards = [file.measured.card for file in (*facts.baselines, first)]
    if all(cards):
        measured = [card for card in cards if card]
        lines += [
            f"Measured alike, on the same items. Δ is {for_markdown(first.label)} minus the other, with the 95% interval or the "
            "p-value of a paired test; those that chance does not explain (p < 0.05) are bold.\n",
            _results(first.label, labels, measured),
            "",
        ]
    for baseline in facts.baselines if len(facts.files) > 1 else ():
        found = {file.label: file.measured.card for file in facts.files if file.measured.card}
        if baseline.measured.card:
            table = beside(baseline.measured.card, found)
            lines += [f"All files minus {for_markdown(baseline.label)}:\n", table.markdown(), ""]
    return "\n".join(lines)


def _versions(first: CardFile, others: Sequence[CardFile], labels: Sequence[str]) -> str:
    """The table of layers, sizes and surgery: a column for each version."""
    rows: list[tuple[str, Callable[[CardFile], Cell]]] = [
        ("Layers", lambda file: str(file.measured.model.layers)),
        ("Parameters", lambda file: human_count(file.model.parameters)),
        ("Type", lambda file: file.measured.model.type_text),
        ("Bits/weight", lambda file: f"{file.measured.model.bpw:.2f}"),
        ("Size", lambda file: human_bytes(file.measured.model.bytes)),
        ("Memory", lambda file: human_bytes(file.memory.total)),
        ("Surgery", lambda file: file.surgery.recipe if file.surgery else None),
    ]
    columns = [Column("", left=True, key=True), *(Column(label) for label in (*labels, first.label))]
    cells = [(name, *(show(file) for file in (*others, first))) for name, show in rows]
    return Table(columns, [row for row in cells if any(row[1:])]).markdown()


def _results(label: str, labels: Sequence[str], cards: Sequence[CardReport]) -> str:
    """The table of measured values: a row for each figure, a column for each version and each difference."""
    values = [_values(card) for card in cards]
    names = dict.fromkeys(name for found in values for name in found)
    changes = [_changes(card, cards[-1]) for card in cards[:-1]]
    columns = [
        Column("Measured", left=True, key=True),
        *(Column(name) for name in (*labels, label)),
        *(Column(f"Δ {name}") for name in labels),
    ]
    rows = [(name, *(found.get(name) for found in values), *(change.get(name) for change in changes)) for name in names]
    return Table(columns, rows, missing=MISSING).markdown()


def _values(card: CardReport) -> dict[str, Cell]:
    """Figure → its value as text, with its 95% interval where there is a column for that."""
    columns = (*CARD_COLUMNS, *HELD_OUT_COLUMNS)
    row = (*card_row(card), *held_out_row(card))
    shown = {c.head: None if value is None else c.show(value) for c, value in zip(columns, row, strict=True)}
    found: dict[str, Cell] = {}
    for name, text in shown.items():
        if not name.endswith(" 95%") and text is not None:
            interval = shown.get(f"{name} 95%")
            found[name] = text if interval is None else f"{text} ({interval})"
    return found


def _changes(before: CardReport, after: CardReport) -> dict[str, Cell]:
    """Figure → the paired difference as text; figures that were not measured on the same items are left out."""
    both = {"before": before, "after": after}
    found: Difference = difference("before", "after", both)
    shares = {row: part_difference(before, after, part) for row, part in _SHARES.items()}
    return {
        "score": _marked(changed_value(found.score, 2), found.score),
        "facts": _marked(changed_count(found.facts), found.facts),
        "held out": _marked(changed_count(found.held_out), found.held_out),
        "bits/byte": _marked(changed_value(found.bits, 3), found.bits),
        "perplexity": _marked(_perplexity(before, after, found), found.bits),
        "repeated": _marked(changed_share(found.repetition), found.repetition),
        **{row: _marked(changed_count(test), test) for row, test in shares.items()},
    }


def _marked(text: Cell, test: Paired | McNemar | None) -> Cell:
    return f"**{text}**" if text and test and test.shown else text


def _perplexity(before: CardReport, after: CardReport, found: Difference) -> Cell:
    """The relative change of the perplexity, which follows from that of bits per byte where both have the same tokens."""
    counts = [[passage.tokens for passage in card.passages] for card in (before, after)]
    if found.bits is None or counts[0] != counts[1]:
        return None
    scale = log(2) * sum(passage.bytes for passage in after.passages) / sum(counts[1])
    estimate, low, high = (exp(scale * bits) - 1 for bits in (found.bits.estimate, *found.bits.interval.as_list()))
    return f"{estimate:+.1%} ({low:+.1%} to {high:+.1%})"
