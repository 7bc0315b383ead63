"""llama.cpp's `granite`: Llama's graph with scales of embeddings, attention scores, what layers add, and logits
(`src/models/granite.cpp`).

RoPE is in all layers or, with `rope.scaling.finetuned` false, in none. The logits are divided by `logit_scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gguf_tools.formats.gguf.header import Metadata, boolean, f32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, Model, ModelSpec
from gguf_tools.targets import llama
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import NO_ROPE, SCALES, attentions, same

NAME = "granite"
FINETUNED = "rope.scaling.finetuned"

EXPRESSES = llama.EXPRESSES | NO_ROPE | SCALES


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = same((layer.residual_scale for layer in spec.layers), "scale of what a layer adds")
    found += same((mixer.score_scale for mixer in attentions(spec)), "attention scale")
    if len({mixer.rope is None for mixer in attentions(spec)}) > 1:
        found.append("layers without rope among layers with rope")
    return found + llama.limits(spec)


def scale_metadata(arch: str, spec: ModelSpec) -> Metadata:
    """The scales, and whether the attention layers have rope, under the architecture's prefix."""
    values: Metadata = {
        "embedding_scale": f32(spec.embedding_scale),
        "attention.scale": f32(attentions(spec)[0].score_scale),
        "residual_scale": f32(spec.layers[0].residual_scale),
        "logit_scale": f32(1.0 / spec.logit_scale),
    }
    if attentions(spec)[0].rope is None:
        values[FINETUNED] = boolean(False)
    return {f"{arch}.{key}": value for key, value in values.items()}


def lower_as(name: str) -> Callable[[Model], Lowered]:
    """The `lower` of the architecture `name`, of `granite` and `granitemoe`: as for `llama`, with the scales."""
    return lambda model: llama.lower_as(name, model, scale_metadata(name, model.spec))


def lift_scale(source: GGUFSource, mixer: Attention) -> Attention:
    """The attention with the file's scale of scores, 1/√head_dim for 0 or none, and without rope if the file says so.

    `granitemoe` has rope whatever the file says (`granite-moe.cpp` does not read the key).
    """
    scale = source.number("attention.scale", 0.0) or None
    roped = source.architecture == "granitemoe" or source.key(FINETUNED, True)
    return replace(mixer, scale=scale, rope=mixer.rope if roped else None)


def lift_scales(source: GGUFSource, model: Model) -> Model:
    """The model with the file's scales outside its mixers, where 0 or none is 1."""
    residual = source.number("residual_scale", 0.0) or 1.0
    spec = replace(
        model.spec,
        layers=tuple(replace(layer, residual_scale=residual) for layer in model.spec.layers),
        embedding_scale=source.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1.0 / (source.number("logit_scale", 0.0) or 1.0),
    )
    return replace(model, spec=spec)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    return lift_scales(source, llama.lift_with(source, lambda _, mixer: lift_scale(source, mixer)))


TARGET = Target(
    name=NAME,
    rewrites=llama.REWRITES,
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_as(NAME),
    lift=lift,
)
