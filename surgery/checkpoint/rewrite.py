"""Layer surgery on a checkpoint (a folder in Hugging Face layout or a torch state dict), which writes a new folder.

The checkpoint's family determines the layer and role of each tensor, so this module is independent of tensor names. Tensors
are renamed, blended and scaled in their stored form; before the folder gets its final name, it is opened again to check that
it describes the intended model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.conversion.provenance import RECIPE_FILE
from gguf_tools.description.toml import parse_description
from gguf_tools.description.write import restated
from gguf_tools.errors import CheckpointError, InputError, OutputError, UnsupportedError
from gguf_tools.families.registry import build_model
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.formats.output import Check, atomic_folder, check_outputs
from gguf_tools.formats.remote import file_size
from gguf_tools.formats.safetensors import WIDTHS, Stored, StoredTensor, write_safetensors
from gguf_tools.formats.state_dict import StateTensor
from gguf_tools.model.spec import Model
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.adapters.adapter import GivenAdapter
from gguf_tools.sources.checkpoint import (
    CONFIG,
    DESCRIPTION,
    INDEX,
    LIT_CONFIG,
    MARKS,
    PARAMS,
    SINGLE,
    TORCH_INDEX,
    Checkpoint,
    DescriptionText,
    open_checkpoint,
)
from gguf_tools.sources.inputs import source_files
from gguf_tools.tensors.base import Tensor
from quant.encode import ByteArray, FloatArray, narrow
from quant.finite import first_nonfinite
from quant.types import tensor_type
from surgery.algebra import HALVES, Stack, evaluate, origins
from surgery.checkpoint.config import followed
from surgery.checkpoint.donors import differences
from surgery.checkpoint.layers import FLOATS, CheckpointSpace, open_layers
from surgery.model import rebuilt
from surgery.recipe import Recipe, file_text, read_file
from surgery.sources import Donor

PIECE = 1 << 20
"""Number of elements, or of bytes that are only copied, per piece."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz")
BESIDE = re.compile(
    r"(tokenizer|generation|special_tokens|added_tokens|chat_template|vocab|merges|README).*\.(json|jinja|txt|model|md)"
)
"""Files copied from the folder of a single-file checkpoint, which may contain unrelated files."""


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
    notes: tuple[str, ...] = ()

    @property
    def computed(self) -> list[str]:
        """Names of the tensors that are computed and not copied."""
        return [name for name, tensor in self.tensors.items() if not isinstance(tensor, StoredTensor | StateTensor)]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size * _width(tensor) for tensor in self.tensors.values())


def plan_checkpoint(path: Path, recipe: Recipe, adapters: Sequence[GivenAdapter] = ()) -> CheckpointPlan:
    """Plan the surgery from the headers and configs of the checkpoint and of the recipe's donors alone.

    `adapters` are merged into the checkpoint first.

    Raises InputError or a subclass for an invalid index, a blend of different kinds, a checkpoint without a family, or a donor
    whose layers cannot stand in the checkpoint.
    """
    source = open_layers(path, adapters)
    checkpoint, model, names = source.checkpoint, source.model, source.names
    donors = {donor.name: open_layers(donor.path) for donor in recipe.donors}
    stack = recipe.apply(len(model.layers), {name: len(donor.model.layers) for name, donor in donors.items()})
    notes: tuple[str, ...] = checkpoint.notes if adapters else ()
    for donor in recipe.donors:
        used = {origin.index for layer in stack for origin in origins(layer) if origin.source == donor.name}
        found = differences(source, donors[donor.name], used, donor.name)
        found.refuse(donor.name, donor.path)
        notes += found.notes
    meant = rebuilt(model, stack, {name: donor.model for name, donor in donors.items()})
    space = CheckpointSpace(source, donors)
    tensors: dict[str, Tensor] = {}
    for n, layer in enumerate(stack):
        for half in HALVES:
            part = evaluate(layer, half, space)
            tensors |= {f"{names.prefix}{n}.{rest}": tensor for rest, tensor in part.tensors.items()}
    shift = len(stack) - len(model.layers)
    for key, (n, rest) in names.beyond.items():
        tensors[f"{names.prefix}{n + shift}.{rest}"] = checkpoint.tensors[key]
    tensors |= {key: checkpoint.tensors[key] for key in names.others}
    config = followed(
        checkpoint.config,
        model.spec,
        meant.spec,
        stack,
        {name: donor.checkpoint.config for name, donor in donors.items()},
    )
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
        notes=notes,
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
    check_outputs({"OUT": out}, source_files(plan.checkpoint.path), force=force, folders={"OUT": MARKS})
    if plan.checkpoint.path.resolve() in out.resolve().parents:
        raise OutputError(f"{out}: lies in the source {plan.checkpoint.path}; give another folder")
    files = _files_beside(plan.checkpoint)
    refuse_links_out(plan.checkpoint.folder, files)
    size = plan.size + sum(file.stat().st_size for file in files)
    with atomic_folder(out, force=force, size=size, check=check, marks=MARKS) as folder:
        for file in files:
            _copy(file, folder / file.name)
        if plan.config or plan.checkpoint.description is None:
            # A lone surrogate, which JSON allows, stays the escape that it was.
            text = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
            (folder / CONFIG).write_text(text, "utf-8", "backslashreplace")
        if plan.checkpoint.description is not None:
            (folder / DESCRIPTION).write_text(_described(plan, plan.checkpoint.description), "utf-8")
        if plan.recipe or plan.before:
            (folder / RECIPE_FILE).write_text(_history(plan, out), "utf-8")
        _write_weights(plan, folder, progress, allow_nonfinite)
        made = build_model(open_checkpoint(folder), check_type=lambda *_: "")  # the source has been checked
        if made.spec != plan.model.spec:
            stated = "the description" if plan.checkpoint.description else "config.json of this family"
            raise UnsupportedError(
                f"{out}: {stated} cannot express the new layers "
                f"({plan.model.spec.pattern} intended, {made.spec.pattern} read back); use tinyq convert with these options"
            )
    return plan.size


def _history(plan: CheckpointPlan, out: Path) -> str:
    """The recipe of all surgery so far, with the digests of the donors, and of the checkpoint itself where there are some."""
    layers = plan.before.layers or len(plan.source_model.layers)
    recipe = plan.recipe.with_digests()
    path = plan.checkpoint.path
    base = Donor("", path, plan.checkpoint.digest()) if recipe.donors and not plan.before else None
    return file_text(plan.before.then(recipe), layers, out, base)


def _described(plan: CheckpointPlan, stated: DescriptionText) -> str:
    """The description of the new folder: that of the source, with fields of single layers following their layers."""
    checkpoint, description = plan.checkpoint, parse_description(stated.text, stated.path)
    layers = f"{len(plan.source_model.layers)} layers became {len(plan.model.layers)}"
    head = [f"After layer surgery on {checkpoint.path.name}: {layers}. {RECIPE_FILE} has the recipe."]
    return restated(description, checkpoint, plan.model.spec, head)


def _copy(source: Path, target: Path) -> None:
    """Copy a file of the checkpoint; CheckpointError where it cannot be read, OSError where the copy cannot be written."""
    file = DataFile(source)
    with target.open("wb") as stream:
        for start in range(0, file.size, PIECE):
            stream.write(file.read(start, min(PIECE, file.size - start)))


def _files_beside(checkpoint: Checkpoint) -> list[Path]:
    """Files to copy besides weights: all others of a checkpoint's folder; for a single file only those matching `BESIDE`."""
    files = [
        path
        for path in checkpoint.folder.iterdir()
        if path.is_file() and path.name not in (INDEX, TORCH_INDEX, CONFIG, PARAMS, LIT_CONFIG, DESCRIPTION)
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
    limit = max(file_size(path) for path in checkpoint.weight_files)
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
