"""Changes of a spec, each by one feature or one value, that a target either expresses or refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf_tools.model.rope import FactorScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from gguf_tools.model.spec import (
    MLP,
    Activation,
    Attention,
    ClampedSwiGLU,
    DeltaNet,
    GatedMLP,
    LayerSpec,
    ModelSpec,
    MoE,
    Norm,
    SharedExpert,
    ShortConv,
)
from tests.targets.forms import CONV, DELTA, EXPERTS, FREE, NORM, SPACE

Change = Callable[[ModelSpec], ModelSpec]
LayerChange = Callable[[LayerSpec], LayerSpec]


def outside(**fields: Any) -> Change:
    """Fields of the spec outside the layers."""
    return lambda spec: replace(spec, **fields)


def each(change: LayerChange) -> Change:
    """Every layer changed."""
    return lambda spec: replace(spec, layers=tuple(map(change, spec.layers)))


def last(change: LayerChange) -> Change:
    """The last layer changed, where there is another with its mixer; else a changed copy appended."""

    def changed(spec: ModelSpec) -> ModelSpec:
        *others, one = spec.layers
        if change(one) == one:
            return spec
        if not any(type(other.mixer) is type(one.mixer) for other in others):
            others.append(one)
        return replace(spec, layers=(*others, change(one)))

    return changed


def fields(**given: Any) -> LayerChange:
    return lambda layer: replace(layer, **given)


def attention(**given: Any) -> LayerChange:
    """Fields of the layer's attention, if it has one."""

    def changed(layer: LayerSpec) -> LayerSpec:
        return replace(layer, mixer=replace(layer.mixer, **given)) if isinstance(layer.mixer, Attention) else layer

    return changed


def rope(**given: Any) -> LayerChange:
    """Fields of the rope of the layer's attention, if it has one."""

    def changed(layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        if not isinstance(mixer, Attention) or not mixer.rope:
            return layer
        return replace(layer, mixer=replace(mixer, rope=replace(mixer.rope, **given)))

    return changed


def with_bias(name: str, has: bool) -> LayerChange:
    """A bias on a projection of the attention, or none."""

    def changed(layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            return layer
        return replace(layer, mixer=replace(mixer, bias=mixer.bias | {name} if has else mixer.bias - {name}))

    return changed


def dense(**given: Any) -> LayerChange:
    """Fields of the layer's dense feed-forward, if it has one."""

    def changed(layer: LayerSpec) -> LayerSpec:
        ffn = layer.feed_forward
        return replace(layer, feed_forward=replace(ffn, **given)) if isinstance(ffn, GatedMLP | MLP) else layer

    return changed


def experts(**given: Any) -> LayerChange:
    """Fields of the layer's experts, if it has some."""

    def changed(layer: LayerSpec) -> LayerSpec:
        ffn = layer.feed_forward
        return replace(layer, feed_forward=replace(ffn, **given)) if isinstance(ffn, MoE) else layer

    return changed


def router(**given: Any) -> LayerChange:
    """Fields of the router of the layer's experts, if it has some."""

    def changed(layer: LayerSpec) -> LayerSpec:
        ffn = layer.feed_forward
        if not isinstance(ffn, MoE):
            return layer
        return replace(layer, feed_forward=replace(ffn, router=replace(ffn.router, **given)))

    return changed


def space(**given: Any) -> LayerChange:
    """Fields of the layer's state space, if it has one."""

    def changed(layer: LayerSpec) -> LayerSpec:
        if layer.state_space is None:
            return layer
        made = replace(layer.state_space, **given)
        return replace(layer, beside=made) if layer.beside else replace(layer, mixer=made)

    return changed


def delta(**given: Any) -> LayerChange:
    """Fields of the layer's linear attention, if it has one."""
    return lambda layer: (
        replace(layer, mixer=replace(layer.mixer, **given)) if isinstance(layer.mixer, DeltaNet) else layer
    )


def convolution(**given: Any) -> LayerChange:
    """Fields of the layer's short convolution, if it has one."""
    return lambda layer: (
        replace(layer, mixer=replace(layer.mixer, **given)) if isinstance(layer.mixer, ShortConv) else layer
    )


def norms(**given: Any) -> Change:
    """Every norm of the residual stream, of what is added to it, and of q and k changed."""

    def changed(norm: Norm | None) -> Norm | None:
        return norm and replace(norm, **given)

    def layer(old: LayerSpec) -> LayerSpec:
        names = ("mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm")
        found: dict[str, Any] = {name: changed(getattr(old, name)) for name in names}
        made = replace(old, **found)
        return attention(qk_norm=changed(old.mixer.qk_norm))(made) if isinstance(old.mixer, Attention) else made

    return lambda spec: replace(
        each(layer)(spec),
        output_norm=replace(spec.output_norm, **given),
        embedding_norm=changed(spec.embedding_norm),
    )


YARN = YarnScaling(factor=4.0, original_context=16)
GATES: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
CHANGES: dict[str, Change] = {
    "nothing": lambda spec: spec,
    "tied": outside(tied=True),
    "untied": outside(tied=False),
    "embedding scale": outside(embedding_scale=3.0),
    "logit scale": outside(logit_scale=0.5),
    "positions": outside(positions=64),
    "more positions": outside(positions=65),
    "fewer positions": outside(positions=63),
    "embedding norm": outside(embedding_norm=NORM),
    "output bias": outside(output_bias=True),
    "cap on logits": outside(logit_softcap=16.0),
    "norm offset": norms(offset=1.0),
    "RMS norms": norms(centred=False, bias=False),
    "centred norms": norms(centred=True),
    "norms without weights": norms(weighted=False),
    "biases of norms": norms(bias=True),
    "norms without biases": norms(bias=False),
    "another epsilon": last(
        lambda layer: replace(layer, mixer_norm=layer.mixer_norm and replace(layer.mixer_norm, eps=1e-3))
    ),
    "no norm before the mixer": each(fields(mixer_norm=None)),
    "no norm before the feed-forward": each(fields(ffn_norm=None)),
    "a norm after the mixer": each(fields(mixer_post_norm=NORM)),
    "a norm after the feed-forward": each(fields(ffn_post_norm=NORM)),
    "norms after both": each(fields(mixer_post_norm=NORM, ffn_post_norm=NORM)),
    "parallel": each(fields(parallel=True)),
    "parallel, one norm": each(fields(parallel=True, ffn_norm=None)),
    "in turn": each(fields(parallel=False)),
    "one parallel layer": last(fields(parallel=True)),
    "residual scale": each(fields(residual_scale=0.25)),
    "another residual scale": last(fields(residual_scale=0.25)),
    "input scale": each(fields(input_scale=0.5)),
    "multipliers": each(fields(multipliers=(("mixer_norm", 0.5),))),
    "a state space beside": each(fields(beside=SPACE)),
    "no feed-forward": each(fields(feed_forward=None, ffn_norm=None)),
    "attention alone": each(fields(mixer=FREE)),
    "linear attention alone": each(fields(mixer=DELTA)),
    "state space alone": each(fields(mixer=SPACE)),
    "convolution alone": each(fields(mixer=CONV)),
    "convolution with biases": each(fields(mixer=replace(CONV, bias=True))),
    "no rope": each(attention(rope=None)),
    "no rope in one layer": last(attention(rope=None)),
    "rope in halves": each(rope(pairs="half")),
    "rope in interleaved pairs": each(rope(pairs="interleaved")),
    "rope on a part": each(rope(dims=4)),
    "rope on the whole": each(rope(dims=8, scaling=None)),
    "another base": last(rope(theta=77.0)),
    "linear scaling": each(rope(dims=8, scaling=LinearScaling(2.5))),
    "YaRN": each(rope(dims=8, scaling=YARN)),
    "YaRN with a factor": each(rope(dims=8, scaling=replace(YARN, attention_factor=1.5))),
    "YaRN not truncated": each(rope(dims=8, scaling=replace(YARN, truncate=False))),
    "YaRN with other betas": each(rope(dims=8, scaling=replace(YARN, beta_slow=2.0))),
    "YaRN backwards": each(rope(dims=8, scaling=replace(YARN, original_context=10**12))),
    "llama3 scaling": each(rope(dims=8, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32))),
    "frequency factors": each(rope(dims=8, scaling=FactorScaling((1.0, 3.0, 0.5, 1e30)))),
    "LongRoPE": each(
        rope(
            dims=8,
            scaling=LongRopeScaling(
                short=(1.0, 2.0, 3.0, 4.0), long=(1.5, 2.5, 3.5, 4.5), original_context=16, attention_factor=1.5
            ),
        )
    ),
    "rope backwards": each(rope(backwards=True)),
    **{f"bias on {name}": each(with_bias(name, True)) for name in "qkvo"},
    **{f"no bias on {name}": each(with_bias(name, False)) for name in "qkvo"},
    "q/k norm": each(attention(qk_norm=NORM)),
    "no q/k norm": each(attention(qk_norm=None, norm_after_rope=False, norm_whole=False)),
    "no q/k norm in one layer": last(attention(qk_norm=None, norm_after_rope=False, norm_whole=False)),
    "one q/k norm over all heads": each(attention(qk_norm=NORM, norm_whole=True)),
    "q/k norm of each head": each(attention(qk_norm=NORM, norm_per_head=True)),
    "q/k norm on each head": each(attention(qk_norm=NORM, norm_whole=False)),
    "q/k norm after rope": each(attention(qk_norm=NORM, norm_after_rope=True)),
    "q/k norm before rope": each(attention(qk_norm=NORM, norm_after_rope=False)),
    "q/k gain": each(attention(qk_norm=NORM, norm_gain=True)),
    "gate": each(attention(gated=True)),
    "no gate in one layer": last(attention(gated=False)),
    "value scale": each(attention(value_scale=True)),
    "window": each(attention(window=5)),
    "window in one layer": last(attention(window=5)),
    "another window": last(attention(window=6)),
    "no window": each(attention(window=None)),
    "a window as long as the context": each(attention(window=64)),
    "a window that is almost as long": each(attention(window=63)),
    "ALiBi": each(attention(alibi=8.0)),
    "ALiBi of another bias": each(attention(alibi=4.0)),
    "no ALiBi": each(attention(alibi=None)),
    "sinks": each(attention(sinks=True)),
    "no sinks": each(attention(sinks=False)),
    "narrow values": each(attention(value_dim=4)),
    "values of one dimension": each(attention(value_dim=1)),
    "attention scale": each(attention(scale=0.125)),
    "another attention scale": last(attention(scale=0.125)),
    "cap on scores": each(attention(softcap=8.0)),
    "no cap on scores": each(attention(softcap=None)),
    "another cap on scores": last(attention(softcap=8.0)),
    "clip": each(attention(clip=0.25)),
    "another clip": last(attention(clip=0.125)),
    "more heads": each(attention(heads=6, kv_heads=2)),
    "heads as wide as the model": each(attention(heads=3, kv_heads=3)),
    "other heads in one layer": last(attention(heads=6, kv_heads=3)),
    **{f"gate of {name}": each(fields(feed_forward=GatedMLP(20, activation=name))) for name in GATES},
    **{f"{name} without a gate": each(fields(feed_forward=MLP(20, name))) for name in GATES},
    "xielu without a gate": each(fields(feed_forward=MLP(20, "xielu"))),
    **{f"bias on ffn.{name}": each(dense(bias=frozenset({name}))) for name in ("gate", "up", "down")},
    "no bias in the feed-forward": each(dense(bias=frozenset())),
    "another width": last(dense(width=7)),
    "experts": each(fields(feed_forward=EXPERTS)),
    "a dense layer last": last(fields(feed_forward=GatedMLP(20))),
    "experts last": last(fields(feed_forward=EXPERTS)),
    "dense": each(fields(feed_forward=GatedMLP(20))),
    "one expert": each(router(top_k=1)),
    "all experts": each(router(top_k=4)),
    "renormalised": each(router(normalised=True)),
    "not renormalised": each(router(normalised=False)),
    "all experts, not renormalised": each(router(top_k=4, normalised=False)),
    "all experts, renormalised": each(router(top_k=4, normalised=True)),
    "sigmoid": each(router(score="sigmoid")),
    "softmax": each(router(score="softmax")),
    "router scale": each(router(scale=1.5)),
    "no router scale": each(router(scale=1.0)),
    "bias before the score": each(router(selection_bias=True, score_bias=False)),
    "bias before the score, not renormalised": each(router(selection_bias=True, score_bias=False, normalised=False)),
    "bias after the score": each(router(selection_bias=False, score_bias=True)),
    "no router bias": each(router(selection_bias=False, score_bias=False, logit_bias=False)),
    "bias on the router's logits": each(router(logit_bias=True)),
    "a little added to the sum": each(router(sum_eps=1e-6)),
    "much added to the sum": each(router(sum_eps=1e-5)),
    "another router": last(router(top_k=3)),
    "another number of experts": last(experts(experts=5)),
    "experts of another width": last(experts(width=16)),
    "gated shared expert": each(experts(shared=SharedExpert(12, True))),
    "plain shared expert": each(experts(shared=SharedExpert(12, False))),
    "wide shared expert": each(experts(shared=SharedExpert(36, False))),
    "odd shared expert": each(experts(shared=SharedExpert(13, False))),
    "no shared expert": each(experts(shared=None)),
    "no shared expert in one layer": last(experts(shared=None)),
    "plain shared expert of another width": last(experts(shared=SharedExpert(36, False))),
    "gated shared expert of another width": last(experts(shared=SharedExpert(36, True))),
    **{f"bias on moe.{name}": each(experts(bias=frozenset({name}))) for name in ("gate", "up", "down")},
    "no clamp": each(experts(clamped=None)),
    "another clamp": each(experts(clamped=ClampedSwiGLU(1.702, 6.0))),
    "another slope": each(experts(clamped=ClampedSwiGLU(1.7, 7.0))),
    "keys wider than values": each(delta(key_dim=16)),
    "more value heads": each(delta(value_heads=4)),
    "another linear attention": last(delta(kernel=3)),
    "decays as logs": each(delta(decay="log")),
    "another l2 epsilon": each(delta(l2_eps=1e-3)),
    "state space without a norm": each(space(norm=None)),
    "state space normed first": each(space(norm_first=True)),
    "state space with decays as logs": each(space(decay="log")),
    "state space without a bias of its convolution": each(space(conv_bias=False)),
    "state space with biases": each(space(bias=frozenset({"in", "o"}))),
    "limited steps": each(space(step_limit=(0.1, 1.0))),
    "another state space": last(space(state=6)),
    "state space of another width": each(space(head_dim=6)),
    "state space of one token": each(space(kernel=1)),
    "short convolution of one token": each(convolution(kernel=1)),
    "another short convolution": last(convolution(kernel=2)),
}
