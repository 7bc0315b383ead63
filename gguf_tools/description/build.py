"""Builds a Model from a description and the checkpoint that it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf_tools.description.check import contradictions
from gguf_tools.description.derived import derived_field
from gguf_tools.description.fields import Reader, hints
from gguf_tools.description.placing import Placing, expert_count, is_stack
from gguf_tools.description.schema import (
    EXPERT,
    LAYER,
    VOCABULARY,
    Description,
    Source,
    layer_name,
    name_pattern,
    roles_of,
)
from gguf_tools.description.toml import MOST_LAYERS
from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.model.norms import Norm, Shape
from gguf_tools.model.spec import LayerSpec, Model, ModelSpec
from gguf_tools.sources.beside import front_matter, generation_defaults
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import shortened

NAME = "described"
"""The family of a described model."""


def build(description: Description, checkpoint: Checkpoint) -> Model:
    """The Model that the description makes of the checkpoint.

    Raises InputError naming the file's line for a wrong value, CheckpointError naming the tensor for one that is missing, has
    the wrong shape, or belongs to no role.
    """
    tensors = checkpoint.tensors
    present = [_present(description.inside, tensors, n) for n in range(_layer_count(description, checkpoint))]
    spec = read_spec(description, checkpoint, present)
    placing = Placing(description, checkpoint)
    outside = placing.placed(description.outside, spec.roles())
    layers = [
        placing.placed(sources, layer.roles(spec.hidden), n)
        for n, (layer, sources) in enumerate(zip(spec.layers, present, strict=True))
    ]
    _finish(description, checkpoint, [outside, *layers])
    front, notes = front_matter(checkpoint.folder)
    return Model(
        spec=spec,
        tensors=outside,
        layer_tensors=tuple(layers),
        family=NAME,
        notes=(*checkpoint.notes, f"the tensors are read as {description.path.name} describes them", *notes),
        front_matter=front,
        generation=generation_defaults(checkpoint.folder),
    )


def read_spec(description: Description, checkpoint: Checkpoint, present: Sequence[Sequence[Source]]) -> ModelSpec:
    """The spec; `present` has the sources of each layer that its tensors are there for. Raises as `build`."""
    for key in description.norm:
        if key not in hints(Norm):
            raise description.error(("norm", key), f"is not known; expected {', '.join(hints(Norm))}")
    outside = roles_of(description.outside)
    if "embedding" not in outside:
        raise description.error(("tensors", "embedding"), "is missing; expected the name of the token embedding")
    rows = Placing(description, checkpoint).stored(outside["embedding"]).shape
    if len(rows) != 2:
        raise description.error(("tensors", "embedding"), f"has shape {rows}; expected (vocabulary, hidden)")
    shapes = _shapes(description.outside, checkpoint, 0)
    layers = [_layer(description, checkpoint, n, sources) for n, sources in enumerate(present)]
    table = dict(description.model)
    tokens = table.pop(VOCABULARY, rows[0])
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens <= rows[0]:
        text = f"is {shortened(repr(tokens), 40)}; expected a whole number up to {rows[0]}, the rows of the embedding"
        raise description.error(("model", VOCABULARY), text)
    given: dict[str, Any] = {VOCABULARY: tokens, "hidden": rows[1], "layers": tuple(layers)}
    reader = Reader(description, lambda kind, name, place: derived_field(kind, name, place, shapes))
    if checkpoint.replaced:  # the user's --context-length
        table["context_length"] = next(checkpoint.config[key] for key in checkpoint.replaced)
    spec = reader.part(ModelSpec, table, ("model",), given)
    for place, text in contradictions(spec):
        raise description.error(place, text)
    return spec  # type: ignore[no-any-return]


def _layer(description: Description, checkpoint: Checkpoint, n: int, sources: Sequence[Source]) -> LayerSpec:
    """The spec of layer `n`, from `[layer]` and the overrides for it."""
    shapes = _shapes(sources, checkpoint, n)
    table: Mapping[str, Any] = description.layer
    for override in description.overrides:
        if n in override.only:
            table = merged(table, override.fields)
    reader = Reader(description, lambda kind, name, place: derived_field(kind, name, place, shapes))
    return reader.part(LayerSpec, table, ("layer",))  # type: ignore[no-any-return]


def merged(table: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the changes; a table of another kind replaces the one there."""
    out = dict(table)
    for key, value in change.items():
        before = out.get(key)
        same = isinstance(before, Mapping) and isinstance(value, Mapping)
        if same and value.get("kind", before.get("kind")) == before.get("kind"):  # type: ignore[union-attr]
            out[key] = merged(before, value)  # type: ignore[arg-type]
        else:
            out[key] = value
    return out


def _layer_count(description: Description, checkpoint: Checkpoint) -> int:
    """The number of layers that tensors exist for; CheckpointError for none, or where one in between is missing."""
    found = (source.layer(name) for name in checkpoint.tensors for source in description.inside)
    numbers = {number for number in found if number is not None}
    lacking = min(set(range(len(numbers) + 1)) - numbers)
    if not numbers or lacking < len(numbers) or len(numbers) > MOST_LAYERS:
        name = description.inside[0].tensor if description.inside else LAYER
        raise CheckpointError(
            f"{checkpoint.path}: no tensors of layer {lacking} ({layer_name(name, lacking)} …), as "
            f"{description.path.name} names them"
        )
    for override in description.overrides:
        if max(override.only) >= len(numbers):
            place = ("layers", "only")
            raise description.error(place, f"names layer {max(override.only)}, but there are {len(numbers)}")
    return len(numbers)


def _present(sources: Sequence[Source], tensors: Mapping[str, Tensor], n: int) -> list[Source]:
    return [source for source in sources if source.name(n) in tensors]


def _shapes(sources: Sequence[Source], checkpoint: Checkpoint, n: int) -> dict[str, Shape | None]:
    """The shape of each role, as far as its own tensor shows it; None for roles that share a tensor."""
    out: dict[str, Shape | None] = {}
    for source in sources:
        tensor = checkpoint.tensors.get(source.name(n))
        shape = None if tensor is None else tensor.shape
        if shape and source.transposed:
            shape = (*shape[:-2], *shape[:-3:-1])
        if shape and EXPERT in source.tensor:
            shape = (expert_count(source, checkpoint, n), *shape)
        if shape and not is_stack(source):
            shape = None if len([size for size in shape if size != 1]) > 2 else shape
        out |= dict.fromkeys(source.roles, shape if len(source.roles) == 1 else None)
    return out


def _finish(description: Description, checkpoint: Checkpoint, placed: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise for a source without a role in the model, and for a tensor that is neither taken nor listed as unused."""
    used = set().union(*placed)
    for place, sources in ((("tensors",), description.outside), (("tensors", "layer"), description.inside)):
        for source in sources:
            lacking = next((role for role in source.roles if role not in used), None)
            if lacking is not None:
                text = "is given a tensor, but the model as described has no such role; correct the choice that it belongs to"
                raise description.error((*place, lacking), text)
    left = left_over(description, checkpoint)
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.path}: tensor {left[0]}{more} has no role in {description.path.name}; give it one, or list it under "
            "unused if the model does not compute with it"
        )


def left_over(description: Description, checkpoint: Checkpoint) -> list[str]:
    """The tensors that the description does not name, sorted."""
    named = [*description.outside, *description.inside]
    patterns = [name_pattern(name) for name in (*(source.tensor for source in named), *description.unused)]
    return sorted(name for name in checkpoint.tensors if not any(pattern.fullmatch(name) for pattern in patterns))


def problems(description: Description, checkpoint: Checkpoint) -> Iterator[str]:
    """What keeps the description from being a Model: the first error, and every tensor without a role."""
    try:
        build(description, checkpoint)
    except InputError as error:
        yield str(error)
        for name in left_over(description, checkpoint):
            shape = "×".join(map(str, checkpoint.tensors[name].shape))
            line = f"tensor {name} ({shape}) has no role"
            if name not in str(error):
                yield shortened(line, 200)
