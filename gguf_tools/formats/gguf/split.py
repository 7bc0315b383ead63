"""Split GGUF models: shards named `NAME-00001-of-00003.gguf`.

Source: `llama_split_path`, `llama_model_loader` and `tools/gguf-split` of llama.cpp. The first shard has all the metadata;
each shard has three keys that give its number, the number of shards and of tensors; each tensor is in exactly one shard.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gguf_tools.errors import CheckpointError, OutputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field, GGUFHeader, Metadata, ValueType, align, i32, read_header, string
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.formats.remote import present

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS, keys.SPLIT_ID)
"""The keys that only a shard has; an unsplit file has none of them."""
MAX_PARTS = 65535
"""Most shards: `split.no` and `split.count` are 16-bit."""

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_path(path: Path, number: int, count: int) -> Path:
    """The path of shard `number` (from 0) of `count`, for an output named `path` (or for the path of any of its shards).

    Raises OutputError for a path without a name, such as the current folder.
    """
    if not path.name:
        raise OutputError(f"{path}: is a folder; expected a file; give the path of the file to write")
    match = _NAME.fullmatch(path.name)
    prefix = match["prefix"] if match else path.name.removesuffix(".gguf")
    return path.with_name(f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf")


def is_part_name(path: Path, out: Path) -> bool:
    """Whether `path` has the name of some shard of an output named `out`; folders are not compared."""
    match = _NAME.fullmatch(path.name)
    return match is not None and path.name == part_path(out, int(match["number"]) - 1, int(match["count"])).name


def sibling_parts(path: Path) -> tuple[Path, ...]:
    """`path`, then the existing files whose names make them shards of the same model; no file is opened."""
    return (path, *(other for other in all_parts(path) if other.name != path.name and other.exists()))


def all_parts(path: Path) -> tuple[Path, ...]:
    """The paths of all shards of the model that `path` is one of, by its name; `path` alone if its name is no shard's."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return (path,)
    return tuple(part_path(path, n, int(match["count"])) for n in range(min(int(match["count"]), MAX_PARTS)))


def split_keys(number: int, count: int, tensors: int) -> Metadata:
    """The keys of shard `number` (from 0) of `count`; `tensors` counts the tensors of all shards.

    `tinyq.split.id` is a placeholder of the final length, overwritten when all shards are written.
    """
    return {
        NUMBER: Field(ValueType.UINT16, number),
        COUNT: Field(ValueType.UINT16, count),
        TENSORS: i32(tensors),
        keys.SPLIT_ID: string("0" * 64),
    }


def read_parts(path: Path) -> tuple[GGUFHeader, ...]:
    """The headers of a model's shards, in order; one header if it is not split. `path` may be any of the shards.

    Raises CheckpointError, naming the file, if a shard is missing, misnamed, belongs to another model, or is a symbolic link to a
    file outside the folder: only the name of the given file is the user's.
    """
    given = read_header(path)
    count, number = given.get(COUNT, 0), given.get(NUMBER, 0)
    if type(count) is not int or count < 2:
        return (given,)
    match = _NAME.fullmatch(path.name)
    if not match or (int(match["number"]) - 1, int(match["count"])) != (number, count):
        right = part_path(path, number, count).name if type(number) is int else f"NAME-00001-of-{count:05d}.gguf"
        raise CheckpointError(
            f"{path}: is a shard of a split model ({NUMBER} is {number}, {COUNT} is {count}), but its name does not match; "
            f"rename it to {right}"
        )
    parts = tuple(given if n == number else _part(part_path(path, n, count), n, count) for n in range(count))
    _refuse_mixed(parts)
    seen: dict[str, Path] = {}
    for part in parts:
        for entry in part.tensors:
            if entry.name in seen:
                raise CheckpointError(
                    f"{part.path}: tensor {entry.name} is also in {seen[entry.name].name}; download all shards again"
                )
            seen[entry.name] = part.path
    stated = given.get(TENSORS, len(seen))
    if stated != len(seen):
        raise CheckpointError(
            f"{path}: {TENSORS} is {stated}, but the {count} shards hold {len(seen)} tensors; download them again"
        )
    return parts


def _refuse_mixed(parts: Sequence[GGUFHeader]) -> None:
    """Raise CheckpointError for shards that tinyq wrote in different runs (their `tinyq.split.id` differ)."""
    ids = [part.get(keys.SPLIT_ID) for part in parts]
    other = next((n for n, found in enumerate(ids) if found != ids[0]), None)
    if other is not None:
        raise CheckpointError(
            f"{parts[other].path}: belongs to another model than {parts[0].path.name} ({keys.SPLIT_ID} is {_short(ids[other])}, "
            f"{_short(ids[0])} expected); write or download all {len(parts)} shards again"
        )


def _short(value: object) -> str:
    return "missing" if value is None else f"{str(value)[:12]}…"


def _part(path: Path, number: int, count: int) -> GGUFHeader:
    """The header of a part that another one implies; CheckpointError where it is missing, elsewhere, or another part."""
    if not present(path):
        raise CheckpointError(f"{path}: missing; it is shard {number + 1} of {count}; put all shards into one folder")
    refuse_links_out(path.parent, [path])
    header = read_header(path)
    found = header.get(NUMBER), header.get(COUNT, count)
    if found != (number, count):
        raise CheckpointError(
            f"{path}: is named as shard {number + 1} of {count}, but {NUMBER} is {found[0]} and {COUNT} is {found[1]}; "
            "download it again"
        )
    return header


def joined_header(parts: Sequence[GGUFHeader]) -> GGUFHeader:
    """The first shard's header with the tensor entries of all shards and without the `split.*` keys.

    Each entry's offset stays relative to the data section of its own shard.
    """
    if len(parts) == 1:
        return parts[0]
    metadata = {key: field for key, field in parts[0].metadata.items() if key not in KEYS}
    return replace(parts[0], metadata=metadata, tensors=tuple(entry for part in parts for entry in part.tensors))


def cut(sizes: Sequence[int], limit: int, alignment: int) -> list[int]:
    """The number of tensors in each shard, so that no shard has more than `limit` bytes of data.

    `sizes` are the tensors' bytes, in order. Same rule as `gguf-split --split-max-size`; a tensor larger than `limit` gets a
    shard of its own.
    """
    counts = [0]
    filled = 0
    for size in (align(size, alignment) for size in sizes):
        if counts[-1] and filled + size > limit:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += size
    return counts
