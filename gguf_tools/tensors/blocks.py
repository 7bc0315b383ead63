"""Splits a tensor into blocks for the encoder, for `tinyq convert` and `tinyq quantize`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from gguf_tools.tensors.base import Tensor
from quant.encode import Block, Encoded, FloatArray, RawArray, RowRange, row_ranges
from quant.narrowing import Narrowing
from quant.types import F32, TensorType

MEASURED = 32
"""In one block of this many, and in at least one of each tensor, some weights are decoded again to measure their error."""
MEASURED_WEIGHTS = 1 << 15
"""How many: enough for an error of the RMS error below 1%, for weights of the same distribution."""


@dataclass(frozen=True)
class NonFinite:
    """How many weights of a tensor were written as NaN or infinity, and how many of them were too large for its type."""

    weights: int
    overflowed: int


@dataclass(frozen=True)
class Tally:
    """What encoding did, by tensor name, added up block by block: the changes on a sample, what is not finite in all."""

    losses: dict[str, Narrowing] = field(default_factory=dict)
    nonfinite: dict[str, NonFinite] = field(default_factory=dict)

    def add(self, encoded: Encoded) -> None:
        """Count one block."""
        name = encoded.name
        if encoded.loss:
            self.losses[name] = self.losses.get(name, Narrowing()) + encoded.loss
        if encoded.nonfinite:
            had = self.nonfinite.get(name, NonFinite(0, 0))
            self.nonfinite[name] = NonFinite(had.weights + encoded.nonfinite, had.overflowed + encoded.overflowed)


def nonfinite_rows(found: Mapping[str, NonFinite]) -> list[tuple[str, str]]:
    """What a report says of weights that are not finite: a label and a sentence, or nothing."""
    if not found:
        return []
    total = sum(one.weights for one in found.values())
    over = sum(one.overflowed for one in found.values())
    names = ", ".join(list(found)[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    large = f", {over:,} of them because they are too large for their type" if over else ""
    return [("NOT FINITE", f"{total:,} weights are NaN or infinite in {names}{large}")]


def tensor_blocks(
    name: str,
    dtype: TensorType,
    tensor: Tensor,
    importance: FloatArray | None = None,
    *,
    allow_nonfinite: bool = False,
    exact: bool = False,
) -> Iterator[Block]:
    """Blocks of whole rows that make up `tensor`, to be encoded as `dtype`.

    Where the stored type allows, rows are passed on in that type, and the encoder widens them. `importance`, shape (matrices,
    columns), has a row for each matrix of the tensor. Of every `MEASURED` blocks the first is measured, up to
    `MEASURED_WEIGHTS`. `allow_nonfinite` and `exact` are those of `Block`.
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
            first=part.start,
            measure=-(-MEASURED_WEIGHTS // max(1, tensor.columns)) if at % MEASURED == 0 else 0,
            allow_nonfinite=allow_nonfinite,
            exact=exact,
        )


def _rows(tensor: Tensor, source: TensorType, part: RowRange) -> RawArray:
    start, stop = part.start * tensor.columns, part.stop * tensor.columns
    flat = tensor.flat(start, stop) if source is F32 else tensor.raw(start, stop)
    rows: RawArray = flat.reshape(part.stop - part.start, -1)
    return rows
