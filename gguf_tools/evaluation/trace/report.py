"""A trace as text: the heatmap of layers × points, the first bad point with its cause, growth by layer, routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10

from gguf_tools.evaluation.trace.causes import Cause
from gguf_tools.evaluation.trace.compare import PointError
from gguf_tools.evaluation.trace.run import Trace
from gguf_tools.evaluation.trace.unseen import Unseen
from gguf_tools.sources.hub import shown_source
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table, View, text_table

WHOLE = View(None)
"""As wide as needed, no sentence broken."""
ROWS = 12
"""Most rows in a table of points."""
SHADES = "·░▒▓█"
"""Errors in tenths of their tolerances' logarithms: explained ones light, unexplained ones black."""
CLEAN = "every point is explained by rounding"
COLOURS = {"█": "red", "▓": "yellow", "▒": "yellow"}
"""Colours of the map in a terminal."""


def text_of(trace: Trace, view: View = WHOLE) -> str:
    """The whole report."""
    width = view.width
    parts = [
        heatmap(trace, width),
        growth(trace),
        _decode(trace, width),
        _routing(trace, width),
        budget(trace, width),
        summary(trace).text(view),
    ]
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True, repr=False)
class TraceReport(Shown):
    """The report, in every form: as text with the longest tables cut, as CSV with every point."""

    trace: Trace

    def as_text(self, view: View = WHOLE) -> str:
        return text_of(self.trace, view)

    def blocks(self) -> Sequence[Block]:
        """The heatmap, the tables of points, layers and the error budget, and the summary."""
        found = self.trace
        points = [
            (one.name, one.tensor, one.local.nmse, one.whole.nmse, one.tolerance, "bad" if one.bad else "explained")
            for one in found.points
        ]
        blocks: list[Block] = [Lines(heatmap(found), fixed=True), Table(_POINTS, points)]
        if found.budget:
            spent = [(one.name, one.type, one.kl, one.next_type, one.gain) for one in found.budget.tensors]
            blocks.append(Table(_BUDGET, spent))
        return [*blocks, summary(found)]


_POINTS = (
    Column("point", left=True, key=True),
    Column("tensor", left=True),
    Column("NMSE of this layer", "{:.1e}".format),
    Column("NMSE end to end", "{:.1e}".format),
    Column("tolerance", "{:.1e}".format),
    Column("verdict", left=True),
)
_BUDGET = (
    Column("tensor", left=True, key=True),
    Column("type", left=True),
    Column("KL alone", "{:.2e}".format),
    Column("next type", left=True),
    Column("KL off per further byte", "{:.1e}".format),
)


def columns(trace: Trace) -> list[str]:
    """The points within layers, in order of computation; those that only some layers have before what follows in these."""
    layers: dict[int, list[str]] = {}
    for point in trace.points:
        if point.layer is not None:
            layers.setdefault(point.layer, []).append(point.point)
    found: list[str] = []
    for names in layers.values():
        at = len(found)
        for name in reversed(names):
            if name in found:
                at = found.index(name)
            else:
                found.insert(at, name)
    return found


def severity(point: PointError) -> float:
    """How bad a point is: 0 at a thousandth of its tolerance or less, 1 at the tolerance, more beyond; infinite if not finite."""
    nmse, tolerance = point.local.nmse, point.tolerance
    if nmse <= 0.0:
        return 0.0
    if nmse == inf or tolerance <= 0.0:
        return inf
    return max(0.0, 1.0 + log10(nmse / tolerance) / 3.0)


def shade(point: PointError | None) -> str:
    """One character for a point: blank if it was not compared, a full block if it is bad."""
    if point is None:
        return " "
    if point.bad:
        return SHADES[-1]
    return SHADES[min(int(severity(point) * (len(SHADES) - 1)), len(SHADES) - 2)]


def heatmap(trace: Trace, width: int | None = None) -> str:
    """Points × layers: a row a point, a column a layer, in several maps if they are too wide; empty if no layer has points."""
    names = columns(trace)
    if not names:
        return ""
    cells = {(point.layer, point.point): point for point in trace.points}
    layers = sorted({point.layer for point in trace.points if point.layer is not None})
    wide = max(map(len, names))
    most = len(layers) if width is None else max(10, (width - wide - 11) // 10 * 10)
    maps = [_map(cells, names, layers[start : start + most], wide) for start in range(0, len(layers), most)]
    legend = f"{SHADES[0]} far below the tolerance … {SHADES[-2]} near it, {SHADES[-1]} beyond; the largest NMSE on the right"
    return "\n\n".join(maps) + f"\n{legend}"


def _map(
    cells: Mapping[tuple[int | None, str], PointError], names: Sequence[str], layers: Sequence[int], wide: int
) -> str:
    tens = "".join(str(n // 10 % 10) if n % 10 == 0 and n else " " for n in layers)
    lines = [f"{'local error':<{wide}}  {tens}".rstrip(), f"{'':<{wide}}  {''.join(str(n % 10) for n in layers)}"]
    for name in names:
        row = "".join(shade(cells.get((n, name))) for n in layers)
        worst = max((cells[n, name].local.nmse for n in layers if (n, name) in cells), default=0.0)
        lines.append(f"{name:<{wide}}  {row}  {worst:.1e}")
    return "\n".join(lines)


def growth(trace: Trace) -> str:
    """Each layer's output: the error from the tokens on, the layer's own part of it, and what rounding predicts."""
    rows = [
        (
            str(one.layer),
            f"{one.whole.nmse:.1e}",
            f"{one.local.nmse:.1e}",
            f"{one.predicted:.1e}",
            f"{one.tolerance:.1e}",
        )
        for one in trace.layers
    ]
    if not rows:
        return ""
    if len(rows) > 2 * ROWS:
        rows = [*rows[:ROWS], ("…", "", "", "", ""), *rows[-ROWS:]]
    return text_table(("layer", "end to end", "this layer", "predicted", "tolerance"), rows, ">")


def budget(trace: Trace, width: int | None = None) -> str:
    """Which tensors' quantization the divergence comes from, with a bar for each."""
    if trace.budget is None:
        return ""
    total = sum(one.kl for one in trace.budget.tensors) or 1.0
    rows = [
        (
            one.name,
            one.type,
            f"{one.kl:.2e}",
            "━" * round(20 * one.kl / total),
            f"{1000 * one.gain:.1e} by {one.next_type}" if one.next_type else "",
        )
        for one in trace.budget.tensors[:ROWS]
    ]
    more = len(trace.budget.tensors) - len(rows)
    rest = sum(one.kl for one in trace.budget.tensors[ROWS:])
    head = ("error budget", "type", "KL alone", "share", "KL off per further kB")
    lines = [text_table(head, rows, "<<><<", width=width)]
    lines += [f"… and {more} more, KL {rest:.2e}"] if more > 0 else []
    lines.append(f"sum of all alone {total:.2e}, all together {trace.budget.together:.2e} nats per token")
    return "\n".join(lines)


def _decode(trace: Trace, width: int | None) -> str:
    """The points that differ most between reading at once and token by token."""
    if trace.decode is None:
        return ""
    rows = [
        (one.name, f"{one.local.nmse:.1e}", f"{one.tolerance:.1e}", "differs" if one.bad else "agrees")
        for one in trace.decode[:4]
    ]
    return text_table(("all at once against token by token", "NMSE", "tolerance", ""), rows, "<>", width=width)


def _routing(trace: Trace, width: int | None) -> str:
    """Agreement and load by layer, and the tokens of which the experts differ."""
    lines = []
    for one in trace.routing:
        lines.append(
            f"layer {one.layer}: {one.agreement:.0%} of tokens to the same experts; load {_pairs(one.load(one.model))}"
        )
        marks = "".join("·" if set(a) == set(b) else "█" for a, b in zip(one.reference, one.model, strict=True))
        most = (width or len(marks) + 2) - 2
        lines += [f"  {marks[start : start + most]}" for start in range(0, len(marks), most)]
        differing = [
            f"  token {t}: {list(b)}, the reference {list(a)}"
            for t, (a, b) in enumerate(zip(one.reference, one.model, strict=True))
            if set(a) != set(b)
        ]
        lines += differing[:4]
    return "\n".join(lines)


def _pairs(load: Sequence[int]) -> str:
    shown = sorted(enumerate(load), key=lambda pair: -pair[1])[:8]
    return ", ".join(f"{expert}: {count}" for expert, count in shown) + (" …" if len(load) > 8 else "")


def summary(trace: Trace) -> Facts:
    """What was compared, and the first bad point with its cause, or that there is none."""
    unnamed = f"; without a name: {', '.join(trace.unnamed)}" if trace.unnamed else ""
    facts = [
        ("file", f"{trace.path} ({trace.architecture}, {trace.types})"),
        ("reference", shown_source(trace.reference)),
        ("tokens", str(len(trace.tokens))),
        ("points", f"{len(trace.points)} compared{unnamed}"),
        *(("note", note) for note in trace.notes if note != f"compared with {trace.reference}"),
    ]
    if trace.logits:
        facts.append(("logits", f"NMSE {trace.logits.whole.nmse:.2e} end to end"))
    blind = max((point.tolerance for point in trace.points if point.layer is not None), default=0.0)
    if blind > 0.0:
        text = f"faults that change a point by an NMSE below {blind:.0e} locally; tinyq diff compares the bytes"
        facts.append(("blind to", text))
    first = trace.first
    if trace.unseen:
        facts += [("unseen", f"{one.text} ({_place(one)})") for one in trace.unseen[:ROWS]]
        more = len(trace.unseen) - ROWS
        facts += [("", f"… and {more} more")] if more > 0 else []
        text = f"{CLEAN}, but the file differs where this text does not show it"
        return Facts([*facts, ("verdict", text)], width=10)
    if first is None:
        return Facts([*facts, ("verdict", CLEAN)], width=10)
    local = first.local
    facts += [
        (
            "first bad",
            f"{first.name}: {first.tensor}, NMSE {local.nmse:.2e}, at most {first.tolerance:.0e} is explained",
        ),
        ("", f"worst at token {local.position}, channel {local.channel}: off by {local.largest:.3g}"),
        ("", f"cosine {local.cosine:.9f}"),
        *(_cause(trace.cause, first.own) if trace.cause else []),
        ("verdict", f"{first.name} is not what the reference computes"),
    ]
    return Facts(facts, width=10)


def _place(one: Unseen) -> str:
    return one.point if one.layer is None else f"layer {one.layer} {one.point}"


def _cause(cause: Cause, own: float | None) -> list[tuple[str, str]]:
    """The tensors that feed the first bad point, where the fault is, and which of those that were tried it is."""
    where = {
        "file": "the file",
        "engine": "llama.cpp, or how tinyq reads the file",
        "unknown": "unknown: the file's metadata contradict its tensors",
    }[cause.where]
    measured = "" if own is None else f" (NMSE {own:.1e} with the file's own weights and metadata)"
    text = "none of the faults that were tried gives what llama.cpp computed"
    if cause.text:
        text = cause.text if cause.nmse is None else f"{cause.text} (tried: leaves an NMSE of {cause.nmse:.1e})"
    return [
        *([("fed by", ", ".join(cause.tensors))] if cause.tensors else []),
        ("fault in", f"{where}{measured}"),
        ("cause", text),
    ]
