"""The names of vision and audio towers in multimodal checkpoints."""

from __future__ import annotations

import re

TOWERS = {
    "vision tower": r"visual|vision_tower|vision_model|vision_encoder|image_newline|multi_modal_projector|mm_projector"
    r"|vision_projector|embed_vision|patch_merger",
    "audio tower": r"audio_tower|audio_model|audio_encoder|embed_audio|audio_projector",
}
"""Tower → pattern of the first component of its tensors' names, after an optional `model.`."""


def tower_of(name: str) -> str | None:
    """The tower that a tensor or module belongs to, or None."""
    for what, names in TOWERS.items():
        if re.fullmatch(rf"(model\.)?({names})(\..*)?", name):
            return what
    return None
