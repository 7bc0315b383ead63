"""The specification of a decoder, and the names (roles) of its tensors.

A `Model` is a `ModelSpec` with the weights of the source, unchanged, as lazy tensors by role. The spec states how the weights
are to be interpreted (`Norm.offset`, `DeltaNet.decay`, `Rope.pairs` …); the reference implements that interpretation, and a
target converts the weights into the form that llama.cpp expects.

Roles: `embedding`, `output_norm`, `output` and a few more outside the layers; within a layer those that `LayerSpec.roles` gives,
such as `attn.q`. Messages prefix the latter with the layer's number, as in `layers.3.attn.q`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from math import prod
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.model.attention import Attention
from gguf_tools.model.features import Feature, Words, choice, features, option, part, size
from gguf_tools.model.feed_forward import MLP, Activation, ClampedSwiGLU, GatedMLP, MoE, Router, SharedExpert
from gguf_tools.model.norms import Norm, Shape
from gguf_tools.model.recurrent import DeltaNet
from gguf_tools.model.state_space import Mamba2, ShortConv
from gguf_tools.tensors.base import Tensor

__all__ = [
    "MLP",
    "Activation",
    "Attention",
    "ClampedSwiGLU",
    "DeltaNet",
    "FeedForward",
    "FrontMatter",
    "GatedMLP",
    "Layer",
    "LayerSpec",
    "LayerTensors",
    "Mamba2",
    "Mixer",
    "MoE",
    "Model",
    "ModelSpec",
    "Norm",
    "Router",
    "Shape",
    "SharedExpert",
    "ShortConv",
]
LayerTensors = dict[str, Tensor]
"""Tensors of a layer, or of a part of one, by role relative to the layer."""


_KINDS = {
    "Attention": "full attention",
    "DeltaNet": "linear attention",
    "GatedMLP": "layers without experts",
    "MLP": "feed-forwards without a gate",
    "Mamba2": "state space",
    "MoE": "experts",
    "ShortConv": "short convolution",
}

_LETTERS = {"Attention": "A", "DeltaNet": "D", "Mamba2": "M", "ShortConv": "C"}

Mixer = Attention | DeltaNet | Mamba2 | ShortConv
FeedForward = GatedMLP | MLP | MoE


def _norm(place: str) -> Words:
    return lambda norm, _: f"a norm {place}" if norm else f"layers without a norm {place}"


@dataclass(frozen=True)
class LayerSpec:
    """One layer: x + s · mixer(norm(x)), then x + s · feed_forward(norm(x)), where s is `residual_scale`.

    Before that, x is multiplied by `input_scale`.

    Each norm may be absent, and what the mixer or the feed-forward gives may be normed too, before it is added
    (`mixer_post_norm`, `ffn_post_norm`). In a `parallel` layer the feed-forward reads the x that the mixer reads, and both
    are added: x + s · (mixer(norm(x)) + feed_forward(norm(x))). Without a norm of its own it reads what the mixer reads.
    A layer without a feed-forward is its mixer alone. The state space `beside` the mixer reads what the mixer reads, and what
    it gives is added to what the mixer gives. `multipliers` are roles of matrices or biases that the model multiplies by a
    number, (role, number), and that are stored without it.
    """

    mixer: Mixer = part(lambda mixer, _: f"{_KINDS.get(type(mixer).__name__, type(mixer).__name__)} layers")
    feed_forward: FeedForward | None = part(
        lambda ffn, _: _KINDS.get(type(ffn).__name__, type(ffn).__name__) if ffn else "layers without a feed-forward"
    )
    mixer_norm: Norm | None = part(_norm("before the mixer"))
    ffn_norm: Norm | None = part(_norm("before the feed-forward"))
    mixer_post_norm: Norm | None = option("a norm after the mixer")
    ffn_post_norm: Norm | None = option("a norm after the feed-forward")
    parallel: bool = option("mixer and feed-forward in parallel", False)
    residual_scale: float = option(lambda scale, _: f"what a layer adds multiplied by {scale:g}", 1.0)
    beside: Mamba2 | None = option("a state space beside the attention")
    multipliers: tuple[tuple[str, float], ...] = option("multipliers of matrices", ())
    input_scale: float = option(lambda scale, _: f"what a layer reads multiplied by {scale:g}", 1.0)

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles = self.norm_roles("mixer_norm", hidden) | self.mixer.roles(hidden)
        roles |= self.beside.roles(hidden) if self.beside else {}
        roles |= self.norm_roles("mixer_post_norm", hidden) | self.norm_roles("ffn_norm", hidden)
        roles |= self.feed_forward.roles(hidden) if self.feed_forward else {}
        return roles | self.norm_roles("ffn_post_norm", hidden)

    def norm_roles(self, field: str, hidden: int) -> dict[str, Shape]:
        """The roles and shapes of the norm in the field of this name, which is the role of its weights too."""
        norm = getattr(self, field)
        return norm.roles(field, hidden) if norm else {}

    @property
    def norms(self) -> dict[str, Norm]:
        """The norms of the layer, those within its mixer included, by the role of their weights."""
        fields = ("mixer_norm", "mixer_post_norm", "ffn_norm", "ffn_post_norm")
        found = {field: getattr(self, field) for field in fields}
        if isinstance(self.mixer, Attention):
            found |= dict.fromkeys(("attn.q_norm", "attn.k_norm"), self.mixer.qk_norm)
        elif isinstance(self.mixer, DeltaNet):
            found["delta.norm"] = self.mixer.norm
        if self.state_space:
            found["ssm.norm"] = self.state_space.norm
        return {role: norm for role, norm in found.items() if norm}

    @property
    def state_space(self) -> Mamba2 | None:
        """The state space of the layer: its mixer, or the one beside it."""
        return self.mixer if isinstance(self.mixer, Mamba2) else self.beside

    @property
    def letter(self) -> str:
        """One letter for the mixer: A attention, C short convolution, D DeltaNet, M Mamba-2, H attention beside Mamba-2; lower
        case if the feed-forward is dense, or there is none."""
        letter = "H" if self.beside else _LETTERS[type(self.mixer).__name__]
        return letter if isinstance(self.feed_forward, MoE) else letter.lower()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder: token embedding, layers, final norm, output projection (`tied` to the embedding or not).

    The first layer reads the token's embedding times `embedding_scale` (which does not hold for a tied output projection),
    normed by `embedding_norm`, plus the row of its position in a learned table of `positions` rows. The logits are the output
    projection of the normed hidden state, plus a bias if there is one, times `logit_scale`; with `logit_softcap` c they become
    c · tanh(logits / c).
    """

    vocab_size: int = size()
    hidden: int = size()
    context_length: int = size()
    layers: tuple[LayerSpec, ...] = size()
    output_norm: Norm = part("a norm before the output")
    tied: bool = choice(lambda tied, _: f"an output projection {'' if tied else 'not '}tied to the embedding")
    embedding_scale: float = option(lambda scale, _: f"embeddings multiplied by {scale:g}", 1.0)
    logit_scale: float = option(lambda scale, _: f"logits multiplied by {scale:g}", 1.0)
    positions: int = option("learned positions", 0)
    embedding_norm: Norm | None = option("a norm of the embeddings")
    output_bias: bool = option("a bias on the logits", False)
    logit_softcap: float | None = option(lambda cap, _: f"logits capped at {cap:g}")

    def roles(self) -> dict[str, Shape]:
        """Roles and shapes of the tensors outside the layers."""
        roles: dict[str, Shape] = {"embedding": (self.vocab_size, self.hidden)}
        roles |= self.embedding_norm.roles("embedding_norm", self.hidden) if self.embedding_norm else {}
        roles |= self.output_norm.roles("output_norm", self.hidden)
        roles |= {"positions": (self.positions, self.hidden)} if self.positions else {}
        roles |= {"output_bias": (self.vocab_size,)} if self.output_bias else {}
        if not self.tied:
            roles["output"] = (self.vocab_size, self.hidden)
        return roles

    @property
    def cache_width(self) -> int:
        """Elements per token in the key/value cache, summed over the attention layers."""
        mixers = [layer.mixer for layer in self.layers]
        return sum(m.kv_heads * (m.head_dim + m.value_size) for m in mixers if isinstance(m, Attention))

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Every feature (`features`); computed once, since the planner asks each target and rewrite."""
        return features(self)

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

    @cached_property
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
                stored = sum(prod(ffn.roles(self.spec.hidden)[f"moe.{name}"][1:]) for name in ("gate", "up", "down"))
                stored += sum(prod(ffn.roles(self.spec.hidden)[f"moe.{name}_bias"][1:]) for name in ffn.bias)
                total -= (ffn.experts - ffn.router.top_k) * stored
        return total
