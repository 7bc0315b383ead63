"""Copies named tensors of llama.cpp's graph while they are computed. For the worker process only.

A name such as `Qcur-3` is that of layer 3, and occurs several times in a graph: after the product, after the bias, after RoPE. So
a tensor is known by name, operation, and how many tensors of that name and operation came before it in the same batch. Values are
copied when they are shown, because later operations work in place.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.runtime.graph import library, values

TYPES: dict[int, type[np.generic]] = {0: np.float32, 26: np.int32}
"""ggml's numbers of the types that are copied (F32, I32)."""
OF_LAYER = re.compile(r"(.+)-(\d+)")
UNNAMED = re.compile(r"(node|leaf)_\d+")


class Recorder:
    """Copies the tensors whose name without its layer is in `names`.

    `observe` is llama.cpp's evaluation callback. An exception in it is stored in `error`, and the computation is stopped.
    """

    def __init__(self, names: frozenset[str]) -> None:
        """Nothing is recorded yet; `records` will describe the arrays in `copies`, one by one."""
        self.records: list[dict[str, Any]] = []
        self.copies: list[NDArray[np.float32]] = []
        self.error: Exception | None = None
        self._names = names
        self._batch = -1
        self._seen: Counter[tuple[str, str]] = Counter()

    def begin(self) -> None:
        """Start with the next batch."""
        self._batch += 1
        self._seen.clear()

    def observe(self, tensor: Any, ask: bool) -> bool:
        """With `ask`: whether this node is wanted. Without: copy it and return whether to continue."""
        try:
            name = tensor.name.decode("utf-8", errors="replace")
            match = OF_LAYER.fullmatch(name)
            base = match[1] if match else name
            if ask:
                return base in self._names and tensor.type in TYPES
            self._copy(name, base, int(match[2]) if match else None, tensor)
        except Exception as error:
            self.error = error
            return False
        return True

    def _copy(self, name: str, base: str, layer: int | None, tensor: Any) -> None:
        """Keep a copy of the values, and what identifies the tensor."""
        op = library().ggml_op_name(tensor.op).decode()
        occurrence = self._seen[name, op]
        self._seen[name, op] += 1
        found = values(tensor, TYPES[tensor.type])
        # Ids are below 2²⁴, so that float32 holds them exactly.
        self.copies.append(np.array(found, np.float32, order="C"))
        self.records.append(
            {
                "name": base,
                "layer": layer,
                "op": op,
                "occurrence": occurrence,
                "batch": self._batch,
                "shape": list(found.shape),
            }
        )
