"""Measures what each layer, and each expert, does to the residual stream while llama.cpp computes. For the worker process only.

A layer's input and output are the residual stream before and after it: the graph calls the output of layer N `l_out-N`, which is
the input of the next; the first layer's input is what its first norm reads. An expert's part in a token is `ffn_moe_weighted-N`,
its output times its router weight. Source: `llm_graph_context::build_moe_ffn` and `src/models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LlamaError
from gguf_tools.runtime.activations import GGML_TYPE_F32, weight_name
from gguf_tools.runtime.graph import op_number, values

OUTPUT = re.compile(r"l_out-(\d+)")
PART = re.compile(r"ffn_moe_weighted-(\d+)")
EXPERTS = re.compile(r"blk\.(\d+)\.ffn_down_exps\.weight")
FIRST = "blk.0."
EMBEDDINGS = ("embd", "inp_embd", "inp_scaled")
"""Names of the first layer's input in a model whose layers do not begin with a norm."""

Doubles = NDArray[np.float64]


class LayerChanges:
    """Sums over tokens by layer: of ‖out - in‖ / ‖in‖, of the cosine of in and out, and of each expert's ‖weight · output‖.

    `observe` is llama.cpp's callback. What goes wrong in it is kept in `error`, and the computation is stopped.
    """

    def __init__(self) -> None:
        """Start with empty sums, and look up the numbers of the operations that are told apart."""
        self.norms: dict[int, float] = {}
        self.cosines: dict[int, float] = {}
        self.tokens: dict[int, int] = {}
        self.saliency: dict[int, Doubles] = {}
        self.routed: dict[int, NDArray[np.int64]] = {}
        self.error: Exception | None = None
        self._norms = (op_number("RMS_NORM"), op_number("NORM"))
        self._products = (op_number("MUL_MAT"), op_number("MUL_MAT_ID"))
        self._begun = False
        self._stream: Doubles | None = None
        self._chosen: dict[int, tuple[int, NDArray[np.int32]]] = {}

    def observe(self, tensor: Any, ask: bool) -> bool:
        """Whether this node is wanted (`ask`), or take its numbers and say whether to go on."""
        try:
            name = tensor.name.decode("utf-8", errors="replace")
            if ask:
                return self._wanted(name, tensor)
            self._take(name, tensor)
        except Exception as error:
            self.error = error
            return False
        return True

    def begin(self) -> None:
        """Forget the stream of the batch before."""
        self._begun, self._stream = False, None

    def _wanted(self, name: str, tensor: Any) -> bool:
        if tensor.op in self._products:
            weight = weight_name(tensor.src[0].contents.name)
            self._begun = self._begun or weight.startswith(FIRST)
            return EXPERTS.fullmatch(weight) is not None
        if not self._begun and (tensor.op in self._norms or name in EMBEDDINGS):
            return True
        return OUTPUT.fullmatch(name) is not None or PART.fullmatch(name) is not None

    def _take(self, name: str, tensor: Any) -> None:
        """Take the numbers of a node: the stream before the first layer, or after one, or what experts gave."""
        output, part = OUTPUT.fullmatch(name), PART.fullmatch(name)
        if output:
            self._add_layer(int(output[1]), _rows(tensor))
        elif part:
            self._add_experts(int(part[1]), tensor)
        elif tensor.op in self._products:
            layer = EXPERTS.fullmatch(weight_name(tensor.src[0].contents.name))
            if layer:
                ids = values(tensor.src[2].contents, np.int32)[0, 0].copy()
                self._chosen[int(layer[1])] = tensor.src[0].contents.ne[2], ids
        elif not self._begun:
            self._stream = _rows(tensor.src[0].contents if tensor.op in self._norms else tensor)

    def _add_layer(self, layer: int, after: Doubles) -> None:
        """Add a layer's change, from the stream before it to `after`, both (tokens, hidden)."""
        before, self._stream = self._stream, after
        if before is None or before.shape != after.shape:
            raise LlamaError(f"the graph of this architecture does not name the input of layer {layer}")
        sizes = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
        if not (np.isfinite(sizes).all() and (sizes[0] > 0).all()):
            raise LlamaError(f"the activations around layer {layer} are not finite, or zero")
        cosines = np.einsum("ij,ij->i", before, after) / np.maximum(sizes[0] * sizes[1], np.finfo(np.float64).tiny)
        change = np.linalg.norm(after - before, axis=1) / sizes[0]
        self.norms[layer] = self.norms.get(layer, 0.0) + float(change.sum())
        self.cosines[layer] = self.cosines.get(layer, 0.0) + float(cosines.sum())
        self.tokens[layer] = self.tokens.get(layer, 0) + len(after)

    def _add_experts(self, layer: int, tensor: Any) -> None:
        """Add the sizes of the routed experts' weighted outputs, (tokens, used, hidden), to the experts that gave them."""
        if layer not in self._chosen:
            return  # The weights of this architecture come before the experts, or these are not the routed ones.
        count, ids = self._chosen.pop(layer)
        sizes = np.linalg.norm(values(tensor, np.float32)[0].astype(np.float64), axis=-1)
        if sizes.shape != ids.shape:
            raise LlamaError(f"the experts of layer {layer} gave {sizes.shape} outputs, {ids.shape} were selected")
        sums = np.bincount(ids.reshape(-1), weights=sizes.reshape(-1), minlength=count)
        self.saliency[layer] = self.saliency.get(layer, np.zeros(count)) + sums
        self.routed[layer] = self.routed.get(layer, np.zeros(count, np.int64)) + np.bincount(
            ids.reshape(-1), minlength=count
        )

    def answer(self) -> dict[str, Any]:
        """Means over tokens, by layer: what `runtime.LayerStatistics` holds, as plain lists."""
        layers = sorted(self.tokens)
        return {
            "update_norm": [self.norms[n] / self.tokens[n] for n in layers],
            "influence": [1.0 - self.cosines[n] / self.tokens[n] for n in layers],
            "layers": layers,
            "saliency": {
                str(n): (sums / np.maximum(self.routed[n], 1)).tolist() for n, sums in sorted(self.saliency.items())
            },
            "routed": {str(n): counts.tolist() for n, counts in sorted(self.routed.items())},
        }


def _rows(tensor: Any) -> Doubles:
    """A node's numbers as (tokens, hidden) in float64."""
    if tensor.type != GGML_TYPE_F32:
        raise LlamaError(f"{tensor.name.decode(errors='replace')} is not in F32")
    found: Doubles = values(tensor, np.float32).astype(np.float64)
    return found.reshape(-1, found.shape[-1])
