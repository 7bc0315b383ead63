"""Loads a model's weights into memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

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
