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
from typing import Any, Literal

from gguf_tools.errors import CheckpointError
from gguf_tools.model.features import Place, choice, option, part, size
from gguf_tools.model.rope import Rope
from gguf_tools.tensors.base import Tensor

Shape = tuple[int, ...]
LayerTensors = dict[str, Tensor]
"""Tensors of a layer, or of a part of one, by role relative to the layer."""


@dataclass(frozen=True)
class Norm:
    """RMS norm: x / sqrt(mean(x²) + eps) · (weight + offset)."""

    eps: float = size()
    offset: float = option(lambda offset, _: f"norm weights stored less {offset:g}", 0.0)


_BIASES = {"o": "a bias on the attention output"}


def _window(window: int, place: Place) -> str:
    return f"a sliding window of {window} tokens in a context of {place.spec.context_length}"


def _value_dim(_: int, place: Place) -> str:
    return f"value heads of {place.owner.value_size} dimensions beside key heads of {place.owner.head_dim}"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention with grouped queries (Ainslie et al. 2023).

    Scores are multiplied by 1/sqrt(head_dim). `bias` names the projections that have one (of q, k, v, o).
    `qk_norm` is applied to each head of q and k before RoPE; with `norm_per_head` each head has its own norm weights, and
    `norm_gain` adds a learned scalar gain per head after the norm. `value_scale` is a learned scalar per value head.
    `gated` multiplies the heads' output elementwise by sigmoid(gate · x), before the output projection.
    With `window` a position attends to itself and the window - 1 positions before it (Mistral; Beltagy et al. 2020), else
    to all positions up to its own. Value heads have `value_dim` dimensions, or `head_dim` where that is None.
    """

    heads: int = size()
    kv_heads: int = size()
    head_dim: int = size()
    rope: Rope = part("rotary position embedding")
    bias: frozenset[str] = option(lambda name, _: _BIASES.get(name, f"a bias on the attention's {name}"), frozenset())
    qk_norm: Norm | None = option("q/k norm")
    gated: bool = option("an attention gate", False)
    norm_per_head: bool = option("q/k norm weights of each head's own", False)
    norm_gain: bool = option("a gain after the q/k norm", False)
    value_scale: bool = option("a scale of the value heads", False)
    window: int | None = option(
        _window, neutral=lambda window, place: not window or window >= place.spec.context_length
    )
    value_dim: int | None = option(_value_dim, neutral=lambda _, place: place.owner.value_size == place.owner.head_dim)

    @property
    def value_size(self) -> int:
        """Dimensions of a value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        out, v = self.heads * self.value_size, self.kv_heads * self.value_size
        roles: dict[str, Shape] = {
            "attn.q": (q, hidden),
            "attn.k": (k, hidden),
            "attn.v": (v, hidden),
            "attn.o": (hidden, out),
        }
        for name in sorted(self.bias):
            roles[f"attn.{name}_bias"] = roles[f"attn.{name}"][:1]
        for name, heads in (("q", self.heads), ("k", self.kv_heads)):
            if self.qk_norm:
                roles[f"attn.{name}_norm"] = (heads, self.head_dim) if self.norm_per_head else (self.head_dim,)
            if self.norm_gain:
                roles[f"attn.{name}_gain"] = (heads,)
        if self.value_scale:
            roles["attn.v_scale"] = (self.kv_heads,)
        if self.gated:
            roles["attn.gate"] = (out, hidden)
            if "q" in self.bias:
                roles["attn.gate_bias"] = (out,)
        return roles


@dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """Gated DeltaNet (Yang et al. 2024), in the form of Qwen3-Next.

    q, k, v pass a causal depthwise convolution and SiLU; q and k are normalised to unit length with `l2_eps`; value head v
    uses key head v // (value_heads / key_heads). The state is multiplied at each step by
    exp(decay · softplus(alpha + dt_bias)), where decay is -exp(weight) for "log" and the weight itself for "rate".
    The output is RMS-normalised per head, multiplied by SiLU(z), and projected.
    """

    key_heads: int = size()
    value_heads: int = size()
    key_dim: int = size()
    value_dim: int = size()
    kernel: int = size()
    norm: Norm = part("the norm of linear attention's output")
    decay: Literal["log", "rate"] = choice(lambda decay, _: f"decays of linear attention stored as a {decay}", "log")
    l2_eps: float = size(1e-6)

    @property
    def channels(self) -> int:
        """Channels of the convolution: those of q, k and v together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        key, value = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return {
            "delta.q": (key, hidden),
            "delta.k": (key, hidden),
            "delta.v": (value, hidden),
            "delta.z": (value, hidden),
            "delta.beta": (self.value_heads, hidden),
            "delta.alpha": (self.value_heads, hidden),
            "delta.conv": (self.channels, self.kernel),
            "delta.decay": (self.value_heads,),
            "delta.dt_bias": (self.value_heads,),
            "delta.norm": (self.value_dim,),
            "delta.o": (hidden, value),
        }


@dataclass(frozen=True)
class GatedMLP:
    """Dense feed-forward: down(SiLU(gate x) ⊙ up x). `bias` names the projections that have one (of gate, up, down)."""

    width: int = size()
    bias: frozenset[str] = option("biases in the feed-forward", frozenset())

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {
            "ffn.gate": (self.width, hidden),
            "ffn.up": (self.width, hidden),
            "ffn.down": (hidden, self.width),
        }
        for name in sorted(self.bias):
            roles[f"ffn.{name}_bias"] = roles[f"ffn.{name}"][:1]
        return roles


_NORMALISED = {
    True: "router weights renormalised (norm_topk_prob true)",
    False: "router weights that are not renormalised (norm_topk_prob false)",
}


@dataclass(frozen=True, kw_only=True)
class Router:
    """How experts are selected and weighted.

    `score` turns the logits into weights: a softmax over all experts, or a sigmoid per expert. The `top_k` experts with the
    largest logits are selected; with `selection_bias`, those with the largest logit + bias, where the bias affects the
    selection only and not the weights. The weights of the selected experts are divided by their sum if `normalised`, and
    multiplied by `scale`.
    """

    top_k: int = size()
    normalised: bool = choice(lambda normalised, _: _NORMALISED[normalised], True)
    scale: float = option("scaled router weights", 1.0)
    score: Literal["softmax", "sigmoid"] = choice(lambda score, _: f"a {score} router", "softmax")
    selection_bias: bool = option("a router bias added before the score function, for the selection alone", False)


@dataclass(frozen=True)
class SharedExpert:
    """An expert applied to every token; `gated` multiplies its output by the sigmoid of one logit per token."""

    width: int = size()
    gated: bool = choice(lambda gated, _: "a gate on the shared expert" if gated else "a shared expert without a gate")


@dataclass(frozen=True)
class MoE:
    """Mixture of experts: `experts` gated MLPs of `width`, with an optional shared expert."""

    experts: int = size()
    width: int = size()
    router: Router = part("routed experts")
    shared: SharedExpert | None = option("a shared expert")

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {
            "moe.router": (self.experts, hidden),
            "moe.gate": (self.experts, self.width, hidden),
            "moe.up": (self.experts, self.width, hidden),
            "moe.down": (self.experts, hidden, self.width),
        }
        if self.router.selection_bias:
            roles["moe.router_bias"] = (self.experts,)
        if self.shared:
            width = self.shared.width
            roles |= {"shared.gate": (width, hidden), "shared.up": (width, hidden), "shared.down": (hidden, width)}
            if self.shared.gated:
                roles["shared.sigmoid"] = (hidden,)
        return roles


_KINDS = {
    "Attention": "full attention",
    "DeltaNet": "linear attention",
    "GatedMLP": "layers without experts",
    "MoE": "experts",
}

Mixer = Attention | DeltaNet
FeedForward = GatedMLP | MoE


@dataclass(frozen=True)
class LayerSpec:
    """One layer: x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    mixer: Mixer = part(lambda mixer, _: f"{_KINDS.get(type(mixer).__name__, type(mixer).__name__)} layers")
    feed_forward: FeedForward = part(lambda ffn, _: _KINDS.get(type(ffn).__name__, type(ffn).__name__))
    mixer_norm: Norm = part("a norm before the mixer")
    ffn_norm: Norm = part("a norm before the feed-forward")

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
        """One letter for the layer's kind: A attention, D DeltaNet; lower case where the feed-forward is dense."""
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
    tied: bool = choice(lambda tied, _: f"an output projection {'tied to the embedding' if tied else 'of its own'}")
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
    `notes` are sentences for the user: where the config and the tensors disagree, and what was assumed.
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
            raise CheckpointError(f"the {self.family} model has tensors that its layers do not use: {', '.join(extra)}")

    def _unexpected(self, tensors: Mapping[str, Tensor], roles: Mapping[str, Shape], place: str = "") -> list[str]:
        """Check that every role has a tensor of its shape; returns the names of the tensors without a role, sorted."""
        for role, shape in roles.items():
            tensor = tensors.get(role)
            if tensor is None:
                raise CheckpointError(f"the {self.family} model lacks a tensor for {place}{role}, shape {shape}")
            if tensor.shape != shape:
                names = ", ".join(tensor.sources) or place + role
                raise CheckpointError(f"tensor {names} has shape {tensor.shape}, {shape} expected for {place}{role}")
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
