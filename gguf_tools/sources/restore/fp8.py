"""Dequantizing FP8 weights with scales to float32.

A weight is its 8-bit float times a scale: one scale per block of 128×128 (`weight_scale_inv`, which despite its name is a
factor: DeepSeek-V3, Qwen3 FP8), per row, or per tensor (`weight_scale`: compressed-tensors, ModelOpt, FBGEMM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Computed
from quant.encode import FloatArray

SUFFIXES = ("_scale_inv", "_scale")
BLOCK = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockScaled(Computed):
    """`base` times one scale per block of `rows` × `block_columns` elements in the last two axes.

    `grid` is the shape of the scales: (entries of the leading axes or 1, blocks of rows, blocks of columns). Products are
    computed in float64 and rounded to float32 once: a weight has 4 significant bits, a scale up to 24.
    """

    base: Tensor
    scale: Tensor
    grid: tuple[int, int, int]
    rows: int
    block_columns: int

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base, self.scale)

    @cached_property
    def _grid(self) -> FloatArray:
        return self.scale.array().reshape(self.grid)

    def flat(self, start: int, stop: int) -> FloatArray:
        """The scaled elements `start` to `stop` in row-major order as float32, shape (stop - start,)."""
        if stop <= start:
            return np.empty(0, np.float32)
        width = self.columns
        height = self.base.shape[-2] if len(self.base.shape) > 1 else 1
        first, last = start // width, -(-stop // width)
        entry, row = np.divmod(np.arange(first, last), height)
        grid = self._grid
        scales = grid[entry if len(grid) > 1 else np.zeros_like(entry), row // self.rows]
        scales = np.repeat(scales, self.block_columns, axis=1)[:, :width]
        values = self.base.flat(first * width, last * width).reshape(-1, width).astype(np.float64) * scales
        flat: FloatArray = values.astype(np.float32).reshape(-1)
        return flat[start - first * width : stop - first * width]


def widen_fp8(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its FP8 weights dequantized and their scales removed.

    Raises CheckpointError if a scale is missing or its shape does not fit its tensor's.
    """
    narrow = [name for name, tensor in checkpoint.tensors.items() if tensor.dtype in FLOAT8]
    if not narrow:
        return checkpoint
    block = _block_size(checkpoint)
    tensors = dict(checkpoint.tensors)
    scaled = 0
    for name in narrow:
        scale = next((name + suffix for suffix in SUFFIXES if name + suffix in tensors), None)
        if scale is not None:
            tensors[name] = _scaled(checkpoint, name, checkpoint.tensors[name], tensors.pop(scale), block)
            scaled += 1
    bare = len(narrow) - scaled
    if bare and (scaled or checkpoint.config.get("quantization_config")):
        name = next(name for name in narrow if not isinstance(tensors[name], BlockScaled))
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is FP8, but its scale ({name}{SUFFIXES[0]} or {name}{SUFFIXES[1]}) is missing; "
            "download the checkpoint again"
        )
    how = "multiplied by their scales" if scaled else "they have no scales"
    note = f"{len(narrow)} FP8 tensors are read as floats ({how})"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))


def _scaled(checkpoint: Checkpoint, name: str, base: Tensor, scale: Tensor, block: tuple[int, int]) -> BlockScaled:
    """`base` times its scales: by their shape one per `block` (rows, columns), per row, per expert, or for the tensor.

    Raises CheckpointError if the shape of `scale` fits none of these.
    """
    height, width = ((1, *base.shape)[-2:]) if base.shape else (1, 1)
    entries = prod(base.shape[:-2])
    found = scale.shape
    grid: tuple[int, ...]
    if scale.size == 1:
        grid = (1, 1, 1)
    elif len(found) == 1 and len(base.shape) > 1 and found[0] == base.shape[0]:
        grid = (1, height, 1) if len(base.shape) == 2 else (entries, 1, 1)
    elif len(found) == len(base.shape):
        grid = (prod(found[:-2]), *((1, *found)[-2:]))
    else:
        grid = (0, 0, 0)
    rows, columns = (
        size if have == 1 else 1 if have == size else step
        for have, size, step in zip(grid[1:], (height, width), block, strict=True)
    )
    fits = grid[0] in (1, entries) and grid[1:] == (-(-height // rows), -(-width // columns))
    if not fits:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {', '.join(scale.sources)} has shape {found}, which does not fit {name} of shape "
            f"{base.shape} in blocks of {block[0]}×{block[1]}; check weight_block_size in {CONFIG}"
        )
    return BlockScaled(base=base, scale=scale, grid=(grid[0], grid[1], grid[2]), rows=rows, block_columns=columns)


def _block_size(checkpoint: Checkpoint) -> tuple[int, int]:
    stated = checkpoint.config.get("quantization_config")
    size: Any = stated.get("weight_block_size") if isinstance(stated, Mapping) else None
    if size is None:
        return BLOCK, BLOCK
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise CheckpointError(
            f"{checkpoint.path / CONFIG}: quantization_config.weight_block_size is {size!r}; expected two positive integers; "
            "correct it"
        )
    return size[0], size[1]
