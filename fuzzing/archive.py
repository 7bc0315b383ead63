"""Several files in one input, as text that survives changes: each begins with a line `=== NAME ===`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_HEAD = re.compile(rb"(?:\A|\n)=== ([^\n=/\0]{1,100}) ===\n")


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files as one input."""
    return b"".join(b"\n=== %s ===\n%s" % (name.encode(), data) for name, data in files.items())


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of an input by name; what stands before the first is left out."""
    parts = _HEAD.split(data)
    return {name.decode("utf-8", "replace"): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def write(folder: Path, files: Mapping[str, bytes], known: frozenset[str]) -> None:
    """Have the folder hold, of the names in `known`, the files given and no other."""
    for name in known:
        if name in files:
            (folder / name).write_bytes(files[name])
        else:
            (folder / name).unlink(missing_ok=True)
