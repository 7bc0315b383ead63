"""Lowering and lifting where every layer is attention and a dense feed-forward and only names change."""

from __future__ import annotations

from collections.abc import Callable

from gguf_tools.gguf_file import u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.spec import LayerSpec, Model, Norm
from gguf_tools.targets import common
from gguf_tools.targets.base import Lowered
from gguf_tools.targets.lifting import lift_layers
from gguf_tools.tensors import Tensor

NAMES = {"mixer_norm": "attn_norm.weight", **common.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **common.FFN_NAMES}


def lower_dense(arch: str) -> Callable[[Model], Lowered]:
    """How a model becomes a file of `arch`: every tensor keeps its numbers, only names change."""

    def lower(model: Model) -> Lowered:
        width = model.spec.layers[0].feed_forward.width
        metadata = common.common_metadata(arch, model.spec) | {f"{arch}.feed_forward_length": u32(width)}
        return Lowered(arch, metadata, common.lower_tensors(model, lambda _, tensors: common.rename(tensors, NAMES)))

    return lower


def lift_dense(source: GGUFSource) -> Model:
    """A file of such an architecture as a Model."""

    def layer(n: int, norm: Norm) -> tuple[LayerSpec, dict[str, Tensor]]:
        mixer, part = common.lift_attention(source, n, norm)
        ffn, ffn_part = common.lift_mlp(source, n)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return lift_layers(source, layer, "ffn_norm.weight")
