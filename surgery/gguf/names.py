"""The meaning of tensor names of a GGUF layer for surgery: the half that a tensor belongs to, and its function there.

Source: the tensor names in `src/llama-arch.cpp` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Collection

from surgery.algebra import Half

FFN_STEMS = ("ffn_", "exp_probs_b", "post_ffw_norm", "pre_ffw_norm", "channel_mix_")
ATTENTION_STEMS = ("attn_", "ssm_", "shortconv.", "time_mix_", "post_attention_norm", "rope_factors_", "indexer.")
POST_NORM = "post_attention_norm"
"""The norm after the attention, or, in a layer without `ffn_norm`, the one before the feed-forward."""
INPUT_NORMS = ("attn_norm", "ffn_norm", POST_NORM, "post_ffw_norm")

OUTPUTS = {
    "attention": ("attn_output", "ssm_out", "shortconv.out_proj", "time_mix_output"),
    "ffn": ("ffn_down", "ffn_down_exps", "ffn_down_shexp", "ffn_down_chexps", "channel_mix_value"),
}
"""The projections whose outputs are added to the residual stream."""
AFTER_RESIDUAL = ("attn_output_norm", "layer_output_norm")
"""Norms of the residual stream itself, with which the contribution of a layer cannot be scaled."""

QUERY_KEY = ("attn_q", "attn_k")
"""The projections of queries and keys; a norm of them (`attn_q_norm`) takes their size out."""
SCORES_FOLLOW = frozenset({
    "cohere2", "exaone", "gemma", "gemma2", "gemma3", "gpt-oss", "granite", "granite-swa", "granitemoe", "internlm2",
    "llama", "mistral3", "olmo2", "qwen2", "qwen2moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next", "seed_oss",
    "smollm3", "starcoder2", "step35",
})  # fmt: skip
"""Architectures where nothing but biases, norms with weights and RoPE stands between these projections and the scores."""
CLAMP = "attention.clamp_kqv"
"""Key of the bound to which queries, keys and values are clamped."""

EXPERT_ENDING = "_exps"
ROUTER = "ffn_gate_inp"
ROUTER_BIAS = "exp_probs_b"

DECAY = "ssm_a"
"""The decay rates, -exp(A_log)."""


def stem(suffix: str) -> str:
    """The name without endings such as `.weight` and `.bias`."""
    head, _, tail = suffix.rpartition(".")
    return head if head and tail in ("weight", "bias", "scale", "input_scale") else suffix


def half_of(suffix: str, layer: Collection[str]) -> Half | None:
    """The half to which a tensor (name without `blk.N.`) of a layer with the tensors `layer` belongs, None if unknown."""
    name = stem(suffix)
    if name == POST_NORM:
        before_ffn = "attn_norm.weight" in layer and "ffn_norm.weight" not in layer
        return "ffn" if before_ffn else "attention"
    if name.startswith(FFN_STEMS):
        return "ffn"
    return "attention" if name.startswith(ATTENTION_STEMS) else None


def outputs(half: Half, names: Collection[str]) -> tuple[str, ...]:
    """The tensors of a half to which its contribution to the residual stream is proportional.

    Empty if they are not known. If the half's output is normalised, these are that norm's weights only.
    """
    stems = {name: stem(name) for name in names}
    if set(stems.values()) & set(AFTER_RESIDUAL):
        return ()
    norm = POST_NORM if half == "attention" else "post_ffw_norm"
    normed = tuple(name for name, base in stems.items() if base == norm)
    found = tuple(name for name, base in stems.items() if base in OUTPUTS[half] and name.endswith((".weight", ".bias")))
    return normed or found


def queries_and_keys(names: Collection[str]) -> tuple[str, ...]:
    """The tensors to which queries and keys are proportional as they enter the scores; empty if there are none of them."""
    for ending in ("_norm", ""):
        wanted = {f"{projection}{ending}" for projection in QUERY_KEY}
        found = tuple(name for name in names if stem(name) in wanted and name.endswith((".weight", ".bias")))
        if found:
            return found if {stem(name) for name in found} == wanted else ()
    return ()


def by_expert(suffix: str) -> bool:
    """Whether the first axis of the tensor is the expert."""
    name = stem(suffix)
    return name.endswith(EXPERT_ENDING) or name in (ROUTER, ROUTER_BIAS)
