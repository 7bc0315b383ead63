"""Architectures with recurrent or convolutional layers. One row each; `rows/parts.py` has what the rows are made of."""

from __future__ import annotations

from surgery.architectures.base import Architecture
from surgery.architectures.rows.parts import (
    BANKS,
    DENSE_FIRST,
    FFN_NORM,
    FIRST_VALUES,
    KIMI_K3,
    LIGHTNING,
    MINIMAX_01,
    MTP_NORM,
    NEMOTRON_H,
    NGRAM,
    RESCALED,
    RWKV,
    arch,
    recurrent,
    shared_indexer,
)

ROWS: tuple[Architecture, ...] = (
    arch(
        "qwen3next",
        "QKV QK_NORM DELTA FUSED_EXPERTS SHARED attn_norm ffn_gate_inp_shexp post_attention_norm ssm_ba ssm_in MTP",
        recurrent(4),
        changed=FFN_NORM,
        kinds="array",
    ),
    arch(
        "qwen35",
        "QKV QK_NORM DELTA GATED attn_norm post_attention_norm ssm_alpha ssm_beta MTP",
        recurrent(4),
        changed=FFN_NORM,
        kinds="array",
    ),
    arch(
        "qwen35moe",
        "QKV QK_NORM DELTA FUSED_EXPERTS SHARED attn_norm ffn_gate_inp_shexp post_attention_norm ssm_alpha"
        " ssm_beta MTP",
        recurrent(4),
        changed=FFN_NORM,
        kinds="array",
    ),
    arch(
        "qwen4exp",
        "QKV QK_NORM DELTA FUSED_EXPERTS SHARED ffn_gate_inp_shexp LOW_RANK_HYPER QK_INDEXER NGRAM ssm_alpha ssm_beta",
        recurrent(4),
        NGRAM,
        kinds="array",
    ),
    arch("plamo2", "NORMS POST_NORMS QK_NORM MAMBA MAMBA_NORMS PLAIN attn_output attn_qkv", kinds="heads"),
    arch("mamba", "MAMBA attn_norm"),
    arch("mamba2", "MAMBA2 attn_norm"),
    arch("jamba", "NORMS QKV MAMBA MAMBA_NORMS EXPERTS GATED", kinds="heads"),
    arch("falcon-h1", "NORMS QKV MAMBA2 GATED"),
    arch(
        "nemotron_h",
        "QKV MAMBA2 PLAIN attn_norm exp_probs_b ffn_down_exps ffn_down_shexp ffn_gate_inp ffn_latent_down"
        " ffn_latent_up ffn_up_exps ffn_up_shexp nextn.shared_head_norm post_attention_norm MTP_CORE",
        source="nemotron-h.cpp",
        changed=NEMOTRON_H,
        kinds="heads",
    ),
    arch(
        "nemotron_h_moe",
        "QKV MAMBA2 PLAIN attn_norm exp_probs_b ffn_down_exps ffn_down_shexp ffn_gate_inp ffn_latent_down"
        " ffn_latent_up ffn_up_exps ffn_up_shexp nextn.shared_head_norm post_attention_norm MTP_CORE",
        source="nemotron-h.cpp",
        changed=NEMOTRON_H,
        kinds="heads",
    ),
    arch(
        "rwkv6",
        "RWKV6 attn_norm attn_norm_2 channel_mix_key channel_mix_lerp_k channel_mix_lerp_r channel_mix_receptance"
        " channel_mix_value time_mix_lerp_g time_mix_lerp_k time_mix_lerp_r time_mix_lerp_v time_mix_lerp_w"
        " time_mix_ln",
        RESCALED,
        changed=RWKV,
    ),
    arch("rwkv6qwen2", "NORMS RWKV6 GATED"),
    arch(
        "rwkv7",
        "RWKV7 attn_norm attn_norm_2 channel_mix_key channel_mix_lerp_k channel_mix_value",
        FIRST_VALUES,
        changed=RWKV,
    ),
    arch("arwkv7", "NORMS RWKV7 GATED", FIRST_VALUES),
    arch("granitehybrid", "NORMS QKV MAMBA2 EXPERTS GATED SHARED", source="granite-hybrid.cpp", kinds="heads"),
    arch(
        "bailingmoe3",
        "NORMS MLA QKV KDA EXPERTS GATED SHARED attn_gate exp_probs_b layer_output_norm ssm_g_a MTP_CORE",
        DENSE_FIRST,
        kinds="heads",
        changed=MTP_NORM,
    ),
    arch("lfm2", "NORMS QKV QK_NORM SHORTCONV EXPERTS GATED exp_probs_b", kinds="heads"),
    arch("lfm2moe", "NORMS QKV QK_NORM SHORTCONV EXPERTS GATED exp_probs_b", DENSE_FIRST, kinds="heads"),
    arch(
        "minimax-01",
        "NORMS QKV EXPERTS attn_gate attn_norm_2",
        recurrent(8),
        LIGHTNING,
        changed=MINIMAX_01,
        kinds="array",
    ),
    arch(
        "kimi-linear",
        "NORMS MLA QKV KDA EXPERTS GATED SHARED attn_kv_b exp_probs_b ssm_f_b ssm_g_a ssm_g_b",
        DENSE_FIRST,
        kinds="heads",
    ),
    arch(
        "kimi-k3",
        "NORMS MLA QKV KDA EXPERTS GATED SHARED attn_gate attn_kv_b attn_res_score exp_probs_b ffn_res_score"
        " ROUTED_LATENT ssm_f_b ssm_g",
        DENSE_FIRST,
        BANKS,
        changed=KIMI_K3,
        kinds="heads",
        beyond_stream="its layers mix what earlier ones banked",
    ),
    arch(
        "glm5-next",
        "NORMS MLA QKV INDEXER KDA EXPERTS GATED SHARED HYPER exp_probs_b indexer_compressor_ape"
        " indexer_compressor_gate ssm_f_b ssm_g_a ssm_g_b MTP",
        DENSE_FIRST,
        shared_indexer("all"),
        kinds="heads",
    ),
)
