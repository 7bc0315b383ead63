"""Every family on its own small checkpoint, in which one tensor has a shape that it cannot have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gguf_tools.errors import CheckpointError, TinyqError
from gguf_tools.evaluation.conformance import Case
from gguf_tools.families.base import Family
from gguf_tools.families.registry import build_model, own_families
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.targets.planner import plan
from gguf_tools.tensors.base import Filled

LATER = tuple(f".{n}." for n in range(1, 10))


def broken(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """No dimensions, one too many, and none of one dimension."""
    return {(), (*shape, 3), (0, *shape[1:])} - {shape}


def outcome(checkpoint: Checkpoint) -> str | None:
    """The error of a checkpoint, or None where it is understood; anything but an error of tinyq's own fails the test."""
    try:
        plan(build_model(checkpoint)).lower()
    except TinyqError as error:
        return str(error)
    return None


@pytest.mark.parametrize("family", own_families(), ids=lambda family: family.name)
def test_no_shape_is_an_internal_error(family: Family, tmp_path: Path) -> None:
    opened = open_checkpoint(Case(family, next(iter(family.variants))).write(tmp_path))
    for name, tensor in opened.tensors.items():
        # A later layer differs from the first in its place; experts are alike.
        if any(later in name for later in LATER):
            continue
        for shape in broken(tensor.shape):
            said = outcome(replace(opened, tensors={**opened.tensors, name: Filled(shape)}))
            assert said is not None, (name, tensor.shape, shape)
            assert "\n" not in said


@pytest.mark.parametrize("family", ["gemma2", "rasbt-gemma3"])
def test_a_scale_of_attention_above_zero_is_required(family: str, tmp_path: Path) -> None:
    found = next(each for each in own_families() if each.name == family)
    opened = open_checkpoint(Case(found, next(iter(found.variants))).write(tmp_path))
    changed = replace(opened, config={**opened.config, "query_pre_attn_scalar": 0})
    with pytest.raises(CheckpointError, match="query_pre_attn_scalar is 0; expected a number above 0"):
        build_model(changed)
