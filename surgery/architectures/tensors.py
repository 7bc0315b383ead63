"""The tensors of layers by name: what each is in most architectures, and named groups of them.

Source: `LLM_TENSOR_NAMES` in `src/llama-arch.cpp` and the graphs in `src/models/*.cpp` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from surgery.architectures.base import Role

HYPER = "hyper-connections"
"""The branch of the weights that mix several residual streams before and after each half."""
MTP = "multi-token prediction"
"""The branch of tensors that only MTP blocks have, which stay behind the layers."""

_ROLES = {
    Role("attention", "input norm"): "attn_norm",
    Role("attention"): """
        attn_q attn_k attn_v attn_qkv attn_gate attn_q_norm attn_k_norm attn_sub_norm attn_sinks attn_rot_embd
        attn_q_a attn_q_a_norm attn_q_b attn_kv attn_kv_a_mqa attn_kv_a_norm attn_kv_b attn_k_b attn_v_b attn_output_a
        attn_q.lora_a attn_q.lora_b attn_k.lora_a attn_k.lora_b attn_v.lora_a attn_v.lora_b attn_output.lora_a
        attn_compressor_ape attn_compressor_gate attn_compressor_kv attn_compressor_norm
        indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b indexer.q_proj indexer.k_proj indexer.q_norm
        indexer_compressor_ape indexer_compressor_gate indexer_compressor_kv indexer_compressor_norm
        rope_factors_long rope_factors_short
        ssm_a ssm_alpha ssm_b_norm ssm_ba ssm_beta ssm_c_norm ssm_conv1d ssm_conv1d_k ssm_conv1d_q ssm_conv1d_v ssm_d ssm_dt
        ssm_dt_norm ssm_f_a ssm_f_b ssm_g ssm_g_a ssm_g_b ssm_in ssm_norm ssm_x shortconv.conv shortconv.in_proj
        time_mix_a0 time_mix_a1 time_mix_a2 time_mix_decay time_mix_decay_w1 time_mix_decay_w2 time_mix_first time_mix_g1
        time_mix_g2 time_mix_gate time_mix_k_a time_mix_k_k time_mix_key time_mix_lerp_fused time_mix_lerp_g time_mix_lerp_k
        time_mix_lerp_r time_mix_lerp_v time_mix_lerp_w time_mix_lerp_x time_mix_ln time_mix_r_k time_mix_receptance
        time_mix_v0 time_mix_v1 time_mix_v2 time_mix_value time_mix_w0 time_mix_w1 time_mix_w2 vis_attn_qkv""",
    Role("attention", "output"): """
        attn_output attn_output_b attn_output.lora_b ssm_out shortconv.out_proj time_mix_output vis_attn_output""",
    Role("attention", "output norm"): "post_attention_norm",
    Role("attention", "stream norm"): "attn_output_norm attn_norm_2",
    Role("ffn", "input norm"): "ffn_norm ffn_norm_exps pre_ffw_norm_2",
    Role("ffn"): """
        ffn_gate ffn_up ffn_sub_norm ffn.act ffn_gate_shexp ffn_up_shexp ffn_gate_inp_shexp ffn_latent_down ffn_routed_down
        ffn_routed_norm post_ffw_norm_1 post_ffw_norm_2 channel_mix_key channel_mix_lerp_k channel_mix_lerp_r
        channel_mix_receptance ffn_gate.lora_a ffn_gate.lora_b ffn_up.lora_a ffn_up.lora_b ffn_down.lora_a ffn_gate_chexps
        ffn_up_chexps vis_gate vis_up""",
    Role("ffn", experts="axis"): "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_gate_up_exps exp_probs_b exp_probs_b_vl",
    Role("ffn", experts="ids"): "ffn_gate_tid2eid",
    Role("ffn", "output"): "ffn_down ffn_down_shexp ffn_down_chexps ffn_down.lora_b channel_mix_value vis_down",
    Role("ffn", "output", "axis"): "ffn_down_exps",
    Role("ffn", "output norm"): "post_ffw_norm",
    Role("ffn", "stream norm"): "layer_output_norm",
    Role("per-layer input"): "inp_gate proj",
    Role("per-layer input", "output norm"): "post_norm",
    Role("layer scale", "stream"): "layer_output_scale",
    Role("AltUp", "stream"): "altup_correct_coef altup_correct_scale altup_predict_coef altup_router altup_router_norm",
    Role("LAuReL", "stream"): "laurel_l laurel_r laurel_post_norm",
    Role("residual attention", "stream"): "attn_res_score ffn_res_score",
    Role(HYPER, "stream"): """
        hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale hc_attn_norm hc_attn_down hc_attn_up
        hc_attn_inject hc_ffn_norm hc_ffn_down hc_ffn_up hc_ffn_inject""",
    Role("n-gram embeddings", "stream"): "ple_key ple_value ple_norm_key ple_norm_query ple_norm_conv ple_conv1d",
    Role(MTP): """
        nextn.eh_proj nextn.enorm nextn.hnorm nextn.embed_tokens nextn.shared_head_head nextn.shared_head_norm""",
}  # fmt: skip

ROLES: Mapping[str, Role] = MappingProxyType({name: role for role, names in _ROLES.items() for name in names.split()})
"""Name of a tensor → its role, unless an architecture's row says otherwise."""

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "QKV": "attn_q attn_k attn_v attn_qkv attn_output",
        "QK_NORM": "attn_q_norm attn_k_norm",
        "MLA": "attn_q_a attn_q_a_norm attn_q_b attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b attn_output",
        "INDEXER": "indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b",
        "DELTA": "attn_gate ssm_a ssm_conv1d ssm_dt ssm_norm ssm_out",
        "KDA": "ssm_a ssm_beta ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v ssm_dt ssm_f_a ssm_norm",
        "MAMBA": "ssm_a ssm_conv1d ssm_d ssm_dt ssm_in ssm_out ssm_x",
        "MAMBA2": "ssm_a ssm_conv1d ssm_d ssm_dt ssm_in ssm_norm ssm_out",
        "MAMBA_NORMS": "ssm_dt_norm ssm_b_norm ssm_c_norm",
        "SHORTCONV": "shortconv.conv shortconv.in_proj shortconv.out_proj",
        "RWKV6": "time_mix_decay time_mix_decay_w1 time_mix_decay_w2 time_mix_first time_mix_gate time_mix_key"
        " time_mix_lerp_fused time_mix_lerp_x time_mix_output time_mix_receptance time_mix_value time_mix_w1 time_mix_w2",
        "RWKV7": "time_mix_a0 time_mix_a1 time_mix_a2 time_mix_g1 time_mix_g2 time_mix_k_a time_mix_k_k time_mix_key"
        " time_mix_lerp_fused time_mix_ln time_mix_output time_mix_r_k time_mix_receptance time_mix_v0 time_mix_v1"
        " time_mix_v2 time_mix_value time_mix_w0 time_mix_w1 time_mix_w2",
        "NORMS": "attn_norm ffn_norm",
        "POST_NORMS": "post_attention_norm post_ffw_norm",
        "PLAIN": "ffn_up ffn_down",
        "GATED": "ffn_gate ffn_up ffn_down",
        "EXPERTS": "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps",
        "FUSED_EXPERTS": "ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_gate_up_exps ffn_down_exps",
        "SHARED": "ffn_gate_shexp ffn_up_shexp ffn_down_shexp",
        "ALTUP": "altup_correct_coef altup_correct_scale altup_predict_coef altup_router altup_router_norm",
        "CHUNK_EXPERTS": "ffn_gate_chexps ffn_up_chexps ffn_down_chexps",
        "COMPRESSOR": "attn_compressor_ape attn_compressor_gate attn_compressor_kv attn_compressor_norm",
        "COMPRESSED_INDEXER": "indexer.attn_q_b indexer.proj indexer_compressor_ape indexer_compressor_gate"
        " indexer_compressor_kv indexer_compressor_norm",
        "LAUREL": "laurel_l laurel_r laurel_post_norm",
        "LORA": "attn_q.lora_a attn_q.lora_b attn_k.lora_a attn_k.lora_b attn_v.lora_a attn_v.lora_b attn_output.lora_a"
        " attn_output.lora_b ffn_gate.lora_a ffn_gate.lora_b ffn_up.lora_a ffn_up.lora_b ffn_down.lora_a ffn_down.lora_b",
        "LOW_RANK_HYPER": "hc_attn_norm hc_attn_down hc_attn_up hc_attn_inject hc_ffn_norm hc_ffn_down hc_ffn_up hc_ffn_inject",
        "NGRAM": "ple_key ple_value ple_norm_key ple_norm_query ple_norm_conv ple_conv1d",
        "PER_LAYER_INPUT": "inp_gate proj post_norm",
        "QK_INDEXER": "indexer.q_proj indexer.k_proj indexer.q_norm indexer.k_norm",
        "ROUTED_LATENT": "ffn_routed_down ffn_routed_up ffn_routed_norm",
        "VISION": "vis_attn_qkv vis_attn_output vis_gate vis_up vis_down",
        "HYPER": "hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale",
        "MTP_CORE": "nextn.eh_proj nextn.enorm nextn.hnorm",
        "MTP": "nextn.eh_proj nextn.enorm nextn.hnorm nextn.embed_tokens nextn.shared_head_head nextn.shared_head_norm",
    }
)
"""Groups of tensors that rows name in capitals."""


def expand(layer: str) -> list[str]:
    """The tensors in a row's text: names, and groups in capitals."""
    return [name for word in layer.split() for name in GROUPS.get(word, word).split()]


def roles(layer: str, changed: Mapping[str, Role]) -> Mapping[str, Role]:
    """The roles of the tensors in a row's text, `changed` where the architecture differs from `ROLES`."""
    names = dict.fromkeys((*expand(layer), *changed))
    return MappingProxyType({name: changed.get(name) or ROLES[name] for name in names})
