"""Layers of another checkpoint in place of, or among, a checkpoint's own: what both must have in common."""

from __future__ import annotations

from collections.abc import Iterator

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.values import Metadata
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from surgery.checkpoint.layers import LayerSource
from surgery.donors import Differences, model_differences, vocabulary_differences


def differences(base: LayerSource, donor: LayerSource, used: set[int], name: str) -> Differences:
    """What forbids the layers `used` of a donor, and what is only otherwise: hyperparameters, tokenizer, names of tensors."""
    found = model_differences(base.model, donor.model, used, name)
    if not found.forbidding:
        found += Differences(tuple(_names(base, donor, used, name)))
    return found + tokenizer_differences(base, donor, name)


def tokenizer_differences(base: LayerSource, donor: LayerSource, name: str) -> Differences:
    """Differences of the tokenizers; where a folder has none that can be read, a note says that they are not compared."""
    read: list[Metadata] = []
    for source in (base, donor):
        try:
            vocab_size = source.model.spec.vocab_size
            found = load_tokenizer(
                source.checkpoint.folder,
                vocab_size,
                config=source.checkpoint.config,
                drop_tokens=True,
                approximate=True,
            )
        except InputError as error:
            return Differences(notes=(f"the tokenizers of the model and of {name} were not compared ({error})",))
        read.append(found.metadata())
    return vocabulary_differences(read[0], read[1], name)


def _names(base: LayerSource, donor: LayerSource, used: set[int], name: str) -> Iterator[str]:
    """The used layers of the donor whose tensors no layer of the checkpoint has by these names, roles and shapes."""
    known = [_stored(base, n) for n in range(len(base.names.layers))]
    for index in sorted(used):
        stored = _stored(donor, index)
        if stored in known:
            continue
        nearest = min(known, key=lambda other: len(other.items() ^ stored.items()))
        rest = min({rest for rest, _ in nearest.items() ^ stored.items()})
        a, b = (found[rest][0] if rest in found else "missing" for found in (nearest, stored))
        yield f"{rest} is stored with shape {a}, and {b} in layer {index} of {name}"
        known.append(stored)


def _stored(source: LayerSource, index: int) -> dict[str, tuple[tuple[int, ...], frozenset[str]]]:
    """Shape and roles of a layer's tensors, by name without the layer's prefix; those without a role are not compared."""
    keys = source.names.layers[index]
    roles = {rest: source.names.roles.get(key, frozenset()) for rest, key in keys.items()}
    return {rest: (source.checkpoint.tensors[key].shape, roles[rest]) for rest, key in keys.items() if roles[rest]}
