"""Formatting numbers, tables and untrusted text for terminals, Markdown and notebooks."""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor or change its state, reorder text, or cannot be encoded."""

LONGEST_LINE = 2000
"""Most characters of a line on a terminal; a path alone may have more."""
LONGEST_CELL = 400
"""Most characters of a table cell."""


def human_bytes(count: float) -> str:
    """A number of bytes in the largest decimal unit in which it is at least 1: 512 B, 4.4 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_count(count: float) -> str:
    """A number of parameters: 950, 2.1 M, 1.7 B."""
    for unit in ("", " K", " M", " B"):
        if count < 1000 or unit == " B":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"


def duration(seconds: float) -> str:
    """A time for people: 12 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>") -> str:
    """A table with aligned columns and a rule under its head.

    `align` has < (left) or > (right) for each column; the last one applies to all further columns.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    sides = align.ljust(len(head), align[-1])

    def line(row: Sequence[str]) -> str:
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()

    return "\n".join([line(head), "  ".join("─" * width for width in widths), *map(line, rows)])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>") -> str:
    """A Markdown table; `align` as in `table`."""
    sides = align.ljust(len(head), align[-1])
    rule = [":---" if side == "<" else "---:" for side in sides]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def one_line(text: str) -> str:
    """Untrusted text as one line without backticks, for a Markdown heading, table or code span."""
    return " ".join(text.split()).replace("`", "'")


def shortened(text: str, limit: int = 80) -> str:
    """Text for an error or a table, cut to `limit` characters, with lone surrogates escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """Untrusted text with control characters (line breaks too) and lone surrogates escaped."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def sentence(text: str, limit: int = LONGEST_LINE) -> str:
    """An error message for a terminal: one line, escaped; shortened in the middle, because its end says what to do."""
    line = printable(" ".join(text.split()))
    if len(line) <= limit:
        return line
    end = limit // 4
    return f"{line[: limit - end - 3]} … {line[len(line) - end :]}"


def for_terminal(text: str, limit: int | None = LONGEST_LINE) -> str:
    """A report for a terminal: each line escaped and, unless `limit` is None, cut to it; line breaks are kept."""
    lines = (printable(line) for line in text.split("\n"))
    return "\n".join(line if limit is None or len(line) <= limit else line[: limit - 1] + "…" for line in lines)


def json_escapes(text: str) -> str:
    r"""JSON text with terminal control characters replaced by \u escapes; line breaks are kept."""
    return _CONTROL.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def as_json(value: Any) -> Any:
    """A report as `json.loads` would return it: tuples as lists, sets as sorted lists, keys as strings."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


class Block(ABC):
    """A section of a report, as text and as HTML; untrusted text is escaped in both."""

    @abstractmethod
    def text(self) -> str:
        """The block for a terminal, without a final line break."""

    @abstractmethod
    def html(self) -> str:
        """The block as an HTML element."""


@dataclass(frozen=True)
class Facts(Block):
    """Lines with a label and a value; labels are padded to `width` characters."""

    rows: Sequence[tuple[str, str]]
    width: int = 9

    def text(self) -> str:
        return "\n".join(f"{_plain(label):<{self.width}} {_plain(value)}" for label, value in self.rows)

    def html(self) -> str:
        rows = "".join(f"<tr>{_cell('th', label)}{_cell('td', value)}</tr>" for label, value in self.rows)
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class Grid(Block):
    """A table; `align` as in `table`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = "<>"

    def text(self) -> str:
        return table([*map(_plain, self.head)], [[*map(_plain, row)] for row in self.rows], self.align)

    def html(self) -> str:
        sides = self.align.ljust(len(self.head), self.align[-1])
        head = "".join(_cell("th", cell, side) for cell, side in zip(self.head, sides, strict=True))
        rows = ("".join(_cell("td", cell, side) for cell, side in zip(row, sides, strict=True)) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


@dataclass(frozen=True)
class Lines(Block):
    """Preformatted lines, such as a sentence or a drawing."""

    content: str = ""

    def text(self) -> str:
        return "\n".join(map(printable, self.content.split("\n")))

    def html(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>" if self.content else ""


def _plain(text: str) -> str:
    return shortened(printable(text), LONGEST_CELL)


def _cell(tag: str, text: str, side: str = "<") -> str:
    align = "left" if side == "<" else "right"
    return f'<{tag} style="text-align:{align}">{html.escape(_plain(text))}</{tag}>'


class Shown(ABC):
    """A result with a display form: `str` and `repr` give the text that the command prints, notebooks show HTML."""

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The report's blocks, top to bottom."""

    def __str__(self) -> str:
        return "\n".join(block.text() for block in self.blocks())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<div>{''.join(block.html() for block in self.blocks())}</div>"
