"""Checks what the pickle of a torch file would call, before torch calls it.

`torch.load(weights_only=True)` runs no code of the file, but its calls have no bounds: `torch.FloatTensor(n)` is memory that
nobody filled, `set(tensor)` of a tensor with strides of zero has no end. Here the pickle is read by Python's own unpickler with
values that only remember what would have been called; nothing is imported, called or allocated. What torch.save writes passes.
Sources: CPython's pickle.py; torch's `_weights_only_unpickler.py` (what may be called) and `_utils.py` (what it does).
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from gguf_tools.errors import CheckpointError
from gguf_tools.text import first_line, shortened

ADVICE = "save the weights alone (torch.save(model.state_dict(), …)), or as safetensors"

_TENSOR_CLASS = re.compile(r"torch\.(cuda\.|sparse\.|cuda\.sparse\.)?[A-Za-z0-9]*Tensor")
_ELSEWHERE = re.compile(r"torch\._utils\._rebuild_(device_tensor_from_\w+|nested_tensor|wrapper_subclass)")
"""What makes a tensor of another memory than the file's."""
_WITH_TENSORS = ("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor")
"""What reads the tensors that it is given."""
_TYPED = "torch._tensor._rebuild_from_type_v2"
"""Calls its first argument with its third."""
_ITERATES = (
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray", "torch.Size"),
    "_codecs.encode",
)
"""What goes through its first argument."""
_ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")
_CONTAINERS = (list, tuple, dict, set, frozenset, str, bytes)
LEAST_BUDGET = 1 << 20


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function that the pickle refers to by its full name."""

    name: str


@dataclass(frozen=True, eq=False)
class Made:
    """What a call would have returned; what would change it is passed over. A storage's `name` is "", its `args` tell which."""

    name: str
    args: Any = field(repr=False)

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        """As of a list."""

    def extend(self, items: object) -> None:
        """As of a list."""


class CallReader(pickle._Unpickler):
    """Reads one pickle from a stream; `storages` are the keys of the storages that it refers to.

    `load` raises CheckpointError for a call that has no bounds or makes a tensor of other numbers than the file's.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream, encoding="bytes")
        self.path = path
        self.storages: set[Any] = set()
        # What torch.save writes goes through each value once.
        self._budget = max(LEAST_BUDGET, 4 * path.stat().st_size)

    def find_class(self, module: str, name: str) -> Named:
        """The name, as a value: nothing is imported. Python 2's names become today's, as in torch."""
        if (module, name) in _compat_pickle.NAME_MAPPING:
            return Named(".".join(_compat_pickle.NAME_MAPPING[module, name]))
        return Named(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")

    def persistent_load(self, pid: Any) -> Made:
        """A storage: torch's ids are ("storage", class, key, device, number of elements)."""
        if isinstance(pid, tuple) and len(pid) > 2 and isinstance(pid[2], str | int | bytes):
            self.storages.add(pid[2])
        return Made("", pid)

    def load_reduce(self) -> None:
        """The opcodes REDUCE and NEWOBJ: a call."""
        args = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], args)

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce

    def _called(self, what: object, args: object) -> Any:
        """What a call would return."""
        if not isinstance(what, Named) or not isinstance(args, tuple):
            raise self._refused(f"calls a {type(what).__name__}")
        self._check(what.name, args)
        if what.name == "_codecs.encode" and args:
            return args[0]  # the bytes, of which only the number counts
        # With attributes: a module's state dict has `_metadata`.
        return OrderedDict[Any, Any]() if what.name == "collections.OrderedDict" and not args else Made(what.name, args)

    def _check(self, name: str, args: tuple[Any, ...]) -> None:
        """Raise CheckpointError for a call that torch must not make."""
        if _ELSEWHERE.fullmatch(name) or (_TENSOR_CLASS.fullmatch(name) and args):
            raise self._refused(f"calls {name}, which makes a tensor of other numbers than the file's")
        if name == _TYPED and args:
            inner = args[2] if len(args) > 2 else None
            if not isinstance(args[0], Named) or not isinstance(inner, tuple):
                raise self._refused(f"calls {name} with arguments of other types than torch's")
            self._check(args[0].name, inner)
        elif name in _ITERATES:
            self._iterated(name, args)
        elif name in _WITH_TENSORS:
            for tensor in _tensors(args):
                elements, stored = _size(tensor), _stored(tensor)
                if elements is None or stored is None or elements > stored:
                    raise self._refused(f"calls {name} with a tensor of more elements than its storage")
                self._spend(elements)

    def _iterated(self, name: str, args: tuple[Any, ...]) -> None:
        """Check a call that goes through its arguments: they have to be values of the pickle itself."""
        for arg in args if name != "_codecs.encode" else args[:1]:
            if not isinstance(arg, _CONTAINERS):
                raise self._refused(f"calls {name} with a {_kind(arg)}; expected values of the file itself")
            self._spend(len(arg))
        if name in ("_codecs.encode", "builtins.bytearray") and any(arg not in _ENCODINGS for arg in args[1:]):
            raise self._refused(f"calls {name} with an encoding that pickles do not use")

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise self._refused("goes through its values again and again")

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: its pickle {why}, which torch.save does not write; {ADVICE}")


def check_calls(path: Path, archive: bool) -> None:
    """Check the pickles of a torch file: that of its zip `archive`, or those of an older file, which follow one another.

    Raises CheckpointError as `CallReader`, for a broken file, and for an older file that lacks a storage which it refers to.
    """
    try:
        (_check_archive if archive else _check_older)(path)
    except CheckpointError:
        raise
    except Exception as error:
        # A pickle of random bytes raises errors of any class.
        raise broken(path, error) from error


def _check_archive(path: Path) -> None:
    """Check the pickle that torch's own reader finds in a zip archive."""
    import torch

    reader: Any = torch._C.PyTorchFileReader(str(path))
    CallReader(io.BytesIO(reader.get_record("data.pkl")), path).load()


def _check_older(path: Path) -> None:
    """Check the pickles of a file that is no archive, and that it holds all storages: others torch would not fill.

    Source: torch/serialization.py, `_legacy_load`: a number, the format's version, the system, the value, the storages' keys.
    """
    import torch

    with path.open("rb") as stream:
        if CallReader(stream, path).load() != torch.serialization.MAGIC_NUMBER:
            return  # torch reads no further
        for _ in ("version", "system"):
            CallReader(stream, path).load()
        value = CallReader(stream, path)
        value.load()
        held = CallReader(stream, path).load()
    missing = value.storages - set(held if isinstance(held, list) else ())
    if missing:
        raise CheckpointError(
            f"{path}: does not hold storage {shortened(min(map(str, missing)))}, to which its pickle refers; the file is "
            "corrupt, download or save it again"
        )


def broken(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that torch cannot read."""
    return CheckpointError(
        f"{path}: cannot be read as a torch state dict ({first_line(error)}); download or save it again"
    )


def _kind(value: object) -> str:
    """What a value is, in an error."""
    if isinstance(value, Made):
        return value.name.rpartition(".")[2] or "storage"
    return type(value).__name__


def _tensors(args: object) -> Iterator[Made]:
    """The tensors in a call's arguments, within lists and tuples too."""
    left, seen = [args], set[int]()
    while left:
        value = left.pop()
        if isinstance(value, Made) and value.name.startswith("torch._utils._rebuild_"):
            yield value
        if isinstance(value, list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value)


def _size(tensor: Made) -> int | None:
    """The number of elements of a rebuilt tensor (storage, offset, size, stride …), or None if it does not say."""
    size = tensor.args[2] if len(tensor.args) > 2 else None
    if isinstance(size, Made):
        size = size.args[0] if size.args else ()
    if not isinstance(size, list | tuple) or any(type(n) is not int or n < 0 for n in size):
        return None
    return prod(size)


def _stored(tensor: Made) -> int | None:
    """The number of elements of a rebuilt tensor's storage, or None if it does not say."""
    storage = tensor.args[0] if tensor.args else None
    said = storage.args if isinstance(storage, Made) else ()
    count = said[4] if isinstance(said, tuple) and len(said) > 4 else None
    return count if type(count) is int else None
