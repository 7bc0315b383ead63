"""Reads text files with one entry per line, plain or JSON; every error names its line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.formats import text_file
from gguf_tools.text import shortened

_LONGEST = 120
"""Maximum number of characters of a wrong value in an error message."""


def shown(value: object) -> str:
    """A wrong value for an error message: its repr, shortened to `_LONGEST` characters."""
    return shortened(repr(value), _LONGEST)


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each with its origin ("file:3"); raises InputError that names it."""
    data = text_file.read_bytes(path, text_file.Kind.PROMPTS, InputError)
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
        row = text_file.load_json(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"{origin}: is not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise InputError(f"{origin}: is a {type(row).__name__}; expected an object such as {example}")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{origin}: has an escaped lone surrogate; expected valid Unicode") from error
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise InputError(f"{origin}: key {shown(unknown[0])} is not known; expected {', '.join(known)}")
    return row


def read_text(path: Path) -> str:
    """A UTF-8 file's text; raises InputError that names it."""
    return text_file.read_text(path, text_file.Kind.TEXT, InputError)
