"""What low-rank terms change in a tensor that is computed from matrices with such terms: the change as a product of factors.

Views that select, join, transpose or scale rows and columns act on the factors: those of rows on the left one, those of
columns on the right one. So the change of a view is found without its elements.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.low_rank import LowRank, is_merged
from gguf_tools.tensors.products import Centred, RowsMapped, ScaledColumns
from gguf_tools.tensors.views import Columns, Mapped, Reshaped, Selection, Transposed

Doubles = NDArray[np.float64]


class NotLowRankError(ValueError):
    """A computation that low-rank factors do not pass through; the text says which."""


@dataclass(frozen=True, eq=False)
class Change:
    """A summand `left` · `right`, shapes (rows, rank) and (rank, columns). Those with the same `key` have the same `right`."""

    key: Hashable
    left: Doubles
    right: Doubles


def rows_of(tensor: Tensor) -> int:
    """The number of rows (along the last axis), counted over all other axes."""
    return prod(tensor.shape[:-1])


def changes(tensor: Tensor, first: int, last: int) -> list[Change]:
    """The change of rows `first` to `last` (counted over all axes but the last); empty if nothing changes.

    Raises NotLowRankError if it is not a product of factors.
    """
    return _of(tensor, first, last) if is_merged(tensor) else []


def joined(parts: Sequence[Change]) -> tuple[Doubles, Doubles]:
    """The sum of at least one change as one pair of factors."""
    return np.concatenate([part.left for part in parts], axis=1), np.concatenate([part.right for part in parts])


@singledispatch
def _of(tensor: Tensor, first: int, last: int) -> list[Change]:
    raise NotLowRankError(f"it is changed in another way than by a product of factors ({type(tensor).__name__})")


@_of.register
def _(tensor: LowRank, first: int, last: int) -> list[Change]:
    found = [*changes(tensor.base, first, last)]
    for term in tensor.terms:
        left, right = term.factors()
        found.append(Change(term, term.scale * left[first:last].astype(np.float64), right.astype(np.float64)))
    return found


@_of.register
def _(tensor: Reshaped, first: int, last: int) -> list[Change]:
    _same_columns(tensor, tensor.base)
    return changes(tensor.base, first, last)


@_of.register
def _(tensor: Selection, first: int, last: int) -> list[Change]:
    """The changed parts' rows at their places; each part is asked once, for all the rows that are taken of it."""
    width = tensor.columns
    places: dict[int, list[tuple[int, int, int]]] = {}
    parts: dict[int, Tensor] = {}
    for part, begin, end, at in tensor.pieces(first * width, last * width):
        if id(part) not in parts:
            parts[id(part)] = part
        places.setdefault(id(part), []).append((begin // width, end // width, at // width))
    found: dict[Hashable, Change] = {}
    for key, part in parts.items():
        if not is_merged(part):
            continue
        _same_columns(tensor, part)
        pieces = places[key]
        start = min(begin for begin, _, _ in pieces)
        for change in changes(part, start, max(end for _, end, _ in pieces)):
            if change.key not in found:
                found[change.key] = replace(change, left=np.zeros((last - first, change.left.shape[1])))
            for begin, end, at in pieces:
                found[change.key].left[at : at + end - begin] = change.left[begin - start : end - start]
    return list(found.values())


@_of.register
def _(tensor: Transposed, first: int, last: int) -> list[Change]:
    whole = changes(tensor.base, 0, rows_of(tensor.base))
    return [
        Change((change.key, "transposed", id(tensor)), change.right.T[first:last], change.left.T) for change in whole
    ]


@_of.register
def _(tensor: Columns, first: int, last: int) -> list[Change]:
    found, start = [], 0
    for part in tensor.tensors:
        inside = (tensor.index >= start) & (tensor.index < start + part.columns)
        for change in changes(part, first, last):
            right = np.zeros((len(change.right), len(tensor.index)))
            right[:, inside] = change.right[:, tensor.index[inside] - start]
            found.append(replace(change, key=(change.key, "columns", id(tensor), start), right=right))
        start += part.columns
    return found


@_of.register
def _(tensor: Mapped, first: int, last: int) -> list[Change]:
    if tensor.factors is None:
        raise NotLowRankError(f"a function is applied to its elements ({tensor.label})")
    factors = np.broadcast_to(np.asarray(tensor.factors, np.float64), (tensor.shape[0],))
    each = prod(tensor.shape[1:-1])
    rows = factors[np.arange(first, last) // each][:, None]
    return [replace(change, left=change.left * rows) for change in changes(tensor.base, first, last)]


@_of.register
def _(tensor: ScaledColumns, first: int, last: int) -> list[Change]:
    if is_merged(tensor.factors):
        raise NotLowRankError("it is multiplied with another changed tensor")
    factors = tensor.factors.array().astype(np.float64) + tensor.offset
    return [
        replace(change, key=(change.key, "scaled", id(tensor)), right=change.right * factors)
        for change in changes(tensor.base, first, last)
    ]


@_of.register
def _(tensor: RowsMapped, first: int, last: int) -> list[Change]:
    if not tensor.linear:
        raise NotLowRankError(f"a function is applied to its rows ({tensor.label})")
    return [
        replace(change, key=(change.key, "mapped", id(tensor)), right=tensor.function(change.right))
        for change in changes(tensor.base, first, last)
    ]


@_of.register
def _(tensor: Centred, first: int, last: int) -> list[Change]:
    if len(tensor.shape) != 2:
        raise NotLowRankError("the mean over its outputs is taken off")
    whole = changes(tensor.base, 0, rows_of(tensor.base))
    return [replace(change, left=(change.left - change.left.mean(axis=0))[first:last]) for change in whole]


def _same_columns(tensor: Tensor, part: Tensor) -> None:
    if tensor.columns != part.columns or len(part.shape) < 2:
        raise NotLowRankError(f"its elements are laid out anew ({part.shape} as {tensor.shape})")
