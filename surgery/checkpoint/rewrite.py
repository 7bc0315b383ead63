"""Layer surgery on a checkpoint (a folder in Hugging Face layout or a torch state dict), which writes a new folder.

The checkpoint's family determines the layer and role of each tensor, so this module is independent of tensor names. Tensors
are renamed, blended and scaled in their stored form; before the folder gets its final name, it is opened again to check that
it describes the intended model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.conversion.provenance import RECIPE_FILE
from gguf_tools.errors import CheckpointError, InputError, OutputError, UnsupportedError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_model
from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.formats.output import Check, atomic_folder
from gguf_tools.formats.safetensors import WIDTHS, Stored, StoredTensor, write_safetensors
from gguf_tools.formats.state_dict import StateTensor
from gguf_tools.model.spec import Model
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.checkpoint import CONFIG, INDEX, PARAMS, SINGLE, TORCH_INDEX, Checkpoint, open_checkpoint
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import take
from quant.encode import ByteArray, FloatArray, narrow
from quant.finite import first_nonfinite
from quant.types import tensor_type
from surgery.algebra import HALVES, Half, Method, Original, Space, Stack, evaluate
from surgery.arithmetic import mixed, times
from surgery.checkpoint.config import followed
from surgery.model import EXPERT_PREFIX, OUTPUT_ROLES, ModelHalf, ModelSpace, half_of_role, rebuilt, score_roles
from surgery.recipe import Recipe, file_text, read_file

FLOATS = ("F64", "F32", "F16", "BF16")
PIECE = 1 << 20
"""Number of elements that are read, computed and written per piece."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz")
BESIDE = re.compile(
    r"(tokenizer|generation|special_tokens|added_tokens|chat_template|vocab|merges|README).*\.(json|jinja|txt|model|md)"
)
"""Files copied from the folder of a single-file checkpoint, which may contain unrelated files."""
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


class CheckpointSpace(Space[CheckpointHalf]):
    """The layers of a checkpoint, with tensors in their stored form."""

    def __init__(self, checkpoint: Checkpoint, model: Model, names: Names) -> None:
        self.tensors = checkpoint.tensors
        self.names = names
        self.model = ModelSpace(model)

    def half(self, origin: Original, half: Half) -> CheckpointHalf:
        """Half of an original layer, with the tensors whose roles belong to it."""
        tensors = {}
        for rest, key in self.names.layers[origin.index].items():
            halves = {half_of_role(role) for role in self.names.roles.get(key, ())}
            if len(halves) > 1:
                raise UnsupportedError(
                    f"tensor {key} belongs to both halves of its layer, which surgery cannot separate"
                )
            # Tensors without a role (RoPE frequencies, a mask) belong to the attention half.
            if (halves or {"attention"}) == {half}:
                tensors[rest] = self.tensors[key]
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
        first = parts[0][0]
        first.kind.require_arithmetic()
        tensors = {}
        for rest, tensor in first.tensors.items():
            tensors[rest] = tensor
            if self.roles(rest):
                tensors[rest] = mixed([(_number(part.tensors[rest]), weight) for part, weight in parts], method)
        return CheckpointHalf(first.kind, tensors)

    def scaled(self, part: CheckpointHalf, factor: float) -> CheckpointHalf:
        part.kind.require_arithmetic()
        return self._multiplied(part, OUTPUT_ROLES, factor, "an output projection")

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


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """The output of surgery on a checkpoint: all tensors by their new names, the config, and the intended model."""

    checkpoint: Checkpoint
    recipe: Recipe
    before: Recipe
    source_model: Model
    model: Model
    stack: Stack
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def computed(self) -> list[str]:
        """Names of the tensors that are computed and not copied."""
        return [name for name, tensor in self.tensors.items() if not isinstance(tensor, StoredTensor | StateTensor)]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size * _width(tensor) for tensor in self.tensors.values())


def plan_checkpoint(path: Path, recipe: Recipe) -> CheckpointPlan:
    """Plan the surgery from headers and config alone.

    Raises InputError or a subclass for an invalid index, a blend of different kinds, or a checkpoint without a family.
    """
    checkpoint = open_checkpoint(path)
    model = build_model(checkpoint, check_type=check_model_type)
    stack = recipe.apply(len(model.layers))
    meant = rebuilt(model, stack)
    names = read_names(checkpoint, model)
    space = CheckpointSpace(checkpoint, model, names)
    tensors: dict[str, Tensor] = {}
    for n, layer in enumerate(stack):
        for half in HALVES:
            part = evaluate(layer, half, space)
            tensors |= {f"{names.prefix}{n}.{rest}": tensor for rest, tensor in part.tensors.items()}
    shift = len(stack) - len(model.layers)
    for key, (n, rest) in names.beyond.items():
        tensors[f"{names.prefix}{n + shift}.{rest}"] = checkpoint.tensors[key]
    tensors |= {key: checkpoint.tensors[key] for key in names.others}
    config = followed(checkpoint.config, model.spec, meant.spec, stack)
    history = checkpoint.folder / RECIPE_FILE
    before = read_file(history) if checkpoint.path.is_dir() and history.exists() else Recipe()
    return CheckpointPlan(
        checkpoint=checkpoint,
        recipe=recipe,
        before=before,
        source_model=model,
        model=meant,
        stack=stack,
        tensors=tensors,
        config=config,
    )


def write_checkpoint(
    plan: CheckpointPlan,
    out: Path,
    *,
    force: bool = False,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Write the folder atomically; returns the bytes of its weights.

    `check` is called before it appears; if it raises, nothing is left. A weight that is NaN or infinite is an InputError without
    `allow_nonfinite`.
    """
    source, target = plan.checkpoint.path.resolve(), out.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise OutputError(f"{out}: contains the source {plan.checkpoint.path}; give another folder")
    files = _files_beside(plan.checkpoint)
    refuse_links_out(plan.checkpoint.folder, files)
    with atomic_folder(out, force=force, size=plan.size, check=check) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        (folder / CONFIG).write_text(json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        layers = plan.before.layers or len(plan.source_model.layers)
        (folder / RECIPE_FILE).write_text(file_text(plan.before.then(plan.recipe), layers), "utf-8")
        _write_weights(plan, folder, progress, allow_nonfinite)
        made = build_model(open_checkpoint(folder), check_type=lambda *_: "")  # the source has been checked
        if made.spec != plan.model.spec:
            raise UnsupportedError(
                f"{out}: config.json of this family cannot express the new layers "
                f"({plan.model.spec.pattern} intended, {made.spec.pattern} read back); use tinyq convert with these options"
            )
    return plan.size


def _files_beside(checkpoint: Checkpoint) -> list[Path]:
    """Files to copy besides weights: all others of a checkpoint's folder; for a single file only those matching `BESIDE`."""
    files = [
        path
        for path in checkpoint.folder.iterdir()
        if path.is_file() and path.name not in (INDEX, TORCH_INDEX, CONFIG, PARAMS)
    ]
    if not checkpoint.path.is_dir():
        return [path for path in files if BESIDE.fullmatch(path.name)]
    return [path for path in files if path.suffix not in WEIGHT_SUFFIXES and not path.name.startswith(".")]


def _write_weights(plan: CheckpointPlan, folder: Path, progress: ByteProgress, lax: bool) -> None:
    """Write the weights as one safetensors file, or as shards with an index (`model.safetensors.index.json`)."""
    stored = [
        Stored(
            name=name,
            dtype=_dtype(tensor),
            shape=tensor.shape,
            width=_width(tensor),
            pieces=_bytes(name, tensor, lax),
        )
        for name, tensor in plan.tensors.items()
    ]
    # Wide types first, so that all tensors are aligned; then by name, in the order of the safetensors library.
    stored.sort(key=lambda tensor: (-tensor.width, tensor.name))
    shards = _shards(plan.checkpoint, stored)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, shards[0], plan.checkpoint.metadata, progress)
        return
    where: dict[str, str] = {}
    for n, shard in enumerate(shards, 1):
        file = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, plan.checkpoint.metadata, progress)
        where |= {tensor.name: file for tensor in shard}
    total = {"total_parameters": sum(prod(t.shape) for t in stored), "total_size": sum(t.nbytes for t in stored)}
    index = {"metadata": total, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _shards(checkpoint: Checkpoint, stored: list[Stored]) -> list[list[Stored]]:
    """One file if the source is one, else shards of at most the size of the source's largest."""
    if len(checkpoint.weight_files) < 2:
        return [stored]
    limit = max(path.stat().st_size for path in checkpoint.weight_files)
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in sorted(stored, key=lambda tensor: tensor.name):
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [sorted(shard, key=lambda tensor: (-tensor.width, tensor.name)) for shard in shards]


def _dtype(tensor: Tensor) -> str:
    if isinstance(tensor, StateTensor) and tensor.dtype not in FLOATS:
        raise CheckpointError(f"tensor {tensor.name} is stored as {tensor.dtype}; expected a floating-point type")
    return tensor.dtype


def _width(tensor: Tensor) -> int:
    return WIDTHS[_dtype(tensor)]


def _bytes(name: str, tensor: Tensor, lax: bool) -> Iterator[bytes | bytearray]:
    """A tensor's bytes in pieces, copied if it is an unchanged tensor of a safetensors file, else encoded.

    Raises InputError for a NaN or an infinity, unless `lax`.
    """
    for start in range(0, tensor.size, PIECE):
        stop = min(start + PIECE, tensor.size)
        if isinstance(tensor, StoredTensor):
            width = WIDTHS[tensor.dtype]
            piece: bytes | bytearray = tensor.file.read(tensor.offset + start * width, (stop - start) * width)
        else:
            piece = _encoded(tensor.flat(start, stop), tensor.dtype)
        if not lax:
            _require_finite(name, tensor, piece, start)
        yield piece


def _require_finite(name: str, tensor: Tensor, piece: bytes | bytearray, start: int) -> None:
    """Raise InputError, with its position, for NaN or infinity in `piece`, the tensor's bytes from element `start`."""
    found = _first_nonfinite(np.frombuffer(piece, np.uint8), tensor.dtype)
    if found:
        row, column = divmod(start + found[0], tensor.columns)
        raise InputError(
            f"tensor {name} holds {found[1]} at row {row}, column {column} (counted from 0); expected finite weights; repair "
            "the checkpoint, or keep them with --allow-nonfinite"
        )


def _first_nonfinite(raw: ByteArray, dtype: str) -> tuple[int, float] | None:
    """(index, value) of the first element that is NaN or infinite, of bytes in a dtype of safetensors."""
    if dtype in FLOATS:
        return first_nonfinite(raw, tensor_type(dtype))
    if dtype not in FLOAT8:
        return None
    bad = np.flatnonzero(~np.isfinite(FLOAT8[dtype])[raw])
    return (int(bad[0]), float(FLOAT8[dtype][raw[bad[0]]])) if bad.size else None


def _encoded(values: FloatArray, dtype: str) -> bytes:
    """The bytes of values that the type represents exactly."""
    if dtype in ("F16", "BF16"):
        return narrow(values, tensor_type(dtype)).tobytes()
    return values.astype({"F32": np.float32, "F64": np.float64}[dtype]).tobytes()
