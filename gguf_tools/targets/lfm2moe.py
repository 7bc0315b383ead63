"""llama.cpp's `lfm2moe`: as `lfm2`, with experts in all but leading dense layers (`src/models/lfm2moe.cpp`).

The router scores by softmax or sigmoid and selects by score plus bias. The weights of the selected experts are renormalised
and not scaled, and the bias is required (zeros change nothing). The graph adds nothing to the sum by which the weights are
divided, where LFM2-MoE adds 1e-6 (`sum_limits`), and divides weights that sum to less than 6.1e-5 by that.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.targets import glm4moe, lfm2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import EXPERTS, leading_dense_limits, mlp_limits, moe_limits, moes

NAME = "lfm2moe"
SUM_EPS = 1e-6
NAMES = {**lfm2.NAMES, **names.MOE_NAMES}

EXPRESSES = lfm2.EXPRESSES | EXPERTS | {"Router.score=sigmoid", "Router.score_bias", "Router.sum_eps"}


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return lfm2.mixer_limits(spec) + leading_dense_limits(spec) + mlp_limits(spec) + moe_limits(spec) + sum_limits(spec)


def sum_limits(spec: ModelSpec) -> list[str]:
    """A number added to the sum of router weights must be at most 1e-6: it changes weights that sum to s by that part of s."""
    large = {moe.router.sum_eps for moe in moes(spec) if moe.router.sum_eps > SUM_EPS}
    return [f"router weights divided by their sum plus {eps:g}" for eps in sorted(large)]


def lower(model: Model) -> Lowered:
    """The model as an `lfm2moe` file: tensors are renamed, and biases of routers that it lacks are zeros."""
    full = lowering.completed(model, glm4moe.form)
    metadata = lfm2.metadata(NAME, full.spec) | lowering.scored_moe_metadata(NAME, full.spec)
    return Lowered(NAME, metadata, lfm2.lower_tensors(full, NAMES))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        ffn: FeedForward
        mixer, part = lfm2.lift_mixer(source, n, norm)
        if n < source.integer("leading_dense_block_count", 0):
            ffn, ffn_part = lifting.lift_mlp(source, n)
        else:
            moe, ffn_part = lifting.lift_scored_moe(source, n)
            # The graph renormalises, whatever `expert_weights_norm` says, and reads no scale.
            ffn = replace(moe, router=replace(moe.router, normalised=True, scale=1.0))
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lifting.lift_layers(lfm2.with_output_norm(source), layer, "ffn_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=1e-10,
    why="llama.cpp does not add the 1e-6 that LFM2-MoE adds to the sum of the selected experts' scores",
    coarse="sum_eps",
)
