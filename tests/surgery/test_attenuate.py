"""Attenuation of repeated layers: which weights change, by how much, and where that is not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.families.tiny.attention import LLAMA, QWEN2, write
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.gguf.values import f32, string, u32
from gguf_tools.sources.checkpoint import open_checkpoint
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.recipe import parse_text
from tests.oracle import convert
from tests.surgery.surgery_files import operated, with_metadata
from tests.tiny_models import checkpoint, dense, hybrid

ROOT_HALF = 0.5**0.5
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def factors(source: Path, folder: Path, recipe: str, copies: range, layer: int) -> list[dict[str, float]]:
    """For each copy of `layer` in the folder after the recipe: the factor of every weight that changed, by name."""
    write_checkpoint(plan_checkpoint(source, parse_text(recipe)), folder)
    old, new = open_checkpoint(source).tensors, open_checkpoint(folder).tensors
    found = []
    for n in copies:
        changed = {}
        for name, tensor in old.items():
            if name.startswith(f"model.layers.{layer}."):
                rest = name.split(".", 3)[3]
                before, after = tensor.array(), new[f"model.layers.{n}.{rest}"].array()
                factor = float(np.vdot(before, after) / np.vdot(before, before))
                assert np.allclose(after, factor * before, rtol=1e-6, atol=1e-8)
                if abs(factor - 1) > 1e-6:
                    changed[rest] = factor
        found.append(changed)
    return found


def test_norms_of_queries_and_keys_take_the_factor(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", dense())
    first, second = factors(source, tmp_path / "out", "duplicate(1) + attenuate(all)", range(1, 3), 1)
    assert first == pytest.approx(dict.fromkeys(OUTPUTS, ROOT_HALF))
    assert second == pytest.approx(
        dict.fromkeys((*OUTPUTS, "self_attn.q_norm.weight", "self_attn.k_norm.weight"), ROOT_HALF)
    )


def test_projections_and_their_biases_take_it_without_a_norm(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    write(source, QWEN2["plain"], 0)
    first, second = factors(source, tmp_path / "out", "duplicate(0) + attenuate(0..1)", range(2), 0)
    assert first == pytest.approx(dict.fromkeys(OUTPUTS, ROOT_HALF))
    scores = [f"self_attn.{name}_proj.{part}" for name in "qk" for part in ("weight", "bias")]
    assert second == pytest.approx(dict.fromkeys((*OUTPUTS, *scores), ROOT_HALF))


def test_a_norm_that_is_stored_less_one_is_scaled_as_it_is_used(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", hybrid())
    folder = tmp_path / "out"
    write_checkpoint(plan_checkpoint(source, parse_text("duplicate(1) + attenuate(all)")), folder)
    old, new = open_checkpoint(source).tensors, open_checkpoint(folder).tensors
    for name in ("q_norm", "k_norm"):
        before = old[f"model.layers.1.self_attn.{name}.weight"].array()
        after = new[f"model.layers.2.self_attn.{name}.weight"].array()
        assert np.allclose(after + 1, (before + 1) * ROOT_HALF, atol=1e-6)


def test_a_layer_without_scores_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", hybrid())
    whole = convert(source, tmp_path / "whole.gguf")
    with pytest.raises(InputError, match=r"linear attention .* has no attention scores to attenuate"):
        plan_checkpoint(source, parse_text("duplicate(0) + attenuate(all)"))
    with pytest.raises(
        InputError, match="layer 0: it is not known which tensors scale the attention scores of this qwen3next layer"
    ):
        operated(whole, tmp_path / "no.gguf", "duplicate(0) + attenuate(all)")


def test_a_gguf_of_an_architecture_that_is_not_known_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "hf", LLAMA["plain"], 0)
    whole = convert(tmp_path / "hf", tmp_path / "whole.gguf")
    known = operated(whole, tmp_path / "yes.gguf", "duplicate(0) + attenuate(all)")
    old, new = open_gguf(whole).tensors, open_gguf(known).tensors
    for name in ("attn_q", "attn_k", "attn_output", "ffn_down"):
        want = old[f"blk.0.{name}.weight"].array() * ROOT_HALF
        assert np.allclose(new[f"blk.1.{name}.weight"].array(), want, rtol=1e-6, atol=1e-8)
    xverse = {
        "general.architecture": string("xverse"),
        "xverse.block_count": u32(open_gguf(whole).header.get("llama.block_count")),
    }
    other = with_metadata(whole, tmp_path / "other.gguf", xverse)
    with pytest.raises(InputError, match="scores of this xverse layer"):
        operated(other, tmp_path / "no.gguf", "duplicate(0) + attenuate(all)")
    clamped = with_metadata(whole, tmp_path / "clamped.gguf", {"llama.attention.clamp_kqv": f32(8.0)})
    with pytest.raises(InputError, match="it is not known"):
        operated(clamped, tmp_path / "no.gguf", "duplicate(0) + attenuate(all)")
