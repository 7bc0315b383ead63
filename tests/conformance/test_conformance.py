"""Family × variant × type: the exactness of F32, the rounding of the others, and the page that states it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from docs.generate import CONFORMANCE_PAGE, conformance_row, magnitude
from gguf_tools.evaluation.conformance import EXACT, cases, run

APPROXIMATE = ("moe-model", "nonzero bias")

TYPICAL = {"f16": 2e-5, "q8_0": 2e-2, "q4_k_m": 5e-2}
"""Bounds on the median position's NMSE against the file's own decoded weights.

llama.cpp rounds the inputs of each product to the partner of the weights' type: F16 to 11 bits, 8-bit blocks to a 127th of
the largest of 32 or 256 values. Some dozens of products lie between a token and its logits. The median, because the choice of
an expert is a jump: where rounding turns it round, that position's logits are other ones altogether.
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def documented() -> dict[str, float]:
    """The page's rows without their end → the NMSE stated."""
    rows = [line.rsplit(" ≤ ", 1) for line in CONFORMANCE_PAGE.read_text("utf-8").splitlines() if " ≤ " in line]
    return {start: float(end.rstrip(" |")) for start, end in rows}


@pytest.mark.parametrize(("family", "variant"), cases())
def test_f32_is_exact_and_as_documented(family: str, variant: str, tmp_path: Path) -> None:
    outcome = run(family, variant, tmp_path)
    if (family, variant) == APPROXIMATE:
        assert outcome.exact_refused
        assert "router bias" in outcome.exact_refused
        assert outcome.typical <= EXACT, "llama.cpp runs the approximate model exactly"
    else:
        assert outcome.exact_refused is None
        assert outcome.nmse <= EXACT
    row = conformance_row(outcome)
    assert row in documented(), "run make docs"
    # One order of magnitude is left for another processor's order of sums.
    assert magnitude(outcome.nmse) <= 10 * documented()[row], "run make docs"


def test_the_page_has_no_other_rows() -> None:
    assert len(documented()) == len(cases()), "run make docs"


@pytest.mark.parametrize("type_name", TYPICAL)
@pytest.mark.parametrize(("family", "variant"), cases())
def test_other_types_round_no_more_than_activations(family: str, variant: str, type_name: str, tmp_path: Path) -> None:
    outcome = run(family, variant, tmp_path, type_name)
    assert outcome.typical <= TYPICAL[type_name]
