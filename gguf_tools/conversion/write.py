"""Carries out a planned conversion in one streaming pass; on failure no output is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.conversion.background import Background
from gguf_tools.conversion.plan import Conversion
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import (
    Field,
    Metadata,
    pack_header,
    string,
)
from gguf_tools.formats.gguf.surgery import sources_metadata
from gguf_tools.formats.gguf.writer import GGUFFile, write_blocks
from gguf_tools.formats.output import Check, atomic_output, check_outputs
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.inputs import source_files
from gguf_tools.tensors.blocks import NonFinite, Tally, tensor_blocks
from gguf_tools.tokenizers.vocabulary import Tokenizer
from quant.encode import Block, Encoder
from quant.narrowing import Narrowing


@dataclass(frozen=True)
class Converted:
    """A finished conversion: the file, its size in bytes, and the effect of narrowing on a sample of the weights.

    The effect is given per ggml type and per tensor; non-finite weights are counted per tensor over all weights."""

    path: Path
    bytes: int
    losses: dict[str, Narrowing]
    by_tensor: dict[str, Narrowing]
    nonfinite: dict[str, NonFinite]


def execute(
    conversion: Conversion,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    prove_header: Callable[[Path, Tokenizer], None] | None = None,
    prove: Callable[[Path, Tokenizer], None] | None = None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
) -> Converted:
    """Write a temporary file and rename it to `out` when it is complete.

    `prove_header` is called with the temporary file and the tokenizer when its header is written and its tensors are zeros still,
    so that a vocabulary that llama.cpp reads differently is noticed before the weights are read; `prove` with the complete file,
    then `check`. If one raises, no file is left. With `allow_nonfinite`, NaN and infinity are written if the type can hold them.
    Raises InputError for non-finite weights otherwise, OutputError if `out` cannot be written.
    """
    checkpoint = conversion.checkpoint
    inputs = (*checkpoint.weight_files, *source_files(checkpoint.path), conversion.tokenizer.path)
    check_outputs({"OUT": out}, inputs, force=force)
    metadata = placed_metadata(conversion, out)
    tally = Tally()
    size = conversion.layout.size(metadata)
    with (
        atomic_output(out, force=force, size=size, check=check) as stream,
        Background(checkpoint.digest) as digest,
    ):
        # The source is hashed in the background; the fixed-width placeholder is overwritten once the digest is known.
        file = GGUFFile(stream, metadata, conversion.layout)
        if prove_header:
            prove_header(Path(stream.name), conversion.tokenizer)
        with Encoder(threads) as encoder:
            write_blocks(file, encoder, _blocks(conversion, allow_nonfinite), tally, progress)
        file.finish()
        metadata[keys.SOURCE_DIGEST] = string(digest.result())
        stream.seek(0)
        stream.write(pack_header(metadata, conversion.layout.entries, conversion.layout.alignment))
        stream.flush()
        if prove:
            prove(Path(stream.name), conversion.tokenizer)
    by_type: dict[str, Narrowing] = {}
    for choice in conversion.choices:
        if choice.name in tally.losses:
            by_type[choice.type.name] = by_type.get(choice.type.name, Narrowing()) + tally.losses[choice.name]
    return Converted(out, size, by_type, tally.losses, tally.nonfinite)


def placed_metadata(conversion: Conversion, out: Path) -> Metadata:
    """The metadata of a file at `out`, with a placeholder of the same length for the source's digest."""
    metadata = conversion.metadata | {
        keys.SOURCE_PATH: _relative(conversion.source, out),
        keys.SOURCE_DIGEST: string("0" * 64),
    }
    if conversion.tokenizer_folder:
        metadata[keys.TOKENIZER_PATH] = _relative(conversion.tokenizer_folder, out)
    return metadata | sources_metadata(conversion.layer_sources, out.parent)


def _relative(path: Path, out: Path) -> Field:
    """`path` relative to the output's folder, so that both can be moved together."""
    return string(Path(os.path.relpath(path, out.parent.resolve())).as_posix())


def _blocks(conversion: Conversion, allow_nonfinite: bool) -> Iterator[Block]:
    """The blocks of all tensors, in file order."""
    for choice, tensor in zip(conversion.choices, conversion.tensors, strict=True):
        yield from tensor_blocks(
            choice.name, choice.type, tensor, conversion.importance.get(choice.name), allow_nonfinite=allow_nonfinite
        )
