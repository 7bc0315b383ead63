"""What architectures express: sets of features that several share, and limits on their values.

A target declares the features that its graph has (`Target.expresses`); what a spec has beyond them is lacking. The
functions here say what declared features cannot be: one value for all layers where the file has one key, or a combination that
the graph does not compute.

Sources: `src/llama-arch.cpp` (names and keys), `src/llama-model.cpp` (`llama_model_base::load_hparams`) and
`src/llama-context.cpp` (rope scaling) of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gguf_tools.model.rope import YarnScaling, correction_range
from gguf_tools.model.spec import Attention, DeltaNet, GatedMLP, ModelSpec, MoE

DECODER = frozenset(
    {
        "ModelSpec.output_norm=Norm",
        "ModelSpec.tied=false",
        "ModelSpec.tied=true",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
        "Norm.offset",  # added to the weights on their way into the file
    }
)
"""RMS norms before mixer, feed-forward and output, and an output projection that may be the embedding."""
ATTENTION = frozenset(
    {
        "LayerSpec.mixer=Attention",
        "Attention.rope=Rope",
        "Attention.bias=q",
        "Attention.bias=k",
        "Attention.bias=v",
    }
)
"""Softmax attention with rope, and with biases on q, k and v."""
ROPE_SCALING = frozenset({"Rope.scaling=LinearScaling", "Rope.scaling=YarnScaling", "YarnScaling.attention_factor"})
"""What keys of the file say (`rope.scaling.*`); YaRN's betas are read for a few architectures only, none of them here."""
PAIRS_HALF = frozenset({"Rope.pairs=half"})
PAIRS_INTERLEAVED = frozenset({"Rope.pairs=interleaved"})
PARTIAL_ROPE = frozenset({"Rope.dims"})
ROPE_FACTORS = frozenset({"Rope.scaling=Llama3Scaling", "Rope.scaling=FactorScaling"})
"""A divisor for each frequency (`rope_freqs.weight`)."""
QK_NORM = frozenset({"Attention.qk_norm=Norm"})
ATTENTION_GATE = frozenset({"Attention.gated"})
BIAS_ON_OUTPUT = frozenset({"Attention.bias=o"})
WINDOWS = frozenset({"Attention.window"})
VALUE_SIZES = frozenset({"Attention.value_dim"})
LINEAR_ATTENTION = frozenset(
    {"LayerSpec.mixer=DeltaNet", "DeltaNet.norm=Norm", "DeltaNet.decay=log", "DeltaNet.decay=rate"}
)
DENSE = frozenset({"LayerSpec.feed_forward=GatedMLP"})
DENSE_BIAS = frozenset({"GatedMLP.bias=gate", "GatedMLP.bias=up", "GatedMLP.bias=down"})
EXPERTS = frozenset(
    {
        "LayerSpec.feed_forward=MoE",
        "MoE.router=Router",
        "Router.score=softmax",
        # Which of the two a graph has is a limit: with all experts chosen they are the same.
        "Router.normalised=true",
        "Router.normalised=false",
    }
)
"""`build_moe_ffn` with a softmax router."""
SHARED_EXPERT = frozenset({"MoE.shared=SharedExpert"})
SHARED_GATE = frozenset({"SharedExpert.gated=true"})
NO_SHARED_GATE = frozenset({"SharedExpert.gated=false"})


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


def norm_limits(spec: ModelSpec) -> list[str]:
    """One epsilon serves every norm of a file (`attention.layer_norm_rms_epsilon`)."""
    eps = [spec.output_norm.eps]
    for layer in spec.layers:
        eps += [layer.mixer_norm.eps, layer.ffn_norm.eps]
        if isinstance(layer.mixer, DeltaNet):
            eps += [layer.mixer.norm.eps, layer.mixer.l2_eps]
        elif layer.mixer.qk_norm:
            eps.append(layer.mixer.qk_norm.eps)
    return same(eps, "norm epsilon")


def attention_limits(spec: ModelSpec, *, gate: bool = False, qk_norm: bool = False) -> list[str]:
    """What the attention layers have to have in common, and in every layer where the graph requires it.

    The graph always reads an output gate (`gate`) or q/k norms (`qk_norm`), or it does not.
    """
    found = attentions(spec)
    sizes = ((a.heads, a.kv_heads, a.head_dim, a.value_size) for a in found)
    limits = same(sizes, "set of head counts and sizes") + same((a.rope for a in found), "rope")
    for mixer in found:
        if qk_norm and not mixer.qk_norm:
            limits.append("attention without q/k norm")
        if gate and not mixer.gated:
            limits.append("attention without a gate")
        limits += yarn_limits(mixer)
    return list(dict.fromkeys(limits))


def yarn_limits(mixer: Attention) -> list[str]:
    """A correction range that runs backwards: there transformers divides by what is below zero, and llama.cpp by 0.001."""
    scaling = mixer.rope.scaling
    if isinstance(scaling, YarnScaling):
        low, high = correction_range(mixer.rope, scaling)
        if high < low:
            return [f"YaRN with a correction range from pair {low:g} back to {high:g}"]
    return []


def mlp_limits(spec: ModelSpec) -> list[str]:
    """Dense feed-forwards have one width."""
    mlps = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, GatedMLP)]
    return same((mlp.width for mlp in mlps), "feed-forward width")


def moe_limits(spec: ModelSpec, *, normalised: bool = True) -> list[str]:
    """One router for all layers, whose weights the graph renormalises or does not (`normalised`)."""
    limits = same(((m.experts, m.width) for m in moes(spec)), "number and width of experts")
    limits += same((m.router for m in moes(spec)), "router")
    # Softmax over all experts sums to 1 already, so where all are chosen both are the same. (With one expert chosen,
    # renormalisation gives the weight 1, which an unnormalised router does not.)
    if any(m.router.normalised != normalised and m.router.top_k < m.experts for m in moes(spec)):
        wanted = (
            "that are not renormalised (norm_topk_prob false)" if normalised else "renormalised (norm_topk_prob true)"
        )
        limits.append(f"router weights {wanted}")
    return limits
