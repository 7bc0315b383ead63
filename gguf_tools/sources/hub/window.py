"""What was read of a repository's files: blocks in an unnamed file on the disk, as many as there is room for.

Blocks ahead of a read are requested while the reader works. A model that fits into the window is downloaded once, however
often it is read; of a larger one the blocks that were used least recently are given up.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.sources.hub.client import HubError
from gguf_tools.sources.hub.file import HubFile

BLOCK = 16 << 20
"""Bytes of a block, and of a request, where weights are read."""
HEADER_BLOCK = 1 << 16
"""Bytes of a block where only headers are read."""
AHEAD = 3
"""Blocks that are requested before they are asked for."""
MOST = 4 << 30
"""Most bytes of the window."""
FEWEST = 8
"""Fewest blocks of the window, however little room there is."""


class _Slot:
    """A block that is in the window, or on its way there; `users` are reading it."""

    def __init__(self) -> None:
        self.place: Future[int] = Future()
        self.users = 0


class Window:
    """Blocks of several files, in a temporary file in `folder` that has no name and disappears with the process."""

    def __init__(self, folder: Path, *, block: int = BLOCK, ahead: int = AHEAD, most: int = MOST) -> None:
        self.block, self.ahead = block, ahead
        self._folder = folder
        free = shutil.disk_usage(folder).free
        self._most = max(min(most, free // 2) // block, FEWEST)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the window
        weakref.finalize(self, self._file.close)
        self._slots: OrderedDict[tuple[str, int], _Slot] = OrderedDict()
        self._free: list[int] = []
        self._used = 0
        self._lock = threading.Lock()

    def read(self, file: HubFile, offset: int, count: int) -> bytearray:
        """`count` bytes of a file from byte `offset`. Raises HubError."""
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            number, start = divmod(offset + done, self.block)
            length = min(self.block - start, count - done)
            self._copy(file, number, start, view[done : done + length])
            done += length
        return data

    def _copy(self, file: HubFile, number: int, start: int, into: memoryview) -> None:
        """Copy a part of a block."""
        slot = self._wanted(file, number)
        try:
            place = slot.place.result()
            done = 0
            while done < len(into):
                got = os.preadv(self._file.fileno(), [into[done:]], place * self.block + start + done)
                if not got:
                    raise HubError(
                        f"{file.name}: the temporary file in {self._folder} was cut off; run the command again"
                    )
                done += got
        finally:
            with self._lock:
                slot.users -= 1

    def _wanted(self, file: HubFile, number: int) -> _Slot:
        """The slot of a block, requested if it is not there, as are those after it."""
        with self._lock:
            last = (file.size - 1) // self.block
            slot = self._slot(file, number)
            slot.users += 1
            for other in range(number + 1, min(number + self.ahead, last) + 1):
                self._slot(file, other)
            self._slots.move_to_end((str(file.local), number))
            return slot

    def _slot(self, file: HubFile, number: int) -> _Slot:
        """The slot of a block; a new one is filled by a thread of its own, which ends with the process."""
        key = (str(file.local), number)
        if key not in self._slots:
            slot = self._slots[key] = _Slot()
            threading.Thread(target=self._fill, args=(file, number, slot), daemon=True).start()
        return self._slots[key]

    def _fill(self, file: HubFile, number: int, slot: _Slot) -> None:
        """Fetch a block, and store it in a place that is free, or that of the block used least recently."""
        start = number * self.block
        try:
            data = file.fetch(start, min(start + self.block, file.size))
            place = self._place()
            try:
                _write(self._file.fileno(), data, place * self.block)
            except OSError as error:
                raise InputError(
                    f"{self._folder}: the blocks of {file.name} could not be stored ({error.strerror}); free some space, or "
                    "set HF_HOME to a folder on another disk"
                ) from error
        except BaseException as error:
            with self._lock:
                self._slots.pop((str(file.local), number), None)  # whoever asks again requests it again
            slot.place.set_exception(error)
        else:
            slot.place.set_result(place)

    def _place(self) -> int:
        """A place for a block; one more than there may be if all are being read."""
        with self._lock:
            if self._used >= self._most:
                for key, slot in self._slots.items():
                    if slot.place.done() and not slot.users:
                        del self._slots[key]
                        return slot.place.result()
            self._used += 1
            return self._used - 1


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def in_order(file: HubFile, start: int, *, block: int = BLOCK, ahead: int = AHEAD) -> Iterator[bytes]:
    """The blocks of a file from byte `start` to its end, in order; some are requested ahead."""
    waiting: list[Future[bytes]] = []
    offsets = iter(range(start, file.size, block))
    while True:
        while len(waiting) <= ahead and (offset := next(offsets, None)) is not None:
            waiting.append(_started(file, offset, min(offset + block, file.size)))
        if not waiting:
            return
        yield waiting.pop(0).result()


def _started(file: HubFile, start: int, stop: int) -> Future[bytes]:
    """A range of a file that a thread of its own fetches."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(file.fetch(start, stop))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
