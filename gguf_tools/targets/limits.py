"""Sets of features that several architectures express, and limits on the values of features.

A target declares the features that its graph computes (`Target.expresses`) and refuses all others. The functions here report
values of declared features that it cannot express: values that differ between layers where the file has one key for all, or
combinations that the graph does not compute. Each returns descriptions, empty where there is nothing to report.

Sources: `src/llama-arch.cpp` (names and keys), `src/llama-model.cpp` (`llama_model_base::load_hparams`) and
`src/llama-context.cpp` (rope scaling) of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gguf_tools.model.rope import Rope, YarnScaling, correction_range
from gguf_tools.model.spec import MLP, Attention, DeltaNet, GatedMLP, ModelSpec, MoE, Norm

GELU_NMSE = 1e-6
"""Bound on the NMSE of models with GELUs; 2e-8 to 3e-7 were measured."""
GELU_WHY = "llama.cpp computes GELU by its tanh approximation, on a CPU by a table of F16 numbers"

DECODER = frozenset(
    {
        "ModelSpec.output_norm=Norm",
        "ModelSpec.tied=false",
        "ModelSpec.tied=true",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
        "Norm.offset",  # added to the weights when the file is written
    }
)
"""RMS norms before mixer, feed-forward and output, and an output projection that may be tied to the embedding."""
ATTENTION = frozenset(
    {
        "LayerSpec.mixer=Attention",
        "Attention.rope=Rope",
        "Attention.bias=q",
        "Attention.bias=k",
        "Attention.bias=v",
    }
)
"""Softmax attention with RoPE, and with biases on q, k and v."""
ATTENTION_WITHOUT_ROPE = (ATTENTION - {"Attention.rope=Rope"}) | {"Attention.rope=None"}
ROPE_SCALING = frozenset({"Rope.scaling=LinearScaling", "Rope.scaling=YarnScaling", "YarnScaling.attention_factor"})
"""RoPE scaling by the `rope.scaling.*` keys; llama.cpp reads YaRN's betas for a few architectures only, none of them here."""
PAIRS_HALF = frozenset({"Rope.pairs=half"})
PAIRS_INTERLEAVED = frozenset({"Rope.pairs=interleaved"})
PARTIAL_ROPE = frozenset({"Rope.dims"})
ROPE_FACTORS = frozenset({"Rope.scaling=Llama3Scaling", "Rope.scaling=FactorScaling"})
"""RoPE scaling by one divisor per frequency (`rope_freqs.weight`)."""
NO_ROPE = frozenset({"Attention.rope=None"})
SCALES = frozenset(
    {"ModelSpec.embedding_scale", "ModelSpec.logit_scale", "LayerSpec.residual_scale", "Attention.scale"}
)
"""Granite's four scales."""
LATE_QK_NORM = frozenset({"Attention.qk_norm=Norm", "Attention.norm_after_rope"})
QK_NORM = frozenset({"Attention.qk_norm=Norm"})
ATTENTION_GATE = frozenset({"Attention.gated"})
BIAS_ON_OUTPUT = frozenset({"Attention.bias=o"})
WINDOWS = frozenset({"Attention.window"})
SINKS = frozenset({"Attention.sinks"})
VALUE_SIZES = frozenset({"Attention.value_dim"})
LINEAR_ATTENTION = frozenset(
    {"LayerSpec.mixer=DeltaNet", "DeltaNet.norm=Norm", "DeltaNet.decay=log", "DeltaNet.decay=rate"}
)
STATE_SPACE = frozenset({"Mamba2.norm=Norm", "Mamba2.decay=log", "Mamba2.decay=rate", "Mamba2.conv_bias"})
"""Mamba-2 by `build_mamba2_layer`, as the mixer of a layer or beside it."""
SHORT_CONVOLUTION = frozenset({"LayerSpec.mixer=ShortConv"})
DENSE = frozenset({"LayerSpec.feed_forward=GatedMLP", "GatedMLP.activation=silu"})
DENSE_BIAS = frozenset({"GatedMLP.bias=gate", "GatedMLP.bias=up", "GatedMLP.bias=down"})
GEGLU = frozenset({"LayerSpec.feed_forward=GatedMLP", "GatedMLP.activation=gelu", "GatedMLP.activation=gelu_tanh"})
"""A gate of GELUs. llama.cpp has the tanh approximation alone, by a table of F16 on a CPU, which costs more precision than the
approximation does (`ggml_vec_gelu_f32`), so that both forms are within the same bound."""
GELU_MLP = frozenset(
    {
        "LayerSpec.feed_forward=MLP",
        "MLP.activation=gelu",
        "MLP.activation=gelu_tanh",
        "MLP.bias=up",
        "MLP.bias=down",
    }
)
"""GELUs without a gate, with biases; as for `GEGLU`."""
LAYER_NORMS = frozenset({"Norm.centred", "Norm.bias", "Norm.weighted"})
"""Layer norms with weights and biases, which are written as ones and zeros where the model has none."""
OUTPUT_BIAS = frozenset({"ModelSpec.output_bias"})
POSITIONS = frozenset({"ModelSpec.positions"})
PARALLEL = frozenset({"LayerSpec.parallel"})
EMBEDDING_SCALE = frozenset({"ModelSpec.embedding_scale"})
SOFTCAP, LOGIT_SOFTCAP = frozenset({"Attention.softcap"}), frozenset({"ModelSpec.logit_softcap"})
WHOLE_NORM = frozenset({"Attention.norm_whole"})
POST_NORMS = frozenset({"LayerSpec.mixer_post_norm=Norm", "LayerSpec.ffn_post_norm=Norm"})
EXPERTS = frozenset(
    {
        "LayerSpec.feed_forward=MoE",
        "MoE.router=Router",
        "Router.score=softmax",
        # `moe_limits` reports which of the two a graph does not compute; with all experts selected they are equal.
        "Router.normalised=true",
        "Router.normalised=false",
    }
)
"""`build_moe_ffn` with a softmax router."""
CORRECTED_SCORES = frozenset({"Router.score=sigmoid", "Router.scale", "Router.score_bias"})
"""Of `build_moe_ffn`: sigmoid scores, scaled weights, and a bias on the scores for the selection (`exp_probs_b`)."""
SHARED_EXPERT = frozenset({"MoE.shared=SharedExpert"})
SHARED_GATE = frozenset({"SharedExpert.gated=true"})
NO_SHARED_GATE = frozenset({"SharedExpert.gated=false"})


def same(values: Iterable[Any], what: str) -> list[str]:
    """A description if the values of the layers are not all equal, else an empty list; `what` names them."""
    found = list(dict.fromkeys(values))
    return [f"layers that differ in {what} ({', '.join(map(_described, found))})"] if len(found) > 1 else []


def _described(value: object) -> str:
    """A value in an error message; ropes by what usually differs."""
    if isinstance(value, Rope):
        scaling = "" if value.scaling is None else f", {type(value.scaling).__name__}"
        return f"base {value.theta:g}, {value.dims} dimensions{scaling}"
    return str(value)


def attentions(spec: ModelSpec) -> list[Attention]:
    """The attention specs of the layers that have one, in order."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]


def ropes(spec: ModelSpec) -> list[Rope]:
    """The ropes of the attention layers that have one, in order."""
    return [mixer.rope for mixer in attentions(spec) if mixer.rope]


def moes(spec: ModelSpec) -> list[MoE]:
    """The MoE specs of the layers that have one, in order."""
    return [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MoE)]


def norm_limits(spec: ModelSpec) -> list[str]:
    """All norms must have the same epsilon: a file has one (`attention.layer_norm_rms_epsilon`)."""
    eps = [norm.eps for norm in norms(spec)]
    eps += [layer.mixer.l2_eps for layer in spec.layers if isinstance(layer.mixer, DeltaNet)]
    return same(eps, "norm epsilon")


def norms(spec: ModelSpec) -> list[Norm]:
    """Every norm of the spec: before the output, after the embedding, and in the layers."""
    outside = [spec.output_norm] + ([spec.embedding_norm] if spec.embedding_norm else [])
    return outside + [norm for layer in spec.layers for norm in layer.norms.values()]


def layer_norm_limits(spec: ModelSpec) -> list[str]:
    """All norms must be layer norms with the same epsilon (`attention.layer_norm_epsilon`)."""
    found = norm_limits(spec)
    return (
        found if all(norm.centred for norm in norms(spec)) else [*found, "RMS norms (which do not subtract the mean)"]
    )


def attention_limits(spec: ModelSpec, *, gate: bool = False, qk_norm: bool = False) -> list[str]:
    """All attention layers must have the same heads, sizes and RoPE.

    `gate` and `qk_norm` say whether the graph requires an output gate or q/k norms in every attention layer.
    """
    found = attentions(spec)
    sizes = ((a.heads, a.kv_heads, a.head_dim, a.value_size) for a in found)
    limits = same(sizes, "head counts and sizes") + same(ropes(spec), "rope parameters")
    for mixer in found:
        if qk_norm and not mixer.qk_norm:
            limits.append("attention without q/k norm")
        if gate and not mixer.gated:
            limits.append("attention without a gate")
        limits += yarn_limits(mixer)
    return list(dict.fromkeys(limits))


def graph_limits(spec: ModelSpec) -> list[str]:
    """What no graph computes: `build_attn_mha` takes values of one dimension for transposed ones, and an assertion ends it."""
    return (
        ["attention with values of one dimension per head"] if any(a.value_size == 1 for a in attentions(spec)) else []
    )


def square_limits(spec: ModelSpec) -> list[str]:
    """All heads together must be as wide as the model's hidden size, where the loader takes one for the other."""
    mixers = dict.fromkeys(attentions(spec))
    wrong = [mixer for mixer in mixers if mixer.heads * mixer.head_dim != spec.hidden]
    return [
        f"{mixer.heads} heads of {mixer.head_dim} dimensions with a hidden size of {spec.hidden}" for mixer in wrong
    ]


def yarn_limits(mixer: Attention) -> list[str]:
    """The correction range must not end before it starts: transformers then divides by its negative width, llama.cpp by 0.001."""
    scaling = mixer.rope.scaling if mixer.rope else None
    if mixer.rope and isinstance(scaling, YarnScaling):
        low, high = correction_range(mixer.rope, scaling)
        if high < low:
            return [f"YaRN with a correction range from pair {low:g} back to {high:g}"]
    return []


def mlp_limits(spec: ModelSpec) -> list[str]:
    """All dense feed-forwards must have the same width."""
    mlps = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, GatedMLP | MLP)]
    return same((mlp.width for mlp in mlps), "feed-forward width")


def moe_limits(spec: ModelSpec, *, normalised: bool = True) -> list[str]:
    """All MoE layers must have the same sizes and router; `normalised` says whether the graph renormalises router weights."""
    limits = same(((m.experts, m.width) for m in moes(spec)), "the number and width of experts")
    limits += same((m.router for m in moes(spec)), "router settings")
    # A softmax over all experts sums to 1, so renormalisation changes nothing if all are selected; sigmoids have any sum. (If
    # one is selected, renormalisation gives it the weight 1, so the two differ.)
    wrong = [m for m in moes(spec) if m.router.normalised != normalised]
    if any(m.router.top_k < m.experts or m.router.score == "sigmoid" for m in wrong):
        wanted = (
            "that are not renormalised (norm_topk_prob false)" if normalised else "renormalised (norm_topk_prob true)"
        )
        limits.append(f"router weights {wanted}")
    return limits


def leading_dense_limits(spec: ModelSpec) -> list[str]:
    """Layers without experts must precede those with experts (`leading_dense_block_count`), and there must be some with."""
    routed = [isinstance(layer.feed_forward, MoE) for layer in spec.layers]
    if not any(routed):
        return ["a model without experts"]
    return [] if routed == sorted(routed) else ["dense layers after layers with experts"]
