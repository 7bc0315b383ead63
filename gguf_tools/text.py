"""Formatting numbers and untrusted text for terminals and Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor or change its state, reorder text, or cannot be encoded."""

LONGEST_LINE = 2000
"""Most characters of a line on a terminal; a path alone may have more."""


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


def one_line(text: str) -> str:
    """Untrusted text as one line without backticks, for a Markdown heading, table or code span."""
    return " ".join(text.split()).replace("`", "'")


def shortened(text: str, limit: int = 80) -> str:
    """Text for an error or a table, cut to `limit` characters, with lone surrogates escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an exception's text, cut to `limit` characters, or its class where it has no text."""
    lines = str(error).strip().splitlines()
    return shortened(lines[0], limit) if lines else type(error).__name__


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


def expected(word: str, known: Iterable[str], listed: str = "expected one of") -> str:
    """What was probably meant by an unknown word, for the end of an error: the similar known words, else all of them."""
    names = {name.lower(): name for name in known}
    close = [names[name] for name in get_close_matches(word.lower(), names, n=3)]
    return f"did you mean {' or '.join(close)}?" if close else f"{listed} {', '.join(names.values())}"


def for_markdown(text: str) -> str:
    """Untrusted text on one line, escaped so that Markdown sees no HTML, links, images or code."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"[\\<\[\]]", r"\\\g<0>", one_line(visible))


def shown_width(text: str) -> int:
    """The columns that a text takes on a terminal: two for wide characters, none for combining ones (Unicode Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, *, left: bool = True) -> str:
    """The text with spaces up to `width` columns, after it or, unless `left`, before it."""
    spaces = " " * (width - shown_width(text))
    return text + spaces if left else spaces + text


def cut_middle(text: str, width: int) -> str:
    """The text in at most `width` columns: its start and its end, which tells types and file names apart."""
    if shown_width(text) <= width:
        return text
    end = _taken(text[::-1], (width - 1) // 2)[::-1]
    return f"{_taken(text, width - 1 - shown_width(end))}…{end}"


def cut_start(text: str, width: int) -> str:
    """The text in at most `width` columns: its end, which tells tensors of one layer apart."""
    return text if shown_width(text) <= width else f"…{_taken(text[::-1], width - 1)[::-1]}"


def distinct(texts: Sequence[str], width: int) -> list[str]:
    """The texts, each in at most `width` columns; those that `cut_middle` would make equal keep what differs, if it fits."""
    cut = [cut_middle(text, width) for text in texts]
    if len(set(cut)) == len(set(texts)):
        return cut
    start = _alike(texts)
    end = _alike([text[start:][::-1] for text in texts])
    spare = max(width - 2 - max(shown_width(text[start : len(text) - end]) for text in texts), 0)
    start, end = max(start - spare // 2, 0), max(end - spare // 2, 0)
    return [f"…{cut_middle(text[start : len(text) - end], width - 2)}…" for text in texts]


def _alike(texts: Sequence[str]) -> int:
    """The number of characters with which all texts start."""
    first, last = min(texts), max(texts)
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def wrapped(text: str, width: int, *, whole: bool = False) -> list[str]:
    """The text as lines of at most `width` columns, broken at spaces, and unless `whole` within words that are longer."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and shown_width(joined) <= width:
            lines[-1] = joined
            continue
        while not whole and shown_width(word) > width:
            lines.append(_taken(word, width) or word[0])
            word = word[len(lines[-1]) :]
        lines += [word] if word else []
    return lines


def _taken(text: str, width: int) -> str:
    """As much of the text's start as `width` columns hold."""
    for n, character in enumerate(text):
        width -= _columns(character)
        if width < 0:
            return text[:n]
    return text
