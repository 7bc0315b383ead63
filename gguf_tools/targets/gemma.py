"""llama.cpp's `gemma`: embeddings times √hidden, a gate of GELUs, RoPE on whole heads in halves (`src/models/gemma.cpp`).

The output projection is the embedding.
"""

from __future__ import annotations

import math

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import GatedMLP, Layer, LayerSpec, LayerTensors, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import GEGLU_REWRITES
from gguf_tools.rewrites.residual import EMBEDDING_ROOT, is_root
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import lifting
from gguf_tools.targets.base import Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    EMBEDDING_SCALE,
    GEGLU,
    GELU_NMSE,
    GELU_WHY,
    PAIRS_HALF,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
)
from gguf_tools.targets.lowering import lower_dense

NAME = "gemma"

EXPRESSES = (DECODER - {"ModelSpec.tied=false"}) | ATTENTION | PAIRS_HALF | ROPE_SCALING | GEGLU | EMBEDDING_SCALE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return scale_limits(spec) + attention_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def scale_limits(spec: ModelSpec) -> list[str]:
    """The graphs of Gemma multiply embeddings by √hidden."""
    return [] if is_root(spec) else [f"embeddings that are not multiplied by √{spec.hidden}"]


def lift_geglu(source: GGUFSource, n: int) -> tuple[GatedMLP, LayerTensors]:
    """Layer n's feed-forward."""
    ffn, part = lifting.lift_mlp(source, n)
    return GatedMLP(ffn.width, ffn.bias, "gelu_tanh"), part


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        ffn, ffn_part = lift_geglu(source, n)
        return Layer(LayerSpec(mixer, ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer, embedding_scale=math.sqrt(source.integer("embedding_length")))


TARGET = Target(
    name=NAME,
    rewrites=(*GEGLU_REWRITES, EMBEDDING_ROOT, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_dense(NAME),
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
