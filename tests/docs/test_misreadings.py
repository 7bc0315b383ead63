"""Each planted misreading: invisible to a conversion by itself, caught by the oracle, and as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.misreadings import ENGINE, HEAD, PAGE, find, row
from docs.planted import MISREADINGS, Misreading

ROWS = PAGE.read_text("utf-8").removeprefix(HEAD).splitlines()


@pytest.mark.parametrize("misreading", MISREADINGS, ids=lambda misreading: misreading.name)
def test_the_oracle_catches_it(misreading: Misreading, tmp_path: Path) -> None:
    found = find(misreading, tmp_path)
    assert found.alone <= ENGINE  # reference and conversion share it
    assert found.asked.bound == 1e-18
    assert not found.asked.agrees
    assert found.asked.nmse_model == pytest.approx(found.asked.nmse, rel=1e-3)  # llama.cpp is as wrong as the reference
    assert row(found) in ROWS


def test_the_page_has_them_all() -> None:
    assert len(MISREADINGS) >= 20
    assert len({misreading.name for misreading in MISREADINGS}) == len(MISREADINGS) == len(ROWS)
