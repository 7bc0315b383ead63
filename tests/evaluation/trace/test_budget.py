"""The error budget: each tensor's part in the divergence of a quantized file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.evaluation.metrics import kl_divergence
from gguf_tools.evaluation.trace.report import text_of
from gguf_tools.evaluation.trace.run import trace
from gguf_tools.formats.gguf.source import GGUFTensor, open_gguf
from gguf_tools.reference import Reference
from gguf_tools.targets.registry import lift
from tests.made_checkpoints import Made
from tests.tiny_models import checkpoint, dense


def test_each_tensor_alone_and_all_together(made: Made, tmp_path: Path) -> None:
    source = made("qwen3-moe", "plain")
    files = {kind: tmp_path / f"{kind}.gguf" for kind in ("f32", "q4_0")}
    for kind, file in files.items():
        execute(prepare(Request(source=source, type=kind, threads=1)), file)
    found = trace(files["q4_0"], source, tokens=12, budget=True, threads=1)
    assert found.first is None
    assert found.budget
    stored = open_gguf(files["q4_0"]).tensors
    quantized = {
        name for name, one in stored.items() if isinstance(one, GGUFTensor) and one.entry.type.name not in ("f32",)
    }
    assert {one.name for one in found.budget.tensors} == quantized
    parts = [one.kl for one in found.budget.tensors]
    assert parts == sorted(parts, reverse=True)
    assert min(parts) >= 0
    exact, rounded = (
        Reference(lift(open_gguf(file)), torch.float32).logits([found.tokens])[0] for file in files.values()
    )
    assert np.isclose(found.budget.together, kl_divergence(exact, rounded).mean(), rtol=1e-3)
    first = found.budget.tensors[0]
    assert first.next_type == "q8_0"  # rows of 64 are no whole blocks of a k-quant
    assert first.gain > 0
    measured = found.budget.sensitivity
    assert measured.tokens == 12
    for one in found.budget.tensors:
        losses = {kind.name: loss for kind, loss in measured.losses[one.name].items()}
        assert one.kl == measured.divergences[one.name]
        assert losses[one.type] == pytest.approx(one.kl, rel=1e-12)
        if one.type == "q4_0":
            more = open_gguf(files["q4_0"]).tensors[one.name].size / 2  # 8.5 bits for 4.5
            assert one.gain == pytest.approx(max(one.kl - losses["q8_0"], 0.0) / more)
    text = text_of(found)
    assert "error budget" in text
    assert first.name in text


def test_a_file_in_f32_has_no_budget(made: Made, tmp_path: Path) -> None:
    source = made("qwen3", "plain")
    execute(prepare(Request(source=source, type="f32", threads=1)), tmp_path / "a.gguf")
    assert trace(tmp_path / "a.gguf", source, tokens=5, budget=True, threads=1).budget is None


def test_rounding_that_changes_nothing(tmp_path: Path) -> None:
    """A file in the source's own BF16: no divergence, and nothing that a larger type would take off it."""
    source = checkpoint(tmp_path / "source", dense(), dtype=torch.bfloat16)
    execute(prepare(Request(source=source, type="bf16", threads=1)), tmp_path / "a.gguf")
    found = trace(tmp_path / "a.gguf", source, tokens=5, budget=True, threads=1).budget
    assert found
    assert {one.kl for one in found.tensors} == {0.0}
    assert {one.next_type for one in found.tensors} == {None}
    assert found.together == 0.0
