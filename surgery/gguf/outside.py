"""Tensors outside of the layers that hold a part for each layer: the parts follow their layers."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.tensors.views import take, take_columns
from surgery.algebra import Original, Stack, origins
from surgery.architectures.base import Slice
from surgery.gguf.layers import Columns, LayeredFile, Piece


def sliced(file: LayeredFile) -> dict[str, Slice]:
    """The file's tensors with a part for each layer."""
    held = {**file.before, **file.after}
    return {part.tensor: part for part in file.architecture.slices if part.tensor in held}


def check_sliced(file: LayeredFile, stack: Stack) -> None:
    """Raise UnsupportedError for layers that are means of others, whose parts of these tensors would have to be computed."""
    names = list(sliced(file))
    mixed = next((n for n, layer in enumerate(stack) if len(origins(layer)) != 1), None)
    if names and mixed is not None:
        raise UnsupportedError(
            f"{names[0]} holds a slice for each layer, and layer {mixed} would come from several; such layers of "
            f"{file.arch} can only be moved, copied, left out or scaled"
        )


def follow(file: LayeredFile, stack: Stack) -> dict[str, Piece]:
    """The tensors with the parts of the stack's layers, in their order."""
    found = sliced(file)
    if not found:
        return {}
    order = [_index(file, origins(layer)[0]) for layer in stack]
    held = {**file.before, **file.after}
    return {name: _parts(file, name, held[name], part, order) for name, part in found.items()}


def _index(file: LayeredFile, origin: Original) -> int:
    if origin.source:
        raise UnsupportedError(
            f"layers of another file cannot be put into {file.header.path}, which has tensors with a slice "
            "for each of its own layers"
        )
    return origin.index


def _parts(file: LayeredFile, name: str, piece: Piece, part: Slice, order: Sequence[int]) -> Piece:
    """The tensor with the parts `order`; parts of rows are byte ranges, parts of columns are cut out of each row."""
    count = len(file.layers)
    rows, columns = piece.shape if len(piece.shape) == 2 else (0, 0)
    length = rows if part.axis == 0 else columns
    if length < count or length % count or piece.ranges is None:
        raise CheckpointError(
            f"{file.header.path}: {name} has shape {piece.shape}; expected a slice for each of {count} layers"
        )
    width = length // count
    (whole,) = piece.ranges
    index = [n * width + k for n in order for k in range(width)]
    if part.axis == 0:
        step = whole.count // count
        ranges = tuple(whole.part(n * step, step) for n in order)
        return Piece(piece.type, take(piece.tensor, index), ranges)
    if width % piece.type.block:
        raise UnsupportedError(
            f"{file.header.path}: {name} is stored as {piece.type} in blocks of {piece.type.block} weights, and a layer's part "
            f"has {width}; operate before quantizing"
        )
    cut = Columns(whole, rows, count, tuple(order))
    return Piece(piece.type, take_columns(piece.tensor, index), (), cut)
