"""Copies tensors from one GGUF file to another, by the kernel where possible; threads look for NaN and infinity meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.progress import ByteProgress
from quant.encode import Encoder
from quant.finite import first_nonfinite
from surgery.gguf.layers import ByteRange, Columns, Piece

COPY_BYTES = 1 << 26
"""Bytes per copy by the kernel, small enough for a progress bar and Ctrl-C."""
READ_BYTES = 1 << 22
"""Bytes per read and write if the kernel cannot copy."""
CHECK_BYTES = 1 << 20
"""Bytes that a thread reads and looks at together."""
NOT_SUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def copy_piece(piece: Piece, stream: BinaryIO, progress: ByteProgress, checker: Encoder | None) -> None:
    """Append the bytes of a tensor that is copied to the stream.

    The threads of `checker`, if given, read the same bytes beside the kernel's copy, as a rule from the page cache, and look at
    them: InputError for a weight that is NaN or infinite.
    """
    copied = (piece.columns.whole,) if piece.columns else piece.ranges or ()
    checks = [checker.submit(_require_finite, piece, part) for part in _parts(piece, copied)] if checker else []
    if piece.columns:
        copy_columns(piece.columns, stream, progress)
    else:
        for part in copied:
            copy_range(part, stream, progress)
    for check in checks:
        check.result()


def _parts(piece: Piece, ranges: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """The ranges in parts of whole blocks, of `CHECK_BYTES` at most."""
    step = CHECK_BYTES // piece.type.block_bytes * piece.type.block_bytes
    for whole in ranges:
        for at in range(0, whole.count, step):
            yield whole.part(at, min(step, whole.count - at))


def _require_finite(piece: Piece, part: ByteRange) -> None:
    """Raise InputError for a NaN or an infinity, with its place in the tensor of the source."""
    raw = np.frombuffer(part.file.read(part.offset, part.count), np.uint8)
    found = first_nonfinite(raw, piece.type)
    if found:
        at, value = found[0] + part.start // piece.type.block_bytes * piece.type.block, found[1]
        cut = piece.columns
        width = (
            cut.whole.count // cut.rows // piece.type.block_bytes * piece.type.block if cut else piece.tensor.columns
        )
        row, column = divmod(at, width)
        raise InputError(
            f"{part.file.path}: tensor {piece.tensor.sources[0]} holds {value} at row {row}, column {column} (counted from 0); "
            "expected finite weights; convert a repaired checkpoint, or keep them with --allow-nonfinite"
        )


def copy_range(part: ByteRange, stream: BinaryIO, progress: ByteProgress) -> None:
    """Append bytes of a source file to the stream, in the kernel where possible, else in pieces of `READ_BYTES`."""
    done = 0
    if hasattr(os, "copy_file_range"):
        stream.flush()
        at, target, source = stream.tell(), stream.fileno(), part.file.descriptor
        try:
            while done < part.count:
                step = min(COPY_BYTES, part.count - done)
                copied = os.copy_file_range(source, target, step, part.offset + done, at + done)
                if not copied:
                    break
                done += copied
                progress(copied)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        stream.seek(at + done)
    while done < part.count:
        piece = part.file.read(part.offset + done, min(READ_BYTES, part.count - done))
        stream.write(piece)
        done += len(piece)
        progress(len(piece))


def copy_columns(cut: Columns, stream: BinaryIO, progress: ByteProgress) -> None:
    """Append the rows of a matrix with their parts in another order, as many rows at a time as `READ_BYTES` holds."""
    row = cut.whole.count // cut.rows
    step = max(1, READ_BYTES // row)
    for start in range(0, cut.rows, step):
        count = min(step, cut.rows - start)
        data = np.frombuffer(cut.whole.file.read(cut.whole.offset + start * row, count * row), np.uint8)
        chosen = data.reshape(count, cut.parts, row // cut.parts)[:, list(cut.order)]
        stream.write(chosen.tobytes())
        progress(chosen.nbytes)
