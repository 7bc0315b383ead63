"""Describes a checkpoint: from names and shapes alone, or with what golden logits settle."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.description.assignment import Assignment, assign
from gguf_tools.description.choices import Choices
from gguf_tools.description.decoder import decoder
from gguf_tools.description.notes import candidates
from gguf_tools.description.schema import KeyPath
from gguf_tools.description.structure import find_structure
from gguf_tools.description.write import Described, description_text
from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.text import shortened

CONTEXTS = ("max_position_embeddings", "n_positions", "block_size", "max_seq_len", "context_length", "n_ctx", "seq_len")
"""Keys of configs with the number of positions."""
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Found:
    """A checkpoint's structure with the places of its tensors, and the number of positions (`stated` by somebody or assumed)."""

    assignment: Assignment
    context: int
    stated: bool

    @property
    def left(self) -> tuple[str, ...]:
        """The tensors, or their patterns, that have no place."""
        outside = self.assignment.outside
        inside = (name for group in self.assignment.groups for name in group.left)
        computed = self.assignment.structure.computed
        return tuple(dict.fromkeys((*computed, *outside.copies, *outside.left, *inside)))


def find(checkpoint: Checkpoint, vocabulary: int | None = None, context: int | None = None) -> Found:
    """What names and shapes tell; `vocabulary` and `context` are the numbers of tokens and positions, where known.

    Raises UnsupportedError if the layers or matrices match nothing, or if TOML cannot hold a tensor's name.
    """
    broken = next((name for name in checkpoint.tensors if shortened(name, len(name)) != name), None)
    if broken is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: the name of tensor {shortened(broken)} is not valid Unicode, which TOML cannot hold; rename it"
        )
    structure = find_structure(checkpoint, vocabulary)
    assignment = assign(structure, checkpoint)
    config = (checkpoint.config.get(key) for key in CONTEXTS)
    stated = context or next((value for value in config if type(value) is int and 0 < value < 1 << 31), None)
    table = assignment.outside.positions
    rows = next((slot.squeezed[0] for slot in structure.outside if slot.name == table), None)
    return Found(assignment, stated or rows or DEFAULT_CONTEXT, bool(stated or rows))


def text_of(checkpoint: Checkpoint, found: Found, choices: Choices, *, solved: bool, head: tuple[str, ...] = ()) -> str:
    """The description that the choices make, as TOML; unless `solved`, with the candidates of what shapes do not tell."""
    made = decoder(found.assignment, choices, found.context)
    notes: dict[KeyPath, str] = {} if solved else candidates(found.assignment, choices, made.spec)
    if not found.stated:
        notes[("model", "context_length")] = "not in the tensors: put the number of positions it was trained for"
    structure, spec = found.assignment.structure, made.spec
    kinds = f"{structure.count} layers, hidden size {structure.hidden}, {structure.vocabulary} tokens"
    lines = [f"{checkpoint.path.name}: {kinds}, {'tied' if spec.tied else 'not tied'}.", *head]
    described = Described(
        spec=spec,
        outside=made.outside,
        inside=made.inside,
        unused=found.left,
        notes=notes,
        head=lines,
        rows=structure.rows,
    )
    return description_text(described)
