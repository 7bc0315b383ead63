"""Reads text files with one entry per line, plain or JSON; every error names its line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.text import shortened

_LONGEST = 120
"""Maximum number of characters of a wrong value in an error message."""


def shown(value: object) -> str:
    """A wrong value for an error message: its repr, shortened to `_LONGEST` characters."""
    return shortened(repr(value), _LONGEST)


def read_lines(path: Path) -> list[tuple[str, str]]:
    """(origin such as "file:3", line) for each non-blank line of a UTF-8 file; raises InputError that names the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    found: list[tuple[str, str]] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        origin = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{origin}: is not UTF-8 (byte {error.start + 1} of the line)") from error
        if line:
            found.append((origin, line))
    return found


def json_object(line: str, origin: str, known: Collection[str], example: str) -> dict[str, Any]:
    """The JSON object on a line, whose keys must be among `known`; raises InputError that names the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"{origin}: is not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise InputError(f"{origin}: is a {type(row).__name__}; an object such as {example} is expected")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{origin}: has an escape that is half a character (a lone surrogate)") from error
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise InputError(f"{origin}: key {shown(unknown[0])} is not known; {', '.join(known)} are")
    return row


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; raises InputError that names the file."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (at byte {error.start + 1}); give a text file") from error
