"""The text part of a checkpoint that also sees or hears: its tensors under the names of a text model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import TIE, ties

TOWERS = {
    "vision tower": r"visual|vision_tower|vision_model|vision_encoder|image_newline|multi_modal_projector|mm_projector"
    r"|vision_projector|embed_vision|patch_merger",
    "audio tower": r"audio_tower|audio_model|audio_encoder|embed_audio|audio_projector",
}
"""What lies beside the text model → the first part of its tensors' names, after a `model.` that some have."""

TEXT_PREFIXES = (("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.", ""))
"""Where the text model's tensors lie (transformers 5, MLX and older transformers, their output projection) → a text model's."""


def text_part(checkpoint: Checkpoint, *, text_only: bool) -> Checkpoint:
    """The text model alone, its config one level up where it was nested.

    Raises UnsupportedError for a tower unless `text_only`, which leaves it out with a note.
    """
    left_out: set[str] = set()
    notes = list(checkpoint.notes)
    for what, names in TOWERS.items():
        pattern = re.compile(rf"(model\.)?({names})(\..*)?")
        found = [name for name in checkpoint.tensors if pattern.fullmatch(name)]
        if found and not text_only:
            raise UnsupportedError(
                f"{checkpoint.path}: a {what} ({len(found)} of its tensors, such as {found[0]}) lies beside the text model, "
                "which alone is converted; leave it out with --text-only"
            )
        if found:
            notes.append(
                f"the {what} ({len(found)} of its tensors, such as {found[0]}) is left out: the text model alone is converted"
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
