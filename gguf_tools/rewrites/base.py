"""The definition of a rewrite, and helpers for those that change every layer alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A named rewrite; `applies` says whether the spec has the feature that it removes.

    `holds` says whether the weights permit it, where the spec alone does not decide; it reads small tensors only.

    `linear` means that the rewrite of a weighted mean of layers equals the weighted mean of the rewritten layers, so that
    layers can still be blended after it. Products of weights break this, and so do rewrites that give layers of different
    types the same form.
    `keeps_row_angles` means that it preserves the angle between corresponding rows of two layers, as spherical interpolation
    requires; added columns break this, and so does turning a matrix into a vector.

    `parts` are the classes of the spec parts whose arithmetic it relies on, and `expresses` the features of these parts
    for which it is tested (keys of `model.features`). It is not applied to a model with any other feature of these parts.
    `removes` are the features for whose sake it is applied: a target that expresses them all does without it.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model], Model]
    parts: tuple[type, ...]
    expresses: frozenset[str]
    holds: Callable[[Model], bool] = lambda _: True
    linear: bool = False
    keeps_row_angles: bool = False
    removes: frozenset[str] = frozenset()

    def suits(self, spec: ModelSpec) -> bool:
        """Whether all features of the parts that it relies on are among those for which it is tested."""
        return not any(
            issubclass(feature.owner, self.parts) and feature.key not in self.expresses for feature in spec.features
        )


def map_layers(model: Model, change: Callable[[Layer], Layer]) -> Model:
    """The model with each layer replaced by `change`'s result."""
    return model.with_layers(map(change, model.layers))


def any_layer(test: Callable[[LayerSpec], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(map(test, spec.layers))


# The features that rewrites are tested with, by part. Add a new feature only after each rewrite that lists the set has been
# tested with it.

MODEL = frozenset(
    {
        "ModelSpec.output_norm=Norm",
        "ModelSpec.tied=false",
        "ModelSpec.tied=true",
        "ModelSpec.embedding_scale",
        "ModelSpec.logit_scale",
    }
)
ENDS = frozenset(
    {"ModelSpec.positions", "ModelSpec.embedding_norm=Norm", "ModelSpec.output_bias", "ModelSpec.logit_softcap"}
)
LAYER = frozenset(
    {
        "LayerSpec.mixer=Attention",
        "LayerSpec.mixer=DeltaNet",
        "LayerSpec.feed_forward=GatedMLP",
        "LayerSpec.feed_forward=MLP",
        "LayerSpec.feed_forward=MoE",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
    }
)
STATE_SPACE = frozenset(
    {
        "LayerSpec.mixer=Mamba2",
        "LayerSpec.beside=Mamba2",
        "LayerSpec.feed_forward=None",
        "LayerSpec.ffn_norm=None",
        "Mamba2.norm=Norm",
        "Mamba2.norm_first",
        "Mamba2.decay=log",
        "Mamba2.decay=rate",
        "Mamba2.conv_bias",
        "Mamba2.bias=in",
        "Mamba2.bias=o",
        "Mamba2.step_limit",
    }
)
"""Of layers with a state space."""
ANY_LAYER = (
    LAYER
    | STATE_SPACE
    | {
        "LayerSpec.mixer=ShortConv",
        "LayerSpec.mixer_norm=None",
        "LayerSpec.mixer_post_norm=Norm",
        "LayerSpec.ffn_post_norm=Norm",
        "LayerSpec.parallel",
        "LayerSpec.residual_scale",
        "LayerSpec.multipliers",
    }
)
NORM = frozenset({"Norm.offset"})
ANY_NORM = NORM | {"Norm.centred", "Norm.weighted", "Norm.bias"}
ATTENTION = frozenset(
    {
        "Attention.rope=Rope",
        "Attention.bias=q",
        "Attention.bias=k",
        "Attention.bias=v",
        "Attention.bias=o",
        "Attention.qk_norm=Norm",
        "Attention.gated",
        "Attention.norm_per_head",
        "Attention.norm_gain",
        "Attention.value_scale",
        "Attention.window",
        "Attention.value_dim",
    }
)
ROPE = frozenset(
    {
        "Rope.dims",
        "Rope.pairs=half",
        "Rope.pairs=interleaved",
        "Rope.scaling=LinearScaling",
        "Rope.scaling=YarnScaling",
        "Rope.scaling=Llama3Scaling",
        "Rope.scaling=FactorScaling",
    }
)
DELTA_NET = frozenset({"DeltaNet.norm=Norm", "DeltaNet.decay=log", "DeltaNet.decay=rate"})
MLPS = frozenset(
    {
        *(f"GatedMLP.activation={name}" for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
        *(f"GatedMLP.bias={name}" for name in ("gate", "up", "down")),
        *(f"MLP.activation={name}" for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
        *(f"MLP.bias={name}" for name in ("up", "down")),
    }
)
EXPERTS = frozenset(
    {"MoE.router=Router", "MoE.shared=SharedExpert", "SharedExpert.gated=false", "SharedExpert.gated=true"}
)
ROUTER = frozenset(
    {
        "Router.normalised=true",
        "Router.normalised=false",
        "Router.score=softmax",
        "Router.score=sigmoid",
        "Router.scale",
        "Router.selection_bias",
    }
)
