"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def human_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves a number above 1: 512 B, 4.4 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_count(count: float) -> str:
    """A number of weights: 950, 2.1 M, 1.7 B."""
    for unit in ("", " K", " M", " B"):
        if count < 1000 or unit == " B":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>") -> str:
    """Aligned columns under a rule; `align` has < or > for each column, its last one standing for all that follow."""
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
    """Text from a file's metadata in one line, without what would end a table, a heading or a code span."""
    return " ".join(text.split()).replace("`", "'")


def shortened(text: str, limit: int = 80) -> str:
    """Text for an error or a table, `limit` characters at most, without the halves of characters that JSON can spell."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
