"""What all families share: taking every tensor once, reading a config with care, and the result of a part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints: `matches` looks at tensor names and shapes only; `build` makes the Model.

    `tiny(folder, variant, seed)` writes a random small checkpoint in the published layout, for each of `variants`.
    """

    name: str
    title: str
    matches: Callable[[Checkpoint], bool]
    build: Callable[[Checkpoint], Model]
    variants: tuple[str, ...] = ()
    tiny: Callable[[Path, str, int], None] | None = None
