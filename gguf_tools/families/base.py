"""The Family class, and Expected: the test expectations for each variant of a family's small checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint

EXACT = 1e-11
"""Bound on the NMSE of an F32 file's logits: float32 sums in llama.cpp against float64 sums in the reference.

This is for tests; tinyq itself calls a conversion exact up to an NMSE of 1e-9.
"""


CheckType = Callable[[Checkpoint, Model], str]
"""(checkpoint, its Model built by a family that does not declare the checkpoint's model_type) → a note.

The note names the code that was run and gave the same logits. Raises UnsupportedError if the logits differ, or if there is
no code to run."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What converting a small checkpoint must give. The conformance test checks it, and `docs/conformance.md` lists it.

    `target` and `rewrites` (in order) are the names in the plan; an empty `target` means that the checkpoint is refused
    even with --allow-approximate. `refused` is a substring of the error; if `target` is set too, the checkpoint is
    converted with --allow-approximate. `notes` holds a substring of each note on the checkpoint. `text_only`: the
    checkpoint has a vision tower and is converted with --text-only. `nmse` bounds the error of the F32 file's logits.
    `oracle`: the transformers class for the config's model_type loads the folder unchanged and gives the same logits.
    """

    target: str = ""
    rewrites: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    text_only: bool = False
    refused: str = ""
    nmse: float = EXACT
    oracle: bool = True

    @property
    def approximate(self) -> bool:
        """Whether the checkpoint is converted only with --allow-approximate."""
        return bool(self.refused and self.target)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints: `matches` looks at tensor names and shapes only; `build` returns the Model.

    `model_types` are the values of model_type in config.json that this family implements, the most common first. Any other
    model_type must be verified by `CheckType` or accepted by the user. An empty tuple accepts every model_type (for code
    whose configs name none). `preferred_targets` are the llama.cpp architectures that users expect for the family, in order
    of preference; they win over other targets that add no more weights. `tiny(folder, variant, seed)` writes a small
    random checkpoint in the published layout for each variant in `variants`.

    `by_type`: another family has the same tensors, and only the config shows that the computation differs; the family is
    recognised if the tensors match and model_type is one of its own, or if `bare` tells a checkpoint without a config as its own.
    """

    name: str
    title: str
    matches: Callable[[Checkpoint], bool]
    build: Callable[[Checkpoint], Model]
    model_types: tuple[str, ...] = ()
    preferred_targets: tuple[str, ...] = ()
    variants: Mapping[str, Expected] = field(default_factory=dict)
    tiny: Callable[[Path, str, int], None] | None = None
    by_type: bool = False
    bare: Callable[[Checkpoint], bool] | None = None
