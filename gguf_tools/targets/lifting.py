"""Reads a GGUF file as a Model, so that the reference can run without the original checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import (
    LinearScaling,
    Rope,
    Scaling,
    YarnScaling,
    default_magnitude,
)
from gguf_tools.model.spec import (
    MLP,
    Activation,
    Attention,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    ModelSpec,
    MoE,
    Norm,
    Router,
    SharedExpert,
)
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.names import ATTENTION_NAMES, FFN_BIAS_NAMES, FFN_NAMES
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, take

LayerLifter = Callable[[int, Norm], Layer]


def lift_layers(source: GGUFSource, layer: LayerLifter, ffn_norm: str) -> Model:
    """The whole model; `layer` reads one layer without its two norms, whose tensors are added here.

    `ffn_norm` is the name of the norm before the feed-forward, without `blk.N.`.
    """
    tensors, norm, count = lift_ends(source)
    layers = []
    for n in range(count):
        bare = layer(n, norm)
        own = {
            "mixer_norm": source.tensor(f"blk.{n}.attn_norm.weight"),
            "ffn_norm": source.tensor(f"blk.{n}.{ffn_norm}"),
        }
        layers.append(Layer(bare.spec, {**bare.tensors, **own}))
    vocab, hidden = tensors["embedding"].shape
    context = source.integer("context_length")
    spec = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=context,
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm,
        tied="output" not in tensors,
    )
    return Model(
        spec=spec,
        tensors=tensors,
        layer_tensors=tuple(layer.tensors for layer in layers),
        family=f"GGUF {source.architecture}",
    )


def lift_normed(
    source: GGUFSource, layer: Callable[[int], Layer], *, centred: bool = False, weighted: bool = True, **spec: Any
) -> Model:
    """The whole model, with the norms that the file has tensors of; `layer` reads a layer without norms.

    `centred` are layer norms. Without `weighted` the norms before mixer, feed-forward and output have no tensors. `spec` are
    fields of the spec beyond those that tensors tell.
    """
    eps = source.number(f"attention.layer_norm_{'' if centred else 'rms_'}epsilon")
    base = Norm(eps, centred=centred, weighted=weighted)

    def norm(role: str, tensors: Mapping[str, Tensor]) -> Norm | None:
        if not weighted:
            return base
        return replace(base, bias=f"{role}_bias" in tensors) if role in tensors else None

    layers = []
    for n in range(source.integer("block_count")):
        bare, own = layer(n), lift_named(source, n, names.NORM_NAMES)
        form = replace(bare.spec, mixer_norm=norm("mixer_norm", own), ffn_norm=norm("ffn_norm", own))
        if weighted:
            posts = norm("mixer_post_norm", own), norm("ffn_post_norm", own)
            form = replace(form, mixer_post_norm=posts[0], ffn_post_norm=posts[1])
        layers.append(Layer(form, {**bare.tensors, **own}))
    tensors = {"embedding": source.tensor("token_embd.weight")}
    tensors |= {role: source.tensors[name] for role, name in names.ENDS.items() if name in source.tensors}
    vocab, hidden = tensors["embedding"].shape
    stated = ModelSpec(
        vocab_size=vocab,
        hidden=hidden,
        context_length=source.integer("context_length"),
        layers=tuple(layer.spec for layer in layers),
        output_norm=norm("output_norm", tensors) or base,
        tied="output" not in tensors,
        positions=tensors["positions"].shape[0] if "positions" in tensors else 0,
        output_bias="output_bias" in tensors,
        **spec,
    )
    return Model(
        spec=stated,
        tensors=tensors,
        layer_tensors=tuple(layer.tensors for layer in layers),
        family=f"GGUF {source.architecture}",
    )


def lift_qkv(source: GGUFSource, n: int, mixer: Attention) -> LayerTensors:
    """The rows of q, k and v, and of their biases, of a file that has them in one tensor `attn_qkv`."""
    sizes = (mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim, mixer.kv_heads * mixer.value_size)
    part: LayerTensors = {}
    for suffix, role in (("weight", ""), ("bias", "_bias")):
        both, start = source.tensor(f"blk.{n}.attn_qkv.{suffix}"), 0
        if both.shape[0] != sum(sizes):
            raise CheckpointError(
                f"{source.path}: tensor blk.{n}.attn_qkv.{suffix} has {both.shape[0]} rows; expected {sum(sizes)}"
            )
        for name, size in zip("qkv", sizes, strict=True):
            part[f"attn.{name}{role}"] = take(both, range(start, start + size))
            start += size
    return part


def lift_ungated(source: GGUFSource, n: int, activation: Activation) -> tuple[MLP, LayerTensors]:
    """Layer n's feed-forward without a gate."""
    part = {f"ffn.{name}": source.tensor(f"blk.{n}.ffn_{name}.weight") for name in ("up", "down")}
    biases = lift_named(source, n, {role: name for role, name in FFN_BIAS_NAMES.items() if "gate" not in role})
    bias = frozenset(name for name in ("up", "down") if f"ffn.{name}_bias" in biases)
    return MLP(part["ffn.up"].shape[0], activation, bias), part | biases


def lift_moe(source: GGUFSource, n: int, *, normalised: bool = True, scaled: bool = False) -> tuple[MoE, LayerTensors]:
    """Layer n's routed experts (softmax router, renormalised or not), and its shared expert if the file has one.

    `scaled`: the architecture reads `expert_weights_scale`; llama.cpp ignores the key for all others.
    """
    part = lift_named(source, n, names.MOE_NAMES)
    experts, width, _ = source.tensor(f"blk.{n}.ffn_gate_exps.weight").shape
    scale = (source.number("expert_weights_scale", 0.0) or 1.0) if scaled else 1.0
    used = source.integer("expert_used_count")
    if not 0 < used <= experts:
        raise CheckpointError(f"{source.path}: expert_used_count is {used}, but layer {n} has {experts} experts")
    router = Router(top_k=used, normalised=normalised, scale=scale)
    shared = None
    if "shared.gate" in part:
        gate = part.get("shared.sigmoid")
        if gate and gate.shape[:-1] == (1,):
            part["shared.sigmoid"] = Reshaped(gate, gate.shape[1:])  # llama.cpp's converter stores it as a matrix
        shared = SharedExpert(part["shared.gate"].shape[0], "shared.sigmoid" in part)
    return MoE(experts, width, router, shared), part


def lift_scored_moe(source: GGUFSource, n: int, gating: int = lowering.SIGMOID) -> tuple[MoE, LayerTensors]:
    """Layer n's experts with the router that `expert_gating_func` (`gating` by default) and `expert_weights_norm` describe.

    A bias is added to the scores for the selection alone. UnsupportedError for another function.
    """
    stated = source.integer("expert_gating_func", gating)
    if stated not in (lowering.SOFTMAX, lowering.SIGMOID):
        raise UnsupportedError(
            f"{source.path}: {source.architecture}.expert_gating_func is {stated}, which tinyq does not support; "
            f"{lowering.SOFTMAX} (softmax) and {lowering.SIGMOID} (sigmoid) are"
        )
    moe, part = lift_moe(source, n, normalised=bool(source.key("expert_weights_norm", False)), scaled=True)
    score: Literal["softmax", "sigmoid"] = "sigmoid" if stated == lowering.SIGMOID else "softmax"
    router = replace(moe.router, score=score, score_bias="moe.router_bias" in part)
    return replace(moe, router=router), part


def lift_rope(source: GGUFSource, head_dim: int, dims: int | None = None) -> Rope:
    """The RoPE that llama.cpp computes for a file, by its `rope.*` keys; `dims` overrides `rope.dimension_count`."""
    theta = source.number("rope.freq_base", 10000.0)
    dims = source.integer("rope.dimension_count", head_dim) if dims is None else dims
    factor = source.number("rope.scaling.factor", source.number("rope.scale_linear", 0.0))  # its old name
    if theta <= 0 or dims % 2 or not 0 < dims <= head_dim:
        raise CheckpointError(
            f"{source.path}: rope.freq_base is {theta:g} and rope rotates {dims} of {head_dim} dimensions; expected a base "
            "above 0 and an even number of dimensions; write the file again"
        )
    scaling: Scaling | None = None
    kind = source.key("rope.scaling.type", "linear")
    if kind == "yarn" and (factor <= 0 or theta <= 1):
        raise CheckpointError(
            f"{source.path}: rope.scaling.factor is {factor:g} and rope.freq_base {theta:g}; YaRN needs a factor above 0 and a "
            "base above 1; write the file again"
        )
    if kind == "yarn":
        magnitude = default_magnitude(factor) * source.number("rope.scaling.attn_factor", 1.0)
        original = source.integer("rope.scaling.original_context_length", source.integer("context_length"))
        if original < 1:
            raise CheckpointError(
                f"{source.path}: the original context of YaRN is {original} tokens (rope.scaling.original_context_length, or "
                "context_length); expected at least 1; write the file again"
            )
        scaling = YarnScaling(factor=factor, original_context=original, attention_factor=magnitude)
    elif kind != "none" and factor:
        scaling = LinearScaling(factor)
    return Rope(theta, dims, "half", scaling)


def kv_heads(source: GGUFSource, n: int) -> int:
    """The entry of layer n in `attention.head_count_kv`, 0 for a layer without attention; CheckpointError if it has none."""
    listed = source.key("attention.head_count_kv")
    heads = listed[n] if isinstance(listed, tuple) and n < len(listed) else None
    if type(heads) is not int or heads < 0:
        raise CheckpointError(
            f"{source.path}: metadata {source.architecture}.attention.head_count_kv has no number of heads for layer {n}; "
            "write the file again"
        )
    return heads


def lift_attention(
    source: GGUFSource,
    n: int,
    norm: Norm,
    rope_dims: int | None = None,
    kv_heads: int | None = None,
    *,
    with_rope: bool = True,
) -> tuple[Attention, LayerTensors]:
    """Layer n's attention without a gate, with the biases and norms that the file has; `rope_dims` is `lift_rope`'s `dims`.

    `kv_heads` is the layer's number of key/value heads, if the file does not have one number for all layers. Without
    `with_rope` the keys about rope are not read, as by an architecture that has none.
    """
    heads = source.integer("attention.head_count")
    kv_heads = source.integer("attention.head_count_kv") if kv_heads is None else kv_heads
    head_dim = source.integer("attention.key_length", source.integer("embedding_length") // max(heads, 1))
    part = lift_named(source, n, ATTENTION_NAMES)
    bias = frozenset(name for name in "qkvo" if f"attn.{name}_bias" in part)
    qk_norm = norm if "attn.q_norm" in part else None
    value_dim = source.integer("attention.value_length", head_dim)
    rope = lift_rope(source, head_dim, rope_dims) if with_rope else None
    spec = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        bias=bias,
        qk_norm=qk_norm,
        value_dim=None if value_dim == head_dim else value_dim,
    )
    return spec, part


def lift_named(source: GGUFSource, n: int, names: Mapping[str, str]) -> LayerTensors:
    """Layer n's tensors by role, for the entries of `names` that the file has."""
    return {
        role: source.tensors[f"blk.{n}.{name}"] for role, name in names.items() if f"blk.{n}.{name}" in source.tensors
    }


def lift_mlp(source: GGUFSource, n: int) -> tuple[GatedMLP, LayerTensors]:
    """Layer n's dense feed-forward."""
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in FFN_NAMES.items()}
    biases = lift_named(source, n, FFN_BIAS_NAMES)
    bias = frozenset(name for name in ("gate", "up", "down") if f"ffn.{name}_bias" in biases)
    return GatedMLP(part["ffn.gate"].shape[0], bias), part | biases


def lift_joined_gate(source: GGUFSource, n: int) -> tuple[GatedMLP, LayerTensors]:
    """Layer n's dense feed-forward in a file whose `ffn_up` has the rows of the gate, and then those of up."""
    both = source.tensor(f"blk.{n}.ffn_up.weight")
    width = both.shape[0] // 2
    part = {"ffn.gate": take(both, range(width)), "ffn.up": take(both, range(width, 2 * width))}
    return GatedMLP(width), {**part, "ffn.down": source.tensor(f"blk.{n}.ffn_down.weight")}


def lift_ends(source: GGUFSource) -> tuple[dict[str, Tensor], Norm, int]:
    """(tensors outside the layers by role; an RMS norm with the file's epsilon; the number of layers)."""
    part = {"embedding": source.tensor("token_embd.weight")}
    part |= {role: source.tensors[name] for role, name in names.ENDS.items() if name in source.tensors}
    if "output_norm" not in part:
        source.tensor("output_norm.weight")  # raises
    return part, Norm(source.number("attention.layer_norm_rms_epsilon")), source.integer("block_count")


def lift_dense(source: GGUFSource) -> Model:
    """A file of a dense architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, "ffn_norm.weight")
