"""Contradictions within a spec that arithmetic would only show as an error deep in the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from gguf_tools.description.schema import KeyPath
from gguf_tools.model.norms import Norm
from gguf_tools.model.rope import FactorScaling, Llama3Scaling, Rope, YarnScaling
from gguf_tools.model.spec import Attention, DeltaNet, ModelSpec, MoE

POSITIVE = ("scale", "theta", "factor", "softcap", "logit_softcap", "clip", "logit_scale", "original_context", "window")
"""Fields that divide, or whose zero would leave nothing."""
SIZES = ("heads", "kv_heads", "head_dim", "value_dim", "key_heads", "value_heads", "key_dim", "kernel", "width", "dims")


def contradictions(spec: ModelSpec) -> Iterator[tuple[KeyPath, str]]:
    """Place and what is wrong there, of each contradiction."""
    if not spec.context_length:
        yield ("model", "context_length"), "is 0; expected the number of tokens that the model was made for"
    yield from _part(spec, ("model",))
    for layer in dict.fromkeys(spec.layers):
        yield from _part(layer, ("layer",))


def _part(part: Any, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The contradictions of a part and of the parts in it."""
    for entry in fields(part):
        value, here = getattr(part, entry.name), (*place, entry.name)
        if entry.name == "layers":
            continue
        if entry.name in POSITIVE and value is not None and value <= 0:
            yield here, f"is {value}; expected a number above 0"
        if entry.name in SIZES and value is not None and value <= 0:
            yield here, f"is {value}; expected a whole number above 0"
        if entry.name == "bias" and isinstance(value, frozenset) and value:
            yield from _biases(part, value, here)
        if is_dataclass(value):
            yield from _part(value, here)
    match part:
        case Norm() if part.eps < 0:
            yield (*place, "eps"), f"is {part.eps:g}; expected a number of at least 0"
        case Attention():
            yield from _attention(part, place)
        case DeltaNet() if not part.key_heads or part.value_heads % part.key_heads:
            text = f"is {part.value_heads}; expected a multiple of key_heads ({part.key_heads})"
            yield (*place, "value_heads"), text
        case MoE() if not 0 < part.router.top_k <= part.experts:
            yield (
                (*place, "router", "top_k"),
                f"is {part.router.top_k}; expected 1 to {part.experts}, the number of experts",
            )
        case Rope():
            yield from _rope(part, place)


def _biases(part: Any, named: frozenset[str], place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    known = {role.partition(".")[2] for role in replace(part, bias=frozenset()).roles(1)}
    unknown = sorted(named - known)
    if unknown:
        yield place, f"names {unknown[0]}; expected some of {', '.join(sorted(known))}"


def _attention(part: Attention, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if part.kv_heads and part.heads % part.kv_heads:
        yield (*place, "heads"), f"is {part.heads}; expected a multiple of kv_heads ({part.kv_heads})"
    if part.rope and part.rope.dims > part.head_dim:
        yield (*place, "rope", "dims"), f"is {part.rope.dims}; expected at most head_dim ({part.head_dim})"
    if (part.norm_per_head or part.norm_whole or part.norm_after_rope) and part.qk_norm is None:
        yield (*place, "qk_norm"), "is missing, but its placement is stated; expected a norm"


def _rope(rope: Rope, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The contradictions of a rope and of its scaling."""
    if rope.dims % 2:
        yield (*place, "dims"), f"is {rope.dims}; expected an even number"
    if rope.theta == 1 and isinstance(rope.scaling, YarnScaling):
        yield (*place, "theta"), "is 1; expected a base above 1 for YaRN"
    match rope.scaling:
        case Llama3Scaling() as scaling if scaling.high_freq_factor <= scaling.low_freq_factor:
            yield (*place, "scaling", "high_freq_factor"), f"is not above low_freq_factor ({scaling.low_freq_factor:g})"
        case FactorScaling(factors) if len(factors) != rope.dims // 2 or min(factors) <= 0:
            text = f"has {len(factors)} numbers; expected {rope.dims // 2}, half of dims, all above 0"
            yield (*place, "scaling", "factors"), text
        case YarnScaling() as scaling if min(scaling.beta_fast, scaling.beta_slow) <= 0:
            yield (*place, "scaling", "beta_slow"), "or beta_fast is not above 0"
