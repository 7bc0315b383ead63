"""Pieces that the targets share: the names of tensors, the keys of metadata, and what llama.cpp cannot be told.

Sources: `src/llama-arch.cpp` (names and keys), `src/llama-model.cpp` (`llama_model_base::load_hparams`) and
`src/llama-context.cpp` (rope scaling) of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.gguf_file import Field, Metadata, ValueType, array, f32, string, u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rope import LinearScaling, Rope, Scaling, YarnScaling, default_magnitude
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
    "attn.q_norm": "attn_q_norm.weight",
    "attn.k_norm": "attn_k_norm.weight",
}
FFN_NAMES = {"ffn.gate": "ffn_gate.weight", "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}
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
NORM_ROLES = {"mixer_norm", "ffn_norm", "attn.q_norm", "attn.k_norm"}
"""Roles whose norm may have an offset; llama.cpp's norms have none, so it is added to the weights."""


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


def attention_lacks(spec: ModelSpec, *, gated: bool, full_rope: bool) -> list[str]:
    """What Qwen3's attention graphs cannot express of the model's attention layers."""
    found = attentions(spec)
    lacks = same(((a.heads, a.kv_heads, a.head_dim) for a in found), "set of head counts") + same(
        (a.rope for a in found), "rope"
    )
    for mixer in found:
        if mixer.qk_norm is None:
            lacks.append("attention without q/k norm")
        if mixer.gated != gated:
            lacks.append("an attention gate" if mixer.gated else "attention without a gate")
        if "o" in mixer.bias:
            lacks.append("a bias on the attention output")
        if mixer.norm_per_head:
            lacks.append("q/k norm weights of each head's own")
        if mixer.norm_gain:
            lacks.append("a gain after the q/k norm")
        if mixer.value_scale:
            lacks.append("a scale of the value heads")
        lacks += rope_lacks(mixer.rope, mixer.head_dim, full_rope)
    return list(dict.fromkeys(lacks))


def rope_lacks(rope: Rope, head_dim: int, full: bool) -> list[str]:
    """What the NEOX rope of an architecture without frequency factors cannot express."""
    lacks = []
    if rope.pairs != "half":
        lacks.append("rope in interleaved pairs")
    if full and rope.dims != head_dim:
        lacks.append(f"rope on {rope.dims} of {head_dim} dimensions")
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling):
        # llama.cpp reads yarn_beta_* only for a few architectures, and rounds the correction range always.
        if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
            lacks.append(f"YaRN with beta_fast {scaling.beta_fast:g} and beta_slow {scaling.beta_slow:g}")
        if not scaling.truncate:
            lacks.append("YaRN without truncation of the correction range")
    elif scaling is not None and not isinstance(scaling, LinearScaling):
        lacks.append("llama3 rope scaling")
    return lacks


def moe_lacks(spec: ModelSpec) -> list[str]:
    """What `build_moe_ffn`, as Qwen3's graphs call it (softmax, renormalised), cannot express."""
    lacks = same(((m.experts, m.width) for m in moes(spec)), "number and width of experts")
    lacks += same((m.router for m in moes(spec)), "router")
    # With one expert chosen, renormalisation gives the weight 1, which an unnormalised router does not.
    if any(m.router.score != "softmax" for m in moes(spec)):
        lacks.append("a sigmoid router")
    if any(m.router.selection_bias for m in moes(spec)):
        lacks.append("a router bias added before the score function, for the selection alone")
    if any(not m.router.normalised for m in moes(spec)):
        lacks.append("router weights that are not renormalised (norm_topk_prob false)")
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
            "attention.value_length": u32(mixer.head_dim),
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


def lift_rope(source: GGUFSource, head_dim: int) -> Rope:
    """The rope that llama.cpp computes for a file."""
    theta = float(source.key("rope.freq_base", 10000.0))
    dims = int(source.key("rope.dimension_count", head_dim))
    factor = float(source.key("rope.scaling.factor", 0.0))
    scaling: Scaling | None = None
    kind = source.key("rope.scaling.type", "linear")
    if kind == "yarn":
        magnitude = default_magnitude(factor) * float(source.key("rope.scaling.attn_factor", 1.0))
        original = int(source.key("rope.scaling.original_context_length", source.key("context_length")))
        scaling = YarnScaling(factor, original, attention_factor=magnitude)
    elif kind == "linear" and factor:
        scaling = LinearScaling(factor)
    return Rope(theta, dims, "half", scaling)


def lift_attention(source: GGUFSource, n: int, norm: Norm) -> tuple[Attention, dict[str, Tensor]]:
    """Layer n's attention without a gate, from the tensors that exist."""
    heads, kv_heads = int(source.key("attention.head_count")), int(source.key("attention.head_count_kv"))
    head_dim = int(source.key("attention.key_length", source.key("embedding_length") // heads))
    part = lift_named(source, n, ATTENTION_NAMES)
    bias = frozenset(name for name in "qkv" if f"attn.{name}_bias" in part)
    qk_norm = norm if "attn.q_norm" in part else None
    return Attention(heads, kv_heads, head_dim, lift_rope(source, head_dim), bias, qk_norm), part


def lift_named(source: GGUFSource, n: int, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Layer n's tensors by role, for those of `names` that the file has."""
    return {
        role: source.tensors[f"blk.{n}.{name}"] for role, name in names.items() if f"blk.{n}.{name}" in source.tensors
    }


def lift_mlp(source: GGUFSource, n: int) -> tuple[GatedMLP, dict[str, Tensor]]:
    """Layer n's dense feed-forward."""
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in FFN_NAMES.items()}
    return GatedMLP(part["ffn.gate"].shape[0]), part


def lift_ends(source: GGUFSource) -> tuple[dict[str, Tensor], Norm, int]:
    """Embedding, final norm and output projection; the norm's epsilon; the number of layers."""
    part = {"embedding": source.tensor("token_embd.weight"), "output_norm": source.tensor("output_norm.weight")}
    if "output.weight" in source.tensors:
        part["output"] = source.tensors["output.weight"]
    count = int(source.key("block_count"))
    if count < 1:
        raise CheckpointError(f"{source.path}: block_count is {count}, at least 1 expected")
    return part, Norm(float(source.key("attention.layer_norm_rms_epsilon"))), count
