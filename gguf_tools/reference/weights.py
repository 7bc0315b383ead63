"""Loads a model's weights into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
import torch

from gguf_tools.model.spec import Layer
from gguf_tools.tensors.base import Tensor

Weights = Mapping[str, torch.Tensor]
"""Weights by role; those of a layer by role relative to the layer."""
READ_ELEMENTS = 1 << 22


def load(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor in memory as `dtype`, read in pieces."""
    out = torch.empty(tensor.size, dtype=dtype)
    for start in range(0, tensor.size, READ_ELEMENTS):
        stop = min(start + READ_ELEMENTS, tensor.size)
        out[start:stop] = torch.from_numpy(np.ascontiguousarray(tensor.flat(start, stop)))
    return out.reshape(tensor.shape)


def load_all(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
    """Each tensor in memory as `dtype`."""
    return {role: load(tensor, dtype) for role, tensor in tensors.items()}


def load_layer(layer: Layer, dtype: torch.dtype) -> Weights:
    """A layer's weights in memory, times the factors of its spec."""
    weights, factors = load_all(layer.tensors, dtype), dict(layer.spec.multipliers)
    return {role: w * factors[role] if role in factors else w for role, w in weights.items()}


class StreamedLayers(Sequence[Weights]):
    """The weights of the layers, each read when it is asked for; only the last one stays in memory."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        self._layers = layers
        self._dtype = dtype
        self._last: tuple[int, Weights] | None = None

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, index: int) -> Weights: ...

    @overload
    def __getitem__(self, index: slice) -> list[Weights]: ...

    def __getitem__(self, index: int | slice) -> Weights | list[Weights]:
        """A layer's weights, or those of several layers, which then are all in memory."""
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        number = range(len(self))[index]
        if self._last is None or self._last[0] != number:
            self._last = None  # frees the memory before the next one is read
            self._last = number, load_layer(self._layers[number], self._dtype)
        return self._last[1]
