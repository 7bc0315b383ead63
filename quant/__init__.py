"""Quantization: selection of a type for each tensor, and encoding of rows, byte for byte as ggml.

`quantize` and `dequantize` do it to an array; they need numpy and llama-cpp-python, and neither torch nor the other packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.arrays import dequantize, quantize

__all__ = ["dequantize", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from quant import arrays

    return getattr(arrays, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
