"""GGUF files in parts: `name-00001-of-00003.gguf` and its like.

Source: `llama_split_path`, `llama_model_loader` and `tools/gguf-split` of llama.cpp. The first part has all the metadata;
each part has three keys that say which one it is; a tensor lies in one part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field, GGUFHeader, Metadata, ValueType, align, i32, read_header, string

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS, keys.SPLIT_ID)
"""What a part says of itself, and no whole file does."""
MAX_PARTS = 65535
"""The keys that count parts have 16 bits."""

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_path(path: Path, number: int, count: int) -> Path:
    """Where part `number` (from 0) of `count` lies, for an output called `path` (or for any of its parts)."""
    match = _NAME.fullmatch(path.name)
    prefix = match["prefix"] if match else path.name.removesuffix(".gguf")
    return path.with_name(f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf")


def is_part_name(path: Path, out: Path) -> bool:
    """Whether a path is what some part of an output called `out` would be called."""
    match = _NAME.fullmatch(path.name)
    return match is not None and path.name == part_path(out, int(match["number"]) - 1, int(match["count"])).name


def sibling_parts(path: Path) -> tuple[Path, ...]:
    """A file and those that by their names are parts of the same model; nothing is opened."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return (path,)
    beside = (part_path(path, n, int(match["count"])) for n in range(min(int(match["count"]), MAX_PARTS)))
    return (path, *(other for other in beside if other.name != path.name and other.exists()))


def split_keys(number: int, count: int, tensors: int) -> Metadata:
    """What part `number` (from 0) of `count` says of itself; `tensors` are those of all parts together.

    The id of the set is a place holder, as long as it will be.
    """
    return {
        NUMBER: Field(ValueType.UINT16, number),
        COUNT: Field(ValueType.UINT16, count),
        TENSORS: i32(tensors),
        keys.SPLIT_ID: string("0" * 64),
    }


def read_parts(path: Path) -> tuple[GGUFHeader, ...]:
    """The headers of a GGUF file's parts, in order: one where it is not split. `path` may be any of the parts.

    Raises CheckpointError, naming the file, where a part is missing, is called something else, or does not belong here.
    """
    given = read_header(path)
    count, number = given.get(COUNT, 0), given.get(NUMBER, 0)
    if type(count) is not int or count < 2:
        return (given,)
    match = _NAME.fullmatch(path.name)
    if not match or (int(match["number"]) - 1, int(match["count"])) != (number, count):
        right = part_path(path, number, count).name if type(number) is int else f"NAME-00001-of-{count:05d}.gguf"
        raise CheckpointError(
            f"{path}: is one of several splits ({NUMBER} is {number}, {COUNT} is {count}), but its name does not say which; "
            f"rename it to {right}"
        )
    parts = tuple(given if n == number else _part(part_path(path, n, count), n, count) for n in range(count))
    _refuse_mixed(parts)
    seen: dict[str, Path] = {}
    for part in parts:
        for entry in part.tensors:
            if entry.name in seen:
                raise CheckpointError(
                    f"{part.path}: tensor {entry.name} is in {seen[entry.name].name} too; the parts do not agree"
                )
            seen[entry.name] = part.path
    stated = given.get(TENSORS, len(seen))
    if stated != len(seen):
        raise CheckpointError(
            f"{path}: {TENSORS} is {stated}, but the {count} parts hold {len(seen)}; fetch them again"
        )
    return parts


def _refuse_mixed(parts: Sequence[GGUFHeader]) -> None:
    """Raise CheckpointError for parts that tinyq wrote at different times: an interrupted run is completed by the next one."""
    ids = [part.get(keys.SPLIT_ID) for part in parts]
    other = next((n for n, found in enumerate(ids) if found != ids[0]), None)
    if other is not None:
        raise CheckpointError(
            f"{parts[other].path}: is not of the same model as {parts[0].path.name} ({keys.SPLIT_ID} is {_short(ids[other])}, "
            f"there {_short(ids[0])}); write or fetch all {len(parts)} parts again"
        )


def _short(value: object) -> str:
    return "missing" if value is None else f"{str(value)[:12]}…"


def _part(path: Path, number: int, count: int) -> GGUFHeader:
    if not path.exists():
        raise CheckpointError(f"{path}: missing; it is part {number + 1} of {count}; put all parts into one folder")
    header = read_header(path)
    found = header.get(NUMBER), header.get(COUNT, count)
    if found != (number, count):
        raise CheckpointError(
            f"{path}: does not say that it is part {number + 1} of {count} ({NUMBER} is {found[0]}, {COUNT} is {found[1]}); "
            "fetch it again"
        )
    return header


def joined_header(parts: Sequence[GGUFHeader]) -> GGUFHeader:
    """The first part's header with the entries of all parts and without the keys that say which part it is.

    The entries' offsets remain those within their own part.
    """
    if len(parts) == 1:
        return parts[0]
    metadata = {key: field for key, field in parts[0].metadata.items() if key not in KEYS}
    return replace(parts[0], metadata=metadata, tensors=tuple(entry for part in parts for entry in part.tensors))


def cut(sizes: Sequence[int], limit: int, alignment: int) -> list[int]:
    """Where to cut tensors of these bytes (in order) so that the data of no part exceeds `limit`: how many in each part.

    As `gguf-split --split-max-size`; a tensor that is larger than that has a part of its own.
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
