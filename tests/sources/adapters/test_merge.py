"""Merged adapters against PEFT: its forward pass, and its merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import build_published
from gguf_tools.reference import Reference
from gguf_tools.sources.adapters.adapter import GivenAdapter, open_adapter, parse_adapter
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.tensors.error import nmse
from tests.made_checkpoints import Made
from tests.peft_adapters import TOKENS, logits_of, make_adapter

FLOAT32 = 1e-12
"""PEFT keeps factors in float32 while it adds them up, ours are rounded to float32 once."""


def merged(base: Path, *adapters: Path | GivenAdapter) -> Checkpoint:
    given = [one if isinstance(one, GivenAdapter) else GivenAdapter(one) for one in adapters]
    return restore(open_checkpoint(base).adapted(given))


def reference(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    return Reference(build_published(checkpoint), torch.float64).logits([TOKENS])[0]


DORA = {
    "use_dora": True,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"k_proj": 11, ".*layers.2.*v_proj": 5},
}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
TIED = {"target_modules": ["q_proj", "embed_tokens"]}


@pytest.mark.parametrize(
    ("family", "variant", "settings"),
    [
        pytest.param("llama", "plain", DORA, id="dora, rslora, patterns"),
        pytest.param("llama", "biases", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}, id="lora_bias"),
        pytest.param("gpt2", "plain", {"target_modules": ["c_attn", "c_proj"]}, id="Conv1D"),
        pytest.param("gpt2", "plain", {"target_modules": ["c_proj", "c_fc"], "use_dora": True}, id="Conv1D, dora"),
        pytest.param("phi3", "plain", {}, id="fused"),
        pytest.param("gpt-oss", "plain", {**EXPERTS, "lora_alpha": 3}, id="experts fused, inputs first"),
        pytest.param("qwen3-moe", "fused", EXPERTS, id="experts fused, outputs first"),
        pytest.param("qwen3-moe", "plain", {}, id="experts one by one, and the router"),
        pytest.param("mixtral", "plain", {"use_rslora": True}, id="experts under other names"),
        pytest.param("qwen3.5", "vision", {}, id="in_proj, with a vision tower"),
        pytest.param("granite-hybrid", "plain", {}, id="state space"),
        pytest.param(
            "qwen2",
            "plain",
            {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
            id="trained biases and modules",
        ),
        pytest.param("qwen2", "tied", {**TIED, "bias": "lora_only", "use_dora": True}, id="tied embedding"),
        pytest.param("qwen2", "tied", {"target_modules": ["lm_head"]}, id="tied output"),
        pytest.param("qwen2", "tied", {**TIED, "ensure_weight_tying": True}, id="kept tied"),
        pytest.param(
            "qwen2", "tied", {"target_modules": [], "modules_to_save": ["embed_tokens"]}, id="saved tied embedding"
        ),
        pytest.param(
            "qwen2", "tied", {"target_modules": ["v_proj"], "trainable_token_indices": [3, 7, 5]}, id="trained rows"
        ),
        pytest.param(
            "qwen2", "plain", {"layers_to_transform": [1], "target_modules": ["o_proj", "up_proj"]}, id="one layer"
        ),
    ],
)
def test_the_reference_computes_what_peft_computes(
    family: str, variant: str, settings: Mapping[str, Any], made: Made, tmp_path: Path
) -> None:
    base = made(family, variant)
    if settings.get("target_modules") == []:
        settings = {**settings, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    found = reference(merged(base, adapter.path))
    assert nmse(adapter.logits, found) < FLOAT32
    assert nmse(adapter.logits, reference(restore(open_checkpoint(base)))) > 1e-6, "the adapter changes nothing"


def test_equals_peft_merge_to_a_bf16_unit(qwen3_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_folder, tmp_path / "adapter", dtype=torch.bfloat16)
    theirs = adapter.model.merge_and_unload().state_dict()
    base, ours = open_checkpoint(qwen3_folder).tensors, merged(qwen3_folder, adapter.path).tensors
    for name, tensor in ours.items():
        wanted, found, old = theirs[name].to(torch.float64).numpy(), tensor.array(), base[name].array()
        # PEFT rounds the product to bf16, and the sum.
        assert (np.abs(found - wanted) <= 2.0**-8 * np.maximum(np.abs(found - old), np.abs(found))).all(), name


def test_a_scale_and_several_adapters(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    first = make_adapter(base, tmp_path / "first", target_modules=["q_proj", "down_proj"])
    second = make_adapter(base, tmp_path / "second", target_modules=["q_proj", "k_proj"], r=2)
    for module in first.model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(-0.5)
    half = merged(base, parse_adapter(f"{first.path}@-0.5"))
    assert nmse(logits_of(first.model), reference(half)) < FLOAT32
    assert half.merged[0].text.endswith("first@-0.5")
    first.model.load_adapter(str(second.path), "second")
    first.model.base_model.set_adapter(["default", "second"])
    both = merged(base, GivenAdapter(first.path, -0.5), second.path)
    assert nmse(logits_of(first.model.to(torch.float64)), reference(both)) < FLOAT32


def test_a_torch_file_gives_the_same(made: Made, tmp_path: Path) -> None:
    base = made("gpt2", "plain")
    adapter = make_adapter(base, tmp_path / "adapter")
    safe = merged(base, adapter.path)
    weights = adapter.path / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter.path / "adapter_model.bin")
    weights.unlink()
    plain = merged(base, adapter.path)
    for name, tensor in safe.tensors.items():
        np.testing.assert_array_equal(plain.tensors[name].array(), tensor.array(), name)


def test_any_range_equals_the_whole(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", use_dora=True, r=3)
    tensor = merged(base, adapter.path).tensors["model.layers.1.mlp.down_proj.weight"]
    whole = tensor.array().reshape(-1)
    for start, stop in ((0, 0), (0, 1), (95, 97), (100, 300), (5000, tensor.size)):
        np.testing.assert_allclose(tensor.flat(start, stop), whole[start:stop], rtol=1e-6)


def test_added_tokens_change_the_vocabulary(made: Made, tmp_path: Path) -> None:
    base = made("qwen2", "plain")
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]
    )
    file = adapter.path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = torch.cat([tensors[name], torch.ones(3, tensors[name].shape[1])])
    save_file(tensors, file)
    grown = merged(base, adapter.path)
    model = build_published(grown)
    assert model.spec.vocab_size == open_checkpoint(base).config["vocab_size"] + 3
    assert any("--tokenizer" in note for note in grown.notes)


def changed(adapter: Path, values: Mapping[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        ("model.layers.0.self_attn.r_proj", "has no such tensor (the nearest is model.layers."),
        ("model.layers.7.self_attn.q_proj", "has no such tensor (the nearest is"),
        (
            "model.layers.0.self_attn.k_proj",
            "make a matrix of shape (64, 64), but model.layers.0.self_attn.k_proj.weight of",
        ),
        ("model.layers.0.input_layernorm", "has the shape (64,); give the base"),
    ],
)
def test_factors_without_a_place_are_refused(rename: str, says: str, made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[0])
    file = adapter.path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("model.layers.0.self_attn.q_proj", rename): part for name, part in tensors.items()}, file)
    with pytest.raises(InputError, match=re.escape(says)):
        merged(base, adapter.path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"x.lora_A.weight": (2, 3)}, "x has no lora_B"),
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 3)}, "expected B to have as many columns as A has rows"),
        ({"x.lora_A.weight": (2, 3, 1), "x.lora_B.weight": (4, 2, 1)}, "LoRA on a convolution"),
        ({"x.lora_A.weight": (0,), "x.lora_B.weight": (4, 2)}, "saved from one shard of a distributed run"),
        (
            {"x.lora_A.weight": (2, 3), "x.lora_A.bias": (2,), "x.lora_B.weight": (4, 2)},
            "unexpected tensor lora_A.bias",
        ),
        ({"x.lora_E": (2, 3)}, "is of a variant of LoRA that is not supported"),
        ({"x.base_layer.lora_A.weight": (2, 3)}, "second parameter of one module"),
        ({}, "holds no tensors"),
    ],
)
def test_broken_weights_are_refused(tensors: Mapping[str, tuple[int, ...]], says: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    stored = {f"base_model.model.{name}": torch.ones(shape) for name, shape in tensors.items()}
    save_file(stored, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=re.escape(says)):
        open_adapter(GivenAdapter(tmp_path))


def test_what_cannot_be_scaled_or_combined_is_refused(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    dora = make_adapter(base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True).path
    plain = make_adapter(base, tmp_path / "plain", target_modules=["q_proj"]).path
    saved = make_adapter(base, tmp_path / "saved", target_modules=["k_proj"], modules_to_save=["lm_head"]).path
    for adapters, says in (
        ((GivenAdapter(dora, 0.5),), r"dora@0\.5: the adapter replaces DoRA's magnitudes of .*; leave out @0\.5"),
        ((GivenAdapter(saved, 2),), r"saved@2: the adapter replaces lm_head\.weight, which cannot be scaled"),
        ((plain, dora), r"DoRA on model\.layers\.0\.self_attn\.q_proj\.weight, which another adapter changes too"),
        ((dora, plain), r"changes model\.layers\.0\.self_attn\.q_proj\.weight after a DoRA adapter"),
    ):
        with pytest.raises(InputError, match=says):
            merged(base, *adapters)


def test_a_wrong_rank_is_refused(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    changed(adapter.path, {"rank_pattern": {"q_proj": 5}})
    with pytest.raises(CheckpointError, match=r"q_proj has 4 rows, but adapter_config\.json gives it the rank 5"):
        merged(base, adapter.path)


def test_experts_without_a_place_are_refused(made: Made, tmp_path: Path) -> None:
    base = made("mixtral", "plain")
    adapter = make_adapter(
        base, tmp_path / "adapter", target_modules=[], target_parameters=EXPERTS["target_parameters"]
    ).path
    with pytest.raises(
        UnsupportedError, match=r"factors for the experts model\.layers\.0\.mlp\.experts, which the base stores"
    ):
        merged(made("llama", "plain"), adapter)
    with pytest.raises(CheckpointError, match=r"make matrices of shape \(192, 64\), but the base's experts have"):
        merged(made("qwen3-moe", "plain"), adapter)
    with pytest.raises(UnsupportedError, match="which another adapter changes too"):
        merged(base, adapter, adapter)
    changed(adapter, {"rank_pattern": {".*down_proj": 2}})
    with pytest.raises(CheckpointError, match=r"down_proj has 16 rows; expected 8, the rank 2 of"):
        merged(base, adapter)


def test_notes_name_the_adapter_and_another_base(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert merged(base, adapter.path).notes == (f"the adapter {adapter.path} is merged into 3 tensors",)
    changed(adapter.path, {"base_model_name_or_path": "org/other"})
    assert "says that it was trained on org/other" in merged(base, adapter.path).notes[1]


def test_tensors_of_a_quantized_base_are_refused_by_name(made: Made, tmp_path: Path) -> None:
    base = made("llama", "plain")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    opened = open_checkpoint(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {**opened.tensors, name: replace(opened.tensors[name], dtype="I8")}  # type: ignore[type-var]
    with pytest.raises(UnsupportedError, match=rf"{name}|q_proj is stored as I8"):
        restore(replace(opened, tensors=tensors).adapted([GivenAdapter(adapter.path)]))
