"""GGUF to quantized GGUF: a pure plan from the headers, and one streaming pass that writes the new file or its parts.

Tensor data, types, the order of tensors and the metadata that llama.cpp adds are those of `llama_model_quantize`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from gguf_tools import __version__
from gguf_tools.encoding import tensor_blocks
from gguf_tools.errors import InputError, OutputError
from gguf_tools.gguf_file import DEFAULT_ALIGNMENT, GGUFHeader, Metadata, TensorEntry, place, string, u32
from gguf_tools.gguf_source import GGUFTensor, gguf_tensors
from gguf_tools.gguf_split import MAX_PARTS, cut, joined_header, part_path, read_parts, split_keys
from gguf_tools.imatrix_file import read_imatrix, recorded
from gguf_tools.machine import available_cores
from gguf_tools.writer import Layout, Progress, atomic_output, check_output, write_gguf
from quant.encode import ByteArray, Encoder, FloatArray, Narrowing, can_decode
from quant.recipes import Choice, ModelFacts, Options, Recipe, TensorFacts, assign, layer_of, recipe
from quant.report import Report, summarize

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION, which llama.cpp states in every file that it quantizes."""

COPY_BYTES = 1 << 22
"""Bytes of a tensor that ggml cannot decode (integers, doubles) that are copied at a time."""


@dataclass(frozen=True)
class QuantizeRequest:
    """What to quantize and how.

    `keep_split` writes as many parts as the source has; `split_max_size` bounds the tensor data of a part, bytes. `label`
    is what the file calls its type instead of the recipe's name.
    """

    source: Path
    type: str
    options: Options = field(default_factory=Options)
    imatrix: Path | None = None
    allow_requantize: bool = False
    keep_split: bool = False
    split_max_size: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Part:
    """One file of the output: where its tensors start and stop in the plan's order, and all of its header."""

    start: int
    stop: int
    metadata: Metadata
    layout: Layout

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.layout.size(self.metadata)


@dataclass(frozen=True)
class Quantization:
    """Everything that will be written, in the order of the output; only headers have been read.

    `importance` is (matrices, columns) for each tensor that the importance matrix knows.
    """

    sources: tuple[GGUFHeader, ...]
    recipe: Recipe
    tensors: tuple[GGUFTensor, ...]
    choices: tuple[Choice, ...]
    parts: tuple[Part, ...]
    report: Report
    importance: Mapping[str, FloatArray]

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The tensors' entries; offsets are those within the part."""
        return tuple(entry for part in self.parts for entry in part.layout.entries)

    @property
    def size(self) -> int:
        """Bytes of the output, all parts together."""
        return sum(part.size for part in self.parts)

    def paths(self, out: Path) -> tuple[Path, ...]:
        """The files that an output called `out` consists of."""
        if len(self.parts) == 1:
            return (out,)
        return tuple(part_path(out, n, len(self.parts)) for n in range(len(self.parts)))


@dataclass(frozen=True)
class Quantized:
    """A finished quantization: the files, their bytes together, and by tensor name what encoding changed (a sample)."""

    paths: tuple[Path, ...]
    bytes: int
    losses: Mapping[str, Narrowing]


def prepare(request: QuantizeRequest) -> Quantization:
    """Plan the whole quantization from headers alone.

    Raises InputError for a type or pattern that does not exist, for a source that is quantized already, and for an
    importance matrix of another model; CheckpointError where the source is broken.
    """
    wanted = recipe(request.type)
    sources = read_parts(request.source)
    header = joined_header(sources)
    if not header.tensors:
        raise InputError(f"{header.path}: holds no tensors (a vocabulary only?); give a model with weights")
    tensors = _ordered(sources, request.keep_split)
    facts = [TensorFacts(tensor.entry.name, tensor.shape, tensor.entry.type) for tensor in tensors]
    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    importance = matrix.importance(facts) if matrix else {}
    values = {key: entry.value for key, entry in header.metadata.items()}
    try:
        model = ModelFacts.from_metadata(values, has_imatrix=matrix is not None)
    except InputError as error:
        raise InputError(f"{header.path}: {error}") from None
    choices = assign(wanted, model, facts, replace(request.options, file_order=request.keep_split))
    if not request.allow_requantize:
        _refuse_quantized(header.path, tensors, choices)
    metadata = _metadata(header.metadata, wanted, request.label or wanted.name) | (recorded(matrix) if matrix else {})
    counts = _part_sizes(request, sources, tensors, choices, header.alignment)
    parts = _parts(metadata, tensors, choices, counts, header.alignment)
    return Quantization(sources, wanted, tensors, choices, parts, summarize(wanted, facts, choices), importance)


def _ordered(sources: Sequence[GGUFHeader], keep: bool) -> tuple[GGUFTensor, ...]:
    """The tensors in the order of llama.cpp's loader (by layer, then by name), or with `keep` as they lie."""
    tensors = [tensor for source in sources for tensor in gguf_tensors(source)]
    if not keep:
        tensors.sort(key=lambda tensor: (layer_of(tensor.entry.name), tensor.entry.name.encode()))
    return tuple(tensors)


def _refuse_quantized(path: Path, tensors: Sequence[GGUFTensor], choices: Sequence[Choice]) -> None:
    for tensor, choice in zip(tensors, choices, strict=True):
        had = tensor.entry.type
        if not had.plain and choice.type is not had:
            raise InputError(
                f"{path}: tensor {choice.name} is quantized already ({had.name}), and would become {choice.type.name}; give "
                "the F32, F16 or BF16 file, or --allow-requantize, which loses more"
            )


def _metadata(had: Metadata, wanted: Recipe, label: str) -> Metadata:
    """The source's metadata with what llama.cpp sets, in its order: what it sets is moved to the end."""
    values = dict(had)
    for key, value in (
        ("general.quantization_version", u32(QUANTIZATION_VERSION)),
        ("general.file_type", u32(wanted.file_type)),
    ):
        values.pop(key, None)
        values[key] = value
    return values | {"tinyq.version": string(__version__), "tinyq.type": string(label)}


def _part_sizes(
    request: QuantizeRequest,
    sources: Sequence[GGUFHeader],
    tensors: Sequence[GGUFTensor],
    choices: Sequence[Choice],
    alignment: int,
) -> list[int]:
    """How many tensors each part of the output gets."""
    if request.keep_split and request.split_max_size is not None:
        raise InputError("--keep-split and --split-max-size contradict each other; give one of them")
    if request.keep_split:
        return [len(source.tensors) for source in sources]
    if request.split_max_size is None:
        return [len(tensors)]
    entries, _ = place([(c.name, t.shape, c.type) for c, t in zip(choices, tensors, strict=True)], alignment)
    counts = cut([entry.nbytes for entry in entries], request.split_max_size, alignment)
    if len(counts) > MAX_PARTS:
        raise InputError(
            f"parts of {request.split_max_size} bytes would be {len(counts)}, {MAX_PARTS} at most; make them larger"
        )
    return counts


def _parts(
    metadata: Metadata,
    tensors: Sequence[GGUFTensor],
    choices: Sequence[Choice],
    counts: Sequence[int],
    alignment: int,
) -> tuple[Part, ...]:
    parts: list[Part] = []
    start = 0
    for number, count in enumerate(counts):
        # Only the first part has the key that says otherwise.
        alignment = alignment if number == 0 else DEFAULT_ALIGNMENT
        mine = slice(start, start + count)
        entries, data_bytes = place(
            [(c.name, t.shape, c.type) for c, t in zip(choices[mine], tensors[mine], strict=True)], alignment
        )
        keys = split_keys(number, len(counts), len(tensors)) if len(counts) > 1 else {}
        said = (metadata if number == 0 else {}) | keys
        parts.append(Part(start, start + count, said, Layout(entries, data_bytes, alignment)))
        start += count
    return tuple(parts)


def execute(
    plan: Quantization, out: Path, *, force: bool = False, threads: int = 0, progress: Progress = lambda _: None
) -> Quantized:
    """Write the output, all parts of which appear under their names only when the last one is complete.

    Raises InputError for a weight that is NaN or infinite (with the tensor's name), OutputError where it cannot be written.
    """
    paths = plan.paths(out)
    check_outputs(plan, out, force)
    losses: dict[str, Narrowing] = {}
    with contextlib.ExitStack() as stack, Encoder(threads or available_cores()) as encoder:
        # The first part appears last: without it the others are no model.
        streams = [
            stack.enter_context(atomic_output(path, force=force, size=part.size))
            for path, part in zip(paths, plan.parts, strict=True)
        ]
        for stream, part in zip(streams, plan.parts, strict=True):
            write_gguf(stream, part.metadata, part.layout, _pieces(plan, part, encoder, losses), progress)
    return Quantized(paths, plan.size, losses)


def check_outputs(plan: Quantization, out: Path, force: bool) -> None:
    """Raise OutputError where a file of the output cannot be written, is part of the source, or the disk is too small."""
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
    plan: Quantization, part: Part, encoder: Encoder, losses: dict[str, Narrowing]
) -> Iterator[tuple[str, ByteArray]]:
    """A part's data in file order; what the encoding changed is added up in `losses` by tensor name."""
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
    pairs: Iterable[tuple[Choice, GGUFTensor]],
    encoder: Encoder,
    losses: dict[str, Narrowing],
) -> Iterator[tuple[str, ByteArray]]:
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
    """The bytes of a tensor that ggml cannot decode, hence cannot quantize."""
    for start in range(0, tensor.entry.nbytes, COPY_BYTES):
        yield tensor.read(start, min(COPY_BYTES, tensor.entry.nbytes - start))
