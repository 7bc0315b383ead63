"""The specification of a decoder, and the names (roles) of its tensors.

A `Model` is a `ModelSpec` with the weights of the source, unchanged, as lazy tensors by role. The spec states how the weights
are to be interpreted (`Norm.offset`, `DeltaNet.decay`, `Rope.pairs` …); the reference implements that interpretation, and a
target converts the weights into the form that llama.cpp expects.

Roles: `embedding`, `output_norm` and `output` outside the layers; within a layer those that `LayerSpec.roles` gives, such as
`attn.q`. Messages prefix the latter with the layer's number, as in `layers.3.attn.q`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.model.attention import Attention
from gguf_tools.model.features import choice, option, part, size
from gguf_tools.model.feed_forward import MLP, Activation, GatedMLP, MoE, Router, SharedExpert
from gguf_tools.model.norms import Norm, Shape
from gguf_tools.model.recurrent import DeltaNet
from gguf_tools.tensors.base import Tensor

__all__ = [
    "MLP",
    "Activation",
    "Attention",
    "DeltaNet",
    "FeedForward",
    "FrontMatter",
    "GatedMLP",
    "Layer",
    "LayerSpec",
    "LayerTensors",
    "Mixer",
    "MoE",
    "Model",
    "ModelSpec",
    "Norm",
    "Router",
    "Shape",
    "SharedExpert",
]
LayerTensors = dict[str, Tensor]
"""Tensors of a layer, or of a part of one, by role relative to the layer."""


_KINDS = {
    "Attention": "full attention",
    "DeltaNet": "linear attention",
    "GatedMLP": "layers without experts",
    "MLP": "feed-forwards without a gate",
    "MoE": "experts",
}

Mixer = Attention | DeltaNet
FeedForward = GatedMLP | MLP | MoE


@dataclass(frozen=True)
class LayerSpec:
    """One layer: x + s · mixer(norm(x)), then x + s · feed_forward(norm(x)), where s is `residual_scale`."""

    mixer: Mixer = part(lambda mixer, _: f"{_KINDS.get(type(mixer).__name__, type(mixer).__name__)} layers")
    feed_forward: FeedForward = part(lambda ffn, _: _KINDS.get(type(ffn).__name__, type(ffn).__name__))
    mixer_norm: Norm = part("a norm before the mixer")
    ffn_norm: Norm = part("a norm before the feed-forward")
    residual_scale: float = option(lambda scale, _: f"what a layer adds multiplied by {scale:g}", 1.0)

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        return {
            "mixer_norm": (hidden,),
            **self.mixer.roles(hidden),
            "ffn_norm": (hidden,),
            **self.feed_forward.roles(hidden),
        }

    @property
    def letter(self) -> str:
        """One letter for the layer's type: A attention, D DeltaNet; lower case if the feed-forward is dense."""
        letter = "A" if isinstance(self.mixer, Attention) else "D"
        return letter if isinstance(self.feed_forward, MoE) else letter.lower()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder: token embedding, layers, final norm, output projection (`tied` to the embedding or not).

    The embeddings fed to the first layer are multiplied by `embedding_scale`, but not a tied output projection; logits are
    multiplied by `logit_scale`.
    """

    vocab_size: int = size()
    hidden: int = size()
    context_length: int = size()
    layers: tuple[LayerSpec, ...] = size()
    output_norm: Norm = part("a norm before the output")
    tied: bool = choice(lambda tied, _: f"an output projection {'' if tied else 'not '}tied to the embedding")
    embedding_scale: float = option(lambda scale, _: f"embeddings multiplied by {scale:g}", 1.0)
    logit_scale: float = option(lambda scale, _: f"logits multiplied by {scale:g}", 1.0)

    def roles(self) -> dict[str, Shape]:
        """Roles and shapes of the tensors outside the layers."""
        roles: dict[str, Shape] = {"embedding": (self.vocab_size, self.hidden), "output_norm": (self.hidden,)}
        if not self.tied:
            roles["output"] = (self.vocab_size, self.hidden)
        return roles

    @property
    def cache_width(self) -> int:
        """Elements per token in the key/value cache, summed over the attention layers."""
        mixers = [layer.mixer for layer in self.layers]
        return sum(m.kv_heads * (m.head_dim + m.value_size) for m in mixers if isinstance(m, Attention))

    @property
    def pattern(self) -> str:
        """The layers' letters in order, such as DADADA."""
        return "".join(layer.letter for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class FrontMatter:
    """The fields of a model card's front matter that go into the GGUF's `general.*` metadata."""

    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer's spec and its tensors, by role relative to the layer."""

    spec: LayerSpec
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A spec with its weights (lazy, by role, unchanged from the source) and further facts about the source.

    `tensors` are those outside the layers, `layer_tensors` those of each layer; `layers` pairs the latter with their specs.
    `notes` are for the user: contradictions between the config and the tensors, and assumed values.
    `preferred_targets` are the llama.cpp architectures that the family prefers, best first.

    Raises CheckpointError if a tensor is missing, has a shape other than the spec's, or belongs to no role.
    """

    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    layer_tensors: tuple[Mapping[str, Tensor], ...]
    family: str
    notes: tuple[str, ...] = ()
    preferred_targets: tuple[str, ...] = ()
    front_matter: FrontMatter = FrontMatter()
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        extra = self._unexpected(self.tensors, self.spec.roles())
        for n, layer in enumerate(self.layers):
            extra += self._unexpected(layer.tensors, layer.spec.roles(self.spec.hidden), f"layers.{n}.")
        if extra:
            raise CheckpointError(f"the {self.family} model has tensors that its spec does not use: {', '.join(extra)}")

    def _unexpected(self, tensors: Mapping[str, Tensor], roles: Mapping[str, Shape], place: str = "") -> list[str]:
        """Check that every role has a tensor of its shape; returns the names of the tensors without a role, sorted."""
        for role, shape in roles.items():
            tensor = tensors.get(role)
            if tensor is None:
                raise CheckpointError(f"the {self.family} model lacks a tensor for {place}{role}, shape {shape}")
            if tensor.shape != shape:
                names = ", ".join(tensor.sources) or place + role
                raise CheckpointError(f"tensor {names} has shape {tensor.shape}; expected {shape} for {place}{role}")
        return sorted(place + role for role in tensors.keys() - roles.keys())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(starmap(Layer, zip(self.spec.layers, self.layer_tensors, strict=True)))

    def with_layers(self, layers: Iterable[Layer]) -> Model:
        """The model with its layers replaced by these."""
        layers = tuple(layers)
        spec = replace(self.spec, layers=tuple(layer.spec for layer in layers))
        return replace(self, spec=spec, layer_tensors=tuple(layer.tensors for layer in layers))

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return sum(tensor.size for tensors in (self.tensors, *self.layer_tensors) for tensor in tensors.values())

    @property
    def active_parameters(self) -> int:
        """Number of weights used per token: of the routed experts only top_k; the embedding counts once."""
        total = self.parameters
        for layer in self.spec.layers:
            ffn = layer.feed_forward
            if isinstance(ffn, MoE):
                total -= 3 * (ffn.experts - ffn.router.top_k) * ffn.width * self.spec.hidden
        return total
