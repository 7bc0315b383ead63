"""A comparison of two runs as a table and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools.evaluation.card.statistics import SIGNIFICANCE
from gguf_tools.evaluation.comparison.paired import Compared, Comparison
from gguf_tools.tables import Block, Column, Facts, Lines, Report, Table
from gguf_tools.text import one_line

NAMED = 3
"""Most items that a sentence names."""


def report_of(found: Comparison) -> Report:
    """The two runs, a row for each metric, and what can be concluded."""
    runs = [(name, _run(run.model, run.path)) for name, run in (("A", found.first), ("B", found.second))]
    blocks: list[Block] = [Facts(runs, width=1)]
    blocks += [Lines(), _table(found), Lines(), Lines("\n".join(_conclusions(found)))]
    if told := [line for one in _flipped(found) for line in _flips(one)]:
        blocks += [Lines(), Lines("\n".join(told))]
    if notes := _notes(found):
        blocks += [Lines(), Lines("\n".join(f"note: {note}" for note in notes))]
    return Report(blocks)


def _run(model: str, path: str) -> str:
    return path if model in path else f"{path} ({one_line(model)})"


def _table(found: Comparison) -> Table:
    """A row for each metric; p-values and counts first to go where the terminal is narrow, differences last."""
    columns = (
        Column("task", one_line, left=True, key=True, least=16),
        Column("metric", one_line, left=True, key=len({one.task for one in found.compared}) < found.tests, least=8),
        Column("items", "{:,}".format, rank=2),
        Column("A", _value),
        Column("B", _value),
        Column("B − A", "{:+.4f}".format),
        Column("95% interval of B − A", left=True, rank=3),
        Column("lost", "{:,}".format, rank=1),
        Column("gained", "{:,}".format, rank=1),
        Column("p", _probability, rank=2),
        Column("p corrected", _probability),
    )
    rows = [
        (
            one.task,
            one.metric,
            one.items,
            one.first,
            one.second,
            one.difference,
            f"{one.interval.low:+.4f} to {one.interval.high:+.4f}",
            None if one.lost is None else len(one.lost),
            None if one.gained is None else len(one.gained),
            one.p_value,
            one.corrected,
        )
        for one in found.compared
    ]
    return Table(columns, rows)


def _value(number: float) -> str:
    return f"{number:.4f}" if abs(number) < 1000 else f"{number:.5g}"


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _conclusions(found: Comparison) -> list[str]:
    """What survives pairing and correction, and what the items could have shown."""
    tests = "1 test" if found.tests == 1 else f"{found.tests} tests"
    corrected = "" if found.tests == 1 else f", corrected for {tests} (Holm)"
    lines = [
        f"B is {one.verdict} in {_name(one, found)}: {_value(one.first)} → {_value(one.second)}"
        f" (p = {_probability(one.corrected)}{corrected})"
        for one in found.shown
    ]
    if not lines:
        lines.append(f"No difference is shown: at the {SIGNIFICANCE:.0%} level, paired item by item{corrected}.")
    elif len(lines) < found.tests:
        rest = found.tests - len(lines)
        lines.append(
            f"No difference is shown in the other {rest}." if rest > 1 else "No difference is shown in the other one."
        )
    if lost := [one for one in found.compared if one not in found.shown and one.p_value < SIGNIFICANCE]:
        names = _listed([_name(one, found) for one in lost])
        lines.append(f"Not counted, because among {tests} such a p is expected by chance: {names}.")
    counted = [one for one in found.compared if one.test == "McNemar"]
    if counted:
        lines.append(
            f"Of right and wrong answers, {found.flips} must change, all one way, before a difference is shown."
        )
    if small := [one for one in found.compared if found.too_small(one)]:
        names = _listed([f"{_name(one, found)} ({one.items} items)" for one in small])
        lines.append(f"Too few items to show any difference: {names}.")
    return lines


def _name(one: Compared, found: Comparison) -> str:
    """The task, with the metric where the task has several."""
    several = sum(other.task == one.task for other in found.compared) > 1
    return one_line(f"{one.task} {one.metric}" if several else one.task)


def _flipped(found: Comparison) -> list[Compared]:
    """Metrics with answers that changed; of a task, one for each set of changed answers."""
    kept: dict[tuple[str, object, object], Compared] = {}
    for one in found.compared:
        if one.lost or one.gained:
            kept.setdefault((one.task, one.lost, one.gained), one)
    return list(kept.values())


def _flips(one: Compared) -> list[str]:
    parts = [
        f"{verb} {len(items)}: {_quoted(items)}"
        for verb, items in (("lost", one.lost or ()), ("gained", one.gained or ()))
        if items
    ]
    return [f"{one_line(one.task)} ({one_line(one.metric)}): {'; '.join(parts)}"]


def _quoted(items: Sequence[str]) -> str:
    return _listed([f"“{one_line(item)}”" for item in items])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _notes(found: Comparison) -> list[str]:
    """What could not be compared, and what makes a comparison doubtful."""
    notes = [one_line(note) for run in (found.first, found.second) for note in run.notes]
    by_task: dict[tuple[str, str], dict[str, None]] = {}
    for path, task, metric in found.missing:
        by_task.setdefault((path, task), {})[metric] = None
    notes += [f"only in {path}: {one_line(task)} ({', '.join(metrics)})" for (path, task), metrics in by_task.items()]
    told: set[object] = set()
    for one in found.compared:
        for which, path, items in (("A", found.first.path, one.only_first), ("B", found.second.path, one.only_second)):
            if items and (one.task, which) not in told:
                told.add((one.task, which))
                count = "1 item" if len(items) == 1 else f"{len(items)} items"
                notes.append(f"{one_line(one.task)}: {count} only in {path}, left out: {_quoted(items)}")
        if one.asked_differently and one.task not in told:
            told.add(one.task)
            notes.append(
                f"{one_line(one.task)}: {one.asked_differently} of {one.items} items were asked in other words (few-shot"
                " examples, chat template)"
            )
    return notes
