"""The blocks of a report (tables, facts, lines), rendered for a width as text, or as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from gguf_tools.text import (
    cut_middle,
    cut_start,
    distinct,
    for_markdown,
    padded,
    printable,
    shortened,
    shown_width,
    wrapped,
)

WIDTH = 80
"""Columns of a terminal whose width is not known, and of a pipe."""
NARROWEST = 20
"""Fewest columns that a report is laid out for."""
LONGEST_CELL = 400
"""Most characters of a table cell."""
MISSING = "–"
"""A value that was not measured or does not apply."""
STACKED = 20
"""Most rows of a table whose further columns follow in a second table; of longer ones they are left out."""
GAP = "  "


@dataclass(frozen=True)
class View:
    """The columns that a report has: `width` those of its tables, `prose` those of its sentences; None is any number."""

    width: int | None = WIDTH
    prose: int | None = None


UNKNOWN = View()
"""The view where the width is not known."""
WIDEST = View(None)


def terminal_view(*, wide: bool = False) -> View:
    """The view for stdout: as wide as the terminal or the variable COLUMNS say, otherwise `WIDTH`; `wide` has no limit.

    Sentences are broken only for a terminal or a COLUMNS that is set: in a file, each stays on its line.
    """
    if wide:
        return WIDEST
    width = max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST)
    return View(width, width if _is_terminal() or os.environ.get("COLUMNS", "").isdecimal() else None)


def _is_terminal() -> bool:
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False


class Block(ABC):
    """A section of a report; untrusted text is escaped in every form."""

    @abstractmethod
    def text(self, view: View = UNKNOWN) -> str:
        """The block for a terminal, without a final line break."""

    @abstractmethod
    def html(self) -> str:
        """The block as an HTML element."""

    @abstractmethod
    def markdown(self) -> str:
        """The block as Markdown, without a final line break."""

    def csv(self) -> str:
        """The block as CSV; empty if it is not a table."""
        return ""


@dataclass(frozen=True)
class Facts(Block):
    """Lines with a label and a value; labels are padded to `width` characters."""

    rows: Sequence[tuple[str, str]]
    width: int = 9

    def text(self, view: View = UNKNOWN) -> str:
        return "\n".join(self._line(label, value, view.prose) for label, value in self.rows)

    def _line(self, label: str, value: str, prose: int | None) -> str:
        start = f"{_plain(label):<{self.width}} "
        return f"{start}{_plain(value)}" if prose is None else hanging(start, _plain(value), prose)

    def html(self) -> str:
        rows = "".join(f"<tr>{_cell('th', label)}{_cell('td', value)}</tr>" for label, value in self.rows)
        return f"<table>{rows}</table>"

    def markdown(self) -> str:
        return "\n".join(
            f"- {for_markdown(_plain(label))}: {for_markdown(_plain(value))}" for label, value in self.rows
        )


@dataclass(frozen=True)
class Lines(Block):
    """Lines of prose, which are broken at a terminal's width, or `fixed` ones, such as a drawing, which are not."""

    content: str = ""
    fixed: bool = False

    def text(self, view: View = UNKNOWN) -> str:
        lines = map(printable, self.content.split("\n"))
        return "\n".join(line if self.fixed or view.prose is None else hanging("", line, view.prose) for line in lines)

    def html(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>" if self.content else ""

    def markdown(self) -> str:
        text = self.text()
        return f"```\n{text}\n```" if self.fixed and text else "  \n".join(map(for_markdown, text.split("\n")))


def hanging(start: str, text: str, width: int) -> str:
    """`start` and a text, whose further lines are indented by the width of `start`, or by the text's own indent."""
    own = len(text) - len(text.lstrip())
    indent = " " * (len(start) or own)
    lines = wrapped(text.strip(), max(width - len(indent), NARROWEST), whole=True) or [""]
    return "\n".join([f"{start or indent}{lines[0]}".rstrip(), *(f"{indent}{line}" for line in lines[1:])])


@dataclass(frozen=True)
class Column:
    """A column of a `Table`: its heading, how its values are written, and what happens if the table is too wide.

    `rank` is the order of importance: columns of the largest rank are the first to move to a second table. A `key` names the
    rows, and stands in each. Texts may be cut in the middle (with `end`, at their start) to `least` columns (0: never), or with
    `wrap` continue on further lines.
    """

    head: str
    show: Callable[[Any], str] = str
    _: KW_ONLY
    left: bool = False
    rank: int = 0
    key: bool = False
    least: int = 0
    end: bool = False
    wrap: bool = False


@dataclass(frozen=True)
class Table(Block):
    """A table; a value of None is one that does not apply, and a column of nothing else is not shown.

    `most` is the number of rows shown as text; CSV has all rows, and the values as they are.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    _: KW_ONLY
    most: int | None = None
    missing: str = MISSING

    def text(self, view: View = UNKNOWN) -> str:
        columns, rows = self._shown(self.rows[: self.most])
        parts = _parts(columns, rows, view.width)
        texts = [
            _laid_out([columns[n] for n in part], [[row[n] for n in part] for row in rows], view) for part in parts
        ]
        more = len(self.rows) - len(rows)
        if len(parts) > 1 and len(rows) > STACKED:
            left_out = ", ".join(columns[n].head for part in parts[1:] for n in part if not columns[n].key)
            texts = [f"{texts[0]}\nnot shown for want of width: {left_out} (--wide shows all columns)"]
        return "\n\n".join(texts) + (f"\n… and {more} more (--json lists all)" if more else "")

    def html(self) -> str:
        columns, rows = self._shown(self.rows)
        head = "".join(_cell("th", column.head, left=column.left) for column in columns)
        body = ("".join(_cell("td", cell, left=c.left) for cell, c in zip(row, columns, strict=True)) for row in rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"

    def markdown(self) -> str:
        columns, rows = self._shown(self.rows)
        cells = [[for_markdown(cell) for cell in row] for row in rows]
        return markdown_table([for_markdown(column.head) for column in columns], cells, _sides(columns)).rstrip("\n")

    def csv(self) -> str:
        rows = [[_bare(value, column) for value, column in zip(row, self.columns, strict=True)] for row in self.rows]
        return csv_text([[printable(column.head) for column in self.columns], *rows])

    def _shown(self, rows: Sequence[Sequence[Any]]) -> tuple[list[Column], list[list[str]]]:
        """The columns with a value in any row of the whole table, and these rows' cells in them, as text."""
        kept = [
            n
            for n, column in enumerate(self.columns)
            if column.key or not self.rows or any(row[n] not in (None, "") for row in self.rows)
        ]
        cells = [
            [self.missing if row[n] is None else _plain(self.columns[n].show(row[n])) for n in kept] for row in rows
        ]
        return [replace(self.columns[n], head=_plain(self.columns[n].head)) for n in kept], cells


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV (RFC 4180, with line feeds)."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>") -> str:
    """A Markdown table; `align` has < (left) or > (right) for each column, the last one applies to all further columns."""
    sides = align.ljust(len(head), align[-1])
    rule = [":---" if side == "<" else "---:" for side in sides]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>", *, width: int | None = None
) -> str:
    """A table of texts, all columns of one importance; `align` as in `markdown_table`."""
    sides = align.ljust(len(head), align[-1])
    columns = [
        Column(name, left=side == "<", key=not n) for n, (name, side) in enumerate(zip(head, sides, strict=True))
    ]
    return Table(columns, rows).text(View(width))


def _parts(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """The columns of the table, or of the tables into which it is divided to fit; each in the columns' own order."""
    keys = [n for n, column in enumerate(columns) if column.key]
    left = sorted((n for n, column in enumerate(columns) if not column.key), key=lambda n: columns[n].rank)
    parts = []
    while left:
        taken = 1
        while taken < len(left) and _fits(columns, rows, [*keys, *left[: taken + 1]], width):
            taken += 1
        parts.append(sorted([*keys, *left[:taken]]))
        left = left[taken:]
    return parts or [keys]


def _fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], which: Sequence[int], width: int | None) -> bool:
    return width is None or _total([_least(columns[n], [row[n] for row in rows]) for n in which]) <= width


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _least(column: Column, cells: Sequence[str]) -> int:
    """The columns that a column needs at least: its heading broken at spaces, and its cells cut or wrapped."""
    natural = max(map(shown_width, cells), default=0)
    return max(min(natural, column.least) if column.least else natural, *map(shown_width, column.head.split() or [""]))


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The width of each column: that of its longest cell if all fit, otherwise at least `_least`."""
    cells = [[row[n] for row in rows] for n in range(len(columns))]
    natural = [max([shown_width(column.head), *map(shown_width, cells[n])]) for n, column in enumerate(columns)]
    if width is None or _total(natural) <= width:
        return natural
    found = [_least(column, cells[n]) for n, column in enumerate(columns)]
    wanted = [max([found[n], *map(shown_width, cells[n])]) for n in range(len(columns))]
    spare = width - _total(found)
    while spare > 0 and (short := [n for n in range(len(columns)) if found[n] < wanted[n]]):
        narrow = min(short, key=lambda n: found[n])
        found[narrow] += 1
        spare -= 1
    # At widths for which even one column is too wide, texts give way.
    while spare < 0 and (long := [n for n, column in enumerate(columns) if column.left and found[n] > 8]):
        found[max(long, key=lambda n: found[n])] -= 1
        spare += 1
    return found


def _laid_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], view: View) -> str:
    """The table as lines: headings, a rule, and each row, on several lines where texts or headings are broken."""
    widths = _widths(columns, rows, view.width)
    heads = [wrapped(column.head, width) for column, width in zip(columns, widths, strict=True)]
    deep = max(map(len, heads), default=0)
    lines = list(_row([[""] * (deep - len(head)) + head for head in heads], widths, columns))
    lines.append(GAP.join("─" * width for width in widths))
    texts = [_fitted(column, [row[n] for row in rows], widths[n]) for n, column in enumerate(columns)]
    for row in zip(*texts, strict=True):
        lines += _row(row, widths, columns)
    return "\n".join(lines)


def _fitted(column: Column, cells: Sequence[str], width: int) -> list[list[str]]:
    """Each cell as lines of at most `width` columns."""
    if column.wrap:
        return [wrapped(cell, width) or [""] for cell in cells]
    if not column.left or all(shown_width(cell) <= width for cell in cells):
        return [[cell] for cell in cells]
    if column.end:
        return [[cut_start(cell, width)] for cell in cells]
    cut = distinct(cells, width) if column.key else [cut_middle(cell, width) for cell in cells]
    alike = column.key and len(set(cut)) < len(set(cells))
    return [wrapped(cell, width) for cell in cells] if alike else [[cell] for cell in cut]


def _row(cells: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[Column]) -> Iterator[str]:
    for n in range(max(map(len, cells), default=0)):
        texts = [cell[n] if n < len(cell) else "" for cell in cells]
        aligned = (padded(text, width, left=c.left) for text, width, c in zip(texts, widths, columns, strict=True))
        yield GAP.join(aligned).rstrip()


def _sides(columns: Sequence[Column]) -> str:
    return "".join("<" if column.left else ">" for column in columns) or "<"


def _plain(text: str) -> str:
    return shortened(printable(text), LONGEST_CELL)


def _bare(value: Any, column: Column) -> str | int | float:
    """A value for CSV: numbers as they are, others as text."""
    if value is None:
        return ""
    return value if isinstance(value, int | float) else printable(column.show(value))


def _cell(tag: str, text: str, *, left: bool = True) -> str:
    return f'<{tag} style="text-align:{"left" if left else "right"}">{html.escape(_plain(text))}</{tag}>'


class Shown(ABC):
    """A result with a display form: `str` and `repr` give the text that the command prints, notebooks show HTML."""

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The report's blocks, top to bottom."""

    def as_text(self, view: View = UNKNOWN) -> str:
        """The report as text of the view's width."""
        return "\n".join(block.text(view) for block in self.blocks())

    def as_markdown(self) -> str:
        """The report as Markdown: what --format markdown prints."""
        texts = (block.markdown() for block in self.blocks())
        return "\n\n".join(text for text in texts if text) + "\n"

    def as_csv(self) -> str:
        """The report's tables as CSV, with an empty line between two: what --format csv prints."""
        return "\n".join(text for block in self.blocks() if (text := block.csv()))

    def __str__(self) -> str:
        return self.as_text(terminal_view())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<div>{''.join(block.html() for block in self.blocks())}</div>"


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """A report of blocks that are made already."""

    parts: Sequence[Block]

    def blocks(self) -> Sequence[Block]:
        return self.parts
