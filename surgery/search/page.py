"""A study as one self-contained HTML page: leaderboard, score against size, heatmaps, each recipe's stack, the champion."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf_tools.text import human_bytes, printable
from surgery.draw import draw
from surgery.ops.copies import Duplicate, Repeat
from surgery.ops.order import Delete, Swap
from surgery.search.leaderboard import Board, Line
from surgery.search.records import KL, TEXT
from surgery.search.report import SearchReport, confirmation, leaderboard

STYLE = """body{font:14px system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#1c1c1c}
table{border-collapse:collapse;margin:.5em 0 1.5em}th{font-weight:600}th,td{padding:.15em .6em;border-bottom:1px solid #e4e4e4}
pre{background:#f6f6f6;padding:.8em;overflow:auto}.verdict{font-size:1.2em;max-width:50em}svg text{font:11px system-ui,sans-serif}
.heat td{width:15px;height:15px;padding:0;border:1px solid #fff}.heat th{font-weight:400;padding:0 .4em;border:0}"""
WIDE, HIGH, EDGE = 640, 360, 60
"""Size of the scatter plot, and its margin, in pixels."""
GOOD, EVEN, BAD = (33, 120, 80), (246, 246, 246), (178, 24, 43)


@dataclass(frozen=True)
class Cell:
    """One field of a heatmap: a loss against the base (smaller is better), and its text."""

    loss: float
    title: str


@dataclass(frozen=True)
class Heatmap:
    """Losses by row and column, with their labels; a field that was not measured is None."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], Cell]


def page(board: Board) -> str:
    """The page; all text from files is escaped. It loads nothing and has no script."""
    report = SearchReport(board)
    title = _text(f"tinyq search: {board.study}")
    parts = [f"<h1>{title}</h1>", f'<p class="verdict">{_text(board.verdict)}</p>']
    if board.best:
        parts += ["<h2>Champion</h2>", _champion(board, board.best[0])]
    parts += ["<h2>Leaderboard</h2>", leaderboard(board).html()]
    if any(line.confirmed for line in board.best):
        parts += ["<h2>On held-out items</h2>", confirmation(board).html()]
    parts += ["<h2>Objective against size</h2>", scatter(board)]
    parts += [_heat(found) for found in heatmaps(board)]
    parts.append("<h2>Stacks</h2>")
    for line in board.best[:10]:
        parts.append(f"<h3>{line.rank}. {_text(line.name)}</h3><pre>{_text(_drawn(board, line))}</pre>")
    parts += ["<h2>Report</h2>", f"<pre>{_text(str(report))}</pre>"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n"
    )


def _champion(board: Board, line: Line) -> str:
    """What the best candidate is, and how to make it."""
    values = ", ".join(
        f"{objective.name} {value:.4g}"
        for objective, value in zip(board.objectives, line.values, strict=True)
        if value is not None
    )
    facts = [
        ("recipe", line.name),
        ("values", values),
        ("layers", str(line.layers)),
        ("size", human_bytes(line.bytes or 0)),
        ("make it", f"tinyq search export STUDY --study {board.study!r} --rank 1 OUT.gguf"),
        ("or", f"tinyq surgery SOURCE.gguf OUT.gguf --recipe '{line.name}'"),
    ]
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _drawn(board: Board, line: Line) -> str:
    count = board.setup["layer_count"]
    stack = line.record.entry.stack(count)
    return draw(stack, count, [" "] * count, [" "] * len(stack))


def scatter(board: Board) -> str:
    """The first objective against the size of the file, as SVG: the base and its quantizations are squares, the front a line."""
    lines = board.drawn
    if not lines:
        return "<p>nothing has been measured yet</p>"
    sizes = [float(line.bytes or 0) for line in lines]
    values = [float(line.values[0] or 0.0) for line in lines]
    x, y = _axis(sizes, EDGE, WIDE - 20), _axis(values, HIGH - EDGE, 20)
    parts = [f'<svg width="{WIDE}" height="{HIGH}" role="img" aria-label="objective against size">']
    parts += [f'<path d="M{EDGE} 10V{HIGH - EDGE}H{WIDE - 10}" fill="none" stroke="#888"/>']
    for value in (min(sizes), max(sizes)):
        parts.append(
            f'<text x="{x(value):.1f}" y="{HIGH - EDGE + 18}" text-anchor="middle">{human_bytes(value)}</text>'
        )
    for value in (min(values), max(values)):
        parts.append(f'<text x="{EDGE - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    parts.append(f'<text x="{EDGE}" y="{HIGH - 14}">size of the file</text>')
    parts.append(
        f'<text x="14" y="{HIGH / 2}" transform="rotate(-90 14 {HIGH / 2})">{_text(board.objectives[0].name)}</text>'
    )
    front = sorted(
        (size, value) for line, size, value in zip(lines, sizes, values, strict=True) if line.name in board.front
    )
    if len(front) > 1:
        points = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in front)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#217850" stroke-dasharray="4 3"/>')
    for line, size, value in zip(lines, sizes, values, strict=True):
        title = f"<title>{_text(line.name)}: {value:.4g}, {human_bytes(size)}</title>"
        colour = "#217850" if line.name in board.front else "#8a8a8a"
        if line.record.entry.always:
            parts.append(
                f'<rect x="{x(size) - 4:.1f}" y="{y(value) - 4:.1f}" width="8" height="8" fill="#1f5fa8">{title}</rect>'
            )
        else:
            parts.append(f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}">{title}</circle>')
    return "".join([*parts, "</svg>"])


def _axis(values: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    """A linear scale from the values' range to pixels."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def heatmaps(board: Board) -> list[Heatmap]:
    """Of single ops, op × layer; of repeated and deleted blocks, first × last layer: the ones that have any field.

    All show the measure, KL divergence or bits per byte, that most candidates have.
    """
    singles: dict[tuple[int, int], Cell] = {}
    blocks: dict[str, dict[tuple[int, int], Cell]] = {"repeat": {}, "delete": {}}
    names = ("delete", "duplicate", "swap with the next")
    lines = (*board.best, *board.others)
    stage = max((KL, TEXT), key=lambda name: sum(name in line.record.results for line in lines))
    for line in lines:
        ops = line.record.entry.parsed.ops
        cell = _cell(board, line, stage)
        if cell is None or len(ops) != 1:
            continue
        match ops[0]:
            case Delete(spans=((first, last),)) if first == last:
                singles[0, first] = cell
            case Duplicate(layer=layer):
                singles[1, layer] = cell
            case Swap(pairs=((first, second),), only=None) if second == first + 1:
                singles[2, first] = cell
            case Delete(spans=((first, last),)):
                blocks["delete"][first, last] = cell
            case Repeat(span=(first, last)):
                blocks["repeat"][first, last] = cell
            case _:
                pass
    labels = tuple(map(str, range(board.setup["layer_count"])))
    what = "KL divergence" if stage == KL else "bits per byte more than the base"
    found = [Heatmap(f"One op, by layer: {what}", names, labels, singles)] if singles else []
    found += [
        Heatmap(f"{name.capitalize()} the block from row to column: {what}", labels, labels, cells)
        for name, cells in blocks.items()
        if cells
    ]
    return found


def _cell(board: Board, line: Line, stage: str) -> Cell | None:
    """The loss against the base in a stage, None for a candidate that was not measured in it."""
    base = board.base.record.results if board.base else {}
    if stage not in line.record.results or stage not in base:
        return None
    figure, unit = ("kl", "nats KL") if stage == KL else ("bits_per_byte", "bits per byte")
    loss = line.record.results[stage].figures[figure] - base[stage].figures[figure]
    return Cell(loss, f"{line.name}: {loss:+.4f} {unit} ({line.record.state})")


def _heat(found: Heatmap) -> str:
    """A heatmap as a table; green is better than the base, red worse, by the share of the largest loss (square root)."""
    most = max(abs(cell.loss) for cell in found.cells.values()) or 1.0
    head = "".join(f"<th>{label}</th>" for label in found.columns)
    rows = []
    for n, label in enumerate(found.rows):
        cells = "".join(_field(found.cells.get((n, column)), most) for column in range(len(found.columns)))
        rows.append(f"<tr><th>{_text(label)}</th>{cells}</tr>")
    return f'<h2>{_text(found.title)}</h2><table class="heat"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _field(cell: Cell | None, most: float) -> str:
    if cell is None:
        return "<td></td>"
    share = (abs(cell.loss) / most) ** 0.5
    target = BAD if cell.loss > 0 else GOOD
    mixed = [round(a + (b - a) * share) for a, b in zip(EVEN, target, strict=True)]
    return f'<td style="background:rgb({mixed[0]},{mixed[1]},{mixed[2]})" title="{_text(cell.title)}"></td>'


def _text(text: str) -> str:
    """Text for HTML, control characters escaped."""
    return "\n".join(html.escape(printable(line)) for line in text.split("\n"))
