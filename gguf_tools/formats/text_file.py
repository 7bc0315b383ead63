"""Text files that others wrote, read within bounds: configs, tokenizers, templates, model cards, recipes, prompts.

Such a file may be a pipe that nobody writes to, a device without an end, or larger than the memory; each must end as one line.
"""

from __future__ import annotations

import json
import os
import stat
from enum import Enum
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, InputError


class Kind(Enum):
    """What a file is for, and the most bytes that such a file may have: several times what the largest known ones have."""

    CONFIG = "a config", 16 << 20
    INDEX = "an index of shards", 64 << 20
    TOKENIZER = "a tokenizer's file", 128 << 20
    TEMPLATE = "a chat template", 4 << 20
    CARD = "a model card", 8 << 20
    RECIPE = "a recipe", 1 << 20
    PROMPTS = "a file of prompts or questions", 64 << 20
    TEXT = "a text", 256 << 20
    JOURNAL = "a record of a change in place", 256 << 20
    MATRIX = "an importance matrix of the old format", 2 << 30

    def __init__(self, label: str, most: int) -> None:
        self.label = label
        self.most = most


def check_regular(path: Path, error: type[InputError] = CheckpointError) -> None:
    """Raise `error` where `path` is a pipe, a device or a folder, which must not be opened as a file."""
    try:
        state = path.stat()
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{path}: cannot be read ({_what(state)}); put a file there")


def read_bytes(path: Path, kind: Kind, error: type[InputError] = CheckpointError) -> bytes:
    """A file's bytes; `error` naming it where it cannot be read, is not a regular file or is larger than its kind may be."""
    try:
        # Opening a pipe without this would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{path}: cannot be read ({_what(state)}); put a file there")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            # The size may be wrong (as in /proc) or outdated; one byte more than is allowed decides.
            data = stream.read(kind.most + 1) if state.st_size <= kind.most else b""
        size = max(state.st_size, len(data))
    except OSError as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)}); check the path") from problem
    finally:
        os.close(descriptor)
    if size > kind.most:
        raise error(f"{path}: has {size:,} bytes or more; {kind.label} has {kind.most:,} at most; check the path")
    return data


def read_text(path: Path, kind: Kind, error: type[InputError] = CheckpointError) -> str:
    """A UTF-8 file's text without a byte order mark; `error` as `read_bytes`, or where it is not UTF-8."""
    data = read_bytes(path, kind, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not UTF-8 (at byte {problem.start + 1}); give a text file") from problem


def parse_json(text: str | bytes, path: Path, error: type[InputError] = CheckpointError) -> Any:
    """The value of JSON text from `path`; `error` naming the place where it is broken, or where it is nested too deeply."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}: {problem.msg}"
        raise error(f"{path}: not valid JSON ({where}); mend or download it again") from problem
    except RecursionError as problem:
        raise error(f"{path}: not valid JSON (it is nested too deeply); mend or download it again") from problem
    except ValueError as problem:  # a number of thousands of digits, or bytes that are not UTF-8
        raise error(f"{path}: not valid JSON ({problem}); mend or download it again") from problem


def _what(state: os.stat_result) -> str:
    return "Is a directory" if stat.S_ISDIR(state.st_mode) else "it is not a regular file"


def _reason(problem: OSError | ValueError) -> str:
    """What the system says; a ValueError is a name with a null byte."""
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
