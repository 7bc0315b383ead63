"""Takes the tensor of each role out of a checkpoint, as a description's sources say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from gguf_tools.description.schema import EXPERT, VOCABULARY, Description, Source, roles_of
from gguf_tools.errors import CheckpointError
from gguf_tools.model.norms import Shape
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Reshaped, Transposed, stack, take_rows

PADDED = ("embedding", "output", "output_bias")
"""Roles whose tensors may have rows that no token has."""


@dataclass(frozen=True)
class Placing:
    """A checkpoint, and the description that its tensors are placed by."""

    description: Description
    checkpoint: Checkpoint

    def stored(self, source: Source, n: int = 0, expert: int = 0) -> Tensor:
        """One tensor of a source as (out, in), lazily; CheckpointError if it is missing or empty."""
        path, name = self.checkpoint.path, source.name(n, expert)
        if name not in self.checkpoint.tensors:
            what = " + ".join(source.roles)
            raise CheckpointError(
                f"{path}: tensor {name} is missing, which {self.description.path.name} names for {what}"
            )
        tensor = self.checkpoint.tensors[name]
        if 0 in tensor.shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {tensor.shape}, which holds no weights")
        if source.transposed and len(tensor.shape) not in (2, 3):
            raise CheckpointError(f"{path}: tensor {name} has shape {tensor.shape}; expected a matrix to transpose")
        whole = EXPERT not in source.tensor and len(tensor.shape) == 2
        return transposed(tensor) if source.transposed and (whole or is_stack(source)) else tensor

    def placed(self, sources: Sequence[Source], shapes: Mapping[str, Shape], n: int | None = None) -> dict[str, Tensor]:
        """The tensor of each role in `shapes`, of layer `n` or outside the layers.

        Raises InputError for a role without a source, CheckpointError for a tensor whose shape does not fit.
        """
        by_role, out = roles_of(sources), {}
        table = ("tensors",) if n is None else ("tensors", "layer")
        for role, shape in shapes.items():
            if role not in by_role:
                where = f" (layer {n})" if n is not None else ""
                text = f"is missing{where}; expected the name of a tensor of shape {shape}"
                raise self.description.error((*table, role), text)
            source = by_role[role]
            lacking = next((other for other in source.roles if other not in shapes), None)
            if lacking is not None:
                text = f"shares a tensor with {role}, but the model as described has no such role"
                raise self.description.error((*table, lacking), text)
            out[role] = self._role(source, role, shapes, n or 0)
        return out

    def _role(self, source: Source, role: str, shapes: Mapping[str, Shape], n: int) -> Tensor:
        """The tensor of one role, cut out of its source and stacked over experts."""
        if EXPERT not in source.tensor:
            return self.cut(self.stored(source, n), source, role, shapes)
        if not is_stack(source):
            return self.cut(self._of_heads(source, n), source, role, shapes)
        rest = {other: shapes[other][1:] for other in source.roles}
        each = (self.stored(source, n, expert) for expert in range(shapes[role][0]))
        return stack([self.cut(tensor, source, role, rest) for tensor in each])

    def _of_heads(self, source: Source, n: int) -> Tensor:
        """The tensors of all heads as a stack."""
        return stack([self.stored(source, n, head) for head in range(expert_count(source, self.checkpoint, n))])

    def cut(self, tensor: Tensor, source: Source, role: str, shapes: Mapping[str, Shape]) -> Tensor:
        """The rows of one role, in its shape; of three axes the first counts matrices. CheckpointError if they do not fit."""
        shape, axis = shapes[role], _rows_axis(role, shapes[role])
        if role in PADDED and VOCABULARY in self.description.model and tensor.shape[0] > shape[0]:
            tensor = take_rows(tensor, 1, 0, shape[0])
        rows = [shapes[other][axis] for other in source.roles]
        whole = (*shape[:axis], sum(rows), *shape[axis + 1 :])
        if len(tensor.shape) == len(whole) + 1 and not is_stack(source):
            tensor = _joined(tensor, whole, source.transposed)
        found = [size for size in tensor.shape if size != 1]
        if found != [size for size in whole if size != 1] or any(size % source.blocks for size in rows):
            what = " + ".join(source.roles) + (f" in {source.blocks} blocks" if source.blocks > 1 else "")
            names = ", ".join(tensor.sources)
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {names} has shape {tensor.shape}; expected {whole} for {what}, as "
                f"{self.description.path.name} describes it"
            )
        if len(rows) == 1:
            return tensor if tensor.shape == shape else Reshaped(tensor, shape)
        at, matrices = source.roles.index(role), prod(shape[:axis])
        flat = Reshaped(tensor, (matrices * whole[axis], *shape[axis + 1 :]))
        first, count = sum(rows[:at]) // source.blocks, rows[at] // source.blocks
        taken = take_rows(flat, matrices * source.blocks, first, count)
        return taken if taken.shape == shape else Reshaped(taken, shape)


def is_stack(source: Source) -> bool:
    """Whether several matrices of a source are those of experts; of other roles they are those of heads, which are joined."""
    return source.roles[0].startswith("moe.")


def expert_count(source: Source, checkpoint: Checkpoint, n: int) -> int:
    """How many experts or heads there are tensors of, counted from 0 on."""
    count = 0
    while source.name(n, count) in checkpoint.tensors:
        count += 1
    return count


def _joined(tensor: Tensor, whole: Shape, turned: bool) -> Tensor:
    """A tensor with an axis for the heads as one of shape `whole`, without it; unchanged if the sizes do not allow it.

    With `turned` it is stored as (in, out): as a whole, with the heads first or last of `out`'s sizes, or each head by itself.
    """
    if prod(tensor.shape) != prod(whole):
        return tensor
    if len(whole) == 1 or not turned:
        joins = whole in ((prod(tensor.shape[:2]), *tensor.shape[2:]), (tensor.shape[0], prod(tensor.shape[1:])))
        return Reshaped(tensor, whole) if joins or len(whole) == 1 else tensor
    count, rows, columns = tensor.shape
    if whole[::-1] in ((count * rows, columns), (count, rows * columns)):
        return Transposed(Reshaped(tensor, whole[::-1]))
    return Reshaped(transposed(tensor), whole) if whole == (count * columns, rows) else tensor


def _rows_axis(role: str, shape: Shape) -> int:
    """The axis of a role's rows: after that of the experts where there is one."""
    stacked = role.startswith("moe.") and role.endswith("_bias") and len(shape) == 2
    return 1 if stacked else max(len(shape) - 2, 0)


def transposed(tensor: Tensor) -> Tensor:
    """A matrix, or each of a stack of matrices, with its axes exchanged."""
    if len(tensor.shape) == 2:
        return Transposed(tensor)
    count, rows, columns = tensor.shape
    flat = Reshaped(tensor, (count * rows, columns))
    return stack([Transposed(take_rows(flat, 1, n * rows, rows)) for n in range(count)])
