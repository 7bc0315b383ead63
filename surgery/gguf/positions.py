"""Properties of layers that llama.cpp derives from their place or number, kept by every layer or refused."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.header import Field
from surgery.algebra import Blend, Halves, Layer, Original, describe
from surgery.architectures.base import Architecture, Get, Layers, Property
from surgery.architectures.rules import PATTERN, Array

Changes = dict[str, Field]
"""Key without the architecture's prefix → its new value."""


def origin(layer: Layer, place: int) -> Hashable:
    """What a layer's keys and values come from: the original layer, or the new place of one that is computed."""
    if isinstance(layer, Original):
        return layer
    if isinstance(layer, Blend):
        return ("computed", place)
    return origin(layer.attention if isinstance(layer, Halves) else layer.layer, place)


def of_source(value: Hashable, source: str) -> Hashable:
    """A property's value of a layer of `source`; one that names a layer says that it is that file's."""
    return replace(value, source=source) if source and isinstance(value, Original) else value


def derived(architecture: Architecture, layers: Layers) -> dict[Property, tuple[Hashable, ...]]:
    """The value for each layer of each property."""
    return {p: tuple(p.rule.values(layers)) for p in architecture.properties}


def placed(
    architecture: Architecture,
    wanted: Mapping[Property, Sequence[Hashable]],
    layers: Callable[[Changes], Layers],
    trailing: int,
) -> Changes:
    """The metadata with which llama.cpp derives the `wanted` values; `layers` gives the new layers under changed metadata.

    Raises UnsupportedError, naming the first layer that would get another value, if no metadata does.
    """
    changes: Changes = {}
    for p, values in wanted.items():
        if p.carry is not None and tuple(p.rule.values(layers(changes))) != tuple(values):
            proposed = changes | p.carry.fields(values, trailing)
            if tuple(p.rule.values(layers(proposed))) == tuple(values):
                changes = proposed
    after = layers(changes)
    for p, values in wanted.items():
        found = p.rule.values(after)
        wrong = next((n for n, (a, b) in enumerate(zip(found, values, strict=True)) if a != b), None)
        if wrong is not None:
            raise UnsupportedError(_refusal(architecture, p, wrong, values[wrong], found[wrong]))
    return changes


def _refusal(architecture: Architecture, p: Property, layer: int, has: Hashable, would: Hashable) -> str:
    """Why a layer cannot get a place where a property of it would change, or the model another number of layers."""
    name = f"llama.cpp's {architecture.name}"
    if p.rule.by == "count":
        quantity = f"whether a layer {p.what}" if isinstance(has, bool) and p.what.startswith("has ") else p.what
        return (
            f"{name} decides {quantity} by {p.rule.counts}: it is {_word(has)} in the source and would be {_word(would)} "
            "in the result; keep that number, or operate on the checkpoint"
        )
    if isinstance(has, bool) and isinstance(would, bool):
        does, lacks = ("does", "would not") if has else ("does not", "would")
        return (
            f"{name} decides by its index whether a layer {p.what}: the layer that would become number {layer} {does}, "
            f"but {lacks} there"
        )
    return (
        f"{name} decides {p.what} by a layer's place: it is {_word(has)} for the layer that would become number {layer}, "
        f"and would be {_word(would)} there"
    )


def phrase(p: Property, value: Hashable) -> str:
    """What a layer has, for the value that llama.cpp gives it."""
    if isinstance(value, bool):
        return f"a place whose layer {p.what if value else negated(p.what)}"
    return f"{p.what}: {_word(value)}"


def negated(what: str) -> str:
    """The opposite of what a layer does: has no window for has a window, is not recurrent, does not take image features."""
    verb, _, rest = what.partition(" ")
    if verb == "has":
        return f"has {rest.removeprefix('no ')}" if rest.startswith("no ") else f"has no {rest.removeprefix('a ')}"
    return f"is not {rest}" if verb == "is" else f"does not {verb.removesuffix('s')} {rest}"


def _word(value: Hashable) -> str:
    if isinstance(value, bool):
        return "so" if value else "not so"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Original):
        return f"layer {describe(value)}"
    return "a computed one" if isinstance(value, tuple) and value[:1] == ("computed",) else str(value)


def check_both_kinds(architecture: Architecture, before: Layers, after: Layers) -> None:
    """Raise UnsupportedError for what llama.cpp stops at: a hybrid with one kind of layer, windows without a sliding layer."""
    kinds = [_recurrent(architecture, layers) for layers in (before, after)]
    if architecture.kinds and len(set(kinds[0])) == 2 and len(set(kinds[1])) == 1:
        left_out = "full" if kinds[1][0] else "linear"
        raise UnsupportedError(
            f"llama.cpp's {architecture.name} does not run a model without {left_out} attention layers; keep one"
        )
    if architecture.sliding:
        slides = [_slides(architecture, layers) for layers in (before, after)]
        if any(slides[0]) and not any(slides[1]):
            raise UnsupportedError(
                f"llama.cpp's {architecture.name} does not run a model without layers with a sliding window; keep one"
            )


def _recurrent(architecture: Architecture, layers: Layers) -> Sequence[Hashable]:
    """Which layers of a hybrid are recurrent; layers that are neither recurrent nor attention are left out."""
    if architecture.kinds == "array":
        rule = next(p.rule for p in architecture.properties if p.what == "is recurrent")
        return tuple(rule.values(layers))
    heads, widths = (
        _numbers(layers.get, key, layers.count) for key in ("attention.head_count_kv", "feed_forward_length")
    )
    if any(width == 0 for width in widths):
        # A feed-forward alone makes a layer here: it counts as neither kind.
        return [head == 0 for head, width in zip(heads, widths, strict=True) if head or not width]
    return [head == 0 for head in heads]


def _numbers(get: Get, key: str, count: int) -> Sequence[object]:
    value = get(key)
    return value[:count] if isinstance(value, tuple) and len(value) >= count else (value,) * count


def _slides(architecture: Architecture, layers: Layers) -> Sequence[Hashable]:
    rule = next((p.rule for p in architecture.properties if p.what == "has a sliding window"), Array(PATTERN))
    return rule.values(layers)
