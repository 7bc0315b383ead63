"""llama.cpp's `qwen35`: Gated DeltaNet and gated attention in any order, a dense feed-forward in every layer
(`src/models/qwen35.cpp`).

Its graph broadcasts key heads over value heads as ggml does: value head v uses key head v mod key_heads. The file therefore
has the value heads in another order than a checkpoint, where those of one key head are adjacent. RoPE has four position axes
(M-RoPE): for text the first three are equal and the fourth is 0, so the sections of the first three must cover every pair.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.formats.gguf.header import Metadata, ValueType, array, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import (
    Attention,
    DeltaNet,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Mixer,
    Model,
    ModelSpec,
    Norm,
)
from gguf_tools.targets import hybrid, lifting, lowering, names
from gguf_tools.targets.base import Lowered, OutputTensor, Target
from gguf_tools.targets.lifting import lift_layers
from gguf_tools.targets.limits import DENSE, mlp_limits, ropes
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take, take_columns

NAME = "qwen35"
DELTA_NAMES = {**hybrid.DELTA_NAMES, "delta.beta": "ssm_beta.weight", "delta.alpha": "ssm_alpha.weight"}
MIXER_NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    **DELTA_NAMES,
    "ffn_norm": hybrid.POST_NORM,
}
NAMES = MIXER_NAMES | names.FFN_NAMES


EXPRESSES = hybrid.EXPRESSES | DENSE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return mlp_limits(spec) + hybrid.hybrid_limits(spec)


def rope_sections(dims: int) -> list[int]:
    """The number of pairs that each of the four position axes rotates: dims / 2 over the first three, and 0."""
    pairs = dims // 2
    return [(pairs + 2 - axis) // 3 for axis in range(3)] + [0]


def metadata_of(arch: str, spec: ModelSpec) -> Metadata:
    """The hybrid metadata and `rope.dimension_sections`, which the loader requires."""
    sections = array(ValueType.INT32, rope_sections(ropes(spec)[0].dims))
    return hybrid.hybrid_metadata(arch, spec) | {f"{arch}.rope.dimension_sections": sections}


def lower_layers(model: Model, table: Mapping[str, str]) -> tuple[OutputTensor, ...]:
    """All tensors in file order: query and gate interleaved head by head, value heads in the order of the graph's broadcast."""

    def named(layer: Layer) -> dict[str, Tensor]:
        mixer, tensors = layer.spec.mixer, layer.tensors
        if isinstance(mixer, Attention):
            return names.rename(hybrid.join_gate(mixer, tensors), table)
        assert isinstance(mixer, DeltaNet)
        return names.rename(hybrid.join_delta(mixer, reorder_values(mixer, tensors, _tiled(mixer))), table)

    return lowering.lower_tensors(model, named)


def _tiled(mixer: DeltaNet) -> list[int]:
    """For each value head in the file, the index of that head in the model."""
    group = mixer.value_heads // mixer.key_heads
    return [key * group + member for member in range(group) for key in range(mixer.key_heads)]


def _grouped(mixer: DeltaNet) -> list[int]:
    """For each value head of the model, the index of that head in the file."""
    group = mixer.value_heads // mixer.key_heads
    return [member * mixer.key_heads + key for key in range(mixer.key_heads) for member in range(group)]


def reorder_values(mixer: DeltaNet, tensors: Mapping[str, Tensor], order: list[int]) -> LayerTensors:
    """The DeltaNet's tensors with value head i taken from value head order[i]."""
    rows = [head * mixer.value_dim + d for head in order for d in range(mixer.value_dim)]
    keys = mixer.channels - len(rows)
    out = dict(tensors)
    for name in ("delta.v", "delta.z"):
        out[name] = take(out[name], rows)
    for name in ("delta.beta", "delta.alpha", "delta.decay", "delta.dt_bias"):
        out[name] = take(out[name], order)
    out["delta.conv"] = take(out["delta.conv"], [*range(keys), *(keys + row for row in rows)])
    out["delta.o"] = take_columns(out["delta.o"], rows)
    return out


def lower(model: Model) -> Lowered:
    """The model as a `qwen35` file."""
    ffn = model.spec.layers[0].feed_forward
    assert isinstance(ffn, GatedMLP)
    metadata = metadata_of(NAME, model.spec) | {f"{NAME}.feed_forward_length": u32(ffn.width)}
    return Lowered(NAME, metadata, lower_layers(model, NAMES))


def lift_mixer(source: GGUFSource, n: int, norm: Norm) -> tuple[Mixer, LayerTensors]:
    """Layer n's attention or DeltaNet, with value heads in the model's order."""
    if f"blk.{n}.ssm_a" not in source.tensors:
        return hybrid.lift_gated_attention(source, n, norm)
    mixer, part = hybrid.lift_delta(source, n, norm)
    part |= {role: source.tensor(f"blk.{n}.{DELTA_NAMES[role]}") for role in ("delta.beta", "delta.alpha")}
    return mixer, reorder_values(mixer, part, _grouped(mixer))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lift_mixer(source, n, norm)
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, hybrid.POST_NORM)


TARGET = Target(
    name=NAME,
    rewrites=hybrid.REWRITES,
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
