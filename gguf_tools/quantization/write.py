"""Executes a planned quantization in one streaming pass over the source."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from gguf_tools.errors import OutputError
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.formats.gguf.writer import write_gguf
from gguf_tools.formats.output import atomic_output, check_output
from gguf_tools.machine import available_cores
from gguf_tools.progress import ByteProgress
from gguf_tools.quantization.plan import OutputPart, Quantization
from gguf_tools.tensors.blocks import tensor_blocks
from quant.encode import ByteArray, Encoder, Narrowing, can_decode
from quant.recipes import TypeChoice

COPY_BYTES = 1 << 22
"""Bytes per piece when copying a tensor of a type that ggml cannot decode (integers, doubles)."""


@dataclass(frozen=True)
class Quantized:
    """A finished quantization: the files, their total bytes, and by tensor name the sampled change by encoding."""

    paths: tuple[Path, ...]
    bytes: int
    losses: Mapping[str, Narrowing]


def execute(
    plan: Quantization, out: Path, *, force: bool = False, threads: int = 0, progress: ByteProgress = lambda _: None
) -> Quantized:
    """Write the output; the parts get their final names only when all are complete.

    Raises InputError for a weight that is NaN or infinite (with the tensor's name), OutputError if it cannot be written.
    """
    paths = plan.paths(out)
    check_outputs(plan, out, force)
    losses: dict[str, Narrowing] = {}
    with contextlib.ExitStack() as stack, Encoder(threads or available_cores()) as encoder:
        # The first part is renamed last: llama.cpp does not load the others without it.
        streams = [
            stack.enter_context(atomic_output(path, force=force, size=part.size))
            for path, part in zip(paths, plan.parts, strict=True)
        ]
        for stream, part in zip(streams, plan.parts, strict=True):
            write_gguf(stream, part.metadata, part.layout, _pieces(plan, part, encoder, losses), progress)
    return Quantized(paths, plan.size, losses)


def check_outputs(plan: Quantization, out: Path, force: bool) -> None:
    """Raise OutputError if a part cannot be written, would overwrite the source, or the disk is too small."""
    for path in plan.paths(out):
        if path.exists() and any(path.samefile(source.path) for source in plan.sources):
            raise OutputError(f"{path}: is the source itself, which is never changed; give another name")
        check_output(path, force)
    free = shutil.disk_usage(out.parent).free
    if plan.size > free:
        raise OutputError(
            f"{out}: needs {plan.size:,} bytes, but the disk has {free:,} free; make room or write elsewhere"
        )


def _pieces(
    plan: Quantization, part: OutputPart, encoder: Encoder, losses: dict[str, Narrowing]
) -> Iterator[tuple[str, ByteArray]]:
    """A part's data in file order as (tensor name, bytes); sums the change by encoding in `losses` by tensor name."""
    mine = slice(part.start, part.stop)
    pairs = zip(plan.choices[mine], plan.tensors[mine], strict=True)
    for decodable, group in groupby(pairs, lambda pair: can_decode(pair[1].entry.type)):
        if decodable:
            yield from _encoded(plan, group, encoder, losses)
        else:
            for choice, tensor in group:
                yield from ((choice.name, piece) for piece in _copied(tensor))


def _encoded(
    plan: Quantization,
    pairs: Iterable[tuple[TypeChoice, GGUFTensor]],
    encoder: Encoder,
    losses: dict[str, Narrowing],
) -> Iterator[tuple[str, ByteArray]]:
    """Encoded blocks of rows of the tensors in `pairs` as (tensor name, bytes); adds to `losses` as `_pieces`."""
    blocks = (
        block
        for choice, tensor in pairs
        for block in tensor_blocks(choice.name, choice.type, tensor, plan.importance.get(choice.name))
    )
    for encoded in encoder.encode(blocks):
        if encoded.loss:
            losses[encoded.name] = losses.get(encoded.name, Narrowing()) + encoded.loss
        yield encoded.name, encoded.raw


def _copied(tensor: GGUFTensor) -> Iterator[ByteArray]:
    """The bytes of a tensor that ggml cannot decode, and so cannot quantize, in pieces."""
    for start in range(0, tensor.entry.nbytes, COPY_BYTES):
        yield tensor.read(start, min(COPY_BYTES, tensor.entry.nbytes - start))
