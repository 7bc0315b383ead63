"""Reads a GGUF file as a Model, so that the reference can run without the original checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import (
    LinearScaling,
    Rope,
    Scaling,
    YarnScaling,
    default_magnitude,
)
from gguf_tools.model.spec import (
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
from gguf_tools.targets import lifting, names
from gguf_tools.targets.names import ATTENTION_NAMES, FFN_BIAS_NAMES, FFN_NAMES
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped

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


def lift_moe(source: GGUFSource, n: int, *, normalised: bool = True) -> tuple[MoE, LayerTensors]:
    """Layer n's routed experts (softmax router, renormalised or not), and its shared expert if the file has one."""
    part = lift_named(source, n, names.MOE_NAMES)
    experts, width, _ = source.tensor(f"blk.{n}.ffn_gate_exps.weight").shape
    scale = source.number("expert_weights_scale", 0.0) or 1.0
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


def lift_rope(source: GGUFSource, head_dim: int, dims: int | None = None) -> Rope:
    """The RoPE that llama.cpp computes for a file, by its `rope.*` keys; `dims` overrides `rope.dimension_count`."""
    theta = source.number("rope.freq_base", 10000.0)
    dims = source.integer("rope.dimension_count", head_dim) if dims is None else dims
    factor = source.number("rope.scaling.factor", 0.0)
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
        scaling = YarnScaling(factor=factor, original_context=original, attention_factor=magnitude)
    elif kind == "linear" and factor:
        scaling = LinearScaling(factor)
    return Rope(theta, dims, "half", scaling)


def lift_attention(
    source: GGUFSource, n: int, norm: Norm, rope_dims: int | None = None
) -> tuple[Attention, LayerTensors]:
    """Layer n's attention without a gate, with the biases and norms that the file has; `rope_dims` is `lift_rope`'s `dims`."""
    heads, kv_heads = source.integer("attention.head_count"), source.integer("attention.head_count_kv")
    head_dim = source.integer("attention.key_length", source.integer("embedding_length") // max(heads, 1))
    part = lift_named(source, n, ATTENTION_NAMES)
    bias = frozenset(name for name in "qkvo" if f"attn.{name}_bias" in part)
    qk_norm = norm if "attn.q_norm" in part else None
    value_dim = source.integer("attention.value_length", head_dim)
    rope = lift_rope(source, head_dim, rope_dims)
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


def lift_ends(source: GGUFSource) -> tuple[dict[str, Tensor], Norm, int]:
    """(embedding, final norm and output projection by role; a norm with the file's epsilon; the number of layers)."""
    part = {"embedding": source.tensor("token_embd.weight"), "output_norm": source.tensor("output_norm.weight")}
    if "output.weight" in source.tensors:
        part["output"] = source.tensors["output.weight"]
    count = source.integer("block_count")
    if count < 1:
        raise CheckpointError(f"{source.path}: block_count is {count}; expected at least 1")
    return part, Norm(source.number("attention.layer_norm_rms_epsilon")), count


def lift_dense(source: GGUFSource) -> Model:
    """A file of a dense architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, "ffn_norm.weight")
