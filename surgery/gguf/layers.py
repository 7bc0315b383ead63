"""The layers of a GGUF file of any architecture with tensors named `blk.N.…`, and surgery on them.

Whole layers, and layers with fewer experts, are copied byte by byte. Blended and scaled tensors are decoded, computed as in
the checkpoint (a decay by its logarithm; norm offsets and permuted rows need no care, since weights sum to 1), and encoded
to the tensor's type again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader, TensorEntry
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.rewrites.registry import blend_passes
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take
from quant.types import TensorType, tensor_type
from surgery.algebra import Half, Method, Original, Space
from surgery.arithmetic import mixed, mixed_logs, times
from surgery.gguf import names as gguf_names
from surgery.gguf import positions

LAYER = re.compile(r"blk\.(\d+)\.(.+)")
NOT_PER_LAYER = re.compile(r"rope\.dimension_sections|ple\..*|adapters\..*|.*\.output_labels")
"""Arrays that are not per layer but may have as many entries as there are layers."""
FFN_KEYS = ("feed_forward", "expert", "swiglu", "xielu", "moe_")
"""Prefixes of the keys of per-layer metadata that belongs to the feed-forward."""


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes in a source file."""

    file: DataFile
    offset: int
    count: int


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: bytes copied from the source (`ranges`), or values to encode (`ranges` is None)."""

    type: TensorType
    tensor: Tensor
    ranges: tuple[ByteRange, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in numpy's axis order."""
        return self.tensor.shape


@dataclass(frozen=True)
class GGUFHalf:
    """Half a layer: its tensors by name without `blk.N.`, and its values of the per-layer metadata."""

    half: Half
    label: str
    pieces: Mapping[str, Piece]
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LayeredFile:
    """A GGUF file (all its parts): the first part's header, tensors outside the layers, and layers.

    `layers` are the model's layers, `trailing` the MTP blocks after them. `arrays` are the metadata with a value for each
    block, by key without the architecture's prefix; `traits` are properties that llama.cpp derives from a layer's index.
    """

    header: GGUFHeader
    before: Mapping[str, Piece]
    layers: tuple[Mapping[str, Piece], ...]
    trailing: tuple[Mapping[str, Piece], ...]
    after: Mapping[str, Piece]
    arrays: Mapping[str, tuple[Any, ...]]
    traits: Mapping[str, tuple[positions.Trait, list[bool]]] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """general.architecture."""
        return self.header.architecture

    def get(self, key: str) -> Any:
        """The value of `<arch>.<key>`, or None."""
        return self.header.get(f"{self.arch}.{key}")

    @property
    def rewrites(self) -> tuple[str, ...]:
        """The names of the rewrites that tinyq applied in the conversion."""
        value = self.header.get(keys.REWRITES, ())
        return value if isinstance(value, tuple) else ()


def open_layered(path: Path) -> LayeredFile:
    """Open a GGUF file for surgery; CheckpointError if it is broken, InputError if it has no numbered layers."""
    headers = read_parts(path)
    header = headers[0]
    arch = header.architecture
    count = header.get(f"{arch}.block_count")
    if type(count) is not int or count < 1:
        raise CheckpointError(f"{path}: {arch}.block_count is {count!r}, a number above 0 expected")
    held = sum(len(part.tensors) for part in headers)
    if count > held:
        raise CheckpointError(f"{path}: {arch}.block_count is {count}, but the file holds {held} tensors in all")
    nextn = header.get(f"{arch}.nextn_predict_layers", 0)
    if type(nextn) is not int or not 0 <= nextn < count:
        raise CheckpointError(f"{path}: {arch}.nextn_predict_layers is {nextn!r}, 0 to {count - 1} expected")
    blocks: list[dict[str, Piece]] = [{} for _ in range(count)]
    before: dict[str, Piece] = {}
    after: dict[str, Piece] = {}
    for part in headers:
        file = DataFile(part.path)
        for entry in part.tensors:
            piece = _stored(entry, part.data_offset, file)
            match = LAYER.fullmatch(entry.name)
            if match is None:
                (after if any(blocks) else before)[entry.name] = piece
            elif int(match[1]) >= count:
                raise CheckpointError(f"{path}: tensor {entry.name} lies outside of the {count} blocks that it states")
            else:
                blocks[int(match[1])][match[2]] = piece
    if not any(blocks[: count - nextn]):
        raise InputError(f"{path}: no tensor of this {arch} file is named blk.N.…; surgery needs numbered layers")
    trunk = count - nextn
    arrays = _per_layer(header, arch, {count, trunk})
    bare = LayeredFile(
        header=header,
        before=before,
        layers=tuple(blocks[:trunk]),
        trailing=tuple(blocks[trunk:]),
        after=after,
        arrays=arrays,
    )
    return replace(bare, traits=_traits(bare, trunk))


def _stored(entry: TensorEntry, data_offset: int, file: DataFile) -> Piece:
    whole = ByteRange(file, data_offset + entry.offset, entry.nbytes)
    return Piece(entry.type, GGUFTensor(entry, data_offset, file), (whole,))


def _per_layer(header: GGUFHeader, arch: str, lengths: set[int]) -> dict[str, tuple[Any, ...]]:
    found = {}
    for key in header.metadata:
        name = key.removeprefix(f"{arch}.")
        if name != key and not NOT_PER_LAYER.fullmatch(name):
            value = header.get(key)
            if isinstance(value, tuple) and len(value) in lengths:
                found[name] = value
    return found


def _traits(file: LayeredFile, count: int) -> dict[str, tuple[positions.Trait, list[bool]]]:
    found = {}
    for trait in positions.traits(file.arch):
        stated = file.get(trait.key) if trait.key else None
        # An array in the file is per-layer metadata already; a single boolean applies to all layers.
        if isinstance(stated, tuple | bool):
            continue
        values = trait.values(file.get, count)
        if values:
            found[trait.what] = (trait, values)
    return found


def half_of_key(key: str) -> Half:
    """The half of a layer to which a key of per-layer metadata (without prefix) belongs."""
    return "ffn" if key.startswith(FFN_KEYS) else "attention"


class GGUFSpace(Space[GGUFHalf]):
    """The layers of a GGUF file."""

    def __init__(self, file: LayeredFile) -> None:
        self.file = file

    def half(self, origin: Original, half: Half) -> GGUFHalf:
        index = origin.index
        layer = self.file.layers[index]
        # Tensors of unknown halves count as attention; ops that separate halves call `check_halves` first.
        pieces = {name: p for name, p in layer.items() if (gguf_names.half_of(name, layer) or "attention") == half}
        values = {key: v[index] for key, v in self.file.arrays.items() if half_of_key(key) == half}
        values |= {what: v[index] for what, (trait, v) in self.file.traits.items() if trait.half == half}
        return GGUFHalf(half, str(index), pieces, values)

    def check_halves(self, origin: Original) -> None:
        """Raise InputError unless a layer can be split into halves: each tensor belongs to one, and each has a norm."""
        index = origin.index
        layer = self.file.layers[index]
        sides = {name: gguf_names.half_of(name, layer) for name in layer}
        unknown = next((name for name, half in sides.items() if half is None), None)
        if unknown:
            raise InputError(
                f"layer {index} has {unknown}, and which half of a {self.file.arch} layer that is in is not known"
            )
        if {sides[name] for name in layer if gguf_names.stem(name) in gguf_names.INPUT_NORMS} != {"attention", "ffn"}:
            raise InputError(
                f"the halves of a {self.file.arch} layer do not have a norm each, so that they cannot be parted"
            )

    def mismatch(self, a: GGUFHalf, b: GGUFHalf) -> tuple[str, str] | None:
        if a.pieces.keys() != b.pieces.keys():
            return _kind(a, b), _kind(b, a)
        for name, piece in a.pieces.items():
            if piece.shape != b.pieces[name].shape:
                return f"{name} of shape {piece.shape}", f"{name} of shape {b.pieces[name].shape}"
        for key in a.values:
            if a.values[key] != b.values.get(key):
                return f"{key} {a.values[key]}", f"{key} {b.values.get(key)}"
        return None

    def blend(self, parts: Sequence[tuple[GGUFHalf, float]], method: Method) -> GGUFHalf:
        hindering = [name for name in self.file.rewrites if not blend_passes(name, angles=method == "slerp")]
        if hindering:
            raise InputError(
                f"the file was made with the rewrite {hindering[0]!r}, which a {method} blend of layers does not pass "
                "through; operate on the checkpoint, or give these options to tinyq convert"
            )
        first = parts[0][0]
        pieces = {name: self._blended(name, [(p.pieces[name], w) for p, w in parts], method) for name in first.pieces}
        return GGUFHalf(first.half, first.label, pieces, first.values)

    def _blended(self, name: str, parts: Sequence[tuple[Piece, float]], method: Method) -> Piece:
        # Mixed recipes give some layers more bits: the blend gets the type with the most bits.
        dtype = max((piece.type for piece, _ in parts), key=lambda t: t.bits)
        tensors = [(piece.tensor, weight) for piece, weight in parts]
        _check_encodes(name, dtype)
        if gguf_names.stem(name) == gguf_names.DECAY:
            return Piece(dtype, mixed_logs(tensors, dtype.name), None)
        return Piece(dtype, mixed(tensors, method, dtype.name), None)

    def scaled(self, part: GGUFHalf, factor: float) -> GGUFHalf:
        """As `Space.scaled`: the output projections are multiplied; InputError if they are not known for the architecture."""
        names = gguf_names.outputs(part.half, part.pieces)
        if not names:
            raise InputError(
                f"layer {part.label}: it is not known which tensors of a {self.file.arch} layer's {part.half} half "
                "give its output, so that it cannot be scaled"
            )
        return _multiplied(part, names, factor)

    def attenuated(self, part: GGUFHalf, factor: float) -> GGUFHalf:
        """As `Space.attenuated`; InputError if it is not known which tensors set the scores of the architecture's layers."""
        names = gguf_names.queries_and_keys(part.pieces)
        if not names or self.file.arch not in gguf_names.SCORES_FOLLOW or self.file.get(gguf_names.CLAMP):
            raise InputError(
                f"layer {part.label}: it is not known that the attention scores of this {self.file.arch} layer follow the size "
                "of tensors of its queries and keys, so that they cannot be attenuated"
            )
        return _multiplied(part, names, factor)

    def expert_count(self, part: GGUFHalf) -> int:
        router = part.pieces.get(f"{gguf_names.ROUTER}.weight")
        return router.shape[0] if router else 0

    def experts(self, part: GGUFHalf, order: tuple[int, ...]) -> GGUFHalf:
        pieces = {name: _taken(p, order) if gguf_names.by_expert(name) else p for name, p in part.pieces.items()}
        return GGUFHalf(part.half, part.label, pieces, part.values)


def _multiplied(part: GGUFHalf, names: Sequence[str], factor: float) -> GGUFHalf:
    pieces = dict(part.pieces)
    for name in names:
        _check_encodes(name, pieces[name].type)
        pieces[name] = Piece(pieces[name].type, times(pieces[name].tensor, factor), None)
    return GGUFHalf(part.half, part.label, pieces, part.values)


def _taken(piece: Piece, order: tuple[int, ...]) -> Piece:
    """Entries of the first axis, as byte ranges if the tensor is one, because no block contains weights of two rows."""
    tensor = take(piece.tensor, order)
    if piece.ranges is None or (len(piece.shape) == 1 and not piece.type.plain):
        return Piece(piece.type, tensor, None)
    entries = piece.ranges
    if len(entries) == 1:
        whole, count = entries[0], piece.shape[0]
        step = whole.count // count
        entries = tuple(ByteRange(whole.file, whole.offset + step * n, step) for n in range(count))
    return Piece(piece.type, tensor, tuple(entries[n] for n in order))


def _check_encodes(name: str, dtype: TensorType) -> None:
    if not tensor_type(dtype.name).encodes:
        raise InputError(f"{name} is stored as {dtype.name}, which tinyq only reads; blend or scale before quantizing")


def _kind(a: GGUFHalf, b: GGUFHalf) -> str:
    """A description of the differences of half `a` from half `b`."""
    stems = {gguf_names.stem(name) for name in a.pieces}
    if a.half == "ffn" and (gguf_names.ROUTER in stems) != any(n.startswith(gguf_names.ROUTER) for n in b.pieces):
        return "experts" if gguf_names.ROUTER in stems else "a dense feed-forward"
    if a.half == "attention" and any(name.startswith("ssm_") for name in stems | set(b.pieces)):
        return "linear attention (ssm_…)" if any(name.startswith("ssm_") for name in stems) else "full attention"
    own = sorted(set(a.pieces) - set(b.pieces))
    return ", ".join(own[:3]) if own else "none of these tensors"
