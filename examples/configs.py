"""The two bundled architectures, as the ``config.json`` files say them."""

from __future__ import annotations

from typing import Any

from bpe import BOS, END_OF_TEXT, IM_END, PAD, VOCABULARY

_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "dtype": "bfloat16",
    "eos_token_id": IM_END,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
_ROPE_THETA = 1_000_000.0
_YARN: dict[str, Any] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": _ROPE_THETA,
    "rope_type": "yarn",
}

HYBRID: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": True,
    "decoder_sparse_step": 1,
    "full_attention_interval": 2,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "layer_types": ["linear_attention", "full_attention"] * 3,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "max_position_embeddings": 256,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "num_attention_heads": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "output_router_logits": False,
    "partial_rotary_factor": 1.0,
    # Newer transformers read rope_parameters, older ones rope_theta and rope_scaling.
    "rope_parameters": {**_YARN, "partial_rotary_factor": 1.0},
    "rope_scaling": _YARN,
    "rope_theta": _ROPE_THETA,
    "router_aux_loss_coef": 0.01,
    "shared_expert_intermediate_size": 128,
}

DENSE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "layer_types": ["full_attention"] * 12,
    "max_position_embeddings": 512,
    "max_window_layers": 12,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_theta": _ROPE_THETA, "rope_type": "default"},
    "rope_scaling": None,
    "rope_theta": _ROPE_THETA,
    "sliding_window": None,
    "use_sliding_window": False,
}

CONFIGS: dict[str, dict[str, Any]] = {"hybrid": HYBRID, "dense": DENSE}

GENERATION: dict[str, Any] = {
    "bos_token_id": BOS,
    "do_sample": True,
    "eos_token_id": [IM_END, END_OF_TEXT],
    "max_new_tokens": 128,
    "pad_token_id": PAD,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "transformers_version": "5.0.0",
}
