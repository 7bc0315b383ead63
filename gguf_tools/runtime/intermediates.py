"""Copies named tensors of llama.cpp's graph while they are computed. For the worker process only.

A name such as `Qcur-3` is that of layer 3, and occurs several times in a graph: after the product, after the bias, after RoPE. So
a tensor is known by name, operation, and how many tensors of that name and operation came before it in the same batch. Values are
copied when they are shown, because later operations work in place.

A tensor that the graph gives no name (ggml then calls it `node_K`) is known by the weight that it is computed from, if there is
one: the product with `blk.3.ssm_in.weight` is `ssm_in.weight` of layer 3.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.runtime.graph import library, values

TYPES: dict[int, type[np.generic]] = {0: np.float32, 26: np.int32}
"""ggml's numbers of the types that are copied (F32, I32)."""
OF_LAYER = re.compile(r"(.+)-(\d+)")
WEIGHT = re.compile(r"blk\.(\d+)\.(.+)")
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
        self._seen: Counter[tuple[str, int | None, str]] = Counter()

    def begin(self) -> None:
        """Start with the next batch."""
        self._batch += 1
        self._seen.clear()

    def observe(self, tensor: Any, ask: bool) -> bool:
        """With `ask`: whether this node is wanted. Without: copy it and return whether to continue."""
        try:
            base, layer = identity(tensor)
            if ask:
                return base in self._names and tensor.type in TYPES
            self._copy(base, layer, tensor)
        except Exception as error:
            self.error = error
            return False
        return True

    def _copy(self, base: str, layer: int | None, tensor: Any) -> None:
        """Keep a copy of the values, and what identifies the tensor."""
        op = library().ggml_op_name(tensor.op).decode()
        occurrence = self._seen[base, layer, op]
        self._seen[base, layer, op] += 1
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


def identity(tensor: Any) -> tuple[str, int | None]:
    """A tensor's name without its layer, and the layer, None outside the layers."""
    name = tensor.name.decode("utf-8", errors="replace")
    if match := OF_LAYER.fullmatch(name):
        return match[1], int(match[2])
    if UNNAMED.fullmatch(name):
        for operand in takewhile(bool, tensor.src):
            if match := WEIGHT.fullmatch(operand.contents.name.decode("utf-8", errors="replace")):
                return match[2], int(match[1])
    return name, None
