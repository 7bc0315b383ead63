"""Hashing files, and values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from gguf_tools.formats.remote import open_raw, remote_at

PIECE = 1 << 20


def json_digest(value: object) -> str:
    """SHA-256 (hexadecimal) of a value as JSON with sorted keys, so that two reports can be told to be about the same items."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class FileDigest:
    """SHA-256 of bytes and files, one after the other, read through one buffer of `PIECE` bytes."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._buffer = memoryview(bytearray(PIECE))

    def add(self, data: bytes) -> None:
        """Continue with these bytes."""
        self._sum.update(data)

    def add_file(self, path: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Continue with a file's bytes, up to the piece after which `cancelled` is true. Raises OSError."""
        with open_raw(path) as stream:
            while not cancelled() and (count := stream.readinto(self._buffer)):
                self._sum.update(self._buffer[:count])

    def hexdigest(self) -> str:
        """The digest of all that was added, in hexadecimal."""
        return self._sum.hexdigest()


def file_digest(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 (hexadecimal) of a file: for a remote one as its host states it, without reading it. Raises OSError."""
    remote = remote_at(path)
    if remote and remote.sha256:
        return remote.sha256
    digest = FileDigest()
    digest.add_file(path, cancelled)
    return digest.hexdigest()
