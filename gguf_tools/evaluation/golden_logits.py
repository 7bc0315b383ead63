"""Reads golden logits, computed by other code: `tokens_0`, `logits_0`, `tokens_1` … in a .npz or .safetensors file.

`tokens_N` has the ids of one sequence, shape (T,); `logits_N` the logits at every position, shape (T, vocabulary). One batch of
sequences of the same length may stand as `tokens`, shape (B, T), and `logits`, shape (B, T, vocabulary).
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import InputError, TinyqError
from gguf_tools.evaluation.transformers_model import fits
from gguf_tools.formats.safetensors import WIDTHS, StoredTensor, read_safetensors
from gguf_tools.formats.text_file import check_regular
from gguf_tools.text import one_line, shortened

SUFFIXES = (".npz", ".safetensors")
NAME = re.compile(r"(tokens|logits)_(\d{1,6})")
BATCH = ("tokens", "logits")
"""The names of a batch of sequences of one length."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Golden:
    """Token ids, logits of shape (length, vocabulary), and the type that they are stored in."""

    tokens: tuple[int, ...]
    logits: Array
    dtype: str


def read_golden(path: Path) -> list[Golden]:
    """The sequences of a file of golden logits in the order of their numbers; other names in it are ignored.

    Raises InputError, naming file and array, if one of a pair is missing, a shape or a type is wrong, a logit is not finite,
    or the file is broken.
    """
    check_regular(path, InputError)
    arrays = read_arrays(path, "golden logits", lambda name: NAME.fullmatch(name) is not None or name in BATCH)
    arrays |= _batch(path, arrays)
    numbers = sorted({int(match[2]) for name in arrays if (match := NAME.fullmatch(name))})
    if not numbers:
        raise InputError(f"{path}: has no arrays tokens_0 and logits_0; expected golden logits under these names")
    return [_pair(path, arrays, number) for number in numbers]


def read_arrays(path: Path, what: str, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, tuple[Array, str]]:
    """The wanted arrays of a .npz or .safetensors file by name, each with the type that it is stored in.

    Raises InputError, which calls them `what`, if the file is broken.
    """
    try:
        with warnings.catch_warnings():
            # numpy warns about headers that Python 2 wrote; nothing of that concerns the user.
            warnings.simplefilter("ignore")
            return (_npz if path.suffix == ".npz" else _safetensors)(path, wanted)
    except TinyqError:
        raise
    except Exception as error:
        # Every kind of error comes out of the readers of archives and of numpy's headers, which are Python's syntax.
        text = shortened(one_line(str(error)), 160)
        raise InputError(f"{path}: {what} cannot be read ({text}); write them with numpy.savez") from error


def _batch(path: Path, arrays: Mapping[str, tuple[Array, str]]) -> dict[str, tuple[Array, str]]:
    """The pairs of one batch, `tokens` (batch, length) and `logits` (batch, length, vocabulary), as numbered sequences."""
    if "tokens" not in arrays and "logits" not in arrays:
        return {}
    if any(NAME.fullmatch(name) for name in arrays if name not in BATCH) or not all(name in arrays for name in BATCH):
        raise InputError(f"{path}: has tokens or logits beside others; expected both of a batch, or numbered sequences")
    (tokens, kind), (logits, dtype) = arrays["tokens"], arrays["logits"]
    if tokens.ndim != 2 or logits.ndim != 3 or len(tokens) != len(logits):
        raise InputError(
            f"{path}: tokens is {_shown(tokens)} and logits {_shown(logits)}; expected (batch, length) and (batch, length, "
            "vocabulary)"
        )
    pairs = {f"tokens_{n}": (row, kind) for n, row in enumerate(tokens)}
    return pairs | {f"logits_{n}": (row, dtype) for n, row in enumerate(logits)}


def _pair(path: Path, arrays: Mapping[str, tuple[Array, str]], number: int) -> Golden:
    """Sequence `number`, from its tokens (T,) and logits (T, vocabulary). Raises InputError if they are missing or unusable."""
    names = f"tokens_{number}", f"logits_{number}"
    for name in names:
        if name not in arrays:
            raise InputError(f"{path}: has no array {name}; expected both tokens_{number} and logits_{number}")
    (tokens, _), (logits, dtype) = (arrays[name] for name in names)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"{path}: {names[0]} is {_shown(tokens)}; expected integers of shape (tokens,)")
    if logits.ndim != 2 or len(logits) != len(tokens) or not np.issubdtype(logits.dtype, np.floating):
        raise InputError(
            f"{path}: {names[1]} is {_shown(logits)}; expected shape ({len(tokens)}, vocabulary), as {names[0]} has "
            f"{len(tokens)} tokens"
        )
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: {names[1]} has NaN or infinite values; expected finite logits")
    return Golden(tuple(map(int, tokens)), logits, dtype)


def _shown(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


MOST_RATIO, LEAST = 32, 64 << 20
"""How far a compressed file may expand, and bytes that it may have in any case: real logits shrink little."""


def _npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, tuple[Array, str]]:
    """The wanted arrays of a .npz file; an array's size is checked against that of its zip member before allocation."""
    found = {}
    most = max(MOST_RATIO * path.stat().st_size, LEAST)
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist() if wanted(member.filename.removesuffix(".npy")))
        if size > most:
            raise ValueError(
                f"they expand to {size:,} bytes, more than {MOST_RATIO} times the file; write them uncompressed"
            )
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if wanted(name):
                with archive.open(member) as stream:
                    array = _npy(stream, name, member.file_size)
                found[name] = array, str(array.dtype)
    return found


def _npy(stream: IO[bytes], name: str, size: int) -> Array:
    """The array of one member of a .npz file, `size` bytes long; ValueError if they do not hold it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    count = prod(shape)
    if dtype.hasobject or columns_first or count * dtype.itemsize != size - stream.tell():
        raise ValueError(f"{name}: {size} bytes do not hold {dtype} of shape {shape} row by row")
    if not fits(count, dtype.itemsize):
        raise ValueError(f"{name}: {count * dtype.itemsize:,} bytes do not fit into the available memory")
    return np.frombuffer(stream.read(count * dtype.itemsize), dtype).reshape(shape)


def _safetensors(path: Path, wanted: Callable[[str], bool]) -> dict[str, tuple[Array, str]]:
    tensors, _ = read_safetensors(path)
    return {name: _stored(tensor) for name, tensor in tensors.items() if wanted(name)}


def _stored(tensor: StoredTensor) -> tuple[Array, str]:
    """A tensor as an array, and the type that it is stored in; numbers of 64 bits and integers of 32 are kept as they are."""
    kind = {"I64": np.int64, "I32": np.int32, "F64": np.float64}.get(tensor.dtype)
    if kind is None:
        return tensor.array(), {"F16": "float16", "BF16": "bfloat16"}.get(tensor.dtype, "float32")
    raw = tensor.file.read(tensor.offset, prod(tensor.shape) * WIDTHS[tensor.dtype])
    return np.frombuffer(raw, kind).reshape(tensor.shape), np.dtype(kind).name
