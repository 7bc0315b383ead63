"""What a checkpoint's weights were packed as by another quantizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Packing:
    """`tensors` matrices with `weights` weights in all, packed in `format` (GPTQ) by `scheme` (4 bits, groups of 128)."""

    format: str
    scheme: str
    tensors: int
    weights: int

    def __str__(self) -> str:
        return f"{self.format}, {self.scheme}"

    @property
    def note(self) -> str:
        """What a conversion says of it."""
        return f"{self.tensors} tensors are unpacked ({self})"
