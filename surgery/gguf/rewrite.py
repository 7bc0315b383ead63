"""Layer surgery on a GGUF file: a plan from its header, and one streaming pass that writes the new file.

Whole layers are copied byte by byte, by the kernel where possible; computed tensors are encoded in the same pass.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import MAX_NAME, Field, TensorEntry, ValueType, array, place, string, u32
from gguf_tools.formats.gguf.split import KEYS
from gguf_tools.formats.output import Check, atomic_output, check_outputs
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.model_name import NAME, repaired_name
from quant.encode import Block, Encoder, FloatArray, RowRange, row_ranges
from surgery.algebra import HALVES, Half, Stack, evaluate, origins, parted
from surgery.gguf import names as gguf_names
from surgery.gguf import positions
from surgery.gguf.layers import LAYER, ByteRange, GGUFHalf, GGUFSpace, LayeredFile, Piece, half_of_key
from surgery.recipe import Recipe, parse_text

PATH_KEYS = (keys.SOURCE_PATH, keys.TOKENIZER_PATH)
"""Keys of paths relative to the file's folder."""
LLAMA_MAX_LAYERS = 512
"""llama.cpp's maximum number of blocks (`LLAMA_MAX_LAYERS`)."""
COPY_BYTES = 1 << 26
"""Bytes per copy by the kernel, small enough for a progress bar and Ctrl-C."""
READ_BYTES = 1 << 22
"""Bytes per read and write if the kernel cannot copy."""
NOT_SUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass(frozen=True, kw_only=True)
class GGUFPlan:
    """The output of surgery on a GGUF file: changed metadata (None for removed keys) and all tensors in order.

    `notes` are sentences for the user.
    """

    file: LayeredFile
    recipe: Recipe
    stack: Stack
    changes: dict[str, Field | None]
    outputs: tuple[tuple[str, Piece], ...]
    notes: tuple[str, ...] = ()

    @property
    def computed(self) -> list[str]:
        """Names of the tensors that are computed and not copied."""
        return [name for name, piece in self.outputs if piece.ranges is None]

    @property
    def letters(self) -> tuple[list[str], list[str]]:
        """The kinds of the layers before and after surgery: A attention, D linear attention; lower case without experts."""
        made: list[set[str]] = [set() for _ in self.stack]
        for name, _ in self.outputs:
            match = LAYER.fullmatch(name)
            if match and int(match[1]) < len(made):
                made[int(match[1])].add(match[2])
        return [_letter(layer) for layer in self.file.layers], [_letter(layer) for layer in made]

    @property
    def entries(self) -> tuple[tuple[TensorEntry, ...], int]:
        """The tensors' entries and the bytes of the data section."""
        shapes = [(name, piece.shape, piece.type) for name, piece in self.outputs]
        return place(shapes, self.file.header.alignment)


def _letter(names: Collection[str]) -> str:
    letter = "D" if any(name.startswith("ssm_") for name in names) else "A"
    return letter if f"{gguf_names.ROUTER}.weight" in names else letter.lower()


def plan_gguf(file: LayeredFile, recipe: Recipe) -> GGUFPlan:
    """Plan the surgery from the header alone.

    Raises InputError for an invalid index or a blend of different kinds, UnsupportedError if the architecture cannot express
    the new layers.
    """
    stack = recipe.apply(len(file.layers))
    if len(stack) + len(file.trailing) > LLAMA_MAX_LAYERS:
        raise InputError(f"{len(stack)} layers would result; llama.cpp holds at most {LLAMA_MAX_LAYERS}")
    space = GGUFSpace(file)
    for origin in {origin for layer in stack for origin in parted(layer)}:
        space.check_halves(origin)
    new = [{half: evaluate(layer, half, space) for half in HALVES} for layer in stack]
    outputs = list(file.before.items())
    for n, layer in enumerate(stack):
        pieces = {**new[n]["attention"].pieces, **new[n]["ffn"].pieces}
        # In the order of the original layer, so that a whole layer is read sequentially.
        order = [name for name in file.layers[origins(layer)[0].index] if name in pieces]
        outputs += [(f"blk.{n}.{name}", pieces.pop(name)) for name in order]
        outputs += [(f"blk.{n}.{name}", piece) for name, piece in pieces.items()]
    for n, trailing in enumerate(file.trailing, len(stack)):
        outputs += [(f"blk.{n}.{name}", piece) for name, piece in trailing.items()]
    outputs += file.after.items()
    too_long = next((name for name, _ in outputs if len(name.encode()) > MAX_NAME), None)
    if too_long:
        raise InputError(f"tensor name {too_long} would be longer than ggml's {MAX_NAME} bytes")
    changes = _metadata(file, new, recipe)
    renamed, notes = _renamed(file)
    return GGUFPlan(
        file=file, recipe=recipe, stack=stack, changes=changes | renamed, outputs=tuple(outputs), notes=notes
    )


def _renamed(file: LayeredFile) -> tuple[dict[str, Field | None], tuple[str, ...]]:
    """The changes to a file that llama.cpp would refuse for its `general.name`, and a note on them."""
    repaired = repaired_name(file.header.get)
    if repaired is None:
        return {}, ()
    name, note = repaired
    told = file.header.get(keys.NOTES)
    notes = (*(told if isinstance(told, tuple) else ()), note)
    return {NAME: string(name), keys.NOTES: array(ValueType.STRING, notes)}, (note,)


def _metadata(file: LayeredFile, new: list[dict[Half, GGUFHalf]], recipe: Recipe) -> dict[str, Field | None]:
    """The changed metadata: layer count, per-layer values, expert counts, the recorded recipe (None for removed keys)."""
    prefix = f"{file.arch}."
    changes: dict[str, Field | None] = {}
    count = len(new) + len(file.trailing)
    changes[f"{prefix}block_count"] = _like(file, f"{prefix}block_count", count)
    for key, old in file.arrays.items():
        values = [layer[half_of_key(key)].values[key] for layer in new]
        changes[prefix + key] = _like(file, prefix + key, (*values, *old[len(file.layers) :]))
    for what, (trait, _) in file.traits.items():
        wanted = [layer[trait.half].values[what] for layer in new]
        placed = positions.placed(trait, file.arch, file.get, wanted, len(file.trailing))
        changes |= {prefix + key: value for key, value in placed.items()}
    _check_both_kinds(file, changes)
    changes |= _experts(file, new)
    changes |= {key: None for key in file.header.metadata if key in KEYS}
    changes[keys.SURGERY] = string(str(recorded(file).then(recipe)))
    return {key: value for key, value in changes.items() if value != file.header.metadata.get(key)}


def _check_both_kinds(file: LayeredFile, changes: dict[str, Field | None]) -> None:
    """Raise UnsupportedError for a hybrid with only one kind of layer, for which llama.cpp aborts the process."""
    key = f"{file.arch}.attention.recurrent_layers"
    field = changes.get(key)
    if file.arch in positions.RECURRENT and field and isinstance(field.value, tuple):
        trunk = field.value[: len(field.value) - len(file.trailing)]
        if len(set(trunk)) == 1:
            left_out = "full" if trunk[0] else "linear"
            raise UnsupportedError(
                f"llama.cpp's {file.arch} does not run a model without {left_out} attention layers; keep one"
            )


def recorded(file: LayeredFile) -> Recipe:
    """The recipe of surgery that the file records."""
    text = file.header.get(keys.SURGERY)
    return parse_text(text) if isinstance(text, str) and text else Recipe()


def _like(file: LayeredFile, key: str, value: object) -> Field:
    """A value with the type that the key has in the file."""
    field = file.header.metadata[key]
    return Field(field.type, value, field.element)


def _experts(file: LayeredFile, new: list[dict[Half, GGUFHalf]]) -> dict[str, Field | None]:
    """The changed expert count, of which llama.cpp has one for all layers, if experts were dropped."""
    router = f"{gguf_names.ROUTER}.weight"
    counts = {n: layer["ffn"].pieces[router].shape[0] for n, layer in enumerate(new) if router in layer["ffn"].pieces}
    counts |= {len(new) + n: layer[router].shape[0] for n, layer in enumerate(file.trailing) if router in layer}
    stated = file.get("expert_count")
    if not counts or set(counts.values()) == {stated}:
        return {}
    if len(set(counts.values())) > 1:
        few, many = (min(counts, key=lambda n: sign * counts[n]) for sign in (1, -1))
        raise InputError(
            f"layer {few} would have {counts[few]} experts and layer {many} {counts[many]}; llama.cpp has one count for all "
            f"layers, so drop as many in each (drop-experts 0..{len(new) - 1}:…)"
        )
    count = next(iter(counts.values()))
    used, groups = file.get("expert_used_count"), file.get("expert_group_count")
    if type(used) is int and count < used:
        raise InputError(f"{count} of {stated} experts would stay, but {used} are chosen a token; keep as many")
    if type(groups) is int and groups > 1 and count % groups:
        raise InputError(f"{count} experts would stay, which are not whole groups: the router has {groups}")
    return {f"{file.arch}.expert_count": u32(count)}


def write_plan(
    plan: GGUFPlan,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Write the new file atomically; returns its size in bytes.

    `check` is called before it appears; if it raises, nothing is left. What is computed may be NaN or infinite with
    `allow_nonfinite`, where its type has those; what is copied is not looked at.
    """
    check_outputs({"OUT": out}, _sources(plan), force=force)
    entries, data_bytes = plan.entries
    header = plan.file.header.rewritten(plan.changes | _paths(plan.file, out), entries)
    size = len(header) + data_bytes
    with atomic_output(out, force=force, size=size, check=check) as stream, Encoder(threads) as encoder:
        _allocate(stream, size)
        stream.write(header)
        for entry, (_, piece) in zip(entries, plan.outputs, strict=True):
            if piece.ranges is None:
                for encoded in encoder.encode(_blocks(entry, piece.tensor, allow_nonfinite)):
                    stream.write(encoded.raw.data)
                    progress(encoded.raw.nbytes)
            else:
                for part in piece.ranges:
                    copy_range(part, stream, progress)
            stream.write(b"\0" * (-entry.nbytes % plan.file.header.alignment))
    return size


def _paths(file: LayeredFile, out: Path) -> dict[str, Field | None]:
    """Where the file's source lies, as seen from the new file's folder."""
    here, there = file.header.path.resolve().parent, out.parent.resolve()
    paths = {key: file.header.get(key) for key in PATH_KEYS}
    return {
        key: string(Path(os.path.relpath(here / path, there)).as_posix())
        for key, path in paths.items()
        if isinstance(path, str)
    }


def _allocate(stream: BinaryIO, size: int) -> None:
    """Allocate the file's space first, so that a full disk is detected before copying, which is also faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise


def _sources(plan: GGUFPlan) -> set[Path]:
    return {part.file.path for _, piece in plan.outputs for part in piece.ranges or ()} | {plan.file.header.path}


def _blocks(entry: TensorEntry, tensor: Tensor, lax: bool) -> Iterator[Block]:
    def rows(part: RowRange) -> FloatArray:
        return tensor.flat(part.start * tensor.columns, part.stop * tensor.columns).reshape(-1, tensor.columns)

    for part in row_ranges(entry.shape, by_matrix=False):
        yield Block(name=entry.name, type=entry.type, rows=partial(rows, part), allow_nonfinite=lax)


def copy_range(part: ByteRange, stream: BinaryIO, progress: ByteProgress) -> None:
    """Append bytes of a source file to the stream, in the kernel where possible, else in pieces of `READ_BYTES`."""
    done = 0
    if hasattr(os, "copy_file_range"):
        stream.flush()
        at, target, source = stream.tell(), stream.fileno(), part.file.descriptor
        try:
            while done < part.count:
                step = min(COPY_BYTES, part.count - done)
                copied = os.copy_file_range(source, target, step, part.offset + done, at + done)
                if not copied:
                    break
                done += copied
                progress(copied)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        stream.seek(at + done)
    while done < part.count:
        piece = part.file.read(part.offset + done, min(READ_BYTES, part.count - done))
        stream.write(piece)
        done += len(piece)
        progress(len(piece))
