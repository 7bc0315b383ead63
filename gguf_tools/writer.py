"""Outputs that appear whole or not at all, and the streaming GGUF writer.

Everything is written to a temporary file beside the output, flushed to the disk, and renamed; so a full disk, Ctrl-C or
`kill -9` leaves no output under its name. A later run to the same output removes what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gguf_tools.errors import OutputError
from gguf_tools.gguf_file import DEFAULT_ALIGNMENT, MAX_NAME, Metadata, TensorEntry, pack_header, place
from gguf_tools.machine import sync_folder
from quant.encode import ByteArray
from quant.types import TensorType

Progress = Callable[[int], None]
"""Told how many more bytes are done."""


def check_output(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output: it exists without `force`, or has no folder to lie in."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of the file to write")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file, which a new file would replace; give another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False, size: int = 0) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and vanishes otherwise.

    `size` is what will be written, in bytes, if known: OutputError before the start where the disk has less room.
    """
    check_output(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_leftovers(path)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OutputError(
                f"{path}: needs {size:,} bytes, but the disk has {free:,} free; make room or write elsewhere"
            )
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # Another process may have made the output meanwhile.
        check_output(path, force)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system lets a folder be synced
            sync_folder(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{path}: could not be written ({reason}); nothing was left behind") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.tmp")
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        if match and not alive(int(match[1])):
            other.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this number runs; what cannot be told counts as running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@dataclass(frozen=True)
class Layout:
    """Where everything of a GGUF file lies: the tensor entries in order, and the sizes in bytes."""

    entries: tuple[TensorEntry, ...]
    data_bytes: int
    alignment: int = DEFAULT_ALIGNMENT

    def size(self, metadata: Metadata) -> int:
        """Bytes of the whole file with this metadata."""
        return len(pack_header(metadata, self.entries, self.alignment)) + self.data_bytes


def layout(tensors: Iterable[tuple[str, tuple[int, ...], TensorType]]) -> Layout:
    """The layout of tensors given as (name, shape in numpy's order, type)."""
    tensors = list(tensors)
    for name, _, _ in tensors:
        if len(name.encode()) > MAX_NAME:
            raise OutputError(f"tensor name {name} is longer than ggml's {MAX_NAME} bytes")
    entries, data_bytes = place(tensors)
    return Layout(entries, data_bytes)


def write_gguf(
    stream: BinaryIO, metadata: Metadata, where: Layout, pieces: Iterable[tuple[str, ByteArray]], progress: Progress
) -> None:
    """Write header and data; `pieces` are (tensor name, bytes) in file order, each tensor in as many as one likes."""
    stream.write(pack_header(metadata, where.entries, where.alignment))
    entries = iter(where.entries)
    entry: TensorEntry | None = None
    left = padding = 0
    for name, piece in pieces:
        if left == 0:
            stream.write(b"\0" * padding)
            entry = next(entries)
            left, padding = entry.nbytes, -entry.nbytes % where.alignment
        if entry is None or entry.name != name or piece.nbytes > left:
            raise ValueError(f"piece of {name} does not fit where {entry.name if entry else 'nothing'} is expected")
        stream.write(np.ascontiguousarray(piece).data)
        left -= piece.nbytes
        progress(piece.nbytes)
    if left or next(entries, None) is not None:
        raise ValueError("tensors are missing at the end of the file")
    stream.write(b"\0" * padding)
