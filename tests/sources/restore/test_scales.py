"""Scales of activations and of an FP8 cache: left out where they are that, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_tools.errors import CheckpointError
from gguf_tools.families.registry import load_model
from gguf_tools.sources.checkpoint import SINGLE, open_checkpoint
from gguf_tools.sources.restore import restore
from tests.tiny_models import change_config, change_tensors, checkpoint, dense

LAYER = "model.layers.0."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", dense())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("self_attn.k_scale", "cache"),
        ("self_attn.v_scale", "cache"),
        ("self_attn.attn.q_scale", "cache"),
        ("self_attn.kv_scale", "cache"),
        ("self_attn.prob_scale", "cache"),
        ("self_attn.k_zero_point", "cache"),
        ("self_attn.k_proj.k_scale", "cache"),
        ("self_attn.v_proj.output_scale", "cache"),
        ("mlp.up_proj.input_scale", "activations"),
        ("mlp.up_proj.activation_scale", "activations"),
        ("self_attn.o_proj.input_scale_ub", "activations"),
    ],
)
def test_beside_plain_weights(folder: Path, name: str, what: str) -> None:
    plain = load_model(folder)
    change_tensors(folder, lambda found: found | {LAYER + name: torch.tensor(0.02)})
    found = load_model(folder)
    assert found.spec == plain.spec
    assert any(f"of {'the ' if what == 'cache' else ''}{what} (such as {LAYER}{name})" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("self_attn.k_scale", 16),
        ("mlp.up_proj.weight_scale", 1),
        ("mlp.up_proj.pre_quant_scale", 1),
        ("mlp.scale", 1),
        ("q_scale", 1),
    ],
)
def test_what_may_be_learned_is_not_left_out(folder: Path, name: str, size: int) -> None:
    change_tensors(folder, lambda found: found | {LAYER + name: torch.full((size,), 0.5)})
    with pytest.raises(CheckpointError, match=f"tensor {LAYER}{name} is not part of the model"):
        load_model(folder)


def test_static_activations_beside_fp8(folder: Path) -> None:
    plain, narrow = dict(load_file(folder / SINGLE)), {}
    for name, tensor in plain.items():
        narrow[name] = tensor
        if "_proj.weight" in name:
            scale = (tensor.abs().max() / 448).to(torch.bfloat16)
            narrow[name] = (tensor / scale).to(torch.float8_e4m3fn)
            narrow |= {f"{name}_scale_inv": scale, name.replace("weight", "activation_scale"): torch.tensor(0.5)}
            plain[name] = (narrow[name].double() * scale.double()).float()
    save_file(narrow, folder / SINGLE, {"format": "pt"})
    stated = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    change_config(folder, {"quantization_config": stated})
    assert json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"] == stated
    found = restore(open_checkpoint(folder))
    assert set(found.tensors) == set(plain)
    for name, tensor in plain.items():
        np.testing.assert_array_equal(found.tensors[name].array(), tensor.numpy(), err_msg=name)
    load_model(folder)
