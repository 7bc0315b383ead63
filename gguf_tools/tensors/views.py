"""Lazy views of tensors: reshaped, joined, rows and columns selected, elements mapped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import NARROW, Tensor
from quant.encode import FloatArray, RawArray
from quant.types import F32, TensorType

PIECE = 1 << 20
"""Elements of a base that `Transposed` reads at a time."""


class View(Tensor):
    """A tensor read from other tensors, its `parts`, from which it takes its type and the names of its sources."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that this one is read from."""

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return common_dtype(self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.sources))


def common_dtype(tensors: Sequence[Tensor]) -> str:
    """The type that all tensors share, or F32 if they differ."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else "F32"


@dataclass(frozen=True)
class Reshaped(View):
    """The same elements in another shape."""

    base: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if prod(self.shape) != self.base.size:
            raise ValueError(f"{self.base.sources} of shape {self.base.shape} cannot be reshaped to {self.shape}")

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    @property
    def stored(self) -> TensorType:
        return self.base.stored

    def flat(self, start: int, stop: int) -> FloatArray:
        return self.base.flat(start, stop)

    def raw(self, start: int, stop: int) -> RawArray:
        return self.base.raw(start, stop)

    def stored_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.base.stored_bytes(start, stop)


class Selection(View):
    """Elements of its parts in another order; `raw` copies F16 and BF16 elements without widening them."""

    @abstractmethod
    def pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, int, int, int]]:
        """The contiguous pieces of elements `start` to `stop`: (part, begin and end in the part, offset in the result)."""

    @property
    def stored(self) -> TensorType:
        types = {part.stored for part in self.parts}
        dtype = types.pop() if len(types) == 1 else F32
        return dtype if dtype in NARROW else F32

    def flat(self, start: int, stop: int) -> FloatArray:
        out = np.empty(stop - start, np.float32)
        for part, begin, end, at in self.pieces(start, stop):
            out[at : at + end - begin] = part.flat(begin, end)
        return out

    def raw(self, start: int, stop: int) -> RawArray:
        if self.stored is F32:
            return self.flat(start, stop)
        out = np.empty(stop - start, np.uint16)
        for part, begin, end, at in self.pieces(start, stop):
            out[at : at + end - begin] = part.raw(begin, end)
        return out


@dataclass(frozen=True, eq=False)
class Taken(Selection):
    """Entries of the first axis, in the order of `index`, which may repeat or omit entries."""

    base: Tensor
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.index), *self.base.shape[1:])

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, int, int, int]]:
        width = prod(self.base.shape[1:])
        first, last = start // width, -(-stop // width)
        index = self.index[first:last]
        # Consecutive entries are read in one piece.
        breaks = np.flatnonzero(np.diff(index) != 1) + 1
        for left, right in zip([0, *breaks], [*breaks, len(index)], strict=True) if len(index) else ():
            begin = max(start, (first + left) * width)
            end = min(stop, (first + right) * width)
            source = int(index[left]) * width + begin - (first + left) * width
            yield self.base, source, source + end - begin, begin - start


@dataclass(frozen=True)
class Joined(Selection):
    """The elements of several tensors one after another, in `shape`: concatenated along the first axis, or stacked."""

    tensors: tuple[Tensor, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(part.size for part in self.tensors) != prod(self.shape):
            raise ValueError(f"{len(self.tensors)} parts do not fill the shape {self.shape}")

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.tensors

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, int, int, int]]:
        offset = 0
        for part in self.tensors:
            begin, end = max(start, offset), min(stop, offset + part.size)
            if begin < end:
                yield part, begin - offset, end - offset, begin - start
            offset += part.size


@dataclass(frozen=True, eq=False)
class Columns(View):
    """Column selection over matrices concatenated along the last axis: `index` lists the columns kept, in order."""

    tensors: tuple[Tensor, ...]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len({part.shape[:-1] for part in self.tensors}) != 1:
            raise ValueError(f"cannot set shapes {[part.shape for part in self.tensors]} side by side")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.tensors[0].shape[:-1], len(self.index))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.tensors

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        width = len(self.index)
        first, last = start // width, -(-stop // width)
        rows = [part.flat(first * part.columns, last * part.columns).reshape(-1, part.columns) for part in self.tensors]
        taken = np.concatenate(rows, axis=1)[:, self.index]
        return np.ascontiguousarray(taken, np.float32).reshape(-1)[start - first * width : stop - first * width]


@dataclass(frozen=True)
class Transposed(View):
    """A matrix with its axes exchanged; any range of it is read by passing through the base once, in pieces."""

    base: Tensor

    def __post_init__(self) -> None:
        if len(self.base.shape) != 2:
            raise ValueError(f"{self.base.sources} of shape {self.base.shape} is not a matrix to transpose")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.base.shape[::-1]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def flat(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop` of the transposed matrix: columns of the base, whose rows are read in pieces."""
        if stop <= start:
            return np.empty(0, np.float32)
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        out = np.empty((last - first, width), np.float32)
        columns = self.base.columns
        step = max(1, PIECE // columns)
        for row in range(0, width, step):
            block = self.base.flat(row * columns, min(row + step, width) * columns).reshape(-1, columns)
            out[:, row : row + len(block)] = block[:, first:last].T
        return out.reshape(-1)[start - first * width : stop - first * width]


@dataclass(frozen=True, eq=False)
class Computed(View):
    """Computed elements, in the shape of the first part."""

    dtype: str = field(default="F32", kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.parts[0].shape


Elementwise = Callable[[FloatArray, int], NDArray[np.floating]]
"""(flat piece, its offset in the tensor) → the mapped values, as many as in the piece."""


@dataclass(frozen=True, eq=False)
class Mapped(Computed):
    """Each element mapped by `function`; `label` describes the function in plans and provenance.

    `factors` are what it multiplies each entry of the first axis with (one number for all), if it does nothing else but add
    constants; None if it is another function.
    """

    base: Tensor
    function: Elementwise
    label: str
    factors: NDArray[np.floating] | float | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def flat(self, start: int, stop: int) -> FloatArray:
        return np.asarray(self.function(self.base.flat(start, stop), start), np.float32)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """The parts joined along the first axis; all other axes must agree."""
    rest = {part.shape[1:] for part in parts}
    if len(rest) != 1:
        raise ValueError(f"cannot join shapes {[part.shape for part in parts]} along the first axis")
    return Joined(tuple(parts), (sum(part.shape[0] for part in parts), *rest.pop()))


def stack(parts: Sequence[Tensor]) -> Tensor:
    """The parts as entries of a new first axis; all shapes must agree."""
    shapes = {part.shape for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"cannot stack shapes {sorted(shapes)}")
    return Joined(tuple(parts), (len(parts), *shapes.pop()))


def take(base: Tensor, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """The entries `index` of the first axis, lazily; raises ValueError for an index out of range."""
    if isinstance(index, range):
        # Checked before the array is made: the bounds may come from a corrupt file and be arbitrarily large.
        inside = not index or (min(index[0], index[-1]) >= 0 and max(index[0], index[-1]) < base.shape[0])
    else:
        index = np.asarray(index, np.int64)
        inside = not len(index) or (int(index.min()) >= 0 and int(index.max()) < base.shape[0])
    if not inside:
        raise ValueError(f"{', '.join(base.sources)} of shape {base.shape} lacks some of the rows that are asked for")
    return Taken(base, np.asarray(index, np.int64))


def scaled(base: Tensor, factor: float) -> Tensor:
    """Every element times `factor`, computed in float64 and rounded once."""
    return Mapped(base, lambda x, _: x.astype(np.float64) * factor, f"× {factor:g}", factor)


def shifted(base: Tensor, offset: float) -> Tensor:
    """Every element plus `offset`."""
    return Mapped(base, lambda x, _: x.astype(np.float64) + offset, f"{offset:+g}", 1.0)


def scaled_rows(base: Tensor, factors: NDArray[np.floating]) -> Tensor:
    """Entry i of the first axis times factors[i]."""
    width = prod(base.shape[1:])

    def function(x: FloatArray, start: int) -> NDArray[np.floating]:
        return x.astype(np.float64) * factors[(np.arange(start, start + len(x)) // width)]

    return Mapped(base, function, "× a factor a row", factors)


def take_rows(tensor: Tensor, blocks: int, first: int, count: int) -> Tensor:
    """Rows `first` to `first + count` of each of the `blocks` equal blocks that the first axis consists of."""
    size, rest = divmod(tensor.shape[0], blocks) if blocks > 0 else (0, 1)
    if rest or first + count > size:
        raise ValueError(
            f"{', '.join(tensor.sources)} of shape {tensor.shape} is not {blocks} blocks of {first + count} rows"
        )
    return take(tensor, [block * size + row for block in range(blocks) for row in range(first, first + count)])


def interleave_rows(parts: Sequence[Tensor], blocks: int) -> Tensor:
    """The inverse of `take_rows`: for every b, block b of each part in turn; each part has `blocks` equal blocks of rows."""
    joined = concatenate(parts)
    starts = [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + part.shape[0])
    sizes = [part.shape[0] // blocks for part in parts]
    index = [
        start + b * size + row
        for b in range(blocks)
        for start, size in zip(starts, sizes, strict=True)
        for row in range(size)
    ]
    return take(joined, index)


def take_columns(base: Tensor, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """The columns `index` of a matrix, lazily; of a transposed matrix the rows of its base, which are read in pieces."""
    if isinstance(base, Transposed):
        return Transposed(take(base.base, index))
    return Columns((base,), np.asarray(index, np.int64))


def transposed(base: Tensor) -> Tensor:
    """A matrix with its axes exchanged; that of a transposed matrix is its base."""
    return base.base if isinstance(base, Transposed) else Transposed(base)


def matrices(stacked: Tensor) -> list[Tensor]:
    """The matrices that a tensor of three axes consists of; those that it was joined from, if it was."""
    if isinstance(stacked, Joined) and all(part.shape == stacked.shape[1:] for part in stacked.tensors):
        return list(stacked.tensors)
    return [Reshaped(take(stacked, range(n, n + 1)), stacked.shape[1:]) for n in range(stacked.shape[0])]
