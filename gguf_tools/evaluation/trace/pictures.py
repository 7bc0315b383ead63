"""A trace as a picture (PNG) and as one self-contained HTML page."""

from __future__ import annotations

import html
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from gguf_tools.evaluation.trace.compare import PointError
from gguf_tools.evaluation.trace.report import CLEAN, budget, columns, growth, severity, summary
from gguf_tools.evaluation.trace.run import Trace
from gguf_tools.text import for_terminal

CELL = 14
"""Pixels of a cell's side."""
BAD, BLANK = (178, 24, 43), (246, 246, 246)
GOOD, NEAR = (229, 240, 232), (244, 196, 96)


def colour(point: PointError | None) -> tuple[int, int, int]:
    """Light green for errors far below their tolerance, through yellow, to red beyond; grey where nothing was compared."""
    if point is None:
        return BLANK
    if point.bad:
        return BAD
    share = min(severity(point), 1.0)
    mixed = [round(a + (b - a) * share) for a, b in zip(GOOD, NEAR, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _grid(trace: Trace) -> tuple[list[str], list[int], dict[tuple[int | None, str], PointError]]:
    layers = sorted({point.layer for point in trace.points if point.layer is not None})
    return columns(trace), layers, {(point.layer, point.point): point for point in trace.points}


def as_png(trace: Trace) -> bytes:
    """The errors of points (rows) × layers (columns), `CELL` pixels each, as a PNG (ISO/IEC 15948) of 8-bit RGB."""
    names, layers, cells = _grid(trace)
    pixels = np.full((max(len(names), 1), max(len(layers), 1), 3), BLANK, np.uint8)
    for row, name in enumerate(names):
        for column, n in enumerate(layers):
            pixels[row, column] = colour(cells.get((n, name)))
    large = pixels.repeat(CELL, axis=0).repeat(CELL, axis=1)
    large[CELL - 1 :: CELL], large[:, CELL - 1 :: CELL] = 255, 255
    return encode_png(large)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of pixels (height, width, 3), rows unfiltered."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


STYLE = """body{font:14px system-ui,sans-serif;margin:2em auto;padding:0 1em;max-width:80em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}.map,pre{overflow-x:auto}
.verdict{padding:.6em 1em;border-left:6px solid rgb(90,150,100);background:#f3f7f4}
.bad{border-color:rgb(178,24,43);background:#fbf0f1}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1.2em}dt{color:#666}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse}th{font-weight:400;text-align:left;padding:0 .5em}th.n{text-align:center;padding:0;color:#666}
td.c{min-width:16px;height:16px;border:1px solid #fff}td.w{padding-left:.8em;font-variant-numeric:tabular-nums;color:#666}
.key span{display:inline-block;width:14px;height:14px;margin:0 .4em 0 1em;vertical-align:-2px}
@media(max-width:500px){body{margin:1em auto}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5em}}"""
EVERY = 30
"""Most layers that each have their number above the map; of more, every fifth has."""


def as_html(trace: Trace) -> str:
    """The verdict, the summary, the heatmap with each error on hover, and the growth by layer; text from files is escaped."""
    names, layers, cells = _grid(trace)
    title = _safe(f"tinyq trace {trace.path.name}")
    facts = "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(text)}</dd>" for name, text in summary(trace).rows)
    head = "".join(f'<th class="n">{n if len(layers) <= EVERY or n % 5 == 0 else ""}</th>' for n in layers)
    rows = []
    for name in names:
        row = "".join(_cell(cells.get((n, name))) for n in layers)
        worst = max((cells[n, name].local.nmse for n in layers if (n, name) in cells), default=0.0)
        rows.append(f'<tr><th>{html.escape(name)}</th>{row}<td class="w">{worst:.1e}</td></tr>')
    sections = [
        f'<p class="verdict{" bad" if trace.verdict else ""}">{_safe(trace.verdict or CLEAN)}</p><dl>{facts}</dl>',
        f'<h2>Error of each point, layer by layer</h2><p class="key">{_key()}</p>'
        f'<div class="map"><table><tr><th>layer</th>{head}<th>largest NMSE</th></tr>{"".join(rows)}</table></div>',
    ]
    tables = (("Output of the layers", growth(trace)), ("Error budget", budget(trace)))
    sections += [f"<h2>{name}</h2><pre>{_safe(text)}</pre>" for name, text in tables if text]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def _safe(text: str) -> str:
    return html.escape(for_terminal(text))


def _key() -> str:
    """What the colours mean."""
    kinds = ((GOOD, "far below its tolerance"), (NEAR, "near it"), (BAD, "beyond it"), (BLANK, "not compared"))
    return "".join(f'<span style="background:rgb{colour}"></span>{text}' for colour, text in kinds)


def _cell(point: PointError | None) -> str:
    red, green, blue = colour(point)
    title = ""
    if point is not None:
        title = f"{point.name}: NMSE {point.local.nmse:.2e} (tolerance {point.tolerance:.0e}, end to end {point.whole.nmse:.2e})"
    return f'<td class="c" style="background:rgb({red},{green},{blue})" title="{html.escape(title)}"></td>'
