"""Splits a tensor into blocks for the encoder, for `tinyq convert` and `tinyq quantize`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gguf_tools.tensors.base import Tensor
from quant.encode import Block, FloatArray, RawArray, RowRange, row_ranges
from quant.types import F32, TensorType

MEASURED = 8
"""One block in this many is decoded again to measure its error, at 2 to 4 ns per weight (as long as encoding to Q8_0)."""


def tensor_blocks(
    name: str, dtype: TensorType, tensor: Tensor, importance: FloatArray | None = None
) -> Iterator[Block]:
    """Blocks of whole rows that make up `tensor`, to be encoded as `dtype`.

    Where the stored type allows, rows are passed on in that type, and the encoder widens them. `importance`, shape (matrices,
    columns), has a row for each matrix of the tensor. Of every `MEASURED` blocks the first is measured.
    """
    by_matrix = importance is not None and len(importance) > 1
    source = tensor.stored if tensor.columns % tensor.stored.block == 0 else F32
    for at, part in enumerate(row_ranges(tensor.shape, by_matrix)):
        yield Block(
            name=name,
            type=dtype,
            rows=partial(_rows, tensor, source, part),
            source=source,
            imatrix=None if importance is None else importance[part.matrix if by_matrix else 0],
            measure=at % MEASURED == 0,
        )


def _rows(tensor: Tensor, source: TensorType, part: RowRange) -> RawArray:
    start, stop = part.start * tensor.columns, part.stop * tensor.columns
    flat = tensor.flat(start, stop) if source is F32 else tensor.raw(start, stop)
    rows: RawArray = flat.reshape(part.stop - part.start, -1)
    return rows
