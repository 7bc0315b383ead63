"""Compares two GGUF files, or a GGUF and a source: metadata, tensors, and the layers that moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_tools.families.base import CheckType
from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.formats.watch import Watch
from gguf_tools.inspection.difference.inside import changed_inside
from gguf_tools.inspection.difference.layers import Source, as_recipe, layers_of, recognised, sentences
from gguf_tools.inspection.difference.sides import Side, open_sides
from gguf_tools.inspection.difference.tensors import Error, TensorDifference, same_bytes, tensor_error
from gguf_tools.progress import CountProgress
from gguf_tools.sources.inputs import source_files
from gguf_tools.tensors.base import Tensor
from gguf_tools.verification.metadata import MetadataFinding
from gguf_tools.verification.whose import whose_experts

OF_TYPE = ("general.file_type", "general.quantization_version")
"""Keys that say how tensors are stored."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between A and B. `tensors` are worst first; `metadata` are the keys that differ.

    `surgery` is the recipe (of `tinyq surgery`) that makes B's layers from A's: "" if none moved, None if there is none.
    `layers` says it in words. `within` is the NMSE up to which the caller counts values as equal.
    """

    a: Path
    b: Path
    tensors: tuple[TensorDifference, ...]
    metadata: tuple[MetadataFinding, ...]
    layers: tuple[str, ...] = ()
    surgery: str | None = ""
    notes: tuple[str, ...] = ()
    within: float = 0.0

    @property
    def differing(self) -> tuple[TensorDifference, ...]:
        """The tensors that differ; with `within` neither types nor errors up to it count."""
        return tuple(tensor for tensor in self.tensors if not self._passes(tensor))

    def _passes(self, tensor: TensorDifference) -> bool:
        if tensor.status == "equal":
            return True
        return bool(self.within and tensor.error and tensor.error.nmse <= self.within)

    @property
    def keys(self) -> tuple[MetadataFinding, ...]:
        """The keys whose difference counts: provenance does not, nor how tensors are stored if their values only
        have to be close."""
        return tuple(
            entry
            for entry in self.metadata
            if entry.verdict == "different" and not (self.within and entry.key in OF_TYPE)
        )

    @property
    def equal(self) -> bool:
        """Whether nothing that counts differs."""
        return not self.differing and not self.keys

    @property
    def first(self) -> str:
        """The worst difference in a few words; "" if there is none."""
        if self.differing:
            worst = self.differing[0]
            error = f", NMSE {worst.error.nmse:.2e}" if worst.error and worst.error.differing else ""
            return f"tensor {worst.name} ({worst.status}{error})"
        if self.keys:
            return f"metadata {self.keys[0].key}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; tensors worst first."""
        return {
            "a": str(self.a),
            "b": str(self.b),
            "equal": self.equal,
            "surgery": self.surgery or None,
            "layers": list(self.layers),
            "tensors": [tensor.as_dict() for tensor in self.tensors],
            "metadata": [
                {"key": entry.key, "a": entry.expected, "b": entry.found, "counts": entry.verdict == "different"}
                for entry in self.metadata
            ],
            "notes": list(self.notes),
        }


def difference(
    a: Path,
    b: Path,
    *,
    within: float = 0.0,
    check_type: CheckType | None = None,
    progress: CountProgress = lambda *_: None,
) -> Difference:
    """Compare B with A; each is a GGUF (all its shards) or a checkpoint, and at least one is a GGUF.

    `progress` is called with the number of weights compared so far and in total. Errors as `open_sides`; CheckpointError if a
    file is broken or changes meanwhile.
    """
    watch = Watch.over([*source_files(a), *source_files(b)])
    one, other, metadata = open_sides(a, b, check_type)
    names = dict.fromkeys([*one.tensors, *other.tensors])
    total = sum(tensor.size for tensor in one.tensors.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, max(total, done))

    found = [_compared(name, one, other, advance) for name in names if not _may_lack(name, one, other)]
    mine, theirs = (layers_of({k: t for k, t in side.tensors.items() if t.is_numeric}) for side in (one, other))
    lines: list[str] = []
    recipe: str | None = ""
    changed = any(tensor.status not in ("equal", "type") and tensor.name.startswith("blk.") for tensor in found)
    if changed:
        sources = recognised(mine, theirs)
        inside = changed_inside(mine, theirs, sources)
        sources |= {n: Source(n) for n in inside}
        lines, recipe = sentences(sources, len(mine)), as_recipe(sources, len(mine))
        lines += [change.text for change in inside.values() if change.text]
        if inside:  # with layers that moved as well, the order of both is not looked for
            recipe = None if recipe else " + ".join(change.op for change in inside.values() if change.op)
        found = [_explained(tensor, one, other) for tensor in found]
    watch.check()
    return Difference(
        a=a,
        b=b,
        tensors=tuple(sorted(found, key=lambda tensor: tensor.rank)),
        metadata=metadata,
        layers=tuple(lines),
        surgery=recipe,
        notes=(*one.notes, *other.notes),
        within=within,
    )


def _may_lack(name: str, a: Side, b: Side) -> bool:
    return (name in a.optional and name not in b.tensors) or (name in b.optional and name not in a.tensors)


def _compared(name: str, a: Side, b: Side, advance: Any) -> TensorDifference:
    """The difference between the tensors of one name."""
    there = [side.tensors.get(name) for side in (a, b)]
    shapes = tuple(tensor.shape if tensor else None for tensor in there)
    types = tuple(side.type_of(name) if tensor else None for side, tensor in zip((a, b), there, strict=True))
    made = TensorDifference(name=name, status="equal", shapes=(shapes[0], shapes[1]), types=(types[0], types[1]))
    one, other = there
    if one is None or other is None:
        return replace(made, status="only in A" if other is None else "only in B")
    if _squeezed(one) != _squeezed(other):
        advance(one.size)
        return replace(made, status="shape")
    if not (one.is_numeric and other.is_numeric):
        advance(one.size)
        if same_bytes(one, other):
            return made
        return replace(made, status="values", detail="compared byte by byte: llama.cpp does not compute with its type")
    error = tensor_error(one, other, advance)
    if error.differing:
        return replace(made, status="values", error=error, detail=_detail(error))
    both_stored = isinstance(one, GGUFTensor) and isinstance(other, GGUFTensor)
    return replace(made, status="type" if both_stored and types[0] != types[1] else "equal", error=error)


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape[:-1] if size != 1) + tensor.shape[-1:]


def _detail(error: Error) -> str:
    if error.differing == 1:
        return f"one weight differs, at {list(error.index)} by {error.largest:.3g}"
    return f"{error.differing:,} of {error.size:,} weights differ, most at {list(error.index)} by {error.largest:.3g}"


def _explained(tensor: TensorDifference, a: Side, b: Side) -> TensorDifference:
    """The difference with a note on experts that hold the weights of others."""
    theirs = b.tensors.get(tensor.name)
    mine = a.tensors.get(tensor.name)
    if tensor.status != "values" or len(tensor.shapes[0] or ()) != 3 or mine is None or theirs is None:
        return tensor
    held = whose_experts(theirs, mine, range(mine.shape[0]))
    if not held:
        return tensor
    listed = ", ".join(f"expert {n} is A's {other}" for n, other in list(held.items())[:4])
    more = f" and {len(held) - 4} more" if len(held) > 4 else ""
    return replace(tensor, detail=f"{listed}{more}; {tensor.detail}")
