"""Bounded reading of untrusted text files: configs, tokenizers, templates, model cards, recipes, prompts.

Such a path may be a pipe without a writer, an endless device, or a file larger than memory; each is refused with a one-line
error.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import stat
import sys
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.opened import note_opened
from gguf_tools.text import shortened

PIECE = 1 << 16
"""Bytes that are read at a time from a file that is longer than the system says."""


class Kind(Enum):
    """The purpose of a text file, and the most bytes it may have, several times the size of the largest known one."""

    CONFIG = "a config", 4 << 20
    INDEX = "an index of shards", 32 << 20
    TOKENIZER = "a tokenizer's file", 64 << 20
    TEMPLATE = "a chat template", 4 << 20
    CARD = "a model card", 8 << 20
    RECIPE = "a recipe", 1 << 20
    PROMPTS = "a file of prompts or questions", 16 << 20
    TEXT = "a text", 64 << 20
    GOLDEN = "golden values", 64 << 20
    REPORT = "a report", 64 << 20
    SAMPLES = "a file of a benchmark's samples", 2 << 30
    HEADER = "a header as TOML", 128 << 20
    JOURNAL = "the journal of an in-place change", 128 << 20
    CHECKSUMS = "a list of checksums", 4 << 20
    MATRIX = "an importance matrix in the old format", 1 << 30

    def __init__(self, label: str, most: int) -> None:
        self.label = label
        self.most = most


MOST_VALUES = 5_000_000
"""Values of a JSON text, each of which may take 100 bytes of memory; the largest known tokenizers have 2 to 3 million."""


def check_regular(path: Path, error: type[InputError] = CheckpointError) -> None:
    """Raise `error` unless `path` is a regular file: a pipe, device or folder must not be opened."""
    try:
        state = path.stat()
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{path}: cannot be read ({_what(state)}); put a file there")
    note_opened(state)


def read_bytes(path: Path, kind: Kind, error: type[InputError] = CheckpointError) -> bytes:
    """A file's bytes. Raises `error` if it cannot be read, is not a regular file, or has more than `kind.most` bytes."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{path}: cannot be read ({_what(state)}); put a file there")
        note_opened(state)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            # The size may be wrong (as in /proc) or outdated, so one byte more than allowed is requested.
            data = _read(stream, state.st_size, kind.most + 1) if state.st_size <= kind.most else b""
        size = max(state.st_size, len(data))
    except OSError as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    finally:
        os.close(descriptor)
    if size > kind.most:
        raise error(
            f"{path}: has {size:,} bytes or more; expected {kind.most:,} at most for {kind.label}; check the path"
        )
    return data


def _read(stream: BinaryIO, size: int, most: int) -> bytes:
    """The stream's bytes, `most` at most: `size` are expected, and more memory is not asked for before more are found."""
    data = stream.read(min(size + 1, most))
    parts = [data]
    while data and (most := most - len(data)) > 0:
        data = stream.read(min(PIECE, most))
        parts.append(data)
    return b"".join(parts)


def read_text(path: Path, kind: Kind, error: type[InputError] = CheckpointError) -> str:
    """The text of a UTF-8 file without its byte order mark. Raises `error` as `read_bytes` does, and if it is not UTF-8."""
    data = read_bytes(path, kind, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not UTF-8 (at byte {problem.start + 1}); save it as UTF-8 text") from problem


def load_json(text: str | bytes) -> Any:
    """As `json.loads`, but a ValueError for a text of more than `MOST_VALUES` values, which bounds the memory that it takes."""
    # At least as many as there are values; counted before anything is built.
    if isinstance(text, str):
        count = text.count(",") + text.count("[") + text.count("{")
    else:
        count = text.count(b",") + text.count(b"[") + text.count(b"{")
    if count > MOST_VALUES:
        raise ValueError(f"about {count:,} values; expected {MOST_VALUES:,} at most")
    return json.loads(text)


MOST_PARTS = 32
"""Parts of a dotted key in a TOML file; the parser's time and memory grow with their square."""
_LONG_KEY = re.compile(
    rf"""(?:^|[\[{{,])[ \t]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MOST_PARTS}}}""", re.ASCII | re.MULTILINE
)


def load_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError if it is broken or a key is too long, RecursionError if it is too deep."""
    if found := _LONG_KEY.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key of more than {MOST_PARTS} parts, at line {line}")
    # tomllib is in Python from 3.11 on; tomli is its backport.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    data: dict[str, Any] = toml.loads(text)
    return data


def parse_json(text: str | bytes, path: Path, error: type[InputError] = CheckpointError) -> Any:
    """The value of JSON text read from `path`. Raises `error`, naming line and column, if it is broken or nested too deeply."""
    try:
        return load_json(text)
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}: {problem.msg}"
        raise error(f"{path}: not valid JSON ({where}); correct it or download it again") from problem
    except RecursionError as problem:
        raise error(f"{path}: not valid JSON (it is nested too deeply); correct it or download it again") from problem
    except ValueError as problem:  # too many values, a number of thousands of digits, or bytes that are not UTF-8
        raise error(f"{path}: not valid JSON ({problem}); correct it or download it again") from problem


def parse_toml(text: str, path: str | Path) -> dict[str, Any]:
    """The tables of TOML text read from `path`. Raises InputError, naming the line, if it is broken or nested too deeply."""
    try:
        return load_toml(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path}: not valid TOML ({shortened(str(problem), 200)}); correct it") from problem


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value from a JSON or TOML file is a number that a float can hold: no boolean, NaN, infinity or huge integer."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _what(state: os.stat_result) -> str:
    return "Is a directory" if stat.S_ISDIR(state.st_mode) else "it is not a regular file"


def _reason(problem: OSError | ValueError) -> str:
    """The system's message; a ValueError comes from a path with a null byte."""
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
