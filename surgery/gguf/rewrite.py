"""Layer surgery on a GGUF file: a plan from its header, and one streaming pass that writes the new file.

Whole layers are copied byte by byte (`surgery.gguf.copy`); computed tensors are encoded in the same pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from gguf_tools.conversion.background import Background
from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import MAX_NAME, Field, TensorEntry, ValueType, array, is_gguf, place, string, u32
from gguf_tools.formats.gguf.made_from import digested, made_from
from gguf_tools.formats.gguf.source import gguf_digest
from gguf_tools.formats.gguf.split import KEYS
from gguf_tools.formats.gguf.surgery import RecordedSource, recorded_surgery, sources_metadata
from gguf_tools.formats.output import Check, atomic_output, check_outputs
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from gguf_tools.tokenizers.model_name import NAME, repaired_name
from quant.encode import Block, Encoder, FloatArray, RowRange, row_ranges
from surgery.algebra import HALVES, Half, Stack, evaluate, identity, origins
from surgery.architectures.base import Layers, Property
from surgery.donors import Differences
from surgery.gguf import names as gguf_names
from surgery.gguf import outside, positions
from surgery.gguf.arrays import half_of_key
from surgery.gguf.copy import NOT_SUPPORTED, copy_piece
from surgery.gguf.donors import aligned, differences
from surgery.gguf.layers import LAYER, GGUFHalf, GGUFSpace, LayeredFile, Piece, open_layered
from surgery.gguf.permitted import check_permitted
from surgery.recipe import Recipe, parse_text
from surgery.sources import Donor, source_digest

PATH_KEYS = (keys.SOURCE_PATH, keys.TOKENIZER_PATH)
"""Keys of paths relative to the file's folder."""
LLAMA_MAX_LAYERS = 512
"""llama.cpp's maximum number of blocks (`LLAMA_MAX_LAYERS`)."""


@dataclass(frozen=True, kw_only=True)
class GGUFPlan:
    """The output of surgery on a GGUF file: changed metadata (None for removed keys) and all tensors in order.

    `notes` are sentences for the user. `donors` are the other files that layers are taken from, by the recipe's name; each layer
    of `stack` says which file it is of.
    """

    file: LayeredFile
    donors: Mapping[str, LayeredFile] = field(default_factory=dict)
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
    def requantizes(self) -> bool:
        """Whether quantized weights are decoded and encoded anew."""
        return any(piece.ranges is None and not piece.type.plain for _, piece in self.outputs)

    @property
    def letters(self) -> tuple[list[str], list[str]]:
        """The types of the layers before and after surgery: A attention, D linear attention; lower case without experts."""
        made: list[set[str]] = [set() for _ in self.stack]
        for name, _ in self.outputs:
            match = LAYER.fullmatch(name)
            if match and int(match[1]) < len(made):
                made[int(match[1])].add(match[2])
        return [_letter(layer) for layer in self.file.layers], [_letter(layer) for layer in made]

    @property
    def sources(self) -> set[Path]:
        """The files that the output is read from."""
        ranges = [part for _, piece in self.outputs for part in piece.ranges or ()]
        ranges += [piece.columns.whole for _, piece in self.outputs if piece.columns]
        return {part.file.path for part in ranges} | {file.header.path for file in (self.file, *self.donors.values())}

    @property
    def entries(self) -> tuple[tuple[TensorEntry, ...], int]:
        """The tensors' entries and the bytes of the data section."""
        shapes = [(name, piece.shape, piece.type) for name, piece in self.outputs]
        return place(shapes, self.file.header.alignment)


def _letter(names: Collection[str]) -> str:
    """The letter of a layer with these tensors, as in `ModelSpec.pattern`."""
    if "ssm_d" in names:
        letter = "H" if "attn_output.weight" in names else "M"
    elif any(name.startswith("ssm_") for name in names):
        letter = "D"
    else:
        letter = "C" if "shortconv.conv.weight" in names else "A"
    return letter if f"{gguf_names.ROUTER}.weight" in names else letter.lower()


def plan_gguf(file: LayeredFile, recipe: Recipe) -> GGUFPlan:
    """Plan the surgery from the headers of the file and of the recipe's donors alone.

    Raises InputError for an invalid index, a blend of different kinds, or a donor whose layers cannot stand in the file;
    UnsupportedError if the architecture cannot express the new layers.
    """
    donors = {donor.name: open_donor(file, donor) for donor in recipe.donors}
    stack = recipe.apply(len(file.layers), {name: len(donor.layers) for name, donor in donors.items()})
    apart = Differences()
    for donor in recipe.donors:
        used = {origin.index for layer in stack for origin in origins(layer) if origin.source == donor.name}
        apart += differences(file, donors[donor.name], used, donor.name)
        apart.refuse(donor.name, donor.path)
    donors = {name: aligned(file, donor) for name, donor in donors.items()}
    loops = file.get("num_loops") if file.arch == "nanbeige" else 1
    if (len(stack) + len(file.trailing)) * (loops if type(loops) is int else 1) > LLAMA_MAX_LAYERS:
        raise InputError(
            f"{len(stack)} layers would result; llama.cpp holds at most {LLAMA_MAX_LAYERS} (runs over them counted)"
        )
    space = GGUFSpace(file, donors)
    check_permitted(space, stack)
    new = [{half: evaluate(layer, half, space) for half in HALVES} for layer in stack]
    followed = outside.follow(file, stack)
    outputs = [(name, followed.get(name, piece)) for name, piece in file.before.items()]
    for n, layer in enumerate(stack):
        pieces = {**new[n]["attention"].pieces, **new[n]["ffn"].pieces}
        # In the order of the original layer, so that a whole layer is read sequentially.
        first = origins(layer)[0]
        order = [name for name in space.files[first.source].layers[first.index] if name in pieces]
        outputs += [(f"blk.{n}.{name}", pieces.pop(name)) for name in order]
        outputs += [(f"blk.{n}.{name}", piece) for name, piece in pieces.items()]
    for n, trailing in enumerate(file.trailing, len(stack)):
        outputs += [(f"blk.{n}.{name}", piece) for name, piece in trailing.items()]
    outputs += [(name, followed.get(name, piece)) for name, piece in file.after.items()]
    too_long = next((name for name, _ in outputs if len(name.encode()) > MAX_NAME), None)
    if too_long:
        raise InputError(f"tensor name {too_long} would be longer than ggml's {MAX_NAME} bytes")
    changes = _metadata(file, stack, new, recipe)
    noted, notes = _noted(file, stack)
    return GGUFPlan(
        file=file,
        donors=donors,
        recipe=recipe,
        stack=stack,
        changes=changes | noted,
        outputs=tuple(outputs),
        notes=(*apart.notes, *notes),
    )


def open_donor(file: LayeredFile, donor: Donor) -> LayeredFile:
    """A donor for a GGUF file; InputError where it is none itself."""
    if not (donor.path.is_file() and is_gguf(donor.path)):
        raise InputError(
            f"{donor.path}: is no GGUF file, but {file.header.path} is; convert {donor.name} first, or operate on two checkpoints"
        )
    return open_layered(donor.path, assume_independent=file.assumed)


def _noted(file: LayeredFile, stack: Stack) -> tuple[dict[str, Field | None], tuple[str, ...]]:
    """What the user is told, and recorded: a repaired `general.name`, an assumption, what the architecture's row notes."""
    changes: dict[str, Field | None] = {}
    notes: list[str] = []
    repaired = repaired_name(file.header.get)
    if repaired is not None:
        changes[NAME] = string(repaired[0])
        notes.append(repaired[1])
    if file.assumed:
        notes.append(
            f"the layers of {file.arch}, an architecture that tinyq does not know, are assumed to be independent of their place, "
            "as the user said (--assume-independent-layers)"
        )
    if stack != identity(len(file.layers)):
        notes += [note.text for note in file.architecture.notes if file.get(note.key)]
    if not notes:
        return {}, ()
    told = file.header.get(keys.NOTES)
    recorded_notes = dict.fromkeys((*(told if isinstance(told, tuple) else ()), *notes))
    changes[keys.NOTES] = array(ValueType.STRING, tuple(recorded_notes))
    return changes, tuple(notes)


def _metadata(
    file: LayeredFile, stack: Stack, new: list[dict[Half, GGUFHalf]], recipe: Recipe
) -> dict[str, Field | None]:
    """The changed metadata: layer count, per-layer values, expert counts, the recorded recipe (None for removed keys)."""
    prefix = f"{file.arch}."
    changes: dict[str, Field | None] = {}
    count = len(new) + len(file.trailing)
    changes[f"{prefix}block_count"] = _like(file, f"{prefix}block_count", count)
    for name, old in file.arrays.items():
        values = [layer[half_of_key(name)].values[name] for layer in new]
        changes[file.key(name)] = _like(file, file.key(name), (*values, *old[len(file.layers) :]))
    changes |= _experts(file, new)
    changes |= _placed(file, stack, new, changes)
    changes |= {key: None for key in file.header.metadata if key in KEYS}
    changes[keys.SURGERY] = string(str(recorded(file).then(recipe)))
    return {key: value for key, value in changes.items() if value != file.header.metadata.get(key)}


def _placed(
    file: LayeredFile, stack: Stack, new: list[dict[Half, GGUFHalf]], changes: dict[str, Field | None]
) -> dict[str, Field | None]:
    """The metadata that keep what llama.cpp derives from a layer's place; UnsupportedError if nothing can."""

    def layers(more: positions.Changes) -> Layers:
        def get(name: str) -> object:
            key = file.key(name)
            found = more.get(name) or (changes[key] if key in changes else file.header.metadata.get(key))
            return found.value if found else None

        names = [frozenset({**layer["attention"].pieces, **layer["ffn"].pieces}) for layer in new]
        sources = [positions.origin(layer, n) for n, layer in enumerate(stack)]
        return Layers(get=get, names=names, origins=sources, vocabulary=file.vocabulary)

    wanted = {p: [_value(file, p, layer, n) for n, layer in enumerate(new)] for p in file.properties}
    try:
        found = positions.placed(file.architecture, wanted, layers, len(file.trailing))
        positions.check_both_kinds(file.architecture, file.view, layers(found))
    except UnsupportedError as error:
        raise UnsupportedError(f"{file.header.path}: {error}") from None
    return {file.key(name): value for name, value in found.items()}


def _value(file: LayeredFile, p: Property, layer: dict[Half, GGUFHalf], place: int) -> Any:
    """The property's value of a new layer; UnsupportedError if it belongs to the whole layer and its halves disagree."""
    attention, ffn = (layer[half].properties.get(p) for half in HALVES)
    if p.half is None and attention != ffn:
        raise UnsupportedError(
            f"the halves of layer {place} come from layers that llama.cpp's {file.arch} treats differently: "
            f"{positions.phrase(p, attention)}, and {positions.phrase(p, ffn)}"
        )
    return attention if p.half in (None, "attention") else ffn


def recorded(file: LayeredFile) -> Recipe:
    """The recipe of surgery that the file records, with the donors that it names."""
    surgery = recorded_surgery(file.header)
    if surgery is None:
        return Recipe()
    donors = tuple(Donor(source.name, source.path, source.digest) for source in surgery.donors)
    return Recipe(parse_text(surgery.text).ops, donors=donors)


def _recorded_sources(plan: GGUFPlan) -> list[RecordedSource]:
    """The models that the new file's recipe names, for which new donors are read once for their digests.

    The file itself is among them if it records no checkpoint that the surgery can be done on again.
    """
    header = plan.file.header
    before = recorded_surgery(header)
    found = {source.name: source for source in (before.sources if before else ())}
    if plan.recipe.donors and keys.SOURCE_DIGEST not in header.metadata and before is None:
        found[""] = RecordedSource("", header.path, source_digest(header.path))
    for donor in plan.recipe.with_digests().donors:
        found[donor.name] = RecordedSource(donor.name, donor.path, donor.digest or "")
    return list(found.values())


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
            f"layers, so drop the same number in each (drop-experts 0..{len(new) - 1}:…)"
        )
    count = next(iter(counts.values()))
    used, groups = file.get("expert_used_count"), file.get("expert_group_count")
    if type(used) is int and count < used:
        raise InputError(
            f"{count} of {stated} experts would remain, but {used} are selected per token; keep at least as many"
        )
    if type(groups) is int and groups > 1 and count % groups:
        raise InputError(f"{count} experts would remain, which do not divide into the router's {groups} groups")
    return {f"{file.arch}.expert_count": u32(count)}


def write_plan(
    plan: GGUFPlan,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: ByteProgress = lambda _: None,
    check: Check | None = None,
    prove: Callable[[Path], None] | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Write the new file atomically; returns its size in bytes.

    `prove` is called with the finished temporary file, `check` before it appears; if one raises, nothing is left. Raises
    InputError for a NaN or infinite weight, unless `allow_nonfinite`; computed weights must still be finite if their type
    cannot hold NaN and infinity.
    """
    check_outputs({"OUT": out}, plan.sources, force=force)
    entries, data_bytes = plan.entries
    changes = plan.changes | _paths(plan.file, out) | sources_metadata(_recorded_sources(plan), out.parent)
    changes |= made_from(plan.file.header, requantized=plan.requantizes)
    header = plan.file.header.rewritten(changes, entries)
    size = len(header) + data_bytes
    with (
        atomic_output(out, force=force, size=size, check=check) as stream,
        Encoder(threads) as encoder,
        Background(partial(gguf_digest, plan.file.header.path)) as digest,
    ):
        _allocate(stream, size)
        stream.write(header)
        for entry, (_, piece) in zip(entries, plan.outputs, strict=True):
            if piece.ranges is None:
                for encoded in encoder.encode(_blocks(entry, piece.tensor, allow_nonfinite)):
                    stream.write(encoded.raw.data)
                    progress(encoded.raw.nbytes)
            else:
                copy_piece(piece, stream, progress, None if allow_nonfinite else encoder)
            stream.write(b"\0" * (-entry.nbytes % plan.file.header.alignment))
        stream.seek(0)
        stream.write(plan.file.header.rewritten(digested(changes, digest.result()), entries))
        stream.seek(size)
        if prove:
            stream.flush()
            prove(Path(os.fsdecode(stream.name)))
    return size


def _paths(file: LayeredFile, out: Path) -> dict[str, Field | None]:
    """The path of the file's source relative to the new file's folder."""
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


def _blocks(entry: TensorEntry, tensor: Tensor, lax: bool) -> Iterator[Block]:
    def rows(part: RowRange) -> FloatArray:
        return tensor.flat(part.start * tensor.columns, part.stop * tensor.columns).reshape(-1, tensor.columns)

    for part in row_ranges(entry.shape, by_matrix=False):
        yield Block(name=entry.name, type=entry.type, rows=partial(rows, part), allow_nonfinite=lax)
