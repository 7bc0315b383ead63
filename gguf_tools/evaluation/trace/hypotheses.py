"""Faults of a layer that are worth trying: its spec with one value changed, or its weights with one mistake made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import torch

from gguf_tools.model.rope import FactorScaling, LongRopeScaling, Rope, YarnScaling
from gguf_tools.model.spec import Attention, DeltaNet, LayerSpec, Mamba2, MoE, Norm
from gguf_tools.reference.feed_forward import ACTIVATIONS
from gguf_tools.reference.weights import Weights

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
PAIRED = (
    ("attn.k", "attn.v"),
    ("attn.q", "attn.gate"),
    ("ffn.gate", "ffn.up"),
    ("moe.gate", "moe.up"),
    ("shared.gate", "shared.up"),
    ("delta.q", "delta.k"),
    ("delta.beta", "delta.alpha"),
    ("attn.q_norm", "attn.k_norm"),
    ("mixer_norm", "ffn_norm"),
    ("mixer_post_norm", "ffn_post_norm"),
    ("mixer_norm", "mixer_post_norm"),
    ("ffn_norm", "ffn_post_norm"),
    ("attn.k_bias", "attn.v_bias"),
    ("ffn.gate_bias", "ffn.up_bias"),
)
"""Weights of one shape that may be exchanged."""
MOST_EXPERTS = 8
"""Most experts of which all pairs are exchanged."""
THETAS = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)


@dataclass(frozen=True)
class Hypothesis:
    """A layer with a fault, which `text` names in the field's words; `role` is the weight that it is about, if any.

    One `in_file` only puts something of the file in place of what the file should hold, in the file's own form.
    """

    text: str
    spec: LayerSpec
    weights: Weights
    role: str = ""
    in_file: bool = False


def hypotheses(
    spec: LayerSpec, weights: Weights, own: LayerSpec | None, others: Mapping[int, Weights]
) -> Iterator[Hypothesis]:
    """Every fault to try on a layer. `own` is the layer as the file's metadata state it, `others` the other layers' weights."""
    yield from _of_missing(spec, weights)
    for text, changed in _of_norms(spec, own):
        yield Hypothesis(text, changed, weights)
    if isinstance(spec.mixer, Attention):
        theirs = own.mixer if own and isinstance(own.mixer, Attention) else None
        for text, mixer in _of_attention(spec.mixer, theirs):
            yield Hypothesis(text, replace(spec, mixer=mixer), weights)
        yield from _of_groups(spec, spec.mixer, weights)
    if isinstance(spec.mixer, DeltaNet):
        yield from _of_delta(spec, spec.mixer, weights)
    if spec.state_space:
        yield from _of_state_space(spec, spec.state_space, weights)
    if isinstance(spec.feed_forward, MoE):
        theirs_ffn = own.feed_forward if own and isinstance(own.feed_forward, MoE) else None
        for text, ffn in _of_experts(spec.feed_forward, theirs_ffn):
            yield Hypothesis(text, replace(spec, feed_forward=ffn), weights)
    elif spec.feed_forward is not None:
        for name in ACTIVATIONS:
            if name != spec.feed_forward.activation:
                dense = replace(spec.feed_forward, activation=name)
                words = f"the activation is {name}, not {spec.feed_forward.activation}"
                yield Hypothesis(words, replace(spec, feed_forward=dense), weights)
    if spec.input_scale != 1.0:
        yield Hypothesis("the scale of the layer's input is left out", replace(spec, input_scale=1.0), weights)
    if spec.residual_scale != 1.0:
        yield Hypothesis("the residual scale is left out", replace(spec, residual_scale=1.0), weights)
    for m, other in others.items():
        if {role: tensor.shape for role, tensor in other.items()} == {r: t.shape for r, t in weights.items()}:
            yield Hypothesis(f"the layer has the weights of layer {m}", spec, other)
    yield from _of_weights(spec, weights, others)


def _of_missing(spec: LayerSpec, weights: Weights) -> Iterator[Hypothesis]:
    """Biases and other tensors of zeros, and weights of norms that are not applied."""
    norms = spec.norms
    for role, tensor in weights.items():
        zeros = {**weights, role: torch.zeros_like(tensor)}
        if role in norms:
            ones = torch.full_like(tensor, 1.0 - norms[role].offset)
            yield Hypothesis(f"the norm's weights are not applied ({role})", spec, {**weights, role: ones}, role)
        elif role.endswith("_bias") and "dt_bias" not in role:
            yield Hypothesis(f"the bias is not loaded ({role})", spec, zeros, role)
        elif not role.endswith(("dt_bias", "skip")):
            yield Hypothesis(f"the tensor is not loaded: zeros ({role})", spec, zeros, role)


def _of_norms(spec: LayerSpec, own: LayerSpec | None) -> Iterator[tuple[str, LayerSpec]]:
    """Other epsilons for all norms, and norms whose offset is left out or added without need."""
    mine = next(iter(spec.norms.values()), None)
    if mine is None:
        return
    stated = [norm.eps for norm in own.norms.values()] if own else []
    for eps in dict.fromkeys([*stated, *EPSILONS]):
        if abs(eps - mine.eps) > 1e-3 * mine.eps:
            yield f"epsilon is {eps:g}, not {mine.eps:g}", _with_norms(spec, eps=eps)
    for role, norm in spec.norms.items():
        if not norm.weighted:
            continue
        other = 0.0 if norm.offset else 1.0
        left_out = f"the norm's offset of {norm.offset:g} is missing"
        text = left_out if norm.offset else "an offset of 1 is added to the norm's weights"
        yield f"{text} ({role})", _with_norms(spec, role, offset=other)
    for role, norm in spec.norms.items():
        words = "does not subtract" if norm.centred else "subtracts"
        yield f"the norm {words} the mean ({role})", _with_norms(spec, role, centred=not norm.centred)
    for field in ("mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm"):
        if getattr(spec, field):
            bare: dict[str, Any] = {field: None}
            yield f"the norm is left out ({field})", replace(spec, **bare)


def _with_norms(spec: LayerSpec, only: str = "", **values: Any) -> LayerSpec:
    """The layer with other values in its norms, or only in that of one role."""

    def change(norm: Norm) -> Norm:
        return replace(norm, **values)

    def changed(role: str) -> Any:
        norm = getattr(spec, role)
        return change(norm) if norm and only in ("", role) else norm

    mixer = spec.mixer
    if isinstance(mixer, Attention) and mixer.qk_norm and (not only or only.startswith("attn.")):
        mixer = replace(mixer, qk_norm=change(mixer.qk_norm))
    elif isinstance(mixer, DeltaNet) and only in ("", "delta.norm"):
        norm = change(mixer.norm)
        mixer = replace(mixer, norm=norm, l2_eps=mixer.l2_eps if only else norm.eps)
    spec = replace(spec, mixer=mixer)
    if spec.state_space and spec.state_space.norm and only in ("", "ssm.norm"):
        spec = _with_space(spec, norm=change(spec.state_space.norm))
    names = ("mixer_norm", "mixer_post_norm", "ffn_norm", "ffn_post_norm")
    return replace(spec, **{name: changed(name) for name in names})


def _of_attention(mixer: Attention, own: Attention | None) -> Iterator[tuple[str, Attention]]:
    """Other ropes, scales, windows and norms of an attention."""
    if mixer.rope:
        for text, rope in _of_rope(mixer.rope, own.rope if own else None):
            yield text, replace(mixer, rope=rope)
        yield "RoPE is left out", replace(mixer, rope=None)
    if mixer.qk_norm:
        yield "the q/k norm is left out", replace(mixer, qk_norm=None)
        if mixer.rope:
            order = "before" if mixer.norm_after_rope else "after"
            yield f"the q/k norm comes {order} RoPE", replace(mixer, norm_after_rope=not mixer.norm_after_rope)
    stated = {own.score_scale: f"{own.score_scale:g}"} if own else {}
    scales = stated | {mixer.head_dim**-0.5: "1/√head_dim", 1.0: "1"}
    for scale, name in scales.items():
        if abs(scale - mixer.score_scale) > 1e-6 * mixer.score_scale:
            yield f"scores are multiplied by {name}, not {mixer.score_scale:g}", replace(mixer, scale=scale)
    windows = {None, own.window if own else None, *((mixer.window - 1, mixer.window + 1) if mixer.window else ())}
    for window in windows - {mixer.window, 0}:
        yield f"the sliding window is {window or 'left out'}, not {mixer.window}", replace(mixer, window=window)
    if mixer.softcap:
        yield "the cap on the scores is left out", replace(mixer, softcap=None)
    if mixer.clip:
        yield "queries, keys and values are not clipped", replace(mixer, clip=None)
    if mixer.sinks:
        yield "the attention sinks are left out", replace(mixer, sinks=False)
    if mixer.alibi:
        yield "ALiBi's bias is left out", replace(mixer, alibi=None)
        yield "ALiBi's slopes have half the exponent", replace(mixer, alibi=mixer.alibi / 2)
        yield "ALiBi's slopes have twice the exponent", replace(mixer, alibi=mixer.alibi * 2)
    if mixer.gated:
        yield "the attention gate is left out", replace(mixer, gated=False)


def _of_groups(spec: LayerSpec, mixer: Attention, weights: Weights) -> Iterator[Hypothesis]:
    """Query head h reads key head h % kv_heads, and not h // (heads / kv_heads): keys and values are repeated in that order."""
    if not 1 < mixer.kv_heads < mixer.heads or mixer.norm_whole or mixer.norm_per_head or mixer.value_scale:
        return
    order = [h % mixer.kv_heads for h in range(mixer.heads)]
    repeated = {
        role: weights[role].view(mixer.kv_heads, -1, *weights[role].shape[1:])[order].flatten(0, 1)
        for role in ("attn.k", "attn.v", "attn.k_bias", "attn.v_bias")
        if role in weights
    }
    text = "query head h reads key head h modulo their number, not h divided by the group's size"
    wide = replace(spec, mixer=replace(mixer, kv_heads=mixer.heads))
    yield Hypothesis(text, wide, {**weights, **repeated})


def _of_rope(rope: Rope, own: Rope | None) -> Iterator[tuple[str, Rope]]:
    """Other orders of pairs, bases, scalings and numbers of rotated dimensions."""
    other: Literal["half", "interleaved"] = "interleaved" if rope.pairs == "half" else "half"
    words = {"half": "half a head apart", "interleaved": "interleaved"}
    yield f"RoPE pairs are {words[other]}, not {words[rope.pairs]}", replace(rope, pairs=other)
    for theta in dict.fromkeys([*([own.theta] if own else []), *THETAS]):
        if abs(theta - rope.theta) > 1e-6 * rope.theta:
            yield f"the RoPE base is {theta:g}, not {rope.theta:g}", replace(rope, theta=theta)
    others = () if isinstance(rope.scaling, (FactorScaling, LongRopeScaling)) else (rope.dims // 2, rope.dims * 2)
    for dims in dict.fromkeys([*([own.dims] if own else []), *others]):
        if dims != rope.dims and dims % 2 == 0:
            yield f"RoPE rotates {dims} dimensions, not {rope.dims}", replace(rope, dims=dims)
    if rope.scaling:
        yield "RoPE scaling is left out", replace(rope, scaling=None)
    if isinstance(rope.scaling, LongRopeScaling):
        exchanged = replace(rope.scaling, short=rope.scaling.long, long=rope.scaling.short)
        yield "LongRoPE's short and long factors are exchanged", replace(rope, scaling=exchanged)
        if rope.scaling.attention_factor != 1.0:
            plain = replace(rope.scaling, attention_factor=1.0)
            yield (
                f"LongRoPE's attention factor is 1, not {rope.scaling.attention_factor:g}",
                replace(rope, scaling=plain),
            )
    if isinstance(rope.scaling, YarnScaling):
        factors = (1.0, rope.scaling.magnitude**2)
        for factor in factors:
            if abs(factor - rope.scaling.magnitude) > 1e-9:
                scaling = replace(rope.scaling, attention_factor=factor)
                yield (
                    f"YaRN's attention factor is {factor:g}, not {rope.scaling.magnitude:g}",
                    replace(rope, scaling=scaling),
                )
    yield "RoPE rotates backwards", replace(rope, backwards=not rope.backwards)


def _of_delta(spec: LayerSpec, mixer: DeltaNet, weights: Weights) -> Iterator[Hypothesis]:
    """Mistakes that are usual with DeltaNet's decay, epsilon and convolution."""
    yield from _of_decay(spec, replace(spec, mixer=replace(mixer, decay="rate")), mixer.decay, weights, "delta.decay")
    for eps in (1e-5, 1e-12):
        yield Hypothesis(
            f"epsilon of the unit keys is {eps:g}", replace(spec, mixer=replace(mixer, l2_eps=eps)), weights
        )
    yield _without(spec, weights, "delta.dt_bias", "the bias of the time step")


def _of_state_space(spec: LayerSpec, space: Mamba2, weights: Weights) -> Iterator[Hypothesis]:
    """Mistakes that are usual with Mamba-2's decay, step, skip, norm and groups."""
    yield from _of_decay(spec, _with_space(spec, decay="rate"), space.decay, weights, "ssm.decay")
    yield _without(spec, weights, "ssm.dt_bias", "the bias of the time step")
    yield _without(spec, weights, "ssm.skip", "D, which adds the input to the output,")
    if space.norm:
        order = "after" if space.norm_first else "before"
        changed = _with_space(spec, norm_first=not space.norm_first)
        yield Hypothesis(f"the norm comes {order} the gate (ssm.norm)", changed, weights)
        yield Hypothesis("the norm is left out (ssm.norm)", _with_space(spec, norm=None), weights)
    wide = space.groups * space.state
    if wide:
        channels = torch.arange(space.channels)
        x, b, c = channels[: space.inner], channels[space.inner : -wide], channels[-wide:]
        turned = torch.cat([x, c, b])
        exchanged = {role: weights[role][turned] for role in ("ssm.conv", "ssm.conv_bias") if role in weights}
        pairs = {"ssm.b": "ssm.c", "ssm.c": "ssm.b", "ssm.b_bias": "ssm.c_bias", "ssm.c_bias": "ssm.b_bias"}
        exchanged |= {role: weights[other] for role, other in pairs.items() if role in weights}
        yield Hypothesis("B and C are exchanged", spec, {**weights, **exchanged}, "ssm.b")


def _with_space(spec: LayerSpec, **values: Any) -> LayerSpec:
    """The layer with other values in its state space, which is its mixer or lies beside it."""
    assert spec.state_space
    changed = replace(spec.state_space, **values)
    return replace(spec, beside=changed) if spec.beside else replace(spec, mixer=changed)


def _of_decay(spec: LayerSpec, rate: LayerSpec, form: str, weights: Weights, role: str) -> Iterator[Hypothesis]:
    """Wrong signs and forms of a decay; `rate` is the layer that takes its weights as they are."""
    decay = weights[role]
    if form == "log":
        text = "A_log without its minus sign: the decay is exp(A_log), not -exp(A_log)"
        yield Hypothesis(text, rate, {**weights, role: decay.exp()}, role)
        yield Hypothesis("A_log as it is stored, not -exp(A_log)", rate, {**weights, role: decay}, role)
    else:
        yield Hypothesis("the decay without its minus sign", spec, {**weights, role: -decay}, role)


def _without(spec: LayerSpec, weights: Weights, role: str, name: str) -> Hypothesis:
    """A layer with zeros in place of one of its tensors."""
    bare = {**weights, role: torch.zeros_like(weights[role])}
    return Hypothesis(f"{name} is left out ({role})", spec, bare, role)


def _of_experts(ffn: MoE, own: MoE | None) -> Iterator[tuple[str, MoE]]:
    """Other routers."""
    router = ffn.router
    words = "not divided by their sum" if router.normalised else "divided by their sum"
    yield f"router weights are {words}", replace(ffn, router=replace(router, normalised=not router.normalised))
    other: Literal["softmax", "sigmoid"] = "sigmoid" if router.score == "softmax" else "softmax"
    yield f"the router's score is a {other}, not a {router.score}", replace(ffn, router=replace(router, score=other))
    if router.scale != 1.0:
        yield "the scale of the router's weights is left out", replace(ffn, router=replace(router, scale=1.0))
    for top_k in {own.router.top_k if own else router.top_k, router.top_k - 1, router.top_k + 1}:
        if 0 < top_k <= ffn.experts and top_k != router.top_k:
            yield f"{top_k} experts are used, not {router.top_k}", replace(ffn, router=replace(router, top_k=top_k))
    if router.score_bias or router.selection_bias:
        swapped = replace(router, score_bias=router.selection_bias, selection_bias=router.score_bias)
        moved = "before" if router.score_bias else "after"
        yield f"the selection bias is added {moved} the score function", replace(ffn, router=swapped)
    if ffn.clamped:
        yield "the experts' gate is not clamped", replace(ffn, clamped=replace(ffn.clamped, limit=1e30))
    if ffn.shared and ffn.shared.gated:
        yield "the shared expert's gate is left out", replace(ffn, shared=replace(ffn.shared, gated=False))


def _of_weights(spec: LayerSpec, weights: Weights, others: Mapping[int, Weights]) -> Iterator[Hypothesis]:
    """One tensor zero, transposed, in another order, or exchanged with another."""
    mixer = spec.mixer
    for role, tensor in weights.items():
        if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
            yield Hypothesis(f"the weight is transposed ({role})", spec, {**weights, role: tensor.T.contiguous()}, role)
        if role.endswith((".conv", ".kernel")) and tensor.ndim == 2:
            yield Hypothesis(
                f"the convolution is reversed in time ({role})", spec, {**weights, role: tensor.flip(1)}, role
            )
        if role in ("attn.q", "attn.k") and isinstance(mixer, Attention) and mixer.rope:
            for text, order in _row_orders(mixer, mixer.heads if role == "attn.q" else mixer.kv_heads):
                yield Hypothesis(
                    f"rows are in the order of RoPE with {text} ({role})", spec, {**weights, role: tensor[order]}, role
                )
    for one, other in PAIRED:
        if one in weights and other in weights and weights[one].shape == weights[other].shape:
            yield Hypothesis(
                f"{one} and {other} are exchanged", spec, {**weights, one: weights[other], other: weights[one]}, one
            )
    for role in ("moe.gate", "moe.up", "moe.down"):
        if role in weights and len(weights[role]) <= MOST_EXPERTS:
            for i, j in combinations(range(len(weights[role])), 2):
                experts = list(range(len(weights[role])))
                experts[i], experts[j] = j, i
                text = f"experts {i} and {j} are exchanged ({role})"
                yield Hypothesis(text, spec, {**weights, role: weights[role][experts]}, role)
    for m, theirs in others.items():
        for role, tensor in theirs.items():
            if role in weights and tensor.shape == weights[role].shape:
                yield Hypothesis(f"the tensor is that of layer {m} ({role})", spec, {**weights, role: tensor}, role)


def _row_orders(mixer: Attention, heads: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The orders in which rows of q or k are, if they were permuted for the other order of RoPE's pairs."""
    assert mixer.rope
    dims, rows = mixer.rope.dims, torch.arange(heads * mixer.head_dim).view(heads, mixer.head_dim)
    turned, rest = rows[:, :dims], rows[:, dims:]
    halves = torch.cat([turned[:, 0::2], turned[:, 1::2]], dim=1)
    pairs = torch.stack([turned[:, : dims // 2], turned[:, dims // 2 :]], dim=2).flatten(1)
    yield "pairs half a head apart", torch.cat([halves, rest], dim=1).flatten()
    yield "interleaved pairs", torch.cat([pairs, rest], dim=1).flatten()
