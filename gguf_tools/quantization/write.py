"""Executes a planned quantization in one streaming pass over the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gguf_tools.conversion.background import Background
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import pack_header, string
from gguf_tools.formats.gguf.made_from import digested
from gguf_tools.formats.gguf.source import GGUFTensor, gguf_digest
from gguf_tools.formats.gguf.writer import GGUFFile, write_blocks
from gguf_tools.formats.output import Check, atomic_outputs, check_set
from gguf_tools.machine import available_cores
from gguf_tools.progress import ByteProgress
from gguf_tools.quantization.plan import OutputPart, Quantization
from gguf_tools.tensors.blocks import NonFinite, Tally, tensor_blocks
from quant.encode import Block, ByteArray, Encoder
from quant.finite import first_nonfinite
from quant.narrowing import Narrowing
from quant.recipes import TypeChoice

COPY_BYTES = 1 << 22
"""Bytes per piece when copying a tensor of a type that ggml cannot decode (integers, doubles)."""


@dataclass(frozen=True)
class Quantized:
    """A finished quantization: the files, their total bytes, and by tensor name the sampled change by encoding and the number of
    weights that are not finite."""

    paths: tuple[Path, ...]
    bytes: int
    losses: Mapping[str, Narrowing]
    nonfinite: Mapping[str, NonFinite]


def execute(
    plan: Quantization,
    out: Path,
    *,
    force: bool = False,
    threads: int = 0,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
) -> Quantized:
    """Write the output; the parts get their final names together, when all are complete.

    `check` is called before they appear; if it raises, nothing is left.

    Raises InputError for a weight that is NaN or infinite (with the tensor's name), unless `allow_nonfinite` and its new type has
    those; OutputError if it cannot be written.
    """
    paths = plan.paths(out)
    check_room(plan, out, force)
    tally = Tally()
    sizes = [(path, part.size) for path, part in zip(paths, plan.parts, strict=True)]
    with (
        atomic_outputs(sizes, force=force, check=check) as streams,
        Encoder(threads or available_cores()) as encoder,
        Background(partial(gguf_digest, plan.sources[0].path)) as digest,
    ):
        for stream, part in zip(streams, plan.parts, strict=True):
            file = GGUFFile(stream, part.metadata, part.layout)
            write_blocks(file, encoder, _blocks(plan, part, allow_nonfinite), tally, progress)
            _copy(plan, part, file, progress, allow_nonfinite)
            file.finish()
        first = plan.parts[0]
        parts = (replace(first, metadata=digested(first.metadata, digest.result())), *plan.parts[1:])
        _write_headers(parts, streams)
        if len(streams) > 1:
            _sign(parts, streams)
    return Quantized(paths, plan.size, tally.losses, tally.nonfinite)


def check_room(plan: Quantization, out: Path, force: bool) -> None:
    """Raise OutputError if the output cannot be written or is part of the source, or if the disk is too small (`check_set`)."""
    check_set(plan.paths(out), [source.path for source in plan.sources], plan.size, force=force)


def _write_headers(parts: Sequence[OutputPart], streams: Sequence[BinaryIO]) -> None:
    """Overwrite the headers of finished files with those of `parts`, which are as long."""
    for stream, part in zip(streams, parts, strict=True):
        stream.seek(0)
        stream.write(pack_header(part.metadata, part.layout.entries, part.layout.alignment))


def _sign(parts: Sequence[OutputPart], streams: Sequence[BinaryIO]) -> None:
    """Overwrite the placeholder in each part's header with the set's id, a digest of everything that was written."""
    digest = hashlib.sha256()
    for stream in streams:
        stream.flush()
        stream.seek(0)
        while piece := stream.read(COPY_BYTES):
            digest.update(piece)
    signature = {keys.SPLIT_ID: string(digest.hexdigest())}
    _write_headers([replace(part, metadata={**part.metadata, **signature}) for part in parts], streams)


def _pairs(plan: Quantization, part: OutputPart, *, decodable: bool) -> list[tuple[TypeChoice, GGUFTensor]]:
    """A part's tensors that ggml can decode, or those that it cannot, in file order."""
    mine = slice(part.start, part.stop)
    pairs = zip(plan.choices[mine], plan.tensors[mine], strict=True)
    return [pair for pair in pairs if pair[1].is_numeric == decodable]


def _blocks(plan: Quantization, part: OutputPart, allow_nonfinite: bool) -> Iterator[Block]:
    """The blocks of a part's tensors that can be encoded."""
    for choice, tensor in _pairs(plan, part, decodable=True):
        yield from tensor_blocks(
            choice.name, choice.type, tensor, plan.importance.get(choice.name), allow_nonfinite=allow_nonfinite
        )


def _copy(plan: Quantization, part: OutputPart, file: GGUFFile, progress: ByteProgress, allow_nonfinite: bool) -> None:
    """Copy a part's other tensors."""
    for choice, tensor in _pairs(plan, part, decodable=False):
        start = 0
        for piece in _copied(tensor, allow_nonfinite):
            file.put(choice.name, start, piece)
            start += piece.nbytes
            progress(piece.nbytes)


def _copied(tensor: GGUFTensor, allow_nonfinite: bool) -> Iterator[ByteArray]:
    """The bytes of a tensor that ggml cannot decode (integers, doubles), and so cannot quantize, in pieces.

    Raises InputError for a double that is NaN or infinite, unless `allow_nonfinite`.
    """
    dtype = tensor.entry.type
    for start in range(0, tensor.entry.nbytes, COPY_BYTES):
        piece = tensor.read(start, min(COPY_BYTES, tensor.entry.nbytes - start))
        found = None if allow_nonfinite else first_nonfinite(piece, dtype)
        if found:
            row, column = divmod(start // dtype.block_bytes + found[0], tensor.columns)
            raise InputError(
                f"tensor {tensor.entry.name} holds {found[1]} at row {row}, column {column} (counted from 0); expected finite "
                "weights; repair the checkpoint, or keep them with --allow-nonfinite"
            )
        yield piece
