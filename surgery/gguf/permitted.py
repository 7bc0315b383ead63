"""What the architecture of a file permits: what a stack of layers asks of it, held against its row in the table."""

from __future__ import annotations

from gguf_tools.errors import UnsupportedError
from surgery.algebra import Blend, Halves, Layer, Original, Scaled, Stack, identity, origins, parted
from surgery.architectures.base import Aspect
from surgery.gguf.layers import GGUFSpace
from surgery.gguf.outside import check_sliced


def aspects(stack: Stack, count: int) -> dict[Aspect, set[Original]]:
    """What a stack asks of a model with `count` layers, and of which of its layers (none for "order" and "count")."""
    found: dict[Aspect, set[Original]] = {}
    if stack[:count] != identity(count)[: len(stack)]:
        found["order"] = set()
    if len(stack) != count:
        found["count"] = set()
    for layer in stack:
        for aspect, inner in _inside(layer):
            found.setdefault(aspect, set()).update(origins(inner))
        if parted(layer):
            found.setdefault("halves", set()).update(parted(layer))
    return found


def _inside(layer: Layer) -> list[tuple[Aspect, Layer]]:
    """The aspects of a layer's expression, each with the part that it concerns."""
    if isinstance(layer, Original):
        return []
    if isinstance(layer, Blend):
        return [("blend", layer), *(found for part, _ in layer.parts for found in _inside(part))]
    if isinstance(layer, Halves):
        return [*_inside(layer.attention), *_inside(layer.ffn)]
    own: list[tuple[Aspect, Layer]] = [("scale" if isinstance(layer, Scaled) else "experts", layer)]
    return [*own, *_inside(layer.layer)]


def check_permitted(space: GGUFSpace, stack: Stack) -> None:
    """Raise UnsupportedError, with the reason, for what the architecture's row refuses or does not know."""
    file = space.file
    asked = aspects(stack, len(file.layers))
    for aspect in asked:
        reason = file.architecture.reason(aspect, file.get)
        if reason:
            raise UnsupportedError(f"{file.header.path}: refused for {file.arch}: {reason}")
    for aspect in ("scale", "experts"):
        for origin in sorted(asked.get(aspect, ()), key=lambda layer: (layer.source, layer.index)):
            space.check_known(origin)
    for origin in sorted(asked.get("halves", ()), key=lambda layer: (layer.source, layer.index)):
        space.check_halves(origin)
    check_sliced(file, stack)
