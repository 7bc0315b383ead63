"""Surgery that only puts the whole layers of a GGUF file in another order: the header is rewritten, the data stay.

The names of the tensors change places, so all of them together keep their length; per-layer metadata goes with them. The
recipe needs a few bytes, which come out of the reserve that tinyq's files have (`tinyq.reserve`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gguf_tools.errors import InputError, OutputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field, TensorEntry, string
from gguf_tools.formats.gguf.split import COUNT
from gguf_tools.formats.journal import Patch, change
from gguf_tools.tokenizers.model_name import NAME
from surgery.algebra import Original, is_permutation, origins
from surgery.gguf.layers import LAYER
from surgery.gguf.rewrite import GGUFPlan
from surgery.recipe import Recipe

GAP = 64
"""Equal bytes between two changes from which on they are two patches."""
ROOM = 4096
"""Bytes by which a reserve may be changed."""


@dataclass(frozen=True)
class InPlace:
    """A change of a header; `recorded` says whether the file itself has room to say what was done."""

    plan: GGUFPlan
    patches: tuple[Patch, ...]
    recorded: bool


def plan_in_place(plan: GGUFPlan) -> InPlace:
    """The bytes that change; nothing has been written.

    Raises InputError where the recipe does more than reorder whole layers, OutputError where the header has no room for
    what has to be said.
    """
    path, header = plan.file.header.path, plan.file.header
    count = len(plan.file.layers)
    if not is_permutation(plan.stack, count):
        ops = plan.recipe.ops
        made = next(op for n, op in enumerate(ops, 1) if not is_permutation(Recipe(ops[:n]).apply(count), count))
        raise InputError(
            f"{made}: --in-place only puts whole layers in another order (swap, reverse, cycle, move); give OUT"
        )
    if COUNT in header.metadata:
        raise InputError(f"{path}: is one of several splits, which cannot be changed in place together; give OUT")
    if plan.notes:
        # Another name of the model needs room, and is no matter of the layers' order.
        changes = {key: value for key, value in plan.changes.items() if key not in (NAME, keys.NOTES)}
        plan = replace(plan, changes=changes, notes=())
    entries = _renamed(plan)
    new, recorded = _fitted(plan, plan.changes, entries), True
    if new is None and keys.SOURCE_DIGEST not in header.metadata:
        # A file that names no source promises nothing that the recipe would have to amend.
        changes = {key: value for key, value in plan.changes.items() if key != keys.SURGERY}
        new, recorded = _fitted(plan, changes, entries), False
    if new is None:
        raise OutputError(f"{path}: its header has no room for what has to be recorded; give OUT instead of --in-place")
    return InPlace(plan, differences(bytes(header.head), new), recorded)


def apply_in_place(planned: InPlace) -> None:
    """Change the file, safe against a crash at any moment."""
    change(planned.plan.file.header.path, planned.patches, str(planned.plan.recipe))


def _renamed(plan: GGUFPlan) -> list[TensorEntry]:
    """The entries as they lie, under their new names."""
    moved = {origins(layer)[0]: n for n, layer in enumerate(plan.stack) if isinstance(layer, Original)}
    entries = []
    for entry in plan.file.header.tensors:
        match = LAYER.fullmatch(entry.name)
        old = int(match[1]) if match else -1
        name = f"blk.{moved[old]}.{match[2]}" if match and old in moved else entry.name
        entries.append(replace(entry, name=name))
    return entries


def _fitted(plan: GGUFPlan, changes: dict[str, Field | None], entries: list[TensorEntry]) -> bytes | None:
    """The new header, as long as the old one, the reserve taking up the difference; None where there is no room."""
    header = plan.file.header
    reserve = header.get(keys.RESERVE)
    new = header.rewritten(changes, entries)
    excess = len(new) - header.data_offset
    if not excess:
        return new
    if not isinstance(reserve, str) or not -ROOM < excess <= len(reserve):
        return None
    return header.rewritten({**changes, keys.RESERVE: string(" " * (len(reserve) - excess))}, entries)


def differences(old: bytes, new: bytes) -> tuple[Patch, ...]:
    """Where two headers of one length differ, as few patches as `GAP` allows."""
    places = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    if not places.size:
        return ()
    breaks = np.flatnonzero(np.diff(places) > GAP)
    starts = [int(places[0]), *(int(places[n + 1]) for n in breaks)]
    stops = [*(int(places[n]) + 1 for n in breaks), int(places[-1]) + 1]
    return tuple(Patch(a, old[a:b], new[a:b]) for a, b in zip(starts, stops, strict=True))
