"""Folders that appear whole or not at all, and safetensors files written in one pass.

Source: the format section of the safetensors README. A folder is made under another name beside the output, flushed to
the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf_tools.errors import OutputError
from gguf_tools.writer import Progress, alive

ALIGNMENT = 8


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: its name, type and shape, and its bytes in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: int
    pieces: Iterable[bytes | bytearray | memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return prod(self.shape) * self.width


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False, size: int = 0) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error, and vanishes otherwise."""
    check_folder(path, force)
    _settle_leftovers(path)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(f"{path}: needs {size:,} bytes, but the disk has {free:,} free; make room or write elsewhere")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        check_folder(path, force)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{path}: could not be written ({reason}); nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output folder."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; surgery on a checkpoint makes a folder, give it another name")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if path.exists() and not (path / "config.json").exists() and any(path.iterdir()):
        raise OutputError(
            f"{path}: is a folder without config.json, which --force does not replace; choose another name"
        )
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


def _settle_leftovers(path: Path) -> None:
    """Remove what a killed run left, and put back the folder that it was about to replace."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.(tmp|old)")
    for other in path.resolve().parent.iterdir():
        match = pattern.fullmatch(other.name)
        if not match or alive(int(match[1])):
            continue
        if match[2] == "old" and not path.exists():
            other.rename(path)
        else:
            shutil.rmtree(other, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_safetensors(path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], progress: Progress) -> None:
    """Write a safetensors file, in the order given, with bounded memory."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces:
                stream.write(piece)
                written += len(piece)
                progress(len(piece))
            if written != tensor.nbytes:
                raise ValueError(f"{written} bytes of {tensor.name} written, {tensor.nbytes} expected")
