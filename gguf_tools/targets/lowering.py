"""Conversion of a Model to GGUF tensors and metadata: code shared by the targets.

Sources: `src/llama-arch.cpp` (names and keys) and `src/llama-model.cpp` (`llama_model_base::load_hparams`) of
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gguf_tools.formats.gguf.header import Field, Metadata, ValueType, array, boolean, f32, string, u32
from gguf_tools.model.rope import (
    LinearScaling,
    Rope,
    YarnScaling,
    default_magnitude,
)
from gguf_tools.model.spec import GatedMLP, Layer, LayerSpec, Model, ModelSpec, MoE, Norm, Shape
from gguf_tools.targets import names
from gguf_tools.targets.base import Lowered, OutputTensor
from gguf_tools.targets.limits import attentions, ropes
from gguf_tools.tensors.base import Filled, Tensor
from gguf_tools.tensors.views import concatenate, shifted


def lower_tensors(model: Model, names_of: Callable[[Layer], Mapping[str, Tensor]]) -> tuple[OutputTensor, ...]:
    """All tensors in file order.

    `names_of` maps a layer, whose norm weights have their offsets added, to its tensors by GGUF name without `blk.N.`.
    """
    spec = model.spec
    out = [OutputTensor("token_embd.weight", model.tensors["embedding"])]
    for n, layer in enumerate(model.layers):
        named = names_of(_offsets_added(layer))
        out += [OutputTensor(f"blk.{n}.{name}", tensor) for name, tensor in named.items()]
    norms = {"output_norm": spec.output_norm, "embedding_norm": spec.embedding_norm}
    outside = {role: with_offset(tensor, norms.get(role)) for role, tensor in model.tensors.items()}
    out += [OutputTensor(name, outside[role]) for role, name in names.ENDS.items() if role in outside]
    return tuple(out)


def _offsets_added(layer: Layer) -> Layer:
    norms = layer.spec.norms
    return Layer(layer.spec, {role: with_offset(tensor, norms.get(role)) for role, tensor in layer.tensors.items()})


def completed(model: Model, layer: Callable[[LayerSpec], LayerSpec], **outside: Any) -> Model:
    """The model in the form that an architecture requires: tensors that it lacks become those that change nothing.

    `layer` gives the form of a layer that the architecture has, `outside` fields of the spec outside the layers, such as the
    form of the norm before the output. A missing bias is zeros, and missing norm weights are ones.
    """

    def filled(roles: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        added = {role: Filled(shape, 1.0 if role.endswith("norm") else 0.0) for role, shape in roles.items()}
        return {role: tensors.get(role, added[role]) for role in roles}

    layers = []
    for old in model.layers:
        form = layer(old.spec)
        layers.append(Layer(form, filled(form.roles(model.spec.hidden), old.tensors)))
    spec = replace(model.spec, layers=tuple(new.spec for new in layers), **outside)
    tensors = filled(spec.roles(), model.tensors)
    return replace(model, spec=spec, tensors=tensors, layer_tensors=tuple(new.tensors for new in layers))


def full_norm(norm: Norm | None, *, bias: bool = True) -> Norm | None:
    """The norm with weights, and with a bias or without; a norm without weights has no offset to add to them."""
    return norm and replace(norm, weighted=True, bias=bias, offset=norm.offset if norm.weighted else 0.0)


def joined_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer with q, k and v, and their biases, as one matrix of their rows and one vector."""
    out = {
        role: tensor for role, tensor in tensors.items() if role.partition("_")[0] not in ("attn.q", "attn.k", "attn.v")
    }
    out["attn.qkv"] = concatenate([tensors[f"attn.{name}"] for name in "qkv"])
    out["attn.qkv_bias"] = concatenate([tensors[f"attn.{name}_bias"] for name in "qkv"])
    return out


def joined_gate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors with the rows of gate and then of up as one matrix."""
    out = {role: tensor for role, tensor in tensors.items() if role != "ffn.gate"}
    return {**out, "ffn.up": concatenate([tensors["ffn.gate"], tensors["ffn.up"]])}


def with_offset(weight: Tensor, norm: Norm | None) -> Tensor:
    """A norm's weight with its offset added, as llama.cpp multiplies with it."""
    return shifted(weight, norm.offset) if norm and norm.offset else weight


def common_metadata(arch: str, spec: ModelSpec) -> Metadata:
    """Sizes, norm epsilon and attention heads, under the architecture's prefix."""
    values: dict[str, Field] = {
        "context_length": u32(spec.context_length),
        "embedding_length": u32(spec.hidden),
        "block_count": u32(len(spec.layers)),
        "vocab_size": u32(spec.vocab_size),
        f"attention.layer_norm_{'' if spec.output_norm.centred else 'rms_'}epsilon": f32(spec.output_norm.eps),
    }
    mixer = next(iter(attentions(spec)), None)
    if mixer:
        values |= {
            "attention.head_count": u32(mixer.heads),
            "attention.head_count_kv": u32(mixer.kv_heads),
            "attention.key_length": u32(mixer.head_dim),
            "attention.value_length": u32(mixer.value_size),
        }
        values |= rope_metadata(ropes(spec)[0]) if ropes(spec) else {}
    return {f"{arch}.{key}": value for key, value in values.items()}


def rope_metadata(rope: Rope) -> dict[str, Field]:
    """RoPE keys without prefix. `attn_factor` is relative to YaRN's default attention factor, which llama.cpp applies itself."""
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


SOFTMAX, SIGMOID = 1, 2
"""Values of `expert_gating_func` (`llama_expert_gating_func_type`)."""


def scored_moe_metadata(arch: str, spec: ModelSpec) -> Metadata:
    """Of a model of leading dense layers and experts of one kind: how experts are scored, and the width of dense layers."""
    experts = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MoE)]
    dense = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, GatedMLP)]
    router = experts[0].router
    values: dict[str, Field] = {
        "leading_dense_block_count": u32(len(dense)),
        "feed_forward_length": u32(dense[0].width if dense else experts[0].width),
        "expert_gating_func": u32(SIGMOID if router.score == "sigmoid" else SOFTMAX),
        "expert_weights_norm": boolean(router.normalised),
    }
    return moe_metadata(arch, experts[0]) | {f"{arch}.{key}": value for key, value in values.items()}


def ffn_width(spec: ModelSpec) -> int:
    """The width of the first layer's feed-forward; 0 if it has none."""
    ffn = spec.layers[0].feed_forward
    return ffn.width if ffn else 0


def booleans(values: Iterable[bool]) -> Field:
    """A metadata array of booleans."""
    return array(ValueType.BOOL, [bool(value) for value in values])


NAMES = {"mixer_norm": "attn_norm.weight", **names.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **names.FFN_NAMES}


def lower_renamed(arch: str, model: Model, roles: Mapping[str, str]) -> Lowered:
    """A dense model as a file of `arch`: tensors get the names of their `roles`, their values do not change."""
    metadata = common_metadata(arch, model.spec) | {f"{arch}.feed_forward_length": u32(ffn_width(model.spec))}
    return Lowered(arch, metadata, lower_tensors(model, lambda layer: names.rename(layer.tensors, roles)))


def lower_dense(arch: str) -> Callable[[Model], Lowered]:
    """The `lower` of a dense architecture `arch` with the usual names."""
    return lambda model: lower_renamed(arch, model, NAMES)
