"""Surgery on a Model: the same source numbers, in another order, blended and scaled lazily.

This is the meaning that the other two (checkpoints and GGUF files) are tested against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.model.spec import Attention, DeltaNet, GatedMLP, Layer, LayerSpec, Model, MoE
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take
from surgery.algebra import Half, Method, Space, Stack, evaluate
from surgery.arithmetic import mixed, times
from surgery.recipe import Recipe, parse_text

OUTPUT_ROLES = frozenset(
    f"{role}{bias}" for role in ("attn.o", "delta.o", "ffn.down", "moe.down", "shared.down") for bias in ("", "_bias")
)
"""What a layer adds to the residual stream is linear in these."""
EXPERT_PREFIX = "moe."
"""The first axis of these roles, the router's included, counts the experts."""


def half_of_role(role: str) -> Half:
    """The half of the layer that a role (relative to the layer) belongs to."""
    return "ffn" if role.split(".")[0].startswith(("ffn", "moe", "shared")) else "attention"


def half_of_field(name: str) -> Half:
    """The half that a field of LayerSpec belongs to."""
    return "ffn" if name.startswith(("ffn", "feed_forward")) else "attention"


@dataclass(frozen=True)
class ModelHalf:
    """Half a layer: its fields of LayerSpec, and its tensors by role relative to the layer."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class ModelSpace(Space[ModelHalf]):
    """The layers of a Model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def half(self, index: int, half: Half) -> ModelHalf:
        layer = self.model.layers[index]
        values = {f.name: getattr(layer.spec, f.name) for f in fields(LayerSpec) if half_of_field(f.name) == half}
        tensors = {role: t for role, t in layer.tensors.items() if half_of_role(role) == half}
        return ModelHalf(values, tensors)

    def mismatch(self, a: ModelHalf, b: ModelHalf) -> tuple[str, str] | None:
        return kinds_apart(a.fields, b.fields)

    def blend(self, parts: Sequence[tuple[ModelHalf, float]], method: Method) -> ModelHalf:
        first = parts[0][0]
        tensors = {
            role: mixed([(part.tensors[role], weight) for part, weight in parts], method) for role in first.tensors
        }
        return ModelHalf(first.fields, tensors)

    def scaled(self, part: ModelHalf, factor: float) -> ModelHalf:
        tensors = {role: times(t, factor) if role in OUTPUT_ROLES else t for role, t in part.tensors.items()}
        return ModelHalf(part.fields, tensors)

    def expert_count(self, part: ModelHalf) -> int:
        moe = part.fields.get("feed_forward")
        return moe.experts if isinstance(moe, MoE) else 0

    def experts(self, part: ModelHalf, order: tuple[int, ...]) -> ModelHalf:
        moe = fewer_experts(part.fields["feed_forward"], order)
        tensors = {role: take(t, order) if role.startswith(EXPERT_PREFIX) else t for role, t in part.tensors.items()}
        return ModelHalf({**part.fields, "feed_forward": moe}, tensors)


def fewer_experts(moe: MoE, order: Sequence[int]) -> MoE:
    """The MoE with as many experts as `order`; InputError where fewer stay than are chosen."""
    if len(order) < moe.router.top_k:
        raise InputError(
            f"{len(order)} of {moe.experts} experts would stay, but {moe.router.top_k} are chosen a token; keep as many"
        )
    return replace(moe, experts=len(order))


def operate(model: Model, recipe: Recipe) -> Model:
    """The model after the recipe; weights stay lazy.

    Raises InputError where an index or an expert does not exist, or two kinds would be blended.
    """
    return rebuilt(model, recipe.apply(len(model.layers)))


def operate_text(model: Model, text: str) -> Model:
    """`operate` by a recipe in text form, such as a GGUF file records."""
    return operate(model, parse_text(text))


def rebuilt(model: Model, stack: Stack) -> Model:
    """The model with the layers that the stack describes."""
    space = ModelSpace(model)
    layers = []
    for layer in stack:
        attention, ffn = evaluate(layer, "attention", space), evaluate(layer, "ffn", space)
        spec = LayerSpec(**attention.fields, **ffn.fields)
        layers.append(Layer(spec, {**attention.tensors, **ffn.tensors}))
    return model.with_layers(layers)


def kinds_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str] | None:
    """Both halves in words, where their fields differ."""
    if a == b:
        return None
    key = next(key for key in a if a[key] != b[key])
    words = describe_part(a[key]), describe_part(b[key])
    return words if words[0] != words[1] else (repr(a[key]), repr(b[key]))


def describe_part(part: Any) -> str:
    """A mixer or feed-forward in a few words."""
    if isinstance(part, Attention):
        gate = ", gated" if part.gated else ""
        return f"full attention ({part.heads} heads, {part.kv_heads} for keys and values, of {part.head_dim}{gate})"
    if isinstance(part, DeltaNet):
        return (
            f"linear attention (DeltaNet, {part.key_heads} key heads of {part.key_dim}, "
            f"{part.value_heads} value heads of {part.value_dim})"
        )
    if isinstance(part, GatedMLP):
        return f"a dense feed-forward of width {part.width}"
    if isinstance(part, MoE):
        shared = f" and a shared one of {part.shared.width}" if part.shared else ""
        return f"{part.experts} experts of width {part.width}{shared}"
    return repr(part)
