"""The layers of a checkpoint by their tensors' names, and surgery on them.

The checkpoint's family determines the layer and role of each tensor, so this module is independent of tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.model.spec import Model
from gguf_tools.sources.adapters.adapter import GivenAdapter
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take
from surgery.algebra import Half, Method, Original, Space
from surgery.arithmetic import mixed, times
from surgery.checkpoint.adapters import merged_as_stored
from surgery.model import EXPERT_PREFIX, ModelHalf, ModelSpace, half_of_role, output_roles, score_roles

FLOATS = ("F64", "F32", "F16", "BF16")
NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class CheckpointHalf:
    """Half a layer: its tensors by name without the layer's prefix, and the same half of the Model."""

    kind: ModelHalf
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Names:
    """A checkpoint's tensor names by layer.

    Tensors of layer N are named `prefix`N.…; `layers` has them by the rest of the name, `roles` their roles, and `beyond` those
    with a number after the last layer (MTP blocks), which stay after it.
    """

    prefix: str
    layers: tuple[Mapping[str, str], ...]
    roles: Mapping[str, frozenset[str]]
    beyond: Mapping[str, tuple[int, str]]
    others: tuple[str, ...]


def read_names(checkpoint: Checkpoint, model: Model) -> Names:
    """Assign tensor names to layers by the roles that the family gave to the tensors.

    Raises UnsupportedError if the names do not contain the layer's number.
    """
    key_of = {source: key for key, tensor in checkpoint.tensors.items() for source in tensor.sources}
    count = len(model.layers)
    prefixes: set[str] = set()
    roles: dict[str, set[str]] = {}
    for n, layer in enumerate(model.layers):
        for role, tensor in layer.tensors.items():
            for source in tensor.sources:
                key = key_of.get(source, source)
                match = NUMBER.search(key)
                if match is None or int(match[1]) != n:
                    raise UnsupportedError(
                        f"{checkpoint.path}: tensor {key} of layer {n} does not have that number in its name"
                    )
                prefixes.add(key[: match.start(1)])
                roles.setdefault(key, set()).add(role)
    if len(prefixes) != 1:
        raise UnsupportedError(
            f"{checkpoint.path}: the names of layer tensors have several prefixes ({', '.join(sorted(prefixes))}); expected one"
        )
    prefix = prefixes.pop()
    layers: list[dict[str, str]] = [{} for _ in range(count)]
    beyond: dict[str, tuple[int, str]] = {}
    others = []
    for key in checkpoint.tensors:
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.(.+)", key)
        if match is None:
            others.append(key)
        elif int(match[1]) < count:
            layers[int(match[1])][match[2]] = key
        else:
            beyond[key] = (int(match[1]), match[2])
    found = {key: frozenset(value) for key, value in roles.items()}
    return Names(prefix=prefix, layers=tuple(layers), roles=found, beyond=beyond, others=tuple(others))


@dataclass(frozen=True)
class LayerSource:
    """A checkpoint that layers are taken from: the model that is operated on, or a donor."""

    checkpoint: Checkpoint
    model: Model
    names: Names


class CheckpointSpace(Space[CheckpointHalf]):
    """The layers of a checkpoint, and of donors by name, with tensors in their stored form."""

    def __init__(self, source: LayerSource, donors: Mapping[str, LayerSource]) -> None:
        self.sources = {"": source, **donors}
        self.names = source.names
        self.model = ModelSpace(source.model, {name: donor.model for name, donor in donors.items()})

    def half(self, origin: Original, half: Half) -> CheckpointHalf:
        """Half of a layer, with the tensors whose roles belong to it."""
        source = self.sources[origin.source]
        tensors = {}
        for rest, key in source.names.layers[origin.index].items():
            halves = {half_of_role(role) for role in source.names.roles.get(key, ())}
            if len(halves) > 1:
                raise UnsupportedError(
                    f"tensor {key} belongs to both halves of its layer, which surgery cannot separate"
                )
            # Tensors without a role (RoPE frequencies, a mask) belong to the attention half.
            if (halves or {"attention"}) == {half}:
                tensors[rest] = source.checkpoint.tensors[key]
        return CheckpointHalf(self.model.half(origin, half), tensors)

    def roles(self, rest: str) -> frozenset[str]:
        """The roles of the tensor with this name (without the layer's prefix)."""
        keys = (layer[rest] for layer in self.names.layers if rest in layer)
        return frozenset(role for key in keys for role in self.names.roles.get(key, ()))

    def mismatch(self, a: CheckpointHalf, b: CheckpointHalf) -> tuple[str, str] | None:
        kinds = self.model.mismatch(a.kind, b.kind)
        if kinds:
            return kinds
        for rest in sorted(a.tensors.keys() | b.tensors.keys()):
            shapes = [half.tensors[rest].shape if rest in half.tensors else None for half in (a, b)]
            if self.roles(rest) and shapes[0] != shapes[1]:
                return f"{rest} {shapes[0] or 'missing'}", f"{rest} {shapes[1] or 'missing'}"
        return None

    def blend(self, parts: Sequence[tuple[CheckpointHalf, float]], method: Method) -> CheckpointHalf:
        """As `Space.blend`; tensors without a role are those of the first half."""
        first = parts[0][0]
        first.kind.require_arithmetic()
        tensors = {}
        for rest, tensor in first.tensors.items():
            tensors[rest] = tensor
            if len(self.roles(rest)) > 1 and method == "slerp-tensor":
                raise UnsupportedError(
                    f"tensor {rest} holds several matrices, between which slerp-tensor would have one angle; use slerp"
                )
            if self.roles(rest):
                tensors[rest] = mixed([(_number(part.tensors[rest]), weight) for part, weight in parts], method)
        return CheckpointHalf(first.kind, tensors)

    def scaled(self, part: CheckpointHalf, factor: float) -> CheckpointHalf:
        part.kind.require_arithmetic()
        roles = output_roles(part.kind)
        return self._multiplied(part, frozenset(roles), factor, "an output projection", max(roles.values()))

    def attenuated(self, part: CheckpointHalf, factor: float) -> CheckpointHalf:
        part.kind.require_arithmetic()
        roles, offset = score_roles(part.kind)
        return self._multiplied(part, roles, factor, "queries and keys", offset)

    def _multiplied(
        self, part: CheckpointHalf, chosen: frozenset[str], factor: float, what: str, offset: float = 0.0
    ) -> CheckpointHalf:
        """The half with w + `offset` multiplied by `factor` for each weight w of the `chosen` roles (`what` in errors)."""
        tensors = {}
        for rest, tensor in part.tensors.items():
            roles = self.roles(rest)
            if roles & chosen and not roles <= chosen:
                raise UnsupportedError(f"tensor {rest} holds more than {what}, so it cannot be scaled")
            tensors[rest] = times(_number(tensor), factor, offset) if roles & chosen else tensor
        return CheckpointHalf(part.kind, tensors)

    def expert_count(self, part: CheckpointHalf) -> int:
        return self.model.expert_count(part.kind)

    def experts(self, part: CheckpointHalf, order: tuple[int, ...]) -> CheckpointHalf:
        """As `Space.experts`: stacked tensors are indexed along the first axis, tensors per expert are renumbered."""
        kind = self.model.experts(part.kind, order)
        places = {expert: place for place, expert in reversed(list(enumerate(order)))}
        tensors: dict[str, Tensor] = {}
        for rest, tensor in part.tensors.items():
            if not any(role.startswith(EXPERT_PREFIX) for role in self.roles(rest)):
                tensors[rest] = tensor
                continue
            number = NUMBER.search(rest)
            if number is None:
                # One tensor for all experts: its first axis is the expert.
                tensors[rest] = take(tensor, order)
            elif int(number[1]) in places:
                renamed = f"{rest[: number.start(1)]}{places[int(number[1])]}{rest[number.end(1) :]}"
                tensors[renamed] = tensor
        return CheckpointHalf(kind, tensors)


def _number(tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise InputError(
            f"tensor {', '.join(tensor.sources[:1])} is stored as {tensor.dtype}; blends and scales need {', '.join(FLOATS)}"
        )
    return tensor


def open_layers(path: Path, adapters: Sequence[GivenAdapter] = ()) -> LayerSource:
    """Open a checkpoint for surgery, with these adapters merged.

    Errors as `open_checkpoint` and `build_model`, and InputError for a GGUF.
    """
    if path.is_file() and is_gguf(path):
        raise InputError(f"{path}: is a GGUF file; a checkpoint takes layers of checkpoints alone, convert it first")
    checkpoint = merged_as_stored(open_checkpoint(path).adapted(adapters))
    model = build_model(checkpoint, check_type=check_model_type)
    return LayerSource(checkpoint, model, read_names(checkpoint, model))
