"""Changing the header of a file in its own room: the data section stays where it is.

Readers find the data section at the end of the header, rounded up to the alignment, so the new header must end where the old
one does. What it lacks is filled by the value of `tinyq.reserve`, spaces; what it needs is taken from them and from the padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gguf_tools.editing.copies import CopiedFile
from gguf_tools.editing.plan import EditPlan
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import ALIGNMENT_KEY, Field, GGUFHeader, TensorEntry, ValueType, pack_header, string
from gguf_tools.formats.gguf.values import packed_text
from gguf_tools.formats.journal import Patch, differences

EMPTY = len(packed_text(keys.RESERVE)) + 4 + 8
"""Bytes of a reserve of no spaces: its key, its type and its length."""
SHORT = EMPTY - 8 + 1
"""Bytes of a reserve of one byte, which fills a gap that is too narrow for a text."""
MOST_PATCHED = 24 << 20
"""Most bytes that a change in the header's room writes: the journal has them before and after, in hexadecimal."""
MOST_RECORDED = 2 * MOST_PATCHED
"""Most bytes of the old and the new header together, where the file is rewritten."""


@dataclass(frozen=True)
class HeaderChange:
    """The bytes of one file's header that change.

    `way` is "header" for a change in the header's own room, and "rewritten" for a header of another length, by one patch of the
    whole header, which takes a pass over the file.
    """

    header: GGUFHeader
    patches: tuple[Patch, ...]
    way: Literal["header", "rewritten"] = "header"

    @property
    def bytes(self) -> int:
        """The number of bytes that are written."""
        return sum(len(patch.new) for patch in self.patches)


def plan_in_place(plan: EditPlan) -> HeaderChange | None:
    """The change of the one header that differs, or None if it has no room, or if several files or the data would change."""
    differs = plan.differs
    if len(differs) > 1:
        return None
    number = differs[0] if differs else 0
    header, file = plan.parts[number], plan.files[number]
    if header.alignment != file.layout.alignment:
        return None
    old = bytes(header.head)
    new = fitted(header, file) if differs else old
    # A file without tensors may end before its header's padding.
    if new is None or new[len(old) :].strip(b"\0"):
        return None
    change = HeaderChange(header, differences(old, new[: len(old)]))
    return change if change.bytes <= MOST_PATCHED else None


def fitted(header: GGUFHeader, file: CopiedFile) -> bytes | None:
    """The new header, as long as the old one; None if it has no room.

    A reserve that the file has is kept as long as the padding allows, so that what did not move need not be written.
    """
    entries, alignment, room = file.layout.entries, header.alignment, header.data_offset
    without = {key: field for key, field in file.metadata.items() if key != keys.RESERVE}
    length = _length(without, entries)
    old = header.get(keys.RESERVE)
    gap = room - length
    if not isinstance(old, str) and 0 <= gap < alignment:
        return pack_header(without, entries, alignment)
    reserve = _reserve(gap, alignment, len(old) if isinstance(old, str) else 0)
    if reserve is None:
        return pack_header(without, entries, alignment) if 0 <= gap < alignment else None
    metadata = {**file.metadata, keys.RESERVE: reserve}
    return pack_header(metadata, entries, alignment)


def _reserve(gap: int, alignment: int, spaces: int) -> Field | None:
    """A reserve that leaves less than `alignment` bytes of the gap, of `spaces` spaces if it may be so; None if none fits."""
    most = gap - EMPTY
    if most >= 0:
        return string(" " * min(max(spaces, most - alignment + 1, 0), most))
    return Field(ValueType.UINT8, 0) if SHORT <= gap < SHORT + alignment else None


def _length(metadata: Mapping[str, Field], entries: Sequence[TensorEntry]) -> int:
    """Bytes of a header before its padding."""
    return len(pack_header(metadata, entries, 1))


def plan_rewrite(plan: EditPlan) -> HeaderChange:
    """The change of the one header that differs, by writing its file anew.

    Raises InputError if the headers of several shards would change, or the places of the tensors, or if the header is too large
    for an undo record.
    """
    differs = plan.differs
    if len(differs) > 1:
        names = ", ".join(plan.parts[n].path.name for n in differs[:3])
        raise InputError(
            f"{plan.path}: {len(differs)} shards would change ({names}); --in-place changes one file; give OUT"
        )
    header, file = plan.parts[differs[0]], plan.files[differs[0]]
    if header.alignment != file.layout.alignment:
        raise InputError(
            f"{header.path}: with {ALIGNMENT_KEY} {file.layout.alignment} all tensors move, which --in-place cannot do; give OUT"
        )
    old, new = bytes(header.head), pack_header(file.metadata, file.layout.entries, header.alignment)
    if len(old) + len(new) > MOST_RECORDED:
        raise InputError(
            f"{header.path}: its header has {len(old):,} bytes, too many for a record to undo the change with; give OUT"
        )
    return HeaderChange(header, (Patch(0, old, new),), "rewritten")
