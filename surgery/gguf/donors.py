"""Layers of another GGUF file in place of, or among, a file's own: what both must have in common, and its per-layer metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gguf_tools.formats.gguf import keys
from surgery.architectures.rules import WriteArray
from surgery.donors import Differences, vocabulary_differences
from surgery.gguf.layers import LayeredFile

OF_THE_FILE = ("block_count", "nextn_predict_layers", "vocab_size")
"""Keys (without prefix) that say how many layers or tokens there are, which other checks see to."""
HARMLESS = ("context_length",)
"""Keys of which the result keeps the file's own."""
SHARED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors outside the layers on which every layer depends."""
OUTER = frozenset(
    {
        *SHARED,
        *(
            f"{stem}.{part}"
            for stem in ("token_embd", "token_embd_norm", "token_types", "position_embd", "output_norm", "output")
            for part in ("weight", "bias", "scale", "input_scale")
        ),
    }
)
"""Tensors outside the layers that belong to no single layer."""


def differences(base: LayeredFile, donor: LayeredFile, used: set[int], name: str) -> Differences:
    """What forbids the layers `used` of a donor, and what is only otherwise: architecture, tokenizer, metadata, tensors."""
    if base.arch != donor.arch:
        return Differences((f"its architecture is {donor.arch}, that of {base.header.path} {base.arch}",))
    found = vocabulary_differences(base.header.metadata, donor.header.metadata, name)
    found += _hyperparameters(base, donor, name)
    forbidding = [*_outer(base, donor, name), *_tensors(base, donor, used, name)]
    for key in (keys.REWRITES, keys.APPROXIMATE):
        a, b = base.header.get(key), donor.header.get(key)
        if a != b:
            forbidding.append(f"{key} is {a}, and {b} in {name}")
    return found + Differences(tuple(forbidding))


def _hyperparameters(base: LayeredFile, donor: LayeredFile, name: str) -> Differences:
    """Differences of the architecture's metadata; values that each layer has of its own are not among them."""
    prefix = f"{base.arch}."
    apart = {*base.arrays, *donor.arrays, *OF_THE_FILE}
    both = {*base.header.metadata, *donor.header.metadata}
    stated = sorted(key.removeprefix(prefix) for key in both if key.startswith(prefix))
    forbidding: list[str] = []
    notes: list[str] = []
    for key in stated:
        a, b = base.get(key), donor.get(key)
        if a == b or key in apart:
            continue
        said = f"{prefix}{key} is {a}, and {b} in {name}"
        (notes if key in HARMLESS else forbidding).append(
            f"{said}; the result has the former" if key in HARMLESS else said
        )
    for key in sorted({*base.arrays, *donor.arrays}):
        if key not in base.arrays and _values(base, key) is None:
            forbidding.append(f"{prefix}{key} has a value a layer in {name} alone")
        elif _values(donor, key) is None:
            forbidding.append(f"{prefix}{key} has a value a layer, and none in {name}")
    return Differences(tuple(forbidding), tuple(notes))


def _outer(base: LayeredFile, donor: LayeredFile, name: str) -> Iterator[str]:
    """Differences of the tensors outside the layers that the layers depend on."""
    mine, theirs = ({**file.before, **file.after} for file in (base, donor))
    for key in sorted({*mine, *theirs}):
        a, b = mine.get(key), theirs.get(key)
        if key not in OUTER:
            yield f"{key} may belong to single layers, so that layers of two files cannot stand together"
        elif a and b and a.shape != b.shape and key != "output_norm.weight":
            yield f"{key} has shape {a.shape}, and {b.shape} in {name}"
        elif key in SHARED and not (a and b and (a.tensor.array() == b.tensor.array()).all()):
            yield f"{key} is not the same in {name}"


def _tensors(base: LayeredFile, donor: LayeredFile, used: set[int], name: str) -> Iterator[str]:
    """The used layers of the donor with tensors that no layer of the file has in these shapes."""
    known = [{key: piece.shape for key, piece in layer.items()} for layer in base.layers]
    for index in sorted(used):
        shapes = {key: piece.shape for key, piece in donor.layers[index].items()}
        if shapes in known:
            continue
        nearest = min(known, key=lambda other: len(other.items() ^ shapes.items()))
        key = min({key for key, _ in nearest.items() ^ shapes.items()})
        a, b = nearest.get(key, "missing"), shapes.get(key, "missing")
        yield f"{key} has shape {a}, and {b} in layer {index} of {name}"
        known.append(shapes)


def _values(file: LayeredFile, key: str) -> tuple[Any, ...] | None:
    """The value of each layer under a key that another file has an array for; None where the file does not say."""
    count = len(file.layers)
    if key in file.arrays:
        return file.arrays[key][:count]
    for p, values in file.properties.items():
        if isinstance(p.carry, WriteArray) and p.carry.key == key:
            return tuple(map(bool, values))
    stated = file.get(key)
    return None if stated is None or isinstance(stated, tuple) else (stated,) * count


def aligned(base: LayeredFile, donor: LayeredFile) -> LayeredFile:
    """The donor with its per-layer metadata under the keys that the file has them."""
    return replace(donor, arrays={key: _values(donor, key) or () for key in base.arrays})
