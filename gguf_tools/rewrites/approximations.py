"""Approximations of features that a target cannot express exactly: each turns a Model into one with nearly the same output.

Applied only with `--allow-approximate`. The error is measured with the torch reference on calibration tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.rope import YarnScaling
from gguf_tools.model.spec import Attention, Layer, Model, ModelSpec, MoE
from gguf_tools.rewrites.router import with_softmax_and_bias
from gguf_tools.tensors.views import scaled

Tokens = Sequence[Sequence[int]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LayerFit:
    """Quality of the fit in one layer, on the calibration tokens.

    `agreement` is the share of tokens for which the approximated model, run end to end, selects the same experts;
    `weight_error` is the RMS difference of the selected experts' weights, given the same logits; `slope` is the fitted factor.
    """

    layer: int
    agreement: float
    weight_error: float
    slope: float

    @property
    def label(self) -> str:
        """What the fit is about."""
        return f"layer {self.layer}"

    @property
    def sentence(self) -> str:
        """The fit in words."""
        return (
            f"{self.agreement:.2%} of the calibration tokens select the same experts; the experts' weights differ "
            f"by {self.weight_error:.1e} (RMS); τ = {self.slope:.3f}"
        )


@dataclass(frozen=True)
class LogitFit:
    """What an approximation of the logits changes on the calibration tokens.

    `kl` is the mean KL divergence of the approximated next-token distribution from the model's, in nats; `agreement` is the
    share of positions where both have the same most likely token; `nmse` is the squared error of the logits over their
    square.
    """

    kl: float
    agreement: float
    nmse: float

    @property
    def label(self) -> str:
        """What the fit is about."""
        return "logits"

    @property
    def sentence(self) -> str:
        """The fit in words."""
        return (
            f"on the calibration tokens the KL divergence is {self.kl:.1e} nats, the most likely token is the same at "
            f"{self.agreement:.2%} of the positions, and NMSE is {self.nmse:.1e}"
        )


Fit = LayerFit | LogitFit
Approximated = tuple[Model, tuple[Fit, ...]]
"""The approximated model, and how well it fits."""


@dataclass(frozen=True)
class Approximation:
    """A named approximation; `applies` says whether the spec has the feature that it replaces.

    `apply` fits it to tokens and measures it; without tokens it returns a model of the same form with default parameters.
    `saves`: an approximation that the user permits is taken where an exact form needs more weights.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model, Tokens | None], Approximated]
    saves: bool = False


def _sigmoid_with_bias(spec: ModelSpec) -> bool:
    moes = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, MoE)]
    return any(moe.router.selection_bias and moe.router.score == "sigmoid" for moe in moes) and all(
        moe.router.normalised for moe in moes
    )


def _softmax_router(model: Model, tokens: Tokens | None) -> Approximated:
    """Replaces normalised sigmoid weights of the selected experts by a softmax over slope · logits.

    The selection bias is multiplied by the same slope, so that the selection does not change.
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
    """The slope τ for which softmax(τ · l) approximates σ(l) / Σ σ(l), and the remaining RMS error.

    `logits` are those of the selected experts, shape (tokens, top_k). τ is the least-squares slope of log σ(l) on l with l
    centred per token, because softmax is invariant to a constant shift.
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
    """Experts that layer n selects, shape (tokens, top_k), given its router logits (tokens, experts)."""
    layer = model.layers[n]
    ffn = layer.spec.feed_forward
    assert isinstance(ffn, MoE)
    bias = layer.tensors.get("moe.router_bias")
    selected = logits if bias is None else logits + bias.array()
    return np.argsort(-selected, axis=1, kind="stable")[:, : ffn.router.top_k]


def router_logits(model: Model, tokens: Tokens) -> dict[int, Doubles]:
    """Router logits of the reference by layer, each of shape (tokens, experts), in float64."""
    import torch

    from gguf_tools.reference import Reference

    reference = Reference(model)
    found: dict[int, list[Doubles]] = {}

    def observe(layer: int, point: str, values: torch.Tensor) -> None:
        router = reference.layers[layer].get("moe.router")
        if point == "ffn_norm" and router is not None:
            logits = values[0].double() @ router.double().T
            if "moe.logit_bias" in reference.layers[layer]:
                logits = logits + reference.layers[layer]["moe.logit_bias"].double()
            found.setdefault(layer, []).append(logits.numpy())

    with torch.inference_mode():
        for sequence in tokens:
            reference.forward(torch.tensor([list(sequence)]), observe)
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


SOFTMAX_ROUTER = Approximation(
    "softmax router for a sigmoid router with a selection bias",
    "the same experts are selected; their weights are softmax(τ · logit) instead of normalised sigmoid(logit), with τ fitted "
    "per layer",
    _sigmoid_with_bias,
    _softmax_router,
)


def _fractional_yarn(spec: ModelSpec) -> bool:
    return any(not scaling.truncate for scaling in _yarns(spec))


def _yarns(spec: ModelSpec) -> list[YarnScaling]:
    """The YaRN scalings of the attention layers."""
    ropes = [layer.mixer.rope for layer in spec.layers if isinstance(layer.mixer, Attention) and layer.mixer.rope]
    return [rope.scaling for rope in ropes if isinstance(rope.scaling, YarnScaling)]


def _truncated_yarn(model: Model, tokens: Tokens | None) -> Approximated:
    """Rounds YaRN's correction range to whole dimensions, and measures how this changes the selection of experts."""

    def change(layer: Layer) -> Layer:
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or mixer.rope is None or not isinstance(mixer.rope.scaling, YarnScaling):
            return layer
        rope = replace(mixer.rope, scaling=replace(mixer.rope.scaling, truncate=True))
        return Layer(replace(layer.spec, mixer=replace(mixer, rope=rope)), layer.tensors)

    made = model.with_layers(map(change, model.layers))
    if tokens is None:
        return made, ()
    before, after, fits = router_logits(model, tokens), router_logits(made, tokens), []
    for n, logits in before.items():
        chosen = _chosen(model, n, logits)
        same = np.sort(chosen) == np.sort(_chosen(made, n, after[n]))
        pair = [_softmax(np.take_along_axis(each, chosen, axis=1)) for each in (logits, after[n])]
        error = float(np.sqrt(np.square(pair[0] - pair[1]).mean()))
        fits.append(LayerFit(n, float(same.all(axis=1).mean()), error, 1.0))
    return made, tuple(fits)


TRUNCATED_YARN = Approximation(
    "YaRN whose correction range is rounded to whole dimensions",
    "llama.cpp always rounds the range, so that the frequencies of a few pairs of dimensions differ",
    _fractional_yarn,
    _truncated_yarn,
)


def _uncapped(model: Model, tokens: Tokens | None) -> Approximated:
    """The model without the cap on the logits, and what that changes on the tokens."""
    made = replace(model, spec=replace(model.spec, logit_softcap=None))
    cap = model.spec.logit_softcap
    return made, (() if tokens is None or cap is None else (_cap_fit(made, cap, tokens),))


def _cap_fit(uncapped: Model, cap: float, tokens: Tokens) -> LogitFit:
    """What a cap on the logits changes; sequence by sequence, since the logits of all take much memory."""
    import torch

    from gguf_tools.reference import Reference

    reference = Reference(uncapped)
    kl = agreement = error = square = positions = 0.0
    with torch.inference_mode():
        for sequence in tokens:
            plain = reference.head(reference.forward(torch.tensor([list(sequence)])))[0].double()
            capped = cap * (plain / cap).tanh()
            p, q = capped.log_softmax(-1), plain.log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            agreement += float((capped.argmax(-1) == plain.argmax(-1)).sum())
            error, square = error + float((plain - capped).square().sum()), square + float(capped.square().sum())
            positions += len(sequence)
    return LogitFit(kl=kl / positions, agreement=agreement / positions, nmse=error / square)


UNCAPPED = Approximation(
    "model without the cap on its logits",
    "tanh keeps the order of the logits, so the most likely token is the same; probabilities are sharper than the model's",
    lambda spec: spec.logit_softcap is not None,
    _uncapped,
    saves=True,
)
