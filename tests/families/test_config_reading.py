"""Edited configs: transformers' own class loads the folder, and the reference computes the same, or the folder is refused.

An edit that transformers cannot load decides nothing and is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError, InputError, TinyqError
from gguf_tools.evaluation.transformers_model import TransformersModel
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.sources.checkpoint import open_checkpoint

EXACT = 1e-20
ROUNDED_GELU = {"bloom/plain": 1e-19}
"""transformers' BLOOM has the square root of 2/π to eight digits in its GELU."""
"""NMSE between two computations in float64; 1e-30 is usual, and the smallest misreading below gives 1e-6."""
PROMPT = [int(n) for n in np.random.default_rng(3).integers(0, 288, 14)]
ABSENT: Any = ...
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}

ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_theta": ABSENT},
    {"rope_theta": ABSENT, "rope_parameters": None},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}, "rope_scaling": YARN},
    {"rope_parameters": YARN | {"rope_theta": 2e4}, "rope_scaling": {}},
)
SCALINGS: tuple[Mapping[str, Any], ...] = (
    {"rope_scaling": YARN | {"partial_rotary_factor": 0.5}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 32},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": ABSENT},
    {"rope_scaling": YARN, "original_max_position_embeddings": 32},
    {"rope_scaling": YARN | {"factor": None}},
    {"rope_scaling": YARN | {"attention_factor": 1.3}},
    {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}},
    {"rope_scaling": YARN | {"beta_fast": None, "beta_slow": 4}},
    {"rope_scaling": YARN | {"truncate": False}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
    {"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}},
)
WINDOWS: tuple[Mapping[str, Any], ...] = (
    {"sliding_window": 5},
    {"sliding_window": ABSENT},
    {"use_sliding_window": True, "sliding_window": 5},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": ABSENT},
    {"use_sliding_window": False, "sliding_window": 5},
    {"use_sliding_window": ABSENT, "sliding_window": 5},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention"] * 3},
    {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
)
REST: tuple[Mapping[str, Any], ...] = (
    {},
    {"rms_norm_eps": ABSENT},
    {"head_dim": ABSENT},
    {"head_dim": None},
    {"num_key_value_heads": ABSENT},
    {"hidden_act": ABSENT},
    {"hidden_act": "swish"},
    {"hidden_act": "gelu"},
    {"max_position_embeddings": ABSENT},
    {"num_experts_per_tok": ABSENT},
    {"norm_topk_prob": ABSENT},
    {"norm_topk_prob": False},
    {"norm_topk_prob": True},
    {"routed_scaling_factor": ABSENT},
    {"n_group": 2, "topk_group": 2},
    {"n_group": 2, "topk_group": 1},
    {"n_group": ABSENT},
    {"moe_k": ABSENT},
    {"moe_k": ABSENT, "num_experts_per_tok": 1},
    {"moe_norm_min": 0.5},
    {"swiglu_alpha": ABSENT},
    {"swiglu_limit": 1.0},
    {"original_max_position_embeddings": ABSENT},
    {"original_max_position_embeddings": 14},
    {"layer_types": ABSENT},
    {"is_causal": False},
    {"linear_num_key_heads": ABSENT},
    {"linear_num_key_heads": 1, "linear_key_head_dim": ABSENT},
)
# family / variant = model_type, and what transformers needs that the variant does not state
SOURCES = {
    "llama/plain": {},
    "llama/mistral-window": {},
    "llama/wide-heads=mistral": {},
    "llama/plain=ministral": {"head_dim": 16, "sliding_window": 8},
    "llama/plain=cwm": {"head_dim": 16, "sliding_window": 8},
    "llama/plain=internlm3": {"head_dim": 16},
    "llama/plain=iquestcoder": {"head_dim": 16},
    "qwen2/plain=seed_oss": {"head_dim": 16},
    "qwen2/plain": {},
    "qwen2-moe/plain": {},
    "mixtral/plain": {},
    "qwen3/plain": {},
    "qwen3-moe/plain": {},
    "qwen3-next/full-only": {},
    "qwen3.5/output-bias": {},
    "qwen3.5/moe-separate-experts": {},
    "phi3/plain": {},
    "phi3/longrope-long": {},
    "arcee/plain": {},
    "ernie4.5/plain": {},
    "ernie4.5-moe/plain": {},
    "granite/plain": {},
    "granite-moe/plain": {},
    "smollm3/plain": {},
    "gpt2/plain": {},
    "starcoder2/plain": {},
    "gpt-neox/plain": {},
    "stablelm/plain": {},
    "cohere/plain": {},
    "olmo/plain": {},
    "cohere/second": {},
    "gemma/plain": {},
    "gemma2/second": {},
    "gemma2/third-untied": {},
    "olmo2/plain": {},
    "olmo2/third": {},
    "olmoe/plain": {},
    "glm4/plain": {},
    "glm4-moe/plain": {},
    "glm4-moe/dots": {},
    "gpt-oss/plain": {},
    "hunyuan/plain": {},
    "nemotron/plain": {},
    "apertus/plain": {},
    "phi/plain": {},
    "bloom/plain": {},
    "lfm2/plain": {},
    "lfm2-moe/plain": {},
    "mamba2/plain": {},
    "bamba/plain": {},
    "granite-hybrid/dense": {},
    "falcon-h1/plain": {},
}


WITHOUT_WINDOWS = (
    "gemma/plain",
    "olmo2/plain",
    "olmoe/plain",
    "glm4/plain",
    "glm4-moe/plain",
    "hunyuan/plain",
    "nemotron/plain",
    "apertus/plain",
    "phi/plain",
    "bloom/plain",
    "gpt2/plain",
    "gpt-neox/plain",
    "stablelm/plain",
    "cohere/plain",
    "olmo/plain",
    "falcon-h1/plain",
    "bamba/plain",
    "granite-hybrid/dense",
    "arcee/plain",
    "ernie4.5/plain",
    "ernie4.5-moe/plain",
    "granite/plain",
    "granite-moe/plain",
    "smollm3/plain",
    "internlm3",
    "iquestcoder",
    "qwen3-next/full-only",
    "qwen3.5/output-bias",
    "qwen3.5/moe-separate-experts",
)
SCALED = ("llama/plain", "qwen3-next/full-only", "llama/plain=cwm")
"""Sources on which scalings are tried: the others read them by the same code of transformers."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def edited(config: Mapping[str, Any], edits: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The config with one edit at a time; one that takes away what is not there is left out."""
    for edit in edits:
        if any(value is ABSENT and key not in config for key, value in edit.items()) and len(edit) == 1:
            continue
        if any("rope" in key for key in edit):
            base = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
        else:
            base = dict(config)
        changed = {**base, **edit}
        yield {key: value for key, value in changed.items() if value is not ABSENT}


def read(folder: Path) -> Model | None:
    """The folder as tinyq reads it; None where it refuses it, which takes one line."""
    try:
        return load_model(folder)
    except TinyqError as refusal:
        text = str(refusal)
    assert len(text) < 500
    assert "\n" not in text
    return None


def own_logits(folder: Path) -> NDArray[np.floating] | None:
    """What transformers computes of the folder; None where it cannot."""
    try:
        return TransformersModel(open_checkpoint(folder)).logits([PROMPT])[0]
    except InputError:
        return None


@pytest.mark.parametrize("source", SOURCES)
def test_what_transformers_computes_or_a_refusal(tmp_path: Path, source: str) -> None:
    name, _, kind = source.partition("=")
    family, _, variant = name.partition("/")
    write = family_named(family).tiny
    assert write is not None
    write(tmp_path, variant, 1)
    path = tmp_path / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **SOURCES[source]} | ({"model_type": kind} if kind else {})
    edits = [*REST, *ROPES]
    edits += WINDOWS if not source.endswith(WITHOUT_WINDOWS) else ()
    edits += SCALINGS if source in SCALED else ()
    agreed = 0
    for changed in edited(config, edits):
        path.write_text(json.dumps(changed), "utf-8")
        model = read(tmp_path)
        wanted = None if model is None else own_logits(tmp_path)
        if model is None or wanted is None:
            continue
        (found,) = Reference(model, torch.float64).logits([PROMPT])
        error = float(np.square(found - wanted).sum() / np.square(wanted).sum())
        edit = {key: changed.get(key, "absent") for key in {*config, *changed} if changed.get(key) != config.get(key)}
        assert error <= ROUNDED_GELU.get(source, EXACT), f"{source} with {edit}: NMSE {error:.1e}"
        agreed += 1
    assert agreed >= 12


@pytest.mark.parametrize(
    "edit",
    [
        {"rope_theta": 1e39},
        {"rope_theta": 1e-50},
        {"rms_norm_eps": 1e-60},
        {"rope_scaling": YARN | {"factor": 5e-324}},
        {"rope_scaling": {"type": "linear", "factor": 1e-45}},
        {"rope_scaling": YARN | {"mscale": 1e38, "mscale_all_dim": 1e-30, "factor": 1e30}},
        {"rope_scaling": YARN | {"mscale": 1e-30, "mscale_all_dim": 3e38, "factor": 1e30}},
    ],
)
def test_numbers_that_float32_cannot_hold(tmp_path: Path, edit: Mapping[str, Any]) -> None:
    """Too large they could not be written, too small the file would say 0."""
    write = family_named("llama").tiny
    assert write is not None
    write(tmp_path, "plain", 1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **edit}), "utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: .*expected"):
        load_model(tmp_path)
