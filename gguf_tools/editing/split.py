"""Splitting a GGUF into shards as llama.cpp's `gguf-split` does, and merging shards into one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.editing.copies import CopiedFile, copied_file, held_tensors
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, GGUFHeader
from gguf_tools.formats.gguf.split import COUNT, KEYS, MAX_PARTS, cut, joined_header, part_path, read_parts, split_keys


@dataclass(frozen=True)
class Reshaped:
    """The files that a model is in, those that it will be in, and notes, each a sentence."""

    sources: tuple[GGUFHeader, ...]
    files: tuple[CopiedFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def copied_bytes(self) -> int:
        """Bytes that are copied."""
        return sum(run.count for file in self.files for run in file.runs())

    def paths(self, out: Path) -> tuple[Path, ...]:
        """The paths of the files for an output named `out`, whose `.gguf` may be left out if there are several."""
        count = len(self.files)
        return (out,) if count == 1 else tuple(part_path(out, n, count) for n in range(count))


def plan_split(source: Path, *, max_size: int | None = None, max_tensors: int | None = None) -> Reshaped:
    """Shards of at most `max_size` bytes of tensor data or `max_tensors` tensors each; a larger tensor has a shard of its own.

    `source` may be any shard of a model that is split already. Source: `split_strategy` in tools/gguf-split of llama.cpp, which
    also counts tensor data alone; the first shard has all metadata besides. Raises InputError unless exactly one limit is given,
    and for limits that give one shard, or more than 65,535.
    """
    if (max_size is None) == (max_tensors is None):
        raise InputError("exactly one of --max-size and --max-tensors is expected; give one, such as --max-size 2G")
    parts = read_parts(source)
    header, held = joined_header(parts), held_tensors(parts)
    if max_size is not None:
        counts = cut([one.entry.nbytes for one in held], max_size, DEFAULT_ALIGNMENT)
        limit = f"--max-size {max_size:,} bytes"
    else:
        step = max_tensors or 1
        counts = [min(step, len(held) - start) for start in range(0, len(held), step)] or [0]
        limit = f"--max-tensors {step:,}"
    if not 1 < len(counts) <= MAX_PARTS:
        raise InputError(
            f"{source}: {len(held):,} tensors with {limit} give {_shards(len(counts))}; expected 2 to {MAX_PARTS:,}; give "
            f"a {'smaller' if len(counts) < 2 else 'larger'} limit"
        )
    own = {key: field for key, field in header.metadata.items() if key not in KEYS}
    files: list[CopiedFile] = []
    start = 0
    for number, count in enumerate(counts):
        metadata = split_keys(number, len(counts), len(held))
        first = number == 0
        files.append(
            copied_file(
                own | metadata if first else metadata,
                held[start : start + count],
                header.alignment if first else DEFAULT_ALIGNMENT,
            )
        )
        start += count
    return Reshaped(parts, tuple(files), _dropped(parts))


def _shards(count: int) -> str:
    return "one shard" if count == 1 else f"{count:,} shards"


def plan_merge(source: Path) -> Reshaped:
    """One file of all shards, of which `source` is any; the keys of splitting are left out.

    So splitting and merging give the same bytes again, if the file was padded as llama.cpp and gguf-py pad. Raises InputError if
    the model is not split, CheckpointError for a missing, misnamed or foreign shard.
    """
    parts = read_parts(source)
    if len(parts) == 1:
        raise InputError(
            f"{source}: is not split ({COUNT} is {parts[0].get(COUNT, 'missing')}); give a shard of a split model"
        )
    header = joined_header(parts)
    file = copied_file(dict(header.metadata), held_tensors(parts), header.alignment)
    return Reshaped(parts, (file,), _dropped(parts))


def _dropped(parts: Sequence[GGUFHeader]) -> tuple[str, ...]:
    """A note on the metadata of shards after the first, which llama.cpp does not read either."""
    notes = []
    for part in parts[1:]:
        others = [key for key in part.metadata if key not in KEYS]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            notes.append(
                f"{part.path.name} has metadata of its own ({', '.join(others[:3])}{more}), which llama.cpp does not read; "
                f"{'it is' if len(others) == 1 else 'they are'} left out"
            )
    return tuple(notes)
