"""Floats of 4 and 8 bits with a scale for each block: MXFP4, NVFP4, MXFP8.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3 (E2M1) and 5.4 (E8M0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.sources.restore.unpack.base import Integers, Numbers, Reader
from gguf_tools.tensors.base import Tensor

E4M3 = FLOAT8["F8_E4M3"]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The value of each of the 16 floats of 4 bits: sign, two bits of exponent, one of mantissa."""
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan)).astype(np.float32)
"""The value of each byte that holds an exponent alone: 2^(byte - 127), 255 is NaN."""


@dataclass(frozen=True, eq=False)
class ByteScales(Reader):
    """Scales stored as bytes, whose values are in `table`, divided by `divisor` in float32."""

    tensor: Tensor
    table: np.typing.NDArray[np.float32]
    divisor: Tensor | None = None

    def rows(self, first: int, last: int) -> Numbers:
        found = self.table[Integers(self.tensor).rows(first, last)]
        return found if self.divisor is None else found / self.divisor.flat(0, 1)
