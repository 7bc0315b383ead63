"""A thin binding to libggml-base: encode and decode.

The library is the one in llama-cpp-python, found without importing that package (which loads all of llama.cpp). ctypes
releases the GIL during a call, and each function uses only its arguments, so all are thread-safe. `ggml_quantize_chunk`
initialises the tables of a type on first use, under its own lock.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import LlamaError
from quant.installed import require_llama_cpp
from quant.types import TensorType

_NAMES = {
    "darwin": ("libggml-base.dylib", "libggml-base.so"),
    "win32": ("ggml-base.dll", "libggml-base.dll"),
}


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def library_folder() -> Path:
    """The folder of llama-cpp-python's libraries (`LLAMA_CPP_LIB_PATH` if set). Raises LlamaError if it is missing or too old."""
    told = os.environ.get("LLAMA_CPP_LIB_PATH")
    if told:
        return Path(told)
    require_llama_cpp("encode and decode quantized weights")
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise LlamaError("llama_cpp is a folder without a module; reinstall llama-cpp-python")
    return Path(spec.origin).parent / "lib"


@cache
def library() -> ctypes.CDLL:
    """libggml-base, loaded once. Raises LlamaError if it is missing or cannot be loaded."""
    folder = library_folder()
    names = _NAMES.get(sys.platform, ("libggml-base.so",))
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise LlamaError(f"{folder} has no {names[0]}; reinstall llama-cpp-python 0.3.36 or later")
    try:
        lib = ctypes.CDLL(str(path))
        _declare(lib)
    except (OSError, AttributeError) as error:
        raise LlamaError(f"{path} cannot be used: {error}; reinstall llama-cpp-python 0.3.36 or later") from None
    return lib


def _declare(lib: ctypes.CDLL) -> None:
    pointer, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    lib.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, whole, whole, whole, pointer)
    lib.ggml_quantize_chunk.restype = size
    lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)


@cache
def traits(dtype: TensorType) -> _TypeTraits:
    """The library's description of a type (`ggml_get_type_traits`); valid as long as the library is loaded."""
    return library().ggml_get_type_traits(dtype.ggml_id).contents  # type: ignore[no-any-return]


def quantize_chunk(
    dtype: TensorType, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None
) -> None:
    """Encodes `rows` (n, k) into `out` (n, row bytes) with `ggml_quantize_chunk`; both must be contiguous.

    `weights` (k,) is the importance of each column. A failed assertion of ggml ends the process, so arguments must be valid:
    `encode.encode_rows` checks them first.
    """
    importance = None if weights is None else weights.ctypes.data
    library().ggml_quantize_chunk(
        dtype.ggml_id, rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], importance
    )


def to_float(dtype: TensorType, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decodes contiguous whole blocks into `out` with the type's `to_float`."""
    decode = traits(dtype).to_float
    if not decode:
        raise LlamaError(f"ggml cannot decode {dtype.name}")
    decode(raw.ctypes.data, out.ctypes.data, out.size)
