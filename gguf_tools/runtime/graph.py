"""Reading tensors of llama.cpp's computation graph in its evaluation callback. For the worker process only.

Source: `struct ggml_tensor` of ggml.h (ggml 0.25.3), whose size is checked before any tensor is read.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LlamaError
from quant import ggml

_OBJECT_BYTES = 32  # sizeof(struct ggml_object), part of ggml_tensor_overhead()
_OPS = 64  # below GGML_OP_COUNT, because `ggml_op_name` does not check its argument


class GraphTensor(ctypes.Structure):
    """`struct ggml_tensor`: `ne` lengths and `nb` strides in bytes, innermost axis first; `src` are its operands."""


GraphTensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GraphTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
)


@cache
def library() -> ctypes.CDLL:
    """libggml-base with the functions used here declared. Raises LlamaError if `struct ggml_tensor` has another size."""
    lib = ggml.library()
    lib.ggml_tensor_overhead.restype = ctypes.c_size_t
    lib.ggml_op_name.argtypes, lib.ggml_op_name.restype = (ctypes.c_int,), ctypes.c_char_p
    lib.ggml_backend_buffer_is_host.argtypes = (ctypes.c_void_p,)
    lib.ggml_backend_buffer_is_host.restype = ctypes.c_bool
    lib.ggml_backend_tensor_get.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    lib.ggml_backend_tensor_get.restype = None
    found, expected = lib.ggml_tensor_overhead() - _OBJECT_BYTES, ctypes.sizeof(GraphTensor)
    if found != expected:
        raise LlamaError(f"struct ggml_tensor has {found} bytes; expected {expected}; install llama-cpp-python 0.3.36")
    return lib


@cache
def op_number(name: str) -> int:
    """ggml's number of the operation `name`, such as MUL_MAT. Raises LlamaError if there is none."""
    found = next((number for number in range(_OPS) if library().ggml_op_name(number) == name.encode()), None)
    if found is None:
        raise LlamaError(f"the installed ggml has no operation {name}; install llama-cpp-python 0.3.36")
    return found


def values(tensor: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """A tensor's values in numpy order, (ne[3], ne[2], ne[1], ne[0]); valid until the callback returns."""
    lib = library()
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    count = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    if lib.ggml_backend_buffer_is_host(tensor.buffer):
        buffer = (ctypes.c_char * count).from_address(tensor.data)
    else:
        buffer = ctypes.create_string_buffer(count)
        lib.ggml_backend_tensor_get(ctypes.addressof(tensor), buffer, 0, count)
    found: NDArray[Any] = np.ndarray(shape, dtype, buffer, strides=strides)
    return found
