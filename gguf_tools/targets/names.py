"""Names of tensors in GGUF files, by role. Source: `src/llama-arch.cpp` of llama-cpp-python 0.3.36."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.tensors.base import Tensor

ATTENTION_NAMES = {
    "attn.q": "attn_q.weight",
    "attn.q_bias": "attn_q.bias",
    "attn.k": "attn_k.weight",
    "attn.k_bias": "attn_k.bias",
    "attn.v": "attn_v.weight",
    "attn.v_bias": "attn_v.bias",
    "attn.o": "attn_output.weight",
    "attn.o_bias": "attn_output.bias",
    "attn.q_norm": "attn_q_norm.weight",
    "attn.k_norm": "attn_k_norm.weight",
}


SINKS = "attn_sinks.weight"


NORM_NAMES = {
    "mixer_norm": "attn_norm.weight",
    "mixer_norm_bias": "attn_norm.bias",
    "mixer_post_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "ffn_norm_bias": "ffn_norm.bias",
    "ffn_post_norm": "post_ffw_norm.weight",
}


FFN_NAMES = {"ffn.gate": "ffn_gate.weight", "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}


FFN_BIAS_NAMES = {"ffn.gate_bias": "ffn_gate.bias", "ffn.up_bias": "ffn_up.bias", "ffn.down_bias": "ffn_down.bias"}


MOE_NAMES = {
    "moe.router": "ffn_gate_inp.weight",
    "moe.router_bias": "exp_probs_b.bias",
    "moe.gate": "ffn_gate_exps.weight",
    "moe.up": "ffn_up_exps.weight",
    "moe.down": "ffn_down_exps.weight",
    "shared.sigmoid": "ffn_gate_inp_shexp.weight",
    "shared.gate": "ffn_gate_shexp.weight",
    "shared.up": "ffn_up_shexp.weight",
    "shared.down": "ffn_down_shexp.weight",
}


ENDS = {
    "positions": "position_embd.weight",
    "embedding_norm": "token_embd_norm.weight",
    "embedding_norm_bias": "token_embd_norm.bias",
    "output_norm": "output_norm.weight",
    "output_norm_bias": "output_norm.bias",
    "output": "output.weight",
    "output_bias": "output.bias",
}
"""Tensors outside the layers, but for the embedding, in the order in which they are written after the layers."""


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors by GGUF name, in the order of `names`, which has an entry for each role."""
    unknown = set(tensors) - set(names)
    if unknown:
        raise ValueError(f"no GGUF name for {sorted(unknown)}")
    return {name: tensors[role] for role, name in names.items() if role in tensors}
