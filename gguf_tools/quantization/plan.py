"""Plans the quantization of a GGUF from its headers alone; `write` then streams the new file or its parts.

Tensor data, types, the order of tensors and added metadata are the same as those of llama.cpp's `llama_model_quantize`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_tools import __version__
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.adapters import refuse_adapter
from gguf_tools.formats.gguf.header import (
    DEFAULT_ALIGNMENT,
    Field,
    GGUFHeader,
    Metadata,
    TensorEntry,
    ValueType,
    array,
    place,
    string,
    u32,
)
from gguf_tools.formats.gguf.imatrix import read_imatrix, recorded
from gguf_tools.formats.gguf.made_from import made_from, type_name
from gguf_tools.formats.gguf.source import GGUFTensor, gguf_tensors
from gguf_tools.formats.gguf.split import MAX_PARTS, cut, joined_header, part_path, read_parts, split_keys
from gguf_tools.formats.gguf.writer import Layout
from gguf_tools.text import human_bytes
from gguf_tools.tokenizers.model_name import NAME, repaired_name
from quant.encode import FloatArray
from quant.options import TypeOptions
from quant.recipes import ModelFacts, TensorFacts, TypeChoice, TypeRecipe, assign, layer_of, recipe, require_importance
from quant.report import Report, summarize
from quant.types import QUANTIZATION_VERSION


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """The source and the options of a quantization.

    `keep_split` writes as many parts as the source has; `split_max_size` limits the tensor data of a part, in bytes. `label`
    replaces the recipe's name in the file's metadata.
    """

    source: Path
    type: str
    options: TypeOptions = field(default_factory=TypeOptions)
    imatrix: Path | None = None
    allow_requantize: bool = False
    keep_split: bool = False
    split_max_size: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class OutputPart:
    """One file of the output: its range of tensors in the plan's order, its metadata and its layout."""

    start: int
    stop: int
    metadata: Metadata
    layout: Layout

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.layout.size(self.metadata)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The plan of a quantization: everything that will be written, in the order of the output.

    `importance` has an array (matrices, columns) for each tensor in the importance matrix; `notes` are sentences for the user.
    """

    sources: tuple[GGUFHeader, ...]
    recipe: TypeRecipe
    tensors: tuple[GGUFTensor, ...]
    choices: tuple[TypeChoice, ...]
    parts: tuple[OutputPart, ...]
    report: Report
    importance: Mapping[str, FloatArray]
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The tensors' entries; offsets are relative to the part."""
        return tuple(entry for part in self.parts for entry in part.layout.entries)

    @property
    def size(self) -> int:
        """Bytes of the output over all parts."""
        return sum(part.size for part in self.parts)

    def paths(self, out: Path) -> tuple[Path, ...]:
        """The paths of the parts of an output named `out`."""
        if len(self.parts) == 1:
            return (out,)
        return tuple(part_path(out, n, len(self.parts)) for n in range(len(self.parts)))


def prepare(request: QuantizeRequest) -> Quantization:
    """Plan the whole quantization from headers alone.

    Raises InputError for an unknown type or pattern, for a source that is already quantized, and for an importance matrix of
    another model; CheckpointError if the source is broken.
    """
    wanted = recipe(request.type)
    sources = read_parts(request.source)
    header = joined_header(sources)
    refuse_adapter(header)
    if not header.tensors:
        raise InputError(f"{header.path}: has no tensors (a vocabulary only?); give a model with weights")
    tensors = _ordered(sources, request.keep_split)
    facts = [TensorFacts(tensor.entry.name, tensor.shape, tensor.entry.type) for tensor in tensors]
    matrix = read_imatrix(request.imatrix) if request.imatrix else None
    importance = matrix.importance(facts) if matrix else {}
    # The vocabulary is not decoded, since no type depends on it.
    values = {key: entry.value for key, entry in header.metadata.items() if not key.startswith("tokenizer.")}
    try:
        model = ModelFacts.from_metadata(values, has_imatrix=matrix is not None)
    except InputError as error:
        raise InputError(f"{header.path}: {error}") from None
    choices = assign(wanted, model, facts, replace(request.options, file_order=request.keep_split))
    _refuse_undecodable(header.path, tensors, choices)
    require_importance(wanted, facts, choices, importance)
    if not request.allow_requantize:
        _refuse_quantized(header.path, tensors, choices)
    named, notes = _named(header.metadata)
    metadata = _metadata(named, wanted, request.label or wanted.name) | (recorded(matrix) if matrix else {})
    renewed = [t for t, choice in zip(tensors, choices, strict=True) if _is_requantized(t, choice)]
    metadata |= made_from(header, requantized=bool(renewed))
    counts = _part_sizes(request, sources, tensors, choices, header.alignment)
    parts = _parts(metadata, tensors, choices, counts, header.alignment)
    grown = _grown(sources, sum(part.size for part in parts), type_name(header)) if renewed else ()
    return Quantization(
        sources=sources,
        recipe=wanted,
        tensors=tensors,
        choices=choices,
        parts=parts,
        report=summarize(wanted, facts, choices),
        importance=importance,
        notes=(*notes, *(matrix.unused(facts) if matrix else ()), *grown),
    )


def _named(had: Mapping[str, Field]) -> tuple[Mapping[str, Field], tuple[str, ...]]:
    """(metadata, notes): `general.name` is changed if llama.cpp would refuse the file for it; most files are unchanged."""

    def value(key: str) -> Any:
        return had[key].value if key in had else None

    repaired = repaired_name(value)
    if repaired is None:
        return had, ()
    name, note = repaired
    told = value(keys.NOTES)
    notes = (*(told if isinstance(told, tuple) else ()), note)
    return {**had, NAME: string(name), keys.NOTES: array(ValueType.STRING, notes)}, (note,)


def _ordered(sources: Sequence[GGUFHeader], keep: bool) -> tuple[GGUFTensor, ...]:
    """The tensors in the order of llama.cpp's loader (by layer, then by name), or with `keep` in file order."""
    tensors = [tensor for source in sources for tensor in gguf_tensors(source)]
    if not keep:
        tensors.sort(key=lambda tensor: (layer_of(tensor.entry.name), tensor.entry.name.encode()))
    return tuple(tensors)


def _refuse_undecodable(path: Path, tensors: Sequence[GGUFTensor], choices: Sequence[TypeChoice]) -> None:
    """Raise InputError for a matrix of integers or doubles that the recipe would encode."""
    for tensor, choice in zip(tensors, choices, strict=True):
        if not tensor.is_numeric and choice.type is not tensor.entry.type:
            raise InputError(
                f"{path}: tensor {choice.name} is stored as {tensor.entry.type}, from which llama.cpp cannot quantize; expected "
                "f32, f16 or bf16; write the file again"
            )


def _refuse_quantized(path: Path, tensors: Sequence[GGUFTensor], choices: Sequence[TypeChoice]) -> None:
    for tensor, choice in zip(tensors, choices, strict=True):
        if _is_requantized(tensor, choice):
            raise InputError(
                f"{path}: tensor {choice.name} is already quantized ({tensor.entry.type.name}) and would be converted to "
                f"{choice.type.name}; give the F32, F16 or BF16 file, or --allow-requantize, which loses more"
            )


def _is_requantized(tensor: GGUFTensor, choice: TypeChoice) -> bool:
    """Whether a tensor that is already quantized gets another type."""
    return not tensor.entry.type.plain and choice.type is not tensor.entry.type


def _grown(sources: Sequence[GGUFHeader], size: int, kind: str) -> tuple[str, ...]:
    """A note if a requantization gives a larger file than the source."""
    had = sum(source.path.stat().st_size for source in sources)
    if size <= had:
        return ()
    note = (
        f"the output is larger than the source ({human_bytes(size)}, the source {human_bytes(had)}) and no closer to the "
        f"original: what {kind} lost does not come back; quantize the F32, F16 or BF16 file"
    )
    return (note,)


def _metadata(had: Mapping[str, Field], wanted: TypeRecipe, label: str) -> Metadata:
    """The source's metadata with the keys that llama.cpp sets; as in llama.cpp, these are moved to the end."""
    values = dict(had)
    for key, value in (
        ("general.quantization_version", u32(QUANTIZATION_VERSION)),
        ("general.file_type", u32(wanted.file_type)),
    ):
        values.pop(key, None)
        values[key] = value
    return values | {keys.VERSION: string(__version__), keys.TYPE: string(label)}


def _part_sizes(
    request: QuantizeRequest,
    sources: Sequence[GGUFHeader],
    tensors: Sequence[GGUFTensor],
    choices: Sequence[TypeChoice],
    alignment: int,
) -> list[int]:
    """The number of tensors in each part of the output."""
    if request.keep_split and request.split_max_size is not None:
        raise InputError("--keep-split and --split-max-size cannot be combined; give one of them")
    if request.keep_split:
        return [len(source.tensors) for source in sources]
    if request.split_max_size is None:
        return [len(tensors)]
    entries, _ = place([(c.name, t.shape, c.type) for c, t in zip(choices, tensors, strict=True)], alignment)
    counts = cut([entry.nbytes for entry in entries], request.split_max_size, alignment)
    if len(counts) > MAX_PARTS:
        raise InputError(
            f"--split-max-size {request.split_max_size} gives {len(counts)} parts; expected at most {MAX_PARTS}; "
            "give a larger size"
        )
    return counts


def _parts(
    metadata: Metadata,
    tensors: Sequence[GGUFTensor],
    choices: Sequence[TypeChoice],
    counts: Sequence[int],
    alignment: int,
) -> tuple[OutputPart, ...]:
    """The parts of the output, with `counts` tensors each; the first part has the metadata, all have `split.*` keys if split."""
    parts: list[OutputPart] = []
    start = 0
    for number, count in enumerate(counts):
        # Only the first part has the key `general.alignment`.
        alignment = alignment if number == 0 else DEFAULT_ALIGNMENT
        mine = slice(start, start + count)
        entries, data_bytes = place(
            [(c.name, t.shape, c.type) for c, t in zip(choices[mine], tensors[mine], strict=True)], alignment
        )
        keys = split_keys(number, len(counts), len(tensors)) if len(counts) > 1 else {}
        said = (metadata if number == 0 else {}) | keys
        parts.append(OutputPart(start, start + count, said, Layout(entries, data_bytes, alignment)))
        start += count
    return tuple(parts)
