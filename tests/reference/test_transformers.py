"""The reference against transformers, for models that targets may refuse or rewrite: it has to run them all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from tests.oracle import PROMPTS, nmse, source_reference
from tests.tiny_models import dense, hybrid, in_float64, logits, moe, network, save

SAME_ARITHMETIC = 1e-24
ROUNDED_TO_FLOAT32 = 1e-10
"""What transformers rounds to float32 within: norms, rope, softmax, router weights and the delta rule."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e4,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bias on the attention output": dense(attention_bias=True),
    "llama3 rope": dense(rope_parameters=LLAMA3),
    "YaRN with other betas": dense(rope_parameters={**YARN, "beta_fast": 16.0, "beta_slow": 0.5}),
    "YaRN without truncation": dense(rope_parameters={**YARN, "truncate": False}),
    "YaRN without an original context": dense(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}),
    "a factor below one": dense(rope_parameters={**YARN, "factor": 0.5}),
    "windows in some layers": dense(
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "windows from a layer on": dense(use_sliding_window=True, sliding_window=5, max_window_layers=2),
    "dense layers among experts": moe(mlp_only_layers=[0, 2]),
    "experts in every second layer": moe(decoder_sparse_step=2),
    "router weights as they are": moe(norm_topk_prob=False),
    "one expert, its weight as it is": moe(norm_topk_prob=False, num_experts_per_tok=1),
    "windows beside experts": moe(use_sliding_window=True, sliding_window=8),
    "another norm epsilon": hybrid(rms_norm_eps=1e-3),
    "values wider than keys": hybrid(linear_key_head_dim=8, linear_value_head_dim=24),
    "keys wider than values": hybrid(linear_key_head_dim=24, linear_value_head_dim=8),
    "a dense layer in a hybrid": hybrid(mlp_only_layers=[1]),
    "full attention alone, gated": hybrid(layer_types=["full_attention"] * 2),
    "a kernel of two": hybrid(linear_conv_kernel_dim=2),
    "router weights as they are in a hybrid": hybrid(norm_topk_prob=False),
    "biases in a hybrid, all four": hybrid(attention_bias=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_reference_computes_what_transformers_does(config: PretrainedConfig, tmp_path: Path) -> None:
    with in_float64():
        made = network(config, seed=3)
        theirs = [values.numpy() for values in logits(made, PROMPTS)]
    assert nmse(source_reference(save(made, tmp_path, tokenizer=False)), theirs) <= SAME_ARITHMETIC


@pytest.mark.parametrize("make", [dense, moe, hybrid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_as_it_is_differs_by_its_roundings(make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    made = network(make(), seed=3, dtype=dtype)
    theirs = [values.numpy() for values in logits(made, PROMPTS)]
    difference = nmse(source_reference(save(made, tmp_path, tokenizer=False)), theirs)
    assert 0 < difference <= ROUNDED_TO_FLOAT32


def test_the_comparison_would_notice_a_lost_part(tmp_path: Path) -> None:
    """A norm weight that is off by a hundredth shows far above the bar."""
    with in_float64():
        made = network(dense(), seed=3)
        theirs = [values.numpy() for values in logits(made, PROMPTS)]
    made.model.layers[1].self_attn.k_norm.weight.data[0] += 0.01
    assert nmse(source_reference(save(made, tmp_path, tokenizer=False)), theirs) > 100 * ROUNDED_TO_FLOAT32
