"""Collects activation statistics while llama.cpp computes. For the worker process only.

What is counted follows `collect_imatrix` of llama.cpp's tools/imatrix: for each weight matrix of a layer, the squares of what
it is multiplied with, summed over tokens; for experts, over the tokens that were sent to each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LlamaError
from gguf_tools.runtime.graph import op_number, values

GGML_TYPE_F32 = 0
OUTPUT = "output.weight"


class Collector:
    """Sums and counts by tensor name: sums (matrices, columns) in float64, counts (matrices,).

    `observe` is llama.cpp's callback. What goes wrong in it is kept in `error`, and the computation is stopped.
    """

    def __init__(self, process_output: bool) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.error: Exception | None = None
        self._process_output = process_output
        self._dense, self._routed = op_number("MUL_MAT"), op_number("MUL_MAT_ID")

    def observe(self, tensor: Any, ask: bool) -> bool:
        """Whether this node is wanted (`ask`), or take its numbers and say whether to go on."""
        try:
            if ask:
                return self._wanted(tensor)
            name = weight_name(tensor.src[0].contents.name)
            if tensor.op == self._routed:
                self._add_routed(name, tensor)
            else:
                self._add_dense(name, tensor)
        except Exception as error:
            self.error = error
            return False
        return True

    def _wanted(self, tensor: Any) -> bool:
        if tensor.op not in (self._dense, self._routed) or tensor.src[1].contents.type != GGML_TYPE_F32:
            return False
        name = weight_name(tensor.src[0].contents.name)
        return name.startswith("blk.") or (self._process_output and name == OUTPUT)

    def _add_dense(self, name: str, tensor: Any) -> None:
        weights, inputs = tensor.src[0].contents, values(tensor.src[1].contents, np.float32)
        # Matrices of a 3-D weight take turns; a 2-D weight is multiplied with all there is.
        outer, inner, columns = weights.ne[3], weights.ne[2], inputs.shape[-1]
        squares = np.square(inputs, dtype=np.float64).sum(axis=2)
        squares = squares.reshape(-1, outer, inputs.shape[1], columns).sum(axis=0)
        squares = squares.reshape(outer, -1, inner, columns).sum(axis=1)
        tokens = inputs.size // columns // (outer * inner)
        self._add(name, squares.reshape(1, -1), np.array([tokens], np.int64))

    def _add_routed(self, name: str, tensor: Any) -> None:
        """Add the squared inputs of a `GGML_OP_MUL_MAT_ID` node to each expert that a token used.

        Sums are (experts, columns), counts (experts,), as llama.cpp's imatrix tool collects them.
        """
        experts = tensor.src[0].contents.ne[2]
        inputs = values(tensor.src[1].contents, np.float32)[0]  # (tokens, 1 or used, columns)
        ids = values(tensor.src[2].contents, np.int32)[0, 0]  # (tokens, used)
        used = ids.shape[1]
        sums, counts = np.zeros((experts, inputs.shape[-1])), np.bincount(ids.reshape(-1), minlength=experts)
        order = np.argsort(ids, axis=None, kind="stable")
        for expert, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            if rows.size:
                mine = inputs[rows // used, rows % used % inputs.shape[1]]
                sums[expert] = np.square(mine, dtype=np.float64).sum(axis=0)
        self._add(name, sums, counts.astype(np.int64))

    def _add(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        if not np.isfinite(sums).all():
            raise LlamaError(f"the activations that enter {name} are not finite")
        if name in self.sums and self.sums[name].shape != sums.shape:
            raise LlamaError(f"{name} is multiplied both as one matrix and as experts, which no matrix file can hold")
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts


def weight_name(name: bytes) -> str:
    """A weight's own name: the scheduler calls copies on another device DEVICE#NAME#N."""
    parts = name.decode("utf-8", errors="replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
