"""Reads and replaces tensors of llama.cpp's graph while it computes. For the worker process only.

A node is known by its place in the order of computation, which is the same for every run on as many tokens. What a node holds
can be replaced right after it was computed, so that all that follows is computed from the new numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LlamaError
from gguf_tools.runtime.activations import GGML_TYPE_F32
from gguf_tools.runtime.graph import library, values


class Lister:
    """Lists the graph's nodes: name, lengths of the axes (numpy order), whether float32, and the nodes computed from."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self._places: dict[int, int] = {}

    def observe(self, tensor: Any, ask: bool) -> bool:
        """Note the node and ask for none."""
        try:
            if ask:
                sources = [ctypes.addressof(src.contents) for src in tensor.src if src]
                node = {
                    "name": tensor.name.decode("utf-8", errors="replace"),
                    "shape": list(tensor.ne)[::-1],
                    "float": tensor.type == GGML_TYPE_F32,
                    "sources": [self._places[address] for address in sources if address in self._places],
                }
                self._places[ctypes.addressof(tensor)] = len(self.nodes)
                self.nodes.append(node)
        except Exception as error:
            self.error = error
        return False


class Exchange:
    """Copies the nodes at the places in `read`, then replaces those in `write`, in the order of computation."""

    def __init__(self, read: Sequence[int], write: Mapping[int, NDArray[np.float32]]) -> None:
        self.found: dict[int, NDArray[np.float32]] = {}
        self.error: Exception | None = None
        self._read, self._write = frozenset(read), write
        self._place = -1

    def observe(self, tensor: Any, ask: bool) -> bool:
        """Whether this node is wanted (`ask`); else copy it, replace it, or both."""
        try:
            if ask:
                self._place += 1
                return self._place in self._read or self._place in self._write
            if not library().ggml_backend_buffer_is_host(tensor.buffer):
                raise LlamaError(f"{tensor.name.decode()} lies on a device, where it cannot be replaced")
            held = values(tensor, np.float32)
            if self._place in self._read:
                self.found[self._place] = held.copy()
            if self._place in self._write:
                new = self._write[self._place]
                if new.size != held.size:
                    raise LlamaError(f"{tensor.name.decode()} has {held.size} numbers, not {new.size}")
                held[...] = new.reshape(held.shape)
        except Exception as error:
            self.error = error
            return False
        return True
