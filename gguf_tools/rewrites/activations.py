"""Rewrites of feed-forwards with other activations, or without a gate, as SwiGLU or GeGLU.

SiLU(t) = t · sigmoid(t) approaches ReLU(t) as |t| grows: the two differ by at most 0.28, and by less than 1e-7 beyond |t| = 20.
So with k large, SiLU(2^k z) / 2^k is ReLU(z) but for a difference of at most 0.28 / 2^k, where |z| < 20 / 2^k alone:

- ReLU(z)² = SiLU(2^k z) · z / 2^k, a gate and an up projection of the same rows;
- ReLU(g) · u = SiLU(2^k g) · u / 2^k;
- without a gate, ReLU(z) = SiLU(2^k z) · 1 / 2^k and SiLU(z) = SiLU(z) · 1, where the up projection has weights of zero and a
  bias of 1. Such a graph needs biases in the feed-forward.

GELU(t) = t · Φ(t) approaches ReLU(t) in the same way, and faster: within 0.17, and 1e-7 beyond |t| = 5.3.

All factors are powers of two, and so exact. The product of gate and up is kept 2^4 times as large as the activation was, so that
its rounding to F16, which llama.cpp does for F16 weights, has room (65504) and is not coarse; biases may be added to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gguf_tools.model.spec import MLP, Activation, GatedMLP, Layer, LayerTensors, Model, ModelSpec
from gguf_tools.rewrites.base import Rewrite, map_layers
from gguf_tools.tensors.base import Filled, Tensor
from gguf_tools.tensors.views import scaled

SQUARE_POWER = 10
"""k for the squared ReLU: an error of at most 4.7e-7, where |z| < 0.02."""
LINEAR_POWER = 14
"""k for the ReLU: an error of at most 1.7e-5, where |z| < 0.0012; the mean square over many units is about 1e-13."""
ROOM = 4
"""log2 of the factor by which the product of gate and up exceeds the activation."""

_SWIGLU = frozenset({"GatedMLP.activation=silu", "GatedMLP.bias=gate", "GatedMLP.bias=up", "GatedMLP.bias=down"})
_RELU_GATE = _SWIGLU | {"GatedMLP.activation=relu"}
_UNGATED = frozenset({"MLP.bias=up", "MLP.bias=down"})


def _has(kind: type[MLP] | type[GatedMLP], activations: frozenset[str]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(
        isinstance(layer.feed_forward, kind) and layer.feed_forward.activation in activations for layer in spec.layers
    )


def _power(base: Tensor, exponent: int) -> Tensor:
    """The tensor times 2^exponent."""
    return scaled(base, 2.0**exponent) if exponent else base


def _biased(tensors: LayerTensors, name: str, exponent: int, role: str) -> LayerTensors:
    """The projection `name` (of up, down, gate) and its bias, times 2^exponent, as the projection `role`."""
    roles = {f"ffn.{name}": f"ffn.{role}", f"ffn.{name}_bias": f"ffn.{role}_bias"}
    return {new: _power(tensors[old], exponent) for old, new in roles.items() if old in tensors}


def _square(model: Model, activation: Activation) -> Model:
    """Feed-forwards of squared ReLUs with a gate of `activation`: gate 2^k · up, up 2^(ROOM-k) · up, down 2^-ROOM · down."""

    def change(layer: Layer) -> Layer:
        ffn, tensors = layer.spec.feed_forward, dict(layer.tensors)
        if not isinstance(ffn, MLP) or ffn.activation != "relu2":
            return layer
        made = {
            **_biased(tensors, "up", SQUARE_POWER, "gate"),
            **_biased(tensors, "up", ROOM - SQUARE_POWER, "up"),
            "ffn.down": _power(tensors["ffn.down"], -ROOM),
        }
        gated = GatedMLP(ffn.width, ffn.bias | ({"gate"} if "up" in ffn.bias else set()), activation)
        return Layer(replace(layer.spec, feed_forward=gated), {**tensors, **made})

    return map_layers(model, change)


def _ungated(model: Model) -> Model:
    """Feed-forwards of ReLU or SiLU without a gate as SwiGLU whose up projection gives 2^(ROOM-k) for every token."""

    def change(layer: Layer) -> Layer:
        """The layer with a gate, if its feed-forward has none and a ReLU or SiLU."""
        ffn, tensors = layer.spec.feed_forward, dict(layer.tensors)
        if not isinstance(ffn, MLP) or ffn.activation not in ("relu", "silu"):
            return layer
        power, room = (LINEAR_POWER, ROOM) if ffn.activation == "relu" else (0, 0)
        made = {
            **_biased(tensors, "up", power, "gate"),
            "ffn.up": Filled(tensors["ffn.up"].shape),
            "ffn.up_bias": Filled((ffn.width,), 2.0 ** (room - power)),
            "ffn.down": _power(tensors["ffn.down"], -room),
        }
        gated = GatedMLP(ffn.width, ffn.bias | {"up"} | ({"gate"} if "up" in ffn.bias else set()))
        return Layer(replace(layer.spec, feed_forward=gated), {**tensors, **made})

    return map_layers(model, change)


def _relu_gate(model: Model, activation: Activation) -> Model:
    """Gates of ReLU as gates of `activation`: gate 2^k · gate, up 2^(ROOM-k) · up, down 2^-ROOM · down."""

    def change(layer: Layer) -> Layer:
        ffn, tensors = layer.spec.feed_forward, dict(layer.tensors)
        if not isinstance(ffn, GatedMLP) or ffn.activation != "relu":
            return layer
        made = {
            **_biased(tensors, "gate", LINEAR_POWER, "gate"),
            **_biased(tensors, "up", ROOM - LINEAR_POWER, "up"),
            "ffn.down": _power(tensors["ffn.down"], -ROOM),
        }
        return Layer(replace(layer.spec, feed_forward=replace(ffn, activation=activation)), {**tensors, **made})

    return map_layers(model, change)


def _relu_as_gelu(model: Model) -> Model:
    """Feed-forwards of ReLU without a gate as ones of GELU: up 2^k · up, down 2^-k · down."""

    def change(layer: Layer) -> Layer:
        ffn, tensors = layer.spec.feed_forward, dict(layer.tensors)
        if not isinstance(ffn, MLP) or ffn.activation != "relu":
            return layer
        made = {**_biased(tensors, "up", LINEAR_POWER, "up"), "ffn.down": _power(tensors["ffn.down"], -LINEAR_POWER)}
        return Layer(replace(layer.spec, feed_forward=replace(ffn, activation="gelu_tanh")), {**tensors, **made})

    return map_layers(model, change)


SQUARED_RELU = Rewrite(
    name="squared ReLU as SwiGLU",
    why="SiLU(1024 z) · z / 1024 is max(z, 0)² but for at most 4.7e-7, so the up projection serves as gate too",
    applies=_has(MLP, frozenset({"relu2"})),
    apply=partial(_square, activation="silu"),
    linear=True,
    keeps_row_angles=True,
    parts=(MLP, GatedMLP),
    expresses=_SWIGLU | _UNGATED | {"MLP.activation=relu2"},
)
UNGATED = Rewrite(
    name="feed-forward without a gate as SwiGLU",
    why="an up projection of zeros with a bias gives the same number for every token; SiLU(16384 z) / 16384 is ReLU(z) but for "
    "at most 1.7e-5 where |z| < 0.0012",
    applies=_has(MLP, frozenset({"relu", "silu"})),
    apply=_ungated,
    linear=True,
    keeps_row_angles=True,
    parts=(MLP, GatedMLP),
    expresses=_SWIGLU | _UNGATED | {"MLP.activation=relu", "MLP.activation=silu"},
)
RELU_GATE = Rewrite(
    name="ReLU gate as SiLU gate",
    why="SiLU(16384 z) / 16384 is ReLU(z) but for at most 1.7e-5 where |z| < 0.0012",
    applies=_has(GatedMLP, frozenset({"relu"})),
    apply=partial(_relu_gate, activation="silu"),
    linear=True,
    keeps_row_angles=True,
    parts=(GatedMLP,),
    expresses=_RELU_GATE,
)
RELU_AS_GELU = Rewrite(
    name="ReLU as GELU",
    why="GELU(16384 z) / 16384 is ReLU(z) but for at most 1.1e-5 where |z| < 0.0006",
    applies=_has(MLP, frozenset({"relu"})),
    apply=_relu_as_gelu,
    linear=True,
    keeps_row_angles=True,
    parts=(MLP,),
    expresses=_UNGATED | {"MLP.activation=relu"},
)
SQUARED_RELU_AS_GEGLU = replace(
    SQUARED_RELU,
    name="squared ReLU as GeGLU",
    why="GELU(1024 z) · z / 1024 is max(z, 0)² but for at most 1.6e-7, so the up projection serves as gate too",
    apply=partial(_square, activation="gelu_tanh"),
    expresses=SQUARED_RELU.expresses | {"GatedMLP.activation=gelu", "GatedMLP.activation=gelu_tanh"},
)
RELU_GATE_AS_GELU = replace(
    RELU_GATE,
    name="ReLU gate as GELU gate",
    why="GELU(16384 z) / 16384 is ReLU(z) but for at most 1.1e-5 where |z| < 0.0006",
    apply=partial(_relu_gate, activation="gelu_tanh"),
    expresses=RELU_GATE.expresses | {"GatedMLP.activation=gelu", "GatedMLP.activation=gelu_tanh"},
)
GEGLU_REWRITES = (SQUARED_RELU_AS_GEGLU, RELU_GATE_AS_GELU)
ACTIVATION_REWRITES = (SQUARED_RELU, RELU_GATE)
"""Those that any graph with SwiGLU can have; `UNGATED` needs one with biases in the feed-forward."""
