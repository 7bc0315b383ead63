"""Rank correlation, against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.search.correlation import spearman

FLOATS = st.lists(st.floats(-100, 100), min_size=3, max_size=30)


@given(FLOATS, st.data())
def test_spearman_is_that_of_scipy(first: list[float], data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    second = data.draw(st.lists(st.floats(-100, 100), min_size=len(first), max_size=len(first)))
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found == 0.0
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
