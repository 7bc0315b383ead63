"""The text model of a multimodal checkpoint, with the tensor names and config of a text-only checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tower_names import TOWERS
from gguf_tools.sources.tying import TIE, ties

TEXT_PREFIXES = (("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.", ""))
"""Pairs (prefix of the text model's tensors, prefix in a text-only checkpoint): transformers 5; MLX and older transformers; the
output projection of these."""


def text_part(checkpoint: Checkpoint, *, text_only: bool) -> Checkpoint:
    """The text model alone, with its nested `text_config` merged into the top level of the config.

    A vision or audio tower is left out with a note if `text_only`; otherwise it raises UnsupportedError.
    """
    left_out: set[str] = set()
    notes = list(checkpoint.notes)
    for what, names in TOWERS.items():
        pattern = re.compile(rf"(model\.)?({names})(\..*)?")
        found = [name for name in checkpoint.tensors if pattern.fullmatch(name)]
        if found and not text_only:
            raise UnsupportedError(
                f"{checkpoint.path}: has a {what} ({len(found)} tensors, such as {found[0]}), but only the text model can be "
                "converted; leave it out with --text-only"
            )
        if found:
            notes.append(
                f"the {what} ({len(found)} tensors, such as {found[0]}) is left out: only the text model is converted"
            )
        left_out.update(found)
    tensors = {_plain(name): tensor for name, tensor in checkpoint.tensors.items() if name not in left_out}
    return replace(checkpoint, tensors=tensors, config=_flat(checkpoint.config), notes=tuple(notes))


def _plain(name: str) -> str:
    for prefix, plain in TEXT_PREFIXES:
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def _flat(config: Mapping[str, object]) -> Mapping[str, object]:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    outer = {key: value for key, value in config.items() if not key.endswith("_config") or key == "quantization_config"}
    merged = {**outer, **text}
    return {**merged, TIE: True} if ties(config) else merged
