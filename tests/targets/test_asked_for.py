"""A target that is asked for, in place of the family's own, gives the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_tools.evaluation.conformance import Case, hold_exact, measure
from gguf_tools.families.registry import family_named

CASES = [
    ("qwen3-next", "irregular", "qwen35moe"),
    ("qwen3-next", "wide-keys", "qwen35moe"),
    ("qwen3-next", "output-bias", "qwen35moe"),
]


@pytest.mark.parametrize(("family", "variant", "target"), CASES)
def test_same_logits(tmp_path: Path, family: str, variant: str, target: str) -> None:
    case = Case(family_named(family), variant)
    source = case.write(tmp_path)
    hold_exact(measure(case.request(source, type="f32", target=target), tmp_path / "out.gguf"))
