"""llama.cpp's `smollm3`: Llama's graph without frequency factors, and without rope in every fourth layer
(`src/models/smollm3.cpp`)."""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import lifting
from gguf_tools.targets.base import Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    NO_ROPE,
    PAIRS_INTERLEAVED,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
)
from gguf_tools.targets.lowering import lower_dense

NAME = "smollm3"
STEP = 4

EXPRESSES = DECODER | ATTENTION | NO_ROPE | PAIRS_INTERLEAVED | ROPE_SCALING | DENSE


def _turned(n: int) -> bool:
    return (n + 1) % STEP != 0


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    mixers = ((n, layer.mixer) for n, layer in enumerate(spec.layers) if isinstance(layer.mixer, Attention))
    turned = [n for n, mixer in mixers if mixer.rope]
    found = []
    if turned != [n for n in range(len(spec.layers)) if _turned(n)]:
        found.append(f"rope in layers {', '.join(map(str, turned)) or 'none'} (it has rope in all but every fourth)")
    return found + attention_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved") if _turned(n) else None
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, norm, norm), part | ffn_part)

    return lifting.lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS, OUTPUT_BIAS_BY_HEADS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_dense(NAME),
    lift=lift,
)
