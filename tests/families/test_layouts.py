"""Published layouts that differ in how the weights are saved: sharded, in half precision, with buffers of rope beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.conversion.request import Request
from gguf_tools.evaluation.conformance import hold_exact, measure
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from tests.oracle import reference


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(
    "variant", [tiny_attention.LLAMA["biases"], tiny_attention.MIXTRAL["plain"], tiny_attention.QWEN2_MOE["plain"]]
)
def test_sharded_half_precision(tmp_path: Path, variant: tiny_attention.Variant, dtype: Any) -> None:
    tiny_attention.write(tmp_path, replace(variant, dtype=dtype, shards=3), 5)
    hold_exact(measure(Request(source=tmp_path, type="f32", threads=1), tmp_path / "out.gguf"))


@pytest.mark.parametrize("name", ["plain", "llama3"])
def test_old_checkpoint_with_saved_frequencies(tmp_path: Path, name: str) -> None:
    """Llama 2's files hold `rotary_emb.inv_freq`, which the config gives too."""
    variant = tiny_attention.LLAMA[name]
    shapes = tiny_attention.shapes(variant)
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": (8,) for n in range(tiny_attention.LAYERS)}
    tensors = random_tensors(shapes, 3, gain=tiny_attention.GAIN)
    write_checkpoint(tmp_path / "old", {**tiny_attention.BASE, **variant.config}, tensors | random_tensors(buffers, 4))
    write_tiny_tokenizer(tmp_path / "old", tiny_attention.VOCAB)
    tiny_attention.write(tmp_path / "new", variant, 3)
    for a, b in zip(reference(load_model(tmp_path / "old")), reference(load_model(tmp_path / "new")), strict=True):
        assert np.array_equal(a, b)
