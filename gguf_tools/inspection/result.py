"""The description of a checkpoint or a GGUF file, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf_tools.sources.hub import shown_source
from gguf_tools.sources.packing import Packing
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.text import as_json, human_bytes, human_count, shortened

_COLUMNS = (
    Column("type", left=True, key=True),
    Column("tensors"),
    Column("weights", "{:,}".format),
    Column("bytes", human_bytes),
)
LINE = 96
"""Maximum length of the value of a provenance key in the text."""


@dataclass(frozen=True)
class StoredShare:
    """Number of tensors, weights and bytes stored in one type."""

    type: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokenizer: `model` and `pre` are llama.cpp's names; the ids of BOS and EOS are None if there are none."""

    size: int
    model: str
    pre: str | None
    bos: int | None
    eos: int | None
    add_bos: bool
    chat_template: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Inspection(Shown):
    """The description of a checkpoint or a GGUF file.

    `problems` are the errors that converting or running it would raise, one line each; fields that depend on them are None.
    `target` is the planner's selection for a checkpoint: name, rewrites and their cost. `packings` are the formats that weights
    are packed in; `types` counts their integers as they are stored.
    """

    path: str
    kind: str
    family: str | None
    architecture: str | None
    types: tuple[StoredShare, ...]
    parameters: int
    active_parameters: int | None = None
    layers: int | None = None
    pattern: str | None = None
    hidden: int | None = None
    context: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    target: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    packings: tuple[Packing, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(share.bytes for share in self.types)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight: of a packed checkpoint per weight of the model, else per stored number."""
        weights = self.parameters if self.packings else sum(share.weights for share in self.types)
        return 8 * self.bytes / weights if weights else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The output of `tinyq inspect --json`."""
        sums = {"bytes": self.bytes, "bits_per_weight": self.bits_per_weight}
        return dict(as_json(asdict(self) | sums))

    def blocks(self) -> Sequence[Block]:
        """The labelled facts, and a table of types."""
        lines = [("path", shown_source(Path(self.path)))]
        if self.kind == "gguf":
            lines.append(("file", f"GGUF, architecture {self.architecture or 'unknown'}"))
        else:
            lines.append(("family", self.family or "unknown"))
        active = self.active_parameters
        routed = f", {human_count(active)} active" if active not in (None, self.parameters) else ""
        lines.append(("weights", f"{human_count(self.parameters)} parameters{routed}"))
        if self.layers is not None:
            lines.append(("layers", f"{self.layers}{_pattern(self.pattern)}"))
        sizes = {"hidden": self.hidden, "context": self.context}
        lines += [("packed", _packed(packing)) for packing in self.packings]
        lines += [(key, str(value)) for key, value in sizes.items() if value is not None]
        lines += list(self.details.items())
        lines += [("tokenizer", text) for text in _vocabulary(self)]
        if self.target:
            lines += _target(self.target)
        lines += [(key, _short(value)) for key, value in self.provenance.items()]
        lines += [("note", note) for note in self.notes]
        lines += [("problem", problem) for problem in self.problems]
        rows = [(share.type, share.tensors, share.weights, share.bytes) for share in self.types]
        total = f"{self.bits_per_weight:.2f} bits per weight, {human_bytes(self.bytes)}"
        width = 1 + max(len(key) for key, _ in lines)
        return [Facts(lines, width), Lines(), Table(_COLUMNS, rows), Lines(total)]


def _pattern(pattern: str | None) -> str:
    """The layers' letters (`ModelSpec.pattern`) and what they stand for; empty where they are not known."""
    if not pattern:
        return ""
    kinds = {
        "a": "A attention",
        "d": "D Gated DeltaNet",
        "c": "C short convolution",
        "m": "M Mamba-2",
        "h": "H attention and Mamba-2 in parallel",
    }
    said = [text for letter, text in kinds.items() if letter in pattern.lower()]
    if pattern != pattern.upper():
        said.append("lower case dense" if pattern != pattern.lower() else "all dense")
    return f": {pattern} ({', '.join(said)})"


def _packed(packing: Packing) -> str:
    return f"{packing}: {packing.tensors} tensors, {human_count(packing.weights)} weights"


def _vocabulary(found: Inspection) -> list[str]:
    words = found.vocabulary
    if words is None:
        return []
    ends = ", ".join(
        f"{name} {number}" for name, number in (("BOS", words.bos), ("EOS", words.eos)) if number is not None
    )
    parts = [f"{words.size:,} tokens", words.model, *([f"pre-tokenizer {words.pre}"] if words.pre else []), ends]
    parts += ["BOS is prepended"] if words.add_bos else []
    parts.append("chat template" if words.chat_template else "no chat template")
    return [", ".join(part for part in parts if part)]


def _target(target: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("target", str(target["name"]))]
    lines += [("rewrite", name) for name in target["rewrites"]]
    if target["extra_parameters"]:
        cache = f", {target['extra_cache']} additional values per token in the cache" if target["extra_cache"] else ""
        lines.append(("cost", f"{human_count(target['extra_parameters'])} additional parameters{cache}"))
    return lines


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shortened(text, LINE)
