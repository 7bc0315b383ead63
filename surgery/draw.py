"""Draws a plan as text: the old and the new stack side by side, with moved and new layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.algebra import Original, Stack, describe, identity, origins

FOLD = 5
"""Runs of at least this many unchanged layers are shown as one line."""


@dataclass(frozen=True)
class Row:
    """One line: the index of an old layer, that of a new one (None if there is none), and a description of the change."""

    old: int | None
    new: int | None
    what: str = ""


def changes(stack: Stack) -> list[str]:
    """A description of each new layer: kept, moved, a copy, taken from a donor, or made from several."""
    seen: set[Original] = set()
    out = []
    for n, layer in enumerate(stack):
        if not isinstance(layer, Original):
            out.append("made")
        elif layer.source:
            out.append("grafted")
        elif layer in seen:
            out.append("copied")
        else:
            out.append("kept" if layer.index == n else "moved")
            seen.add(layer)
    return out


def removed(stack: Stack, count: int) -> list[int]:
    """The original layers that no new layer uses."""
    used = {origin for layer in stack for origin in origins(layer)}
    return [n for n in range(count) if Original(n) not in used]


def rows(stack: Stack, count: int) -> list[Row]:
    """The two stacks aligned, with the smallest number of lines on which the sides differ."""
    kinds = changes(stack)
    gone = set(removed(stack, count))
    out = []
    for old, new in aligned(stack, count):
        words = []
        if new is not None and stack[new] != (None if old is None else Original(old)):
            verb = {"made": "made:", "copied": "copy of", "grafted": "from"}.get(kinds[new], "was")
            words.append(f"{verb} {describe(stack[new])}")
        if old in gone:
            words.append(f"{old} is removed")
        out.append(Row(old, new, "; ".join(words)))
    return out


def aligned(stack: Stack, count: int) -> list[tuple[int | None, int | None]]:
    """(old index, new index) pairs in order on both sides, None for a gap, with the smallest edit distance."""
    old = identity(count)
    # cost[a][b]: the number of differing lines for the old layers from a on and the new ones from b on.
    cost = [[0] * (len(stack) + 1) for _ in range(count + 1)]
    for a in range(count, -1, -1):
        for b in range(len(stack), -1, -1):
            if a == count or b == len(stack):
                cost[a][b] = count - a + len(stack) - b
            else:
                pair = cost[a + 1][b + 1] + (old[a] != stack[b])
                cost[a][b] = min(pair, 1 + cost[a + 1][b], 1 + cost[a][b + 1])
    out: list[tuple[int | None, int | None]] = []
    a = b = 0
    while a < count or b < len(stack):
        if a < count and b < len(stack) and cost[a][b] == cost[a + 1][b + 1] + (old[a] != stack[b]):
            out.append((a, b))
            a, b = a + 1, b + 1
        elif a < count and cost[a][b] == 1 + cost[a + 1][b]:
            out.append((a, None))
            a += 1
        else:
            out.append((None, b))
            b += 1
    return out


def draw(stack: Stack, count: int, old_letters: Sequence[str], new_letters: Sequence[str]) -> str:
    """The plan as text; the letters denote the type of each layer."""
    width = len(str(max(count, len(stack))))
    blank = " " * (width + 2)

    def cell(index: int | None, letters: Sequence[str]) -> str:
        return blank if index is None else f"{index:>{width}} {letters[index]}"

    lines = [f"{'old':<{width + 2}} │ {'new':<{width + 2}} │", f"{'─' * (width + 2)}─┼─{'─' * (width + 2)}─┼─"]
    plain: list[Row] = []
    for row in [*rows(stack, count), Row(None, None)]:
        if row.old is not None and row.new is not None and not row.what:
            plain.append(row)
            continue
        if len(plain) > FOLD:
            plain, middle = [plain[0], plain[-1]], True
        else:
            middle = False
        for n, same in enumerate(plain):
            if middle and n:
                lines.append(f"{'⋮':>{width + 2}} │ {'⋮':>{width + 2}} │")
            lines.append(f"{cell(same.old, old_letters)} │ {cell(same.new, new_letters)} │")
        plain = []
        if row.old is not None or row.new is not None:
            lines.append(f"{cell(row.old, old_letters)} │ {cell(row.new, new_letters)} │ {row.what}".rstrip())
    return "\n".join(lines)
