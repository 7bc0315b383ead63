"""Defaults of transformers' config classes for keys absent from config.json, and the keys that their models ignore.

One row per model_type, as data. `tests/families/test_hf_classes.py` compares every row with the installed library's class.
Source: transformers 5, `models/*/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LayerRule = Callable[[int, int], bool]
"""(layer, max_window_layers) → whether the layer has a sliding window if layer_types is absent."""


def _every(_: int, __: int) -> bool:
    return True


def _from_max_window_layers(layer: int, first: int) -> bool:
    return layer >= first


def _even_before_max_window_layers(layer: int, last: int) -> bool:
    return layer % 2 == 0 and layer < last


def _three_in_four(layer: int, _: int) -> bool:
    return layer % 4 != 0


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a class reads `sliding_window`.

    `switch`: whether use_sliding_window has to be true. `listed`: whether layer_types is read; if it is absent, `limited`
    decides which layers have the window. `zero_is_none`: whether a window of 0 means no window.
    """

    switch: bool = False
    listed: bool = False
    limited: LayerRule = _every
    zero_is_none: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassRules:
    """How a class of transformers reads its config.

    `defaults` are the values of absent keys (a null value does not count as absent); `theta` is the default of rope_theta.
    `partial`: whether unscaled rope uses partial_rotary_factor; `partial_default` is that factor's default.
    `windows` is None if the class has no sliding windows. `renormalised`: the router's weights are normalised to sum to 1
    whatever norm_topk_prob says. `rope` is the default of rope_parameters.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    theta: float = 10000.0
    partial: bool = False
    partial_default: float | None = None
    windows: Windows | None = None
    renormalised: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict)


_COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
_SWITCHED = {"use_sliding_window": False, "sliding_window": 4096}
_DELTA = {"linear_num_key_heads": 16, "linear_key_head_dim": 128}
_LISTED = Windows(switch=True, listed=True, limited=_from_max_window_layers)


def _row(context: int, *, epsilon: float = 1e-6, defaults: Mapping[str, Any] | None = None, **rules: Any) -> ClassRules:
    """`context` is max_position_embeddings, `epsilon` rms_norm_eps."""
    common = {**_COMMON, "max_position_embeddings": context, "rms_norm_eps": epsilon}
    return ClassRules(defaults={**common, **(defaults or {})}, **rules)


_QWEN2 = _row(32768, defaults={**_SWITCHED, "max_window_layers": 28}, windows=_LISTED)
_QWEN2_VL = _row(32768, epsilon=1e-5, theta=1e6, defaults={**_SWITCHED, "max_window_layers": 80}, windows=_LISTED)
_QWEN3_VL = _row(128000, theta=5e5, defaults={"head_dim": 128})
_HYBRID = ClassRules(
    defaults={**_COMMON, **_DELTA, "max_position_embeddings": 32768, "head_dim": 256},
    partial=True,
    partial_default=0.25,
)
_QWEN35_MOE = replace(_HYBRID, defaults={**_HYBRID.defaults, "num_experts_per_tok": 8}, renormalised=True)


def _every_fourth(layer: int, _: int) -> bool:
    return layer % 4 == 3


def _not_every_fourth(layer: int, _: int) -> bool:
    return layer % 4 != 3


def _layer_norm_row(
    context: int,
    epsilon_key: str | None,
    *,
    context_key: str = "max_position_embeddings",
    activation: str = "silu",
    defaults: Mapping[str, Any] | None = None,
    **rules: Any,
) -> ClassRules:
    """Of a class with layer norms, whose epsilon is 1e-5 by default under `epsilon_key`, or always without one."""
    common = {
        context_key: context,
        ("activation_function" if context_key == "n_positions" else "hidden_act"): activation,
    }
    common |= {epsilon_key: 1e-5} if epsilon_key else {}
    return ClassRules(defaults={**common, **(defaults or {})}, **rules)


_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}


def _gemma_row(context: int, **rules: Any) -> ClassRules:
    """Of a class that calls its activation hidden_activation."""
    row = _row(context, **rules)
    return replace(row, defaults={key: value for key, value in row.defaults.items() if key != "hidden_act"})


_MULTIPLIERS = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}

CLASSES: Mapping[str, ClassRules] = {
    "llama": _row(2048),
    "mistral": _row(131072, defaults={"sliding_window": 4096}, windows=Windows()),
    "ministral": _row(131072, defaults={"sliding_window": 4096}, windows=Windows(listed=True)),
    "mixtral": _row(
        131072,
        epsilon=1e-5,
        theta=1e6,
        defaults={"sliding_window": None, "num_experts_per_tok": 2},
        windows=Windows(),
        renormalised=True,
    ),
    "seed_oss": _row(524288, defaults={"head_dim": 128}),
    "internlm3": _row(32768, epsilon=1e-5, defaults={"head_dim": 128}),
    "iquestcoder": _row(131072, epsilon=1e-5, defaults={"head_dim": 128}),
    "cwm": _row(
        131072,
        epsilon=1e-5,
        theta=1e6,
        defaults={"head_dim": 128, "sliding_window": 8192},
        windows=Windows(listed=True, limited=_three_in_four, zero_is_none=True),
        rope={
            "rope_type": "llama3",
            "rope_theta": 1e6,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_moe": _row(
        32768,
        defaults={**_SWITCHED, "max_window_layers": 28, "num_experts_per_tok": 4, "norm_topk_prob": False},
        windows=Windows(switch=True, listed=True, limited=_even_before_max_window_layers),
    ),
    "qwen3": _row(32768, defaults={**_SWITCHED, "max_window_layers": 28, "head_dim": 128}, windows=_LISTED),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_text": _QWEN3_VL,
    "qwen3_moe": _row(
        32768,
        defaults={**_SWITCHED, "num_experts_per_tok": 8, "norm_topk_prob": False},
        windows=Windows(switch=True),
    ),
    "qwen3_next": replace(_HYBRID, defaults={**_HYBRID.defaults, "num_experts_per_tok": 10, "norm_topk_prob": True}),
    "qwen3_5": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe": _QWEN35_MOE,
    "qwen3_5_moe_text": _QWEN35_MOE,
    "arcee": _row(4096, epsilon=1e-5, defaults={"hidden_act": "relu2", "head_dim": None}),
    "ernie4_5": _row(131072, epsilon=1e-5, theta=5e5, defaults={"head_dim": 128}),
    "ernie4_5_moe": _row(131072, epsilon=1e-5, theta=5e5, defaults={"moe_k": 6, "moe_norm_min": 1e-12}),
    "granite": _row(2048, defaults=_MULTIPLIERS),
    **dict.fromkeys(
        ("granitemoehybrid", "granitemoeshared"),
        _row(2048, defaults={**_MULTIPLIERS, "num_experts_per_tok": 2}, renormalised=True),
    ),
    "granitemoe": _row(2048, defaults={**_MULTIPLIERS, "num_experts_per_tok": 2}, renormalised=True),
    "smollm3": _row(
        32768,
        theta=2e6,
        defaults={**_SWITCHED, "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4},
        windows=Windows(switch=True, listed=True, limited=_every_fourth),
    ),
    "gemma": _row(8192, defaults={"hidden_act": "gelu_pytorch_tanh", "head_dim": 256}),
    "gemma2": _gemma_row(
        8192,
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "layer_types": None,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
        windows=Windows(listed=True, limited=lambda layer, _: layer % 2 == 0),
    ),
    "gemma3_text": _gemma_row(
        131072,
        theta=1e6,
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "layer_types": None,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
        },
        windows=Windows(listed=True, limited=lambda layer, _: layer % 6 != 5),
    ),
    "olmo2": _row(2048, epsilon=1e-5),
    "olmo3": _row(
        2048,
        epsilon=1e-5,
        theta=5e5,
        defaults={"sliding_window": 4096, "layer_types": None},
        windows=Windows(listed=True, limited=_not_every_fourth),
    ),
    "olmoe": _row(4096, epsilon=1e-5, defaults={"num_experts_per_tok": 8, "norm_topk_prob": False, "clip_qkv": None}),
    "glm4": _row(
        131072,
        epsilon=1.5625e-7,
        defaults={"head_dim": 128, "attention_bias": True},
        partial=True,
        partial_default=0.5,
    ),
    "glm4_moe": _row(
        131072,
        epsilon=1e-5,
        defaults={"num_experts_per_tok": 8, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
        partial=True,
        partial_default=0.5,
    ),
    "dots1": _row(
        2048,
        defaults={
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "sliding_window": 4096,
            "max_window_layers": 62,
        },
        windows=Windows(listed=True, limited=_from_max_window_layers),
    ),
    "gpt_oss": _row(
        131072,
        epsilon=1e-5,
        theta=150000.0,
        defaults={
            "head_dim": 64,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        windows=Windows(listed=True, limited=lambda layer, _: layer % 2 == 0),
        rope={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
    "hunyuan_v1_dense": _row(2048, epsilon=1e-5, defaults={"head_dim": None}),
    "nemotron": _layer_norm_row(
        4096, "norm_eps", activation="relu2", defaults={"head_dim": None}, partial=True, partial_default=0.5
    ),
    "apertus": _row(
        65536,
        epsilon=1e-5,
        theta=1.2e7,
        defaults={"hidden_act": "xielu"},
        rope={
            "rope_type": "llama3",
            "rope_theta": 1.2e7,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "bloom": ClassRules(defaults={"layer_norm_epsilon": 1e-5}),
    "phi": _layer_norm_row(
        2048,
        "layer_norm_eps",
        activation="gelu_new",
        defaults={"qk_layernorm": False},
        partial=True,
        partial_default=0.5,
    ),
    "gpt2": _layer_norm_row(1024, "layer_norm_epsilon", context_key="n_positions", activation="gelu_new"),
    "starcoder2": _layer_norm_row(
        4096, "norm_epsilon", activation="gelu_pytorch_tanh", defaults={"sliding_window": None}, windows=Windows()
    ),
    "gpt_neox": _layer_norm_row(
        2048,
        "layer_norm_eps",
        activation="gelu",
        defaults={"use_parallel_residual": True},
        partial=True,
        partial_default=0.25,
    ),
    "stablelm": _layer_norm_row(
        4096, "layer_norm_eps", defaults={"use_parallel_residual": False}, partial=True, partial_default=0.25
    ),
    "cohere": _layer_norm_row(
        8192, "layer_norm_eps", theta=5e5, defaults={"logit_scale": 0.0625, "use_qk_norm": False}
    ),
    "cohere2": _layer_norm_row(
        8192,
        "layer_norm_eps",
        defaults={"logit_scale": 0.0625, "sliding_window": 4096, "layer_types": None},
        windows=Windows(listed=True, limited=_not_every_fourth),
    ),
    "nanochat": _row(2048, defaults={"hidden_act": "relu2", "final_logit_softcapping": 15.0}),
    "olmo": _layer_norm_row(2048, None, defaults={"clip_qkv": None}),
    "lfm2": ClassRules(defaults={"max_position_embeddings": 128000, "norm_eps": 1e-5}, theta=1e6),
    "lfm2_moe": ClassRules(
        defaults={
            "max_position_embeddings": 128000,
            "norm_eps": 1e-5,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "use_expert_bias": True,
            "routed_scaling_factor": 1.0,
        },
        theta=1e6,
    ),
    "bamba": _row(
        262144,
        epsilon=1e-5,
        defaults={"mamba_n_groups": 1},
        partial=True,
        partial_default=0.5,
    ),
    "falcon_h1": _row(
        8192,
        epsilon=1e-5,
        defaults={
            **{
                f"{place}_multiplier": 1.0 for place in ("embedding", "lm_head", "key", "attention_in", "attention_out")
            },
            **{f"{place}_multiplier": 1.0 for place in ("ssm_in", "ssm_out")},
            "mamba_n_groups": 1,
            "mamba_norm_before_gate": True,
        },
    ),
    "mamba2": ClassRules(
        defaults={
            "layer_norm_epsilon": 1e-5,
            "n_groups": 8,
            "head_dim": 64,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }
    ),
    "phi3": _row(
        4096,
        epsilon=1e-5,
        defaults={"sliding_window": None, "original_max_position_embeddings": 4096},
        windows=Windows(),
        partial=True,
        partial_default=1.0,
    ),
}
"""The rules by model_type. The outer type of a multimodal model has the rules of its text model."""

QUIET = frozenset(
    {
        "use_qk_norm",
        "qk_layernorm",
        "hidden_activation",
        "layer_types",
        "attention_bias",
        "hidden_act",
        "activation_function",
        "use_parallel_residual",
        "use_sliding_window",
        "max_window_layers",
        "head_dim",
        "no_rope_layer_interval",
    }
)
"""Keys whose defaults are used without a note: the common case, or a value that the tensors alone decide."""


def bare(family: str, **changes: Any) -> ClassRules:
    """The rules for a config without a known class, if the checkpoint has the tensors of `family` (a model_type).

    Everything the config states is used, partial_rotary_factor too. A key that changes the computation has no default.
    """
    rules = CLASSES[family]
    defaults = {key: value for key, value in rules.defaults.items() if key in QUIET and key != "head_dim"}
    return replace(ClassRules(defaults=defaults, partial=True, windows=rules.windows, renormalised=False), **changes)
