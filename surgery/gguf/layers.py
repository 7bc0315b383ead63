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

import numpy as np

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.adapters import refuse_adapter
from gguf_tools.formats.gguf.header import GGUFHeader, TensorEntry
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.rewrites.registry import blend_passes
from gguf_tools.tensors.base import InMemory, Tensor
from gguf_tools.tensors.views import take
from quant.types import F32, TensorType, tensor_type
from surgery.algebra import Half, Method, Original, Space, describe
from surgery.architectures.base import Architecture, Layers, Property, Role, stem
from surgery.architectures.registry import architectures, assumed
from surgery.arithmetic import mixed, mixed_logs, times
from surgery.gguf import names as gguf_names
from surgery.gguf import positions
from surgery.gguf.arrays import UNPREFIXED, half_of_key, per_layer

LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class ByteRange:
    """A range of bytes in a source file; `start` is where it begins in its tensor."""

    file: DataFile
    offset: int
    count: int
    start: int = 0

    def part(self, at: int, count: int) -> ByteRange:
        """`count` bytes of the range from its byte `at` on."""
        return ByteRange(self.file, self.offset + at, count, self.start + at)


@dataclass(frozen=True)
class Columns:
    """A matrix of `rows` in a source file, each row cut into `parts` equal parts, of which each new row has those in `order`."""

    whole: ByteRange
    rows: int
    parts: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: bytes copied from the source (`ranges`, or `columns`), or values to encode (`ranges` is None)."""

    type: TensorType
    tensor: Tensor
    ranges: tuple[ByteRange, ...] | None
    columns: Columns | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in numpy's axis order."""
        return self.tensor.shape


@dataclass(frozen=True)
class GGUFHalf:
    """Half a layer: its tensors by name without `blk.N.`, its values of the per-layer metadata, and its properties.

    `gain` is the layer's factor on the residual stream, in architectures that have one.
    """

    half: Half
    label: str
    pieces: Mapping[str, Piece]
    values: Mapping[str, Any]
    properties: Mapping[Property, Any] = field(default_factory=dict)
    gain: Piece | None = None


@dataclass(frozen=True, kw_only=True)
class LayeredFile:
    """A GGUF file (all its parts): the first part's header, tensors outside the layers, and layers.

    `layers` are the model's layers, `trailing` the MTP blocks after them. `arrays` are the metadata with a value for each
    block, by key without the architecture's prefix; `properties` what llama.cpp derives for each layer from its place or the
    number of layers.
    """

    header: GGUFHeader
    architecture: Architecture
    before: Mapping[str, Piece]
    layers: tuple[Mapping[str, Piece], ...]
    trailing: tuple[Mapping[str, Piece], ...]
    after: Mapping[str, Piece]
    arrays: Mapping[str, tuple[Any, ...]]
    properties: Mapping[Property, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """general.architecture."""
        return self.header.architecture

    def get(self, key: str) -> Any:
        """The value of `<arch>.<key>`, or None."""
        return self.header.get(f"{self.arch}.{key}")

    @property
    def assumed(self) -> bool:
        """Whether the architecture is not known, and its layers are assumed to be independent of their place."""
        return not self.architecture.source

    @property
    def vocabulary(self) -> int:
        """The number of tokens: stated, or that of the tokenizer's list."""
        stated, tokens = self.get("vocab_size"), self.header.get("tokenizer.ggml.tokens")
        return stated if type(stated) is int else len(tokens) if isinstance(tokens, tuple) else 0

    def key(self, name: str) -> str:
        """The key in the file of a name without the architecture's prefix."""
        plain = name.startswith(UNPREFIXED) and name in self.header.metadata
        return name if plain else f"{self.arch}.{name}"

    @property
    def view(self) -> Layers:
        """The layers as the rules of the architecture see them."""
        origins = tuple(Original(n) for n in range(len(self.layers)))
        return Layers(get=self.get, names=self.layers, origins=origins, vocabulary=self.vocabulary)

    @property
    def rewrites(self) -> tuple[str, ...]:
        """The names of the rewrites that tinyq applied in the conversion."""
        value = self.header.get(keys.REWRITES, ())
        return value if isinstance(value, tuple) else ()


def open_layered(path: Path, *, assume_independent: bool = False) -> LayeredFile:
    """Open a GGUF file for surgery.

    `assume_independent` accepts an architecture that the table lacks: no layer's place matters there, says the user.
    Raises CheckpointError if the file is broken, InputError if it has no numbered layers, UnsupportedError for an
    architecture that is not known or on whose layers no surgery is done.
    """
    headers = read_parts(path)
    refuse_adapter(headers[0])
    header = headers[0]
    arch = header.architecture
    architecture = _architecture(path, arch, assume_independent)
    count = header.get(f"{arch}.block_count")
    if type(count) is not int or count < 1:
        raise CheckpointError(f"{path}: {arch}.block_count is {count!r}; expected a number above 0")
    held = sum(len(part.tensors) for part in headers)
    if count > held:
        raise CheckpointError(f"{path}: {arch}.block_count is {count}, but the file has only {held} tensors")
    nextn = header.get(f"{arch}.nextn_predict_layers", 0)
    if type(nextn) is not int or not 0 <= nextn < count:
        raise CheckpointError(f"{path}: {arch}.nextn_predict_layers is {nextn!r}; expected 0 to {count - 1}")
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
                raise CheckpointError(f"{path}: tensor {entry.name} is beyond the {count} blocks of {arch}.block_count")
            else:
                blocks[int(match[1])][match[2]] = piece
    if not any(blocks[: count - nextn]):
        raise InputError(f"{path}: no tensor of this {arch} file is named blk.N.…; surgery needs numbered layers")
    trunk = count - nextn
    layered = LayeredFile(
        header=header,
        architecture=architecture,
        before=before,
        layers=tuple(blocks[:trunk]),
        trailing=tuple(blocks[trunk:]),
        after=after,
        arrays=per_layer(header, arch, trunk, count),
    )
    return replace(layered, properties=positions.derived(architecture, layered.view))


def _architecture(path: Path, name: str, assume_independent: bool) -> Architecture:
    """The architecture's row; UnsupportedError if there is none, unless assumed, or if its layers are not to be touched."""
    found = architectures().get(name)
    if found is None and assume_independent:
        return assumed(name)
    if found is None:
        raise UnsupportedError(
            f"{path}: the architecture {name} is not in the table of architectures (docs/surgery-architectures.md), so that what "
            "its layers' places mean is not known; --assume-independent-layers says that you have checked that they mean nothing"
        )
    if found.closed:
        raise UnsupportedError(f"{path}: no surgery is done on the layers of {name}: {found.closed}")
    return found


def _stored(entry: TensorEntry, data_offset: int, file: DataFile) -> Piece:
    whole = ByteRange(file, data_offset + entry.offset, entry.nbytes)
    return Piece(entry.type, GGUFTensor(entry, data_offset, file), (whole,))


class GGUFSpace(Space[GGUFHalf]):
    """The layers of a GGUF file, and of donors by name, whose per-layer metadata have the file's keys."""

    def __init__(self, file: LayeredFile, donors: Mapping[str, LayeredFile] | None = None) -> None:
        self.file = file
        self.files = {"": file, **(donors or {})}

    def half(self, origin: Original, half: Half) -> GGUFHalf:
        """As `Space.half`: tensors, values of the per-layer metadata, and properties by place."""
        index, file = origin.index, self.files[origin.source]
        layer, roles = file.layers[index], self.roles(origin)
        # Tensors of other branches are kept with the attention; ops that separate halves call `check_halves` first.
        pieces = {name: piece for name, piece in layer.items() if gguf_names.half_of(roles[name]) == half}
        values = {key: v[index] for key, v in file.arrays.items() if half_of_key(key) == half}
        placed = {
            p: positions.of_source(v[index], origin.source)
            for p, v in file.properties.items()
            if p.half in (None, half)
        }
        gain = layer.get(gguf_names.LAYER_SCALE)
        role = roles.get(gguf_names.LAYER_SCALE)
        stream = gain if role and role.part == "stream" else None
        return GGUFHalf(half, describe(origin), pieces, values, placed, stream)

    def roles(self, origin: Original) -> dict[str, Role | None]:
        """The role of each tensor of a layer, None where the architecture has none of that name."""
        return gguf_names.roles_in(self.file.architecture, self.files[origin.source].layers[origin.index])

    def check_known(self, origin: Original) -> None:
        """Raise UnsupportedError if a layer has a tensor that the architecture is not known to have."""
        unknown = next((name for name, role in self.roles(origin).items() if role is None), None)
        if unknown:
            raise UnsupportedError(
                f"layer {describe(origin)} has {unknown}, which no layer of llama.cpp's {self.file.arch} is known to have; such "
                "layers can only be moved whole"
            )

    def check_halves(self, origin: Original) -> None:
        """Raise UnsupportedError unless a layer can be split into halves, each with all of its tensors and its norm."""
        self.check_known(origin)
        roles = self.roles(origin)
        other = next((name for name, role in roles.items() if role and role.half is None), None)
        if other:
            raise UnsupportedError(
                f"layer {describe(origin)} has {other}, which belongs to neither half of a {self.file.arch} layer, so they "
                "cannot be separated"
            )
        if gguf_names.shared_norm(roles):
            raise UnsupportedError(
                f"layer {describe(origin)}: the halves of this {self.file.arch} layer share a norm, so they cannot be separated"
            )

    def mismatch(self, a: GGUFHalf, b: GGUFHalf) -> tuple[str, str] | None:
        """As `Space.mismatch`: by tensors, their shapes, per-layer metadata, and what llama.cpp derives from place."""
        if a.pieces.keys() != b.pieces.keys():
            return _kind(a, b), _kind(b, a)
        for name, piece in a.pieces.items():
            if piece.shape != b.pieces[name].shape:
                return f"{name} of shape {piece.shape}", f"{name} of shape {b.pieces[name].shape}"
        for key in a.values:
            if a.values[key] != b.values.get(key):
                return f"{key} {a.values[key]}", f"{key} {b.values.get(key)}"
        for p, value in a.properties.items():
            if value != b.properties.get(p):
                return positions.phrase(p, value), positions.phrase(p, b.properties.get(p))
        return None

    def blend(self, parts: Sequence[tuple[GGUFHalf, float]], method: Method) -> GGUFHalf:
        """As `Space.blend`; InputError if a rewrite of the conversion does not let blends through."""
        hindering = [name for name in self.file.rewrites if not _passes(name, method)]
        if hindering:
            raise InputError(
                f"the file was converted with the rewrite {hindering[0]!r}, after which a {method} blend of layers gives another "
                "result; operate on the checkpoint, or give these options to tinyq convert"
            )
        first = parts[0][0]
        fused = next((name for name in first.pieces if "qkv" in name), None)
        if method == "slerp-tensor" and (self.file.arch not in gguf_names.ONE_MATRIX_A_TENSOR or fused):
            raise UnsupportedError(
                f"slerp-tensor has one angle for each tensor of a checkpoint, which those of this {self.file.arch} file are not "
                "known to be; use slerp, or operate on the checkpoint"
            )
        pieces = {name: self._blended(name, [(p.pieces[name], w) for p, w in parts], method) for name in first.pieces}
        gains = [(p.gain, w) for p, w in parts if p.gain]
        gain = self._blended(gguf_names.LAYER_SCALE, gains, method) if len(gains) == len(parts) else None
        return replace(first, pieces=pieces, gain=gain)

    def _blended(self, name: str, parts: Sequence[tuple[Piece, float]], method: Method) -> Piece:
        # Mixed recipes give some layers more bits: the blend gets the type with the most bits.
        dtype = max((piece.type for piece, _ in parts), key=lambda t: t.bits)
        tensors = [(piece.tensor, weight) for piece, weight in parts]
        _check_encodes(name, dtype)
        if stem(name) == gguf_names.DECAY:
            return Piece(dtype, mixed_logs(tensors, dtype.name), None)
        return Piece(dtype, mixed(tensors, method, dtype.name), None)

    def scaled(self, part: GGUFHalf, factor: float) -> GGUFHalf:
        """As `Space.scaled`: the output projections are multiplied; InputError if they are not known for the architecture."""
        roles = gguf_names.roles_in(self.file.architecture, part.pieces)
        stream = next((n for n, r in roles.items() if r and "stream" in r.part and n != gguf_names.LAYER_SCALE), None)
        if stream:
            raise UnsupportedError(
                f"layer {part.label} has {stream}, with which a {self.file.arch} layer does more than add to the residual "
                "stream, so that it cannot be scaled"
            )
        names = gguf_names.outputs(part.half, roles)
        if not names and any(role and role.half == part.half and "norm" not in role.part for role in roles.values()):
            raise UnsupportedError(
                f"layer {part.label}: it is not known which tensors of a {self.file.arch} layer's {part.half} half "
                "give its output, so it cannot be scaled"
            )
        if part.gain is None:
            return _multiplied(part, names, factor)
        # The layer gives g·(x + a); what it adds, g·(x + a) - x, becomes F times that with g' = 1 + F·(g - 1), a' = F·g/g'·a.
        old = float(part.gain.tensor.array()[0])
        new = 1.0 + factor * (old - 1.0)
        if abs(new) < 1e-6:
            raise UnsupportedError(f"layer {part.label}: scaled by {factor:g}, its {gguf_names.LAYER_SCALE} would be 0")
        gain = Piece(F32, InMemory(np.array([new], np.float32)), None)
        scaled = _multiplied(part, names, factor * old / new)
        pieces = scaled.pieces if part.half == "ffn" else {**scaled.pieces, gguf_names.LAYER_SCALE: gain}
        return replace(scaled, pieces=pieces, gain=gain)

    def attenuated(self, part: GGUFHalf, factor: float) -> GGUFHalf:
        """As `Space.attenuated`; InputError if it is not known which tensors set the scores of the architecture's layers."""
        names = gguf_names.queries_and_keys(part.pieces)
        if not names or self.file.arch not in gguf_names.SCORES_FOLLOW or self.file.get(gguf_names.CLAMP):
            raise InputError(
                f"layer {part.label}: it is not known which tensors scale the attention scores of this {self.file.arch} layer, "
                "so they cannot be attenuated"
            )
        return _multiplied(part, names, factor)

    def expert_count(self, part: GGUFHalf) -> int:
        router = part.pieces.get(f"{gguf_names.ROUTER}.weight")
        return router.shape[0] if router else 0

    def experts(self, part: GGUFHalf, order: tuple[int, ...]) -> GGUFHalf:
        """The half with these experts, in this order; CheckpointError where a tensor holds another number than the router."""
        roles = gguf_names.roles_in(self.file.architecture, part.pieces)
        ids = next((name for name, role in roles.items() if role and role.experts == "ids"), None)
        if ids:
            raise UnsupportedError(
                f"layer {part.label} has {ids}, which holds the experts' numbers, so that they must stay"
            )
        count = self.expert_count(part)
        _check_groups(self.file, count, order, part.label)
        by_expert = {name for name, role in roles.items() if role and role.experts == "axis"}
        for name in sorted(by_expert):
            if part.pieces[name].shape[0] != count:
                raise CheckpointError(
                    f"{self.file.header.path}: layer {part.label}: {name} holds {part.pieces[name].shape[0]} experts; expected "
                    f"{count}, as its router has; write the file again"
                )
        pieces = {name: _taken(p, order) if name in by_expert else p for name, p in part.pieces.items()}
        return replace(part, pieces=pieces)


def _check_groups(file: LayeredFile, count: int, order: tuple[int, ...], label: str) -> None:
    """Raise InputError if experts would come into another group: groups are runs of expert ids (`build_moe_ffn`)."""
    groups = file.get("expert_group_count")
    if type(groups) is not int or groups < 2 or count % groups:
        return
    old, new = count // groups, len(order) // groups
    parts = [{expert // old for expert in order[n * new : (n + 1) * new]} for n in range(groups)] if new else []
    if len(order) % groups or any(len(part) != 1 for part in parts) or len({*map(min, parts)}) != groups:
        raise InputError(
            f"layer {label}: its {count} experts are {groups} groups of {old}, from which the router chooses, and these would "
            "not be whole groups of the same experts; drop as many of each group in one op, or exchange two of one group"
        )


def _passes(rewrite: str, method: Method) -> bool:
    """Whether a blend of what a rewrite made is what it makes of a blend."""
    return method != "slerp-tensor" and blend_passes(rewrite, angles=method == "slerp")


def _multiplied(part: GGUFHalf, names: Sequence[str], factor: float) -> GGUFHalf:
    pieces = dict(part.pieces)
    for name in names:
        _check_encodes(name, pieces[name].type)
        pieces[name] = Piece(pieces[name].type, times(pieces[name].tensor, factor), None)
    return replace(part, pieces=pieces)


def _taken(piece: Piece, order: tuple[int, ...]) -> Piece:
    """Entries of the first axis, as byte ranges if the tensor is one, because no block contains weights of two rows."""
    tensor = take(piece.tensor, order)
    if piece.ranges is None or (len(piece.shape) == 1 and not piece.type.plain):
        return Piece(piece.type, tensor, None)
    entries = piece.ranges
    if len(entries) == 1:
        whole, count = entries[0], piece.shape[0]
        step = whole.count // count
        entries = tuple(whole.part(step * n, step) for n in range(count))
    return Piece(piece.type, tensor, tuple(entries[n] for n in order))


def _check_encodes(name: str, dtype: TensorType) -> None:
    known = tensor_type(dtype.name)
    if not known.encodes or known.needs_importance:
        reason = "tinyq can only read" if not known.encodes else "cannot be written without an importance matrix"
        raise InputError(f"tensor {name} is stored as {dtype.name}, which {reason}; blend or scale before quantizing")


def _kind(a: GGUFHalf, b: GGUFHalf) -> str:
    """A description of the differences of half `a` from half `b`."""
    stems = {stem(name) for name in a.pieces}
    if a.half == "ffn" and (gguf_names.ROUTER in stems) != any(n.startswith(gguf_names.ROUTER) for n in b.pieces):
        return "experts" if gguf_names.ROUTER in stems else "a dense feed-forward"
    if a.half == "attention" and any(name.startswith("ssm_") for name in stems | set(b.pieces)):
        return "linear attention (ssm_…)" if any(name.startswith("ssm_") for name in stems) else "full attention"
    own = sorted(set(a.pieces) - set(b.pieces))
    return ", ".join(own[:3]) if own else "none of these tensors"
