"""Every variant of the field's families: checkpoint → GGUF → llama.cpp against the reference, at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_tools.conversion.plan import open_source
from gguf_tools.conversion.request import Request
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.families.tiny.attention import Variant
from tests.oracle import convert, greedy_agrees, lifted_reference, llama, reference

EXACT = 1e-9
LIFTED = 1e-12
"""A lifted file states llama3's frequencies as float32 factors; all else comes back as it was."""

FAMILIES = {
    "llama": field_tiny.LLAMA,
    "mixtral": field_tiny.MIXTRAL,
    "qwen2": field_tiny.QWEN2,
    "qwen2-moe": field_tiny.QWEN2_MOE,
    "qwen3": field_tiny.QWEN3,
    "qwen3-moe": field_tiny.QWEN3_MOE,
}
TARGETS = {"llama": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen2-moe": "qwen2moe"}
TARGETS |= {"qwen3": "qwen3", "qwen3-moe": "qwen3moe"}
OTHER_TARGETS = {
    ("llama", "mistral-window"): "granite_swa",
    ("mixtral", "window"): "granite_swa",
    ("qwen2", "window"): "granite_swa",
    ("qwen2", "wide-heads"): "llama",
    ("qwen3", "window"): "step35",
    ("qwen3-moe", "mixed"): "step35",
    ("qwen3-moe", "window"): "step35",
}
CASES = [(family, name) for family, variants in FAMILIES.items() for name in variants]


def worst(got: Sequence[NDArray[Any]], want: Sequence[NDArray[Any]]) -> float:
    """The largest squared difference of a single position's logits, in parts of their square."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(got, want, strict=True)]
    return max(float((np.square(a - b).sum(-1) / np.square(b).sum(-1)).max()) for a, b in pairs)


def check(folder: Path, out: Path) -> None:
    """Convert to F32; llama.cpp, the reference and the reference of the lifted file agree."""
    convert(folder, out)
    model = load_model(folder)
    wanted = reference(model)
    logits, continuations = llama(out)
    assert worst(logits, wanted) <= EXACT
    assert worst(lifted_reference(out), wanted) <= LIFTED
    assert greedy_agrees(model, continuations)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_variant(tmp_path: Path, family: str, name: str) -> None:
    field_tiny.write(tmp_path, FAMILIES[family][name], 3)
    target = open_source(Request(source=tmp_path)).plan.target.name
    assert target == OTHER_TARGETS.get((family, name), TARGETS[family])
    check(tmp_path, tmp_path / "out.gguf")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(("family", "name"), [("llama", "biases"), ("mixtral", "plain"), ("qwen2-moe", "plain")])
def test_sharded_half_precision(tmp_path: Path, family: str, name: str, dtype: Any) -> None:
    variant: Variant = replace(FAMILIES[family][name], dtype=dtype, shards=3)
    field_tiny.write(tmp_path, variant, 5)
    check(tmp_path, tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["plain", "llama3"])
def test_old_checkpoint_with_saved_frequencies(tmp_path: Path, name: str) -> None:
    """Llama 2's files hold `rotary_emb.inv_freq`, which the config gives too."""
    from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer

    variant = field_tiny.LLAMA[name]
    shapes = field_tiny.shapes(variant)
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": (8,) for n in range(field_tiny.LAYERS)}
    tensors = random_tensors(shapes, 3, gain=field_tiny.GAIN)
    write_checkpoint(tmp_path / "old", {**field_tiny.BASE, **variant.config}, tensors | random_tensors(buffers, 4))
    write_tiny_tokenizer(tmp_path / "old", field_tiny.VOCAB)
    field_tiny.write(tmp_path / "new", variant, 3)
    for a, b in zip(reference(load_model(tmp_path / "old")), reference(load_model(tmp_path / "new")), strict=True):
        assert np.array_equal(a, b)
