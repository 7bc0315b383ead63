"""Verifies a GGUF file against its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_tools.families.base import CheckType
from gguf_tools.formats.gguf.adapters import refuse_adapter
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.formats.gguf.imatrix import read_imatrix
from gguf_tools.formats.gguf.source import GGUFTensor, open_gguf
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import available_cores
from gguf_tools.progress import ByteProgress
from gguf_tools.sources.adapters.adapter import GivenAdapter, adapter_files
from gguf_tools.sources.inputs import source_files
from gguf_tools.tensors.base import Tensor
from gguf_tools.verification.expectation import ARCHITECTURE, Expectation, Operate, expect, stated
from gguf_tools.verification.metadata import MetadataFinding, compare_metadata
from gguf_tools.verification.tensors import Comparison, TensorFinding, Verdict
from gguf_tools.verification.whose import whose_experts, whose_layer
from quant.encode import FloatArray
from quant.recipes import TensorFacts

VERDICTS: tuple[Verdict, ...] = ("different", "consistent", "unknown", "identical")
"""Worst first."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of a verification. `tensors` are in file order, followed by missing ones; `notes` are for the user."""

    file: Path
    source: Path
    architecture: str
    tensors: tuple[TensorFinding, ...]
    metadata: tuple[MetadataFinding, ...]
    notes: tuple[str, ...] = ()
    recipe: str = ""

    def count(self, verdict: Verdict) -> int:
        """Number of tensors with this verdict."""
        return sum(tensor.verdict == verdict for tensor in self.tensors)

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the tensors and keys that differ."""
        found = [tensor.name for tensor in self.tensors if tensor.verdict == "different"]
        return (*found, *(entry.key for entry in self.metadata if entry.verdict == "different"))

    @property
    def worst_first(self) -> tuple[TensorFinding, ...]:
        """The tensors by verdict, worst first, and within a verdict by descending error."""
        return tuple(sorted(self.tensors, key=lambda tensor: (VERDICTS.index(tensor.verdict), -(tensor.error or 0.0))))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; tensors worst first."""
        counts = Counter(entry.verdict for entry in self.metadata)
        return {
            "file": str(self.file),
            "source": str(self.source),
            "architecture": self.architecture,
            "surgery": self.recipe or None,
            "equal": not self.differing,
            **{verdict: self.count(verdict) for verdict in ("identical", "consistent", "different", "unknown")},
            "tensors": [tensor.as_dict() for tensor in self.worst_first],
            "metadata": {
                **{verdict: counts[verdict] for verdict in ("identical", "different", "unknown")},
                "entries": [entry.as_dict() for entry in self.metadata],
            },
            "notes": list(self.notes),
        }


def verify(
    file: Path,
    source: Path,
    *,
    imatrix: Path | None = None,
    tokenizer: Path | None = None,
    operate: Operate | None = None,
    check_type: CheckType | None = None,
    adapters: Sequence[GivenAdapter] = (),
    threads: int = 0,
    progress: ByteProgress = lambda _: None,
) -> Verification:
    """Compare every tensor and the metadata of a GGUF (given by any of its parts if it is split) with its source.

    `source` is a checkpoint or a GGUF. `imatrix` is the importance matrix that the file was quantized with; `tokenizer` is the
    tokenizer's folder, by default the checkpoint's; `operate` applies the layer surgery that the file records; `check_type` is
    called for a model_type that no family declares (`build_published`); `adapters` are merged into the source. `progress` is
    called with the number of bytes processed since the last call, `file_bytes` in total.

    Raises CheckpointError if either is broken, UnsupportedError for an unsupported architecture or family, InputError for an
    importance matrix of another model.
    """
    merged = [path for adapter in adapters for path in adapter_files(adapter.path)]
    watch = Watch.over([*source_files(file), *source_files(source), *merged, *([imatrix] if imatrix else [])])
    opened = open_gguf(file)
    header = opened.header
    refuse_adapter(header)
    expected = expect(header, source, operate, tokenizer, check_type, adapters)
    importance = _importance(imatrix, header)
    tensors = [tensor for tensor in opened.tensors.values() if isinstance(tensor, GGUFTensor)]
    with Comparison(threads or available_cores(), progress) as comparison:
        findings = [_judged(comparison, tensor, expected, importance) for tensor in tensors]
    findings = [_named(finding, tensor, expected.tensors) for finding, tensor in zip(findings, tensors, strict=True)]
    findings += _missing(expected, opened.tensors)
    metadata = compare_metadata(header, expected.metadata, stated(opened))
    watch.check()
    if expected.lacks:
        metadata.insert(0, _inexpressible(header, expected))
    return Verification(
        file=file,
        source=source,
        architecture=header.architecture,
        tensors=tuple(findings),
        metadata=tuple(metadata),
        notes=expected.notes,
        recipe=expected.recipe,
    )


def file_bytes(file: Path) -> int:
    """Bytes of a file's tensors over all parts."""
    return sum(entry.nbytes for entry in open_gguf(file).header.tensors)


def _importance(path: Path | None, header: GGUFHeader) -> Mapping[str, FloatArray]:
    if path is None:
        return {}
    facts = [TensorFacts(entry.name, entry.shape, entry.type) for entry in header.tensors]
    return read_imatrix(path).importance(facts)


def _judged(
    comparison: Comparison, tensor: GGUFTensor, expected: Expectation, importance: Mapping[str, FloatArray]
) -> TensorFinding:
    """The finding on one tensor of the file; "unknown" if the source has no such tensor."""
    entry = tensor.entry
    source = expected.tensors.get(entry.name)
    if source is not None:
        return comparison.judge(tensor, source, importance.get(entry.name))
    comparison.skip(entry.nbytes)
    return TensorFinding(
        name=entry.name,
        type=entry.type.name,
        shape=entry.shape,
        verdict="unknown",
        detail="the source has no such tensor",
    )


def _named(finding: TensorFinding, tensor: GGUFTensor, sources: Mapping[str, Tensor]) -> TensorFinding:
    """The finding, with a note on which other tensor of the source the data are from, if that can be determined."""
    if finding.verdict != "different" or finding.error is None:
        return finding
    source = sources[finding.name]
    if finding.matrices:
        held = whose_experts(tensor, source, finding.matrices)
        where = ", ".join(f"{matrix} holds {other}" for matrix, other in list(held.items())[:4])
        more = f" and {len(held) - 4} more" if len(held) > 4 else ""
        listed = ", ".join(map(str, finding.matrices[:8])) + (" …" if len(finding.matrices) > 8 else "")
        said = f"experts swapped: {where}{more}" if held else f"in experts {listed}"
        return replace(finding, detail=f"{said}; {finding.detail}")
    other = whose_layer(tensor, finding.name, sources)
    return replace(finding, detail=f"holds the source's {other}; {finding.detail}") if other else finding


def _missing(expected: Expectation, there: Mapping[str, Tensor]) -> list[TensorFinding]:
    return [
        TensorFinding(name=name, type="", shape=tensor.shape, verdict="different", detail="missing in the file")
        for name, tensor in expected.tensors.items()
        if name not in there and name not in expected.optional
    ]


def _inexpressible(header: GGUFHeader, expected: Expectation) -> MetadataFinding:
    return MetadataFinding(
        key=ARCHITECTURE,
        verdict="different",
        found=f"{header.architecture}, which cannot express the whole model",
        expected=", ".join(expected.lacks),
    )
