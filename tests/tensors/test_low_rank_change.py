"""Changes through views: products of factors against the difference of the views' elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gguf_tools.tensors.base import Filled, InMemory, Tensor
from gguf_tools.tensors.low_rank import LowRank, Term, is_merged
from gguf_tools.tensors.low_rank_change import NotLowRankError, changes, joined, rows_of
from gguf_tools.tensors.products import Centred, Product, RowsMapped, ScaledColumns
from gguf_tools.tensors.views import (
    Columns,
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
)

RNG = np.random.default_rng(5)


def values(*shape: int) -> InMemory:
    return InMemory(RNG.normal(size=shape).astype(np.float32))


W, V, GAIN = values(6, 4), values(6, 4), values(4)
TERM = Term(values(6, 2), values(2, 4), 0.5)
OTHER = Term(values(4, 1), values(1, 6), -2.0, transposed=True)

View = Callable[[Tensor], Tensor]
VIEWS: dict[str, View] = {
    "itself": lambda t: t,
    "rows": lambda t: take(t, [5, 0, 0, 3]),
    "joined": lambda t: concatenate([V, t, Filled((2, 4)), take(t, [1])]),
    "stacked": lambda t: stack([V, t, scaled(t, 3.0)]),
    "one of a stack": lambda t: take(stack([V, t, V]), [2, 1]),
    "interleaved": lambda t: interleave_rows([t, V], 3),
    "reshaped": lambda t: Reshaped(t, (2, 3, 4)),
    "blocks of rows": lambda t: take(Reshaped(t, (3, 2, 4)), [2, 0]),
    "transposed": Transposed,
    "transposed twice": lambda t: take(Transposed(take(Transposed(t), [3, 1])), [0, 5, 2]),
    "columns": lambda t: Columns((V, t), np.array([1, 6, 7, 0, 6])),
    "scaled": lambda t: scaled(shifted(t, 1.0), -0.25),
    "scaled rows": lambda t: scaled_rows(t, np.arange(6.0)),
    "scaled stack": lambda t: scaled_rows(stack([t, V, t]), np.array([2.0, 3.0, 0.5])),
    "scaled columns": lambda t: ScaledColumns(t, GAIN, 1.0),
    "centred outputs": Centred,
    "centred rows": lambda t: RowsMapped(t, lambda rows: rows - rows.mean(axis=1, keepdims=True), "centred", True),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("terms", [(TERM,), (TERM, OTHER)])
def test_the_factors_of_a_view_are_its_change(name: str, terms: tuple[Term, ...]) -> None:
    before, after = VIEWS[name](W), VIEWS[name](LowRank(W, terms))
    wanted = (after.array().astype(np.float64) - before.array()).reshape(-1, after.columns)
    rows = rows_of(after)
    assert is_merged(after)
    assert not is_merged(before)
    for first, last in ((0, rows), (1, rows - 1), (rows - 1, rows)):
        if found := changes(after, first, last):
            left, right = joined(found)
            np.testing.assert_allclose(left @ right, wanted[first:last], atol=1e-6)
        else:
            np.testing.assert_allclose(wanted[first:last], 0, atol=1e-6)


def test_what_shares_a_factor_is_not_counted_twice() -> None:
    tensor = LowRank(W, (TERM,))
    found = changes(concatenate([take(tensor, [3, 4]), tensor, take(tensor, [0])]), 0, 9)
    assert [part.right.shape for part in found] == [(2, 4)]


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (lambda t: Mapped(t, lambda x, _: x * x, "squared"), "a function is applied to its elements .squared"),
        (lambda t: RowsMapped(t, lambda rows: rows / 2, "halved"), "a function is applied to its rows .halved"),
        (lambda t: Product(t, GAIN), "another way than by a product of factors .Product"),
        (lambda t: Reshaped(t, (4, 6)), "laid out anew"),
        (lambda t: ScaledColumns(V, take(Reshaped(t, (24,)), range(4))), "multiplied with another changed tensor"),
        (lambda t: Centred(Reshaped(t, (2, 3, 4))), "the mean over its outputs"),
    ],
)
def test_other_computations_are_refused(view: View, says: str) -> None:
    with pytest.raises(NotLowRankError, match=says):
        changes(view(LowRank(W, (TERM,))), 0, 2)
