"""Pieces that the targets share: the names of tensors, the keys of metadata, and what llama.cpp cannot be told.

Sources: `src/llama-arch.cpp` (names and keys), `src/llama-model.cpp` (`llama_model_base::load_hparams`) and
`src/llama-context.cpp` (rope scaling) of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from gguf_tools.model.rope import (
    FactorScaling,
    Llama3Scaling,
    Rope,
    YarnScaling,
    correction_range,
)
from gguf_tools.model.spec import Attention, DeltaNet, GatedMLP, ModelSpec, MoE


def same(values: Iterable[Any], what: str) -> list[str]:
    """A complaint if the values differ from layer to layer, where the architecture has one for all."""
    found = list(dict.fromkeys(values))
    return [f"one {what} for all layers, but the model has {', '.join(map(str, found))}"] if len(found) > 1 else []


def attentions(spec: ModelSpec) -> list[Attention]:
    """The attention of every layer that has one."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]


def moes(spec: ModelSpec) -> list[MoE]:
    """The mixture of experts of every layer that has one."""
    return [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MoE)]


def scale_lacks(spec: ModelSpec) -> list[str]:
    """Most architectures scale neither embeddings nor logits; a rewrite folds the scales into weights first."""
    lacks = []
    if spec.embedding_scale != 1.0:
        lacks.append(f"embeddings multiplied by {spec.embedding_scale:g}")
    if spec.logit_scale != 1.0:
        lacks.append(f"logits multiplied by {spec.logit_scale:g}")
    return lacks


def linear_lacks(spec: ModelSpec) -> list[str]:
    """What an architecture of attention alone cannot express of the mixers."""
    return ["linear attention layers"] if any(layer.letter.upper() != "A" for layer in spec.layers) else []


def dense_lacks(spec: ModelSpec) -> list[str]:
    """What an architecture with experts in every layer cannot express of the feed-forwards."""
    dense = any(not isinstance(layer.feed_forward, MoE) for layer in spec.layers)
    return ["layers without experts"] if dense else []


def norm_lacks(spec: ModelSpec) -> list[str]:
    """One epsilon serves every norm of a file (`attention.layer_norm_rms_epsilon`)."""
    eps = [spec.output_norm.eps]
    for layer in spec.layers:
        eps += [layer.mixer_norm.eps, layer.ffn_norm.eps]
        if isinstance(layer.mixer, DeltaNet):
            eps += [layer.mixer.norm.eps, layer.mixer.l2_eps]
        elif layer.mixer.qk_norm:
            eps.append(layer.mixer.qk_norm.eps)
    return same(eps, "norm epsilon")


def attention_lacks(
    spec: ModelSpec,
    *,
    gated: bool,
    full_rope: bool,
    qk_norm: bool | None = True,
    bias: str = "qkv",
    pairs: Literal["half", "interleaved"] = "half",
    rope_factors: bool = False,
    windows: bool = False,
    value_sizes: bool = False,
) -> list[str]:
    """What an attention graph cannot express of the model's attention layers.

    The graph has an output gate or not (`gated`), turns whole heads only (`full_rope`), norms q and k always, never or
    where it finds weights (`qk_norm` true, false, None), adds a bias to the projections of `bias`, turns `pairs`, reads a
    divisor for each frequency (`rope_factors`), limits single layers to a sliding window (`windows`), and has value heads of
    another size than key heads (`value_sizes`).
    """
    found = attentions(spec)
    sizes = ((a.heads, a.kv_heads, a.head_dim, a.value_size) for a in found)
    lacks = same(sizes, "set of head counts and sizes") + same((a.rope for a in found), "rope")
    for mixer in found:
        if qk_norm is not None and qk_norm != (mixer.qk_norm is not None):
            lacks.append("q/k norm" if mixer.qk_norm else "attention without q/k norm")
        if mixer.gated != gated:
            lacks.append("an attention gate" if mixer.gated else "attention without a gate")
        for name in sorted(mixer.bias - set(bias)):
            lacks.append("a bias on the attention output" if name == "o" else f"a bias on the attention's {name}")
        if mixer.window and mixer.window < spec.context_length and not windows:
            lacks.append(f"a sliding window of {mixer.window} tokens in a context of {spec.context_length}")
        if mixer.norm_per_head:
            lacks.append("q/k norm weights of each head's own")
        if mixer.norm_gain:
            lacks.append("a gain after the q/k norm")
        if mixer.value_scale:
            lacks.append("a scale of the value heads")
        if mixer.value_size != mixer.head_dim and not value_sizes:
            lacks.append(f"value heads of {mixer.value_size} dimensions beside key heads of {mixer.head_dim}")
        lacks += rope_lacks(mixer.rope, mixer.head_dim, full_rope, pairs, rope_factors)
    return list(dict.fromkeys(lacks))


def rope_lacks(
    rope: Rope,
    head_dim: int,
    full: bool,
    pairs: Literal["half", "interleaved"] = "half",
    factors: bool = False,
) -> list[str]:
    """What a rope of NEOX order ("half") or NORM order ("interleaved"), with or without frequency factors, cannot express."""
    lacks = []
    if rope.pairs != pairs:
        lacks.append("rope in interleaved pairs" if pairs == "half" else "rope in pairs half a head apart")
    if full and rope.dims != head_dim:
        lacks.append(f"rope on {rope.dims} of {head_dim} dimensions")
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling):
        # llama.cpp reads yarn_beta_* only for a few architectures, and rounds the correction range always.
        if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
            lacks.append(f"YaRN with beta_fast {scaling.beta_fast:g} and beta_slow {scaling.beta_slow:g}")
        if not scaling.truncate:
            lacks.append("YaRN without truncation of the correction range")
        # There transformers divides by what is below zero, and llama.cpp by 0.001.
        low, high = correction_range(rope, scaling)
        if high < low:
            lacks.append(f"YaRN with a correction range from pair {low:g} back to {high:g}")
    elif isinstance(scaling, Llama3Scaling | FactorScaling) and not factors:
        lacks.append("llama3 rope scaling" if isinstance(scaling, Llama3Scaling) else "rope with frequency factors")
    return lacks


def mlp_lacks(spec: ModelSpec, *, bias: bool = False) -> list[str]:
    """Dense feed-forwards have one width, and biases only where the graph adds them (`bias`)."""
    mlps = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, GatedMLP)]
    lacks = same((mlp.width for mlp in mlps), "feed-forward width")
    if any(mlp.bias for mlp in mlps) and not bias:
        lacks.append("biases in the feed-forward")
    return lacks


def moe_lacks(spec: ModelSpec, *, normalised: bool = True, scale: bool = False) -> list[str]:
    """What `build_moe_ffn` with softmax, renormalised or not, and with or without a scale read from the file, cannot express."""
    lacks = same(((m.experts, m.width) for m in moes(spec)), "number and width of experts")
    lacks += same((m.router for m in moes(spec)), "router")
    # With one expert chosen, renormalisation gives the weight 1, which an unnormalised router does not.
    if any(m.router.score != "softmax" for m in moes(spec)):
        lacks.append("a sigmoid router")
    if any(m.router.selection_bias for m in moes(spec)):
        lacks.append("a router bias added before the score function, for the selection alone")
    # Softmax over all experts sums to 1 already, so where all are chosen both are the same.
    if any(m.router.normalised != normalised and m.router.top_k < m.experts for m in moes(spec)):
        wanted = (
            "that are not renormalised (norm_topk_prob false)" if normalised else "renormalised (norm_topk_prob true)"
        )
        lacks.append(f"router weights {wanted}")
    if any(m.router.scale != 1.0 for m in moes(spec)) and not scale:
        lacks.append("scaled router weights")
    return lacks
