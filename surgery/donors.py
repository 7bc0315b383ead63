"""Donors as models, and whether a donor's layers may stand among those of another model.

The result has the tokenizer, the embeddings and the hyperparameters of the model that is operated on. A layer of a donor
means the same there only where all of these that it depends on are the donor's own too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.gguf.source import gguf_digest, open_gguf
from gguf_tools.formats.gguf.surgery import RecordedSource, RecordedSurgery
from gguf_tools.formats.gguf.values import Field
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.targets.registry import lift
from surgery.algebra import origins
from surgery.model import operate, rebuilt
from surgery.recipe import Recipe, parse_text

VOCABULARY = ("model", "pre", "tokens", "token_type", "scores", "merges")
"""Keys (after `tokenizer.ggml.`) of what a text's token ids depend on; others say how tokens are used."""
MOST = 6
"""The differences that an error names."""


@dataclass(frozen=True)
class Differences:
    """What forbids to take a donor's layers, and what only is the other model's: a sentence each."""

    forbidding: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Differences) -> Differences:
        return Differences(self.forbidding + other.forbidding, self.notes + other.notes)

    def refuse(self, name: str, path: Path) -> None:
        """Raise InputError in one line if there is anything that forbids."""
        if self.forbidding:
            more = [f"and {len(self.forbidding) - MOST} more"] if len(self.forbidding) > MOST else []
            said = "; ".join([*self.forbidding[:MOST], *more])
            raise InputError(f"{path}: layers of {name} cannot be taken: {said}")


def operate_recorded(model: Model, surgery: RecordedSurgery) -> Model:
    """The model after surgery that a GGUF records, for which the donors are opened again.

    Raises InputError where a donor is not where it was, or not what it was.
    """
    donors = {donor.name: recorded_model(donor) for donor in surgery.donors}
    return operate(model, parse_text(surgery.text), donors)


def operate_with_donors(model: Model, recipe: Recipe) -> Model:
    """The model after the recipe, whose donors are opened for it.

    Raises InputError where a donor's layers cannot stand in the model; tokenizers are not compared.
    """
    donors = {donor.name: donor_model(donor.path) for donor in recipe.donors}
    stack = recipe.apply(len(model.layers), {name: len(donor.layers) for name, donor in donors.items()})
    for donor in recipe.donors:
        used = {origin.index for layer in stack for origin in origins(layer) if origin.source == donor.name}
        model_differences(model, donors[donor.name], used, donor.name).refuse(donor.name, donor.path)
    return rebuilt(model, stack, donors)


def donor_model(path: Path) -> Model:
    """A checkpoint, or a GGUF's own weights, as a model."""
    if path.is_file() and is_gguf(path):
        return lift(open_gguf(path))
    return build_model(open_checkpoint(path), check_type=check_model_type)


def recorded_model(donor: RecordedSource) -> Model:
    """The model of a donor: a checkpoint's, or that which a GGUF was converted from, where it can be found, else its own weights.

    Raises CheckpointError where it is gone, or its digest is another.
    """
    # torch, which references run on, takes seconds to load.
    from gguf_tools.evaluation.reference_source import find_reference

    path = donor.path
    if not path.exists():
        raise CheckpointError(
            f"{path}: the source {donor.name} of the recipe is no longer there; give its place with --with {donor.name}=PATH"
        )
    if path.is_file() and is_gguf(path):
        if gguf_digest(path) != donor.digest:
            raise CheckpointError(f"{path}: is not, or no longer, what the recipe calls {donor.name}")
        found = find_reference(path, operate=operate_recorded).model
        if found is None:
            raise UnsupportedError(f"{path}: no family knows what {donor.name} of the recipe was made from")
        return found
    checkpoint = open_checkpoint(path)
    if not checkpoint.has_digest(donor.digest):
        raise CheckpointError(f"{path}: is not, or no longer, what the recipe calls {donor.name}")
    return build_model(checkpoint, check_type=check_model_type)


def vocabulary_differences(base: Mapping[str, Field], donor: Mapping[str, Field], name: str) -> Differences:
    """How the `tokenizer.*` metadata of a donor differs; the result keeps the model's own."""
    forbidding: list[str] = []
    notes: list[str] = []
    for key in sorted({key for key in (*base, *donor) if key.startswith("tokenizer.")}):
        a, b = (found[key].value if key in found else None for found in (base, donor))
        if a == b:
            continue
        short = key.removeprefix("tokenizer.").removeprefix("ggml.")
        if short in VOCABULARY:
            forbidding.append(f"{key} is {_shown(a, b)}, and {_shown(b, a)} in {name}")
        else:
            notes.append(f"{key} is {_shown(a, b)}, and {_shown(b, a)} in {name}; the result has the former")
    return Differences(tuple(forbidding), tuple(notes))


def _shown(value: Any, other: Any) -> str:
    """A value in few words; of a list the entry where it departs from the other."""
    if value is None:
        return "missing"
    if isinstance(value, tuple):
        if isinstance(other, tuple) and len(value) == len(other):
            n = next((n for n, pair in enumerate(zip(value, other, strict=True)) if pair[0] != pair[1]), 0)
            return f"{value[n]!r} at {n}"
        return f"of {len(value)} entries"
    return repr(value) if len(repr(value)) <= 60 else f"a text of {len(value)} characters"


def model_differences(base: Model, donor: Model, used: set[int], name: str) -> Differences:
    """How a donor's hyperparameters differ: those of the whole model, and those of the layers `used`."""
    found = []
    for key in ("vocab_size", "hidden", "embedding_scale", "logit_scale"):
        a, b = getattr(base.spec, key), getattr(donor.spec, key)
        if a != b:
            found.append(f"{key} is {a}, and {b} in {name}")
    known = set(base.spec.layers)
    for index in sorted(used):
        layer = donor.spec.layers[index]
        if layer not in known:
            apart = min((spec_differences(other, layer) for other in base.spec.layers), key=len)
            said = [f"{key} is {a}, and {b} in layer {index} of {name}" for key, a, b in apart]
            found += [sentence for sentence in said if sentence not in found]
            known.add(layer)
    notes = []
    if base.spec.context_length != donor.spec.context_length:
        a, b = base.spec.context_length, donor.spec.context_length
        notes.append(f"context_length is {a}, and {b} in {name}; the result has the former")
    return Differences(tuple(found), tuple(notes))


def spec_differences(a: Any, b: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """The fields (dotted) in which two specs differ, with both values; a part of another kind is one difference."""
    if a == b:
        return []
    if not is_dataclass(a) or type(a) is not type(b):
        first, second = (type(part).__name__ if is_dataclass(part) else repr(part) for part in (a, b))
        return [(place, first, second)]
    return [
        difference
        for field in fields(a)
        for difference in spec_differences(
            getattr(a, field.name), getattr(b, field.name), f"{place}.{field.name}" if place else field.name
        )
    ]
