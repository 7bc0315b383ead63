"""The reference against transformers' own classes, on checkpoints in the published layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny.hybrid import QWEN35_VARIANTS, config_of, write_next, write_qwen35
from tests.oracle import PROMPTS, nmse, source_reference

FLOAT32 = 1e-11
"""transformers' code rounds norms, rope and the delta rule to float32 whatever the model's type."""

NEXT = ("gated", "output-bias", "irregular", "fused", "linear-only", "full-only", "dense-layers", "wide-keys")
QWEN35 = ("dense", "moe", "output-bias")


def transformers_logits(folder: Path) -> list[NDArray[np.floating[Any]]]:
    """Logits of every position of every prompt, by the class that config.json names."""
    config = AutoConfig.from_pretrained(folder)
    config._experts_implementation = "eager"
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64)
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in PROMPTS]


@pytest.mark.parametrize("variant", NEXT)
def test_qwen3_next_is_what_transformers_computes(tmp_path: Path, variant: str) -> None:
    write_next(tmp_path, variant, seed=2)
    assert nmse(transformers_logits(tmp_path), source_reference(tmp_path)) <= FLOAT32


@pytest.mark.parametrize("variant", QWEN35)
def test_qwen35_is_what_transformers_computes(tmp_path: Path, variant: str) -> None:
    write_qwen35(tmp_path, variant, seed=2)
    assert nmse(transformers_logits(tmp_path), source_reference(tmp_path)) <= FLOAT32


def test_the_text_part_of_a_model_with_a_vision_tower(tmp_path: Path) -> None:
    text = config_of(replace(QWEN35_VARIANTS["moe"], layers="DA"))
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
    }
    config: Any = Qwen3_5MoeConfig(text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    for part in (config, config.text_config):
        part._experts_implementation = "eager"
        part._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Qwen3_5MoeForConditionalGeneration(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15)).float())
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = [
            model(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in PROMPTS
        ]
    assert any("visual" in note for note in load_model(tmp_path).notes)
    assert nmse(wanted, source_reference(tmp_path)) <= FLOAT32
