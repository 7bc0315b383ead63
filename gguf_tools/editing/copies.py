"""Writing GGUF files whose tensors are bytes of other GGUF files: a plan of what goes where, and one streaming pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gguf_tools.formats.copying import copy_range, pieces, write_at
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, GGUFHeader, Metadata, TensorEntry, pack_header, place
from gguf_tools.formats.gguf.values import string
from gguf_tools.formats.gguf.writer import Layout
from gguf_tools.formats.output import Check, atomic_outputs
from gguf_tools.progress import ByteProgress


@dataclass(frozen=True)
class Held:
    """A tensor of a file; `header` is that of the file which holds its bytes, `name` what it is called in the copy."""

    header: GGUFHeader
    entry: TensorEntry
    name: str


@dataclass(frozen=True)
class Run:
    """`count` bytes from byte `start` of the file of `header`, for byte `to` of the new data section."""

    header: GGUFHeader
    start: int
    count: int
    to: int


@dataclass(frozen=True)
class CopiedFile:
    """A file to write: its metadata, its layout, and the tensors in the order of the layout's entries."""

    metadata: Metadata
    layout: Layout
    tensors: tuple[Held, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.layout.size(self.metadata)

    def runs(self) -> list[Run]:
        """What is copied, in order; tensors that lie in the source as they will lie in the copy are one run."""
        runs: list[Run] = []
        for entry, held in zip(self.layout.entries, self.tensors, strict=True):
            start = held.header.data_offset + held.entry.offset
            last = runs[-1] if runs else None
            if last and last.header is held.header and start - last.start == entry.offset - last.to:
                runs[-1] = Run(last.header, last.start, entry.offset + entry.nbytes - last.to, last.to)
            else:
                runs.append(Run(held.header, start, entry.nbytes, entry.offset))
        return runs


def copied_file(metadata: Metadata, tensors: Sequence[Held], alignment: int = DEFAULT_ALIGNMENT) -> CopiedFile:
    """A file with these tensors in this order; `alignment` must be what `metadata` states."""
    entries, data_bytes = place([(held.name, held.entry.shape, held.entry.type) for held in tensors], alignment)
    return CopiedFile(metadata, Layout(entries, data_bytes, alignment), tuple(tensors))


def held_tensors(parts: Sequence[GGUFHeader]) -> list[Held]:
    """The tensors of a model's files, in order, under their own names."""
    return [Held(part, entry, entry.name) for part in parts for entry in part.tensors]


def write_copies(
    files: Sequence[CopiedFile],
    paths: Sequence[Path],
    *,
    force: bool = False,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
    mode: int | None = None,
) -> int:
    """Write the files in one pass over their sources; they get their names together, when all are complete. Returns their bytes.

    Files of a set that has an id (`tinyq.split.id`) get a new one, the digest of everything that is written. `check` is called
    before they appear; if it raises, nothing is left. `mode` are the permissions of the files, by default those of any new file.

    Raises CheckpointError if a source ends early, OutputError if an output cannot be written.
    """
    digest = hashlib.sha256() if len(files) > 1 and keys.SPLIT_ID in files[0].metadata else None
    if digest:
        files = [_with_id(file, "0" * 64) for file in files]
    sizes = [(path, file.size) for path, file in zip(paths, files, strict=True)]
    with atomic_outputs(sizes, force=force, check=check) as streams:
        for stream, file in zip(streams, files, strict=True):
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            header = _begin(stream, file)
            if digest:
                digest.update(header)
            _copy(file, stream.fileno(), len(header), progress, digest.update if digest else None)
        if digest:
            for stream, file in zip(streams, files, strict=True):
                stream.seek(0)
                stream.write(_header(_with_id(file, digest.hexdigest())))
    return sum(size for _, size in sizes)


def _with_id(file: CopiedFile, value: str) -> CopiedFile:
    return replace(file, metadata={**file.metadata, keys.SPLIT_ID: string(value)})


def _header(file: CopiedFile) -> bytes:
    return pack_header(file.metadata, file.layout.entries, file.layout.alignment)


def _begin(stream: BinaryIO, file: CopiedFile) -> bytes:
    """Write the header and give the file its full length; returns the header."""
    header = _header(file)
    stream.write(header)
    stream.flush()
    os.ftruncate(stream.fileno(), len(header) + file.layout.data_bytes)
    return header


def _copy(
    file: CopiedFile, out: int, data: int, progress: ByteProgress, update: Callable[[bytes | bytearray], None] | None
) -> None:
    """Copy the runs of a file to the descriptor `out`, whose data section begins at byte `data`.

    `update` receives the whole data section in order, padding included.
    """
    sources: dict[Path, DataFile] = {}
    done = 0
    for run in file.runs():
        path = run.header.path
        source = sources[path] = sources.get(path) or DataFile(path)
        if update is None:
            copy_range(source, run.start, run.count, out, data + run.to, progress)
            continue
        update(bytes(run.to - done))
        for offset, piece in pieces(source, run.start, run.count):
            update(piece)
            write_at(out, piece, data + run.to + offset)
            progress(len(piece))
        done = run.to + run.count
    if update:
        update(bytes(file.layout.data_bytes - done))
