"""Layer surgery on a Model: layers are reordered, blended and scaled lazily.

It is the reference against which surgery on checkpoints and on GGUF files is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.model.features import Feature, layer_features, undeclared
from gguf_tools.model.spec import MLP, Attention, DeltaNet, GatedMLP, Layer, LayerSpec, Mamba2, Model, MoE, ShortConv
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take
from surgery.algebra import Half, Method, Original, Space, Stack, evaluate
from surgery.arithmetic import mixed, times
from surgery.recipe import Recipe, parse_text

OUTPUT_ROLES = frozenset(
    f"{role}{bias}"
    for role in ("attn.o", "delta.o", "conv.o", "ssm.o", "ffn.down", "moe.down", "shared.down")
    for bias in ("", "_bias")
)
"""Roles of the output projections: a layer's contribution to the residual stream is linear in them."""
HALF_OF_FIELD: Mapping[str, Half] = {
    "mixer": "attention",
    "mixer_norm": "attention",
    "feed_forward": "ffn",
    "ffn_norm": "ffn",
    "mixer_post_norm": "attention",
    "ffn_post_norm": "ffn",
    "beside": "attention",
}
"""Field of LayerSpec → the half of a layer that it belongs to."""
OF_BOTH_HALVES = frozenset({"residual_scale", "input_scale", "parallel", "multipliers"})
"""Fields of LayerSpec that concern both halves of a layer, which can be joined only if they agree on them."""
HALF_OF_STEM: Mapping[str, Half] = {
    "attn": "attention",
    "delta": "attention",
    "conv": "attention",
    "ssm": "attention",
    **dict.fromkeys(("mixer_norm", "mixer_norm_bias", "mixer_post_norm", "mixer_post_norm_bias"), "attention"),
    **dict.fromkeys(("ffn_norm", "ffn_norm_bias", "ffn_post_norm", "ffn_post_norm_bias"), "ffn"),
    "ffn": "ffn",
    "moe": "ffn",
    "shared": "ffn",
}
"""Part of a role before its first dot → the half of a layer that it belongs to."""
EXPRESSES = frozenset(
    {
        "LayerSpec.mixer=Attention",
        "LayerSpec.mixer=DeltaNet",
        "LayerSpec.mixer=ShortConv",
        "LayerSpec.mixer=Mamba2",
        "LayerSpec.beside=Mamba2",
        "LayerSpec.multipliers",
        "LayerSpec.feed_forward=GatedMLP",
        "LayerSpec.feed_forward=MLP",
        "LayerSpec.feed_forward=MoE",
        "LayerSpec.feed_forward=None",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
        "LayerSpec.residual_scale",
        "LayerSpec.input_scale",
        "LayerSpec.mixer_norm=None",
        "LayerSpec.ffn_norm=None",
        "LayerSpec.mixer_post_norm=Norm",
        "LayerSpec.ffn_post_norm=Norm",
        "LayerSpec.parallel",
        "Norm.offset",
        "Norm.centred",
        "Norm.weighted",
        "Norm.bias",
        "Attention.rope=Rope",
        "Attention.rope=None",
        "Attention.scale",
        "Attention.bias=q",
        "Attention.bias=k",
        "Attention.bias=v",
        "Attention.bias=o",
        "Attention.qk_norm=Norm",
        "Attention.gated",
        "Attention.norm_per_head",
        "Attention.norm_whole",
        "Attention.norm_after_rope",
        "Attention.softcap",
        "Attention.clip",
        "Attention.norm_gain",
        "Attention.value_scale",
        "Attention.window",
        "Attention.sinks",
        "Attention.alibi",
        "Attention.value_dim",
        "Rope.dims",
        "Rope.backwards",
        "Rope.pairs=half",
        "Rope.pairs=interleaved",
        "Rope.scaling=LinearScaling",
        "Rope.scaling=YarnScaling",
        "Rope.scaling=Llama3Scaling",
        "Rope.scaling=FactorScaling",
        "Rope.scaling=LongRopeScaling",
        "LongRopeScaling.attention_factor",
        "YarnScaling.beta_fast",
        "YarnScaling.beta_slow",
        "YarnScaling.attention_factor",
        "YarnScaling.truncate",
        "DeltaNet.norm=Norm",
        "DeltaNet.decay=log",
        "DeltaNet.decay=rate",
        "ShortConv.bias",
        "Mamba2.norm=Norm",
        "Mamba2.norm_first",
        "Mamba2.decay=log",
        "Mamba2.decay=rate",
        "Mamba2.conv_bias",
        "Mamba2.bias=in",
        "Mamba2.bias=o",
        "Mamba2.step_limit",
        "GatedMLP.activation=silu",
        "GatedMLP.activation=gelu",
        "GatedMLP.activation=gelu_tanh",
        "GatedMLP.activation=relu",
        "GatedMLP.activation=relu2",
        "GatedMLP.bias=gate",
        "GatedMLP.bias=up",
        "GatedMLP.bias=down",
        "MLP.activation=silu",
        "MLP.activation=gelu",
        "MLP.activation=gelu_tanh",
        "MLP.activation=relu",
        "MLP.activation=relu2",
        "MLP.activation=xielu",
        "MLP.bias=up",
        "MLP.bias=down",
        "MoE.router=Router",
        "MoE.shared=SharedExpert",
        "MoE.bias=gate",
        "MoE.bias=up",
        "MoE.bias=down",
        "MoE.clamped=ClampedSwiGLU",
        "Router.normalised=true",
        "Router.normalised=false",
        "Router.score=softmax",
        "Router.score=sigmoid",
        "Router.scale",
        "Router.selection_bias",
        "Router.score_bias",
        "Router.sum_eps",
        "Router.logit_bias",
        "SharedExpert.gated=true",
        "SharedExpert.gated=false",
    }
)
"""The features (`model.features`) with which halves can be blended, scaled and edited; any layer can be moved as a whole."""
EXPERT_PREFIX = "moe."
"""Prefix of the roles, including the router's, whose first axis is the expert."""


def half_of_role(role: str) -> Half:
    """The half of the layer that a role (relative to the layer) belongs to."""
    return _half(HALF_OF_STEM, role.split(".")[0], f"the tensor {role}")


def belongs(name: str, half: Half) -> bool:
    """Whether a field of LayerSpec belongs to this half of a layer."""
    return name in OF_BOTH_HALVES or _half(HALF_OF_FIELD, name, f"LayerSpec.{name}") == half


def _half(table: Mapping[str, Half], key: str, what: str) -> Half:
    if key not in table:
        raise UnsupportedError(f"layer surgery does not know which half of a layer {what} belongs to")
    return table[key]


@dataclass(frozen=True)
class ModelHalf:
    """Half a layer: its fields of LayerSpec, its tensors by role relative to the layer, and its features."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    features: tuple[Feature, ...] = ()

    def require_arithmetic(self) -> None:
        """Raise UnsupportedError if the half has a feature for which arithmetic is not defined (not in `EXPRESSES`)."""
        lacking = undeclared(self.features, EXPRESSES)
        if lacking:
            raise UnsupportedError(
                f"arithmetic on layers with {', '.join(lacking)} is not defined; such layers can only be moved as a whole"
            )


class ModelSpace(Space[ModelHalf]):
    """The layers of a Model, and of donors by name."""

    def __init__(self, model: Model, donors: Mapping[str, Model] | None = None) -> None:
        self.models = {"": model, **(donors or {})}

    def half(self, origin: Original, half: Half) -> ModelHalf:
        model = self.models[origin.source]
        layer = model.layers[origin.index]
        values = {f.name: getattr(layer.spec, f.name) for f in fields(LayerSpec) if belongs(f.name, half)}
        tensors = {role: t for role, t in layer.tensors.items() if half_of_role(role) == half}
        found = layer_features(layer.spec, model.spec)
        own = tuple(feature for feature in found if belongs(feature.field, half))
        return ModelHalf(values, tensors, own)

    def mismatch(self, a: ModelHalf, b: ModelHalf) -> tuple[str, str] | None:
        return kinds_apart(a.fields, b.fields)

    def blend(self, parts: Sequence[tuple[ModelHalf, float]], method: Method) -> ModelHalf:
        first = parts[0][0]
        first.require_arithmetic()
        tensors = {
            role: mixed([(part.tensors[role], weight) for part, weight in parts], method) for role in first.tensors
        }
        return replace(first, tensors=tensors)

    def scaled(self, part: ModelHalf, factor: float) -> ModelHalf:
        part.require_arithmetic()
        roles = output_roles(part)
        tensors = {role: times(t, factor, roles[role]) if role in roles else t for role, t in part.tensors.items()}
        return replace(part, tensors=tensors)

    def attenuated(self, part: ModelHalf, factor: float) -> ModelHalf:
        part.require_arithmetic()
        roles, offset = score_roles(part)
        tensors = {role: times(t, factor, offset) if role in roles else t for role, t in part.tensors.items()}
        return replace(part, tensors=tensors)

    def expert_count(self, part: ModelHalf) -> int:
        moe = part.fields.get("feed_forward")
        return moe.experts if isinstance(moe, MoE) else 0

    def experts(self, part: ModelHalf, order: tuple[int, ...]) -> ModelHalf:
        part.require_arithmetic()
        moe = fewer_experts(part.fields["feed_forward"], order)
        tensors = {role: take(t, order) if role.startswith(EXPERT_PREFIX) else t for role, t in part.tensors.items()}
        return replace(part, fields={**part.fields, "feed_forward": moe}, tensors=tensors)


def output_roles(part: ModelHalf) -> dict[str, float]:
    """The roles in which what the half adds is linear, and what is added to the weights of each.

    A norm after the mixer or the feed-forward takes the size of its output out, so that the norm's weights and bias set it.
    UnsupportedError for such a norm without weights.
    """
    for name in ("mixer_post_norm", "ffn_post_norm"):
        norm = part.fields.get(name)
        if norm is not None and (not norm.weighted or (norm.bias and norm.offset)):
            raise UnsupportedError(
                f"the output of a layer with a norm after it ({name}) that has no weights cannot be scaled"
            )
        if norm is not None:
            return {name: norm.offset, f"{name}_bias": 0.0}
    return dict.fromkeys(OUTPUT_ROLES, 0.0)


def score_roles(part: ModelHalf) -> tuple[frozenset[str], float]:
    """The roles to which the queries and keys in the attention scores are proportional, and the offset of these weights.

    A q/k norm removes the effect of the projections' scale, so its weights (or the gain after it) determine the scores.
    Raises InputError for a mixer without attention scores.
    """
    mixer = part.fields["mixer"]
    if not isinstance(mixer, Attention):
        raise InputError(
            f"a layer with {describe_part(mixer)} has no attention scores to attenuate; give layers with full attention"
        )
    if mixer.sinks or mixer.alibi:
        what = "sinks, whose logits are no scores" if mixer.sinks else "ALiBi, which is added to the scores"
        raise UnsupportedError(f"the scores of attention with {what}, cannot be attenuated")
    norm = None if mixer.norm_gain else mixer.qk_norm
    if mixer.softcap or mixer.clip or (norm and (not norm.weighted or (norm.bias and norm.offset))):
        raise UnsupportedError(
            "attention scores with a cap, clipped queries, or a q/k norm without weights do not follow their projections, so "
            "they cannot be attenuated"
        )
    ending = "_gain" if mixer.norm_gain else "_norm" if mixer.qk_norm else ""
    offset = mixer.qk_norm.offset if mixer.qk_norm and ending == "_norm" else 0.0
    bias = (f"attn.q{ending}_bias", f"attn.k{ending}_bias") if ending != "_gain" else ()
    return frozenset({f"attn.q{ending}", f"attn.k{ending}", *bias}), offset


def fewer_experts(moe: MoE, order: Sequence[int]) -> MoE:
    """The MoE with the experts in `order`. Raises InputError if these are fewer than top_k."""
    if len(order) < moe.router.top_k:
        raise InputError(
            f"{len(order)} of {moe.experts} experts would remain, but {moe.router.top_k} are selected per token; keep at least "
            "as many"
        )
    return replace(moe, experts=len(order))


def operate(model: Model, recipe: Recipe, donors: Mapping[str, Model] | None = None) -> Model:
    """The model after the recipe; tensors stay lazy. `donors` are the models that the recipe names.

    Raises InputError if an index or an expert does not exist, or for a blend of different kinds.
    """
    counts = {name: len(donor.layers) for name, donor in (donors or {}).items()}
    return rebuilt(model, recipe.apply(len(model.layers), counts), donors)


def operate_text(model: Model, text: str) -> Model:
    """`operate` with a recipe in text form."""
    return operate(model, parse_text(text))


def rebuilt(model: Model, stack: Stack, donors: Mapping[str, Model] | None = None) -> Model:
    """The model with the layers of the stack."""
    space = ModelSpace(model, donors)
    layers = []
    for layer in stack:
        if isinstance(layer, Original):
            layers.append(space.models[layer.source].layers[layer.index])
            continue
        attention, ffn = evaluate(layer, "attention", space), evaluate(layer, "ffn", space)
        for name in OF_BOTH_HALVES:
            if attention.fields[name] != ffn.fields[name]:
                raise UnsupportedError(
                    f"layer surgery would join halves of layers whose {name} differ ({attention.fields[name]} and "
                    f"{ffn.fields[name]}), which no layer can have; move such layers whole"
                )
        spec = LayerSpec(**{**attention.fields, **ffn.fields})
        layers.append(Layer(spec, {**attention.tensors, **ffn.tensors}))
    return model.with_layers(layers)


def kinds_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str] | None:
    """Descriptions of the first field in which two halves differ, or None."""
    if a == b:
        return None
    key = next(key for key in a if a[key] != b[key])
    words = describe_part(a[key]), describe_part(b[key])
    return words if words[0] != words[1] else (repr(a[key]), repr(b[key]))


def describe_part(part: Any) -> str:
    """A short description of a mixer or feed-forward."""
    if isinstance(part, Attention):
        gate = ", gated" if part.gated else ""
        return f"full attention ({part.heads} heads, {part.kv_heads} for keys and values, of {part.head_dim}{gate})"
    if isinstance(part, DeltaNet):
        return (
            f"linear attention (DeltaNet, {part.key_heads} key heads of {part.key_dim}, "
            f"{part.value_heads} value heads of {part.value_dim})"
        )
    if isinstance(part, ShortConv):
        return f"a short convolution over {part.kernel} tokens"
    if isinstance(part, Mamba2):
        return f"a state space (Mamba-2, {part.heads} heads of {part.head_dim} in {part.groups} groups, state {part.state})"
    if part is None:
        return "none"
    if isinstance(part, GatedMLP | MLP):
        manner = "" if isinstance(part, GatedMLP) else " without a gate"
        return f"a dense feed-forward of width {part.width}{manner}"
    if isinstance(part, MoE):
        shared = f" and a shared one of {part.shared.width}" if part.shared else ""
        return f"{part.experts} experts of width {part.width}{shared}"
    return repr(part)
