"""From a GGUF file back to a Model, for the reference to run when the checkpoint is not at hand."""

from __future__ import annotations

from collections.abc import Callable

from gguf_tools.errors import CheckpointError
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.spec import LayerSpec, Model, ModelSpec, MoE, Norm, Router, SharedExpert
from gguf_tools.targets import common
from gguf_tools.tensors import Tensor

LayerLifter = Callable[[int, Norm], tuple[LayerSpec, dict[str, Tensor]]]


def lift_layers(source: GGUFSource, layer: LayerLifter, ffn_norm: str) -> Model:
    """The whole model from `layer`, which gives each layer without its two norms' tensors."""
    tensors, norm, count = common.lift_ends(source)
    layers = []
    for n in range(count):
        spec, part = layer(n, norm)
        part["mixer_norm"] = source.tensor(f"blk.{n}.attn_norm.weight")
        part["ffn_norm"] = source.tensor(f"blk.{n}.{ffn_norm}")
        tensors |= {f"layers.{n}.{name}": tensor for name, tensor in part.items()}
        layers.append(spec)
    vocab, hidden = tensors["embedding"].shape
    context = source.integer("context_length")
    spec_whole = ModelSpec(vocab, hidden, context, tuple(layers), norm, "output" not in tensors)
    return Model(spec_whole, tensors, f"GGUF {source.architecture}")


def lift_moe(source: GGUFSource, n: int, *, normalised: bool = True) -> tuple[MoE, dict[str, Tensor]]:
    """Layer n's experts (softmax, renormalised or not) and its shared expert where there is one."""
    part = common.lift_named(source, n, common.MOE_NAMES)
    experts, width, _ = source.tensor(f"blk.{n}.ffn_gate_exps.weight").shape
    scale = source.number("expert_weights_scale", 0.0) or 1.0
    used = source.integer("expert_used_count")
    if not 0 < used <= experts:
        raise CheckpointError(f"{source.path}: expert_used_count is {used}, but layer {n} has {experts} experts")
    router = Router(used, normalised, scale)
    shared = None
    if "shared.gate" in part:
        shared = SharedExpert(part["shared.gate"].shape[0], "shared.sigmoid" in part)
    return MoE(experts, width, router, shared), part
