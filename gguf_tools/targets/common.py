"""Pieces that the targets share: the names of tensors, the keys of metadata, and what llama.cpp cannot be told.

Sources: `src/llama-arch.cpp` (names and keys), `src/llama-model.cpp` (`llama_model_base::load_hparams`) and
`src/llama-context.cpp` (rope scaling) of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from gguf_tools.errors import CheckpointError
from gguf_tools.gguf_file import Field, Metadata, ValueType, array, f32, string, u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rope import (
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    Rope,
    Scaling,
    YarnScaling,
    correction_range,
    default_magnitude,
)
from gguf_tools.spec import Attention, DeltaNet, GatedMLP, Model, ModelSpec, MoE, Norm
from gguf_tools.targets.base import OutputTensor
from gguf_tools.tensors import Tensor, shifted

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
FFN_NAMES = {"ffn.gate": "ffn_gate.weight", "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}
FFN_BIAS_NAMES = {"ffn.gate_bias": "ffn_gate.bias", "ffn.up_bias": "ffn_up.bias", "ffn.down_bias": "ffn_down.bias"}
MOE_NAMES = {
    "moe.router": "ffn_gate_inp.weight",
    "moe.gate": "ffn_gate_exps.weight",
    "moe.up": "ffn_up_exps.weight",
    "moe.down": "ffn_down_exps.weight",
    "shared.sigmoid": "ffn_gate_inp_shexp.weight",
    "shared.gate": "ffn_gate_shexp.weight",
    "shared.up": "ffn_up_shexp.weight",
    "shared.down": "ffn_down_shexp.weight",
}


def lower_tensors(
    model: Model, layer: Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
) -> tuple[OutputTensor, ...]:
    """All tensors in file order; `layer` maps layer n's tensors (norm offsets added) to names without `blk.N.`."""
    spec = model.spec
    out = [OutputTensor("token_embd.weight", model.tensors["embedding"])]
    for n in range(len(spec.layers)):
        named = layer(n, _offsets_added(model, n))
        out += [OutputTensor(f"blk.{n}.{name}", tensor) for name, tensor in named.items()]
    out.append(OutputTensor("output_norm.weight", with_offset(model.tensors["output_norm"], spec.output_norm)))
    if not spec.tied:
        out.append(OutputTensor("output.weight", model.tensors["output"]))
    return tuple(out)


def _offsets_added(model: Model, n: int) -> dict[str, Tensor]:
    spec = model.spec.layers[n]
    norms: dict[str, Norm | None] = {"mixer_norm": spec.mixer_norm, "ffn_norm": spec.ffn_norm}
    if isinstance(spec.mixer, Attention):
        norms |= {"attn.q_norm": spec.mixer.qk_norm, "attn.k_norm": spec.mixer.qk_norm}
    else:
        norms["delta.norm"] = spec.mixer.norm
    return {name: with_offset(tensor, norms.get(name)) for name, tensor in model.layer(n).items()}


def with_offset(weight: Tensor, norm: Norm | None) -> Tensor:
    """A norm's weight as llama.cpp multiplies with it."""
    return shifted(weight, norm.offset) if norm and norm.offset else weight


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under their GGUF names, in the order of `names`; each must have one."""
    unknown = set(tensors) - set(names)
    if unknown:
        raise ValueError(f"no GGUF name for {sorted(unknown)}")
    return {name: tensors[role] for role, name in names.items() if role in tensors}


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


def common_metadata(arch: str, spec: ModelSpec) -> Metadata:
    """Sizes, norm epsilon and attention heads, under the architecture's prefix."""
    values: dict[str, Field] = {
        "context_length": u32(spec.context_length),
        "embedding_length": u32(spec.hidden),
        "block_count": u32(len(spec.layers)),
        "vocab_size": u32(spec.vocab_size),
        "attention.layer_norm_rms_epsilon": f32(spec.output_norm.eps),
    }
    mixer = next(iter(attentions(spec)), None)
    if mixer:
        values |= {
            "attention.head_count": u32(mixer.heads),
            "attention.head_count_kv": u32(mixer.kv_heads),
            "attention.key_length": u32(mixer.head_dim),
            "attention.value_length": u32(mixer.value_size),
            **rope_metadata(mixer.rope),
        }
    return {f"{arch}.{key}": value for key, value in values.items()}


def rope_metadata(rope: Rope) -> dict[str, Field]:
    """Rope keys without prefix. llama.cpp applies YaRN's default attention factor itself and multiplies attn_factor on it."""
    values: dict[str, Field] = {"rope.dimension_count": u32(rope.dims), "rope.freq_base": f32(rope.theta)}
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(scaling.factor)}
    elif isinstance(scaling, YarnScaling):
        values |= {
            "rope.scaling.type": string("yarn"),
            "rope.scaling.factor": f32(scaling.factor),
            "rope.scaling.original_context_length": u32(scaling.original_context),
        }
        if scaling.attention_factor is not None and scaling.magnitude != default_magnitude(scaling.factor):
            values["rope.scaling.attn_factor"] = f32(scaling.magnitude / default_magnitude(scaling.factor))
    return values


def moe_metadata(arch: str, moe: MoE) -> Metadata:
    """Expert counts and widths."""
    values: dict[str, Field] = {
        "expert_count": u32(moe.experts),
        "expert_used_count": u32(moe.router.top_k),
        "expert_feed_forward_length": u32(moe.width),
    }
    if moe.shared:
        values["expert_shared_feed_forward_length"] = u32(moe.shared.width)
    if moe.router.scale != 1.0:
        values["expert_weights_scale"] = f32(moe.router.scale)
    return {f"{arch}.{key}": value for key, value in values.items()}


def booleans(values: Iterable[bool]) -> Field:
    """An array of truth values."""
    return array(ValueType.BOOL, [bool(value) for value in values])


def lift_rope(source: GGUFSource, head_dim: int, dims: int | None = None) -> Rope:
    """The rope that llama.cpp computes for a file; `dims` is how many it turns, where `rope.dimension_count` does not say."""
    theta = source.number("rope.freq_base", 10000.0)
    dims = source.integer("rope.dimension_count", head_dim) if dims is None else dims
    factor = source.number("rope.scaling.factor", 0.0)
    if theta <= 0 or dims % 2 or not 0 < dims <= head_dim:
        raise CheckpointError(
            f"{source.path}: rope of base {theta:g} on {dims} of {head_dim} dimensions cannot be; write it again"
        )
    scaling: Scaling | None = None
    kind = source.key("rope.scaling.type", "linear")
    if kind == "yarn" and (factor <= 0 or theta <= 1):
        raise CheckpointError(f"{source.path}: YaRN by {factor:g} of base {theta:g} cannot be; write the file again")
    if kind == "yarn":
        magnitude = default_magnitude(factor) * source.number("rope.scaling.attn_factor", 1.0)
        original = source.integer("rope.scaling.original_context_length", source.integer("context_length"))
        scaling = YarnScaling(factor, original, attention_factor=magnitude)
    elif kind == "linear" and factor:
        scaling = LinearScaling(factor)
    return Rope(theta, dims, "half", scaling)


def lift_attention(
    source: GGUFSource, n: int, norm: Norm, rope_dims: int | None = None
) -> tuple[Attention, dict[str, Tensor]]:
    """Layer n's attention without a gate, from the tensors that exist; `rope_dims` as in `lift_rope`."""
    heads, kv_heads = source.integer("attention.head_count"), source.integer("attention.head_count_kv")
    head_dim = source.integer("attention.key_length", source.integer("embedding_length") // max(heads, 1))
    part = lift_named(source, n, ATTENTION_NAMES)
    bias = frozenset(name for name in "qkvo" if f"attn.{name}_bias" in part)
    qk_norm = norm if "attn.q_norm" in part else None
    value_dim = source.integer("attention.value_length", head_dim)
    rope = lift_rope(source, head_dim, rope_dims)
    spec = Attention(
        heads, kv_heads, head_dim, rope, bias, qk_norm, value_dim=None if value_dim == head_dim else value_dim
    )
    return spec, part


def lift_named(source: GGUFSource, n: int, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Layer n's tensors by role, for those of `names` that the file has."""
    return {
        role: source.tensors[f"blk.{n}.{name}"] for role, name in names.items() if f"blk.{n}.{name}" in source.tensors
    }


def lift_mlp(source: GGUFSource, n: int) -> tuple[GatedMLP, dict[str, Tensor]]:
    """Layer n's dense feed-forward."""
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in FFN_NAMES.items()}
    biases = lift_named(source, n, FFN_BIAS_NAMES)
    bias = frozenset(name for name in ("gate", "up", "down") if f"ffn.{name}_bias" in biases)
    return GatedMLP(part["ffn.gate"].shape[0], bias), part | biases


def lift_ends(source: GGUFSource) -> tuple[dict[str, Tensor], Norm, int]:
    """Embedding, final norm and output projection; the norm's epsilon; the number of layers."""
    part = {"embedding": source.tensor("token_embd.weight"), "output_norm": source.tensor("output_norm.weight")}
    if "output.weight" in source.tensors:
        part["output"] = source.tensors["output.weight"]
    count = source.integer("block_count")
    if count < 1:
        raise CheckpointError(f"{source.path}: block_count is {count}, at least 1 expected")
    return part, Norm(source.number("attention.layer_norm_rms_epsilon")), count
