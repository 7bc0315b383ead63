"""What a family is, and what each variant of its small checkpoints must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint

EXACT = 1e-11
"""Bound on the NMSE of an F32 file's logits: float32 sums in llama.cpp against float64 ones in the reference.

The product's own bar is 1e-9.
"""


CheckType = Callable[[Checkpoint, Model], str]
"""(checkpoint, its model by a family that does not declare its model_type) → a note on the code that computes the same.

Raises UnsupportedError where other code computes something else, or where there is none."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a small checkpoint must show. The conformance test holds it, and `docs/conformance.md` lists it.

    `target` and `rewrites` are the plan by names, the rewrites in order; without a `target` the checkpoint is refused
    whatever the user allows. `refused` is a part of what the refusal says: with a target, the checkpoint is converted
    with --allow-approximate. `notes` has a part of each note about the checkpoint. `text_only`: the checkpoint has a
    tower beside the text model, and is converted with --text-only. `nmse` bounds the error of the F32 file's logits.
    `oracle`: transformers' class for the config's model_type loads the folder as it is and computes the same logits.
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
    """A family of checkpoints: `matches` looks at tensor names and shapes only; `build` makes the Model.

    `model_types` are the values of config.json's model_type whose arithmetic this is, the most usual first; any other has to
    be proved or accepted by the user. A family without is of code that no config names, and takes any.
    `preferred_targets` are the llama.cpp architectures under which users expect the family, the most expected first: one of
    them is taken among the targets that add no more weights. `tiny(folder, variant, seed)` writes a random small
    checkpoint in the published layout, for each of `variants`.

    `by_type`: the tensors are those of another family too, and only the config tells that they are computed otherwise; the
    family is recognised where they fit and model_type is one of its own.
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
