"""Positional reads of a file: what every lazy tensor reads through."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from gguf_tools.errors import CheckpointError


class DataFile:
    """An open file that several threads may read at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        self.size = os.fstat(self.descriptor).st_size
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from `offset`; an error if the file ends before."""
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = os.preadv(self.descriptor, [view[done:]], offset + done)
            if not got:
                raise CheckpointError(
                    f"{self.path}: ends at byte {offset + done}, {offset + count} expected; truncated?"
                )
            done += got
        return data
