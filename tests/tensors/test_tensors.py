"""The algebra of lazy tensors: whatever is composed, read in whatever pieces, is what numpy makes of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_tools.tensors.base import Filled, InMemory, Tensor, same_values
from gguf_tools.tensors.views import (
    Columns,
    Joined,
    Mapped,
    Reshaped,
    Transposed,
    concatenate,
    interleave_rows,
    scaled,
    scaled_rows,
    shifted,
    stack,
    take,
    take_columns,
    take_rows,
)
from quant.encode import FloatArray, widen
from quant.types import BF16, F16, F32, TensorType

Pair = tuple[Tensor, FloatArray]
"""A lazy tensor, and what it ought to be."""

numbers = st.floats(-8, 8, width=32)
MAX_ELEMENTS = 4096


@dataclass(frozen=True, eq=False)
class Narrow(Tensor):
    """Numbers that are stored in two bytes, as a file's tensors give them."""

    bits: NDArray[np.uint16]
    kind: TensorType

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.bits.shape

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.kind.name.upper()

    @property
    def sources(self) -> tuple[str, ...]:
        return ("narrow",)

    @property
    def stored(self) -> TensorType:
        return self.kind

    def raw(self, start: int, stop: int) -> NDArray[np.uint16]:
        return self.bits.reshape(-1)[start:stop]

    def flat(self, start: int, stop: int) -> FloatArray:
        return widen(self.raw(start, stop), self.kind)


@st.composite
def leaves(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> Pair:
    """Random numbers, narrow or not, or a constant."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)) if shape is None else shape
    what = draw(st.sampled_from(("constant", "plain", F16, BF16)))
    if what == "constant":
        value = draw(numbers)
        return Filled(shape, value), np.full(shape, value, np.float32)
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)
    if isinstance(what, TensorType):
        raw = values.astype(np.float16).view(np.uint16) if what is F16 else values.view(np.uint32) >> 16
        narrow = Narrow(raw.astype(np.uint16), what)
        return narrow, narrow.flat(0, narrow.size).reshape(shape)
    return InMemory(values, ("leaf",)), values


def rounded(values: NDArray[Any]) -> FloatArray:
    return values.astype(np.float32)


@st.composite
def changed(draw: st.DrawFn, pairs: st.SearchStrategy[Pair]) -> Pair:
    """One operation on a tensor."""
    tensor, array = draw(pairs)
    rows = array.shape[0]
    match draw(st.integers(0, 7)):
        case 0:
            index = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=8))
            return take(tensor, index), array[index]
        case 1:
            shape = draw(st.sampled_from([(array.size,), (1, array.size), (array.size, 1), array.shape[::-1]]))
            return Reshaped(tensor, shape), array.reshape(shape)
        case 2:
            factor = draw(numbers)
            return scaled(tensor, factor), rounded(array.astype(np.float64) * factor)
        case 3:
            offset = draw(numbers)
            return shifted(tensor, offset), rounded(array.astype(np.float64) + offset)
        case 4:
            factors = np.array(draw(st.lists(numbers, min_size=rows, max_size=rows)), np.float64)
            wide = factors.reshape(-1, *[1] * (array.ndim - 1))
            return scaled_rows(tensor, factors), rounded(array.astype(np.float64) * wide)
        case 5:
            blocks = draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
            size = rows // blocks
            first = draw(st.integers(0, size - 1))
            count = draw(st.integers(1, size - first))
            split = array.reshape(blocks, size, *array.shape[1:])[:, first : first + count]
            return take_rows(tensor, blocks, first, count), split.reshape(-1, *array.shape[1:])
        case 6:
            columns = draw(st.lists(st.integers(0, array.shape[-1] - 1), min_size=1, max_size=6))
            return take_columns(tensor, columns), array[..., columns]
        case _:
            start = draw(st.integers(0, rows - 1))
            stop = draw(st.integers(start + 1, rows))
            return take(tensor, range(start, stop)), array[start:stop]


@st.composite
def merged(draw: st.DrawFn, pairs: st.SearchStrategy[Pair]) -> Pair:
    """Several tensors put together, the first deciding about shapes."""
    tensor, array = draw(pairs)
    others = [draw(leaves(array.shape)) for _ in range(draw(st.integers(0, 2)))]
    tensors, arrays = [tensor, *(t for t, _ in others)], [array, *(a for _, a in others)]
    match draw(st.integers(0, 3)):
        case 0:
            return concatenate(tensors), np.concatenate(arrays)
        case 1:
            return stack(tensors), np.stack(arrays)
        case 2:
            index = draw(st.permutations(range(len(arrays) * array.shape[-1])))
            return Columns(tuple(tensors), np.asarray(index)), np.concatenate(arrays, axis=-1)[..., list(index)]
        case _:
            rows = array.shape[0]
            blocks = draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
            cut = [part.reshape(blocks, -1, *array.shape[1:]) for part in arrays]
            return interleave_rows(tensors, blocks), np.concatenate(cut, axis=1).reshape(-1, *array.shape[1:])


compositions: st.SearchStrategy[Pair] = st.recursive(
    leaves(), lambda pairs: changed(pairs) | merged(pairs), max_leaves=6
).filter(lambda pair: pair[1].size <= MAX_ELEMENTS)


@settings(max_examples=300)
@given(compositions, st.data())
def test_any_composition_in_any_pieces_is_numpys(pair: Pair, data: st.DataObject) -> None:
    tensor, array = pair
    assert tensor.shape == array.shape
    assert tensor.size == array.size
    cuts = sorted(data.draw(st.lists(st.integers(0, array.size), max_size=6)))
    for start, stop in zip([0, *cuts], [*cuts, array.size], strict=True):
        piece = tensor.flat(start, stop)
        assert piece.dtype == np.float32
        np.testing.assert_array_equal(piece, array.reshape(-1)[start:stop])
        raw = tensor.raw(start, stop)
        if tensor.stored is not F32:
            assert raw.dtype == np.uint16
            raw = widen(raw.view(np.uint16), tensor.stored)
        np.testing.assert_array_equal(raw, piece)
    np.testing.assert_array_equal(tensor.array(), array)


@settings(max_examples=100)
@given(compositions, st.integers(1, 50))
def test_a_tensor_has_the_same_values_as_itself_in_memory_alone(pair: Pair, piece: int) -> None:
    tensor, array = pair
    assert same_values(tensor, InMemory(array), piece)
    other = array.copy()
    other.reshape(-1)[-1] += 1
    assert not same_values(tensor, InMemory(other), piece)
    assert not same_values(tensor, Filled((*array.shape, 1)), piece)


def test_names_of_the_sources_are_kept_in_order_and_once() -> None:
    a, b = (InMemory(np.ones((2, 2), np.float32), (name,)) for name in "ab")
    whole = concatenate([take(b, [1, 0]), scaled(a, 2.0), b])
    assert whole.sources == ("b", "a")
    assert Reshaped(whole, (12,)).sources == ("b", "a")
    assert Filled((3,)).sources == ()


def test_dtype_is_the_sources_where_no_number_changes() -> None:
    half = InMemory(np.ones((2, 2), np.float32), ("a",), "BF16")
    assert take_columns(half, [1]).dtype == "BF16"
    assert take(Reshaped(half, (4, 1)), [0, 3]).dtype == "BF16"
    assert stack([half, half]).dtype == "BF16"
    assert concatenate([half, Filled((1, 2))]).dtype == "F32"
    assert scaled(half, 2.0).dtype == "F32"


@pytest.mark.parametrize(
    "make",
    [
        lambda t: Reshaped(t, (5,)),
        lambda t: Joined((t, t), (4, 4)),
        lambda t: concatenate([t, Filled((2, 3))]),
        lambda t: stack([t, Filled((2, 3))]),
        lambda t: take(t, [0, 3]),
        lambda t: take(t, [-1]),
        lambda t: take(t, range(2, 4)),
        lambda t: take(t, range(1 << 60)),
        lambda t: take_rows(t, 2, 0, 2),
        lambda t: take_rows(t, 0, 0, 1),
        lambda t: take_rows(t, 1 << 60, 0, 1),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r"shape|rows|parts"):
        make(InMemory(np.zeros((3, 2), np.float32), ("some.weight",)))


def test_views_of_stored_numbers_hand_them_on_as_they_are() -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(4, 3)
    narrow = Narrow(bits, BF16)
    views = [Reshaped(narrow, (12,)), take(narrow, [2, 0]), concatenate([narrow, narrow]), take_rows(narrow, 2, 1, 1)]
    assert [view.stored for view in views] == [BF16] * 4
    np.testing.assert_array_equal(views[1].raw(0, 6), bits[[2, 0]].reshape(-1))
    others = [scaled(narrow, 2.0), concatenate([narrow, Narrow(bits, F16)]), concatenate([narrow, Filled((1, 3))])]
    assert [other.stored for other in others] == [F32] * 3


def test_nothing_is_read_before_it_is_asked_for() -> None:
    def fail(_: FloatArray, __: int) -> FloatArray:
        raise AssertionError("read")

    lazy = Mapped(Filled((1 << 20, 1 << 12)), fail, "never")
    whole = concatenate([take(lazy, range(100)), Reshaped(lazy, lazy.shape)])
    assert whole.size == prod(lazy.shape) + 100 * lazy.columns


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_transposed(rows: int, columns: int, data: st.DataObject) -> None:
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    found = Transposed(InMemory(values, ("t",)))
    start = data.draw(st.integers(0, found.size))
    stop = data.draw(st.integers(start, found.size))
    assert found.shape == (columns, rows)
    assert np.array_equal(found.flat(start, stop), values.T.reshape(-1)[start:stop])


def test_transposed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_tools.tensors.views.PIECE", 7)
    values = np.arange(60, dtype=np.float32).reshape(12, 5)
    assert np.array_equal(Transposed(InMemory(values)).array(), values.T)
    with pytest.raises(ValueError, match="not a matrix"):
        Transposed(InMemory(values.reshape(3, 4, 5)))
