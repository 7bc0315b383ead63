"""Files that are read over a network, by the local paths that stand for them while no file lies there.

Whoever opens a source on a hub attaches its files here; `DataFile` and the readers of headers then read them as if they were
local. A file that appears at the path takes over.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.opened import note_opened


class RemoteFile(Protocol):
    """A file on another machine: its `size` in bytes, and the SHA-256 (hexadecimal) that the machine states, if it does."""

    size: int
    sha256: str | None
    kept: int
    """Bytes that are kept of what was read, of this file and others, so that they are not requested again."""

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from byte `offset`, which lie within the file. Raises CheckpointError."""

    def download(self) -> None:
        """Store the whole file at its path. Raises CheckpointError."""

    def divide(self, tensors: Sequence[tuple[int, int]]) -> None:
        """Take notice of where its tensors lie: the first byte and the last (exclusive) of each, in the order of the file."""

    def plan(self, reads: Sequence[tuple[RemoteFile, int, int]]) -> None:
        """Take notice of what will be read next of this file and others, in order: (file, first byte, last byte exclusive)."""


_ATTACHED: dict[str, RemoteFile] = {}


def attach(path: Path, file: RemoteFile) -> None:
    """Let `path` stand for a remote file from now on, for the whole process."""
    _ATTACHED[os.path.abspath(path)] = file


def remote_at(path: Path) -> RemoteFile | None:
    """The remote file that `path` stands for; None if a file lies there, or nothing is attached."""
    file = _ATTACHED.get(os.path.abspath(path))
    return None if file is None or os.path.exists(path) else file


def present(path: Path) -> bool:
    """Whether a file can be read at `path`, from the disk or remotely."""
    # os.path.exists, unlike Path.exists, is false for a name that is too long.
    return os.path.exists(path) or remote_at(path) is not None


def file_size(path: Path) -> int:
    """The size of a file in bytes, remote or on the disk. Raises OSError."""
    remote = remote_at(path)
    return path.stat().st_size if remote is None else remote.size


def attached_in(folder: Path) -> list[Path]:
    """The paths in `folder` that stand for remote files."""
    place = os.path.abspath(folder)
    return [path for name in sorted(_ATTACHED) if os.path.dirname(name) == place and remote_at(path := Path(name))]


def bring(paths: Iterable[Path]) -> None:
    """Download those of the files that are remote. Raises CheckpointError."""
    for path in paths:
        remote = remote_at(path)
        if remote:
            remote.download()


def open_raw(path: Path) -> io.RawIOBase:
    """An unbuffered stream of a file's bytes, remote or on the disk. Raises OSError."""
    remote = remote_at(path)
    if remote is not None:
        return RemoteStream(path, remote)
    stream = path.open("rb", buffering=0)
    note_opened(os.fstat(stream.fileno()))
    return stream


class RemoteStream(io.RawIOBase):
    """A remote file's bytes from its beginning on."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        super().__init__()
        self._path, self._file, self._position = path, file, 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the current position; the number of bytes read, 0 at the file's end."""
        view = memoryview(buffer)
        count = min(len(view), self._file.size - self._position)
        view[:count] = read_remote(self._path, self._file, self._position, count)
        self._position += count
        return count


def read_remote(path: Path, file: RemoteFile, offset: int, count: int) -> bytearray:
    """`count` bytes of a remote file from byte `offset`. Raises CheckpointError if it is shorter."""
    if offset + count > file.size:
        raise CheckpointError(
            f"{path}: ends at byte {file.size}; expected {offset + count} bytes; the file on the hub is truncated"
        )
    return file.read(offset, count)
