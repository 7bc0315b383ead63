"""The size that types are selected for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SizeTarget:
    """A target size: either `bits_per_weight`, averaged over all tensors, or `bytes` of the whole file.

    `calibration` is a text to measure on; by default these are the model's own continuations of built-in prompts. `sensitivity`
    is a report with an earlier measurement, which is then used instead (`read_sensitivity`).
    """

    bits_per_weight: float | None = None
    bytes: int | None = None
    calibration: Path | None = None
    sensitivity: Path | None = None

    @property
    def label(self) -> str:
        """The size as text, for the file's metadata and for reports."""
        return f"{self.bytes} bytes" if self.bits_per_weight is None else f"{self.bits_per_weight:g} bpw"
