"""llama.cpp's `lfm2`: gated short convolutions and attention in any order, a dense feed-forward in every layer
(`src/models/lfm2.cpp`).

`attention.head_count_kv` is an array, 0 for the layers with a convolution. The norm before the output is named
`token_embd_norm`. The graph's memory has a part for each mixer type, and an assertion fails for one without layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gguf_tools.formats.gguf.header import Metadata, ValueType, array, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import (
    Attention,
    Layer,
    LayerSpec,
    LayerTensors,
    Mixer,
    Model,
    ModelSpec,
    Norm,
    ShortConv,
)
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, OutputTensor, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_HALF,
    QK_NORM,
    ROPE_SCALING,
    SHORT_CONVOLUTION,
    attention_limits,
    attentions,
    mlp_limits,
    norm_limits,
    same,
)

NAME = "lfm2"
CONV_NAMES = {
    "conv.in": "shortconv.in_proj.weight",
    "conv.kernel": "shortconv.conv.weight",
    "conv.o": "shortconv.out_proj.weight",
}
NAMES = {**lowering.NAMES, **CONV_NAMES}
OUTPUT_NORM = "token_embd_norm.weight"

EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | QK_NORM | SHORT_CONVOLUTION | DENSE


def convolutions(spec: ModelSpec) -> list[ShortConv]:
    """The short convolutions of the layers that have one, in order."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, ShortConv)]


def mixer_limits(spec: ModelSpec) -> list[str]:
    """What the graph cannot express of the mixers and norms."""
    kernels = [mixer.kernel for mixer in convolutions(spec)]
    found = same(kernels, "the kernel of short convolutions") + (["a kernel of 1 token"] if 1 in kernels else [])
    found += [] if kernels else ["a model without short convolution layers"]
    found += [] if attentions(spec) else ["a model without full attention layers"]
    found += [
        f"{mixer.heads} heads of {mixer.head_dim} dimensions with a hidden size of {spec.hidden}"
        for mixer in dict.fromkeys(attentions(spec))
        if mixer.heads * mixer.head_dim != spec.hidden or mixer.value_size != mixer.head_dim
    ]
    return found + attention_limits(spec, qk_norm=True) + norm_limits(spec)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return mixer_limits(spec) + mlp_limits(spec)


def metadata(arch: str, spec: ModelSpec) -> Metadata:
    """Sizes, attention heads, RoPE, which layers are convolutions, and their kernel."""
    kv_heads = [layer.mixer.kv_heads if isinstance(layer.mixer, Attention) else 0 for layer in spec.layers]
    return lowering.common_metadata(arch, spec) | {
        f"{arch}.attention.head_count_kv": array(ValueType.INT32, kv_heads),
        f"{arch}.shortconv.l_cache": u32(convolutions(spec)[0].kernel),
    }


def lower_tensors(model: Model, names_of: Mapping[str, str]) -> tuple[OutputTensor, ...]:
    """All tensors in file order, with the GGUF names of roles in `names_of`."""
    tensors = lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, names_of))
    return tuple(replace(t, name=OUTPUT_NORM) if t.name == "output_norm.weight" else t for t in tensors)


def lower(model: Model) -> Lowered:
    """The model as an `lfm2` file: tensors are renamed, their values do not change."""
    width = {f"{NAME}.feed_forward_length": u32(lowering.ffn_width(model.spec))}
    return Lowered(NAME, metadata(NAME, model.spec) | width, lower_tensors(model, NAMES))


def lift_mixer(source: GGUFSource, n: int, norm: Norm) -> tuple[Mixer, LayerTensors]:
    """Layer n's attention or short convolution, by its entry in `attention.head_count_kv`."""
    kv_heads = lifting.kv_heads(source, n)
    if kv_heads:
        return lifting.lift_attention(source, n, norm, kv_heads=kv_heads)
    part = {role: source.tensor(f"blk.{n}.{name}") for role, name in CONV_NAMES.items()}
    return ShortConv(source.integer("shortconv.l_cache")), part


def with_output_norm(source: GGUFSource) -> GGUFSource:
    """The file with the norm before the output under its usual name."""
    others = {name: tensor for name, tensor in source.tensors.items() if name != OUTPUT_NORM}
    return replace(source, tensors={**others, "output_norm.weight": source.tensor(OUTPUT_NORM)})


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lift_mixer(source, n, norm)
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lifting.lift_layers(with_output_norm(source), layer, "ffn_norm.weight")


TARGET = Target(name=NAME, rewrites=(), expresses=EXPRESSES, limits=limits, lower=lower, lift=lift)
