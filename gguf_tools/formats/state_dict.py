"""Torch state dicts (`.pt`, `.pth`, `.bin`, `.ckpt`) as sources: memory-mapped, read in pieces, and never executed.

They are opened by `torch.load(weights_only=True)` alone: a pickle that refers to anything but tensors, plain values and the
classes for which `inert` has a stand-in is refused; of an object of a program's own class the attributes are
read, as data. torch is imported when the first file is opened.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.inert import STAND_INS, PlainState, plain_class
from gguf_tools.formats.pickle_calls import ADVICE, broken, check_calls
from gguf_tools.formats.safetensors import MOST_NAME, MOST_TENSORS
from gguf_tools.formats.text_file import check_regular
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import first_line, shortened
from quant.encode import FloatArray

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|sampler|scaler|dl_state_dict|rng_state|random_states|custom_checkpoint|trainer_state"
    r"|tokenizer)(_\d+)*\.\w+|.*_optim_states\.pt"
)
"""Files other than weights that trainers (transformers, accelerate, DeepSpeed) write with the same suffixes."""
WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "module", "app")
"""Keys under which training checkpoints keep the weights; the first that holds a dict is used (Lightning: `state_dict`,
DeepSpeed: `module`, torch's distributed checkpoints: `app`)."""
CONFIG_KEYS = ("model_args", "cfg", "config", "model_config")
"""Keys of the config, in order of precedence; `model_args` first, because nanoGPT and llama2.c keep training settings in
`config`."""
MOST_DEPTH = 4
MOST_CLASSES = 32
"""Number of a program's own classes to which one file may refer."""
MOST_VALUES, DEEPEST, LARGE = 100_000, 8, 1 << 64
"""Of a pickled config: the number of values, the levels of lists and dicts, and the integers that are larger than any setting."""
EXTRA_STATE = "_extra_state"
"""Last component of the name of what `nn.Module.get_extra_state` returns (TransformerEngine): module settings, not weights."""

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""torch's dtype names → safetensors' dtype names, which tinyq uses throughout."""
NUMBERS = re.compile(r"float(64|32|16)|bfloat16|float8_\w+|u?int(64|32|16|8)|bool")
"""dtypes whose elements torch converts to float64; bits8 or float4_e2m1fn_x2 (two in a byte) it only stores."""


@dataclass(frozen=True, eq=False)
class StateTensor(Tensor):
    """One tensor of a state dict; `mapped` says whether it is memory-mapped from the file."""

    name: str
    values: torch.Tensor = field(repr=False)
    mapped: bool

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.values.shape)

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return _dtype_name(self.values.dtype)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name,)

    def flat(self, start: int, stop: int) -> FloatArray:
        """The elements `start` to `stop` in row-major order as float32, shape (stop - start,)."""
        import torch

        if not self.values.is_floating_point():
            raise CheckpointError(
                f"tensor {self.name} is stored as {self.dtype}; expected F64, F32, F16 or BF16; save it in one of these"
            )
        if stop <= start:
            return np.empty(0, np.float32)
        values = self.values.reshape(1) if not self.shape else self.values
        # Sliced along the first axis, so that a non-contiguous tensor is not copied whole.
        width = prod(values.shape[1:])
        first, last = start // width, -(-stop // width)
        piece = values[first:last].reshape(-1)[start - first * width : stop - first * width]
        out = piece.to(torch.float32, copy=True).numpy()
        if self.mapped:
            _give_back(values[first:last])
        return np.asarray(out, np.float32)

    def numbers(self, start: int, stop: int) -> NDArray[np.float64]:
        import torch

        if self.values.is_floating_point():
            return super().numbers(start, stop)
        return np.asarray(self.values.reshape(-1)[start:stop].to(torch.float64).numpy(), np.float64)

    def stored_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        import torch

        piece = self.values.reshape(-1)[start:stop]
        out = np.asarray(piece.contiguous().view(torch.uint8).clone().numpy(), np.uint8)
        if self.mapped and self.values.is_contiguous():
            _give_back(piece)
        return out


@dataclass(frozen=True)
class StateDict:
    """A state dict's tensors by name, the config saved with them, and the keys of the file's other entries (`left_out`)."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    left_out: tuple[str, ...]


def state_dict_files(folder: Path) -> list[Path]:
    """The files in a folder that may be a model's state dict, by name, sorted; nothing is opened."""
    found = (path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return sorted(path for path in found if not NOT_WEIGHTS.fullmatch(path.name))


def read_state_dict(path: Path) -> StateDict:
    """Open a state dict, or a training checkpoint with one under a key (`WEIGHTS_KEYS`) and perhaps a config (`CONFIG_KEYS`).

    Raises CheckpointError if the file is broken, would run code when loaded, or holds something else.
    """
    check_regular(path)
    loaded, mapped = _load(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}; expected a state dict; {ADVICE}")
    keys = _keys_to_weights(path, loaded)
    weights: Mapping[Any, Any] = loaded
    for key in keys:
        weights = weights[key]
    if len(weights) > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds {len(weights):,} tensors; expected {MOST_TENSORS:,} at most; {ADVICE}")
    named = {_name(path, name): value for name, value in weights.items()}
    longest = max(named, key=len, default="")
    if len(longest) > MOST_NAME:
        raise CheckpointError(
            f"{path}: a tensor's name has {len(longest)} characters ({longest[:40]}…); expected {MOST_NAME} at most; {ADVICE}"
        )
    tensors = {name: _checked(path, name, value, mapped) for name, value in named.items() if not _is_extra(name, value)}
    if mapped:
        _check_records(path, {name: named[name] for name in tensors})
    if tensors and not any(tensor.size for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: all tensors are empty, as DeepSpeed's ZeRO stage 3 saves them (the weights are partitioned over one file "
            "per process); merge them with the zero_to_fp32.py that DeepSpeed saved there and give the result"
        )
    if not keys:
        return StateDict(tensors, {}, ())
    stated = next((key for key in CONFIG_KEYS if isinstance(loaded.get(key), Mapping | PlainState)), None)
    config = plain_config(path, loaded[stated]) if stated else {}
    left_out = tuple(_name(path, key) for key in loaded if key not in (keys[0], stated))
    return StateDict(tensors, config, left_out)


def _name(path: Path, key: object) -> str:
    """A key as text. Raises CheckpointError for one that is neither text nor a number of an ordinary size."""
    if not isinstance(key, str | int) or (isinstance(key, int) and abs(key) >= LARGE):
        raise CheckpointError(f"{path}: has a {type(key).__name__} as a name; expected text; {ADVICE}")
    return str(key)


def plain_config(path: Path, stated: Mapping[Any, Any] | PlainState) -> dict[str, Any]:
    """A pickled config's texts, numbers and truth values, and lists and dicts of these; of any other value its type's name.

    A tensor would fail wherever it is compared with a number; a list may contain itself.
    Raises CheckpointError if there are more than MOST_VALUES.
    """
    left = MOST_VALUES

    def plain(value: object, depth: int) -> Any:
        """The value at a depth of lists and dicts, made plain."""
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError(f"{path}: its config has more than {MOST_VALUES:,} values; {ADVICE}")
        if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < LARGE):
            return value
        if isinstance(value, list | tuple) and depth < DEEPEST:
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, Mapping | PlainState) and depth < DEEPEST:
            return {_name(path, key): plain(item, depth + 1) for key, item in _entries(value)}
        return f"<{type(value).__name__}>"

    return {_name(path, key): plain(value, 0) for key, value in _entries(stated)}


def _entries(value: Mapping[Any, Any] | PlainState) -> Iterable[tuple[Any, Any]]:
    return value.values.items() if isinstance(value, PlainState) else value.items()


def _keys_to_weights(path: Path, loaded: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The path of keys to the weights, empty if they are at the top level.

    At each level one of `WEIGHTS_KEYS` is taken, else the only entry that is a dict of tensors alone. Raises CheckpointError
    if several entries are.
    """
    keys: list[Any] = []
    inner = loaded
    while len(keys) < MOST_DEPTH and not _holds_tensors(inner):
        known = [key for key in WEIGHTS_KEYS if isinstance(inner.get(key), Mapping)]
        found = known[:1] or [key for key, value in inner.items() if _only_tensors(value)]
        if len(found) > 1:
            names = ", ".join(_name(path, key) for key in found[:4])
            raise CheckpointError(
                f"{path}: holds {len(found)} state dicts ({names}); expected one; save the one to convert in a file of its own"
            )
        if not found:
            break
        keys.append(found[0])
        inner = inner[found[0]]
    return tuple(keys)


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(entry, torch.Tensor) for entry in value.values())


def _only_tensors(value: object) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _is_extra(name: str, value: object) -> bool:
    import torch

    return name.rpartition(".")[2] == EXTRA_STATE and not isinstance(value, torch.Tensor)


def _load(path: Path) -> tuple[Any, bool]:
    """The result of `torch.load(weights_only=True)`, and whether it is memory-mapped.

    A class of the program's own that torch refuses by name gets a stand-in, and the file is opened again. Raises
    CheckpointError if the file is broken or would run code when loaded.
    """
    _refuse_compressed(path)
    # Files written before torch 1.6 are not zip archives: they cannot be memory-mapped and are read whole.
    mapped = zipfile.is_zipfile(path)
    check_calls(path, mapped)
    own: dict[str, type[PlainState]] = {}
    while True:
        try:
            return _load_with(path, own, mapped), mapped
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            if asked is None:
                raise CheckpointError(f"{path}: not a torch state dict ({first_line(error)}); {ADVICE}") from error
            stand_in = None if asked[1] in own or len(own) == MOST_CLASSES else plain_class(asked[1])
            if stand_in is None:
                raise CheckpointError(
                    f"{path}: would run code when loaded ({asked[1]}), which tinyq refuses; {ADVICE}"
                ) from error
            own[asked[1]] = stand_in


def _refuse_compressed(path: Path) -> None:
    """Raise CheckpointError if a record of the zip archive is compressed: a few megabytes could expand to any size.

    torch writes none that is (`PyTorchStreamWriter`), but its reader expands them. What is no archive is passed over.
    """
    packed = next((info for info in _records(path) if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise CheckpointError(
            f"{path}: its record {shortened(packed.filename)} is compressed ({packed.compress_size:,} bytes for "
            f"{packed.file_size:,}), which torch.save does not do; save it again"
        )


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """The records of a zip archive; none if the file is no archive. Raises CheckpointError if they cannot be read."""
    try:
        if not zipfile.is_zipfile(path):
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        # torch's own reader of archives accepts some that Python's does not.
        raise CheckpointError(
            f"{path}: its list of records cannot be read ({first_line(error)}); download or save it again"
        ) from error


def _load_with(path: Path, own: Mapping[str, type[PlainState]], mapped: bool) -> Any:
    """The result of `torch.load` with these stand-ins beside the usual ones. Raises UnpicklingError for any other class."""
    import torch

    try:
        stand_ins: list[Any] = [*STAND_INS, *((stand_in, name) for name, stand_in in own.items())]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            # torch warns about the format of a broken file before it raises; the error is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        # torch.load raises errors of any class for broken or hostile files.
        raise broken(path, error) from error


def _checked(path: Path, name: str, value: object, mapped: bool) -> StateTensor:
    """`value` as a StateTensor.

    Raises CheckpointError for a tensor that is sparse, nested, quantized, without data, expanded or of a type without numbers.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}; expected a tensor; {ADVICE}")
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(
            f"{path}: tensor {name} is sparse, nested, quantized or without data; expected a dense tensor; {ADVICE}"
        )
    # A tensor expanded by strides of zero could claim any size.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: tensor {name} of shape {tuple(value.shape)} has more elements than its storage; save a contiguous copy"
        )
    kind = str(value.dtype).removeprefix("torch.")
    if not value.is_complex() and not NUMBERS.fullmatch(kind):
        raise CheckpointError(
            f"{path}: tensor {name} is stored as {kind}, whose elements are no numbers to torch; save it in float32, float16 or "
            "bfloat16"
        )
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    # What was computed, as the conjugate was, lies in other memory than the file's, which must not be given back.
    return StateTensor(name, value.detach(), mapped and not value.untyped_storage().resizable())


def _check_records(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the length of a torch tensor's storage matches no unused record of the zip archive.

    A mapped storage has the length that the pickle claims; torch does not compare it with the length of the record.
    """
    free = Counter(info.file_size for info in _records(path) if "/data/" in info.filename)
    seen = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or not storage.nbytes():
            continue
        seen.add(storage.data_ptr())
        free[storage.nbytes()] -= 1
        if free[storage.nbytes()] < 0:
            raise CheckpointError(
                f"{path}: tensor {name} claims {storage.nbytes()} bytes, but no record of the archive has that length; "
                "the file is corrupt, download or save it again"
            )


def _dtype_name(dtype: torch.dtype) -> str:
    plain = str(dtype).removeprefix("torch.")
    return DTYPES.get(plain, plain)


def _give_back(part: torch.Tensor) -> None:
    """Release the mapped pages under `part`: they would count as this process's memory until the file is closed."""
    storage = part.untyped_storage()
    start = storage.data_ptr() + part.storage_offset() * part.element_size()
    span = sum(stride * (size - 1) for size, stride in zip(part.shape, part.stride(), strict=True)) + 1
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    last = -(-(start + span * part.element_size()) // mmap.PAGESIZE) * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED"):
        # Whole pages, including bytes of neighbouring tensors, which are read again when needed. Best effort: if it fails,
        # the pages stay until the system reclaims them.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
