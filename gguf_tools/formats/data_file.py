"""Positional reads of a file, used by all lazy tensors."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.opened import note_opened
from gguf_tools.formats.remote import read_remote, remote_at


class DataFile:
    """A file open for reading, which several threads may read at once; a path may stand for a remote file (`remote`)."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises CheckpointError unless it is a readable regular file."""
        self.path = path
        self.remote = remote_at(path)
        if self.remote:
            self.size = self.remote.size
            return
        try:
            # Without O_NONBLOCK, opening a pipe would wait for a writer.
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        weakref.finalize(self, os.close, self.descriptor)
        state = os.fstat(self.descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise CheckpointError(f"{path}: is not a regular file; give a file of weights")
        note_opened(state)
        self.size = state.st_size

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from byte `offset`. Raises CheckpointError if the file ends before, or cannot be read there."""
        if self.remote:
            return read_remote(self.path, self.remote, offset, count)
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            try:
                got = os.preadv(self.descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: cannot be read at byte {offset + done} ({error.strerror}); check the disk"
                ) from error
            if not got:
                raise CheckpointError(
                    f"{self.path}: ends at byte {offset + done}; expected {offset + count} bytes; it is truncated, download it "
                    "again"
                )
            done += got
        return data
