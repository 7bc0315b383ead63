"""What a target can come near to but not express: Model into a Model that computes almost the same.

Never applied without being asked for (`--allow-approximate`). What was reached is measured on calibration tokens that run
through the torch reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.spec import Layer, Model, ModelSpec, MoE
from gguf_tools.rewrites.router import with_softmax_and_bias
from gguf_tools.tensors.views import scaled

Tokens = Sequence[Sequence[int]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LayerFit:
    """What was reached in one layer, on the calibration tokens.

    `agreement` is the share of tokens for which the approximated model, run from its own embeddings on, chooses the same
    experts; `weight_error` the root mean square difference of the weights of chosen experts, given the same logits;
    `slope` the factor that was fitted.
    """

    layer: int
    agreement: float
    weight_error: float
    slope: float


@dataclass(frozen=True)
class Approximation:
    """A named approximation; `applies` says whether the spec has what it replaces.

    `apply` fits it to tokens and measures it; without tokens it gives a model of the same form, fitted to nothing.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model, Tokens | None], tuple[Model, tuple[LayerFit, ...]]]


def _sigmoid_with_bias(spec: ModelSpec) -> bool:
    moes = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MoE)]
    return any(moe.router.selection_bias and moe.router.score == "sigmoid" for moe in moes) and all(
        moe.router.normalised for moe in moes
    )


def _softmax_router(model: Model, tokens: Tokens | None) -> tuple[Model, tuple[LayerFit, ...]]:
    """Softmax over the chosen experts' logits times a slope, in place of their sigmoids over the sum of these.

    The selection bias is multiplied by the slope too, which leaves the choice as it is.
    """
    if tokens is None:
        return _with_slopes(model, {}), ()
    runs = router_logits(model, tokens)
    slopes, errors = {}, {}
    for n, logits in runs.items():
        chosen = _chosen(model, n, logits)
        slopes[n], errors[n] = fitted_slope(np.take_along_axis(logits, chosen, axis=1))
    made = _with_slopes(model, slopes)
    fits = []
    for n, logits in router_logits(made, tokens).items():
        same = np.sort(_chosen(model, n, runs[n])) == np.sort(_chosen(made, n, logits))
        fits.append(LayerFit(n, float(same.all(axis=1).mean()), errors[n], slopes[n]))
    return made, tuple(fits)


def _with_slopes(model: Model, slopes: Mapping[int, float]) -> Model:
    def change(layer: Layer, slope: float) -> Layer:
        made = with_softmax_and_bias(layer)
        roles = [role for role in ("moe.router", "moe.router_bias") if role in made.tensors]
        return Layer(made.spec, {**made.tensors, **{role: scaled(made.tensors[role], slope) for role in roles}})

    return model.with_layers(change(layer, slopes.get(n, 1.0)) for n, layer in enumerate(model.layers))


def fitted_slope(logits: Doubles) -> tuple[float, float]:
    """The slope τ for which softmax(τ · l) comes near to σ(l) / Σ σ(l), and the root mean square error that is left.

    `logits` are those of the chosen experts, shape (tokens, top_k). Least squares of log σ(l) on l within each token, because
    softmax is invariant to a constant shift.
    """
    shown = logits - logits.mean(axis=1, keepdims=True)
    logs = -np.logaddexp(0.0, -logits)
    spread = float(np.square(shown).sum())
    slope = float((shown * logs).sum()) / spread if spread else 1.0
    difference = _softmax(slope * logits) - _softmax(logs)
    return slope, float(np.sqrt(np.square(difference).mean()))


def _softmax(x: Doubles) -> Doubles:
    shifted = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float64)


def _chosen(model: Model, n: int, logits: Doubles) -> NDArray[np.int64]:
    """Experts that layer n chooses, shape (tokens, top_k), by its router logits (tokens, experts)."""
    layer = model.layers[n]
    ffn = layer.spec.feed_forward
    assert isinstance(ffn, MoE)
    bias = layer.tensors.get("moe.router_bias")
    selected = logits if bias is None else logits + bias.array()
    return np.argsort(-selected, axis=1, kind="stable")[:, : ffn.router.top_k]


def router_logits(model: Model, tokens: Tokens) -> dict[int, Doubles]:
    """Logits of every router for every token, shape (tokens, experts), by layer, from the reference."""
    import torch

    from gguf_tools.reference import Reference

    reference = Reference(model)
    found: dict[int, list[Doubles]] = {}

    def observe(layer: int, point: str, values: torch.Tensor) -> None:
        router = reference.layers[layer].get("moe.router")
        if point == "ffn_norm" and router is not None:
            logits = values[0].double() @ router.double().T
            found.setdefault(layer, []).append(logits.numpy())

    with torch.inference_mode():
        for sequence in tokens:
            reference.forward(torch.tensor([list(sequence)]), observe)
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


SOFTMAX_ROUTER = Approximation(
    "softmax router for a sigmoid router with a selection bias",
    "the same experts are chosen; their weights are softmax(τ · logit) in place of sigmoid(logit) over the sum, with τ fitted "
    "to each layer",
    _sigmoid_with_bias,
    _softmax_router,
)
