"""Copying a part of a file to a place in another: in the kernel if it can, otherwise in pieces through this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from gguf_tools.formats.data_file import DataFile
from gguf_tools.progress import ByteProgress

KERNEL_PIECE = 1 << 25
"""Bytes that the kernel copies at a time, between which the run can be interrupted."""
READ_PIECE = 1 << 22
"""Bytes that are read at a time otherwise."""
NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""Errors of `copy_file_range` that mean that it does not work between these files."""


def copy_range(source: DataFile, start: int, count: int, out: int, to: int, progress: ByteProgress) -> None:
    """Copy `count` bytes from byte `start` of `source` to byte `to` of the descriptor `out`; `progress` counts them.

    Raises CheckpointError if the source ends before, OSError if `out` cannot be written.
    """
    done = 0
    while done < count and hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(
                source.descriptor, out, min(KERNEL_PIECE, count - done), start + done, to + done
            )
        except OSError as error:
            if error.errno not in NOT_COPIED:
                raise
            break
        if not copied:  # the source has ended, which reading reports
            break
        done += copied
        progress(copied)
    for offset, piece in pieces(source, start + done, count - done):
        write_at(out, piece, to + done + offset)
        progress(len(piece))


def pieces(source: DataFile, start: int, count: int) -> Iterator[tuple[int, bytearray]]:
    """`count` bytes from byte `start` in pieces, each with its distance from `start`."""
    for offset in range(0, count, READ_PIECE):
        yield offset, source.read(start + offset, min(READ_PIECE, count - offset))


def write_at(out: int, data: bytes | bytearray, at: int) -> None:
    """Write all of `data` to byte `at` of the descriptor `out`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(out, view, at)
        view, at = view[count:], at + count
