"""A trace as a picture (PNG) and as one self-contained HTML page."""

from __future__ import annotations

import html
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from gguf_tools.evaluation.trace.compare import PointError
from gguf_tools.evaluation.trace.report import WHOLE, budget, columns, growth, severity, summary
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


STYLE = """body{font:14px system-ui,sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse}
th{font-weight:400;text-align:left;padding:0 .5em}td{width:16px;height:16px;border:1px solid #fff}pre{overflow:auto}"""


def as_html(trace: Trace) -> str:
    """The summary, the heatmap with each error on hover, and the growth by layer; text from files is escaped."""
    names, layers, cells = _grid(trace)
    rows = []
    for name in names:
        row = "".join(_cell(cells.get((n, name))) for n in layers)
        rows.append(f"<tr><th>{html.escape(name)}</th>{row}</tr>")
    head = "".join(f"<th>{n if n % 5 == 0 else ''}</th>" for n in layers)
    title = html.escape(f"tinyq trace {trace.path.name}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><pre>{html.escape(for_terminal(summary(trace).text(WHOLE)))}</pre>"
        f"<table><tr><th>layer</th>{head}</tr>{''.join(rows)}</table>"
        f"<pre>{html.escape(growth(trace))}</pre><pre>{html.escape(for_terminal(budget(trace)))}</pre></body></html>\n"
    )


def _cell(point: PointError | None) -> str:
    red, green, blue = colour(point)
    title = ""
    if point is not None:
        title = f"{point.name}: NMSE {point.local.nmse:.2e} (tolerance {point.tolerance:.0e}, end to end {point.whole.nmse:.2e})"
    return f'<td style="background:rgb({red},{green},{blue})" title="{html.escape(title)}"></td>'
