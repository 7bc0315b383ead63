"""Collecting activation statistics while llama.cpp computes. For the worker process only.

Source: `collect_imatrix` of llama.cpp's tools/imatrix. For each weight matrix of a layer, the squared input activations are
summed over tokens; for an expert, over the tokens routed to it.
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
    """Sums of squares and token counts by tensor name: sums (matrices, columns) in float64, counts (matrices,).

    `observe` is llama.cpp's evaluation callback. An exception in it is stored in `error`, and the computation is stopped.
    """

    def __init__(self, process_output: bool) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.error: Exception | None = None
        self._process_output = process_output
        self._dense, self._routed = op_number("MUL_MAT"), op_number("MUL_MAT_ID")

    def observe(self, tensor: Any, ask: bool) -> bool:
        """With `ask`: whether this graph node's result is needed. Without: collect it and return whether to continue."""
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
        # Inputs are broadcast over the matrices of a 3-D weight; a 2-D weight is multiplied with all inputs.
        outer, inner, columns = weights.ne[3], weights.ne[2], inputs.shape[-1]
        squares = np.square(inputs, dtype=np.float64).sum(axis=2)
        squares = squares.reshape(-1, outer, inputs.shape[1], columns).sum(axis=0)
        squares = squares.reshape(outer, -1, inner, columns).sum(axis=1)
        tokens = inputs.size // columns // (outer * inner)
        self._add(name, squares.reshape(1, -1), np.array([tokens], np.int64))

    def _add_routed(self, name: str, tensor: Any) -> None:
        """Add the squared inputs of a `GGML_OP_MUL_MAT_ID` node to the sums of each token's selected experts.

        Sums are (experts, columns), counts (experts,), as llama.cpp's imatrix tool collects them.
        """
        experts = tensor.src[0].contents.ne[2]
        inputs = values(tensor.src[1].contents, np.float32)[0]  # (tokens, 1 or top_k, columns)
        ids = values(tensor.src[2].contents, np.int32)[0, 0]  # (tokens, top_k)
        top_k = ids.shape[1]
        sums, counts = np.zeros((experts, inputs.shape[-1])), np.bincount(ids.reshape(-1), minlength=experts)
        order = np.argsort(ids, axis=None, kind="stable")
        for expert, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            if rows.size:
                mine = inputs[rows // top_k, rows % top_k % inputs.shape[1]]
                sums[expert] = np.square(mine, dtype=np.float64).sum(axis=0)
        self._add(name, sums, counts.astype(np.int64))

    def _add(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        if not np.isfinite(sums).all():
            raise LlamaError(f"the input activations of {name} are not finite; check the model's weights")
        if name in self.sums and self.sums[name].shape != sums.shape:
            raise LlamaError(
                f"{name} is used both as one matrix and as a stack of experts, which an importance matrix cannot record"
            )
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts


def weight_name(name: bytes) -> str:
    """A weight's name in the file: ggml's scheduler names copies on another device DEVICE#NAME#N."""
    parts = name.decode("utf-8", errors="replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
