"""Packed matrices that are read whole, because a row of weights is spread over all of their rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import Tensor

LIMIT = 1 << 26
"""Most bytes that are kept for the next rows, unless a single matrix has more."""

Key = tuple[int, str]


class Recent:
    """The arrays read last, at most `limit` bytes of them; several threads may ask at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = Lock()
        # The tensor is kept beside its array, so that its id is not given to another one.
        self._held: OrderedDict[Key, tuple[Tensor, NDArray[Any]]] = OrderedDict()

    def get(self, tensor: Tensor, kind: str, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array that `read` returns for `tensor`; `kind` tells several arrays of one tensor apart."""
        key = (id(tensor), kind)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][1]
            found = read()
            self._held[key] = (tensor, found)
            while len(self._held) > 1 and sum(array.nbytes for _, array in self._held.values()) > self._limit:
                self._held.popitem(last=False)
            return found


_RECENT = Recent()


def whole_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """All bytes of a stored matrix, shape (rows, bytes of a row)."""

    def read() -> NDArray[np.uint8]:
        return tensor.stored_bytes(0, tensor.size).reshape(tensor.shape[0], -1)

    return _RECENT.get(tensor, "bytes", read)


def whole_floats(tensor: Tensor) -> NDArray[np.float32]:
    """All numbers of a matrix as float32, in its shape."""
    return _RECENT.get(tensor, "floats", tensor.array)
