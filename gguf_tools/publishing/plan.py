"""What will be published: a conversion for each type, and the names of all files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.conversion.plan import Conversion
from gguf_tools.publishing.folder import CARD, CHECKSUMS, file_stem, tag_of


@dataclass(frozen=True, kw_only=True)
class PublicationPlan:
    """What will be published: a conversion for each type, the largest file first, all under names that begin with `stem`.

    `repository` is where on the hub, `base_models` are the card's, `source` is what others give to `tinyq verify`, `imatrix` is
    the importance matrix, which is published too.
    """

    conversions: tuple[Conversion, ...]
    stem: str
    repository: str | None = None
    base_models: tuple[str, ...] = ()
    source: str = "SOURCE"
    quantized_by: str | None = None
    imatrix: Path | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The files' tags, such as Q4_K_M."""
        return tuple(tag_of(conversion.decision.name) for conversion in self.conversions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the GGUF files."""
        return tuple(f"{self.stem}-{tag}.gguf" for tag in self.tags)

    @property
    def modelfiles(self) -> tuple[str, ...]:
        """The names of the Modelfiles."""
        return tuple(f"Modelfile-{tag}" for tag in self.tags)

    @property
    def matrix_name(self) -> str | None:
        """The name of the importance matrix."""
        return f"{self.stem}-imatrix{self.imatrix.suffix}" if self.imatrix else None

    @property
    def published_names(self) -> tuple[str, ...]:
        """The names of all files."""
        matrix = [self.matrix_name] if self.matrix_name else []
        return (*self.names, *self.modelfiles, CARD, *matrix, CHECKSUMS)

    @property
    def size(self) -> int:
        """Bytes of all GGUF files."""
        return sum(conversion.size for conversion in self.conversions)


def plan_publication(
    conversions: Sequence[Conversion],
    stem: str,
    repository: str | None,
    base_models: tuple[str, ...],
    source: str,
    quantized_by: str | None,
    imatrix: Path | None,
) -> PublicationPlan:
    """The plan, with the largest file first; `stem` is made a beginning of file names."""
    ordered = sorted(conversions, key=lambda conversion: -conversion.size)
    return PublicationPlan(
        conversions=tuple(ordered),
        stem=file_stem(stem),
        repository=repository,
        base_models=base_models,
        source=source,
        quantized_by=quantized_by,
        imatrix=imatrix,
    )
