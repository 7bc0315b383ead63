"""The context length that the user gives: every family heeds it, or says why it cannot."""

from __future__ import annotations

import pytest

from gguf_tools.errors import UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.families.registry import build_model, own_families
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.made_checkpoints import Made

FAMILIES = [family for family in own_families() if family.variants]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_heeds_it_or_refuses(made: Made, family: Family) -> None:
    checkpoint = open_checkpoint(made(family.name, next(iter(family.variants))))
    positions = build_model(checkpoint).spec.positions
    if not positions:
        assert build_model(checkpoint.with_context_length(72)).spec.context_length == 72
        return
    assert build_model(checkpoint.with_context_length(positions)).spec.context_length == positions
    with pytest.raises(UnsupportedError, match=f"--context-length is 72, .* a table of {positions} rows") as error:
        build_model(checkpoint.with_context_length(72))
    assert "\n" not in str(error.value)
