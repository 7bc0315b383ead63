"""llama.cpp's `falcon-h1`: attention and a Mamba-2 state space side by side in every layer, and a gated feed-forward
(`src/models/falcon-h1.cpp`).

The norm of the state space's output is optional, the bias of its convolution is not. The loader reads a bias on the attention
output, which the graph does not add. The norm before the feed-forward has a name without `.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import lifting, lowering, mamba2, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    DENSE_BIAS,
    PAIRS_HALF,
    PARTIAL_ROPE,
    ROPE_SCALING,
    STATE_SPACE,
    attention_limits,
    mlp_limits,
    norm_limits,
)
from gguf_tools.tensors.base import Tensor

NAME = "falcon-h1"
FFN_NORM = "ffn_norm"
NAMES = {**lowering.NAMES, **names.FFN_BIAS_NAMES, **mamba2.SSM_NAMES, "ffn_norm": FFN_NORM}

EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | STATE_SPACE
    | DENSE
    | DENSE_BIAS
    | {"LayerSpec.beside=Mamba2"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if all(layer.beside for layer in spec.layers) else ["layers without a state space beside the attention"]
    found += mamba2.state_space_limits(spec, norm=False)
    return found + attention_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `falcon-h1` file."""
    full = lowering.completed(model, mamba2.with_conv_bias)
    space = mamba2.state_spaces(full.spec)[0]
    metadata = lowering.common_metadata(NAME, full.spec) | mamba2.state_space_metadata(NAME, space)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(full.spec))

    def named(layer: Layer) -> Mapping[str, Tensor]:
        return names.rename(mamba2.join_state_space(layer), NAMES)

    return Lowered(NAME, metadata, lowering.lower_tensors(full, named))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lifting.lift_mlp(source, n)
        space, space_part = mamba2.lift_state_space(source, n, norm)
        return Layer(LayerSpec(mixer, ffn, norm, norm, beside=space), {**part, **ffn_part, **space_part})

    return lifting.lift_layers(source, layer, FFN_NORM)


TARGET = Target(name=NAME, rewrites=(HALF_PAIRS,), expresses=EXPRESSES, limits=limits, lower=lower, lift=lift)
