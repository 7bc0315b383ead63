"""Small random checkpoints of Llama, Mistral, Mixtral, Qwen2, Qwen2-MoE, Qwen3 and Qwen3-MoE in the published layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gguf_tools.families.tiny.writing import Dtype, random_tensors, write_checkpoint, write_tiny_tokenizer

HIDDEN, WIDTH, HEADS, KV_HEADS, LAYERS, VOCAB, CONTEXT = 64, 96, 4, 2, 3, 288, 256
EXPERTS, EXPERT_WIDTH, SHARED_WIDTH, WINDOW = 4, 32, 64, 8
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
GAIN = {"gate.weight": 2.0, "q_proj.weight": 1.0, "k_proj.weight": 1.0}
"""Router logits are spread so that expert selection is robust to rounding. Attention logits are kept small, because the error
of llama.cpp's float32 rope angles, which grows with the position, would otherwise dominate."""

Shapes = dict[str, tuple[int, ...]]
Experts = Literal["separate", "fused", "w1"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a small checkpoint differs from the plain case of its family.

    `config` holds keys of config.json; `bias` the attention projections with a bias; `experts` the layout of the experts
    (one tensor per expert, fused as in transformers, or under Mixtral's names); `dense` the layers without experts.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    bias: str = ""
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_bias: bool = False
    experts: Experts | None = None
    expert_width: int = EXPERT_WIDTH
    shared: bool = False
    dense: tuple[int, ...] = ()
    dtype: Dtype = "F32"
    shards: int = 1
    layers: int = LAYERS


BASE: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def _llama(model_type: str = "llama", bias: str = "", mlp_bias: bool = False, **config: Any) -> Variant:
    stated = {"model_type": model_type, "attention_bias": bool(bias), "mlp_bias": mlp_bias}
    return Variant(config=stated | config, bias=bias, mlp_bias=mlp_bias)


def _mixtral(experts: Experts = "w1", **config: Any) -> Variant:
    stated = {"model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": None}
    return Variant(config=stated | config, experts=experts, expert_width=WIDTH)


def _qwen2(**config: Any) -> Variant:
    stated = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 1}
    return Variant(config=stated | config, bias="qkv")


def _routed(model_type: str, top_k: int, normalised: bool, dense: tuple[int, ...]) -> dict[str, Any]:
    """The config of a Qwen MoE variant; the layers in `dense` have a dense MLP instead of experts."""
    return {
        "model_type": model_type,
        "num_experts": EXPERTS,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
        "use_sliding_window": False,
        "sliding_window": None,
    }


def _qwen2_moe(
    experts: Experts = "separate", normalised: bool = False, top_k: int = 2, dense: tuple[int, ...] = (), **config: Any
) -> Variant:
    stated = _routed("qwen2_moe", top_k, normalised, dense) | {"shared_expert_intermediate_size": SHARED_WIDTH}
    return Variant(config=stated | config, bias="qkv", experts=experts, shared=True, dense=dense)


def _qwen3(**config: Any) -> Variant:
    stated = {"model_type": "qwen3", "head_dim": 32, "use_sliding_window": False, "sliding_window": None}
    return Variant(config=stated | config, qk_norm=True)


def _qwen3_moe(experts: Experts = "separate", dense: tuple[int, ...] = (), **config: Any) -> Variant:
    stated = _routed("qwen3_moe", 2, True, dense) | {"head_dim": 32}
    return Variant(config=stated | config, qk_norm=True, experts=experts, dense=dense)


LLAMA: Mapping[str, Variant] = {
    "plain": _llama(),
    "llama3": _llama(rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "linear": _llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0}),
    "yarn": _llama(rope_scaling=YARN),
    "biases": _llama(bias="qkvo", mlp_bias=True),
    "wide-heads": _llama(head_dim=32),
    "mistral": _llama("mistral", sliding_window=None),
    "mistral-window": _llama("mistral", sliding_window=WINDOW),
}
MIXTRAL: Mapping[str, Variant] = {
    "plain": _mixtral(),
    "fused": _mixtral("fused"),
    "window": _mixtral(sliding_window=WINDOW),
}
QWEN2: Mapping[str, Variant] = {
    "plain": _qwen2(),
    "tied": _qwen2(tie_word_embeddings=True),
    "yarn": _qwen2(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "wide-heads": _qwen2(head_dim=32),
    "window": _qwen2(use_sliding_window=True),
}
QWEN2_MOE: Mapping[str, Variant] = {
    "plain": _qwen2_moe(),
    "tied": _qwen2_moe(tie_word_embeddings=True),
    "fused": _qwen2_moe("fused"),
    "all-experts": _qwen2_moe(normalised=True, top_k=EXPERTS),
    "renormalised": _qwen2_moe(normalised=True),
    "mixed": _qwen2_moe(dense=(1,)),
}
QWEN3: Mapping[str, Variant] = {
    "plain": _qwen3(),
    "tied": _qwen3(tie_word_embeddings=True),
    "yarn": _qwen3(rope_scaling=YARN),
    "window": _qwen3(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "output-bias": replace(_qwen3(attention_bias=True), bias="qkvo"),
}
HYBRID_CLAIM: Mapping[str, Any] = {
    "attention_bias": True,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "shared_expert_intermediate_size": 128,
    "rope_scaling": YARN,
    "tie_word_embeddings": True,
}
"""Wrong config keys for a plain Qwen3-MoE, whose tensors have neither linear attention nor a shared expert."""
QWEN3_MOE: Mapping[str, Variant] = {
    "plain": _qwen3_moe(),
    "fused": _qwen3_moe("fused"),
    "mixed": _qwen3_moe(dense=(1,)),
    "window": _qwen3_moe(use_sliding_window=True, sliding_window=WINDOW),
    "hybrid-config": replace(_qwen3_moe(**HYBRID_CLAIM), bias="qkv"),
    "hybrid-config-output-bias": replace(_qwen3_moe(**HYBRID_CLAIM), bias="qkvo"),
}


def shapes(variant: Variant) -> Shapes:
    """Names and shapes of all tensors of a variant."""
    config = {**BASE, **variant.config}
    found: Shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if variant.norm_bias:
        found["model.norm.bias"] = (HIDDEN,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (VOCAB, HIDDEN)
    for n in range(variant.layers):
        prefix = f"model.layers.{n}."
        found |= {f"{prefix}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
        found |= _attention(variant, f"{prefix}self_attn.", config.get("head_dim", HIDDEN // HEADS))
        if variant.norm_bias:
            found |= {f"{prefix}{name}_layernorm.bias": (HIDDEN,) for name in ("input", "post_attention")}
        if variant.experts and n not in variant.dense:
            found |= _experts(variant, prefix)
        else:
            found |= _mlp(f"{prefix}mlp.", WIDTH, variant.mlp_bias)
    return found


def _attention(variant: Variant, prefix: str, head_dim: int) -> Shapes:
    wide, narrow = HEADS * head_dim, KV_HEADS * head_dim
    matrices = {"q": (wide, HIDDEN), "k": (narrow, HIDDEN), "v": (narrow, HIDDEN), "o": (HIDDEN, wide)}
    found: Shapes = {f"{prefix}{name}_proj.weight": shape for name, shape in matrices.items()}
    found |= {f"{prefix}{name}_proj.bias": matrices[name][:1] for name in variant.bias}
    if variant.qk_norm:
        found |= {f"{prefix}{name}_norm.weight": (head_dim,) for name in "qk"}
    return found


def _mlp(
    prefix: str, width: int, bias: bool = False, names: Iterable[str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    matrices = dict(zip(names, ((width, HIDDEN), (width, HIDDEN), (HIDDEN, width)), strict=True))
    found: Shapes = {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
    return found | ({f"{prefix}{name}.bias": shape[:1] for name, shape in matrices.items()} if bias else {})


def _experts(variant: Variant, prefix: str) -> Shapes:
    """The shapes of a layer's router and experts, in the variant's naming."""
    prefix += "block_sparse_moe." if variant.experts == "w1" else "mlp."
    width = variant.expert_width
    found: Shapes = {f"{prefix}gate.weight": (EXPERTS, HIDDEN)}
    if variant.shared:
        found |= _mlp(f"{prefix}shared_expert.", SHARED_WIDTH)
        found[f"{prefix}shared_expert_gate.weight"] = (1, HIDDEN)
    if variant.experts == "fused":
        found[f"{prefix}experts.gate_up_proj"] = (EXPERTS, 2 * width, HIDDEN)
        found[f"{prefix}experts.down_proj"] = (EXPERTS, HIDDEN, width)
        return found
    names = ("w1", "w3", "w2") if variant.experts == "w1" else ("gate_proj", "up_proj", "down_proj")
    for expert in range(EXPERTS):
        found |= _mlp(f"{prefix}experts.{expert}.", width, names=names)
    return found


def with_corrected_scores(shapes: Shapes, bias: str, shared: int) -> Shapes:
    """The shapes with a bias of this name on the scores of each router, and with shared experts of this width together."""
    found = dict(shapes)
    for name, shape in shapes.items():
        if name.endswith(".mlp.gate.weight"):
            prefix = name.removesuffix("gate.weight")
            found[f"{prefix}{bias}"] = shape[:1]
            found |= _mlp(f"{prefix}shared_experts.", shared) if shared else {}
    return found


def write(folder: Path, variant: Variant, seed: int) -> None:
    """Write a random checkpoint of the variant, with a tokenizer."""
    tensors = random_tensors(shapes(variant), seed, gain=GAIN)
    write_checkpoint(folder, {**BASE, **variant.config}, tensors, variant.dtype, variant.shards)
    write_tiny_tokenizer(folder, VOCAB)
