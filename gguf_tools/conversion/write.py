"""Carries out planned conversions of one source in one streaming pass; on failure no output is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.conversion.background import Background
from gguf_tools.conversion.general_metadata import HUB_PAGES
from gguf_tools.conversion.plan import Conversion
from gguf_tools.errors import named_instead
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.adapters import RecordedAdapter, adapters_metadata
from gguf_tools.formats.gguf.header import (
    Field,
    Metadata,
    pack_header,
    string,
)
from gguf_tools.formats.gguf.surgery import sources_metadata
from gguf_tools.formats.gguf.writer import GGUFFile, Group, Target, write_groups
from gguf_tools.formats.output import Check, atomic_outputs, check_outputs
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.adapters.adapter import Adapter
from gguf_tools.sources.checkpoint import BY_FILE
from gguf_tools.sources.hub import cached_name
from gguf_tools.sources.inputs import source_files
from gguf_tools.sources.reads import announce, by_place, remote_tensors
from gguf_tools.tensors.blocks import NonFinite, Tally, tensor_blocks
from gguf_tools.tokenizers.vocabulary import Tokenizer
from quant.encode import Encoder
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


Prove = Callable[[Path, Tokenizer], None]
"""Called with a temporary file and the tokenizer; if it raises, nothing is written."""


def execute(
    conversion: Conversion,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    prove_header: Prove | None = None,
    prove: Prove | None = None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
) -> Converted:
    """Write a temporary file and rename it to `out` when it is complete.

    `prove_header` is called with the temporary file and the tokenizer when its header is written and its tensors are zeros still,
    so that a vocabulary that llama.cpp reads differently is noticed before the weights are read; `prove` with the complete file,
    then `check`. If one raises, no file is left. With `allow_nonfinite`, NaN and infinity are written if the type can hold them.
    Raises InputError for non-finite weights otherwise, OutputError if `out` cannot be written.
    """
    (written,) = execute_all(
        [(conversion, out)],
        force=force,
        threads=threads,
        progress=progress,
        prove_header=prove_header,
        prove=prove,
        check=check,
        allow_nonfinite=allow_nonfinite,
    )
    return written


def execute_all(
    wanted: Sequence[tuple[Conversion, Path]],
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    prove_header: Prove | None = None,
    prove: Prove | None = None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
    home: Path | None = None,
) -> tuple[Converted, ...]:
    """Write conversions of one opened source, each in its own type, to files in one folder, which appear together.

    The source is read once: rows of a tensor are read, encoded in each type that a file needs, and written to all files. The
    conversions are plans made from one `Opened`, with the same importance matrix. The options and errors are those of `execute`;
    `prove_header` is called with the first file alone, since all have the same vocabulary. `home` is the folder that the files
    will be moved to, to which the paths that they record are relative.
    """
    first, outs = wanted[0][0], [out for _, out in wanted]
    checkpoint = first.checkpoint
    adapters = [file for adapter in checkpoint.merged for file in adapter.files]
    inputs = (*checkpoint.weight_files, *adapters, *source_files(checkpoint.path), first.tokenizer.path)
    check_outputs({out.name if len(outs) > 1 else "OUT": out for out in outs}, inputs, force=force)
    placed = [placed_metadata(conversion, home / out.name if home else out) for conversion, out in wanted]
    sizes = [conversion.layout.size(metadata) for (conversion, _), metadata in zip(wanted, placed, strict=True)]
    with (
        atomic_outputs(list(zip(outs, sizes, strict=True)), force=force, check=check) as streams,
        Background(checkpoint.digest) as digest,
    ):
        # The source is hashed in the background; the fixed-width placeholder is overwritten once the digest is known.
        targets = [
            Target(GGUFFile(stream, metadata, conversion.layout), Tally())
            for stream, metadata, (conversion, _) in zip(streams, placed, wanted, strict=True)
        ]
        if prove_header:
            _proved(prove_header, Path(streams[0].name), first, outs[0])
        with Encoder(threads) as encoder:
            groups = _groups([conversion for conversion, _ in wanted], targets, allow_nonfinite)
            write_groups(encoder, groups, progress)
        for stream, target, metadata, (conversion, out) in zip(streams, targets, placed, wanted, strict=True):
            target.file.finish()
            metadata[keys.SOURCE_DIGEST] = string(digest.result())
            stream.seek(0)
            stream.write(pack_header(metadata, conversion.layout.entries, conversion.layout.alignment))
            stream.flush()
            if prove:
                _proved(prove, Path(stream.name), conversion, out)
    return tuple(
        _converted(conversion, out, size, target.tally)
        for (conversion, out), size, target in zip(wanted, sizes, targets, strict=True)
    )


def _proved(prove: Prove, path: Path, conversion: Conversion, out: Path) -> None:
    """Prove the temporary file at `path`; an error of llama.cpp names the output instead."""
    with named_instead(path, out, "the converted file does not run, so nothing was written"):
        prove(path, conversion.tokenizer)


def _converted(conversion: Conversion, out: Path, size: int, tally: Tally) -> Converted:
    """The result of one file, with the changes that `tally` has by tensor added up by type."""
    by_type: dict[str, Narrowing] = {}
    for choice in conversion.choices:
        if choice.name in tally.losses:
            by_type[choice.type.name] = by_type.get(choice.type.name, Narrowing()) + tally.losses[choice.name]
    return Converted(out, size, by_type, tally.losses, tally.nonfinite)


def placed_metadata(conversion: Conversion, out: Path) -> Metadata:
    """The metadata of a file at `out`, with a placeholder of the same length for the source's digest."""
    metadata = conversion.metadata | source_metadata(conversion.source, conversion.checkpoint.merged, out)
    if conversion.tokenizer_folder:
        metadata[keys.TOKENIZER_PATH] = _relative(conversion.tokenizer_folder, out)
    return metadata | sources_metadata(conversion.layer_sources, out.parent)


def source_metadata(source: Path, adapters: Sequence[Adapter], out: Path) -> Metadata:
    """The source's place, a placeholder of its digest, and the adapters with theirs, for a file at `out`."""
    recorded = [RecordedAdapter(adapter.path, adapter.digest, adapter.scale) for adapter in adapters]
    metadata = _place(source, out) | adapters_metadata(recorded, out.parent)
    return metadata | {keys.SOURCE_DIGEST: string(BY_FILE + "0" * 64)}


def _place(source: Path, out: Path) -> Metadata:
    """Where the source is: its repository and commit on the hub, or its path."""
    name = cached_name(source)
    if name is None:
        return {keys.SOURCE_PATH: _relative(source, out)}
    return {
        keys.SOURCE_REPOSITORY: string(name.repository),
        keys.SOURCE_COMMIT: string(name.revision),
        "general.source.repo_url": string(f"{HUB_PAGES}{name.repository}"),
    }


def _relative(path: Path, out: Path) -> Field:
    """`path` relative to the output's folder, so that both can be moved together."""
    return string(Path(os.path.relpath(path, out.parent.resolve())).as_posix())


def _groups(conversions: Sequence[Conversion], targets: Sequence[Target], allow_nonfinite: bool) -> Iterator[Group]:
    """For all tensors: the same rows in each type that a file needs, with the files that need it. Those of remote files come in
    the order of their sources."""
    first = conversions[0]
    stored = remote_tensors(first.checkpoint)
    order = by_place(stored, first.tensors)
    announce(stored, [first.tensors[at] for at in order])
    for at in order:
        tensor = first.tensors[at]
        choices = [conversion.choices[at] for conversion in conversions]
        name = choices[0].name
        ways = [(choice.type, name in made.exact) for choice, made in zip(choices, conversions, strict=True)]
        takers = [
            [target for other, target in zip(ways, targets, strict=True) if other == way] for way in dict.fromkeys(ways)
        ]
        importance = first.importance.get(name)
        blocks = [
            tensor_blocks(name, dtype, tensor, importance, allow_nonfinite=allow_nonfinite, exact=exact)
            for dtype, exact in dict.fromkeys(ways)
        ]
        for group in zip(*blocks, strict=True):
            yield list(zip(group, takers, strict=True))
