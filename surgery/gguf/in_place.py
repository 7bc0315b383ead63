"""Reorders whole layers of a GGUF file in place: only the header is rewritten, the tensor data stay.

The names of the tensors are permuted, so their total length does not change; per-layer metadata are permuted too. The
recipe's text needs a few bytes, which are taken from the reserve in tinyq's files (`tinyq.reserve`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gguf_tools.errors import InputError, OutputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field, TensorEntry, string
from gguf_tools.formats.gguf.split import COUNT
from gguf_tools.formats.journal import Patch, change, differences
from gguf_tools.tokenizers.model_name import NAME
from surgery.algebra import Original, is_permutation, origins
from surgery.gguf.layers import LAYER
from surgery.gguf.outside import sliced
from surgery.gguf.rewrite import GGUFPlan
from surgery.recipe import Recipe

ROOM = 4096
"""Maximum change of the reserve's length, in bytes."""


@dataclass(frozen=True)
class InPlace:
    """A change of a header; `recorded` says whether the file has room to record the recipe."""

    plan: GGUFPlan
    patches: tuple[Patch, ...]
    recorded: bool


def plan_in_place(plan: GGUFPlan) -> InPlace:
    """Plan the bytes that change, without writing.

    Raises InputError if the recipe does more than reorder whole layers, OutputError if the header has no room for a recipe
    that must be recorded.
    """
    path, header = plan.file.header.path, plan.file.header
    count = len(plan.file.layers)
    if not is_permutation(plan.stack, count):
        ops = plan.recipe.ops
        donors = {name: len(donor.layers) for name, donor in plan.donors.items()}
        made = next(
            op for n, op in enumerate(ops, 1) if not is_permutation(Recipe(ops[:n]).apply(count, donors), count)
        )
        raise InputError(f"{made}: --in-place can only reorder whole layers (swap, reverse, cycle, move); give OUT")
    if COUNT in header.metadata:
        raise InputError(f"{path}: is part of a split file, which cannot be changed in place; give OUT")
    held = list(sliced(plan.file))
    if held:
        raise InputError(f"{path}: {held[0]} has a slice per layer, which would have to move with the layer; give OUT")
    if plan.file.assumed:
        raise InputError(f"{path}: a header changed in place cannot record --assume-independent-layers; give OUT")
    if plan.notes:
        # A repaired model name needs room too, and is independent of the order of layers.
        changes = {key: value for key, value in plan.changes.items() if key not in (NAME, keys.NOTES)}
        plan = replace(plan, changes=changes, notes=())
    entries = _renamed(plan)
    new, recorded = _fitted(plan, plan.changes, entries), True
    if new is None and not {keys.SOURCE_DIGEST, keys.SURGERY_SOURCES} & header.metadata.keys():
        # The recipe is only needed in files that record their source.
        changes = {key: value for key, value in plan.changes.items() if key != keys.SURGERY}
        new, recorded = _fitted(plan, changes, entries), False
    if new is None:
        raise OutputError(f"{path}: its header has no room to record the surgery; give OUT instead of --in-place")
    return InPlace(plan, differences(bytes(header.head), new), recorded)


def apply_in_place(planned: InPlace) -> None:
    """Change the file; a crash at any moment leaves a file that can be recovered."""
    change(planned.plan.file.header.path, planned.patches, str(planned.plan.recipe))


def _renamed(plan: GGUFPlan) -> list[TensorEntry]:
    """The entries in file order, with their new names."""
    moved = {origins(layer)[0].index: n for n, layer in enumerate(plan.stack) if isinstance(layer, Original)}
    entries = []
    for entry in plan.file.header.tensors:
        match = LAYER.fullmatch(entry.name)
        old = int(match[1]) if match else -1
        name = f"blk.{moved[old]}.{match[2]}" if match and old in moved else entry.name
        entries.append(replace(entry, name=name))
    return entries


def _fitted(plan: GGUFPlan, changes: dict[str, Field | None], entries: list[TensorEntry]) -> bytes | None:
    """The new header, padded by the reserve to the length of the old one; None if there is no room."""
    header = plan.file.header
    reserve = header.get(keys.RESERVE)
    new = header.rewritten(changes, entries)
    excess = len(new) - header.data_offset
    if not excess:
        return new
    if not isinstance(reserve, str) or not -ROOM < excess <= len(reserve):
        return None
    return header.rewritten({**changes, keys.RESERVE: string(" " * (len(reserve) - excess))}, entries)
