"""What was read of the files of a hub: pieces in an unnamed file on the disk, as many as there is room for.

A piece is a part of a tensor, or several small tensors, so that tensors that lie apart are read without what lies between
them. Pieces that will be read next are requested while the reader works. A model that fits into the window is downloaded once,
however often it is read; of a larger one the pieces that were used least recently are given up.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.scratch import unnamed_file
from gguf_tools.sources.hub.client import HubError
from gguf_tools.sources.hub.file import HubFile
from gguf_tools.sources.hub.threads import started, waited

BLOCK = 16 << 20
"""Most bytes of a piece, and of a request."""
DOWNLOADED = 4 << 20
"""Bytes of a request of a download that is kept: as much as is lost of each request when the process is killed."""
HEADER_BLOCK = 1 << 16
"""Bytes of a piece of a file whose tensors are not known, such as of its header."""
SMALL = 1 << 20
"""Tensors of fewer bytes share a piece with their neighbours."""
AHEAD = 48 << 20
"""Bytes that are requested before they are asked for."""
AT_ONCE = 8
"""Most pieces that are requested ahead, or by one read, at a time."""
MOST = 4 << 30
"""Most bytes of the window."""
UNIT = 1 << 20
"""Bytes of the window that are given to a piece or taken from it together."""

Key = tuple[str, int, int]
"""A piece: the path that its file stands for, and the offsets of its first byte and of the byte after its last."""


@dataclass
class _Slot:
    """A piece that is in the window, in these `units` of it, or on its way there; `users` are reading it."""

    place: Future[list[int]] = field(default_factory=Future)
    users: int = 0


class Window:
    """Pieces of several files, in a temporary file in `folder` that has no name and disappears with the process."""

    def __init__(
        self, folder: Path, *, block: int = BLOCK, ahead: int = AHEAD, most: int = MOST, unit: int = UNIT
    ) -> None:
        """An empty window of at most `most` bytes, with pieces of at most `block`, `ahead` bytes requested in advance."""
        self._block, self._ahead, self._unit = block, ahead, unit
        self._folder = folder
        # However little room there is, what is read and what is requested ahead must fit.
        self._most = -(-max(min(most, shutil.disk_usage(folder).free // 2), ahead + 2 * block) // unit)
        self.most = self._most * unit
        self._file = unnamed_file("tinyq-window", folder)
        weakref.finalize(self, self._file.close)
        self._starts: dict[str, list[int]] = {}
        self._order: list[tuple[HubFile, int]] = []
        self._numbers: dict[Key, int] = {}
        self._slots: OrderedDict[Key, _Slot] = OrderedDict()
        self._free: list[int] = []
        self._used = 0
        self._lock = threading.Lock()

    def divide(self, file: HubFile, tensors: Sequence[tuple[int, int]]) -> None:
        """Cut a file into pieces by its tensors, given by their first and last bytes (exclusive) in the order of the file."""
        starts: list[int] = []
        open_until = -1
        """Where the piece has to end that small tensors are added to."""
        for start, stop in tensors:
            if start == stop:
                continue
            if stop - start >= SMALL:
                starts += range(start, stop, self._block)
                open_until = -1
            elif not starts or stop > open_until:
                starts.append(start)
                open_until = start + self._block
        header = range(0, starts[0] if starts else file.size, HEADER_BLOCK)
        with self._lock:
            self._starts[str(file.local)] = [*header, *starts]

    def plan(self, reads: Sequence[tuple[HubFile, int, int]]) -> None:
        """Take notice of what is read next, in order: bytes of files, given by the first and the last (exclusive)."""
        with self._lock:
            order = {
                self._key(file, start): (file, start)
                for file, first, stop in reads
                for start in self._within(file, first, stop)
            }
            self._order = list(order.values())
            self._numbers = {key: number for number, key in enumerate(order)}

    def read(self, file: HubFile, offset: int, count: int) -> bytearray:
        """`count` bytes of a file from byte `offset`. Raises HubError."""
        data = bytearray(count)
        view = memoryview(data)
        with self._lock:
            starts = self._within(file, offset, offset + count)
        for at, start in enumerate(starts):
            with self._lock:
                for other in starts[at : at + AT_ONCE]:
                    slot = self._slot(file, other)
                slot = self._slot(file, start)
                slot.users += 1
                self._slots.move_to_end(self._key(file, start))
                self._request_ahead(file, start)
            first = max(start, offset)
            last = starts[at + 1] if at + 1 < len(starts) else offset + count
            try:
                self._copy(file, waited(slot.place), first - start, view[first - offset : last - offset])
            finally:
                with self._lock:
                    slot.users -= 1
        return data

    def _within(self, file: HubFile, first: int, stop: int) -> list[int]:
        """The pieces, by their offsets, in which these bytes of a file are."""
        if first >= stop:
            return []
        starts = self._starts.get(str(file.local))
        if starts is None:
            return list(range(first // HEADER_BLOCK * HEADER_BLOCK, stop, HEADER_BLOCK))
        return starts[bisect_right(starts, first) - 1 : bisect_right(starts, stop - 1)]

    def _stop(self, file: HubFile, start: int) -> int:
        """Where a piece ends."""
        starts = self._starts.get(str(file.local))
        if starts is None:
            return min(start + HEADER_BLOCK, file.size)
        after = bisect_right(starts, start)
        return starts[after] if after < len(starts) else file.size

    def _key(self, file: HubFile, start: int) -> Key:
        return str(file.local), start, self._stop(file, start)

    def _request_ahead(self, file: HubFile, start: int) -> None:
        """Request the pieces after one: those that are planned, else those after it in its file, if its tensors are known."""
        if str(file.local) not in self._starts:
            return
        number = self._numbers.get(self._key(file, start))
        left = self._ahead
        for step in range(1, AT_ONCE + 1):
            if number is not None:
                following = self._order[number + step : number + step + 1]
                if not following:
                    return
                file, start = following[0]
            else:
                start = self._stop(file, start)
            if start >= file.size or (left := left - (self._stop(file, start) - start)) < 0:
                return
            self._slot(file, start)

    def _slot(self, file: HubFile, start: int) -> _Slot:
        """The slot of a piece; a new one is filled by a thread of its own, which ends with the process."""
        key = self._key(file, start)
        if key not in self._slots:
            slot = self._slots[key] = _Slot()
            threading.Thread(target=self._fill, args=(file, key, slot), daemon=True).start()
        return self._slots[key]

    def _fill(self, file: HubFile, key: Key, slot: _Slot) -> None:
        """Fetch a piece, and store it in units that are free, or those of the pieces used least recently."""
        try:
            data = memoryview(file.fetch(*key[1:]))
            units = self._units(-(-len(data) // self._unit))
            try:
                for at, unit in enumerate(units):
                    _write(self._file.fileno(), data[at * self._unit :][: self._unit], unit * self._unit)
            except OSError as error:
                raise InputError(
                    f"{self._folder}: parts of {file.name} could not be stored ({error.strerror}); free some space, or set "
                    "HF_HOME to a folder on another disk"
                ) from error
        except BaseException as error:
            with self._lock:
                self._slots.pop(key, None)  # whoever asks again requests it again
            slot.place.set_exception(error)
        else:
            slot.place.set_result(units)

    def _units(self, count: int) -> list[int]:
        """Units for a piece; more than there may be if all pieces are being read."""
        with self._lock:
            for key, slot in list(self._slots.items()):
                if len(self._free) + self._most - self._used >= count:
                    break
                if slot.place.done() and not slot.users:
                    self._free += slot.place.result()
                    del self._slots[key]
            taken, self._free = self._free[:count], self._free[count:]
            more = count - len(taken)
            self._used += more
            return [*taken, *range(self._used - more, self._used)]

    def _copy(self, file: HubFile, units: list[int], start: int, into: memoryview) -> None:
        """Copy a part of a piece, which is in `units`, from byte `start` of it."""
        done = 0
        while done < len(into):
            number, within = divmod(start + done, self._unit)
            part = into[done : done + self._unit - within]
            got = os.preadv(self._file.fileno(), [part], units[number] * self._unit + within)
            if not got:
                raise HubError(f"{file.name}: the temporary file in {self._folder} was cut off; run the command again")
            done += got


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError."""
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def in_order(file: HubFile, start: int, *, block: int = DOWNLOADED, ahead: int = 4) -> Iterator[bytearray]:
    """The bytes of a file from `start` to its end, in pieces of `block`, of which `ahead` are requested in advance."""
    waiting: list[Future[bytearray]] = []
    offsets = iter(range(start, file.size, block))
    while True:
        while len(waiting) <= ahead and (offset := next(offsets, None)) is not None:
            waiting.append(started(partial(file.fetch, offset, min(offset + block, file.size))))
        if not waiting:
            return
        yield waited(waiting.pop(0))
